//! All builders against the one parser: CPUID and the tables tell the same tree.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::cpuid::tests::template;
use crate::memory::{allocate, layout as ram_layout};
use crate::topology::readback::{self, u32_at, u64_at};
use crate::topology::{Node, Shape};

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

fn table(ram: &Ram, address: u64) -> Vec<u8> {
    let mut header = [0; 36];
    ram.read_slice(&mut header, GuestAddress(address)).unwrap();
    let mut bytes = vec![0; u32_at(&header, 4) as usize];
    ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    assert_eq!(sum(&bytes), 0, "checksum of {:?}", String::from_utf8_lossy(&bytes[..4]));
    bytes
}

/// Writes the tables, walks from the RSDP as a guest does, and returns them by signature.
fn tables(topology: &Topology, memory: u64) -> BTreeMap<String, Vec<u8>> {
    let ram = allocate(memory, 46).unwrap();
    let caches = template(topology, false).caches();
    let rsdp_address = write(&ram, topology, &caches, &[VirtioMmio { base: layout::VIRTIO_MMIO, gsi: 5 }]).unwrap();
    let mut rsdp = [0; 36];
    ram.read_slice(&mut rsdp, GuestAddress(rsdp_address)).unwrap();
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let xsdt = table(&ram, u64_at(&rsdp, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let name = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..4]).into_owned();
    let mut all: BTreeMap<_, _> =
        xsdt[36..].chunks(8).map(|at| table(&ram, u64_at(at, 0))).map(|bytes| (name(&bytes), bytes)).collect();
    let dsdt = table(&ram, u64_at(&all["FACP"], 140));
    all.insert(name(&dsdt), dsdt);
    all
}

fn shape(sockets: u32, dies: u32, cores: u32, threads: u32) -> Topology {
    Topology::new(Shape { sockets, dies, cores, threads }).unwrap()
}

#[test]
fn tables_are_linked() {
    let all = tables(&shape(1, 1, 3, 1), 16 << 20);
    assert_eq!(all.keys().collect::<Vec<_>>(), ["APIC", "DSDT", "FACP", "PPTT"]);
    assert_ne!(u32_at(&all["FACP"], 112) & 1 << 20, 0, "hardware-reduced");
}

#[test]
fn as_many_cpus_as_kvm_allows_fit() {
    let all = tables(&shape(4, 4, 128, 2), 16 << 20);
    assert_eq!(readback::madt(&all["APIC"]).len(), 4096);
    assert!(!all.contains_key("PPTT"), "too large");
    let all = tables(&shape(2, 1, 512, 1), 16 << 20);
    assert_eq!(readback::pptt(&all["PPTT"]).len(), 1024);
}

/// Every source tells the same place and the same sharing for each vCPU.
fn agree(topology: &Topology, memory: u64) {
    let all = tables(topology, memory);
    let madt = readback::madt(&all["APIC"]);
    let template = template(topology, false);
    let vcpus = topology.vcpus();
    assert_eq!(madt.len(), vcpus as usize);
    let mut groups: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
    for vcpu in 0..vcpus {
        let cpuid = template.for_vcpu(vcpu).unwrap();
        let (id, shifts) = readback::extended(&cpuid, 0xb).unwrap();
        assert_eq!(madt[&vcpu], id);
        let expected = topology.place(vcpu);
        let told = match readback::extended(&cpuid, 0x1f) {
            Some((v2_id, v2)) => {
                assert_eq!((v2_id, v2.core, v2.socket), (id, shifts.core, shifts.socket));
                readback::place(id, v2)
            }
            None => readback::place(id, readback::Shifts { die: shifts.socket, ..shifts }),
        };
        assert_eq!(told, expected, "vCPU {vcpu}");

        let leaf = |function| readback::leaf(&cpuid, function, 0).unwrap();
        let one = leaf(1);
        assert_eq!(one.ebx >> 24, id & 0xff);
        assert_eq!(one.edx >> 28 & 1, u32::from(vcpus > 1));
        let package_bits = (one.ebx >> 16 & 0xff).next_power_of_two().trailing_zeros();
        assert_eq!(package_bits, shifts.socket.min(8));
        let amd = leaf(0x8000_001e);
        assert_eq!((amd.eax, (amd.ebx >> 8 & 0xff) + 1), (id, topology.shape().threads));
        assert_eq!(amd.ebx & 0xff, (expected.die * topology.shape().cores + expected.core) & 0xff);
        assert_eq!(amd.ecx & 0xff, (expected.socket * topology.shape().dies + expected.die) & 0xff);
        assert_eq!(leaf(0x8000_0008).ecx >> 12 & 0xf, shifts.socket.min(15));

        let intel = readback::cache_groups(&cpuid, 4, id);
        assert_eq!(intel, readback::cache_groups(&cpuid, 0x8000_001d, id));
        assert_eq!(intel.len(), 4);
        for (level, group) in intel {
            groups.entry((level, group)).or_default().push(vcpu);
        }
    }
    let pptt = readback::pptt(&all["PPTT"]);
    assert_eq!(pptt.keys().copied().collect::<Vec<_>>(), (0..vcpus).collect::<Vec<_>>());
    for a in 0..vcpus {
        let b = (a + 1) % vcpus;
        let (place_a, place_b) = (topology.place(a), topology.place(b));
        let same_die = (place_a.socket, place_a.die) == (place_b.socket, place_b.die);
        let same_core = same_die && place_a.core == place_b.core;
        let shared = |size: u32| pptt[&a].caches.iter().any(|c| c.1 == size && pptt[&b].caches.contains(c));
        assert_eq!((shared(32 << 10), shared(1 << 20), shared(32 << 20)), (same_core, same_core, same_die), "{a}, {b}");
        let same_socket = pptt[&a].ancestors.last() == pptt[&b].ancestors.last();
        assert_eq!(same_socket, place_a.socket == place_b.socket);
        let together = |level| groups.iter().any(|((l, _), v)| *l == level && v.contains(&a) && v.contains(&b));
        assert_eq!((together(2), together(3)), (same_core, same_die));
    }
    let Some(numa) = topology.numa() else { return };
    let (cpus, ranges) = readback::srat(&all["SRAT"]);
    for vcpu in 0..vcpus {
        assert_eq!(cpus.get(&topology.apic_id(vcpu)).copied(), numa.node_of(vcpu));
    }
    assert_eq!(ranges.iter().map(|range| range.2).sum::<u64>(), memory);
    let slit = readback::slit(&all["SLIT"]);
    for (from, row) in slit.iter().enumerate() {
        for (to, distance) in row.iter().enumerate() {
            assert_eq!(*distance, numa.distance(from, to));
        }
    }
}

#[test]
fn x2apic_ids_above_254_are_told_everywhere() {
    agree(&shape(5, 1, 33, 3), 16 << 20);
}

#[test]
fn memory_above_the_hole_has_its_node() {
    let memory = 5 << 30;
    let nodes = (0..2).map(|id| Node { id, cpus: [id].into_iter().collect(), memory: memory / 2 }).collect();
    let topology = shape(2, 1, 1, 1).with_nodes(nodes, &[], memory).unwrap();
    agree(&topology, memory);
    assert_eq!(topology.numa().unwrap().memory(&ram_layout(memory)).len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn all_sources_tell_the_same_tree(
        sockets in 1u32..5, dies in 1u32..4, cores in 1u32..8, threads in 1u32..4, split in 0u32..1000,
    ) {
        let topology = shape(sockets, dies, cores, threads);
        let vcpus = topology.vcpus();
        let cut = split % (vcpus + 1);
        let memory = (16 + u64::from(split)) << 20;
        let nodes = vec![
            Node { id: 0, cpus: (0..cut).collect(), memory: memory - (5 << 20) },
            Node { id: 1, cpus: (cut..vcpus).collect(), memory: 5 << 20 },
        ];
        agree(&topology, memory);
        agree(&topology.with_nodes(nodes, &[], memory).unwrap(), memory);
    }
}
