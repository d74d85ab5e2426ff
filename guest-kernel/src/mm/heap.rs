//! The kernel heap: size classes with per-CPU free lists over whole frames; anything above the largest class is a block of frames.
//!
//! `alloc` uses it as the global allocator. Invariants: per-CPU lists are touched only by their CPU with interrupts off; an
//! object freed on another CPU than it came from simply joins that CPU's list; lists that grow long return a batch to
//! the class's shared list. Class pages never go back to the frame allocator.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;
use core::sync::atomic::Ordering;

use super::frame;
use super::layout::PAGE_SIZE;
use crate::cpu;
use crate::sync::SpinLock;
use crate::task::work;

/// Object sizes. Powers of two and the halves between, so at most a third is lost.
const CLASSES: [usize; 13] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048];
/// Objects on a CPU's list before half of them go to the shared list.
const LIST_MAX: u32 = 128;

#[derive(Clone, Copy)]
struct List {
    head: *mut u8,
    len: u32,
}

impl List {
    const EMPTY: Self = Self { head: null_mut(), len: 0 };

    fn pop(&mut self) -> Option<*mut u8> {
        if self.head.is_null() {
            return None;
        }
        let p = self.head;
        // SAFETY: a listed object's first word is the link that `push` wrote.
        self.head = unsafe { *(p as *const *mut u8) };
        self.len -= 1;
        Some(p)
    }

    fn push(&mut self, p: *mut u8) {
        // SAFETY: `p` is a free object of at least 16 aligned bytes, owned by this list from now on.
        unsafe { *(p as *mut *mut u8) = self.head };
        self.head = p;
        self.len += 1;
    }
}

#[derive(Clone, Copy)]
struct Class {
    free: List,
    /// Uncut rest of the class's current page: no links are written before an object is used.
    bump: usize,
    bump_end: usize,
}

/// One CPU's free lists.
pub struct HeapCache([Class; CLASSES.len()]);

impl HeapCache {
    /// An empty cache.
    pub const fn new() -> Self {
        Self([Class { free: List::EMPTY, bump: 0, bump_end: 0 }; CLASSES.len()])
    }
}

struct Shared([List; CLASSES.len()]);
// SAFETY: the lists own the objects that they link.
unsafe impl Send for Shared {}
static SHARED: SpinLock<Shared> = SpinLock::new(Shared([List::EMPTY; CLASSES.len()]));

/// Index of the smallest class that holds the layout, or `None` for a block of frames.
const fn class_of(size: usize, align: usize) -> Option<usize> {
    let mut i = 0;
    while i < CLASSES.len() {
        // Class pages are cut from offset 0 in steps of the class size, so an object is aligned to its size's lowest bit.
        if CLASSES[i] >= size && (1 << CLASSES[i].trailing_zeros()) >= align {
            return Some(i);
        }
        i += 1;
    }
    None
}

/// `class_of` for word-aligned sizes, by (size + 15) / 16.
static CLASS_TABLE: [u8; 129] = {
    let mut t = [0; 129];
    let mut i = 0;
    while i < 129 {
        t[i] = match class_of(i * 16, 16) {
            Some(c) => c as u8,
            None => u8::MAX,
        };
        i += 1;
    }
    t
};

fn class_for(layout: Layout) -> Option<usize> {
    if layout.align() <= 16 {
        return CLASS_TABLE.get(layout.size().div_ceil(16)).map(|c| *c as usize);
    }
    class_of(layout.size(), layout.align())
}

fn block_order(layout: Layout) -> usize {
    let pages = layout.size().max(layout.align()).div_ceil(PAGE_SIZE as usize);
    pages.next_power_of_two().trailing_zeros() as usize
}

/// The heap is deep in the reserve: the program that we work for makes room before it goes on (its ABI layer looks at
/// `frame::is_critical` on the way to ring 3).
fn low_memory_check() {
    let task = cpu::current_task();
    if frame::is_critical() && !task.is_null() {
        // SAFETY: the running task is alive.
        let task = unsafe { &*task };
        if task.user().is_some() {
            task.work.fetch_or(work::USER, Ordering::SeqCst);
        }
    }
}

/// The global allocator.
pub struct KernelHeap;

// SAFETY: every object comes from one frame block that the heap owns, and is on no list while it is handed out.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class_for(layout) else {
            low_memory_check();
            return frame::alloc_for_heap(block_order(layout)).map_or(null_mut(), |p| p.as_ptr());
        };
        cpu::with_heap_cache(|cache| {
            let c = &mut cache.0[class];
            if let Some(p) = c.free.pop() {
                return p;
            }
            if c.bump == c.bump_end {
                let mut shared = SHARED.lock();
                for _ in 0..LIST_MAX / 4 {
                    let Some(p) = shared.0[class].pop() else { break };
                    c.free.push(p);
                }
                drop(shared);
                if let Some(p) = c.free.pop() {
                    return p;
                }
                low_memory_check();
                let Ok(page) = frame::alloc_for_heap(0) else { return null_mut() };
                let size = CLASSES[class];
                c.bump = page.to_virt() as usize;
                c.bump_end = c.bump + PAGE_SIZE as usize / size * size;
            }
            let p = c.bump as *mut u8;
            c.bump += CLASSES[class];
            p
        })
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        let Some(class) = class_for(layout) else {
            frame::free_block(super::PhysAddr::from_direct(p as u64), block_order(layout));
            return;
        };
        cpu::with_heap_cache(|cache| {
            let c = &mut cache.0[class];
            c.free.push(p);
            if c.free.len > LIST_MAX {
                let mut shared = SHARED.lock();
                for _ in 0..LIST_MAX / 2 {
                    if let Some(p) = c.free.pop() {
                        shared.0[class].push(p);
                    }
                }
            }
        });
    }
}

#[global_allocator]
static HEAP: KernelHeap = KernelHeap;
