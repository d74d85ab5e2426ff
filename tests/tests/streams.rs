//! stdin, stdout, stderr and the exit code are the program's own.

use std::time::Duration;

use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, on_1_2_and_4_vcpus, prereq, serial};

/// Bytes without a short period, all values among them.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

on_1_2_and_4_vcpus! {
    fn three_megabytes_through_cat(guest: Guest) {
        let Some(busybox) = prereq::busybox() else { return };
        guest.stdin(noise(3 << 20)).same_as_host(&busybox, &["cat"]).expect_code(0);
    }
    fn through_a_pipe_inside(guest: Guest) {
        let Some(busybox) = prereq::busybox() else { return };
        guest.stdin(noise(300_000)).same_as_host(&busybox, &["sh", "-c", "cat | cat | md5sum"]).expect_code(0);
    }
    fn streams_stay_apart(guest: Guest) {
        let Some(busybox) = prereq::busybox() else { return };
        let outcome = guest.run(&busybox, ["sh", "-c", "echo to out; echo to err >&2; echo out again"]);
        outcome.expect_code(0).expect_stderr("to err");
        assert_eq!(outcome.text(), "to out\nout again\n", "again: {}", outcome.typed);
        assert!(!outcome.stderr.contains("out again"), "again: {}", outcome.typed);
    }
    fn empty_stdin_ends(guest: Guest) {
        let Some(busybox) = prereq::busybox() else { return };
        guest.same_as_host(&busybox, &["wc", "-c"]).expect_stdout("0");
    }
    fn lines_in_order(guest: Guest) {
        let Some(busybox) = prereq::busybox() else { return };
        guest.same_as_host(&busybox, &["seq", "1", "20000"]).expect_code(0);
    }
    fn exit_codes(guest: Guest) {
        for code in [0, 1, 42, 122, 255] {
            guest.run(&program("musl/bad"), ["exit", &code.to_string()]).expect_code(code);
        }
    }
    fn death_by_signal(guest: Guest) {
        for (signal, code) in [("6", 134), ("9", 137), ("15", 143)] {
            guest.run(&program("musl/bad"), ["signal", signal]).expect_code(code);
        }
    }
}

#[test]
fn a_hundred_megabytes_without_loss() {
    let (true, Some(busybox)) = (prereq::kvm_or_left_out(), prereq::busybox()) else { return };
    let _alone = serial::alone();
    let bytes = noise(100 << 20);
    let outcome = Guest::new(2).stdin(bytes.clone()).timeout(Duration::from_secs(600)).run(&busybox, ["cat"]);
    outcome.expect_code(0);
    // Compared here and not by assert_eq, whose message would be a gigabyte.
    assert!(outcome.stdout == bytes, "{} of {} bytes arrived as they were sent", outcome.stdout.len(), bytes.len());
}

/// A reader that goes away early is the program's own SIGPIPE, as on the host, not a hang.
#[test]
fn closed_stdout_ends_the_program() {
    let (true, Some(busybox)) = (prereq::kvm_or_left_out(), prereq::busybox()) else { return };
    let _beside_others = serial::shared();
    let command = Guest::new(1).command().arg("--").arg(&busybox).args(["yes"]).typed();
    let command = command.trim_end_matches(" </dev/null");
    let outcome = taskvisor_tests::Run::new("sh")
        .args(["-c", &format!("{command} </dev/null | head -n 3")])
        .limit(Duration::from_secs(20))
        .run();
    outcome.expect_code(0);
    assert_eq!(outcome.text(), "y\ny\ny\n", "again: {}", outcome.typed);
}
