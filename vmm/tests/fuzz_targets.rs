//! The targets of `fuzz/` for a moment each, on new input every time: their seeds, and what chance makes of these. `make fuzz` lets libFuzzer
//! look for what chance doesn't find; this needs no build of its own and runs with the other tests.
//!
//! An input follows from one number, which a failure prints with the command that makes the same input again. `FUZZ_SECONDS` is how long each
//! target gets.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long, unless it is said.
const MOMENT: Duration = Duration::from_millis(1500);
/// Inputs don't grow beyond this: the readers' own bounds are reached far below it.
const LONGEST: usize = 16 << 10;

/// What grammars and formats are made of, and the edges of numbers.
const WORDS: [&[u8]; 28] = [
    b"\0",
    b"\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\0\0\0\0\x80",
    b"=",
    b",",
    b";",
    b"-",
    b"\n",
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b"0",
    b"1-3",
    b"65535",
    b"4294967296",
    b"18446744073709551616",
    b"-1",
    b"1e308",
    b"all",
    b"node=",
    b"070701",
    b"$#00",
    b"\xc3\xa4",
];

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `end`; 0 if that is 0.
    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end.max(1)
    }
}

/// The input that belongs to a number: a seed, or nothing, with up to sixteen changes.
fn input(number: u64, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut chance = Chance(number);
    let some = |chance: &mut Chance| seeds.get(chance.below(seeds.len() + 1)).cloned().unwrap_or_default();
    let mut bytes = some(&mut chance);
    for _ in 0..chance.below(17) {
        let at = chance.below(bytes.len() + 1);
        let to = (at + chance.below(64)).min(bytes.len());
        match chance.below(7) {
            0 => bytes[at..to].iter_mut().take(1).for_each(|byte| *byte ^= 1 << chance.below(8)),
            1 => bytes[at..to].iter_mut().for_each(|byte| *byte = chance.next() as u8),
            2 => drop(bytes.drain(at..to)),
            3 => drop(bytes.splice(at..at, WORDS[chance.below(WORDS.len())].iter().copied())),
            4 => drop(bytes.splice(at..to, WORDS[chance.below(WORDS.len())].iter().copied())),
            5 => {
                let other = some(&mut chance);
                let from = chance.below(other.len() + 1);
                let piece = &other[from..(from + chance.below(256)).min(other.len())];
                drop(bytes.splice(at..at, piece.iter().copied()));
            }
            _ => bytes.truncate(to.max(1)),
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

fn seeds(folder: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let files = fs::read_dir(path).into_iter().flatten().filter_map(|entry| fs::read(entry.ok()?.path()).ok());
    files.collect()
}

/// Runs one target.
fn fuzz(name: &str, seeds: &[Vec<u8>], target: impl Fn(&[u8])) {
    let attempt = |number: Option<u64>, bytes: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
            let again = number.map_or_else(|| "a seed".into(), |n| format!("FUZZ_INPUT={n}"));
            panic!("{}\nagain: {again} cargo test -p taskvisor --test fuzz_targets {name}", bytes.escape_ascii());
        }
    };
    if let Some(number) = std::env::var("FUZZ_INPUT").ok().and_then(|text| text.parse().ok()) {
        return attempt(Some(number), &input(number, seeds));
    }
    seeds.iter().for_each(|seed| attempt(None, seed));
    let moment =
        std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).map_or(MOMENT, Duration::from_secs);
    let (start, mut chance, mut inputs) = (Instant::now(), Chance(RandomState::new().hash_one(name)), 0u64);
    // The first few whatever the time: a machine that is busy elsewhere makes it a shorter run, never an empty one.
    while start.elapsed() < moment || inputs < 16 {
        let number = chance.next();
        attempt(Some(number), &input(number, seeds));
        inputs += 1;
    }
    println!("{name}: {inputs} inputs");
}

macro_rules! targets {
    ($($name:ident($kind:ident) $file:literal $seeds:literal;)*) => {$(
        #[path = $file]
        mod $name;
        #[test]
        fn $name() {
            fuzz(stringify!($name), &seeds($seeds), |bytes| targets!(@$kind $name bytes));
        }
    )*};
    (@bytes $name:ident $bytes:ident) => { self::$name::run($bytes) };
    (@text $name:ident $bytes:ident) => { self::$name::run(&String::from_utf8_lossy($bytes)) };
}

targets! {
    affinity(text) "../../fuzz/targets/affinity.rs" "fuzz/seeds/affinity";
    api_bodies(bytes) "../../fuzz/targets/api_bodies.rs" "fuzz/seeds/api_bodies";
    archives(bytes) "../../fuzz/targets/archives.rs" "fuzz/seeds/archives";
    config(text) "../../fuzz/targets/config.rs" "fuzz/seeds/config";
    gdb_conditions(bytes) "../../fuzz/targets/gdb_conditions.rs" "fuzz/seeds/gdb_conditions";
    gdb_packets(bytes) "../../fuzz/targets/gdb_packets.rs" "fuzz/seeds/gdb_packets";
    guest_memory(bytes) "../../fuzz/targets/guest_memory.rs" "fuzz/seeds/guest_memory";
    scripts(text) "../../fuzz/targets/scripts.rs" "resources/scripts";
    topology(text) "../../fuzz/targets/topology.rs" "fuzz/seeds/topology";
    traces(bytes) "../../fuzz/targets/traces.rs" "fuzz/seeds/traces";
}
