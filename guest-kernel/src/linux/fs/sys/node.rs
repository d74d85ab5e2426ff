//! The files of /sys/devices/system/node. A machine without an SRAT is one node.

use core::fmt::{self, Write};

use super::{Maker, write_list, write_mask};
use crate::cpu::topology;
use crate::mm::frame;
use crate::mm::layout::PAGE_SIZE;

/// Those nodes for which `what` holds, as ranges.
fn nodes(out: &mut dyn Write, what: fn(usize) -> bool) -> fmt::Result {
    let mut separator = "";
    let mut n = 0;
    while n < topology::node_count() {
        let first = n;
        while n < topology::node_count() && what(n) {
            n += 1;
        }
        if n > first {
            write!(out, "{separator}{first}")?;
            if n - first > 1 {
                write!(out, "-{}", n - 1)?;
            }
            separator = ",";
        }
        n += 1;
    }
    out.write_str("\n")
}

fn has_memory(node: usize) -> bool {
    topology::node_memory(node) != Some(0)
}

/// About all nodes.
pub const ALL: &[(&str, Maker<()>)] = &[
    ("online", |(), out| nodes(out, |_| true)),
    ("possible", |(), out| nodes(out, |_| true)),
    ("has_cpu", |(), out| nodes(out, |n| !topology::node_cpus(n).is_empty())),
    ("has_memory", |(), out| nodes(out, has_memory)),
    ("has_normal_memory", |(), out| nodes(out, has_memory)),
];

fn distances(node: usize, out: &mut dyn Write) -> fmt::Result {
    for to in 0..topology::node_count() {
        write!(out, "{}{}", if to > 0 { " " } else { "" }, topology::distance(node, to))?;
    }
    out.write_str("\n")
}

/// What the tables say, or all RAM; how much of it is free isn't counted by node.
fn meminfo(node: usize, out: &mut dyn Write) -> fmt::Result {
    let (free, total) = frame::usage();
    let kib = |pages: u32| u64::from(pages) * (PAGE_SIZE / 1024);
    let all = topology::node_memory(node).map_or(kib(total), |bytes| bytes >> 10);
    writeln!(out, "Node {node} MemTotal: {all:>14} kB")?;
    if topology::node_count() == 1 {
        writeln!(out, "Node {node} MemFree:  {:>14} kB", kib(free))?;
    }
    Ok(())
}

/// About one.
pub const ONE: &[(&str, Maker<usize>)] = &[
    ("cpulist", |n, out| write_list(&topology::node_cpus(n), out)),
    ("cpumap", |n, out| write_mask(&topology::node_cpus(n), out)),
    ("distance", distances),
    ("meminfo", meminfo),
];
