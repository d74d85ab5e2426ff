//! What lies in guest memory when the first instruction runs: kernel, archive, ACPI tables and boot data. Called by
//! [`super::Vm::build`] alone.

use vm_memory::GuestAddress;

use super::error::VmError;
use crate::boot::acpi::{self, VirtioMmio};
use crate::boot::cpuid::Template;
use crate::boot::kernel::Entry;
use crate::boot::{BootError, BootInfo, bzimage, pvh};
use crate::guest::Guest;
use crate::memory::{self, PAGE_SIZE, Ram};
use crate::topology::Topology;

/// Kernel, archive, ACPI and boot data into memory.
pub(super) fn load(
    guest: &Guest,
    cmdline: &str,
    ram: &Ram,
    (topology, cpuid): (&Topology, &Template),
    virtio: &[VirtioMmio],
) -> Result<(Entry, u64), VmError> {
    let loaded = guest.kernel.load(ram).map_err(BootError::from)?;
    let archive = match &guest.archive {
        Some(archive) => {
            let limit = memory::low_end(ram).min(loaded.entry.archive_limit());
            let address = place_archive(archive.len(), loaded.end, limit)?;
            archive.load(ram, GuestAddress(address))?;
            Some((address, archive.len()))
        }
        None => None,
    };
    let rsdp = acpi::write(ram, topology, &cpuid.caches(), virtio)?;
    let info = BootInfo { cmdline, archive, rsdp };
    let boot_data = match &loaded.entry {
        Entry::Pvh { .. } => pvh::write(ram, &info)?,
        Entry::Linux64 { header, .. } => bzimage::write(ram, &info, header)?,
    };
    Ok((loaded.entry, boot_data))
}

/// The archive ends at `limit`, page aligned downwards: the top of low RAM, or the most that the kernel can reach.
fn place_archive(len: u64, kernel_end: u64, limit: u64) -> Result<u64, BootError> {
    limit
        .checked_sub(len)
        .map(|start| start & !(PAGE_SIZE - 1))
        .filter(|start| *start >= kernel_end)
        .ok_or(BootError::NoRoom { archive: len, kernel_end, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_page_aligned_below_the_limit_and_behind_the_kernel() {
        assert_eq!(place_archive(5000, 0x20_0000, 0x100_0000).unwrap(), 0xff_e000);
        assert_eq!(place_archive(0x1000, 0xff_f000, 0x100_0000).unwrap(), 0xff_f000);
        assert!(matches!(place_archive(0x1001, 0xff_f000, 0x100_0000), Err(BootError::NoRoom { .. })));
        assert!(place_archive(u64::MAX, 0, 0x100_0000).is_err());
    }
}
