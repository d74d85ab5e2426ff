//! `taskvisor script`: the scripts of resources/scripts do what they say, and what goes wrong in one is told with its place.

use std::path::{Path, PathBuf};
use std::time::Duration;

use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::{Outcome, Run, TempDir, prereq, serial};

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/scripts")
}

/// Runs a script with a directory for its files.
fn run(script: &Path, out: &TempDir, args: &[&str]) -> Outcome {
    let run = Run::new(taskvisor()).args(["script", "--out"]).arg(out.path()).arg(script).args(args);
    run.limit(Duration::from_secs(400)).run()
}

/// Runs one of ours; it prints these columns, and writes as many rows, and a plot.
fn ours(name: &str, columns: &str, rows: std::ops::RangeInclusive<usize>, args: &[&str]) {
    if !prereq::kvm_or_left_out() || prereq::busybox().is_none() {
        return;
    }
    let _beside_others = serial::shared();
    let out = TempDir::new();
    let outcome = run(&scripts().join(name).with_extension("rhai"), &out, args);
    outcome.expect_code(0);
    let csv = std::fs::read_to_string(out.path().join(name).with_extension("csv")).expect("it writes its table");
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some(columns), "{csv}");
    assert!(rows.contains(&lines.count()), "{csv}");
    let svg = std::fs::read_to_string(out.path().join(name).with_extension("svg")).expect("it writes its plot");
    assert!(svg.starts_with("<svg") && svg.contains("<circle"), "{svg}");
}

const COUNT: [&str; 4] = ["busybox", "sh", "-c", "i=0; while [ $i -lt 200 ]; do i=$((i+1)); done"];

#[test]
fn vcpu_sweep() {
    ours("vcpu-sweep", "policy,vcpus,seconds,speedup", 4..=16, &COUNT);
}

#[test]
fn pin_or_float() {
    ours("pin-or-float", "placement,run,seconds", 8..=12, &COUNT);
}

#[test]
fn noisy_neighbour() {
    ours("noisy-neighbour", "neighbours,seconds,waited", 4..=4, &COUNT);
}

#[test]
fn clock_skew() {
    ours("clock-skew", "rate,host,guest,seen", 6..=6, &[]);
}

#[test]
fn live_repin() {
    ours("live-repin", "age,pins,vcpu,affinity,share", 18..=18, &[]);
}

/// A script of our own.
fn text(text: &str) -> Outcome {
    let dir = TempDir::new();
    let script = dir.write("s.rhai", text);
    run(&script, &dir, &[])
}

#[test]
fn errors_name_file_line_and_column() {
    for (script, place) in [
        ("let x = 1;\nlet y = ;", "s.rhai:2:9: "),
        ("\nfail(\"so\")", "s.rhai:2:1: so"),
        ("loop { }", "more than 20000000 operations"),
        ("table([\"a\"]).csv(\"../x\")", "no plain file name"),
    ] {
        text(script).expect_code(125).expect_one_line_error().expect_stderr(place);
    }
}

#[test]
fn guests_are_waited_for_changed_and_ended() {
    if !prereq::kvm_or_left_out() || prereq::busybox().is_none() {
        return;
    }
    let _beside_others = serial::shared();
    text(
        r#"
        let vm = launch(#{vcpus: 2}, ["busybox", "sh", "-c", "echo one; sleep 1000 & while :; do :; done"]);
        vm.wait_output("one", "60s");
        vm.wait_task("sleep", "blocked", "60s");
        let shell = vm.wait_task("busybox", "running", "60s");
        if vm.set(shell.id, #{nice: 3}).nice != 3 { fail("nice") }
        if !vm.suspend(shell.id).suspended { fail("suspend") }
        vm.resume(shell.id);
        vm.pause();
        if vm.vm().state != "paused" { fail("pause") }
        vm.resume();
        let pid = vm.start("/bin/busybox", ["sleep", "1000"]);
        vm.signal(pid, "KILL");
        if !vm.running() { fail("it ended") }
        let end = run(#{}, ["busybox", "sh", "-c", "echo out; echo err >&2; exit 3"]);
        if end.code != 3 || end.stdout != "out\n" || end.stderr != "err\n" { fail(`${end}`) }
        try { vm.wait("10ms"); fail("it ended?") } catch (e) { print(`${e}`) }
        print("all of it");
        "#,
    )
    .expect_code(0)
    .expect_stdout("has not ended within 10ms")
    .expect_stdout("all of it");
    // What can't be launched is told with the VMM's own words.
    text("run(#{vcpus: 0}, [\"busybox\"])").expect_code(0);
    text("let vm = launch(#{vcpuss: 1}, [\"busybox\"]); vm.tasks()").expect_code(125).expect_stderr("vcpuss");
    text("launch(#{cpu: [#{}]}, [\"busybox\"])").expect_code(125).expect_stderr("no word of a command line");
}
