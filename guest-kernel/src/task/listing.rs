//! The list of tasks as the VMM reads it (`vcpu_sched::taskview`): pages of pointers to the living [`Task`]s.
//!
//! Only `table` changes it, with its own lock held, when a task is made or has ended. Invariant: a pointer is in the list only
//! while the table holds a reference to its task, and every change moves the generation, so that a reader that saw the
//! same even generation before and after read no freed task.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use vcpu_sched::directory::{Entry, EntryKind};
use vcpu_sched::taskview::{CHUNK_SLOTS, Chunk, Header, MAGIC, VERSION};

use super::{Task, view};
use crate::cpu::{self, Cpu};
use crate::directory;
use crate::mm::{PhysAddr, frame};

static HEADER: Header = Header {
    magic: MAGIC,
    version: VERSION,
    task_bytes: size_of::<Task>() as u32,
    cpu_bytes: size_of::<Cpu>() as u32,
    live: AtomicU32::new(0),
    slots: AtomicU32::new(0),
    unlisted: AtomicU32::new(0),
    generation: AtomicU64::new(0),
    first_chunk: AtomicU64::new(0),
    reserved: [0; 2],
    task_fields: view::FIELDS,
    cpu_fields: cpu::view::FIELDS,
};

/// Lists the header in the directory. Boot CPU, before the directory is published.
pub fn show() {
    directory::add(Entry {
        kind: EntryKind::Tasks as u32,
        index: 0,
        address: PhysAddr::from_image(core::ptr::from_ref(&HEADER) as u64).0,
        len: size_of::<Header>() as u64,
        extra: 0,
    });
}

/// Where a task is listed.
#[derive(Clone, Copy)]
pub struct Slot(Option<u32>);

/// The chunks and what is free in them.
pub struct Listing {
    chunks: Vec<&'static Chunk>,
    /// Never reallocated outside of [`Listing::grow`]: has room for every slot.
    free: Vec<u32>,
}

impl Listing {
    /// Nobody is listed.
    pub const fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new() }
    }

    /// Lists a task. Without memory for another page it stays unlisted, which the header counts: only the view suffers.
    pub fn insert(&mut self, task: *const Task) -> Slot {
        if self.free.is_empty() && self.grow().is_none() {
            HEADER.unlisted.fetch_add(1, Ordering::Relaxed);
            return Slot(None);
        }
        let Some(slot) = self.free.pop() else { return Slot(None) };
        self.change(slot, task as u64);
        HEADER.live.fetch_add(1, Ordering::Relaxed);
        Slot(Some(slot))
    }

    /// Takes a task off the list.
    pub fn remove(&mut self, slot: Slot) {
        let Slot(Some(slot)) = slot else {
            HEADER.unlisted.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        self.change(slot, 0);
        HEADER.live.fetch_sub(1, Ordering::Relaxed);
        self.free.push(slot);
    }

    fn change(&self, slot: u32, pointer: u64) {
        let (chunk, index) = (slot as usize / CHUNK_SLOTS, slot as usize % CHUNK_SLOTS);
        let Some(chunk) = self.chunks.get(chunk) else { return };
        let generation = HEADER.generation.load(Ordering::Relaxed);
        HEADER.generation.store(generation.wrapping_add(1), Ordering::Relaxed);
        // A reader that sees the slot's new content sees the odd generation too.
        fence(Ordering::Release);
        chunk.slots[index].store(pointer, Ordering::Relaxed);
        // Release: the even generation comes last.
        HEADER.generation.store(generation.wrapping_add(2), Ordering::Release);
    }

    /// Adds a page of free slots.
    fn grow(&mut self) -> Option<()> {
        let first = (self.chunks.len() * CHUNK_SLOTS) as u32;
        self.chunks.try_reserve(1).ok()?;
        // Room for all slots there will be: `remove` must not allocate.
        self.free.try_reserve(first as usize + CHUNK_SLOTS).ok()?;
        let frame = frame::alloc_zeroed().ok()?;
        // SAFETY: a fresh zero frame, page-aligned, is an empty chunk; it is never given back.
        let chunk: &'static Chunk = unsafe { &*frame.as_ptr::<Chunk>() };
        let link = self.chunks.last().map_or(&HEADER.first_chunk, |last| &last.next);
        // Release: a reader that finds the page finds it empty.
        link.store(frame.0, Ordering::Release);
        self.chunks.push(chunk);
        self.free.extend((first..first + CHUNK_SLOTS as u32).rev());
        HEADER.slots.store(first + CHUNK_SLOTS as u32, Ordering::Relaxed);
        Some(())
    }
}
