//! The table of a process's mappings: which range is backed by what, with which rights, and where there is room.
//!
//! Only the parent module changes it, under the space's lock, and keeps the page tables in step. Invariant: mappings never
//! overlap, and neighbours that are alike are one.

use alloc::collections::BTreeMap;

use super::{MapError, USER_START};
use crate::mm::layout::USER_END;
use crate::mm::page_table::OwnedTables;
use crate::mm::vma::Vma;

/// Mappings of one space (Linux: vm.max_map_count).
const MAX_MAPPINGS: usize = 65_530;
/// Where the search for room begins: below what a program's stack may grow to.
const MMAP_TOP: u64 = USER_END - (64 << 20);
/// Where the vDSO and its data are mapped, before the search begins.
pub const VDSO_START: u64 = MMAP_TOP;

/// The mappings of one user half, and the page tables below it; lives under the space's lock.
pub struct Mappings {
    pub(super) vmas: BTreeMap<u64, Vma>,
    pub(super) tables: OwnedTables,
    /// End of the heap (`brk`) and its start.
    pub brk: u64,
    /// See `brk`.
    pub brk_start: u64,
    /// Free ranges are looked for below this address, top-down.
    pub(super) mmap_top: u64,
    /// The last search ended here, and nothing above was unmapped since: where the next one starts.
    pub(super) search_from: u64,
}

impl Mappings {
    /// None.
    pub(super) const fn new() -> Self {
        Self {
            vmas: BTreeMap::new(),
            tables: OwnedTables::new(),
            brk: 0,
            brk_start: 0,
            mmap_top: MMAP_TOP,
            search_from: MMAP_TOP,
        }
    }

    /// The mapping that contains `addr`.
    pub fn find(&self, addr: u64) -> Option<&Vma> {
        self.vmas.range(..=addr).next_back().map(|(_, v)| v).filter(|v| addr < v.end)
    }

    /// All mappings in order of address.
    pub fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.vmas.values()
    }

    /// Mappings that share an address with `[start, end)`.
    pub(super) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = &Vma> {
        let first = self.vmas.range(..=start).next_back().map_or(start, |(k, _)| *k);
        self.vmas.range(first..end.max(first)).map(|(_, v)| v).filter(move |v| v.end > start && v.start < end)
    }

    /// A program can't fill the kernel's memory with mappings.
    pub(super) fn room_for_more(&self) -> Result<(), MapError> {
        if self.vmas.len() < MAX_MAPPINGS { Ok(()) } else { Err(MapError::NoMemory) }
    }

    /// Whether something is mapped in `[start, end)`.
    pub fn occupied(&self, start: u64, end: u64) -> bool {
        self.overlapping(start, end).next().is_some()
    }

    /// Whether `[start, end)` is mapped without a hole.
    pub fn covered(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for vma in self.overlapping(start, end) {
            if vma.start > at {
                return false;
            }
            at = vma.end;
        }
        at >= end
    }

    pub(super) fn split_at(&mut self, at: u64) {
        let Some(vma) = self.vmas.range_mut(..at).next_back().map(|(_, v)| v).filter(|v| at < v.end) else { return };
        let upper = vma.split_off(at);
        self.vmas.insert(at, upper);
    }

    pub(super) fn insert(&mut self, vma: Vma) {
        let start = vma.start;
        self.vmas.insert(start, vma);
        self.merge_around(start);
    }

    /// Joins the mapping that starts at `at` with its lower neighbour if both are alike.
    pub(super) fn merge_around(&mut self, at: u64) {
        let Some(upper) = self.vmas.get(&at) else { return };
        let Some((&low_key, low)) = self.vmas.range(..at).next_back() else { return };
        if !low.can_merge(upper) {
            return;
        }
        if let (Some(upper), Some(low)) = (self.vmas.remove(&at), self.vmas.get_mut(&low_key)) {
            low.end = upper.end;
            low.touched_low = low.touched_low.min(upper.touched_low);
            low.touched_high = low.touched_high.max(upper.touched_high);
        }
    }

    /// A free range: at the hint if that is free, else the highest gap below the last one that was found, else the highest of all.
    pub(super) fn find_gap(&mut self, hint: u64, len: u64) -> Option<u64> {
        if hint >= USER_START
            && hint.checked_add(len).is_some_and(|e| e <= USER_END)
            && !self.occupied(hint, hint + len)
        {
            return Some(hint);
        }
        let start = self.gap_below(self.search_from, len).or_else(|| self.gap_below(self.mmap_top, len))?;
        self.search_from = start;
        Some(start)
    }

    fn gap_below(&self, from: u64, len: u64) -> Option<u64> {
        let mut top = from;
        for vma in self.vmas.range(..from).rev().map(|(_, v)| v) {
            if vma.end <= top && top - vma.end >= len {
                return Some(top - len);
            }
            top = top.min(vma.start);
        }
        top.checked_sub(len).filter(|s| *s >= USER_START)
    }

    /// Places the heap (exec, once).
    pub fn start_heap(&mut self, at: u64) {
        (self.brk_start, self.brk) = (at, at);
    }
}
