//! Recordings that begin and end while a guest runs, through the control socket.

use std::path::Path;
use std::{fs, iter};

use serde_json::Value;
use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::running::Running;
use taskvisor_tests::{Run, TempDir, serial};

/// Records until there are so many of them, and fetches them in both formats.
fn record(running: &Running, dir: &Path, least: u64) -> (Value, [String; 2]) {
    let begun = running.json(["trace", "start", "--ring-records", "64", "--json"]);
    assert_eq!(begun["state"], "recording", "{begun:#}");
    running.ctl(["trace", "start"]).expect_code(125).expect_stderr("a trace is being recorded already");
    let files = ["x.pftrace", "x.jsonl"].map(|name| dir.join(name).display().to_string());
    running.ctl(["trace", "fetch", &files[0]]).expect_code(125).expect_stderr("a trace is being recorded already");
    running.until(["trace", "status", "--json"], |now| now["records"].as_u64() >= Some(least));
    let ended = running.json(["trace", "stop", "--json"]);
    assert_eq!(ended["state"], "stopped", "{ended:#}");
    for file in &files {
        running.ctl(["trace", "fetch", file]).expect_code(0);
    }
    (ended, files)
}

/// The records of a file of JSON lines.
fn lines(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("it was fetched");
    text.lines().skip(1).map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

/// Kind and task of each record.
fn has(records: &[Value], kind: &str, name: &str) -> bool {
    records.iter().any(|record| record["kind"] == kind && record["name"] == name)
}

#[test]
fn a_guest_that_was_not_traced_is_recorded_for_a_while() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(1) else { return };
    let dir = TempDir::new();
    running.ctl(["trace", "stop"]).expect_code(125).expect_stderr("no trace is being recorded");
    running.ctl(["trace", "fetch", "x.pftrace"]).expect_code(125).expect_stderr("no trace was recorded");
    for (flag, bad, why) in [("--ring-records", "65", "a power of two"), ("--limit", "5", "limited to 5 bytes")] {
        running.ctl(["trace", "start", flag, bad]).expect_code(125).expect_stderr(why);
    }
    let mut ends = iter::repeat_with(|| {
        // More than the rings hold: they were drained meanwhile.
        let (ended, files) = record(&running, dir.path(), 140);
        assert_eq!((&ended["lost"], &ended["over_limit"]), (&0.into(), &0.into()), "{ended:#}");
        let records = lines(&files[1]);
        assert_eq!(ended["records"], records.len() as u64, "every record is in the file");
        // Tasks that were there before have their names all the same.
        assert!(has(&records, "name", "sleep") && has(&records, "name", "busybox"), "tasks are named");
        assert!(records.iter().any(|record| record["kind"] == "switch"), "tasks were switched");
        let report = Run::new(taskvisor()).args(["report", &files[0]]).run();
        report.expect_code(0);
        assert!(report.text().contains("busybox"), "{}", report.text());
        records.iter().filter_map(|record| record["ns"].as_u64()).max()
    });
    // The second one begins after the first: nothing of that is left in the rings.
    let first = ends.next();
    assert!(ends.next() > first);
}

#[test]
fn a_recording_beside_that_of_the_whole_run() {
    let _beside_others = serial::shared();
    let dir = TempDir::new();
    let whole = dir.path().join("whole.jsonl");
    let flags = |_: &Path| vec!["--trace".into(), whole.clone().into()];
    let Some(mut running) = Running::start_with(1, flags) else { return };
    let (ended, files) = record(&running, dir.path(), 140);
    assert_eq!(ended["run_is_traced"], true);
    // A recording's end is not that of the other.
    running.json(["suspend", "1", "--json"]);
    running.json(["resume", "1", "--json"]);
    // The first program's end is the guest's. The VMM may be gone before it has answered.
    running.ctl(["kill", "1"]);
    running.wait();
    let (whole, part) = (lines(&whole.display().to_string()), lines(&files[1]));
    let switches = |records: &[Value]| records.iter().filter(|r| r["kind"] == "switch").count();
    assert!(switches(&whole) >= switches(&part) && switches(&part) > 0, "{} {}", switches(&whole), switches(&part));
    let same = |a: &Value, b: &Value| ["tsc", "cpu", "kind", "task", "a", "b"].iter().all(|key| a[key] == b[key]);
    for record in part.iter().filter(|record| record["kind"] == "switch") {
        assert!(whole.iter().any(|other| same(record, other)), "{record} is in both files");
    }
}

#[test]
fn a_machine_that_is_killed_leaves_its_whole_trace_and_nothing_else() {
    let _beside_others = serial::shared();
    let dir = TempDir::new();
    let trace = dir.path().join("killed.jsonl");
    let Some(mut running) = Running::start_with(1, |_| vec!["--trace".into(), trace.clone().into()]) else { return };
    let switches = || lines(&trace.display().to_string()).iter().filter(|record| record["kind"] == "switch").count();
    running.ctl(["kill"]).expect_code(0);
    // Not by the signal, but in order.
    assert_eq!(running.wait_status().code(), Some(128 + libc::SIGTERM));
    assert!(switches() > 0, "what was recorded is in the file");
    assert!(!running.socket().exists(), "the socket's file should go with the VMM");
}
