//! Guest memory by virtual address: the page walk in user space, reads and writes.
//!
//! Nothing here asks KVM or faults the guest in. Invariants: a walk takes four steps at most, whatever the tables hold; every
//! physical address is checked by guest memory itself. Source: Intel SDM vol. 3A, 4.5.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Ram;

pub(super) const PRESENT: u64 = 1 << 0;
pub(super) const WRITE: u64 = 1 << 1;
pub(super) const LARGE: u64 = 1 << 7;
/// Bits 12..=51.
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Below is what programs see.
pub const USER_HALF: u64 = 1 << 47;
/// From here on it is the kernel's.
pub const KERNEL_HALF: u64 = !0 << 47;

/// Where a virtual address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub physical: u64,
    /// Whether the guest may write there now.
    pub writable: bool,
    /// Bytes from here to the end of the page.
    pub rest: u64,
}

/// Why memory can't be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Not mapped.
    #[error("{0:#x} is not mapped")]
    NotMapped(u64),
    /// A program's page that it may not write: it may be shared with others, or be a file's.
    #[error("{0:#x} is a page that the program can't write, perhaps shared with others (copy-on-write)")]
    ReadOnly(u64),
}

/// One address space, or physical memory.
#[derive(Debug, Clone, Copy)]
pub struct Space<'a> {
    ram: &'a Ram,
    /// Guest-physical address of the top-level table; `None`: addresses are physical.
    root: Option<u64>,
}

impl<'a> Space<'a> {
    /// Through this table.
    pub fn new(ram: &'a Ram, root: u64) -> Self {
        Self { ram, root: Some(root & ADDRESS) }
    }

    /// Addresses are physical.
    pub fn physical(ram: &'a Ram) -> Self {
        Self { ram, root: None }
    }

    /// Walks the tables.
    pub fn translate(&self, address: u64) -> Option<Translation> {
        let Some(root) = self.root else {
            return Some(Translation { physical: address, writable: true, rest: 0x1000 - (address & 0xfff) });
        };
        if (USER_HALF..KERNEL_HALF).contains(&address) {
            return None;
        }
        let (mut table, mut writable) = (root, true);
        for level in (0..4).rev() {
            let shift = 12 + 9 * level;
            let index = address >> shift & 511;
            let entry: u64 = self.ram.read_obj(GuestAddress(table.checked_add(8 * index)?)).ok()?;
            if entry & PRESENT == 0 {
                return None;
            }
            writable &= entry & WRITE != 0;
            if level == 0 || (level < 3 && entry & LARGE != 0) {
                let inside = address & ((1 << shift) - 1);
                let physical = (entry & ADDRESS & !((1 << shift) - 1)) + inside;
                return Some(Translation { physical, writable, rest: (1 << shift) - inside });
            }
            table = entry & ADDRESS;
        }
        None
    }

    /// Reads as much as there is, up to the first byte that isn't mapped.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let Some(at) = address.checked_add(bytes.len() as u64) else { break };
            let Some(place) = self.translate(at) else { break };
            let start = bytes.len();
            bytes.resize(start + (length - start).min(place.rest as usize), 0);
            if self.ram.read_slice(&mut bytes[start..], GuestAddress(place.physical)).is_err() {
                bytes.truncate(start);
                break;
            }
        }
        bytes
    }

    /// Reads words, all or none.
    pub fn words<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
        let bytes = self.read(address, 8 * N);
        let (words, _) = bytes.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        words.try_into().ok()
    }

    /// Writes, all or nothing. A program's pages that it can't write are left alone: what they hold may belong to others too.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let pieces = self.pieces(address, bytes.len())?;
        for (range, physical) in pieces {
            let at = address + range.start as u64;
            self.ram.write_slice(&bytes[range], GuestAddress(physical)).map_err(|_| MemoryError::NotMapped(at))?;
        }
        Ok(())
    }

    /// The parts of a range that lie on one page each, with their physical addresses.
    fn pieces(&self, address: u64, length: usize) -> Result<Vec<(Range<usize>, u64)>, MemoryError> {
        let (mut pieces, mut done) = (Vec::new(), 0);
        while done < length {
            let at = address.checked_add(done as u64).ok_or(MemoryError::NotMapped(address))?;
            let place = self.translate(at).ok_or(MemoryError::NotMapped(at))?;
            if !place.writable && at < USER_HALF {
                return Err(MemoryError::ReadOnly(at));
            }
            let end = length.min(done.saturating_add(place.rest as usize));
            if !self.ram.check_range(GuestAddress(place.physical), end - done) {
                return Err(MemoryError::NotMapped(at));
            }
            pieces.push((done..end, place.physical));
            done = end;
        }
        Ok(pieces)
    }
}

use vm_memory::GuestMemoryBackend;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: u64 = 0x1000;
    const SIZE: usize = 8 << 20;

    /// 0x40_1000 -> 0x9000 read-only, 0x40_2000 -> 0xb000 writable, 0x60_0000: 2 MiB at 0x20_0000, kernel page at -4 KiB.
    fn ram() -> Ram {
        let ram = Ram::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
        let put = |table: u64, index: u64, entry: u64| ram.write_obj(entry, GuestAddress(table + 8 * index)).unwrap();
        put(ROOT, 0, 0x2000 | 7);
        put(0x2000, 0, 0x3000 | 7);
        put(0x3000, 2, 0x4000 | 7);
        put(0x4000, 1, 0x9000 | 5);
        put(0x4000, 2, 0xb000 | 7);
        put(0x3000, 3, 0x20_0000 | 7 | LARGE);
        put(ROOT, 511, 0x5000 | 3);
        put(0x5000, 511, 0x6000 | 3);
        put(0x6000, 511, 0x7000 | 3);
        put(0x7000, 511, 0xc000 | 1);
        ram
    }

    #[test]
    fn small_and_large_pages_are_found() {
        let ram = ram();
        let space = Space::new(&ram, ROOT | 0x18);
        let place = |address| space.translate(address).map(|place| (place.physical, place.writable, place.rest));
        assert_eq!(place(0x40_1010), Some((0x9010, false, 0xff0)));
        assert_eq!(place(0x40_2fff), Some((0xbfff, true, 1)));
        assert_eq!(place(0x71_2345), Some((0x31_2345, true, 0x20_0000 - 0x11_2345)));
        assert_eq!(place(!0), Some((0xcfff, false, 1)));
        assert_eq!((place(0x40_3000), place(USER_HALF), place(1 << 46)), (None, None, None));
    }

    #[test]
    fn reads_end_where_the_mapping_does_and_writes_are_whole() {
        let ram = ram();
        let space = Space::new(&ram, ROOT);
        assert_eq!(space.read(0x40_2ff0, 64).len(), 16);
        assert_eq!(space.write(0x40_2ffc, &[1; 8]), Err(MemoryError::NotMapped(0x40_3000)));
        assert_eq!(space.read(0x40_2ffc, 4), [0; 4], "nothing was written");
        space.write(0x40_2ff8, &[7; 8]).unwrap();
        assert_eq!(space.words::<1>(0x40_2ff8), Some([0x0707_0707_0707_0707]));
        assert_eq!(space.write(0x40_1000, &[1]), Err(MemoryError::ReadOnly(0x40_1000)));
        space.write(!0xfff, &[1]).unwrap();
        assert_eq!(space.read(!0, 2).len(), 1, "the address space has an end");
    }

    proptest! {
        #[test]
        fn tables_that_lie_do_no_harm(entries in prop::collection::vec((0..SIZE as u64 / 8, any::<u64>()), 0..64), address: u64, root: u64) {
            let ram = ram();
            for (place, entry) in entries {
                ram.write_obj(entry, GuestAddress(8 * place)).unwrap();
            }
            for root in [ROOT, root] {
                let space = Space::new(&ram, root);
                for address in [address, 0x40_1000, !0xff, address & (USER_HALF - 1)] {
                    prop_assert!(space.read(address, 5000).len() <= 5000);
                    let _ = space.write(address, &[0; 300]);
                }
            }
        }
    }
}
