//! ACPI tables: RSDP, XSDT, FADT (hardware-reduced), DSDT with the devices, MADT with the CPUs, SRAT and SLIT if there are
//! nodes, PPTT with the tree of processors and caches.
//!
//! [`crate::vm`] calls [`write`] once it knows CPUs and devices. Source: ACPI 6.5; table and section numbers below.
//! Invariant: all tables lie in `layout::PPTT .. layout::ACPI_END`, which no memory map offers as RAM.

mod dsdt;
mod madt;
mod numa;
mod pptt;
#[cfg(test)]
mod tests;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

use super::cpuid::levels::Cache;
use super::{BootError, layout};
use crate::memory::{Piece, Ram};
use crate::topology::Topology;

const OEM_ID: [u8; 6] = *b"TASKVI";
const OEM_TABLE_ID: [u8; 8] = *b"TASKVISR";
const OEM_REVISION: u32 = 1;
/// Length of a table's common header (ACPI 6.5, table 5.4).
const HEADER_LEN: u32 = 36;
/// FADT IAPC_BOOT_ARCH: no VGA, no CMOS RTC (ACPI 6.5, table 5.11, bits 2 and 5).
const NO_VGA_NO_RTC: u16 = 1 << 2 | 1 << 5;
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

/// Writes all tables, and returns the RSDP's address.
pub fn write(ram: &Ram, topology: &Topology, caches: &[Cache], devices: &[VirtioMmio]) -> Result<u64, BootError> {
    let dsdt = dsdt::dsdt(devices);
    let mut listed = vec![madt::madt(topology, devices)];
    if let Some(numa) = topology.numa() {
        let pieces: Vec<Piece> = ram_pieces(ram);
        listed.push(numa::srat(topology, numa, &pieces));
        listed.push(numa::slit(numa));
    }

    let mut next = layout::ACPI;
    let mut reserve = |len: usize| {
        let address = next;
        next = align(address + len as u64);
        if next > layout::ACPI_END { Err(BootError::Acpi { vcpus: topology.vcpus() }) } else { Ok(address) }
    };
    let put = |bytes: &[u8], address| ram.write_slice(bytes, GuestAddress(address)).map_err(BootError::from);

    // In the order of docs/abi.md. The XSDT's length: a header and an address for FADT, each of `listed`, and the PPTT.
    let rsdp_at = reserve(Rsdp::len())?;
    let xsdt_at = reserve(HEADER_LEN as usize + (listed.len() + 2) * size_of::<u64>())?;
    let fadt_at = reserve(FADT::len())?;
    let dsdt_at = reserve(dsdt.len())?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt_at);
    put(&dsdt, dsdt_at)?;
    put(&fadt(dsdt_at), fadt_at)?;
    for table in &listed {
        let address = reserve(table.len())?;
        put(table, address)?;
        xsdt.add_entry(address);
    }
    // The PPTT says nothing that CPUID doesn't; for thousands of vCPUs it would be too large for its place.
    let pptt = pptt::pptt(topology, caches);
    if pptt.len() as u64 <= layout::ACPI - layout::PPTT {
        put(&pptt, layout::PPTT)?;
        xsdt.add_entry(layout::PPTT);
    } else {
        log::debug!("no PPTT: it would need {} bytes", pptt.len());
    }
    put(&bytes_of(&xsdt), xsdt_at)?;
    put(&bytes_of(&Rsdp::new(OEM_ID, xsdt_at)), rsdp_at)?;
    Ok(rsdp_at)
}

fn ram_pieces(ram: &Ram) -> Vec<Piece> {
    crate::memory::pieces(ram).collect()
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
