//! MADT: the CPUs and the interrupt controllers.

use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::{FIRST_X2APIC_ID, HEADER_LEN, OEM_ID, OEM_REVISION, OEM_TABLE_ID, VirtioMmio, bytes_of};
use crate::boot::layout;
use crate::topology::Topology;

/// MADT revision of ACPI 6.x.
const MADT_REVISION: u8 = 5;
/// MADT flag PCAT_COMPAT: there are 8259s beside the APICs, as KVM's irqchip has them.
const PCAT_COMPAT: u32 = 1;
/// MPS INTI flags: active high, edge (ACPI 6.5, table 5.25).
const EDGE_HIGH: u16 = 0b01_01;

/// Processor Local x2APIC (ACPI 6.5, table 5.37).
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct LocalX2Apic {
    kind: u8,
    length: u8,
    reserved: U16,
    x2apic_id: U32,
    flags: U32,
    uid: U32,
}

/// Interrupt Source Override (ACPI 6.5, table 5.24).
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct InterruptOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: U32,
    flags: U16,
}

/// Local APIC NMI (ACPI 6.5, table 5.29).
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct LocalApicNmi {
    kind: u8,
    length: u8,
    uid: u8,
    flags: U16,
    lint: u8,
}

/// Every vCPU is there from the start; its processor uid is its number.
pub fn madt(topology: &Topology, devices: &[VirtioMmio]) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", HEADER_LEN, MADT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append(U32::new(layout::LAPIC));
    madt.append(U32::new(PCAT_COMPAT));
    for uid in 0..topology.vcpus() {
        let id = topology.apic_id(uid);
        if id < FIRST_X2APIC_ID {
            // The uid, the vCPU's number, is never above its APIC id.
            madt.append_slice(&bytes_of(&ProcessorLocalApic::new(uid as u8, id as u8, EnabledStatus::Enabled)));
        } else {
            let entry = LocalX2Apic {
                kind: 9,
                length: size_of::<LocalX2Apic>() as u8,
                reserved: U16::ZERO,
                x2apic_id: U32::new(id),
                flags: U32::new(1),
                uid: U32::new(uid),
            };
            madt.append_slice(entry.as_bytes());
        }
    }
    madt.append_slice(&bytes_of(&IoApic::new(0, layout::IOAPIC, 0)));
    let gsis = [layout::COM2_GSI, layout::COM1_GSI].into_iter().chain(devices.iter().map(|d| d.gsi));
    for gsi in gsis.filter(|&gsi| gsi < 16) {
        let entry = InterruptOverride {
            kind: 2,
            length: size_of::<InterruptOverride>() as u8,
            bus: 0,
            source: gsi as u8,
            gsi: U32::new(gsi),
            flags: U16::new(EDGE_HIGH),
        };
        madt.append_slice(entry.as_bytes());
    }
    // LINT1 of every CPU (uid 0xff) is NMI, as the local APICs are set up (vcpu::setup).
    let nmi = LocalApicNmi { kind: 4, length: size_of::<LocalApicNmi>() as u8, uid: 0xff, flags: U16::ZERO, lint: 1 };
    madt.append_slice(nmi.as_bytes());
    madt.as_slice().to_vec()
}
