//! Where the tasks of a policy's heaps lie: each in a slot that it keeps while the heaps sort the slot numbers.
//!
//! A task's slot is noted in the task, and for each slot its place in a heap, which the heaps keep up to date: so a
//! task is found at once. The invariant: a slot is free, or its task is in exactly one heap, but for the moment in
//! which the policy moves it. A task that has left keeps its number, which is why [`Shelf::find`] looks who is there.

use alloc::vec::Vec;

use crate::entity::{Entity, NO_SLOT};

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Shelf<E> {
    tasks: Vec<Option<E>>,
    /// For each slot its place in a heap; of a free one: the next free one.
    pub(super) places: Vec<u32>,
    free: u32,
}

impl<E: Entity> Shelf<E> {
    pub(super) const fn new() -> Self {
        Self { tasks: Vec::new(), places: Vec::new(), free: NO_SLOT }
    }

    /// Lays a task down. Its slot is to be put into a heap next.
    #[inline]
    pub(super) fn put(&mut self, task: E) -> u32 {
        let slot = self.free;
        match (self.tasks.get_mut(slot as usize), self.places.get(slot as usize)) {
            (Some(free), Some(next)) => {
                task.sched().slot.set(slot);
                *free = Some(task);
                self.free = *next;
                slot
            }
            _ => self.put_new(task),
        }
    }

    #[cold]
    fn put_new(&mut self, task: E) -> u32 {
        let slot = self.tasks.len() as u32;
        task.sched().slot.set(slot);
        self.tasks.push(Some(task));
        self.places.push(NO_SLOT);
        slot
    }

    /// Takes up the task of a slot that is in no heap any more.
    #[inline]
    pub(super) fn take(&mut self, slot: u32) -> Option<E> {
        let task = self.tasks.get_mut(slot as usize)?.take()?;
        *self.places.get_mut(slot as usize)? = self.free;
        self.free = slot;
        Some(task)
    }

    #[inline(always)]
    pub(super) fn get(&self, slot: u32) -> Option<&E> {
        self.tasks.get(slot as usize)?.as_ref()
    }

    /// The place of a task in the heap that it is in.
    pub(super) fn find(&self, task: &E) -> Option<u32> {
        let slot = task.sched().slot.get();
        self.get(slot).filter(|there| there.id() == task.id())?;
        self.places.get(slot as usize).copied()
    }
}
