//! The CPUID leaves that tell a CPU its place and its caches: 1, 4, 0xB, 0x1F, 0x80000008, 0x8000001D, 0x8000001E.
//!
//! [`super::Template`] calls [`write`] once and [`personalise`] for each vCPU. Fields that are too narrow for a large machine
//! hold the most they can; 0xB and 0x1F always tell the whole.
//! Sources: Intel SDM vol. 2A, CPUID, table 3-8; AMD APM vol. 3, E.4.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::topology::Topology;

/// Leaf 1 EDX bit 28: the package may hold more than one logical CPU, EBX[23:16] is valid.
const HTT: u32 = 1 << 28;
/// Level types of leaves 0xB and 0x1F.
pub const LEVEL_THREAD: u32 = 1;
/// See [`LEVEL_THREAD`].
pub const LEVEL_CORE: u32 = 2;
/// See [`LEVEL_THREAD`]; 0x1F only.
pub const LEVEL_DIE: u32 = 5;
/// Extended topology.
pub const EXTENDED: u32 = 0xb;
/// Extended topology with more levels.
pub const EXTENDED_V2: u32 = 0x1f;
/// AMD's own extended topology. Kernels that look for it find 0x1F or 0xB as well.
const AMD_EXTENDED: u32 = 0x8000_0026;
/// Cache parameters of Intel and AMD; the same format but for EAX[31:26].
const CACHES_INTEL: u32 = 4;
/// See [`CACHES_INTEL`].
const CACHES_AMD: u32 = 0x8000_001d;
/// AMD: extended APIC id, core and node.
const AMD_PLACE: u32 = 0x8000_001e;
/// Caches from this level on belong to a die, smaller ones to a core.
const FIRST_SHARED_LEVEL: u32 = 3;

/// Kinds of caches, EAX[4:0].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// 1.
    Data,
    /// 2.
    Instruction,
    /// 3.
    Unified,
}

/// A cache as its leaf describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// 1, 2, 3.
    pub level: u32,
    /// What it holds.
    pub kind: CacheKind,
    /// Bytes in a line.
    pub line: u32,
    /// Lines in a set.
    pub ways: u32,
    /// Sets.
    pub sets: u32,
    /// Bytes in all.
    pub size: u32,
}

impl Cache {
    /// Whether the cores of a die share it.
    pub fn is_shared(&self) -> bool {
        self.level >= FIRST_SHARED_LEVEL
    }
}

/// The caches that a table describes, in its order.
pub fn caches(entries: &[kvm_cpuid_entry2]) -> Vec<Cache> {
    let of = |leaf: u32| entries.iter().filter(move |e| e.function == leaf).filter_map(cache);
    let intel: Vec<_> = of(CACHES_INTEL).collect();
    if intel.is_empty() { of(CACHES_AMD).collect() } else { intel }
}

fn cache(entry: &kvm_cpuid_entry2) -> Option<Cache> {
    let kind = match entry.eax & 0x1f {
        1 => CacheKind::Data,
        2 => CacheKind::Instruction,
        3 => CacheKind::Unified,
        _ => return None,
    };
    let line = (entry.ebx & 0xfff) + 1;
    let partitions = (entry.ebx >> 12 & 0x3ff) + 1;
    let ways = (entry.ebx >> 22) + 1;
    let sets = entry.ecx.saturating_add(1);
    let size = line.saturating_mul(partitions).saturating_mul(ways).saturating_mul(sets);
    Some(Cache { level: entry.eax >> 5 & 7, kind, line, ways, sets, size })
}

/// Writes everything that all vCPUs have in common.
pub fn write(entries: &mut Vec<kvm_cpuid_entry2>, topology: &Topology) {
    entries.retain(|e| !matches!(e.function, EXTENDED | EXTENDED_V2 | AMD_EXTENDED));
    // Dies exist in 0x1F only, so a CPU that ends before it is made to go on.
    let dies = topology.shape().dies > 1;
    let mut max_leaf = 0;
    for entry in entries.iter_mut().filter(|e| e.function == 0) {
        if dies && entry.eax >= EXTENDED {
            entry.eax = entry.eax.max(EXTENDED_V2);
        }
        max_leaf = entry.eax;
    }
    for entry in entries.iter_mut() {
        adapt(entry, topology);
    }
    for function in [EXTENDED, EXTENDED_V2].into_iter().filter(|function| *function <= max_leaf) {
        entries.extend(levels(function, topology));
    }
}

fn adapt(entry: &mut kvm_cpuid_entry2, topology: &Topology) {
    let below_socket = topology.socket_shift();
    match entry.function {
        // EBX[23:16]: ids that a package takes.
        1 => {
            entry.ebx = entry.ebx & !0x00ff_0000 | (1u32 << below_socket).min(255) << 16;
            entry.edx = if topology.vcpus() > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // EAX[25:14]: ids that share the cache, less one; Intel's EAX[31:26]: ids of cores in a package, less one.
        CACHES_INTEL | CACHES_AMD if entry.eax & 0x1f != 0 => {
            let shared = entry.eax >> 5 & 7 >= FIRST_SHARED_LEVEL;
            let sharing = if shared { topology.die_shift() } else { topology.thread_bits() };
            let cores = if entry.function == CACHES_INTEL {
                ((1u32 << (below_socket - topology.thread_bits())) - 1).min(0x3f)
            } else {
                0
            };
            entry.eax = entry.eax & 0x3fff | ((1u32 << sharing) - 1).min(0xfff) << 14 | cores << 26;
        }
        // AMD: ECX[7:0] threads of a package less one, [15:12] APIC id bits of a package.
        0x8000_0008 => {
            let threads = (topology.per_socket() - 1).min(0xff);
            entry.ecx = entry.ecx & !0xf0ff | threads | below_socket.min(0xf) << 12;
        }
        _ => {}
    }
}

/// Leaf 0xB knows threads and cores, 0x1F dies too; a level of type 0 ends either.
fn levels(function: u32, topology: &Topology) -> Vec<kvm_cpuid_entry2> {
    let shape = topology.shape();
    let mut levels = vec![(topology.thread_bits(), shape.threads, LEVEL_THREAD)];
    if function == EXTENDED_V2 && shape.dies > 1 {
        levels.push((topology.die_shift(), shape.threads * shape.cores, LEVEL_CORE));
        levels.push((topology.socket_shift(), topology.per_socket(), LEVEL_DIE));
    } else {
        levels.push((topology.socket_shift(), topology.per_socket(), LEVEL_CORE));
    }
    levels.push((0, 0, 0));
    let entry = |(index, (shift, count, kind)): (u32, (u32, u32, u32))| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count & 0xffff,
        ecx: kind << 8 | index,
        ..Default::default()
    };
    (0u32..).zip(levels).map(entry).collect()
}

/// Writes what only this vCPU has.
pub fn personalise(entries: &mut [kvm_cpuid_entry2], topology: &Topology, vcpu: u32) {
    let id = topology.apic_id(vcpu);
    let shape = topology.shape();
    let place = topology.place(vcpu);
    for entry in entries {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | (id & 0xff) << 24,
            // In every subleaf, the last one too.
            EXTENDED | EXTENDED_V2 => entry.edx = id,
            // EBX: threads of a core less one, core within the package; ECX: nodes of a package less one, node. AMD's nodes
            // are dies, unless they are split further.
            AMD_PLACE => {
                let core = place.die * shape.cores + place.core;
                let node = place.socket * shape.dies + place.die;
                entry.eax = id;
                entry.ebx = (shape.threads - 1).min(0xff) << 8 | core & 0xff;
                entry.ecx = (shape.dies - 1).min(7) << 8 | node & 0xff;
            }
            _ => {}
        }
    }
}
