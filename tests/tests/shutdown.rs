//! Ends are complete, whoever causes them. How quick they are is measured by `make bench`.

use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, prereq, serial};

#[test]
fn at_the_timeout() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    for way in ["spin", "forever"] {
        let outcome = Guest::new(4).run_into_timeout(&program("musl/bad"), &[way], "about to");
        outcome.expect_code(124).expect_stdout("about to");
    }
}

#[test]
fn by_a_signal_to_the_vmm() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130), (libc::SIGHUP, 129)] {
        let command = Guest::new(4).command().arg("--").arg(program("musl/bad")).arg("spin");
        let outcome = command.signal_at("about to: spin", signal).run();
        outcome.expect_code(code);
        assert!(outcome.since_signal.is_some(), "it ended before the signal; again: {}", outcome.typed);
    }
}
