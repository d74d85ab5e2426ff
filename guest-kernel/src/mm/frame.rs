//! Physical frames: a buddy allocator behind per-CPU caches, and one reference count a frame.
//!
//! Anyone allocates through [`alloc`], [`alloc_zeroed`] and [`alloc_block`]. Invariants:
//! - A free block is on exactly one list; only its first frame's [`Meta`] says so. The links live in the metadata array, not in
//!   the free pages, so that fresh RAM stays untouched by guest and host until it is used.
//! - `zeroed` on a free block means that all its bytes are zero: fresh RAM is, and stays so until handed out. Clearing costs
//!   hundreds of microseconds a page where ring 0 is interpreted, so zero pages are kept for those who ask for them.
//! - A frame whose count drops to zero goes back here, after the TLB shootdown that its owner needed (see `shootdown`).

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use arrayvec::ArrayVec;

use super::PhysAddr;
use super::layout::{PAGE_SHIFT, PAGE_SIZE};
use crate::arch::{instr, ring3};
use crate::cpu;
use crate::sync::SpinLock;

/// Largest block: 2^18 pages, 1 GiB. Large, so that boot inserts few blocks.
const MAX_ORDER: usize = 18;
/// Frames a CPU keeps of each kind before it gives half of them back.
const CACHE_SIZE: usize = 64;
/// Frames moved between a CPU's cache and the buddy lists at once.
const CACHE_BATCH: usize = 16;
const NIL: u32 = u32::MAX;

/// No frame is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

#[repr(C)]
struct Meta {
    /// Users of the frame: page-table entries, kernel owners. 0 while free.
    refs: AtomicU32,
    next: u32,
    prev: u32,
    /// Order of the free block that starts here, valid while `free`.
    order: u8,
    free: bool,
    zeroed: bool,
    _pad: u8,
}

const _: () = assert!(size_of::<Meta>() == 16);

struct Buddy {
    meta: *mut Meta,
    frames: u32,
    /// Heads of the lists: [order][zeroed].
    heads: [[u32; 2]; MAX_ORDER + 1],
}

// SAFETY: the pointer is to the metadata array, owned by this value alone (reference counts are atomics).
unsafe impl Send for Buddy {}

static BUDDY: SpinLock<Buddy> =
    SpinLock::new(Buddy { meta: core::ptr::null_mut(), frames: 0, heads: [[NIL; 2]; MAX_ORDER + 1] });
static META_BASE: AtomicUsize = AtomicUsize::new(0);
static FRAME_COUNT: AtomicU32 = AtomicU32::new(0);
static FREE: AtomicU32 = AtomicU32::new(0);
static TOTAL: AtomicU32 = AtomicU32::new(0);

/// Stacks of single frames, one CPU's own.
pub struct FrameCache {
    any: ArrayVec<u32, CACHE_SIZE>,
    zeroed: ArrayVec<u32, CACHE_SIZE>,
    /// Former page tables, zero; see [`alloc_table`].
    tables: ArrayVec<u32, CACHE_SIZE>,
}

impl FrameCache {
    /// An empty cache.
    pub const fn new() -> Self {
        Self { any: ArrayVec::new_const(), zeroed: ArrayVec::new_const(), tables: ArrayVec::new_const() }
    }
}

impl Buddy {
    fn at(&mut self, pfn: u32) -> &mut Meta {
        debug_assert!(pfn < self.frames);
        // SAFETY: the array has `frames` elements and every caller's pfn comes from it (checked in `free_block`).
        unsafe { &mut *self.meta.add(pfn as usize) }
    }

    fn push(&mut self, pfn: u32, order: usize, zeroed: bool) {
        let head = self.heads[order][zeroed as usize];
        if head != NIL {
            self.at(head).prev = pfn;
        }
        let m = self.at(pfn);
        (m.next, m.prev, m.order, m.free, m.zeroed) = (head, NIL, order as u8, true, zeroed);
        self.heads[order][zeroed as usize] = pfn;
    }

    fn unlink(&mut self, pfn: u32) {
        let m = self.at(pfn);
        m.free = false;
        let (next, prev, order, zeroed) = (m.next, m.prev, m.order as usize, m.zeroed);
        if prev == NIL {
            self.heads[order][zeroed as usize] = next;
        } else {
            self.at(prev).next = next;
        }
        if next != NIL {
            self.at(next).prev = prev;
        }
    }

    /// Takes a block; prefers one that is zeroed or not as `want_zeroed` says, and the smallest that fits.
    fn take(&mut self, order: usize, want_zeroed: bool) -> Option<(u32, bool)> {
        let first = want_zeroed as usize;
        for kind in [first, 1 - first] {
            for o in order..=MAX_ORDER {
                let pfn = self.heads[o][kind];
                if pfn == NIL {
                    continue;
                }
                self.unlink(pfn);
                for split in (order..o).rev() {
                    self.push(pfn + (1 << split), split, kind == 1);
                }
                return Some((pfn, kind == 1));
            }
        }
        None
    }

    fn give(&mut self, mut pfn: u32, mut order: usize, mut zeroed: bool) {
        while order < MAX_ORDER {
            let buddy = pfn ^ (1 << order);
            if buddy >= self.frames {
                break;
            }
            let b = self.at(buddy);
            if !b.free || b.order as usize != order {
                break;
            }
            zeroed &= b.zeroed;
            self.unlink(buddy);
            pfn = pfn.min(buddy);
            order += 1;
        }
        self.push(pfn, order, zeroed);
    }
}

/// Frames of metadata that `frames` frames need.
pub const fn metadata_pages(frames: u32) -> u64 {
    (frames as u64 * size_of::<Meta>() as u64).div_ceil(PAGE_SIZE)
}

/// Installs the metadata array. Boot CPU, once, before anything is allocated.
///
/// # Safety
/// `base` is a direct-map pointer to `metadata_pages(frames)` zero pages that nobody else uses.
pub unsafe fn init(base: *mut u8, frames: u32) {
    let mut b = BUDDY.lock();
    b.meta = base.cast();
    b.frames = frames;
    META_BASE.store(base as usize, Ordering::Relaxed);
    FRAME_COUNT.store(frames, Ordering::Relaxed);
}

/// Adds a range of fresh, zero RAM. Boot CPU only.
pub fn add_fresh(start: PhysAddr, end: PhysAddr) {
    let mut b = BUDDY.lock();
    let mut pfn = start.0.div_ceil(PAGE_SIZE) as u32;
    let end = ((end.0 >> PAGE_SHIFT) as u32).min(b.frames);
    while pfn < end {
        let mut order = (pfn.trailing_zeros() as usize).min(MAX_ORDER);
        while pfn + (1 << order) > end {
            order -= 1;
        }
        b.push(pfn, order, true);
        FREE.fetch_add(1 << order, Ordering::Relaxed);
        TOTAL.fetch_add(1 << order, Ordering::Relaxed);
        pfn += 1 << order;
    }
}

fn meta(pfn: u32) -> &'static Meta {
    assert!(pfn < FRAME_COUNT.load(Ordering::Relaxed), "frame {pfn:#x} is not RAM");
    // SAFETY: in bounds; only `refs` is read through this shared reference, and it is atomic.
    unsafe { &*(META_BASE.load(Ordering::Relaxed) as *const Meta).add(pfn as usize) }
}

fn take_one(zeroed: bool) -> Option<(u32, bool)> {
    cpu::with_frame_cache(|c| {
        if zeroed {
            if let Some(pfn) = c.zeroed.pop() {
                return Some((pfn, true));
            }
        } else if let Some(pfn) = c.any.pop() {
            return Some((pfn, false));
        }
        let mut b = BUDDY.lock();
        for _ in 1..CACHE_BATCH {
            match b.take(0, zeroed) {
                Some((pfn, true)) if !c.zeroed.is_full() => c.zeroed.push(pfn),
                Some((pfn, false)) if !c.any.is_full() => c.any.push(pfn),
                Some((pfn, zeroed)) => {
                    b.give(pfn, 0, zeroed);
                    break;
                }
                None => break,
            }
        }
        drop(b);
        if zeroed {
            c.zeroed.pop().map(|p| (p, true)).or_else(|| c.any.pop().map(|p| (p, false)))
        } else {
            c.any.pop().map(|p| (p, false)).or_else(|| c.zeroed.pop().map(|p| (p, true)))
        }
    })
}

/// Free frames that may lie in the caches of CPUs other than the one that needs them.
fn cached_elsewhere() -> u32 {
    /// Kinds of frames that a CPU keeps.
    const KINDS: u32 = 3;
    KINDS * CACHE_SIZE as u32 * cpu::count()
}

/// Whether only the reserve is left, which is for the kernel heap alone: what a program asks for can't make the kernel itself
/// run dry.
pub fn is_low() -> bool {
    const RESERVE: u32 = 512;
    FREE.load(Ordering::Relaxed) <= (RESERVE + cached_elsewhere()).min(TOTAL.load(Ordering::Relaxed) / 8)
}

/// Whether the heap has taken so much of the reserve that programs must give something back before they go on.
pub fn is_critical() -> bool {
    const REST: u32 = 256;
    FREE.load(Ordering::Relaxed) <= (REST + cached_elsewhere()).min(TOTAL.load(Ordering::Relaxed) / 10)
}

fn single(zeroed: bool) -> Result<(PhysAddr, bool), OutOfMemory> {
    if is_low() {
        return Err(OutOfMemory);
    }
    single_or_reserve(zeroed)
}

fn single_or_reserve(zeroed: bool) -> Result<(PhysAddr, bool), OutOfMemory> {
    let (pfn, is_zero) = take_one(zeroed).ok_or(OutOfMemory)?;
    FREE.fetch_sub(1, Ordering::Relaxed);
    // Relaxed: nobody else knows the frame yet.
    meta(pfn).refs.store(1, Ordering::Relaxed);
    Ok((PhysAddr(u64::from(pfn) << PAGE_SHIFT), is_zero))
}

/// One frame with any content, one reference.
pub fn alloc() -> Result<PhysAddr, OutOfMemory> {
    single(false).map(|f| f.0)
}

/// One frame of zeroes, one reference.
pub fn alloc_zeroed() -> Result<PhysAddr, OutOfMemory> {
    let (frame, is_zero) = single(true)?;
    if !is_zero {
        clear_with_more(frame);
    }
    Ok(frame)
}

/// Clears a frame; where that is done by an excursion to ring 3, clears some more for the next callers on the same trip.
#[cold]
fn clear_with_more(frame: PhysAddr) {
    if !ring3::available() {
        return clear(frame);
    }
    let mut frames = ArrayVec::<PhysAddr, CACHE_BATCH>::new();
    frames.push(frame);
    cpu::with_frame_cache(|c| {
        let room = c.zeroed.remaining_capacity().min(CACHE_BATCH - 1);
        let from = c.any.len().saturating_sub(room);
        frames.extend(c.any.drain(from..).map(|pfn| PhysAddr(u64::from(pfn) << PAGE_SHIFT)));
        ring3::clear_frames(&frames);
        c.zeroed.extend(frames[1..].iter().map(|f| (f.0 >> PAGE_SHIFT) as u32));
    });
}

/// Clears a frame, by the quickest way this host has.
pub fn clear(frame: PhysAddr) {
    if ring3::available() {
        return ring3::clear_frames(&[frame]);
    }
    // SAFETY: the caller owns the frame; a page is 512 words.
    unsafe { instr::zero_quads(frame.as_ptr(), 512) };
}

/// `2^order` contiguous frames, aligned to their size; the first one carries one reference. Zeroed if asked.
pub fn alloc_block(order: usize, zeroed: bool) -> Result<PhysAddr, OutOfMemory> {
    if order == 0 {
        return if zeroed { alloc_zeroed() } else { alloc() };
    }
    if is_low() {
        return Err(OutOfMemory);
    }
    block_or_reserve(order, zeroed)
}

/// For the heap: `2^order` frames with any content, from the reserve if nothing else is left.
pub fn alloc_for_heap(order: usize) -> Result<PhysAddr, OutOfMemory> {
    if order == 0 { single_or_reserve(false).map(|f| f.0) } else { block_or_reserve(order, false) }
}

fn block_or_reserve(order: usize, zeroed: bool) -> Result<PhysAddr, OutOfMemory> {
    let (pfn, is_zero) = BUDDY.lock().take(order, zeroed).ok_or(OutOfMemory)?;
    FREE.fetch_sub(1 << order, Ordering::Relaxed);
    let base = PhysAddr(u64::from(pfn) << PAGE_SHIFT);
    for i in 0..1u32 << order {
        meta(pfn + i).refs.store(1, Ordering::Relaxed);
    }
    if zeroed && !is_zero {
        for i in 0..1u64 << order {
            clear(PhysAddr(base.0 + i * PAGE_SIZE));
        }
    }
    Ok(base)
}

/// Gives back a block of [`alloc_block`] whose owner is the only one left.
pub fn free_block(base: PhysAddr, order: usize) {
    let pfn = (base.0 >> PAGE_SHIFT) as u32;
    for i in 0..1u32 << order {
        meta(pfn + i).refs.store(0, Ordering::Relaxed);
    }
    FREE.fetch_add(1 << order, Ordering::Relaxed);
    BUDDY.lock().give(pfn, order, false);
}

/// One more user of a frame that has one.
pub fn get(frame: PhysAddr) {
    let pfn = (frame.0 >> PAGE_SHIFT) as u32;
    // Relaxed: whoever can call this already holds a reference.
    let before = meta(pfn).refs.fetch_add(1, Ordering::Relaxed);
    // Else its last user would give away what was never the allocator's, or what somebody has got meanwhile.
    assert!(before != 0, "frame {pfn:#x} used while nobody owns it");
}

/// One user less; the last one frees the frame. No CPU may be able to reach the frame through the caller's mapping any more.
pub fn put(frame: PhysAddr) {
    let pfn = (frame.0 >> PAGE_SHIFT) as u32;
    // AcqRel: all other users' accesses happen before the frame is reused.
    let before = meta(pfn).refs.fetch_sub(1, Ordering::AcqRel);
    assert!(before != 0, "frame {pfn:#x} freed twice");
    if before > 1 {
        return;
    }
    FREE.fetch_add(1, Ordering::Relaxed);
    cpu::with_frame_cache(|c| {
        if c.any.is_full() {
            let mut b = BUDDY.lock();
            for p in c.any.drain(CACHE_SIZE / 2..) {
                b.give(p, 0, false);
            }
        }
        c.any.push(pfn);
    });
}

/// Former page tables that no CPU's cache had room for. Guards the list only.
static SPARE_TABLES: SpinLock<Vec<u32>> = SpinLock::new(Vec::new());

/// A frame of zeroes for a page table.
///
/// A frame that was a page table once stays one: where the host shadows guest page tables, it keeps watching such a frame, and
/// a program's store to it would be emulated, which fails for AVX instructions.
pub fn alloc_table() -> Result<PhysAddr, OutOfMemory> {
    let pfn = cpu::with_frame_cache(|c| c.tables.pop()).or_else(|| SPARE_TABLES.lock().pop());
    match pfn {
        Some(pfn) => {
            FREE.fetch_sub(1, Ordering::Relaxed);
            meta(pfn).refs.store(1, Ordering::Relaxed);
            Ok(PhysAddr(u64::from(pfn) << PAGE_SHIFT))
        }
        None => alloc_zeroed(),
    }
}

/// Gives back a page table of [`alloc_table`] by its only user. All its entries are zero again.
pub fn put_table(frame: PhysAddr) {
    let pfn = (frame.0 >> PAGE_SHIFT) as u32;
    let before = meta(pfn).refs.swap(0, Ordering::AcqRel);
    assert!(before == 1, "page table {pfn:#x} has {before} users");
    FREE.fetch_add(1, Ordering::Relaxed);
    let surplus = cpu::with_frame_cache(|c| {
        let surplus =
            c.tables.is_full().then(|| c.tables.drain(CACHE_SIZE / 2..).collect::<ArrayVec<u32, CACHE_SIZE>>());
        c.tables.push(pfn);
        surplus
    });
    if let Some(surplus) = surplus {
        SPARE_TABLES.lock().extend(surplus);
    }
}

/// Users of a frame. A snapshot, except that 1 seen by the only user stays 1.
pub fn refs(frame: PhysAddr) -> u32 {
    // Acquire: pairs with `put`, so that a former sharer's accesses are over when we write.
    meta((frame.0 >> PAGE_SHIFT) as u32).refs.load(Ordering::Acquire)
}

/// Marks frames that are never given back (kernel image, archive) as used once, by the kernel: whoever maps them shares them.
/// Boot CPU only.
pub fn reserve(start: PhysAddr, end: PhysAddr) {
    let mut p = super::page_down(start.0);
    while p < end.0 {
        meta((p >> PAGE_SHIFT) as u32).refs.store(1, Ordering::Relaxed);
        p += PAGE_SIZE;
    }
}

/// Free and total frames that the allocator manages.
pub fn usage() -> (u32, u32) {
    (FREE.load(Ordering::Relaxed), TOTAL.load(Ordering::Relaxed))
}
