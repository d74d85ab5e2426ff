//! Scheduler benchmarks that others wrote: perf's `sched messaging` (hackbench) and `sched pipe`, under each policy, beside the host.
//!
//! tests/bench/sched-bench/build.sh builds them from Debian's package of the Linux source, kept below target/.

use std::path::{Path, PathBuf};
use std::process::Command;

use taskvisor_tests::{Guest, Outcome, Run, prereq};
use vcpu_sched::runqueue::PolicyKind;

use crate::table::{Row, Table};

const VCPUS: [u32; 3] = [1, 2, 4];
/// What is run: a name, the program's arguments.
const LOADS: [(&str, &[&str]); 3] = [
    ("messaging, 40 threads, 10 messages each", &["messaging", "-t", "-g", "1", "-l", "10"]),
    ("messaging, 40 processes, 10 messages each", &["messaging", "-p", "-g", "1", "-l", "10"]),
    ("pipe, 100 round trips of two processes", &["pipe", "-l", "100"]),
];

/// All rows.
pub fn measure(table: &mut Table) {
    table.section("perf bench sched, built from Linux 6.1: time that it tells, one run each");
    if !prereq::kvm_or_left_out() {
        return table.push(Row::missing("all", "no /dev/kvm"));
    }
    let program = match build() {
        Ok(program) => program,
        Err(why) => return table.push(Row::missing("all", why)),
    };
    for (name, args) in LOADS {
        let host = total_time(&Run::new(&program).args(args).run());
        for vcpus in VCPUS {
            for policy in PolicyKind::ALL.map(PolicyKind::name) {
                let guest = Guest::new(vcpus).flag("--policy").flag(policy).run(&program, args);
                let name = format!("{name}: {policy}, {vcpus} vCPU(s)");
                table.push(match total_time(&guest) {
                    Ok(ms) => Row::new(name, ms, "ms").beside("host", host.as_ref().ok().copied()),
                    Err(why) => Row::missing(name, why),
                });
            }
        }
    }
}

/// The program, or why there is none: the network, for one, may be away.
fn build() -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/sched-bench/build.sh");
    // Beside this program's own build: target/release/taskvisor-bench.
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let cache = own.ancestors().nth(2).unwrap_or(Path::new("target")).join("sched-bench");
    let output = Command::new(&script).arg(&cache).output().map_err(|e| format!("{}: {e}", script.display()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("can't be built here: {}", errors.lines().last().unwrap_or("no message")));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// What the program says that it took, in milliseconds. Once: where ring 0 is interpreted, a run takes a minute.
fn total_time(outcome: &Outcome) -> Result<f64, String> {
    let text = outcome.text();
    let seconds = text.lines().find_map(|line| line.trim().strip_prefix("Total time:")?.strip_suffix("[sec]"));
    let seconds: Option<f64> = seconds.and_then(|text| text.trim().parse().ok()).filter(|_| outcome.code() == 0);
    let failed = || format!("exit code {} or no time; again: {}", outcome.code(), outcome.typed);
    seconds.map(|seconds| seconds * 1e3).ok_or_else(failed)
}
