//! The one parser that tests read everything back with: CPUID as a kernel walks it, and ACPI tables as bytes.
//!
//! It knows the formats from the same manuals as the builders, but shares no code with them.

use std::collections::BTreeMap;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::Place;

/// Shifts of an APIC id, from leaf 0x1F or 0xB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shifts {
    /// Where the core's number begins.
    pub core: u32,
    /// The die's.
    pub die: u32,
    /// The socket's.
    pub socket: u32,
}

/// One entry of a table.
pub fn leaf(table: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
    table.as_slice().iter().find(|e| e.function == function && e.index == index).copied()
}

/// The APIC id and the shifts that one extended topology leaf tells. Level types: 1 thread, 2 core, 5 die.
pub fn extended(table: &CpuId, function: u32) -> Option<(u32, Shifts)> {
    leaf(table, 0, 0).filter(|max| max.eax >= function)?;
    let mut shifts = Shifts { core: 0, die: 0, socket: 0 };
    let mut id = None;
    for index in 0.. {
        let level = leaf(table, function, index)?;
        assert_eq!(*id.get_or_insert(level.edx), level.edx, "each subleaf has the same id");
        assert_eq!(level.ecx & 0xff, index);
        match level.ecx >> 8 & 0xff {
            0 => break,
            1 => shifts.core = level.eax,
            2 => shifts.die = level.eax,
            5 => {}
            other => panic!("level type {other}"),
        }
        shifts.socket = level.eax;
    }
    Some((id?, shifts))
}

/// An APIC id taken apart.
pub fn place(id: u32, shifts: Shifts) -> Place {
    let field = |low: u32, high: u32| id >> low & ((1 << (high - low)) - 1);
    Place {
        socket: id >> shifts.socket,
        die: field(shifts.die, shifts.socket),
        core: field(shifts.core, shifts.die),
        thread: field(0, shifts.core),
    }
}

/// Level and the number that CPUs sharing the cache have in common.
pub fn cache_groups(table: &CpuId, function: u32, id: u32) -> Vec<(u32, u32)> {
    (0..)
        .map_while(|index| leaf(table, function, index).filter(|e| e.eax & 0x1f != 0))
        .map(|e| (e.eax >> 5 & 7, id >> (e.eax >> 14 & 0xfff).checked_ilog2().map_or(0, |n| n + 1)))
        .collect()
}

/// A little-endian word.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A little-endian double word.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The structures of a table (type, whole), from offset `at` on. They must end with the table.
fn structures(table: &[u8], mut at: usize) -> Vec<(u8, &[u8])> {
    let mut all = Vec::new();
    while at < table.len() {
        let len = usize::from(table[at + 1]);
        all.push((table[at], &table[at..at + len]));
        at += len;
    }
    assert_eq!(at, table.len());
    all
}

/// APIC ids by processor uid (ACPI 6.5, 5.2.12.2 and 5.2.12.12).
pub fn madt(table: &[u8]) -> BTreeMap<u32, u32> {
    let mut ids = BTreeMap::new();
    for (kind, entry) in structures(table, 44) {
        let (uid, id, flags) = match kind {
            0 => (entry[2].into(), entry[3].into(), u32_at(entry, 4)),
            9 => (u32_at(entry, 12), u32_at(entry, 4), u32_at(entry, 8)),
            _ => continue,
        };
        assert!(kind == 9 || id < 255, "id {id} needs an x2APIC structure");
        assert_eq!(flags & 1, 1, "enabled");
        assert_eq!(ids.insert(uid, id), None, "each uid once");
    }
    ids
}

/// Node, start and length of a range of memory.
pub type Range = (u32, u64, u64);

/// Node by APIC id, and memory (ACPI 6.5, 5.2.16).
pub fn srat(table: &[u8]) -> (BTreeMap<u32, u32>, Vec<Range>) {
    let (mut cpus, mut memory) = (BTreeMap::new(), Vec::new());
    for (kind, entry) in structures(table, 48) {
        match kind {
            0 => {
                let node = u32::from(entry[2]) | u32::from(entry[9]) << 8 | u32::from(entry[10]) << 16;
                assert_eq!(u32_at(entry, 4) & 1, 1);
                assert_eq!(cpus.insert(entry[3].into(), node), None);
            }
            1 => {
                assert_eq!(u32_at(entry, 28) & 1, 1);
                memory.push((u32_at(entry, 2), u64_at(entry, 8), u64_at(entry, 16)));
            }
            2 => {
                assert_eq!(u32_at(entry, 12) & 1, 1);
                assert_eq!(cpus.insert(u32_at(entry, 8), u32_at(entry, 4)), None);
            }
            other => panic!("SRAT structure {other}"),
        }
    }
    (cpus, memory)
}

/// Distances row by row (ACPI 6.5, 5.2.17).
pub fn slit(table: &[u8]) -> Vec<Vec<u8>> {
    let n = u64_at(table, 36) as usize;
    assert_eq!(table.len(), 44 + n * n);
    table[44..].chunks(n).map(<[u8]>::to_vec).collect()
}

/// What the PPTT tells of one processor: the offsets of its ancestors from itself to the socket, and of the caches on that
/// way with their sizes.
#[derive(Debug, Clone, Default)]
pub struct PpttCpu {
    /// Itself first.
    pub ancestors: Vec<u32>,
    /// Offset and bytes.
    pub caches: Vec<(u32, u32)>,
}

/// The leaves of the tree by uid (ACPI 6.5, 5.2.30).
pub fn pptt(table: &[u8]) -> BTreeMap<u32, PpttCpu> {
    const PHYSICAL: u32 = 1;
    const VALID: u32 = 2;
    const LEAF: u32 = 8;
    structures(table, 36);
    let flags = |at: u32| u32_at(table, at as usize + 4);
    let mut leaves = BTreeMap::new();
    let mut at = 36;
    while at < table.len() {
        if table[at] == 0 && flags(at as u32) & LEAF != 0 {
            assert_ne!(flags(at as u32) & VALID, 0);
            let mut cpu = PpttCpu::default();
            let mut node = at as u32;
            loop {
                cpu.ancestors.push(node);
                let resources = u32_at(table, node as usize + 16) as usize;
                cpu.caches.extend((0..resources).map(|n| {
                    let cache = u32_at(table, node as usize + 20 + 4 * n);
                    assert_eq!(table[cache as usize], 1, "a resource is a cache");
                    (cache, u32_at(table, cache as usize + 12))
                }));
                let parent = u32_at(table, node as usize + 8);
                if parent == 0 {
                    break;
                }
                assert_eq!(table[parent as usize], 0, "a parent is a processor");
                node = parent;
            }
            assert_ne!(flags(node) & PHYSICAL, 0, "the root is a package");
            assert!(leaves.insert(u32_at(table, at + 12), cpu).is_none());
        }
        at += usize::from(table[at + 1]);
    }
    leaves
}
