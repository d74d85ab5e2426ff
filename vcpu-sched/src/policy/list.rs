//! Lists of tasks from which any task can be taken at once, for policies that serve in order of arrival.
//!
//! Several lists share one memory ([`Nodes`]); a task's place in it is noted in its
//! [`SchedEntity`](crate::entity::SchedEntity), so removal searches nothing. The invariant: a node is on exactly one
//! list, or on the list of free nodes. Adding allocates only when there were never so many tasks.

use alloc::vec::Vec;

use crate::entity::{Entity, NO_SLOT};

/// Memory of some lists.
#[derive(Clone, Debug)]
pub struct Nodes<E> {
    nodes: Vec<Node<E>>,
    free: u32,
}

#[derive(Clone, Debug)]
struct Node<E> {
    /// `None`: free.
    task: Option<E>,
    prev: u32,
    next: u32,
}

/// Head and tail of one list.
#[derive(Clone, Copy, Debug)]
pub struct List {
    head: u32,
    tail: u32,
}

impl List {
    /// An empty list.
    pub const EMPTY: Self = Self { head: NO_SLOT, tail: NO_SLOT };

    /// Is nothing on it?
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.head == NO_SLOT
    }
}

impl<E: Entity> Nodes<E> {
    /// No memory yet.
    pub const fn new() -> Self {
        Self { nodes: Vec::new(), free: NO_SLOT }
    }

    #[inline]
    fn node(&self, slot: u32) -> Option<&Node<E>> {
        self.nodes.get(slot as usize)
    }

    /// Puts a task into a free node. Its neighbours are to be told.
    #[inline(always)]
    fn place(&mut self, e: E, prev: u32, next: u32) -> u32 {
        let slot = self.free;
        match self.nodes.get_mut(slot as usize) {
            Some(node) => {
                self.free = node.next;
                e.sched().slot.set(slot);
                *node = Node { task: Some(e), prev, next };
                slot
            }
            None => self.place_new(e, prev, next),
        }
    }

    #[cold]
    fn place_new(&mut self, e: E, prev: u32, next: u32) -> u32 {
        let slot = self.nodes.len() as u32;
        e.sched().slot.set(slot);
        self.nodes.push(Node { task: Some(e), prev, next });
        slot
    }

    /// Adds a task at the end.
    #[inline]
    pub fn push_back(&mut self, list: &mut List, e: E) {
        let last = list.tail;
        let slot = self.place(e, last, NO_SLOT);
        match self.nodes.get_mut(last as usize) {
            Some(node) => node.next = slot,
            None => list.head = slot,
        }
        list.tail = slot;
    }

    /// Adds a task at the front.
    #[inline]
    pub fn push_front(&mut self, list: &mut List, e: E) {
        let first = list.head;
        let slot = self.place(e, NO_SLOT, first);
        match self.nodes.get_mut(first as usize) {
            Some(node) => node.prev = slot,
            None => list.tail = slot,
        }
        list.head = slot;
    }

    fn take(&mut self, list: &mut List, slot: u32) -> Option<E> {
        let free = self.free;
        let node = self.nodes.get_mut(slot as usize)?;
        let task = node.task.take()?;
        let (prev, next) = (node.prev, node.next);
        node.next = free;
        self.free = slot;
        match self.nodes.get_mut(prev as usize) {
            Some(node) => node.next = next,
            None => list.head = next,
        }
        match self.nodes.get_mut(next as usize) {
            Some(node) => node.prev = prev,
            None => list.tail = prev,
        }
        Some(task)
    }

    /// Takes the first task.
    #[inline]
    pub fn pop_front(&mut self, list: &mut List) -> Option<E> {
        let slot = list.head;
        let node = self.nodes.get_mut(slot as usize)?;
        let task = node.task.take()?;
        let next = core::mem::replace(&mut node.next, self.free);
        self.free = slot;
        list.head = next;
        match self.nodes.get_mut(next as usize) {
            Some(node) => node.prev = NO_SLOT,
            None => list.tail = NO_SLOT,
        }
        Some(task)
    }

    /// Takes the first task and adds another one at the end, which gets the first one's node. An empty list stays empty: then the
    /// new one comes back.
    #[inline(always)]
    pub fn rotate(&mut self, list: &mut List, e: E) -> E {
        let List { head: slot, tail: last } = *list;
        let Some(node) = self.nodes.get_mut(slot as usize) else { return e };
        let Some(first) = node.task.take() else { return e };
        e.sched().slot.set(slot);
        node.task = Some(e);
        if slot != last {
            let next = core::mem::replace(&mut node.next, NO_SLOT);
            node.prev = last;
            if let Some(node) = self.nodes.get_mut(last as usize) {
                node.next = slot;
            }
            if let Some(node) = self.nodes.get_mut(next as usize) {
                node.prev = NO_SLOT;
            }
            *list = List { head: next, tail: slot };
        }
        first
    }

    /// Takes a certain task, which must be on this list if it is in this memory at all.
    #[inline]
    pub fn remove(&mut self, list: &mut List, e: &E) -> Option<E> {
        let slot = e.sched().slot.get();
        self.node(slot)?.task.as_ref().filter(|there| there.id() == e.id())?;
        self.take(list, slot)
    }

    /// Takes the first task that is `wanted`.
    pub fn remove_first(&mut self, list: &mut List, mut wanted: impl FnMut(&E) -> bool) -> Option<E> {
        let mut slot = list.head;
        while let Some(node) = self.node(slot) {
            if node.task.as_ref().is_some_and(&mut wanted) {
                return self.take(list, slot);
            }
            slot = node.next;
        }
        None
    }
}

impl<E: Entity> Default for Nodes<E> {
    fn default() -> Self {
        Self::new()
    }
}
