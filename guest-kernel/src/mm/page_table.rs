//! Page tables: entry format and the walk. Who edits which table, and under which lock, is the callers' matter
//! (`address_space` for user halves, `kernel_map` at boot, `task_block` for a task's own slot).
//!
//! Source: Intel SDM vol. 3A 4.5 (4-level paging), table 4-20.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::vec::Vec;

use super::PhysAddr;
use super::frame::{self, OutOfMemory};

bitflags::bitflags! {
    /// Bits of an entry beside the address.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u64 {
        /// The translation is valid.
        const PRESENT = 1 << 0;
        /// Writes allowed.
        const WRITE = 1 << 1;
        /// Ring 3 may use it.
        const USER = 1 << 2;
        /// Set by the CPU on use.
        const ACCESSED = 1 << 5;
        /// Set by the CPU on write.
        const DIRTY = 1 << 6;
        /// Entry of a directory that maps 2 MiB or 1 GiB itself.
        const LARGE = 1 << 7;
        /// Ours, in entries that are not present: the frame is kept, access is refused (PROT_NONE).
        const HIDDEN = 1 << 9;
        /// Instruction fetch refused.
        const NO_EXECUTE = 1 << 63;
    }
}

/// Bits 12..=51: the physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// One entry by value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Entry(pub u64);

impl Entry {
    /// The empty entry.
    pub const NONE: Self = Self(0);

    /// An entry that points to a frame.
    #[inline(always)]
    pub const fn new(frame: PhysAddr, flags: Flags) -> Self {
        Self(frame.0 | flags.bits())
    }

    /// Whether the translation is valid.
    #[inline(always)]
    pub const fn is_present(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether a frame stands behind the entry, present or hidden.
    #[inline(always)]
    pub const fn has_frame(self) -> bool {
        self.0 & (Flags::PRESENT.bits() | Flags::HIDDEN.bits()) != 0
    }

    /// Whether writes are allowed.
    #[inline(always)]
    pub const fn is_writable(self) -> bool {
        self.0 & Flags::WRITE.bits() != 0
    }

    /// The frame that the entry points to.
    #[inline(always)]
    pub const fn frame(self) -> PhysAddr {
        PhysAddr(self.0 & ADDRESS)
    }

    /// The bits beside the address.
    #[cfg(feature = "selftest")]
    pub const fn flags(self) -> Flags {
        Flags::from_bits_truncate(self.0 & !ADDRESS)
    }
}

/// A table of 512 entries in a frame. The CPU reads it and sets accessed and dirty bits at any time, hence atomics.
#[repr(transparent)]
pub struct Table([AtomicU64; 512]);

impl Table {
    /// The table in a frame.
    ///
    /// # Safety
    /// The frame holds a page table for as long as the reference is used.
    #[inline(always)]
    pub unsafe fn at(frame: PhysAddr) -> &'static Table {
        // SAFETY: the direct map maps every frame; entries are atomics, so sharing is fine.
        unsafe { &*frame.as_ptr::<Table>() }
    }

    /// Reads an entry.
    #[inline(always)]
    pub fn get(&self, index: usize) -> Entry {
        // Acquire: what the entry points to was initialised before it was stored.
        Entry(self.0[index & 511].load(Ordering::Acquire))
    }

    /// Writes an entry.
    #[inline(always)]
    pub fn set(&self, index: usize, e: Entry) {
        // Release: the table or page behind the entry is ready.
        self.0[index & 511].store(e.0, Ordering::Release);
    }

    /// Replaces an entry and returns the old one with its final accessed and dirty bits.
    #[inline(always)]
    pub fn swap(&self, index: usize, e: Entry) -> Entry {
        Entry(self.0[index & 511].swap(e.0, Ordering::AcqRel))
    }
}

/// Index of an address at a level: 4 top, 1 last.
#[inline(always)]
pub const fn index(addr: u64, level: u32) -> usize {
    (addr >> (12 + 9 * (level - 1)) & 511) as usize
}

/// A table that an address space made, with the entry that points to it.
pub struct OwnedTable {
    frame: PhysAddr,
    parent: PhysAddr,
    slot: u16,
}

impl OwnedTable {
    /// Index in the table `parent` of the entry that points here, if it is that one's child.
    pub fn slot_in(&self, parent: PhysAddr) -> Option<usize> {
        (self.parent == parent).then_some(usize::from(self.slot))
    }
}

/// The tables of one user half, in the order in which they were made: parents before children.
pub type OwnedTables = Vec<OwnedTable>;

/// Finds the last-level table for `addr` below the top-level table in `root`, making missing tables.
///
/// # Errors
/// [`OutOfMemory`]; tables made so far stay, empty.
pub fn walk_create(root: PhysAddr, addr: u64, owned: &mut OwnedTables) -> Result<&'static Table, OutOfMemory> {
    let mut frame = root;
    for level in [4, 3, 2] {
        // SAFETY: `root` is a top-level table by contract; a present entry above the last level points to a table (user
        // halves have no large pages).
        let table = unsafe { Table::at(frame) };
        let i = index(addr, level);
        let mut e = table.get(i);
        if !e.is_present() {
            // Rights are narrowed only at the last level.
            let child = frame::alloc_table()?;
            e = Entry::new(child, Flags::PRESENT | Flags::WRITE | Flags::USER);
            owned.push(OwnedTable { frame: child, parent: frame, slot: i as u16 });
            table.set(i, e);
        }
        frame = e.frame();
    }
    // SAFETY: as above; the address space owns the table until it is torn down.
    Ok(unsafe { Table::at(frame) })
}

/// Frees all tables of a user half whose last-level entries are already empty. Clears each entry on the way, so that the
/// frames are known to be zero.
pub fn free_tables(owned: &mut OwnedTables) {
    while let Some(t) = owned.pop() {
        // SAFETY: parents are freed after their children.
        unsafe { Table::at(t.parent) }.set(t.slot as usize, Entry::NONE);
        frame::put_table(t.frame);
    }
}

/// Finds the last-level table for `addr`, if there is one. On failure: how many bytes from `addr` on have no table either.
pub fn walk(top: &'static Table, addr: u64) -> Result<&'static Table, u64> {
    let mut table = top;
    for level in [4u32, 3, 2] {
        let e = table.get(index(addr, level));
        if !e.is_present() {
            let span = 1u64 << (12 + 9 * (level - 1));
            return Err(span - (addr & (span - 1)));
        }
        // SAFETY: as in `walk_create`.
        table = unsafe { Table::at(e.frame()) };
    }
    Ok(table)
}
