//! The helpers themselves: a limit that holds, a command that repeats, streams that don't block.

use std::time::Duration;

use taskvisor_tests::{Run, TempDir};

#[test]
fn a_run_ends_at_its_limit() {
    // The grandchild is in the same process group and must go too.
    let outcome = Run::new("sh").args(["-c", "sleep 1000 & echo $!; wait"]).limit(Duration::from_millis(200)).run();
    assert!(outcome.timed_out);
    assert_eq!(outcome.code(), 137);
    // A killed process ends its streams a moment before itself.
    let gone = (0..10_000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        !runs(outcome.text().trim())
    });
    assert!(gone, "process {} is still there", outcome.text());
}

#[test]
fn what_a_run_leaves_behind_is_not_waited_for() {
    let outcome = Run::new("sh").args(["-c", "setsid sleep 1000 & echo $!; exit 3"]).run();
    assert_eq!(outcome.code(), 3);
    let left = outcome.text();
    let left = left.trim();
    assert!(runs(left), "process {left} was waited for, or never ran");
    // SAFETY: kill only takes numbers; that process runs, so the id is its own.
    unsafe { libc::kill(left.parse().expect("a process id"), libc::SIGKILL) };
}

/// Whether a process is there and has not ended: one that nobody has waited for is still listed.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| !"ZX".contains(state))
}

#[test]
fn a_signal_comes_when_the_text_is_there() {
    let outcome = Run::new("sh").args(["-c", "echo ready; exec sleep 1000"]).signal_at("ready", libc::SIGTERM).run();
    outcome.expect_code(143);
    assert!(outcome.since_signal.is_some());
    let outcome = Run::new("echo").arg("other").signal_at("ready", libc::SIGTERM).run();
    outcome.expect_code(0);
    assert!(outcome.since_signal.is_none());
}

#[test]
fn large_streams_flow_both_ways_at_once() {
    let bytes = vec![b'x'; 4 << 20];
    let outcome = Run::new("sh").args(["-c", "tee /dev/stderr"]).stdin(bytes.clone()).run();
    outcome.expect_code(0);
    assert!(outcome.stdout == bytes && outcome.stderr.len() == bytes.len());
}

#[test]
fn a_typed_command_can_be_typed() {
    let run = Run::new("sh").args(["-c", "echo \"it's $A\" | cat"]).env("A", "a b");
    let typed = run.typed();
    let first = run.run();
    Run::new("sh").args(["-c", &typed]).run().expect_same_output(&first).expect_code(0);
    assert_eq!(first.text(), "it's a b\n");
}

#[test]
fn directories_go_away() {
    let dir = TempDir::new();
    let path = dir.write("file", "text");
    drop(dir);
    assert!(!path.exists());
}
