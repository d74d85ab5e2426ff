//! Runs whose every trace record is held against the scheduler's invariants.
//!
//! The records go through `taskvisor report`, which is what a user has, too. A failure names the invariant, and ends with the command
//! that repeats the run.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use crate::guest::taskvisor;
use crate::{Guest, Outcome, Run, TempDir};

/// How late a CPU may be before that counts: the tests' guests share two or three host CPUs with each other, and a vCPU that
/// waits for one looks like a CPU that does nothing.
const GRACE: &str = "2s";

/// Runs a program with `--trace` and checks its trace. Returns how it ended, and how many checks were made.
///
/// # Panics
/// If an invariant was violated, or nothing was checked.
pub fn run_checked<T: AsRef<OsStr>>(guest: Guest, program: &Path, args: impl IntoIterator<Item = T>) -> (Outcome, u64) {
    let dir = TempDir::new();
    let trace = dir.path().join("trace.jsonl");
    let outcome = guest.flag("--trace").flag(&trace).run(program, args);
    let report = Run::new(taskvisor()).args(["report", "--json", "--complete", "--grace", GRACE]).arg(&trace).run();
    let Ok(found) = serde_json::from_slice::<Value>(&report.stdout) else {
        outcome.fail(&format!("no report of its trace: {}", report.stderr));
    };
    if report.code() != 0 {
        let violations = serde_json::to_string_pretty(&found["violations"]).unwrap_or_default();
        outcome.fail(&format!("its trace breaks an invariant:\n{violations}"));
    }
    let checked =
        found["invariants"].as_array().map_or(0, |list| list.iter().filter_map(|i| i["checked"].as_u64()).sum());
    if checked == 0 {
        outcome.fail("nothing was checked in its trace");
    }
    (outcome, checked)
}
