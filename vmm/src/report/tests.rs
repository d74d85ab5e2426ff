//! Whole reports of small traces that are made here, and of files that are none.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use vcpu_sched::checker::Options;
use vcpu_sched::events::{ClassTag, Kind, MigrateReason, Record, Side, flag};
use vcpu_sched::ids::{CpuId, TaskId};
use vcpu_sched::task::state::State;

use super::{ReportError, report};
use crate::trace::clock::ClockMap;
use crate::trace::{Header, Malformed, Stream, TraceError, TraceWriter, VERSION};

pub(super) const FAIR: ClassTag = ClassTag { prio: 120, policy: 0 };
const FIFO: ClassTag = ClassTag { prio: 49, policy: 1 };
/// Ticks are nanoseconds.
const CLOCK: ClockMap = ClockMap { tsc: 0, ns: 0, khz: 1_000_000 };

pub(super) fn name(tsc: u64, task: u32, text: &str) -> Record {
    let mut bytes = [0; 16];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    let [a, b] = [&bytes[..8], &bytes[8..]].map(|half| u64::from_le_bytes(half.try_into().unwrap()));
    Record { tsc, task, kind: Kind::Name as u8, a, b, ..Record::default() }
}

pub(super) fn side(task: u32, seq: u16, class: ClassTag) -> Side {
    Side { task: TaskId(task), seq, class }
}

pub(super) fn idle(cpu: u32) -> Side {
    side(1 + cpu, 0, ClassTag::IDLE)
}

/// Two CPUs. A worker hands jobs to a helper on the other CPU; a real-time task takes the worker's CPU for a while.
pub(super) fn cpus() -> [Vec<Record>; 2] {
    let (worker, helper, urgent) = (10, 11, 12);
    let queued = |kind, tsc, task, seq, flags, waker: Side, cpu, class| {
        Record::queued(kind, tsc, TaskId(task), seq, flags, waker.task, CpuId(cpu), class, 1)
    };
    let w = |seq| side(worker, seq, FAIR);
    let h = |seq| side(helper, seq, FAIR);
    let u = |seq| side(urgent, seq, FIFO);
    let (blocked, ready, dead) = (State::Blocked as u8, State::Ready as u8, State::Dead as u8);
    let first = vec![
        name(1_000, worker, "worker"),
        queued(Kind::New, 1_100, worker, 1, 0, idle(0), 0, FAIR),
        name(1_200, helper, "<helper>"),
        queued(Kind::New, 1_300, helper, 1, flag::KICKED, idle(0), 1, FAIR),
        Record::switch(2_000, idle(0), w(2), ready, 0),
        queued(Kind::Wake, 900_000, helper, 4, flag::KICKED, w(0), 1, FAIR),
        name(950_000, urgent, "urgent"),
        queued(Kind::New, 951_000, urgent, 1, 0, w(0), 0, FIFO),
        Record::switch(952_000, w(3), u(2), ready | flag::PREEMPTED, 1),
        Record::switch(5_952_000, u(3), w(4), blocked, 0),
        Record { tsc: 6_000_000, kind: Kind::Tick as u8, ..Record::default() },
        queued(Kind::Wake, 7_000_000, helper, 7, flag::KICKED, w(0), 1, FAIR),
        Record::switch(7_500_000, w(5), idle(0), blocked, 0),
    ];
    let second = vec![
        Record { tsc: 500, task: idle(1).task.0, kind: Kind::Halt as u8, ..Record::default() },
        Record::switch(10_000, idle(1), h(2), ready, 0),
        Record::switch(40_000, h(3), idle(1), blocked, 0),
        Record::switch(912_000, idle(1), h(5), ready, 0),
        Record::switch(1_000_000, h(6), idle(1), blocked, 0),
        Record::switch(7_004_000, idle(1), h(8), ready, 0),
        queued(Kind::Wake, 7_600_000, worker, 6, 0, h(0), 0, FAIR),
        Record::migrate(7_610_000, TaskId(worker), 7, CpuId(0), CpuId(1), MigrateReason::IdlePull, 1, false),
        Record::switch(7_700_000, h(9), w(8), dead, 0),
        Record::switch(9_000_000, w(9), idle(1), dead, 0),
    ];
    [first, second]
}

pub(super) fn write(dir: &TempDir, file: &str, cpus: [Vec<Record>; 2]) -> PathBuf {
    let path = dir.path().join(file);
    let header = Header {
        version: VERSION,
        cpus: 2,
        tsc_khz: CLOCK.khz,
        policy: "fair".into(),
        program: vec!["./jobs".into(), "--two".into()],
        ..Header::default()
    };
    let mut writer = TraceWriter::create(&path, &header).unwrap();
    for (cpu, records) in cpus.into_iter().enumerate() {
        writer.write(Stream { cpu: cpu as u32, vmm: false }, &CLOCK, &records).unwrap();
    }
    let exit = |tsc, kind, a| Record { tsc, kind: kind as u8, a, ..Record::default() };
    let exits = [exit(2_000, Kind::VcpuEntry, 0), exit(950_100, Kind::VcpuExit, 1), exit(950_900, Kind::VcpuEntry, 0)];
    writer.write(Stream { cpu: 0, vmm: true }, &CLOCK, &exits).unwrap();
    writer.finish().unwrap();
    path
}

pub(super) fn complete() -> Options {
    Options { complete: true, ..Options::default() }
}

#[test]
fn a_small_trace_as_text() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["t.pftrace", "t.jsonl"] {
        let report = report(&write(&dir, file, cpus()), None, complete()).unwrap();
        assert!(report.holds());
        insta::assert_snapshot!("small_trace", report.to_string());
    }
}

#[test]
fn a_violation_is_told_with_what_came_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut cpus = cpus();
    // The second wake-up of the helper goes into the wrong queue.
    cpus[0][11].a ^= 1 << 32;
    let report = report(&write(&dir, "t.jsonl", cpus), None, complete()).unwrap();
    assert!(!report.holds());
    let text = report.to_string();
    assert!(text.contains("picked_after_queued") && text.contains("VIOLATED"), "{text}");
    assert!(text.contains("CPU 1 picks task 11, but it is queued on CPU 0"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    let found = json["invariants"].as_array().unwrap().iter().find(|i| i["name"] == "picked_after_queued").unwrap();
    assert_eq!((found["violations"].as_u64(), found["checked"].as_u64()), (Some(1), Some(7)));
}

/// What scripts may rely on (docs/report.md).
#[test]
fn the_json_has_its_fields() {
    let dir = tempfile::tempdir().unwrap();
    let report = report(&write(&dir, "t.pftrace", cpus()), None, complete()).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["schema"], 1);
    let sum = |field: &str| json["tasks"].as_array().unwrap().iter().map(|t| t[field].as_u64().unwrap()).sum::<u64>();
    let busy: u64 = json["cpus"].as_array().unwrap().iter().map(|c| c["busy_ns"].as_u64().unwrap()).sum();
    assert_eq!(sum("run_ns"), busy);
    assert_eq!((sum("wakeups"), sum("migrations")), (3, 1));
    assert_eq!(json["wakeup_latency"]["count"], 3);
    assert_eq!(json["worst_delays"][0]["delay_ns"], 5_000_000);
    assert_eq!(json["worst_delays"][0]["instead"][0]["name"], "urgent");
    assert_eq!(json["invariants"].as_array().unwrap().len(), 13);
    assert_eq!(json["cpus"][0]["exits"]["port_out"], 1);
}

/// The page's data can be read back, and no name breaks out of it.
#[test]
fn the_page_holds_everything_and_names_stay_inside() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    report(&write(&dir, "t.pftrace", cpus()), Some(&page), complete()).unwrap();
    let html = fs::read_to_string(&page).unwrap();
    assert!(!html.contains("<!--{") && !html.contains("<helper>"));
    assert!(!html.contains("src=\"http") && !html.contains("href=\"http"));
    let json = |id: &str| {
        let (_, rest) = html.split_once(&format!("id=\"{id}\">")).unwrap();
        serde_json::from_str::<serde_json::Value>(rest.split_once("</script>").unwrap().0).unwrap()
    };
    assert_eq!(json("report")["tasks"].as_array().unwrap().len(), 3);
    let lanes =
        json("slices")["lanes"].as_array().unwrap().iter().map(|l| l["slices"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(lanes, [3, 4]);
}

fn refused(path: &Path) -> TraceError {
    match report(path, None, Options::default()) {
        Err(ReportError::Trace(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_trace_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.jsonl");
    assert!(matches!(refused(&path), TraceError::Io { .. }));
    for (text, told) in [("", "byte 0"), ("\u{7f}ELF\u{2}\u{1}", "t.jsonl"), ("{\"version\":1}\nnonsense\n", "t.jsonl")]
    {
        fs::write(&path, text).unwrap();
        let error = refused(&path);
        assert!(matches!(error, TraceError::Malformed { .. }), "{text:?}: {error}");
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[test]
fn another_version_is_refused_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir, "t.jsonl", cpus());
    let text = fs::read_to_string(&path).unwrap();
    let other = text.replacen("\"version\":1", "\"version\":7", 1);
    assert_ne!(text, other, "the header tells the version");
    fs::write(&path, other).unwrap();
    assert!(matches!(refused(&path), TraceError::Malformed { what: Malformed::Version(7), .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is cut off or overwritten, there is a report or an error, never a panic.
    #[test]
    fn damaged_files_are_survived(
        jsonl: bool,
        cut in any::<prop::sample::Index>(),
        holes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        truncate: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = write(&dir, if jsonl { "t.jsonl" } else { "t.pftrace" }, cpus());
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in holes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        let page = dir.path().join("page.html");
        match report(&path, Some(&page), Options::default()) {
            Ok(report) => prop_assert!(!report.to_string().is_empty()),
            Err(error) => prop_assert!(error.to_string().contains("t."), "{error}"),
        }
    }
}
