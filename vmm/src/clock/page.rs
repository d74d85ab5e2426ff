//! The guest's clock page in the VMM's hands.
//!
//! Where it lies is the guest's word: it must be pages of the guest's memory in one piece, and what stands in it is checked before it is
//! used. A guest that lies loses its own clock and nothing else.

use std::fmt;
use std::ptr::NonNull;

use vcpu_sched::clock::page::{ALIGN, BYTES, ClockPage};
use vcpu_sched::directory::{Entry, EntryKind};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::Ram;

/// A page of guest memory, as a clock page.
pub struct GuestPage {
    page: NonNull<ClockPage>,
    /// Keeps the mapping.
    _ram: Ram,
}

// SAFETY: the page is nothing but atomic words, in a mapping that lives as long as this.
unsafe impl Send for GuestPage {}
// SAFETY: as for Send.
unsafe impl Sync for GuestPage {}

impl fmt::Debug for GuestPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GuestPage").field(&self.page).finish()
    }
}

impl GuestPage {
    /// The page that a directory's entry names; `None` if it names another thing, or no page of the guest's memory.
    pub fn open(ram: &Ram, entry: &Entry) -> Option<Self> {
        let fits = entry.kind == EntryKind::Clock as u32
            && entry.len == BYTES as u64
            && entry.address.is_multiple_of(ALIGN as u64);
        // A slice lies in one region, and so does the page in one mapping.
        let slice = fits.then(|| ram.get_slice(GuestAddress(entry.address), BYTES).ok())??;
        let page = NonNull::new(slice.ptr_guard_mut().as_ptr().cast::<ClockPage>()).filter(|page| page.is_aligned())?;
        Some(Self { page, _ram: ram.clone() })
    }

    /// The page.
    pub fn get(&self) -> &ClockPage {
        // SAFETY: aligned, a whole page inside of a mapping that `_ram` keeps, and all its fields are atomic, so that the
        // guest may write it at any time.
        unsafe { self.page.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn only_a_page_of_guest_memory_is_taken() {
        let ram = memory::allocate(16 << 20, 46).unwrap();
        let good = Entry { kind: EntryKind::Clock as u32, index: 0, address: 0x20_0000, len: BYTES as u64, extra: 0 };
        assert!(GuestPage::open(&ram, &good).is_some());
        for bad in [
            Entry { kind: EntryKind::Tasks as u32, ..good },
            Entry { len: BYTES as u64 - 1, ..good },
            Entry { address: 0x20_0008, ..good },
            Entry { address: 16 << 20, ..good },
            Entry { address: (16 << 20) - 4096, ..good },
            Entry { address: u64::MAX - 4095, ..good },
        ] {
            assert!(GuestPage::open(&ram, &bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_page_of_anything_is_no_clock_and_no_panic() {
        let ram = memory::allocate(16 << 20, 46).unwrap();
        let entry = Entry { kind: EntryKind::Clock as u32, index: 0, address: 0x20_0000, len: BYTES as u64, extra: 0 };
        let page = GuestPage::open(&ram, &entry).unwrap();
        for byte in [0u8, 0x55, 0xff] {
            vm_memory::Bytes::write_slice(&ram, &[byte; BYTES], GuestAddress(0x20_0000)).unwrap();
            assert!(page.get().checked().is_err());
        }
    }
}
