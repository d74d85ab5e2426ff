//! TLB shootdown: a mapping that was narrowed or removed is forgotten by every CPU before its frames are used again.
//!
//! Whoever narrows a mapping gets a [`Shootdown`] and can only get rid of it by flushing. Each address space counts its
//! narrowings (`generation`); each CPU publishes the address space that it has loaded and the generation up to which it has
//! flushed. The initiator bumps the generation, interrupts the CPUs that have the space loaded and are behind, and waits for each.
//!
//! Why no CPU is missed. Wrong would be: a CPU loads the space after we looked, and holds an old translation. It can't:
//! `enter_space` first publishes the space (SeqCst), then reads the generation, then loads CR3, which starts with an empty
//! TLB. Either our look (after our bump, SeqCst) sees it, or its load comes after our page-table write.
//!
//! Nobody waits with a lock that the interrupted CPU could spin on with interrupts off: the spin loop of `SpinLock` and the
//! waiting loop here serve requests themselves.

use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;

use super::PhysAddr;
use super::address_space::AddressSpace;
use super::frame;
use crate::arch::{apic, instr};
use crate::cpu;
use crate::sync::IrqGuard;

/// Frames that one shootdown collects before it must be flushed.
pub const BATCH: usize = 64;

/// Narrowed translations that other CPUs may still hold, and the frames behind them.
#[must_use = "frames stay reachable through other CPUs' TLBs until this is flushed"]
pub struct Shootdown<'a> {
    space: &'a AddressSpace,
    frames: ArrayVec<PhysAddr, BATCH>,
    /// One page, or `None` for more.
    page: Option<u64>,
    dirty: bool,
}

impl<'a> Shootdown<'a> {
    /// Nothing narrowed yet.
    pub fn new(space: &'a AddressSpace) -> Self {
        Self { space, frames: ArrayVec::new(), page: None, dirty: false }
    }

    /// A translation was narrowed or removed; `frame` is put when all CPUs have forgotten it.
    pub fn add(&mut self, page: u64, frame: Option<PhysAddr>) {
        self.page = if self.dirty { None } else { Some(page) };
        self.dirty = true;
        if let Some(f) = frame {
            if self.frames.is_full() {
                self.flush_now();
                self.dirty = true;
                self.page = None;
            }
            self.frames.push(f);
        }
    }

    /// Makes every CPU forget, then lets go of the frames.
    pub fn flush(mut self) {
        self.flush_now();
    }

    fn flush_now(&mut self) {
        if self.dirty {
            flush_space(self.space, self.page);
        }
        for f in self.frames.drain(..) {
            frame::put(f);
        }
        self.dirty = false;
    }
}

impl Drop for Shootdown<'_> {
    fn drop(&mut self) {
        // An early return by `?` must not leave stale translations behind either.
        self.flush_now();
    }
}

fn flush_space(space: &AddressSpace, page: Option<u64>) {
    // SeqCst: ordered against `enter_space`'s publication, see the module's argument.
    let generation = space.generation.fetch_add(1, Ordering::SeqCst) + 1;
    let me = {
        let _irq = IrqGuard::new();
        let me = cpu::this();
        if me.loaded_space.load(Ordering::Relaxed) == core::ptr::from_ref(space).cast_mut() {
            let seen = me.flushed.load(Ordering::Relaxed);
            match page {
                Some(p) if seen + 1 == generation => instr::invlpg(p),
                // SAFETY: the root is the one that is loaded.
                _ => unsafe { instr::write_cr3(instr::read_cr3()) },
            }
            me.flushed.store(generation, Ordering::SeqCst);
        }
        me.id
    };
    if space.threads.load(Ordering::Acquire) <= 1 && !space.shared_ever.load(Ordering::Acquire) {
        // Only the caller's task has ever had it loaded; where it ran before, another table has been loaded since.
        return;
    }
    let lagging = |c: &cpu::Cpu| {
        c.id != me
            && c.loaded_space.load(Ordering::SeqCst) == core::ptr::from_ref(space).cast_mut()
            && c.flushed.load(Ordering::SeqCst) < generation
    };
    for c in cpu::all().filter(|c| lagging(c)) {
        cpu::this().stats.shootdown_ipis.fetch_add(1, Ordering::Relaxed);
        apic::send_ipi(c.apic_id(), crate::arch::descriptors::vector::IPI_SHOOTDOWN);
    }
    for c in cpu::all() {
        while lagging(c) {
            service_pending();
            core::hint::spin_loop();
        }
    }
}

/// Flushes what others asked of this CPU. Called by the IPI and by every loop that spins with interrupts off.
pub fn service_pending() {
    let _irq = IrqGuard::new();
    let me = cpu::this();
    let space = me.loaded_space.load(Ordering::Relaxed);
    if space.is_null() {
        return;
    }
    // SAFETY: a CPU holds a reference to the space it has loaded (through the running task) until it has left it.
    let generation = unsafe { (*space).generation.load(Ordering::SeqCst) };
    if me.flushed.load(Ordering::Relaxed) < generation {
        // SAFETY: the root is the one that is loaded.
        unsafe { instr::write_cr3(instr::read_cr3()) };
        me.flushed.store(generation, Ordering::SeqCst);
    }
}

/// To be called at switch-in, before CR3 is loaded, with interrupts off: publishes what this CPU is about to hold.
#[inline(always)]
pub fn enter_space(me: &cpu::Cpu, space: *const AddressSpace) {
    // Published already, by the last task of the same process: an initiator sees us. That `flushed` stays behind although CR3
    // is about to be loaded costs at most a flush too many.
    if core::ptr::eq(me.loaded_space.load(Ordering::Relaxed), space) {
        return;
    }
    me.loaded_space.store(space.cast_mut(), Ordering::SeqCst);
    if !space.is_null() {
        // SAFETY: the task about to run keeps its space alive.
        let generation = unsafe { (*space).generation.load(Ordering::SeqCst) };
        me.flushed.store(generation, Ordering::SeqCst);
    }
}
