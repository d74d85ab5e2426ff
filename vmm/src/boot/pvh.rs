//! The PVH boot protocol: `hvm_start_info`, module list and memory map.
//!
//! [`crate::vm`] calls [`write`] once the kernel and the archive are in place.
//! Source: xen/include/public/arch-x86/hvm/start_info.h; addresses: docs/abi.md.

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::GuestAddress;

use super::{BootError, BootInfo, layout};
use crate::memory::{Ram, usable};

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const TYPE_RAM: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_ACPI`.
const TYPE_ACPI: u32 = 3;

/// Writes the start info; its address belongs into EBX.
pub fn write(ram: &Ram, info: &BootInfo<'_>) -> Result<u64, BootError> {
    super::write_cmdline(ram, info.cmdline, layout::COMMAND_LINE_MAX)?;
    let mut map: Vec<_> = usable(ram)
        .iter()
        .map(|piece| hvm_memmap_table_entry { addr: piece.start, size: piece.len, type_: TYPE_RAM, reserved: 0 })
        .collect();
    map.push(hvm_memmap_table_entry {
        addr: layout::PPTT,
        size: layout::ACPI_END - layout::PPTT,
        type_: TYPE_ACPI,
        reserved: 0,
    });
    map.sort_by_key(|entry| entry.addr);

    let modules: Vec<_> =
        info.archive.iter().map(|&(paddr, size)| hvm_modlist_entry { paddr, size, ..Default::default() }).collect();
    let start = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { layout::PVH_MODULES },
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: info.rsdp,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };

    let mut params = BootParams::new(&start, GuestAddress(layout::PVH_START_INFO));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMORY_MAP));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(layout::PVH_MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, ram)?;
    Ok(layout::PVH_START_INFO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use vm_memory::Bytes;

    #[test]
    fn start_info_reads_back() {
        let ram = allocate(64 << 20, 46).unwrap();
        let info = BootInfo { cmdline: "a=b", archive: Some((0x3f0_0000, 77)), rsdp: layout::ACPI };
        let address = write(&ram, &info).unwrap();
        let start: hvm_start_info = ram.read_obj(GuestAddress(address)).unwrap();
        assert_eq!((start.magic, start.version, start.nr_modules, start.memmap_entries), (MAGIC, 1, 1, 3));
        let module: hvm_modlist_entry = ram.read_obj(GuestAddress(start.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x3f0_0000, 77));
        let mut text = [0xffu8; 4];
        ram.read_slice(&mut text, GuestAddress(start.cmdline_paddr)).unwrap();
        assert_eq!(&text, b"a=b\0");
    }

    #[test]
    fn long_command_lines_are_refused() {
        let ram = allocate(64 << 20, 46).unwrap();
        let cmdline = "x".repeat(layout::COMMAND_LINE_MAX);
        let info = BootInfo { cmdline: &cmdline, archive: None, rsdp: 0 };
        assert!(matches!(write(&ram, &info), Err(BootError::CommandLine { .. })));
    }
}
