//! `--topology` and `--numa`: what is read reads back; what is resolved gives each vCPU an APIC id of its own and a node.

use std::collections::BTreeSet;

use taskvisor::config::values::Nodes;
use taskvisor::topology::{TopologyChoice, resolve};

/// One input.
pub fn run(text: &str) {
    // The part before the first line's end is the tree, the next the nodes, the rest the number of vCPUs.
    let mut lines = text.splitn(3, '\n');
    let tree = lines.next().unwrap_or_default().parse::<TopologyChoice>().ok();
    let nodes = lines.next().unwrap_or_default().parse::<Nodes>().ok();
    let vcpus = lines.next().and_then(|count| count.parse().ok());
    if let Some(tree) = &tree {
        assert_eq!(tree.to_string().parse().as_ref(), Ok(tree));
    }
    if let Some(nodes) = &nodes {
        assert_eq!(nodes.to_string().parse().as_ref(), Ok(nodes));
    }
    let nodes = nodes.map(|nodes| nodes.0).unwrap_or_default();
    let memory = nodes.iter().fold(0u64, |sum, node| sum.saturating_add(node.memory));
    if let Ok(topology) = resolve(vcpus, tree, &nodes, memory) {
        let ids: BTreeSet<u32> = (0..topology.vcpus()).map(|vcpu| topology.apic_id(vcpu)).collect();
        assert_eq!(ids.len(), topology.vcpus() as usize, "an APIC id is there twice");
    }
}
