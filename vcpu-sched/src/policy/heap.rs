//! A heap of numbered things from which any of them can be taken. Used by the fair and the deadline class, for tasks
//! that lie on a [`Shelf`](super::shelf::Shelf), and for ghosts.
//!
//! The heap's memory holds nothing but keys and slot numbers: four children, which are compared with each other, share
//! a cache line or two, and a task is not touched when it is moved past. Keys are points on a circle of 2^64: they are
//! compared by their distance, so that virtual time may wrap. The invariants: no key is before its parent's, and
//! `places` (the shelf's, one for each slot) says of each slot in the heap at which index it is, with the heap's mark.
//! Four children a node: half the levels of two. What is moved is carried in hand until its place is found, so that
//! each level costs one store and not a swap.

use alloc::vec::Vec;

const CHILDREN: usize = 4;

/// Is `a` before `b`, if they are less than half the circle apart?
#[inline(always)]
pub(super) const fn before(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b) as i64) < 0
}

/// A slot by its key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) key: u64,
    pub(super) slot: u32,
}

/// See the module's text. `MARK` tells the places in this heap from those in others of the same shelf.
#[derive(Clone, Debug)]
pub(super) struct Heap<const MARK: u32> {
    entries: Vec<Entry>,
}

impl<const MARK: u32> Heap<MARK> {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry with the first key.
    #[inline(always)]
    pub(super) fn first(&self) -> Option<Entry> {
        self.entries.first().copied()
    }

    /// All entries in no order, but the first key first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> {
        self.entries.iter().copied()
    }

    #[inline]
    pub(super) fn push(&mut self, entry: Entry, places: &mut [u32]) {
        let at = self.entries.len();
        self.entries.push(entry);
        self.rise(at, entry, places);
    }

    #[inline]
    pub(super) fn pop(&mut self, places: &mut [u32]) -> Option<Entry> {
        let last = self.entries.pop()?;
        if self.entries.is_empty() {
            return Some(last);
        }
        self.replace_first(last, places)
    }

    /// Takes out the first and puts another one in: one way down instead of one down and one up.
    #[inline]
    pub(super) fn replace_first(&mut self, entry: Entry, places: &mut [u32]) -> Option<Entry> {
        let first = self.first()?;
        self.sink(0, entry, places);
        Some(first)
    }

    /// Takes out what is at `place`, as `places` has it; `None` if that isn't in this heap.
    pub(super) fn remove(&mut self, place: u32, places: &mut [u32]) -> Option<Entry> {
        let at = (place ^ MARK) as usize;
        let removed = *self.entries.get(at)?;
        let last = self.entries.pop()?;
        if at < self.entries.len() {
            let parent = self.entries.get(at.wrapping_sub(1) / CHILDREN);
            if at != 0 && parent.is_some_and(|parent| before(last.key, parent.key)) {
                self.rise(at, last, places);
            } else {
                self.sink(at, last, places);
            }
        }
        Some(removed)
    }

    /// Lays an entry at `at`, whose old content is forgotten.
    #[inline(always)]
    fn lay(&mut self, at: usize, entry: Entry, places: &mut [u32]) {
        #[cfg(all(test, not(loom)))]
        tests::count_move();
        if let (Some(there), Some(place)) = (self.entries.get_mut(at), places.get_mut(entry.slot as usize)) {
            *there = entry;
            *place = at as u32 | MARK;
        }
    }

    /// `entry` goes to `at` or above.
    #[inline]
    fn rise(&mut self, mut at: usize, entry: Entry, places: &mut [u32]) {
        while at > 0 {
            let above = (at - 1) / CHILDREN;
            let Some(&parent) = self.entries.get(above).filter(|parent| before(entry.key, parent.key)) else { break };
            self.lay(at, parent, places);
            at = above;
        }
        self.lay(at, entry, places);
    }

    /// `entry` goes to `at` or below.
    #[inline]
    fn sink(&mut self, mut at: usize, entry: Entry, places: &mut [u32]) {
        while let Some((below, least)) = self.least_child(at).filter(|(_, least)| before(least.key, entry.key)) {
            self.lay(at, least, places);
            at = below;
        }
        self.lay(at, entry, places);
    }

    #[inline(always)]
    fn least_child(&self, at: usize) -> Option<(usize, Entry)> {
        let first = at * CHILDREN + 1;
        let children = self.entries.get(first..)?;
        if let Some(&[a, b, c, d]) = children.first_chunk::<CHILDREN>() {
            // As selections, not branches: which of them is first can't be predicted.
            let least = |x: (usize, u64), y: (usize, u64)| if before(y.1, x.1) { y } else { x };
            let left = least((0, a.key), (1, b.key));
            let right = least((2, c.key), (3, d.key));
            let (nth, _) = least(left, right);
            return Some((first + nth, *children.get(nth)?));
        }
        let mut numbered = (first..).zip(children.iter().copied());
        let one = numbered.next()?;
        Some(numbered.fold(one, |x, y| if before(y.1.key, x.1.key) { y } else { x }))
    }
}

#[cfg(all(test, not(loom)))]
pub(super) mod tests {
    use core::cell::Cell;
    use std::thread_local;

    use super::*;

    thread_local! {
        static MOVES: Cell<u64> = const { Cell::new(0) };
    }

    pub(super) fn count_move() {
        MOVES.set(MOVES.get() + 1);
    }

    /// How many entries this thread has moved in heaps. Each move comes after at most four comparisons.
    pub(in crate::policy) fn moves() -> u64 {
        MOVES.get()
    }

    fn number(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *seed >> 33
    }

    /// Against a sorted list, with keys around the end of the circle.
    #[test]
    fn any_order_of_operations_keeps_it_a_heap() {
        const MARK: u32 = 1 << 31;
        let mut seed = 1;
        let mut heap = Heap::<MARK>::new();
        let mut places = [0_u32; 64];
        let mut model: std::vec::Vec<(u64, u32)> = std::vec::Vec::new();
        for _ in 0..20_000 {
            let key = number(&mut seed) % 1000;
            let circled = (key).wrapping_sub(500);
            let free = (0..64).find(|slot| model.iter().all(|(_, there)| there != slot));
            match (number(&mut seed) % 4, free) {
                (0 | 1, Some(slot)) => {
                    heap.push(Entry { key: circled, slot }, &mut places);
                    model.push((key, slot));
                }
                (2, Some(slot)) if !model.is_empty() => {
                    let first = heap.replace_first(Entry { key: circled, slot }, &mut places).expect("not empty");
                    let at = model.iter().position(|(_, there)| *there == first.slot).expect("in both");
                    assert_eq!(Some(model[at].0), model.iter().map(|(key, _)| *key).min());
                    model[at] = (key, slot);
                }
                (3, _) if !model.is_empty() => {
                    let at = number(&mut seed) as usize % model.len();
                    let (key, slot) = model.swap_remove(at);
                    let removed = heap.remove(places[slot as usize], &mut places).expect("in both");
                    assert_eq!((removed.key, removed.slot), (key.wrapping_sub(500), slot));
                }
                _ => {
                    let least = model.iter().map(|(key, _)| *key).min();
                    let popped = heap.pop(&mut places);
                    assert_eq!(popped.map(|entry| entry.key.wrapping_add(500)), least);
                    model.retain(|(_, slot)| popped.is_none_or(|popped| popped.slot != *slot));
                }
            }
            assert_eq!(heap.len(), model.len());
            for (at, entry) in heap.iter().enumerate() {
                assert_eq!(places[entry.slot as usize], at as u32 | MARK);
            }
        }
    }
}
