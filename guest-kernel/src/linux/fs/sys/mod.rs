//! /sys/devices/system/cpu and node, as lscpu, hwloc and the C libraries read them.
//!
//! `super::proc` serves the files; here is what they hold. Everything is made from `cpu::topology` when it is looked at. Names
//! and formats are those of Linux, Documentation/ABI/{stable,testing}/sysfs-devices-system-cpu and -node.

mod cpu;
mod node;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;

use crate::cpu::{self as cpus, topology};

/// Writes a file's text.
type Maker<Subject> = fn(Subject, &mut dyn Write) -> fmt::Result;

/// A directory.
#[derive(Clone, Copy)]
pub enum Dir {
    /// cpu
    Cpus,
    /// cpu/cpuN
    Cpu(CpuId),
    /// cpu/cpuN/topology
    Topology(CpuId),
    /// cpu/cpuN/cache
    Caches(CpuId),
    /// cpu/cpuN/cache/indexM
    Cache(CpuId, usize),
    /// node
    Nodes,
    /// node/nodeN
    Node(usize),
}

/// Something with a name.
#[derive(Clone, Copy)]
pub enum Entry {
    /// A directory.
    Dir(Dir),
    /// A text about all CPUs or all nodes.
    All(Maker<()>),
    /// A text about a CPU.
    Cpu(CpuId, Maker<CpuId>),
    /// A text about one of its caches.
    Cache(CpuId, usize, Maker<(CpuId, &'static topology::Cache)>),
    /// A text about a node.
    Node(usize, Maker<usize>),
    /// From a CPU to its node.
    ToNode(usize),
    /// From a node to one of its CPUs.
    ToCpu(CpuId),
}

/// What stands in a directory.
pub fn list(dir: Dir) -> Vec<(String, Entry)> {
    let mut all = Vec::new();
    match dir {
        Dir::Cpus => all.extend(cpus::all().map(|c| (format!("cpu{}", c.id.0), Entry::Dir(Dir::Cpu(c.id))))),
        Dir::Caches(id) => {
            let caches = 0..topology::all_caches().len();
            all.extend(caches.map(|n| (format!("index{n}"), Entry::Dir(Dir::Cache(id, n)))));
        }
        Dir::Nodes => {
            all.extend((0..topology::node_count()).map(|n| (format!("node{n}"), Entry::Dir(Dir::Node(n)))));
        }
        Dir::Node(n) => {
            let cpus = topology::node_cpus(n);
            all.extend(cpus.iter().map(|id| (format!("cpu{}", id.0), Entry::ToCpu(id))));
        }
        Dir::Cpu(id) => {
            let node = topology::node_of(id);
            all.push((format!("node{node}"), Entry::ToNode(node)));
        }
        Dir::Topology(_) | Dir::Cache(..) => {}
    }
    all.extend(fixed(dir).map(|(name, entry)| (name.into(), entry)));
    all
}

/// The entries whose names are always the same.
fn fixed(dir: Dir) -> impl Iterator<Item = (&'static str, Entry)> {
    let (all, of_cpu, of_cache, of_node): (&[_], &[_], &[_], &[_]) = match dir {
        Dir::Cpus => (cpu::ALL, &[], &[], &[]),
        // As on Linux, the boot CPU can't be switched off and has no such file.
        Dir::Cpu(CpuId(0)) => (&[], &[], &[], &[]),
        Dir::Cpu(_) => (&[], cpu::ONE, &[], &[]),
        Dir::Topology(_) => (&[], cpu::TOPOLOGY, &[], &[]),
        Dir::Cache(..) => (&[], &[], cpu::CACHE, &[]),
        Dir::Caches(_) => (&[], &[], &[], &[]),
        Dir::Nodes => (node::ALL, &[], &[], &[]),
        Dir::Node(_) => (&[], &[], &[], node::ONE),
    };
    let (id, n) = match dir {
        Dir::Cpu(id) | Dir::Topology(id) | Dir::Caches(id) => (id, 0),
        Dir::Cache(id, n) => (id, n),
        Dir::Node(n) => (CpuId(0), n),
        Dir::Cpus | Dir::Nodes => (CpuId(0), 0),
    };
    let below = match dir {
        Dir::Cpu(_) => &[("topology", Dir::Topology as fn(CpuId) -> Dir), ("cache", Dir::Caches)][..],
        _ => &[],
    };
    let dirs = below.iter().map(move |(name, make)| (*name, Entry::Dir(make(id))));
    let all = all.iter().map(|(name, make)| (*name, Entry::All(*make)));
    let of_cpu = of_cpu.iter().map(move |(name, make)| (*name, Entry::Cpu(id, *make)));
    let of_cache = of_cache.iter().map(move |(name, make)| (*name, Entry::Cache(id, n, *make)));
    let of_node = of_node.iter().map(move |(name, make)| (*name, Entry::Node(n, *make)));
    dirs.chain(all).chain(of_cpu).chain(of_cache).chain(of_node)
}

/// Finds one entry without making the others.
pub fn find(dir: Dir, name: &str) -> Option<Entry> {
    // As Linux writes it: no sign, no leading zero.
    let numbered = |prefix: &str| {
        let digits = name.strip_prefix(prefix)?;
        digits.parse::<usize>().ok().filter(|n| format!("{n}") == digits)
    };
    let cpu = |n: usize| u32::try_from(n).ok().map(CpuId).filter(|id| cpus::get(*id).is_some());
    let found = match dir {
        Dir::Cpus => numbered("cpu").and_then(cpu).map(|id| Entry::Dir(Dir::Cpu(id))),
        Dir::Caches(id) => {
            numbered("index").filter(|n| *n < topology::all_caches().len()).map(|n| Entry::Dir(Dir::Cache(id, n)))
        }
        Dir::Nodes => numbered("node").filter(|n| *n < topology::node_count()).map(|n| Entry::Dir(Dir::Node(n))),
        Dir::Node(node) => numbered("cpu").and_then(cpu).filter(|id| topology::node_of(*id) == node).map(Entry::ToCpu),
        Dir::Cpu(id) => numbered("node").filter(|n| *n == topology::node_of(id)).map(Entry::ToNode),
        Dir::Topology(_) | Dir::Cache(..) => None,
    };
    found.or_else(|| fixed(dir).find(|(known, _)| *known == name).map(|(_, entry)| entry))
}

/// Writes the text of an entry that is a file.
pub fn text(entry: Entry, out: &mut dyn Write) -> fmt::Result {
    match entry {
        Entry::All(make) => make((), out),
        Entry::Cpu(id, make) => make(id, out),
        Entry::Cache(id, n, make) => topology::all_caches().get(n).map_or(Ok(()), |cache| make((id, cache), out)),
        Entry::Node(n, make) => make(n, out),
        Entry::Dir(_) | Entry::ToNode(_) | Entry::ToCpu(_) => Ok(()),
    }
}

/// Where a link leads.
pub fn target(entry: Entry) -> Option<String> {
    match entry {
        Entry::ToNode(n) => Some(format!("../../node/node{n}")),
        Entry::ToCpu(id) => Some(format!("../../cpu/cpu{}", id.0)),
        _ => None,
    }
}

/// All CPUs.
fn every_cpu() -> CpuMask {
    let mut mask = CpuMask::empty();
    cpus::all().for_each(|c| mask.set(c.id));
    mask
}

/// `0-3,7`
fn write_list(mask: &CpuMask, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "{mask}")
}

fn write_mask(mask: &CpuMask, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "{}", HexMask(mask))
}

/// A mask in hexadecimal words of 32 bits, the highest first, as wide as the machine.
pub struct HexMask<'a>(pub &'a CpuMask);

impl fmt::Display for HexMask<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = cpus::count().max(1);
        let words = count.div_ceil(32);
        for word in (0..words).rev() {
            let bits = (self.0.word(word as usize / 2) >> (word % 2 * 32)) as u32;
            let width = if word + 1 == words { (count - word * 32).div_ceil(4) as usize } else { 8 };
            write!(f, "{bits:0width$x}{}", if word == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
