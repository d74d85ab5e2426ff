//! The helpers themselves: a limit that holds, a command that repeats, streams that don't block.

use std::time::{Duration, Instant};

use taskvisor_tests::{Run, TempDir};

#[test]
fn a_run_ends_at_its_limit() {
    let start = Instant::now();
    // The grandchild is in the same process group and must go too.
    let outcome = Run::new("sh").args(["-c", "sleep 60 & wait"]).limit(Duration::from_millis(200)).run();
    assert!(outcome.timed_out && start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    assert_eq!(outcome.code(), 137);
}

#[test]
fn what_a_run_leaves_behind_is_not_waited_for() {
    let start = Instant::now();
    let outcome = Run::new("sh").args(["-c", "echo before; setsid sleep 20 & exit 3"]).run();
    assert_eq!((outcome.code(), outcome.text().as_str()), (3, "before\n"));
    assert!(start.elapsed() < Duration::from_secs(10));
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
