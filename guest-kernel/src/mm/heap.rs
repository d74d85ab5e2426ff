//! The kernel heap: size classes with per-CPU free lists over whole frames; anything above the largest class is a block of frames.
//!
//! `alloc` uses it as the global allocator. Invariants:
//! - Per-CPU lists are touched only by their CPU with interrupts off, and are bounded; an object freed on another CPU than it
//!   came from simply joins that CPU's list.
//! - A list that grows too long returns half of it to the shared part, where each page keeps its own free objects. A page all
//!   of whose objects are there goes back to the frame allocator.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;
use core::sync::atomic::Ordering;
#[cfg(feature = "selftest")]
use core::sync::atomic::{AtomicPtr, AtomicU32};

use super::layout::{PAGE_SHIFT, PAGE_SIZE};
use super::{PhysAddr, frame};
use crate::cpu;
use crate::sync::SpinLock;
#[cfg(feature = "selftest")]
use crate::task::Task;
use crate::task::work;

/// Object sizes. Powers of two and the halves between, so at most a third is lost.
const CLASSES: [usize; 13] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048];
/// Objects on a CPU's list before half of them go to the shared part: 128, or 32 KiB of them.
const LIST_MAX: [u32; CLASSES.len()] = {
    let mut max = [0; CLASSES.len()];
    let mut i = 0;
    while i < CLASSES.len() {
        let fit = (32 << 10) / CLASSES[i];
        max[i] = if fit > 128 { 128 } else { fit as u32 };
        i += 1;
    }
    max
};
const NIL: u32 = u32::MAX;

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

/// What the shared part knows of a frame, if that is a class page.
struct Page {
    /// Its objects in the shared part: how many, and where in the page the first one lies.
    free: u16,
    first: u16,
    /// Neighbours in its class's list of pages with free objects, valid while there are any.
    next: u32,
    prev: u32,
}

struct Shared {
    /// One for each frame.
    pages: *mut Page,
    frames: u32,
    /// Pages with free objects, by class.
    heads: [u32; CLASSES.len()],
}

// SAFETY: the array belongs to this value alone, and the lists own the objects that they link.
unsafe impl Send for Shared {}
static SHARED: SpinLock<Shared> = SpinLock::new(Shared { pages: null_mut(), frames: 0, heads: [NIL; CLASSES.len()] });

impl Shared {
    fn page(&mut self, pfn: u32) -> &mut Page {
        assert!(pfn < self.frames, "heap object in frame {pfn:#x}, which is not RAM");
        // SAFETY: in bounds of the array that `init` was given; all zero is a page without free objects.
        unsafe { &mut *self.pages.add(pfn as usize) }
    }

    fn list(&mut self, pfn: u32) -> List {
        let Page { free, first, .. } = *self.page(pfn);
        match free {
            0 => List::EMPTY,
            _ => List { head: PhysAddr((u64::from(pfn) << PAGE_SHIFT) + u64::from(first)).as_ptr(), len: free.into() },
        }
    }

    fn set_list(&mut self, pfn: u32, list: List) {
        let page = self.page(pfn);
        // A page has at most 256 objects; their offsets are below its size.
        (page.free, page.first) = (list.len as u16, (list.head as u64 & (PAGE_SIZE - 1)) as u16);
    }

    fn pop(&mut self, class: usize) -> Option<*mut u8> {
        let pfn = self.heads[class];
        if pfn == NIL {
            return None;
        }
        let mut list = self.list(pfn);
        let p = list.pop();
        self.set_list(pfn, list);
        if list.len == 0 {
            self.unlink(class, pfn);
        }
        p
    }

    /// Takes an object back. Returns its page, now the caller's, if that was the last one.
    fn push(&mut self, class: usize, p: *mut u8) -> Option<*mut u8> {
        let pfn = (PhysAddr::from_direct(p as u64).0 >> PAGE_SHIFT) as u32;
        let mut list = self.list(pfn);
        if list.len as usize + 1 == PAGE_SIZE as usize / CLASSES[class] {
            // Every class has two objects a page or more, so it is on the class's list.
            self.set_list(pfn, List::EMPTY);
            self.unlink(class, pfn);
            return Some(PhysAddr(u64::from(pfn) << PAGE_SHIFT).as_ptr());
        }
        list.push(p);
        self.set_list(pfn, list);
        if list.len == 1 {
            let head = core::mem::replace(&mut self.heads[class], pfn);
            let page = self.page(pfn);
            (page.next, page.prev) = (head, NIL);
            if head != NIL {
                self.page(head).prev = pfn;
            }
        }
        None
    }

    fn unlink(&mut self, class: usize, pfn: u32) {
        let Page { next, prev, .. } = *self.page(pfn);
        match prev {
            NIL => self.heads[class] = next,
            prev => self.page(prev).next = next,
        }
        if next != NIL {
            self.page(next).prev = prev;
        }
    }
}

/// Pages that [`init`] needs for this many frames.
pub const fn metadata_pages(frames: u32) -> u64 {
    (frames as u64 * size_of::<Page>() as u64).div_ceil(PAGE_SIZE)
}

/// Installs the array of pages. Boot CPU, once, before anything is freed.
///
/// # Safety
/// `base` is a direct-map pointer to `metadata_pages(frames)` zero pages that nobody else uses.
pub unsafe fn init(base: *mut u8, frames: u32) {
    let mut shared = SHARED.lock();
    (shared.pages, shared.frames) = (base.cast(), frames);
}

/// Objects of these sizes that one CPU may keep on its lists.
#[cfg(feature = "selftest")]
pub fn most_listed(sizes: &[usize]) -> u32 {
    sizes.iter().filter_map(|size| class_of(*size, 1)).map(|class| LIST_MAX[class]).sum()
}

/// How often this task has asked the heap for memory: for tests that want none. Interrupts that came upon it count, too.
#[cfg(feature = "selftest")]
pub static WATCHED: AllocationCounter =
    AllocationCounter { task: AtomicPtr::new(null_mut()), count: AtomicU32::new(0) };

/// See [`WATCHED`].
#[cfg(feature = "selftest")]
pub struct AllocationCounter {
    task: AtomicPtr<Task>,
    count: AtomicU32,
}

#[cfg(feature = "selftest")]
impl AllocationCounter {
    /// Counts what the current task does in `f`. One at a time.
    pub fn during<T>(&self, f: impl FnOnce() -> T) -> (T, u32) {
        self.count.store(0, Ordering::Relaxed);
        self.task.store(cpu::current_task(), Ordering::Relaxed);
        let result = f();
        self.task.store(null_mut(), Ordering::Relaxed);
        (result, self.count.load(Ordering::Relaxed))
    }
}

#[cfg(feature = "selftest")]
fn count() {
    let watched = WATCHED.task.load(Ordering::Relaxed);
    if !watched.is_null() && watched == cpu::current_task() {
        WATCHED.count.fetch_add(1, Ordering::Relaxed);
    }
}

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

/// Gives half of a CPU's list to the shared part, and the pages that are whole then to the frame allocator.
#[cold]
fn give_back(list: &mut List, class: usize) {
    let mut whole = List::EMPTY;
    let mut shared = SHARED.lock();
    for _ in 0..LIST_MAX[class] / 2 {
        let Some(p) = list.pop() else { break };
        if let Some(page) = shared.push(class, p) {
            whole.push(page);
        }
    }
    drop(shared);
    while let Some(page) = whole.pop() {
        frame::put(PhysAddr::from_direct(page as u64));
    }
}

/// The global allocator.
pub struct KernelHeap;

// SAFETY: every object comes from one frame block that the heap owns, and is on no list while it is handed out.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        #[cfg(feature = "selftest")]
        count();
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
                for _ in 0..LIST_MAX[class] / 4 {
                    let Some(p) = shared.pop(class) else { break };
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
            frame::free_block(PhysAddr::from_direct(p as u64), block_order(layout));
            return;
        };
        cpu::with_heap_cache(|cache| {
            let c = &mut cache.0[class];
            c.free.push(p);
            if c.free.len > LIST_MAX[class] {
                give_back(&mut c.free, class);
            }
        });
    }
}

#[global_allocator]
static HEAP: KernelHeap = KernelHeap;
