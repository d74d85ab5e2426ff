//! Guest RAM: its place in guest-physical space and the memfd behind it.
//!
//! Called by [`crate::vm`] while a machine is built; the boot code and the devices then use the [`Ram`] it returns.
//! Invariant: no page of the guest is touched here. Fresh RAM reads as zero and costs nothing until somebody writes it,
//! and guests rely on the zeroes.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// Guest memory as the rest of the VMM sees it.
pub type Ram = vm_memory::GuestMemoryMmap<()>;

/// Low RAM ends here at the latest; the hole above holds devices, IOAPIC and LAPIC (docs/abi.md, "Boot").
pub const HOLE_START: u64 = 0xc000_0000;
/// RAM that doesn't fit below the hole continues here.
pub const HOLE_END: u64 = 1 << 32;
/// The first address of the legacy hole (EBDA, video, BIOS), which is never offered as RAM to the guest.
pub const EBDA_START: u64 = 0x9_fc00;
/// Where RAM continues above the legacy hole.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Less than this holds neither a kernel nor a program.
pub const MIN_MEMORY: u64 = 8 << 20;
/// The page size of the architecture.
pub const PAGE_SIZE: u64 = 4096;

/// Why guest memory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Nothing boots in so little.
    #[error("{have} bytes of guest memory are too few: give --memory at least {} MiB", MIN_MEMORY >> 20)]
    TooSmall {
        /// What was asked for.
        have: u64,
    },
    /// Beyond what the host's CPU can address.
    #[error("--memory {} MiB is more than this host's CPU can address for a guest ({bits} bits)", have >> 20)]
    TooLarge {
        /// What was asked for.
        have: u64,
        /// Guest-physical address bits.
        bits: u32,
    },
    /// The host refuses the file behind guest memory.
    #[error("the host refuses {} MiB of guest memory: {source}; give a smaller --memory", size >> 20)]
    Refused {
        /// What was asked for.
        size: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// The host refuses to map it.
    #[error("can't map {} MiB of guest memory: {source}; give a smaller --memory", size >> 20)]
    Map {
        /// What was asked for.
        size: u64,
        /// vm-memory's answer.
        source: MmapRegionError,
    },
    /// The regions don't fit together; a defect of ours.
    #[error("guest memory regions overlap: {0}")]
    Regions(#[from] vm_memory::GuestRegionCollectionError),
}

/// A piece of guest-physical RAM, end exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// How `size` bytes of RAM are laid out: all below [`HOLE_START`] if it fits, the rest from [`HOLE_END`].
pub fn layout(size: u64) -> Vec<Piece> {
    let low = size.min(HOLE_START);
    let mut pieces = vec![Piece { start: 0, len: low }];
    if size > low {
        pieces.push(Piece { start: HOLE_END, len: size - low });
    }
    pieces
}

/// The end of low RAM, below which everything that the VMM places must lie.
pub fn low_end(ram: &Ram) -> u64 {
    ram.iter().next().map_or(0, |region| region.len())
}

/// The pieces that are RAM. What lies in the hole is memory of a device.
pub fn pieces(ram: &Ram) -> impl Iterator<Item = Piece> {
    let pieces = ram.iter().map(|region| Piece { start: region.start_addr().0, len: region.len() });
    pieces.filter(|piece| !(HOLE_START..HOLE_END).contains(&piece.start))
}

/// The memory map that boot protocols hand to the guest: RAM without the legacy hole.
pub fn usable(ram: &Ram) -> Vec<Piece> {
    let mut map = Vec::with_capacity(3);
    for Piece { start, len } in pieces(ram) {
        if start == 0 {
            map.push(Piece { start: 0, len: EBDA_START.min(len) });
            if len > HIGH_RAM_START {
                map.push(Piece { start: HIGH_RAM_START, len: len - HIGH_RAM_START });
            }
        } else {
            map.push(Piece { start, len });
        }
    }
    map
}

/// Allocates `size` bytes (rounded down to pages) of zeroed, untouched, shareable guest memory.
pub fn allocate(size: u64, address_bits: u32) -> Result<Ram, MemoryError> {
    if size < MIN_MEMORY {
        return Err(MemoryError::TooSmall { have: size });
    }
    let size = size & !(PAGE_SIZE - 1);
    let pieces = layout(size);
    let end = pieces.last().map_or(0, |piece| piece.start + (piece.len - 1));
    if end.checked_shr(address_bits).unwrap_or(0) != 0 {
        return Err(MemoryError::TooLarge { have: size, bits: address_bits });
    }

    let file = memfd(size).map_err(|source| MemoryError::Refused { size, source })?;
    let mut regions = Vec::with_capacity(pieces.len());
    let mut offset = 0;
    for piece in pieces {
        let file = file.try_clone().map_err(|source| MemoryError::Refused { size, source })?;
        let mapping = MmapRegion::build(
            Some(FileOffset::new(file, offset)),
            piece.len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )
        .map_err(|source| MemoryError::Map { size, source })?;
        // Only advice: without shmem THP on this host nothing changes.
        // SAFETY: the range is exactly the mapping just made, which nobody else uses yet; MADV_HUGEPAGE changes no content.
        unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_HUGEPAGE) };
        offset += piece.len;
        if let Some(region) = GuestRegionMmap::new(mapping, GuestAddress(piece.start)) {
            regions.push(region);
        }
    }
    Ok(Ram::from_regions(regions)?)
}

/// An anonymous file of `size` bytes; no page of it is allocated.
fn memfd(size: u64) -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated constant; the call has no other memory operand.
    let fd = unsafe { libc::memfd_create(c"taskvisor-ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` has just been returned by the kernel, and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// Bytes of guest memory that the host has had to back with pages so far.
pub fn touched(ram: &Ram) -> u64 {
    use std::os::unix::fs::MetadataExt;
    // All RAM shares one file, so the first one knows. Unit of st_blocks: 512 bytes (stat(2)).
    ram.iter()
        .next()
        .and_then(|region| region.file_offset()?.file().metadata().ok())
        .map_or(0, |meta| meta.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const GIB: u64 = 1 << 30;

    #[test]
    fn small_memory_is_one_piece() {
        assert_eq!(layout(GIB), [Piece { start: 0, len: GIB }]);
        assert_eq!(layout(3 * GIB), [Piece { start: 0, len: 3 * GIB }]);
    }

    #[test]
    fn memory_continues_above_the_hole() {
        assert_eq!(layout(5 * GIB), [Piece { start: 0, len: 3 * GIB }, Piece { start: 4 * GIB, len: 2 * GIB }]);
    }

    #[test]
    fn usable_leaves_the_legacy_hole_out() {
        let ram = allocate(4 * GIB, 46).unwrap();
        assert_eq!(
            usable(&ram),
            [
                Piece { start: 0, len: 0x9fc00 },
                Piece { start: 0x10_0000, len: 3 * GIB - 0x10_0000 },
                Piece { start: 4 * GIB, len: GIB },
            ]
        );
    }

    #[test]
    fn fresh_memory_is_untouched_and_zero() {
        let ram = allocate(64 << 20, 46).unwrap();
        assert_eq!(touched(&ram), 0);
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x20_0000)).unwrap(), 0);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(matches!(allocate(1 << 20, 46), Err(MemoryError::TooSmall { .. })));
        assert!(matches!(allocate(1 << 47, 46), Err(MemoryError::TooLarge { .. })));
        assert!(allocate(1 << 62, 64).is_err());
    }
}
