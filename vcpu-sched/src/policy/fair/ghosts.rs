//! What sleeping tasks still owe: the ghosts of [`Fair`](super::Fair), which alone uses this.
//!
//! A ghost is the weight and virtual time of a task that blocked while it was ahead of the average. It holds no handle
//! of the task, which may wake, move and end meanwhile. The invariants: ghosts leave by rising virtual time, or when
//! their task comes back; and a [`GhostId`] whose ghost has left never finds another one.

use alloc::vec::Vec;

use crate::policy::heap::before;

/// Names a ghost of one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GhostId {
    pub(super) slot: u32,
    pub(super) stamp: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ghost {
    pub(super) vruntime: u64,
    pub(super) weight: u32,
    slot: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Index in the heap, or the next free slot.
    at: u32,
    /// Counts the ghosts that had this slot.
    stamp: u32,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Ghosts {
    /// A binary heap by virtual time.
    heap: Vec<Ghost>,
    slots: Vec<Slot>,
    free: u32,
}

const NO_SLOT: u32 = u32::MAX;

impl Ghosts {
    pub(super) const fn new() -> Self {
        Self { heap: Vec::new(), slots: Vec::new(), free: NO_SLOT }
    }

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    pub(super) fn first(&self) -> Option<Ghost> {
        self.heap.first().copied()
    }

    pub(super) fn add(&mut self, vruntime: u64, weight: u32) -> GhostId {
        let at = self.heap.len() as u32;
        let slot = self.free;
        let (slot, stamp) = match self.slots.get_mut(slot as usize) {
            Some(free) => {
                self.free = free.at;
                free.at = at;
                (slot, free.stamp)
            }
            None => {
                self.slots.push(Slot { at, stamp: 0 });
                (self.slots.len() as u32 - 1, 0)
            }
        };
        self.heap.push(Ghost { vruntime, weight, slot });
        self.rise(at as usize);
        GhostId { slot, stamp }
    }

    /// Takes out a ghost, if it is still there.
    pub(super) fn take(&mut self, id: GhostId) -> Option<Ghost> {
        let slot = self.slots.get(id.slot as usize).filter(|slot| slot.stamp == id.stamp)?;
        self.remove_at(slot.at as usize)
    }

    pub(super) fn pop(&mut self) -> Option<Ghost> {
        self.remove_at(0)
    }

    fn remove_at(&mut self, at: usize) -> Option<Ghost> {
        if at >= self.heap.len() {
            return None;
        }
        let ghost = self.heap.swap_remove(at);
        if let Some(slot) = self.slots.get_mut(ghost.slot as usize) {
            *slot = Slot { at: self.free, stamp: slot.stamp.wrapping_add(1) };
            self.free = ghost.slot;
        }
        if at < self.heap.len() && !self.rise(at) {
            self.sink(at);
        }
        Some(ghost)
    }

    fn note(&mut self, at: usize) {
        if let Some(ghost) = self.heap.get(at)
            && let Some(slot) = self.slots.get_mut(ghost.slot as usize)
        {
            slot.at = at as u32;
        }
    }

    fn is_before(&self, a: usize, b: usize) -> bool {
        match (self.heap.get(a), self.heap.get(b)) {
            (Some(a), Some(b)) => before(a.vruntime, b.vruntime),
            _ => false,
        }
    }

    fn rise(&mut self, mut at: usize) -> bool {
        let start = at;
        while at > 0 && self.is_before(at, (at - 1) / 2) {
            self.heap.swap(at, (at - 1) / 2);
            self.note(at);
            at = (at - 1) / 2;
        }
        self.note(at);
        at != start
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if self.is_before(child, least) {
                    least = child;
                }
            }
            if least == at {
                break;
            }
            self.heap.swap(at, least);
            self.note(at);
            at = least;
        }
        self.note(at);
    }
}
