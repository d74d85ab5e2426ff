//! `--topology host`: the host's own tree, read from sysfs.
//!
//! Used by [`super::resolve`]. Only online CPUs count. A tree whose branches differ (hybrid CPUs, siblings taken offline) has
//! no such [`Shape`] and is refused: a guest that is told another tree than it runs on would be worse than none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Shape;
use super::numa::{Distance, Node};
use crate::config::text::{IdSet, TextError};

/// Where Linux shows them.
pub const SYSFS: &str = "/sys/devices/system";
/// What a node's share of memory is rounded to, so that large pages don't straddle nodes.
const GRAIN: u64 = 2 << 20;

/// Why the host's tree can't be mirrored.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file of sysfs.
    #[error("can't read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// What it says.
    #[error("{path} says '{text}', which is no {what}")]
    Text {
        /// Which.
        path: PathBuf,
        /// Its content.
        text: String,
        /// What was expected.
        what: &'static str,
    },
    /// Branches differ.
    #[error(
        "not all its {what} are alike ({few} and {many} {below}): describe a tree with sockets=, dies=, cores=, threads="
    )]
    Irregular {
        /// What differs.
        what: &'static str,
        /// What is counted.
        below: &'static str,
        /// The least.
        few: usize,
        /// The most.
        many: usize,
    },
}

/// A node of the host, its CPUs renumbered as vCPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNode {
    /// Its vCPUs.
    pub cpus: IdSet,
    /// KiB of host memory.
    pub kib: u64,
    /// To the others, in order of their numbers.
    pub distances: Vec<u8>,
}

/// The host's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// As numbers.
    pub shape: Shape,
    /// The host CPU that each vCPU stands for.
    pub cpus: Vec<u32>,
    /// Its nodes.
    pub nodes: Vec<HostNode>,
}

/// A CPU's numbers; those of the levels are unique only within the level above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct HostCpu {
    package: u64,
    die: u64,
    core: u64,
    cpu: u32,
}

fn read(path: &Path) -> Result<String, HostError> {
    let text = fs::read_to_string(path).map_err(|source| HostError::Read { path: path.to_owned(), source })?;
    Ok(text.trim().to_owned())
}

fn number(path: &Path) -> Result<u64, HostError> {
    let text = read(path)?;
    // Virtual machines without such information say -1.
    if text == "-1" {
        return Ok(0);
    }
    text.parse().map_err(|_| HostError::Text { path: path.to_owned(), text, what: "number" })
}

fn list(path: &Path) -> Result<IdSet, HostError> {
    let text = read(path)?;
    if text.is_empty() {
        return Ok(IdSet::default());
    }
    text.parse().map_err(|_: TextError| HostError::Text { path: path.to_owned(), text, what: "list" })
}

/// The one number that all groups have.
fn uniform(sizes: &[usize], what: &'static str, below: &'static str) -> Result<u32, HostError> {
    let (few, many) = (sizes.iter().min().copied().unwrap_or(0), sizes.iter().max().copied().unwrap_or(0));
    if few == many { Ok(many as u32) } else { Err(HostError::Irregular { what, below, few, many }) }
}

/// How many different `lower` each `upper` has.
fn counts<K: Ord>(cpus: &[HostCpu], upper: impl Fn(&HostCpu) -> K, lower: impl Fn(&HostCpu) -> u64) -> Vec<usize> {
    let mut groups: BTreeMap<K, BTreeSet<u64>> = BTreeMap::new();
    for cpu in cpus {
        groups.entry(upper(cpu)).or_default().insert(lower(cpu));
    }
    groups.values().map(BTreeSet::len).collect()
}

impl Mirror {
    /// Reads the tree below `sysfs` ([`SYSFS`]).
    pub fn read(sysfs: &Path) -> Result<Self, HostError> {
        let mut cpus = Vec::new();
        for cpu in list(&sysfs.join("cpu/online"))?.iter() {
            let topology = sysfs.join(format!("cpu/cpu{cpu}/topology"));
            // Kernels before 5.2 know no dies.
            let die = topology.join("die_id");
            cpus.push(HostCpu {
                package: number(&topology.join("physical_package_id"))?,
                die: if die.exists() { number(&die)? } else { 0 },
                core: number(&topology.join("core_id"))?,
                cpu,
            });
        }
        cpus.sort_unstable();
        let shape = Shape {
            sockets: cpus.iter().map(|c| c.package).collect::<BTreeSet<_>>().len() as u32,
            dies: uniform(&counts(&cpus, |c| c.package, |c| c.die), "sockets", "dies")?,
            cores: uniform(&counts(&cpus, |c| (c.package, c.die), |c| c.core), "dies", "cores")?,
            threads: uniform(&counts(&cpus, |c| (c.package, c.die, c.core), |c| c.cpu.into()), "cores", "threads")?,
        };
        let cpus: Vec<u32> = cpus.into_iter().map(|cpu| cpu.cpu).collect();
        Ok(Self { shape, nodes: read_nodes(sysfs, &cpus)?, cpus })
    }

    /// Nodes of a guest with this much memory, which is shared out as the host's is.
    pub fn nodes(&self, memory: u64) -> (Vec<Node>, Vec<Distance>) {
        let total: u64 = self.nodes.iter().map(|node| node.kib).sum::<u64>().max(1);
        let mut left = memory & !(crate::memory::PAGE_SIZE - 1);
        let mut nodes = Vec::new();
        for (id, node) in (0u32..).zip(&self.nodes) {
            let share = u128::from(memory) * u128::from(node.kib) / u128::from(total);
            let last = id as usize + 1 == self.nodes.len();
            let share = if last { left } else { (share as u64 / GRAIN * GRAIN).min(left) };
            left -= share;
            nodes.push(Node { id, cpus: node.cpus.clone(), memory: share });
        }
        let distances = (0u32..).zip(&self.nodes).flat_map(|(from, node)| {
            let row = (0u32..).zip(&node.distances).take(self.nodes.len());
            row.filter(move |(to, _)| *to != from).map(move |(to, &value)| Distance { from, to, value })
        });
        (nodes, distances.collect())
    }
}

fn read_nodes(sysfs: &Path, cpus: &[u32]) -> Result<Vec<HostNode>, HostError> {
    let online = sysfs.join("node/online");
    // A kernel without NUMA has no such directory.
    if !online.exists() {
        return Ok(Vec::new());
    }
    let mut nodes = Vec::new();
    for id in list(&online)?.iter() {
        let node = sysfs.join(format!("node/node{id}"));
        let own = list(&node.join("cpulist"))?;
        let meminfo = read(&node.join("meminfo"))?;
        let total = meminfo.lines().find_map(|line| line.split_once("MemTotal:"));
        let kib = total.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
        let distances = read(&node.join("distance"))?;
        nodes.push(HostNode {
            cpus: (0u32..).zip(cpus).filter(|(_, cpu)| own.contains(**cpu)).map(|(vcpu, _)| vcpu).collect(),
            kib,
            distances: distances.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        });
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    /// A sysfs with these (package, die, core) by CPU number, and nodes as (cpulist, KiB, distances).
    fn sysfs(cpus: &[(u32, u32, u32)], nodes: &[(&str, u64, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let put = |path: String, text: String| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text + "\n").unwrap();
        };
        put("cpu/online".into(), IdSet::below(cpus.len() as u32).to_string());
        for (n, (package, die, core)) in cpus.iter().enumerate() {
            put(format!("cpu/cpu{n}/topology/physical_package_id"), package.to_string());
            put(format!("cpu/cpu{n}/topology/die_id"), die.to_string());
            put(format!("cpu/cpu{n}/topology/core_id"), core.to_string());
        }
        if !nodes.is_empty() {
            put("node/online".into(), IdSet::below(nodes.len() as u32).to_string());
        }
        for (n, (list, kib, distances)) in nodes.iter().enumerate() {
            put(format!("node/node{n}/cpulist"), (*list).into());
            put(format!("node/node{n}/meminfo"), format!("Node {n} MemTotal:       {kib} kB"));
            put(format!("node/node{n}/distance"), (*distances).into());
        }
        root
    }

    #[test]
    fn siblings_that_are_numbered_apart_become_neighbours() {
        // As on many machines: CPUs 4 to 7 are the second threads of 0 to 3.
        let cores = [(0, 0, 0), (0, 0, 4), (1, 0, 0), (1, 0, 4)];
        let root = sysfs(&[cores, cores].concat(), &[("0-1,4-5", 300, "10 21"), ("2-3,6-7", 100, "21 10")]);
        let mirror = Mirror::read(root.path()).unwrap();
        assert_eq!(mirror.shape, Shape { sockets: 2, dies: 1, cores: 2, threads: 2 });
        assert_eq!(mirror.cpus, [0, 4, 1, 5, 2, 6, 3, 7]);
        let (nodes, distances) = mirror.nodes(256 << 20);
        assert_eq!((nodes[0].cpus.to_string(), nodes[0].memory >> 20), ("0-3".into(), 192));
        let topology = Topology::new(mirror.shape).unwrap().with_nodes(nodes, &distances, 256 << 20).unwrap();
        assert_eq!(topology.numa().unwrap().distance(0, 1), 21);
    }

    #[test]
    fn a_tree_with_unequal_branches_is_refused() {
        let root = sysfs(&[(0, 0, 0), (0, 0, 0), (0, 0, 1)], &[]);
        let error = Mirror::read(root.path()).unwrap_err().to_string();
        assert!(error.contains("not all its cores are alike (1 and 2 threads)"), "{error}");
    }

    #[test]
    fn this_host_can_be_read_or_says_why_not() {
        match Mirror::read(SYSFS.as_ref()) {
            Ok(mirror) => assert_eq!(mirror.shape.product(), Some(mirror.cpus.len() as u32)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
