//! The enclave's memory in guest RAM, as the agent works on it.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use vcpu_sched::delegation::layout::{LayoutError, Region};
use vcpu_sched::directory::EntryKind;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::guestview::{GuestViewError, Reader};
use crate::memory::Ram;

/// Largest region that is worked on: that of 1,024 CPUs with all that our kernel gives them is a fraction of it.
const MAX_BYTES: u64 = 64 << 20;

/// Why there is no enclave.
#[derive(Debug, thiserror::Error)]
pub enum EnclaveError {
    /// The guest shows nothing.
    #[error(transparent)]
    View(#[from] GuestViewError),
    /// It has none.
    #[error("the guest's kernel has no enclave")]
    None,
    /// It lies somewhere else than in RAM, in one piece and aligned.
    #[error("the guest says that its enclave is at {0:#x}, where none can be")]
    Place(u64),
    /// It is none.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// A mapping that was checked once. The memory lives as long as the RAM, of which this holds a reference.
pub struct Mapped {
    _ram: Ram,
    words: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: it is a reference to atomics in memory that is mapped for as long as `_ram` lives.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("words", &self.len).finish_non_exhaustive()
    }
}

impl Mapped {
    /// The guest's first enclave.
    pub fn find(reader: &Reader, ram: &Ram) -> Result<Self, EnclaveError> {
        let entries = reader.entries(EntryKind::Enclave)?;
        let entry = entries.first().ok_or(EnclaveError::None)?;
        let wrong = || EnclaveError::Place(entry.address);
        if entry.len > MAX_BYTES || entry.address % 8 != 0 {
            return Err(wrong());
        }
        let slice = ram.get_slice(GuestAddress(entry.address), entry.len as usize).map_err(|_| wrong())?;
        let words = NonNull::new(slice.ptr_guard_mut().as_ptr().cast::<AtomicU64>()).ok_or_else(wrong)?;
        if !words.is_aligned() {
            return Err(wrong());
        }
        Ok(Self { _ram: ram.clone(), words, len: entry.len as usize / 8 })
    }

    /// The region, as its header has it now; checked.
    pub fn region(&self) -> Result<Region<'_>, EnclaveError> {
        // SAFETY: `find` has checked that so many bytes of RAM lie there in one piece, and aligned; any bytes are values of
        // atomics, and guest and VMM use this memory as such only.
        let words = unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) };
        Ok(Region::open(words)?)
    }
}
