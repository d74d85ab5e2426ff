//! Files written and read back, in both formats, and files that are damaged.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;
use vcpu_sched::events::{ClassTag, Kind, Record, Side};
use vcpu_sched::ids::TaskId;

use super::clock::ClockMap;
use super::*;

const FORMATS: [&str; 2] = ["pftrace", "jsonl"];

fn header() -> Header {
    Header {
        version: VERSION,
        cpus: 2,
        tsc_khz: 2_000_000,
        policy: "fair".into(),
        command_line: "log_level=warn \"x\"".into(),
        program: vec!["./prog".into(), "ü".into()],
        realtime_ns: 1_700_000_000_000_000_000,
    }
}

fn records() -> impl Strategy<Value = Vec<(Stream, Vec<Record>)>> {
    let record =
        (0_u64..1 << 40, any::<(u32, u16, u8, u8, u64, u64)>()).prop_map(|(tsc, (task, seq, kind, flags, a, b))| {
            // Half of them of kinds that are known.
            let kind = if kind < 128 { Kind::ALL[usize::from(kind) % Kind::ALL.len()] as u8 } else { kind };
            Record { tsc, task, seq, kind, flags, a, b }
        });
    let chunk = (0_u32..3, prop::collection::vec(record, 0..40)).prop_map(|(cpu, mut records)| {
        records.sort_by_key(|r| r.tsc);
        (cpu, records)
    });
    prop::collection::vec(chunk, 0..12).prop_map(|chunks| {
        // One stream a record's kind belongs to, as the recorder keeps them.
        chunks
            .into_iter()
            .flat_map(|(cpu, records)| {
                let (vmm, guest): (Vec<_>, Vec<_>) = records.into_iter().partition(|r| r.kind >= 64);
                [(Stream { cpu, vmm: false }, guest), (Stream { cpu, vmm: true }, vmm)]
            })
            .collect()
    })
}

fn write(dir: &TempDir, extension: &str, chunks: &[(Stream, Vec<Record>)]) -> PathBuf {
    let path = dir.path().join(format!("t.{extension}"));
    let mut writer = TraceWriter::create(&path, &header()).unwrap();
    let map = ClockMap { tsc: 100, ns: 10, khz: 2_000_000 };
    for (stream, records) in chunks {
        writer.write(*stream, &map, records).unwrap();
    }
    writer.finish().unwrap();
    path
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_read_back_by_stream_and_time(chunks in records()) {
        let dir = tempfile::tempdir().unwrap();
        for extension in FORMATS {
            let reader = TraceReader::open(&write(&dir, extension, &chunks)).unwrap();
            prop_assert_eq!(reader.header(), &header());
            for pass in 0..2 {
                let read: Vec<_> = reader.records().map(Result::unwrap).collect();
                let written: usize = chunks.iter().map(|(_, records)| records.len()).sum();
                prop_assert_eq!(read.len(), written, "pass {}", pass);
                for stream in [false, true].iter().flat_map(|&vmm| (0..3).map(move |cpu| Stream { cpu, vmm })) {
                    let of: Vec<_> = chunks.iter().filter(|(s, _)| *s == stream).flat_map(|(_, r)| r).collect();
                    let got = read.iter().filter(|s| s.cpu == stream.cpu && (s.record.kind >= 64) == stream.vmm);
                    prop_assert_eq!(got.map(|s| &s.record).collect::<Vec<_>>(), of);
                }
            }
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic(chunks in records(), at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        let dir = tempfile::tempdir().unwrap();
        for extension in FORMATS {
            let path = write(&dir, extension, &chunks);
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            fs::write(&path, &bytes).unwrap();
            if let Ok(reader) = TraceReader::open(&path) {
                let count = reader.records().count();
                prop_assert!(count <= bytes.len(), "{} records", count);
            }
        }
    }
}

#[test]
fn streams_are_merged_by_time_whatever_the_order_of_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let at = |tsc| Record { tsc, kind: Kind::Tick as u8, ..Record::default() };
    let chunk = |cpu, stamps: [u64; 3]| (Stream { cpu, vmm: false }, stamps.map(at).to_vec());
    let chunks = [chunk(1, [500, 900, 901]), chunk(0, [100, 700, 902]), chunk(1, [950, 951, 2000])];
    for extension in FORMATS {
        let reader = TraceReader::open(&write(&dir, extension, &chunks)).unwrap();
        let read: Vec<_> = reader.records().map(|r| r.map(|s| (s.record.tsc, s.cpu)).unwrap()).collect();
        let expected = [(100, 0), (500, 1), (700, 0), (900, 1), (901, 1), (902, 0), (950, 1), (951, 1), (2000, 1)];
        assert_eq!(read, expected, "{extension}");
    }
}

#[test]
fn json_lines_are_decoded_for_people() {
    let dir = tempfile::tempdir().unwrap();
    let side = |task, policy| Side { task: TaskId(task), seq: 1, class: ClassTag { prio: 120, policy } };
    let switch = Record::switch(300, side(5, 0), side(6, 1), 4, 2);
    let path = write(&dir, "jsonl", &[(Stream { cpu: 1, vmm: false }, vec![switch])]);
    let text = fs::read_to_string(path).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    let expected = serde_json::json!({
        "ns": 110, "cpu": 1, "kind": "switch", "task": 5, "seq": 1, "flags": 4, "tsc": 300, "a": switch.a, "b": switch.b,
        "state": "blocked", "preempted": false, "next": 6, "next_seq": 1, "queued": 2,
        "prev_prio": 120, "prev_policy": "other", "next_prio": 120, "next_policy": "fifo",
    });
    assert_eq!(line, expected);
}

#[test]
fn names_choose_the_format() {
    assert_eq!(Format::of("a/b".as_ref()), Ok(Format::Pftrace));
    assert_eq!(Format::of("a.PFTRACE".as_ref()), Ok(Format::Pftrace));
    assert_eq!(Format::of("a.b.jsonl".as_ref()), Ok(Format::Jsonl));
    let error = Format::of("trace.json".as_ref()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown trace format .json: name the file .pftrace (Perfetto) or .jsonl (JSON lines)"
    );
}

#[test]
fn foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in
        [("empty", &b""[..]), ("elf", b"\x7fELF"), ("json", b"{\"a\":1}\n"), ("perfetto", b"\x0a\x02\x40\x01")]
    {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = TraceReader::open(&path).unwrap_err().to_string();
        assert!(error.contains("not a trace that taskvisor wrote"), "{name}: {error}");
    }
}
