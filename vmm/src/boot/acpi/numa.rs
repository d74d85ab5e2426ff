//! SRAT and SLIT: which vCPUs and which memory belong to which node, and the distances.

use acpi_tables::sdt::Sdt;
use acpi_tables::srat::MemoryAffinity;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::{FIRST_X2APIC_ID, HEADER_LEN, OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};
use crate::memory::Piece;
use crate::topology::{Numa, Topology};

/// SRAT revision of ACPI 6.x.
const SRAT_REVISION: u8 = 3;
/// SLIT revision of ACPI 6.x.
const SLIT_REVISION: u8 = 1;
/// "Reserved to be 1 for backward compatibility" (ACPI 6.5, table 5.57).
const SRAT_RESERVED: u32 = 1;
/// Flag of all affinity structures.
const ENABLED: u32 = 1;

/// Processor Local APIC Affinity (ACPI 6.5, table 5.58). The domain's upper bytes are zero, as there are few nodes.
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct ApicAffinity {
    kind: u8,
    length: u8,
    domain_low: u8,
    apic_id: u8,
    flags: U32,
    local_sapic_eid: u8,
    domain_high: [u8; 3],
    clock_domain: U32,
}

/// Processor Local x2APIC Affinity (ACPI 6.5, table 5.61).
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct X2ApicAffinity {
    kind: u8,
    length: u8,
    reserved: U16,
    domain: U32,
    x2apic_id: U32,
    flags: U32,
    clock_domain: U32,
    reserved2: U32,
}

/// vCPUs in order of their numbers, then memory in order of nodes.
pub fn srat(topology: &Topology, numa: &Numa, ram: &[Piece]) -> Vec<u8> {
    let mut table = Sdt::new(*b"SRAT", HEADER_LEN, SRAT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append(U32::new(SRAT_RESERVED));
    table.append([0u8; 8]);
    for vcpu in 0..topology.vcpus() {
        let (id, Some(node)) = (topology.apic_id(vcpu), numa.node_of(vcpu)) else { continue };
        if id < FIRST_X2APIC_ID {
            let [domain_low, domain_high @ ..] = node.to_le_bytes();
            let entry = ApicAffinity {
                kind: 0,
                length: size_of::<ApicAffinity>() as u8,
                domain_low,
                apic_id: id as u8,
                flags: U32::new(ENABLED),
                local_sapic_eid: 0,
                domain_high,
                clock_domain: U32::ZERO,
            };
            table.append_slice(entry.as_bytes());
        } else {
            let entry = X2ApicAffinity {
                kind: 2,
                length: size_of::<X2ApicAffinity>() as u8,
                reserved: U16::ZERO,
                domain: U32::new(node),
                x2apic_id: U32::new(id),
                flags: U32::new(ENABLED),
                clock_domain: U32::ZERO,
                reserved2: U32::ZERO,
            };
            table.append_slice(entry.as_bytes());
        }
    }
    for (node, piece) in numa.memory(ram) {
        table.append_slice(&bytes_of(&MemoryAffinity::new(node, piece.start, piece.len).enabled()));
    }
    table.as_slice().to_vec()
}

/// A full matrix. By hand, since `SLIT::set_distance` of acpi_tables sets both ways at once, and they may differ.
pub fn slit(numa: &Numa) -> Vec<u8> {
    let count = numa.nodes().len();
    let mut table = Sdt::new(*b"SLIT", HEADER_LEN, SLIT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append((count as u64).to_le_bytes());
    for from in 0..count {
        let row: Vec<u8> = (0..count).map(|to| numa.distance(from, to)).collect();
        table.append_slice(&row);
    }
    table.as_slice().to_vec()
}
