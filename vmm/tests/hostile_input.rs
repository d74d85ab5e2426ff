//! Every reader of what users and guests bring, on good input that was damaged at random: it ends, without a panic, with a value or
//! an error; and what it took for good holds together.
//!
//! A case is a seed (good input of that kind, made here) and a list of damages, so that a failure shrinks to the few that matter
//! and is kept by proptest. `make test` runs some hundred cases of each; a night of them:
//! `PROPTEST_CASES=10000000 cargo test --release -p taskvisor --test hostile_input`

use std::fs::{self, File};
use std::mem::offset_of;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use proptest::sample::Index;
use taskvisor::archive::Archive;
use taskvisor::archive::build::Builder;
use taskvisor::archive::parse;
use taskvisor::boot::builtin::BuiltIn;
use taskvisor::boot::kernel::Kernel;
use taskvisor::config::file;
use taskvisor::config::values::{Classes, Nodes, Pins};
use taskvisor::guestview::{Reader, Told};
use taskvisor::memory::{self, Ram};
use taskvisor::program;
use taskvisor::report;
use taskvisor::topology::TopologyChoice;
use taskvisor::trace::clock::ClockMap;
use taskvisor::trace::{self, Stream, TraceWriter};
use vcpu_sched::checker::Options;
use vcpu_sched::directory::{self, EntryKind};
use vcpu_sched::events::Record;
use vcpu_sched::taskview::{self, CpuField, TaskField};
use vm_memory::{Bytes, GuestAddress};

/// One thing that goes wrong with input.
#[derive(Debug, Clone)]
enum Damage {
    /// A bit turns over.
    Flip(Index, u8),
    /// Bytes are written over: numbers at the edges of their types, or pieces of grammar.
    Write(Index, &'static [u8]),
    /// Bytes come in between.
    Insert(Index, &'static [u8]),
    /// Bytes are missing.
    Remove(Index, Index),
    /// A piece is there twice.
    Repeat(Index, Index),
    /// The rest is missing.
    Cut(Index),
}

/// Edges of number types, and what the text grammars are made of.
const WORDS: [&[u8]; 22] = [
    b"\0",
    b"\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\0\0\0\0\0\0\0\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\0\x10\0\0\0\0\0\0",
    b"00000000",
    b"FFFFFFFF",
    b"70701",
    b"18446744073709551616",
    b"-1",
    b"=",
    b";",
    b",",
    b"\n",
    b"[[",
    b"'",
    "ü".as_bytes(),
];

fn damage() -> impl Strategy<Value = Damage> {
    let word = || proptest::sample::select(&WORDS[..]);
    prop_oneof![
        (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<Index>(), word()).prop_map(|(at, word)| Damage::Write(at, word)),
        (any::<Index>(), word()).prop_map(|(at, word)| Damage::Insert(at, word)),
        (any::<Index>(), any::<Index>()).prop_map(|(at, len)| Damage::Remove(at, len)),
        (any::<Index>(), any::<Index>()).prop_map(|(at, len)| Damage::Repeat(at, len)),
        any::<Index>().prop_map(Damage::Cut),
    ]
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    proptest::collection::vec(damage(), 0..8)
}

fn apply(seed: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        // Short pieces, so that several damages don't make one of nothing.
        let piece = |at: &Index, size: &Index| {
            let start = at.index(len);
            start..start + size.index((len - start).min(64)) + 1
        };
        match damage {
            Damage::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Damage::Write(at, word) => {
                let at = at.index(len);
                let end = (at + word.len()).min(len);
                bytes[at..end].copy_from_slice(&word[..end - at]);
            }
            Damage::Insert(at, word) => drop(bytes.splice(at.index(len)..at.index(len), word.iter().copied())),
            Damage::Remove(at, size) => drop(bytes.drain(piece(at, size))),
            Damage::Repeat(at, size) => {
                let range = piece(at, size);
                let again = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, again);
            }
            Damage::Cut(at) => bytes.truncate(at.index(len)),
        }
    }
    bytes
}

/// Gives `bytes` a name in a directory of its own for as long as `look` takes.
fn as_file<T>(name: &str, bytes: &[u8], look: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    fs::write(&path, bytes).expect("a file of our own");
    look(&path)
}

/// A value that was read reads back from what it prints.
fn reads_back<T>(text: &str) -> Result<(), TestCaseError>
where
    T: std::str::FromStr + std::fmt::Display + std::fmt::Debug + PartialEq,
{
    if let Ok(value) = text.parse::<T>() {
        prop_assert_eq!(value.to_string().parse::<T>().ok(), Some(value), "{}", text);
    }
    Ok(())
}

const CONFIG: &str = "# a comment\nvcpus = 4\ntopology = { cores = 2, threads = 2 }\nmemory = '512M'\naffinity = '0=0;1-2=1,3'\n\
    file = ['a', { host = 'b', guest = '/c' }]\nprogram = [\"busybox\", 'sh']\nchaos = 0x7\n[[numa]]\nnode = 0\ncpus = '0-3'\n\
    dist = { 1 = 20 }\n[env]\nA = \"b\\n\\u00fc\"\n";

/// A kernel's file: the built-in one's headers and some of what they lead to.
fn kernel() -> &'static [u8] {
    static KERNEL: OnceLock<Vec<u8>> = OnceLock::new();
    KERNEL.get_or_init(|| {
        let image = BuiltIn::get().expect("the default build embeds a kernel");
        let mut elf = image[..0x1000.min(image.len())].to_vec();
        // Only the first segment and the note, which lie in this part: the others are empty.
        let count = usize::from(u16::from_le_bytes([elf[56], elf[57]]));
        for n in 0..count {
            let at = 64 + 56 * n;
            let offset = u64::from_le_bytes(elf[at + 8..at + 16].try_into().expect("eight bytes"));
            let size = u64::from_le_bytes(elf[at + 32..at + 40].try_into().expect("eight bytes"));
            if offset + size > elf.len() as u64 {
                let note = u32::from_le_bytes(elf[at..at + 4].try_into().expect("four bytes")) == 4;
                if note {
                    let bytes = image[offset as usize..(offset + size) as usize].to_vec();
                    let new = elf.len() as u64;
                    elf[at + 8..at + 16].copy_from_slice(&new.to_le_bytes());
                    elf.extend(bytes);
                } else {
                    elf[at + 8..at + 16].fill(0);
                    elf[at + 32..at + 40].fill(0);
                }
            }
        }
        elf
    })
}

fn cpio() -> Vec<u8> {
    let mut builder = Builder::new();
    builder.bytes("bin/x", 0o755, vec![7; 100]).expect("a short name");
    builder.bytes("taskvisor.toml", 0o644, b"[[program]]\n".to_vec()).expect("a short name");
    let mut bytes = Vec::new();
    builder.finish().and_then(|archive: Archive| archive.write_to(&mut bytes)).expect("into memory");
    bytes
}

/// A short trace in the format that `name` tells.
fn trace_file(name: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    let header = trace::Header { version: trace::VERSION, cpus: 2, tsc_khz: 1_000_000, ..Default::default() };
    let mut writer = TraceWriter::create(&path, &header).expect("a file of our own");
    for cpu in 0..2u32 {
        let record =
            |n: u64| Record { tsc: 1000 * n, task: 3, seq: n as u16, kind: 1 + n as u8, flags: 1, a: n << 32, b: n };
        let records: Vec<_> = (0..12).map(record).collect();
        writer.write(Stream { cpu, vmm: false }, &ClockMap::NANOS, &records).expect("a file of our own");
    }
    writer.finish().expect("a file of our own");
    fs::read(path).expect("just written")
}

const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
const DIRECTORY: usize = 0x1000;
const HEADER: usize = 0x2000;
const CHUNK: usize = 0x3000;
const CPU: usize = 0x4000;
const TASK: usize = 0x5000;
/// Fields of the hand-made structures lie 8 bytes apart, behind the name.
const STRUCTURE: u32 = 16 + 8 * taskview::MAX_FIELDS as u32;

/// Memory of a guest with a directory, one CPU and two tasks.
fn guest_memory() -> Vec<u8> {
    let mut ram = vec![0; 0x6000];
    let mut put = |at: usize, bytes: &[u8]| ram[at..at + bytes.len()].copy_from_slice(bytes);
    let head = directory::Header {
        magic: directory::MAGIC,
        version: directory::VERSION,
        count: 2,
        direct_map: DIRECT_MAP,
        tsc: 1,
    };
    put(DIRECTORY, &head.to_bytes());
    for (n, (kind, address)) in [(EntryKind::Tasks, HEADER), (EntryKind::Cpu, CPU)].into_iter().enumerate() {
        let entry = directory::Entry { kind: kind as u32, index: 0, address: address as u64, len: 4096, extra: 0 };
        put(DIRECTORY + directory::ENTRY_BYTES * (n + 1), &entry.to_bytes());
    }
    put(HEADER, &taskview::MAGIC.to_le_bytes());
    put(HEADER + offset_of!(taskview::Header, version), &taskview::VERSION.to_le_bytes());
    put(HEADER + offset_of!(taskview::Header, task_bytes), &STRUCTURE.to_le_bytes());
    put(HEADER + offset_of!(taskview::Header, cpu_bytes), &STRUCTURE.to_le_bytes());
    put(HEADER + offset_of!(taskview::Header, first_chunk), &(CHUNK as u64).to_le_bytes());
    for (n, field) in TaskField::ALL.iter().enumerate() {
        let offset: u16 = if *field == TaskField::Name { 0 } else { 16 + 8 * n as u16 };
        put(HEADER + offset_of!(taskview::Header, task_fields) + 2 * n, &offset.to_le_bytes());
    }
    for n in 0..CpuField::ALL.len() {
        put(HEADER + offset_of!(taskview::Header, cpu_fields) + 2 * n, &(8 * n as u16).to_le_bytes());
    }
    for n in 0..2 {
        let task = TASK + n * STRUCTURE as usize;
        put(CHUNK + 8 + 8 * n, &(DIRECT_MAP + task as u64).to_le_bytes());
        put(task, b"worker");
        put(task + 16 + 8 * TaskField::Id as usize, &(n as u64 + 1).to_le_bytes());
    }
    put(CPU + 8 * CpuField::Current as usize, &(DIRECT_MAP + TASK as u64).to_le_bytes());
    ram
}

fn ram() -> Ram {
    memory::allocate(16 << 20, 46).expect("16 MiB")
}

proptest! {
    #[test]
    fn configuration_files(damages in damages()) {
        let text = String::from_utf8_lossy(&apply(CONFIG.as_bytes(), &damages)).into_owned();
        match file::parse(&text) {
            Ok(said) => {
                let again = file::write(&said).map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(file::parse(&again), Ok(said), "{}", again);
            }
            Err(error) => prop_assert!(error.line >= 1 && error.line <= text.matches('\n').count() + 1, "{}", error),
        }
    }

    #[test]
    fn values_of_flags(seed in 0usize..5, damages in damages()) {
        let seeds = [
            "sockets=2,dies=1,cores=3,threads=2",
            "node=0,cpus=0-1,4,mem=64M,dist=1@21;node=1,cpus=2-3,mem=1G",
            "0=0;1-2=1,3",
            "0=rr:99;1,3=nice:-20",
            "all=fifo:3",
        ];
        let text = String::from_utf8_lossy(&apply(seeds[seed].as_bytes(), &damages)).into_owned();
        reads_back::<TopologyChoice>(&text)?;
        reads_back::<Nodes>(&text)?;
        reads_back::<Pins>(&text)?;
        reads_back::<Classes>(&text)?;
    }

    #[test]
    fn archives(damages in damages()) {
        let bytes = apply(&cpio(), &damages);
        let entries = as_file("a.cpio", &bytes, |path| parse::scan(path, &File::open(path).expect("just written")));
        for entry in entries.into_iter().flatten() {
            let end = entry.offset.checked_add(entry.size);
            prop_assert!(end.is_some_and(|end| end <= bytes.len() as u64), "{:?}", entry);
        }
    }

    #[test]
    fn kernels_and_programs(damages in damages()) {
        let bytes = apply(kernel(), &damages);
        as_file("kernel.elf", &bytes, |path| {
            let ram = ram();
            if let Ok(loaded) = Kernel::open(path).and_then(|kernel| kernel.load(&ram)) {
                assert!(loaded.end <= memory::low_end(&ram));
            }
            // As a program it may be refused, and for any reason.
            let _ = program::find(&path.display().to_string(), None, "");
        });
    }

    #[test]
    fn traces(perfetto in any::<bool>(), damages in damages()) {
        let name = if perfetto { "a.pftrace" } else { "a.jsonl" };
        let bytes = apply(&trace_file(name), &damages);
        as_file(name, &bytes, |path| drop(report::report(path, None, Options::default())));
    }

    #[test]
    fn what_a_guest_shows(damages in damages(), page in 0u32..8) {
        let bytes = apply(&guest_memory(), &damages);
        let ram = ram();
        ram.write_slice(&bytes, GuestAddress(0)).expect("it fits");
        let told = Told::default();
        // Mostly where the directory is.
        told.set(if page < 6 { (DIRECTORY >> 12) as u32 } else { page });
        if let Ok(snapshot) = Reader::new(ram, Arc::new(told), 1_000_000).snapshot() {
            prop_assert!(snapshot.tasks.iter().all(|task| !task.name.chars().any(char::is_control)));
        }
    }
}

/// The seeds are good: otherwise all of the above would only ever see refusals.
#[test]
fn the_seeds_are_good() {
    assert!(file::parse(CONFIG).is_ok());
    let entries = as_file("a.cpio", &cpio(), |path| parse::scan(path, &File::open(path).expect("just written")));
    assert_eq!(entries.expect("good").iter().filter(|entry| entry.is_file()).count(), 2);
    as_file("kernel.elf", kernel(), |path| {
        let kernel = Kernel::open(path).expect("good");
        assert!(kernel.is_ours());
        kernel.load(&ram()).expect("it fits");
    });
    for name in ["a.pftrace", "a.jsonl"] {
        as_file(name, &trace_file(name), |path| report::report(path, None, Options::default()).expect("good"));
    }
    let ram = ram();
    ram.write_slice(&guest_memory(), GuestAddress(0)).expect("it fits");
    let told = Told::default();
    told.set((DIRECTORY >> 12) as u32);
    let snapshot = Reader::new(ram, Arc::new(told), 1_000_000).snapshot().expect("good");
    assert_eq!((snapshot.tasks.len(), snapshot.current(0).map(|task| task.name.as_str())), (2, Some("worker")));
}
