//! A heap of tasks from which any task can be taken: by its place, noted in the task.
//!
//! Used by the fair and the deadline class. Keys are points on a circle of 2^64: they are compared by their distance, so
//! that virtual time may wrap. The invariants: no key is before its parent's, and the slot of each task in it is its index
//! with the heap's mark. A task that has left keeps its slot, which is why a removal looks who is there. Four children a
//! node: half the levels of two, and a handful of tasks is one comparison deep.

use alloc::vec::Vec;

use crate::entity::Entity;

const CHILDREN: usize = 4;

/// Is `a` before `b`, if they are less than half the circle apart?
#[inline(always)]
pub(super) const fn before(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b) as i64) < 0
}

#[derive(Clone, Debug)]
struct Entry<E> {
    key: u64,
    task: E,
}

/// See the module's text. `MARK` tells the slots of this heap from those of the other.
#[derive(Clone, Debug)]
pub(super) struct Heap<E, const MARK: u32> {
    entries: Vec<Entry<E>>,
}

impl<E: Entity, const MARK: u32> Heap<E, MARK> {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The task with the first key.
    #[inline(always)]
    pub(super) fn first(&self) -> Option<&E> {
        self.entries.first().map(|entry| &entry.task)
    }

    /// The task, if there is exactly one.
    #[inline(always)]
    pub(super) fn only(&self) -> Option<&E> {
        match &*self.entries {
            [entry] => Some(&entry.task),
            _ => None,
        }
    }

    /// Puts `task` into the place of the only one there is, which is returned.
    #[inline(always)]
    pub(super) fn replace_only(&mut self, key: u64, task: E) -> Option<E> {
        let entry = self.entries.first_mut()?;
        task.sched().slot.set(MARK);
        entry.key = key;
        Some(core::mem::replace(&mut entry.task, task))
    }

    #[inline]
    pub(super) fn push(&mut self, key: u64, task: E) {
        let at = self.entries.len();
        task.sched().slot.set(at as u32 | MARK);
        self.entries.push(Entry { key, task });
        if at != 0 {
            self.rise(at);
        }
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<E> {
        if self.entries.len() <= 1 {
            return self.entries.pop().map(|entry| entry.task);
        }
        self.remove_at(0)
    }

    /// Takes out `task` if it is here.
    pub(super) fn remove(&mut self, task: &E) -> Option<E> {
        let slot = task.sched().slot.get();
        let at = (slot ^ MARK) as usize;
        self.entries.get(at).filter(|there| there.task.id() == task.id())?;
        self.remove_at(at)
    }

    /// Takes out the first that is wanted, in no order but that the first key is asked first.
    pub(super) fn remove_any(&mut self, mut wanted: impl FnMut(&E) -> bool) -> Option<E> {
        let at = self.entries.iter().position(|entry| wanted(&entry.task))?;
        self.remove_at(at)
    }

    fn remove_at(&mut self, at: usize) -> Option<E> {
        if at >= self.entries.len() {
            return None;
        }
        let task = self.entries.swap_remove(at).task;
        if at < self.entries.len() && !self.rise(at) {
            self.sink(at);
        }
        Some(task)
    }

    #[inline]
    fn note(&self, at: usize) {
        if let Some(entry) = self.entries.get(at) {
            entry.task.sched().slot.set(at as u32 | MARK);
        }
    }

    #[inline]
    fn is_before(&self, a: usize, b: usize) -> bool {
        match (self.entries.get(a), self.entries.get(b)) {
            (Some(a), Some(b)) => before(a.key, b.key),
            _ => false,
        }
    }

    /// Moves an entry up to its place. True if it moved.
    fn rise(&mut self, mut at: usize) -> bool {
        let start = at;
        while at > 0 {
            let parent = (at - 1) / CHILDREN;
            if !self.is_before(at, parent) {
                break;
            }
            self.entries.swap(at, parent);
            self.note(at);
            at = parent;
        }
        self.note(at);
        at != start
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let first = at * CHILDREN + 1;
            let mut least = at;
            for child in first..(first + CHILDREN).min(self.entries.len()) {
                if self.is_before(child, least) {
                    least = child;
                }
            }
            if least == at {
                break;
            }
            self.entries.swap(at, least);
            self.note(at);
            at = least;
        }
        self.note(at);
    }
}
