//! ACPI tables: RSDP, XSDT, FADT (hardware-reduced), DSDT with the devices, MADT with the CPUs.
//!
//! [`crate::vm`] calls [`write`] once it knows CPUs and devices. Source: ACPI 6.5; table and section numbers below.
//! Invariant: all tables lie in `layout::ACPI .. layout::ACPI_END`, which no memory map offers as RAM.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::{BootError, layout};
use crate::memory::Ram;

const OEM_ID: [u8; 6] = *b"TASKVI";
const OEM_TABLE_ID: [u8; 8] = *b"TASKVISR";
const OEM_REVISION: u32 = 1;
/// Length of a table's common header (ACPI 6.5, table 5.4).
const HEADER_LEN: u32 = 36;
/// An XSDT with the addresses of FADT and MADT (ACPI 6.5, table 5.8).
const XSDT_LEN: usize = HEADER_LEN as usize + 2 * size_of::<u64>();
/// MADT revision of ACPI 6.x.
const MADT_REVISION: u8 = 5;
/// MADT flag PCAT_COMPAT: there are 8259s beside the APICs, as KVM's irqchip has them.
const PCAT_COMPAT: u32 = 1;
/// FADT IAPC_BOOT_ARCH: no VGA, no CMOS RTC (ACPI 6.5, table 5.11, bits 2 and 5).
const NO_VGA_NO_RTC: u16 = 1 << 2 | 1 << 5;
/// MPS INTI flags: active high, edge (ACPI 6.5, table 5.25).
const EDGE_HIGH: u16 = 0b01_01;
/// APIC ids from here on need x2APIC structures (ACPI 6.5, 5.2.12.12).
const FIRST_X2APIC_ID: u32 = 255;

/// A virtio-mmio device as the DSDT describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// First address of its registers.
    pub base: u64,
    /// Its interrupt.
    pub gsi: u32,
}

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

/// Writes all tables for CPUs with the given APIC ids, and returns the RSDP's address.
pub fn write(ram: &Ram, apic_ids: &[u32], devices: &[VirtioMmio]) -> Result<u64, BootError> {
    let mut next = layout::ACPI;
    let mut reserve = |len: usize| {
        let address = next;
        next = align(address + len as u64);
        if next > layout::ACPI_END { Err(BootError::Acpi { vcpus: apic_ids.len() as u32 }) } else { Ok(address) }
    };
    let put = |bytes: &[u8], address| ram.write_slice(bytes, GuestAddress(address)).map_err(BootError::from);

    // In the order of docs/abi.md; the first three have fixed lengths.
    let rsdp_at = reserve(Rsdp::len())?;
    let xsdt_at = reserve(XSDT_LEN)?;
    let fadt_at = reserve(FADT::len())?;
    let dsdt = dsdt(devices);
    let dsdt_at = reserve(dsdt.len())?;
    let madt = madt(apic_ids, devices);
    let madt_at = reserve(madt.len())?;

    put(&madt, madt_at)?;
    put(&dsdt, dsdt_at)?;
    put(&fadt(dsdt_at), fadt_at)?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt_at);
    xsdt.add_entry(madt_at);
    put(&bytes_of(&xsdt), xsdt_at)?;
    put(&bytes_of(&Rsdp::new(OEM_ID, xsdt_at)), rsdp_at)?;
    Ok(rsdp_at)
}

fn align(address: u64) -> u64 {
    address.next_multiple_of(16)
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Hardware-reduced: no PM timer, no SCI, no legacy power blocks; kernels then take the devices from the DSDT.
fn fadt(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = NO_VGA_NO_RTC.into();
    fadt.reset_reg = acpi_tables::gas::GAS::new(
        acpi_tables::gas::AddressSpace::SystemIo,
        8,
        0,
        acpi_tables::gas::AccessSize::ByteAccess,
        0xcf9,
    );
    fadt.reset_value = 0x06;
    bytes_of(&fadt.finalize())
}

fn madt(apic_ids: &[u32], devices: &[VirtioMmio]) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", HEADER_LEN, MADT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append(U32::new(layout::LAPIC));
    madt.append(U32::new(PCAT_COMPAT));
    for (uid, &id) in (0u32..).zip(apic_ids) {
        if id < FIRST_X2APIC_ID {
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

fn dsdt(devices: &[VirtioMmio]) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", HEADER_LEN, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for (name, uid, port, gsi) in
        [("COM1", 0u8, layout::COM1, layout::COM1_GSI), ("COM2", 1, layout::COM2, layout::COM2_GSI)]
    {
        table.append_slice(&bytes_of(&aml::Device::new(
            format!("_SB_.{name}").as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
                &aml::Name::new("_UID".into(), &uid),
                &aml::Name::new("_DDN".into(), &name),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::IO::new(port, port, 0, 8),
                        &aml::Interrupt::new(true, true, false, false, gsi),
                    ]),
                ),
            ],
        )));
    }
    for (n, device) in (0u8..).zip(devices) {
        table.append_slice(&bytes_of(&aml::Device::new(
            format!("_SB_.V{n:03}").as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &"LNRO0005"),
                &aml::Name::new("_UID".into(), &n),
                &aml::Name::new("_CCA".into(), &aml::ONE),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::Memory32Fixed::new(true, device.base as u32, layout::VIRTIO_MMIO_SIZE as u32),
                        &aml::Interrupt::new(true, true, false, false, device.gsi),
                    ]),
                ),
            ],
        )));
    }
    table.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn table(ram: &Ram, address: u64) -> Vec<u8> {
        let mut header = [0; 36];
        ram.read_slice(&mut header, GuestAddress(address)).unwrap();
        let mut bytes = vec![0; u32_at(&header, 4) as usize];
        ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Walks from the RSDP as a guest does, and returns FADT, MADT and DSDT.
    fn walk(vcpus: u32) -> [Vec<u8>; 3] {
        let ram = allocate(16 << 20, 46).unwrap();
        let ids: Vec<u32> = (0..vcpus).collect();
        let rsdp_address = write(&ram, &ids, &[VirtioMmio { base: layout::VIRTIO_MMIO, gsi: 5 }]).unwrap();
        let mut rsdp = [0; 36];
        ram.read_slice(&mut rsdp, GuestAddress(rsdp_address)).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = table(&ram, u64_at(&rsdp, 24));
        assert_eq!((&xsdt[..4], sum(&xsdt), xsdt.len()), (&b"XSDT"[..], 0, 36 + 16));
        let fadt = table(&ram, u64_at(&xsdt, 36));
        let madt = table(&ram, u64_at(&xsdt, 44));
        let dsdt = table(&ram, u64_at(&fadt, 140));
        [fadt, madt, dsdt]
    }

    #[test]
    fn tables_are_linked_and_their_sums_are_right() {
        let [fadt, madt, dsdt] = walk(3);
        for (table, signature) in [(&fadt, b"FACP"), (&madt, b"APIC"), (&dsdt, b"DSDT")] {
            assert_eq!(&table[..4], signature);
            assert_eq!(sum(table), 0, "{signature:?}");
        }
        assert_ne!(u32_at(&fadt, 112) & 1 << 20, 0, "hardware-reduced");
    }

    #[test]
    fn the_madt_lists_every_cpu_once() {
        let [_, madt, _] = walk(300);
        let (mut ids, mut at) = (Vec::new(), 44);
        while at < madt.len() {
            match madt[at] {
                0 => ids.push(u32::from(madt[at + 3])),
                9 => ids.push(u32_at(&madt, at + 4)),
                _ => {}
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(at, madt.len());
        assert_eq!(ids, (0..300).collect::<Vec<_>>());
    }

    #[test]
    fn as_many_cpus_as_kvm_allows_fit() {
        walk(4096);
    }
}
