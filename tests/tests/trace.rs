//! `--trace`: a real guest recorded, and its files read by others than their writer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use taskvisor_tests::{Guest, Run, TempDir, prereq, serial};

/// Tasks that wake each other, on two CPUs.
const SCRIPT: &str = "for i in 1 2 3; do (busybox seq 1 20 | busybox wc -l; busybox sleep 0.02) & done; wait; exit 3";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}

/// Records a guest; `None` where that is left out.
#[track_caller]
fn record(dir: &TempDir, name: &str, flags: &[&str]) -> Option<PathBuf> {
    let busybox = prereq::kvm_or_left_out().then(prereq::busybox)??;
    let _beside_others = serial::shared();
    let path = dir.path().join(name);
    let mut guest = Guest::new(2).flag("--trace").flag(&path);
    for flag in flags {
        guest = guest.flag(flag);
    }
    let outcome = guest.file(&busybox, "/bin/busybox").run(&busybox, ["sh", "-c", SCRIPT]);
    outcome.expect_code(3).expect_stdout("20\n20\n20\n");
    Some(path)
}

/// Perfetto's own definitions decode it, and what its tracks are made of is there and agrees.
#[test]
fn perfetto_understands_it() {
    let package = root().join("target/perfetto");
    let there = package.join("perfetto/protos").is_dir();
    if !prereq::there_or_left_out(there, "Perfetto's protobuf definitions (PyPI: perfetto)") {
        return;
    }
    let dir = TempDir::new();
    let Some(path) = record(&dir, "x.pftrace", &[]) else { return };
    let check = Run::new("python3").arg(root().join("tests/check_perfetto.py")).arg(&path);
    let outcome = check.env("PYTHONPATH", package.display().to_string()).run();
    outcome.expect_code(0);
    let found: Value = serde_json::from_str(&outcome.text()).expect("the check prints JSON");
    for event in ["sched_switch", "sched_waking", "sched_wakeup_new", "sched_process_exit"] {
        assert!(found["events"][event].as_u64() > Some(0), "no {event}: {found}");
    }
    for cpu in ["0", "1"] {
        assert!(found["switches"][cpu].as_u64() > Some(0), "CPU {cpu} never switches: {found}");
        assert!(found["slices"][format!("vCPU {cpu}")].as_u64() > Some(1), "vCPU {cpu} has no slices: {found}");
        assert!(found["counters"][format!("CPU {cpu} queue")].is_u64(), "CPU {cpu} has no counter: {found}");
    }
    let threads = found["threads"].as_array().expect("a list");
    assert!(threads.iter().any(|name| name == "busybox" || name == "sh"), "{found}");
}

/// The lines of a JSON trace, the header apart.
fn lines(path: &Path) -> (Value, Vec<Value>) {
    let text = fs::read_to_string(path).expect("the trace is there");
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("each line is JSON"));
    let header = lines.next().expect("a header");
    (header["taskvisor_trace"].clone(), lines.collect())
}

fn number(line: &Value, field: &str) -> u64 {
    line[field].as_u64().unwrap_or_else(|| panic!("no {field} in {line}"))
}

/// Of every kind that such a run must have, in order, nothing missing.
fn check_lines(path: &Path) {
    let (header, lines) = lines(path);
    assert_eq!(header["cpus"], 2, "{header}");
    assert!(header["tsc_khz"].as_u64() > Some(0), "{header}");
    let kinds: HashSet<&str> = lines.iter().filter_map(|line| line["kind"].as_str()).collect();
    let expected = [
        "clock",
        "name",
        "new",
        "wake",
        "switch",
        "exit",
        "fault",
        "syscall_enter",
        "syscall_exit",
        "halt",
        "vcpu_entry",
        "vcpu_exit",
    ];
    for kind in expected {
        assert!(kinds.contains(kind), "no {kind} among {kinds:?}");
    }
    assert!(!kinds.contains("lost"), "records were lost");

    let mut last: BTreeMap<(u64, bool), u64> = BTreeMap::new();
    let mut current: HashMap<u64, u64> = HashMap::new();
    // Records of a task's place are counted by the task: none may be missing, whatever CPU wrote it.
    let mut places: HashMap<u64, Vec<u64>> = HashMap::new();
    let (mut entries, mut exits) = (0, 0);
    for line in &lines {
        let (cpu, kind) = (number(line, "cpu"), line["kind"].as_str().unwrap_or_default());
        let stamp = number(line, "tsc");
        let before = last.insert((cpu, kind.starts_with("vcpu_")), stamp);
        assert!(before.is_none_or(|before| before <= stamp), "time runs backwards at {line}");
        if kind == "switch" {
            let (prev, next) = (number(line, "task"), number(line, "next"));
            let running = current.insert(cpu, next);
            assert!(running.is_none_or(|running| running == prev), "task {running:?} was running: {line}");
        }
        if ["new", "wake", "switch", "migrate"].contains(&kind) {
            places.entry(number(line, "task")).or_default().push(number(line, "seq"));
        }
        if kind == "switch" {
            places.entry(number(line, "next")).or_default().push(number(line, "next_seq"));
        }
        entries += u32::from(kind == "vcpu_entry");
        exits += u32::from(kind == "vcpu_exit");
    }
    assert_eq!(current.len(), 2, "both CPUs switch");
    assert!(entries >= exits && entries - exits <= 2, "{entries} entries, {exits} exits");
    for (task, mut counts) in places {
        // An idle task is in no queue, and not counted.
        counts.sort_unstable();
        if counts.last() == Some(&0) || counts.len() > 60_000 {
            continue;
        }
        let gap = counts.windows(2).find(|pair| pair[1] > pair[0] + 1);
        assert!(gap.is_none(), "task {task}: a place record between {gap:?} is missing");
    }
}

#[test]
fn json_lines_are_whole_and_in_order() {
    let dir = TempDir::new();
    if let Some(path) = record(&dir, "x.jsonl", &[]) {
        check_lines(&path);
    }
}

/// The smallest ring is full again and again: the doorbell empties it, and still nothing is missing.
#[test]
fn a_small_ring_loses_nothing() {
    let dir = TempDir::new();
    if let Some(path) = record(&dir, "x.jsonl", &["--cmdline", "trace_records=64"]) {
        check_lines(&path);
        assert!(lines(&path).1.len() > 2 * 64, "the rings were never full");
    }
}

#[test]
fn a_name_that_tells_no_format_is_refused_before_anything_runs() {
    let outcome = Guest::new(1).flag("--trace").flag("x.json").run(Path::new("/bin/true"), [] as [&str; 0]);
    outcome.expect_code(125);
    outcome.expect_stderr("unknown trace format .json").expect_one_line_error();
}
