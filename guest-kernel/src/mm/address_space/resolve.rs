//! Faults: from an access that found no entry, or one too narrow, to the entry that allows it.
//!
//! `mm::fault` and `mm::user` call it by way of [`AddressSpace::resolve`]. Invariants as in the parent module: under the
//! space's lock, and a fault only ever widens what other CPUs may hold, but for copy-on-write, which flushes.

use core::sync::atomic::Ordering;

use super::AddressSpace;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::PAGE_SIZE;
use crate::mm::page_table::{self, Entry, Flags, Table, index};
use crate::mm::shootdown::Shootdown;
use crate::mm::vma::{Backing, PageSource, Prot, SourceFrame, Vma};
use crate::mm::{page_down, user};

/// Pages mapped around a fault in a file, where they need no copy.
const FAULT_AROUND: u64 = 16;

/// What an access wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Execute,
}

/// Why a fault can't be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultError {
    /// Nothing is mapped there (SEGV_MAPERR).
    NotMapped,
    /// Mapped, without that right (SEGV_ACCERR).
    Denied,
    /// Beyond the end of the mapped object (SIGBUS).
    BeyondEnd,
    /// No frame left.
    OutOfMemory,
}

impl From<OutOfMemory> for FaultError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl AddressSpace {
    /// Resolves a fault of the current task. `top` is the task's own top-level table.
    ///
    /// # Errors
    /// [`FaultError`]: the access is not allowed, or there is no memory.
    pub fn resolve(&self, top: &Table, addr: u64, access: Access) -> Result<(), FaultError> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let vma = inner
            .vmas
            .range_mut(..=addr)
            .next_back()
            .map(|(_, v)| v)
            .filter(|v| addr < v.end)
            .ok_or(FaultError::NotMapped)?;
        let allowed = match access {
            Access::Read => vma.prot.intersects(Prot::READ | Prot::WRITE | Prot::EXEC),
            Access::Write => vma.prot.contains(Prot::WRITE),
            Access::Execute => vma.prot.contains(Prot::EXEC),
        };
        if !allowed {
            return Err(FaultError::Denied);
        }
        let page = page_down(addr);
        let table = page_table::walk_create(self.master, addr, &mut inner.tables)?;
        self.sync_top(top, addr);
        let i = index(addr, 1);
        let old = table.get(i);
        if old.has_frame() {
            return self.resolve_present(vma, table, i, page, access);
        }
        let flags = rights(vma.prot);
        match &vma.backing {
            Backing::Anonymous => {
                vma.touch(page, page + PAGE_SIZE);
                table.set(i, Entry::new(frame::alloc_zeroed()?, flags));
                self.resident.fetch_add(1, Ordering::Relaxed);
            }
            Backing::Shared(source) => {
                let source_page = vma.source_page(page);
                let SourceFrame::Kept(f) = source.frame(source_page)? else { return Err(FaultError::BeyondEnd) };
                frame::get(f);
                vma.touch(page, page + PAGE_SIZE);
                table.set(i, Entry::new(f, flags));
                self.resident.fetch_add(1, Ordering::Relaxed);
            }
            Backing::Private(source) => {
                let source = source.clone();
                let SourceFrame::Kept(f) = source.frame(vma.source_page(page))? else {
                    return Err(FaultError::BeyondEnd);
                };
                if access == Access::Write {
                    let copy = frame::alloc()?;
                    user::copy_frame(copy, f);
                    vma.touch(page, page + PAGE_SIZE);
                    table.set(i, Entry::new(copy, flags));
                    self.resident.fetch_add(1, Ordering::Relaxed);
                } else {
                    frame::get(f);
                    vma.touch(page, page + PAGE_SIZE);
                    table.set(i, Entry::new(f, flags - Flags::WRITE));
                    let more = self.map_around(vma, &*source, table, page, flags - Flags::WRITE);
                    self.resident.fetch_add(1 + more, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Maps the neighbours of a file page that was just read, where their frames are at hand.
    fn map_around(&self, vma: &mut Vma, source: &dyn PageSource, table: &Table, page: u64, flags: Flags) -> u32 {
        let window = page & !(FAULT_AROUND * PAGE_SIZE - 1);
        let (low, high) = (window.max(vma.start), (window + FAULT_AROUND * PAGE_SIZE).min(vma.end));
        let mut added = 0;
        let mut at = low;
        while at < high {
            if !table.get(index(at, 1)).has_frame()
                && let Some(f) = source.frame_if_ready(vma.source_page(at))
            {
                frame::get(f);
                table.set(index(at, 1), Entry::new(f, flags));
                added += 1;
            }
            at += PAGE_SIZE;
        }
        vma.touch(low, high);
        added
    }

    /// A fault on an entry that has a frame: copy-on-write, a hidden page, rights that were widened since, or another thread
    /// was quicker.
    fn resolve_present(&self, vma: &Vma, table: &Table, i: usize, page: u64, access: Access) -> Result<(), FaultError> {
        let old = table.get(i);
        let mut flags = rights(vma.prot);
        let shared = matches!(vma.backing, Backing::Shared(_));
        if access != Access::Write {
            if !shared && !old.is_writable() {
                flags -= Flags::WRITE;
            }
            // Only widens: no other CPU can hold more than this.
            table.set(i, Entry::new(old.frame(), flags));
            return Ok(());
        }
        if old.is_present() && old.is_writable() {
            return Ok(());
        }
        if shared || frame::refs(old.frame()) == 1 {
            table.set(i, Entry::new(old.frame(), flags));
            return Ok(());
        }
        let copy = frame::alloc()?;
        user::copy_frame(copy, old.frame());
        table.set(i, Entry::new(copy, flags));
        // Other threads may still read the old frame.
        let mut flush = Shootdown::new(self);
        flush.add(page, Some(old.frame()));
        flush.flush();
        Ok(())
    }
}

/// Entry bits of a mapping's rights.
pub(super) fn rights(prot: Prot) -> Flags {
    let mut f = Flags::PRESENT | Flags::USER | Flags::ACCESSED;
    if prot.contains(Prot::WRITE) {
        f |= Flags::WRITE | Flags::DIRTY;
    }
    if !prot.contains(Prot::EXEC) {
        f |= Flags::NO_EXECUTE;
    }
    f
}
