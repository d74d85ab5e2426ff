//! Anonymous memory that processes share (`MAP_SHARED | MAP_ANONYMOUS`): pages made on first touch, kept until the last
//! mapping goes.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::fmt;

use crate::mm::PhysAddr;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::vma::{PageSource, SourceFrame};
use crate::sync::SpinLock;

/// The pages of one such mapping. Holds one reference to each frame.
pub struct SharedMemory {
    pages: u64,
    frames: SpinLock<BTreeMap<u64, PhysAddr>>,
}

impl SharedMemory {
    /// `pages` pages of zeroes.
    pub fn new(pages: u64) -> Arc<Self> {
        Arc::new(Self { pages, frames: SpinLock::new(BTreeMap::new()) })
    }
}

impl PageSource for SharedMemory {
    fn frame(&self, page: u64) -> Result<SourceFrame, OutOfMemory> {
        if page >= self.pages {
            return Ok(SourceFrame::BeyondEnd);
        }
        if let Some(f) = self.frames.lock().get(&page) {
            return Ok(SourceFrame::Kept(*f));
        }
        let new = frame::alloc_zeroed()?;
        let kept = *self.frames.lock().entry(page).or_insert(new);
        if kept != new {
            frame::put(new); // another process was quicker
        }
        Ok(SourceFrame::Kept(kept))
    }

    fn frame_if_ready(&self, page: u64) -> Option<PhysAddr> {
        self.frames.lock().get(&page).copied()
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/dev/zero (deleted)")
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        for f in core::mem::take(&mut *self.frames.lock()).into_values() {
            frame::put(f);
        }
    }
}
