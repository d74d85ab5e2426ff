//! The files of /sys/devices/system/cpu.

use core::fmt::{self, Write};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;

use super::{Maker, every_cpu, write_list, write_mask};
use crate::cpu::MAX_CPUS;
use crate::cpu::topology::{self, Cache, CacheKind};

fn every(_: (), out: &mut dyn Write) -> fmt::Result {
    write_list(&every_cpu(), out)
}

fn none(_: (), out: &mut dyn Write) -> fmt::Result {
    out.write_str("\n")
}

/// About all CPUs. None is ever offline or isolated.
pub const ALL: &[(&str, Maker<()>)] = &[
    ("online", every),
    ("possible", every),
    ("present", every),
    ("offline", none),
    ("isolated", none),
    ("kernel_max", |(), out| writeln!(out, "{}", MAX_CPUS - 1)),
];

/// About one.
pub const ONE: &[(&str, Maker<CpuId>)] = &[("online", |_, out| out.write_str("1\n"))];

fn masks(out: &mut dyn Write, mask: &CpuMask, list: bool) -> fmt::Result {
    if list { write_list(mask, out) } else { write_mask(mask, out) }
}

/// cpuN/topology. Old and new names of one thing stand side by side, as on Linux.
pub const TOPOLOGY: &[(&str, Maker<CpuId>)] = &[
    ("physical_package_id", |id, out| writeln!(out, "{}", topology::place(id).package)),
    ("die_id", |id, out| writeln!(out, "{}", topology::place(id).die)),
    ("core_id", |id, out| writeln!(out, "{}", topology::place(id).core)),
    ("thread_siblings", |id, out| masks(out, &topology::threads(id), false)),
    ("thread_siblings_list", |id, out| masks(out, &topology::threads(id), true)),
    ("core_cpus", |id, out| masks(out, &topology::threads(id), false)),
    ("core_cpus_list", |id, out| masks(out, &topology::threads(id), true)),
    ("die_cpus", |id, out| masks(out, &topology::die(id), false)),
    ("die_cpus_list", |id, out| masks(out, &topology::die(id), true)),
    ("core_siblings", |id, out| masks(out, &topology::package(id), false)),
    ("core_siblings_list", |id, out| masks(out, &topology::package(id), true)),
    ("package_cpus", |id, out| masks(out, &topology::package(id), false)),
    ("package_cpus_list", |id, out| masks(out, &topology::package(id), true)),
];

fn kind(cache: &Cache) -> &'static str {
    match cache.kind {
        CacheKind::Data => "Data",
        CacheKind::Instruction => "Instruction",
        CacheKind::Unified => "Unified",
    }
}

/// cpuN/cache/indexM
pub const CACHE: &[(&str, Maker<(CpuId, &'static Cache)>)] = &[
    ("level", |(_, cache), out| writeln!(out, "{}", cache.level)),
    ("type", |(_, cache), out| writeln!(out, "{}", kind(cache))),
    ("id", |(id, cache), out| writeln!(out, "{}", topology::cache_number(id, cache))),
    ("size", |(_, cache), out| writeln!(out, "{}K", cache.size() >> 10)),
    ("coherency_line_size", |(_, cache), out| writeln!(out, "{}", cache.line)),
    ("physical_line_partition", |(_, cache), out| writeln!(out, "{}", cache.partitions)),
    ("ways_of_associativity", |(_, cache), out| writeln!(out, "{}", cache.ways)),
    ("number_of_sets", |(_, cache), out| writeln!(out, "{}", cache.sets)),
    ("shared_cpu_map", |(id, cache), out| masks(out, &topology::cache_sharing(id, cache), false)),
    ("shared_cpu_list", |(id, cache), out| masks(out, &topology::cache_sharing(id, cache), true)),
];
