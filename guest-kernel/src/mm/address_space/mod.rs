//! A process's user half: its mappings and its page tables. `mappings` is the table of ranges, `resolve` answers faults; here is
//! what changes both, for mmap and its kin, fork and exec.
//!
//! Each thread's top-level table holds copies of `master`'s user entries; an entry that a thread lacks is copied at its next
//! fault there (only absent entries change, so nothing must be flushed). Invariants:
//! - Page-table entries below `master` change only under `inner`.
//! - A present or hidden entry owns one reference to its frame.
//! - Narrowing goes through a [`Shootdown`].
//! - A writable entry of a private mapping points to a frame that nobody else uses.

mod mappings;
mod resolve;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::{PAGE_SIZE, USER_END};
use crate::mm::page_table::{self, Entry, Flags, Table, index};
use crate::mm::shootdown::Shootdown;
use crate::mm::vma::{Backing, Prot, Vma};
use crate::mm::{PhysAddr, page_down, page_up};
use crate::sync::{Mutex, MutexGuard};

pub use mappings::{Mappings, VDSO_START};
use resolve::rights;
pub use resolve::{Access, FaultError};

/// Lowest address a program may map (Linux: vm.mmap_min_addr), so that a null pointer always faults.
pub const USER_START: u64 = 0x1_0000;

/// Why a mapping call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// Outside the user half, empty, or overflowing.
    BadRange,
    /// A hole where the call needs a mapping.
    NotMapped,
    /// No gap of that size, or no memory.
    NoMemory,
}

impl From<OutOfMemory> for MapError {
    fn from(_: OutOfMemory) -> Self {
        Self::NoMemory
    }
}

/// One user half.
pub struct AddressSpace {
    inner: Mutex<Mappings>,
    master: PhysAddr,
    /// Narrowings so far; see `shootdown`.
    pub generation: AtomicU64,
    /// Tasks that run in it.
    pub threads: AtomicU32,
    /// More than one task has had it at a time since it was made.
    pub shared_ever: AtomicBool,
    /// Pages with a frame.
    pub resident: AtomicU32,
}

impl AddressSpace {
    /// An empty user half.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new() -> Result<Arc<Self>, OutOfMemory> {
        Ok(Arc::new(Self {
            inner: Mutex::new(Mappings::new()),
            master: frame::alloc_table()?,
            generation: AtomicU64::new(1),
            threads: AtomicU32::new(0),
            shared_ever: AtomicBool::new(false),
            resident: AtomicU32::new(0),
        }))
    }

    /// Access to the mappings. May sleep.
    pub fn lock(&self) -> MutexGuard<'_, Mappings> {
        self.inner.lock()
    }

    fn top(&self) -> &'static Table {
        // SAFETY: `master` is this space's table until it drops, and page-table users hold the space.
        unsafe { Table::at(self.master) }
    }

    /// Fills a thread's empty user half with what is there now.
    pub fn install(&self, top: &Table) {
        for slot in self.lock().tables.iter().filter_map(|t| t.slot_in(self.master)) {
            top.set(slot, self.top().get(slot));
        }
    }

    /// Empties a thread's user half. The thread flushes its own TLB.
    pub fn uninstall(&self, top: &Table) {
        for slot in self.lock().tables.iter().filter_map(|t| t.slot_in(self.master)) {
            top.set(slot, Entry::NONE);
        }
    }

    /// Copies the top-level entry for `addr` into a thread's table if that lacks it. Returns whether it did.
    pub fn sync_top(&self, top: &Table, addr: u64) -> bool {
        let slot = index(addr, 4);
        let (mine, theirs) = (top.get(slot), self.top().get(slot));
        if mine != theirs && theirs.is_present() && !mine.is_present() {
            top.set(slot, theirs);
            return true;
        }
        false
    }

    /// Maps a range. With `fixed` at exactly `addr`, replacing what is there; else near `addr` if it is free, else anywhere.
    ///
    /// # Errors
    /// [`MapError`].
    #[expect(clippy::too_many_arguments, reason = "mmap has as many")]
    pub fn map(
        &self,
        addr: u64,
        len: u64,
        prot: Prot,
        backing: Backing,
        offset: u64,
        fixed: bool,
        name: &'static str,
    ) -> Result<u64, MapError> {
        let len = page_up(len).filter(|l| *l != 0).ok_or(MapError::BadRange)?;
        let mut inner = self.lock();
        inner.room_for_more()?;
        let start = if fixed {
            let end = addr.checked_add(len).filter(|e| *e <= USER_END).ok_or(MapError::BadRange)?;
            if !addr.is_multiple_of(PAGE_SIZE) || addr < USER_START {
                return Err(MapError::BadRange);
            }
            self.unmap_locked(&mut inner, addr, end)?;
            addr
        } else {
            inner.find_gap(page_down(addr), len).ok_or(MapError::NoMemory)?
        };
        inner.insert(Vma::new(start, start + len, prot, backing, offset, name));
        Ok(start)
    }

    /// Removes everything in `[start, start + len)`.
    ///
    /// # Errors
    /// [`MapError::BadRange`].
    pub fn unmap(&self, start: u64, len: u64) -> Result<(), MapError> {
        let end = checked_range(start, len)?;
        self.unmap_locked(&mut self.lock(), start, end)
    }

    fn unmap_locked(&self, inner: &mut Mappings, start: u64, end: u64) -> Result<(), MapError> {
        if inner.find(start).is_some_and(|v| v.start < start && v.end > end) {
            inner.room_for_more()?; // a hole makes two of one
        }
        inner.split_at(start);
        inner.split_at(end);
        let mut flush = Shootdown::new(self);
        inner.search_from = inner.search_from.max(end.min(inner.mmap_top));
        while let Some((&key, _)) = inner.vmas.range(start..end).next() {
            if let Some(vma) = inner.vmas.remove(&key) {
                self.zap(&vma, vma.start, vma.end, &mut flush);
            }
        }
        flush.flush();
        Ok(())
    }

    /// Removes the pages of a part of a mapping.
    fn zap(&self, vma: &Vma, start: u64, end: u64, flush: &mut Shootdown<'_>) {
        let (low, high) = vma.touched_in(start, end);
        let mut removed = 0;
        for_each_entry(self.top(), low, high, |table, i, page, e| {
            table.swap(i, Entry::NONE);
            removed += 1;
            flush.add(page, Some(e.frame()));
        });
        self.resident.fetch_sub(removed, Ordering::Relaxed);
    }

    /// Drops the pages of a range but keeps the mappings (MADV_DONTNEED).
    ///
    /// # Errors
    /// [`MapError::BadRange`].
    pub fn discard(&self, start: u64, len: u64) -> Result<(), MapError> {
        let end = checked_range(start, len)?;
        let inner = self.lock();
        let mut flush = Shootdown::new(self);
        for vma in inner.overlapping(start, end) {
            self.zap(vma, start, end, &mut flush);
        }
        flush.flush();
        Ok(())
    }

    /// Changes the rights of a fully mapped range.
    ///
    /// # Errors
    /// [`MapError::NotMapped`] at the first hole; what lies before it is changed, as on Linux.
    pub fn protect(&self, start: u64, len: u64, prot: Prot) -> Result<(), MapError> {
        let end = checked_range(start, len)?;
        let mut inner = self.lock();
        inner.room_for_more()?;
        inner.split_at(start);
        inner.split_at(end);
        let mut flush = Shootdown::new(self);
        let mut at = start;
        while at < end {
            let Some(vma) = inner.vmas.get_mut(&at) else {
                flush.flush();
                return Err(MapError::NotMapped);
            };
            let old = vma.prot;
            vma.prot = prot;
            let (low, high) = vma.touched_in(at, vma.end);
            at = vma.end;
            if old == prot {
                continue;
            }
            for_each_entry(self.top(), low, high, |table, i, page, e| {
                let new = restricted(e, prot);
                if new != e {
                    table.swap(i, new);
                    flush.add(page, None);
                }
            });
        }
        inner.merge_around(start);
        inner.merge_around(end);
        flush.flush();
        Ok(())
    }

    /// Resizes or moves a mapping (mremap).
    ///
    /// # Errors
    /// [`MapError`].
    pub fn remap(
        &self,
        old: u64,
        old_len: u64,
        new_len: u64,
        may_move: bool,
        fixed: Option<u64>,
    ) -> Result<u64, MapError> {
        let old_end = checked_range(old, old_len)?;
        let new_len = page_up(new_len).filter(|l| *l != 0).ok_or(MapError::BadRange)?;
        let old_len = old_end - old;
        let mut inner = self.lock();
        let covered = inner.find(old).is_some_and(|v| v.end >= old_end);
        if !covered {
            return Err(MapError::NotMapped);
        }
        if fixed.is_none() {
            if new_len <= old_len {
                if new_len < old_len {
                    self.unmap_locked(&mut inner, old + new_len, old_end)?;
                }
                return Ok(old);
            }
            let ends_here = inner.find(old).is_some_and(|v| v.end == old_end);
            let grown_end = old.checked_add(new_len).filter(|e| *e <= USER_END).ok_or(MapError::BadRange)?;
            if ends_here && inner.overlapping(old_end, grown_end).next().is_none() {
                inner.split_at(old);
                if let Some(v) = inner.vmas.get_mut(&old) {
                    v.end = grown_end;
                }
                inner.merge_around(old);
                return Ok(old);
            }
            if !may_move {
                return Err(MapError::NoMemory);
            }
        }
        let new = match fixed {
            Some(at) => {
                let end = checked_range(at, new_len)?;
                if at < USER_START || (at < old_end && old < end) {
                    return Err(MapError::BadRange);
                }
                self.unmap_locked(&mut inner, at, end)?;
                at
            }
            None => inner.find_gap(0, new_len).ok_or(MapError::NoMemory)?,
        };
        inner.split_at(old);
        inner.split_at(old_end);
        let Some(vma) = inner.vmas.remove(&old) else { return Err(MapError::NotMapped) };
        inner.search_from = inner.search_from.max(old_end.min(inner.mmap_top));
        let mut moved = Vma::new(new, new + new_len, vma.prot, vma.backing.clone(), vma.offset, vma.name);
        let mut flush = Shootdown::new(self);
        let (low, high) = vma.touched_in(old, old + old_len.min(new_len));
        let mut failed = None;
        for_each_entry(self.top(), low, high, |table, i, page, e| {
            let to = new + (page - old);
            match page_table::walk_create(self.master, to, &mut inner.tables) {
                Ok(dst) => {
                    table.swap(i, Entry::NONE);
                    dst.set(index(to, 1), e);
                    moved.touch(to, to + PAGE_SIZE);
                    flush.add(page, None);
                }
                Err(e) => failed = Some(e),
            }
        });
        self.zap(&vma, old, old_end, &mut flush);
        inner.insert(moved);
        flush.flush();
        failed.map_or(Ok(new), |e| Err(e.into()))
    }

    /// A copy of the whole user half; private pages become shared until one side writes (fork).
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn fork(&self) -> Result<Arc<Self>, OutOfMemory> {
        let child = Self::new()?;
        let inner = self.lock();
        let mut theirs = child.lock();
        (theirs.brk, theirs.brk_start) = (inner.brk, inner.brk_start);
        (theirs.mmap_top, theirs.search_from) = (inner.mmap_top, inner.search_from);
        let mut flush = Shootdown::new(self);
        let mut copied = 0;
        for vma in inner.vmas.values() {
            let shared = matches!(vma.backing, Backing::Shared(_));
            let mut result = Ok(());
            let mut current: Option<(u64, &'static Table)> = None;
            for_each_entry(
                self.top(),
                vma.touched_low.max(vma.start),
                vma.touched_high.min(vma.end),
                |table, i, page, e| {
                    if result.is_err() {
                        return;
                    }
                    let dst = match current {
                        Some((key, t)) if key == page >> 21 => t,
                        _ => match page_table::walk_create(child.master, page, &mut theirs.tables) {
                            Ok(t) => {
                                current = Some((page >> 21, t));
                                t
                            }
                            Err(e) => {
                                result = Err(e);
                                return;
                            }
                        },
                    };
                    let mut copy = e;
                    if !shared && e.is_writable() {
                        copy = Entry(e.0 & !Flags::WRITE.bits());
                        table.swap(i, copy);
                        flush.add(page, None);
                    }
                    frame::get(e.frame());
                    dst.set(i, copy);
                    copied += 1;
                },
            );
            theirs.vmas.insert(vma.start, vma.clone());
            result?;
        }
        flush.flush();
        drop(theirs);
        child.resident.store(copied, Ordering::Relaxed);
        Ok(child)
    }

    /// The frame behind a user page, for access through the direct map. `None` if it has none now.
    pub fn lookup(&self, addr: u64) -> Option<Entry> {
        let table = page_table::walk(self.top(), addr).ok()?;
        Some(table.get(index(addr, 1))).filter(|e| e.is_present())
    }

    /// Sets the end of the heap if it can be had; returns the end that holds (brk).
    pub fn set_brk(&self, want: u64) -> u64 {
        let mut inner = self.lock();
        let (old_end, Some(new_end)) = (page_up(inner.brk).unwrap_or(inner.brk), page_up(want)) else {
            return inner.brk;
        };
        if want < inner.brk_start || new_end > USER_END {
            return inner.brk;
        }
        if new_end > old_end {
            if inner.overlapping(old_end, new_end).next().is_some() {
                return inner.brk;
            }
            inner.insert(Vma::new(old_end, new_end, Prot::READ | Prot::WRITE, Backing::Anonymous, 0, "[heap]"));
        } else if new_end < old_end && self.unmap_locked(&mut inner, new_end, old_end).is_err() {
            return inner.brk;
        }
        inner.brk = want;
        want
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // No task has it loaded any more, so nothing is to be flushed on other CPUs.
        let inner = self.inner.get_mut();
        // SAFETY: `master` lives until the end of this function.
        let top = unsafe { Table::at(self.master) };
        while let Some((_, vma)) = inner.vmas.pop_first() {
            let (low, high) = vma.touched_in(vma.start, vma.end);
            for_each_entry(top, low, high, |table, i, _, e| {
                table.set(i, Entry::NONE);
                frame::put(e.frame());
            });
        }
        page_table::free_tables(&mut inner.tables);
        frame::put_table(self.master);
    }
}

fn checked_range(start: u64, len: u64) -> Result<u64, MapError> {
    if !start.is_multiple_of(PAGE_SIZE) {
        return Err(MapError::BadRange);
    }
    let len = page_up(len).filter(|l| *l != 0).ok_or(MapError::BadRange)?;
    start.checked_add(len).filter(|e| *e <= USER_END).ok_or(MapError::BadRange)
}

/// The entry narrowed to new rights. Never wider in writes: those come by a fault, which knows about sharing.
fn restricted(e: Entry, prot: Prot) -> Entry {
    if prot.is_empty() {
        return Entry::new(e.frame(), Flags::HIDDEN);
    }
    let mut flags = rights(prot);
    if !e.is_writable() {
        flags -= Flags::WRITE;
    }
    Entry::new(e.frame(), flags)
}

/// Visits every entry with a frame in `[low, high)`.
fn for_each_entry(top: &'static Table, low: u64, high: u64, mut f: impl FnMut(&'static Table, usize, u64, Entry)) {
    let mut at = low;
    while at < high {
        let table = match page_table::walk(top, at) {
            Ok(t) => t,
            Err(skip) => {
                at = at.saturating_add(skip);
                continue;
            }
        };
        let end = high.min((at | 0x1f_ffff) + 1);
        while at < end {
            let i = index(at, 1);
            let e = table.get(i);
            if e.has_frame() {
                f(table, i, at, e);
            }
            at += PAGE_SIZE;
        }
    }
}
