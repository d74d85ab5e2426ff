//! The 64-bit Linux boot protocol: zero page, identity page tables, GDT.
//!
//! [`crate::vm`] calls [`write`] for a bzImage. Source: Linux, Documentation/arch/x86/boot.rst and zero-page.rst.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, BootInfo, layout};
use crate::memory::{Ram, usable};

/// `type_of_loader`: "undefined" (boot.rst).
const LOADER_UNDEFINED: u8 = 0xff;
/// E820 type of RAM.
const E820_RAM: u32 = 1;
/// Page-table entry: present, writable.
const TABLE: u64 = 0x3;
/// Page-directory entry: present, writable, 2 MiB page.
const LARGE_PAGE: u64 = 0x83;
/// `__BOOT_CS` 0x10: 64-bit code; `__BOOT_DS` 0x18: flat data (boot.rst, "64-bit boot protocol").
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// The GDT's limit for the GDTR.
pub const GDT_LIMIT: u16 = (size_of::<[u64; 4]>() - 1) as u16;

/// Writes everything that the kernel's 64-bit entry expects; the zero page's address belongs into RSI.
pub fn write(ram: &Ram, info: &BootInfo<'_>, header: &setup_header) -> Result<u64, BootError> {
    // cmdline_size excludes the NUL; kernels before protocol 2.06 take 255.
    let max = if header.cmdline_size == 0 { 255 } else { header.cmdline_size as usize };
    super::write_cmdline(ram, info.cmdline, layout::COMMAND_LINE_MAX.min(max + 1))?;

    let mut params = boot_params { hdr: *header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    if let Some((address, size)) = info.archive {
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    params.acpi_rsdp_addr = info.rsdp;
    let map = usable(ram);
    params.e820_entries = map.len() as u8;
    for (slot, piece) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry { addr: piece.start, size: piece.len, r#type: E820_RAM };
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(layout::ZERO_PAGE)), ram)?;
    write_page_tables(ram)?;
    for (n, entry) in GDT.iter().enumerate() {
        ram.write_obj(*entry, GuestAddress(layout::GDT + 8 * n as u64))?;
    }
    Ok(layout::ZERO_PAGE)
}

/// Maps the first 4 GiB to themselves with 2 MiB pages.
fn write_page_tables(ram: &Ram) -> Result<(), BootError> {
    let pml4 = layout::PAGE_TABLES;
    let pdpt = pml4 + 0x1000;
    ram.write_obj(pdpt | TABLE, GuestAddress(pml4))?;
    for gib in 0..4 {
        let directory = pdpt + 0x1000 * (gib + 1);
        ram.write_obj(directory | TABLE, GuestAddress(pdpt + 8 * gib))?;
        for n in 0..512 {
            ram.write_obj((gib << 30 | n << 21) | LARGE_PAGE, GuestAddress(directory + 8 * n))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    #[test]
    fn zero_page_reads_back() {
        let ram = allocate(64 << 20, 46).unwrap();
        let header = setup_header { cmdline_size: 2047, ..Default::default() };
        let info = BootInfo { cmdline: "console=ttyS0", archive: Some((0x300_0000, 9)), rsdp: layout::ACPI };
        let address = write(&ram, &info, &header).unwrap();
        let params: boot_params = ram.read_obj(GuestAddress(address)).unwrap();
        let (image, size, entries) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size, params.e820_entries);
        assert_eq!((image, size, entries), (0x300_0000, 9, 2));
        let last: u64 = ram.read_obj(GuestAddress(layout::PAGE_TABLES + 0x6000 - 8)).unwrap();
        assert_eq!(last, 0xffe0_0000 | LARGE_PAGE);
    }

    #[test]
    fn the_kernels_own_limit_counts() {
        let ram = allocate(64 << 20, 46).unwrap();
        let header = setup_header { cmdline_size: 10, ..Default::default() };
        let info = BootInfo { cmdline: "elevenchars", archive: None, rsdp: 0 };
        assert!(matches!(write(&ram, &info, &header), Err(BootError::CommandLine { max: 10, .. })));
    }
}
