//! Nodes: which vCPUs and how much memory belong together, and how far they are from each other.
//!
//! [`super::Topology`] holds a [`Numa`]; the SRAT and SLIT builders read it. Pure.
//! Invariant: node ids are 0, 1, ...; each vCPU and each byte of memory is in exactly one node.

use super::{NodeSpec, all};
use crate::config::text::IdSet;
use crate::memory::{PAGE_SIZE, Piece};

/// A node to itself, and to another unless something else is said (ACPI 6.5, 5.2.17; Linux' REMOTE_DISTANCE).
const LOCAL: u8 = 10;
const REMOTE: u8 = 20;
/// More than any machine has, and a SLIT of 4 KiB.
const MAX_NODES: usize = 64;

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Its vCPUs.
    pub cpus: IdSet,
    /// Bytes of its memory, a multiple of the page size.
    pub memory: u64,
}

/// How far one node is from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance {
    /// Seen from here.
    pub from: u32,
    /// To there.
    pub to: u32,
    /// 10 to 254.
    pub value: u8,
}

/// Why nodes don't fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NumaError {
    /// Holes in the numbering.
    #[error("nodes are numbered 0 to {}, and there is a node={id}", count - 1)]
    Numbering {
        /// The node.
        id: u32,
        /// How many there are.
        count: usize,
    },
    /// Too many.
    #[error("{0} nodes are more than {MAX_NODES}")]
    TooMany(usize),
    /// vCPUs without a node.
    #[error("vCPUs {missing} belong to no node (there are vCPUs {have}): add them to a cpus=")]
    CpusMissing {
        /// Which.
        missing: IdSet,
        /// All.
        have: IdSet,
    },
    /// vCPUs in two nodes.
    #[error("vCPU {cpu} belongs to node {first} and to node {second}: leave it in one")]
    CpuTwice {
        /// Which.
        cpu: u32,
        /// One of them.
        first: u32,
        /// The other.
        second: u32,
    },
    /// vCPUs that don't exist.
    #[error("node {node} has vCPUs {cpus} that don't exist (there are vCPUs {have})")]
    NoSuchCpu {
        /// The node.
        node: u32,
        /// Which.
        cpus: IdSet,
        /// All.
        have: IdSet,
    },
    /// Memory that isn't whole pages.
    #[error("node {node}: mem={memory} bytes are no multiple of {PAGE_SIZE}")]
    Unaligned {
        /// The node.
        node: u32,
        /// Its bytes.
        memory: u64,
    },
    /// More or less than there is.
    #[error("the nodes have {nodes} KiB of memory together, but --memory is {memory} KiB: make them equal, or leave --memory out", nodes = nodes >> 10, memory = memory >> 10)]
    Memory {
        /// The sum.
        nodes: u64,
        /// `--memory`.
        memory: u64,
    },
    /// A distance to nowhere.
    #[error("node {from}: dist={to}@{value} names a node that doesn't exist")]
    DistanceTo {
        /// The node.
        from: u32,
        /// Named there.
        to: u32,
        /// The distance.
        value: u8,
    },
    /// A node's distance to itself, or two for one pair.
    #[error("node {from}: dist={to}@{value} contradicts the distance {known} that is already there")]
    DistanceTwice {
        /// The node.
        from: u32,
        /// The other.
        to: u32,
        /// The distance.
        value: u8,
        /// The other one.
        known: u8,
    },
}

/// All nodes of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numa {
    nodes: Vec<Node>,
    /// Row by row.
    distances: Vec<u8>,
}

impl Numa {
    /// Checks that the nodes cover `vcpus` and `memory` once.
    pub fn new(mut nodes: Vec<Node>, distances: &[Distance], vcpus: u32, memory: u64) -> Result<Self, NumaError> {
        let count = nodes.len();
        if count > MAX_NODES {
            return Err(NumaError::TooMany(count));
        }
        nodes.sort_by_key(|node| node.id);
        if let Some((_, node)) = nodes.iter().enumerate().find(|(n, node)| *n as u32 != node.id) {
            return Err(NumaError::Numbering { id: node.id, count });
        }
        check_cpus(&nodes, &all(vcpus))?;
        if let Some(node) = nodes.iter().find(|node| node.memory % PAGE_SIZE != 0) {
            return Err(NumaError::Unaligned { node: node.id, memory: node.memory });
        }
        let sum = nodes.iter().fold(0u64, |sum, node| sum.saturating_add(node.memory));
        if sum != memory & !(PAGE_SIZE - 1) {
            return Err(NumaError::Memory { nodes: sum, memory });
        }
        Ok(Self { distances: matrix(count, distances)?, nodes })
    }

    /// The nodes in order of their numbers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The distance between two nodes.
    pub fn distance(&self, from: usize, to: usize) -> u8 {
        self.distances.get(from * self.nodes.len() + to).copied().unwrap_or(REMOTE)
    }

    /// The node of a vCPU.
    pub fn node_of(&self, vcpu: u32) -> Option<u32> {
        self.nodes.iter().find(|node| node.cpus.contains(vcpu)).map(|node| node.id)
    }

    /// Which node's memory lies where: the nodes fill the pieces of RAM in order of their numbers.
    pub fn memory(&self, pieces: &[Piece]) -> Vec<(u32, Piece)> {
        let mut ranges = Vec::new();
        let mut pieces = pieces.iter().copied();
        let mut piece = pieces.next();
        for node in &self.nodes {
            let mut left = node.memory;
            while left > 0 {
                let Some(current) = piece else { return ranges };
                let len = left.min(current.len);
                ranges.push((node.id, Piece { start: current.start, len }));
                left -= len;
                piece = if len == current.len {
                    pieces.next()
                } else {
                    Some(Piece { start: current.start + len, len: current.len - len })
                };
            }
        }
        ranges
    }
}

fn check_cpus(nodes: &[Node], have: &IdSet) -> Result<(), NumaError> {
    let mut missing = have.clone();
    for (n, node) in nodes.iter().enumerate() {
        let wrong = node.cpus.difference(have);
        if !wrong.is_empty() {
            return Err(NumaError::NoSuchCpu { node: node.id, cpus: wrong, have: have.clone() });
        }
        for other in &nodes[..n] {
            if let Some(cpu) = node.cpus.intersection(&other.cpus).iter().next() {
                return Err(NumaError::CpuTwice { cpu, first: other.id, second: node.id });
            }
        }
        missing = missing.difference(&node.cpus);
    }
    if missing.is_empty() { Ok(()) } else { Err(NumaError::CpusMissing { missing, have: have.clone() }) }
}

/// A distance that is given one way holds both ways, unless the other way is given too.
fn matrix(count: usize, given: &[Distance]) -> Result<Vec<u8>, NumaError> {
    let mut table: Vec<Option<u8>> = vec![None; count * count];
    for n in 0..count {
        table[n * count + n] = Some(LOCAL);
    }
    for &Distance { from, to, value } in given {
        let (row, column) = (from as usize, to as usize);
        if row >= count || column >= count {
            return Err(NumaError::DistanceTo { from, to, value });
        }
        match table[row * count + column].replace(value) {
            Some(known) if known != value => return Err(NumaError::DistanceTwice { from, to, value, known }),
            _ => {}
        }
    }
    let at = |row: usize, column: usize| table[row * count + column];
    let pairs = (0..count).flat_map(|row| (0..count).map(move |column| (row, column)));
    Ok(pairs.map(|(row, column)| at(row, column).or(at(column, row)).unwrap_or(REMOTE)).collect())
}

/// From the command line's words.
pub(super) fn from_specs(specs: &[NodeSpec]) -> Result<(Vec<Node>, Vec<Distance>), NumaError> {
    let distances = specs.iter().flat_map(|spec| spec.distances.iter().copied()).collect();
    let node = |spec: &NodeSpec| Node { id: spec.id, cpus: spec.cpus.clone(), memory: spec.memory };
    Ok((specs.iter().map(node).collect(), distances))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use crate::topology::parse;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn numa(text: &str, vcpus: u32, memory: u64) -> Result<Numa, NumaError> {
        let (nodes, distances) = from_specs(&parse::numa(text).unwrap())?;
        Numa::new(nodes, &distances, vcpus, memory)
    }

    #[test]
    fn everything_is_covered_once() {
        let good = numa("node=1,cpus=2-3,mem=64M;node=0,cpus=0-1,mem=64M,dist=1@30", 4, 128 * MIB).unwrap();
        assert_eq!((good.node_of(3), good.node_of(0)), (Some(1), Some(0)));
        assert_eq!((good.distance(0, 0), good.distance(0, 1), good.distance(1, 0)), (10, 30, 30));
        for (text, message) in [
            ("node=0,cpus=0-1,mem=128M", "vCPUs 2-3 belong to no node (there are vCPUs 0-3): add them to a cpus="),
            (
                "node=0,cpus=0-3,mem=64M;node=1,cpus=3,mem=64M",
                "vCPU 3 belongs to node 0 and to node 1: leave it in one",
            ),
            ("node=0,cpus=0-5,mem=128M", "node 0 has vCPUs 4-5 that don't exist (there are vCPUs 0-3)"),
            (
                "node=0,cpus=0-3,mem=64M",
                "the nodes have 65536 KiB of memory together, but --memory is 131072 KiB: make them equal, or leave --memory out",
            ),
            ("node=0,cpus=0-3,mem=64M;node=2,mem=64M", "nodes are numbered 0 to 1, and there is a node=2"),
            ("node=0,cpus=0-3,mem=134217700", "node 0: mem=134217700 bytes are no multiple of 4096"),
            ("node=0,cpus=0-3,mem=128M,dist=4@20", "node 0: dist=4@20 names a node that doesn't exist"),
            (
                "node=0,cpus=0-3,mem=128M,dist=0@20",
                "node 0: dist=0@20 contradicts the distance 10 that is already there",
            ),
        ] {
            assert_eq!(numa(text, 4, 128 * MIB).unwrap_err().to_string(), message, "{text}");
        }
    }

    proptest! {
        /// Whatever the sizes: each byte of RAM has one node, in order.
        #[test]
        fn memory_is_laid_out_without_gaps(sizes in proptest::collection::vec(0u64..(3 << 18), 1..6)) {
            let sizes: Vec<u64> = sizes.into_iter().map(|pages| pages * PAGE_SIZE).collect();
            let total: u64 = sizes.iter().sum();
            prop_assume!(total > 0);
            let nodes = sizes.iter().zip(0u32..).map(|(&memory, id)| Node {
                id,
                cpus: if id == 0 { IdSet::below(1) } else { IdSet::default() },
                memory,
            });
            let numa = Numa::new(nodes.collect(), &[], 1, total).unwrap();
            let pieces = memory::layout(total);
            let ranges = numa.memory(&pieces);
            for (size, id) in sizes.iter().zip(0u32..) {
                let sum: u64 = ranges.iter().filter(|(node, _)| *node == id).map(|(_, piece)| piece.len).sum();
                prop_assert_eq!(sum, *size);
            }
            for piece in pieces {
                let mut at = piece.start;
                for (_, range) in ranges.iter().filter(|(_, r)| r.start >= piece.start && r.start < piece.start + piece.len) {
                    prop_assert_eq!(range.start, at);
                    at += range.len;
                }
                prop_assert_eq!(at, piece.start + piece.len);
            }
        }
    }
}
