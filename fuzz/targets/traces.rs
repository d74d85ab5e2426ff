//! Trace files: a report or an error. The first byte chooses the format.

use std::fs;

use taskvisor::report;
use vcpu_sched::checker::Options;

/// One input.
pub fn run(bytes: &[u8]) {
    let Some((format, bytes)) = bytes.split_first() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(if format.is_multiple_of(2) { "a.pftrace" } else { "a.jsonl" });
    fs::write(&path, bytes).expect("a file of our own");
    // Damaged or not.
    let _ = report::report(&path, None, Options::default());
}
