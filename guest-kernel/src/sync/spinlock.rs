//! The spin lock. Every other module may use it; it depends on nothing but the interrupt flag (and is a place for chaos).
//!
//! Invariant: while a guard lives, interrupts are off on the holder's CPU and no other CPU holds the same lock.
//!
//! A lock's word names its holder. So whoever has to wait can see that the host has taken the holder's CPU away, and counts it
//! (`CpuStats::lock_waits_preempted`): what that costs a guest is otherwise hard to tell from a long critical section. Taking a free
//! lock is as short as with a flag.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use vcpu_sched::ids::{CpuId, Nanos};

use crate::arch::instr;
use crate::chaos::{self, Point};
use crate::cpu::{self, Cpu};

/// Interrupts off from creation to drop; nests.
pub struct IrqGuard {
    were_on: bool,
    // Not Send: the flag belongs to this CPU.
    _not_send: core::marker::PhantomData<*mut ()>,
}

impl IrqGuard {
    /// Turns interrupts off and remembers whether they were on.
    #[inline(always)]
    pub fn new() -> Self {
        let were_on = instr::interrupts_enabled();
        if were_on {
            instr::cli();
        }
        Self { were_on, _not_send: core::marker::PhantomData }
    }
}

impl Drop for IrqGuard {
    #[inline(always)]
    fn drop(&mut self) {
        if self.were_on {
            instr::sti();
            chaos::point(Point::InterruptsOn);
        }
    }
}

/// A test-and-test-and-set lock. Not a ticket lock: a waiter whose vCPU the host has descheduled must not block the others.
pub struct SpinLock<T: ?Sized> {
    /// [`FREE`], or the holder's [`cpu::lock_tag`].
    holder: AtomicU32,
    value: UnsafeCell<T>,
}

/// Nobody holds the lock.
const FREE: u32 = 0;

// SAFETY: the lock hands out the value to one CPU at a time, so sharing it needs only that the value can move between CPUs.
unsafe impl<T: ?Sized + Send> Sync for SpinLock<T> {}
// SAFETY: owning the lock is owning the value.
unsafe impl<T: ?Sized + Send> Send for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A new, free lock.
    pub const fn new(value: T) -> Self {
        Self { holder: AtomicU32::new(FREE), value: UnsafeCell::new(value) }
    }
}

impl<T: ?Sized> SpinLock<T> {
    /// Takes the lock, spinning with interrupts off. Never call it while a guard of the same lock lives on this CPU.
    #[inline(always)]
    pub fn lock(&self) -> SpinLockGuard<'_, T> {
        let irq = IrqGuard::new();
        if !self.take() {
            self.contended();
        }
        SpinLockGuard { lock: self, _irq: irq }
    }

    /// As [`SpinLock::lock`], for code that has interrupts off already and keeps them so: the hot paths of the scheduler.
    #[inline(always)]
    pub fn lock_irqs_off(&self) -> SpinLockGuard<'_, T, ()> {
        debug_assert!(!instr::interrupts_enabled());
        if !self.take() {
            self.contended();
        }
        SpinLockGuard { lock: self, _irq: () }
    }

    /// Takes the lock if it is free. Not a swap: while somebody holds it, the word must go on naming him.
    #[inline(always)]
    fn take(&self) -> bool {
        // Acquire: what the last holder wrote is visible before we touch the value.
        self.holder.compare_exchange(FREE, cpu::lock_tag(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn contended(&self) {
        let stats = &cpu::this().stats;
        // Relaxed, here and below: figures that only this CPU writes, its interrupts off.
        stats.lock_waits.store(stats.lock_waits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let mut preempted = false;
        let mut watched: Option<Watched> = None;
        loop {
            // Relaxed: only a hint; `take` orders.
            let holder = self.holder.load(Ordering::Relaxed);
            if holder == FREE {
                if self.take() {
                    break;
                }
                continue;
            }
            if watched.as_ref().is_none_or(|w| w.tag != holder) {
                preempted |= watched.is_some_and(|w| w.was_away());
                watched = Watched::new(holder);
            }
            preempted |= watched.as_ref().is_some_and(|w| w.holder.steal.is_preempted());
            // A holder may be waiting for this CPU to flush its TLB; the flush itself needs no lock.
            crate::mm::shootdown::service_pending();
            core::hint::spin_loop();
        }
        // After `take`, which acquires: what the host wrote before it let the last holder go on is visible.
        preempted |= watched.is_some_and(|w| w.was_away());
        if preempted {
            let n = stats.lock_waits_preempted.load(Ordering::Relaxed) + 1;
            stats.lock_waits_preempted.store(n, Ordering::Relaxed);
        }
    }

    /// Takes the lock only if it is free. For crash paths, which must not hang on a lock that the crashed code holds, and for chaos.
    pub fn try_lock(&self) -> Option<SpinLockGuard<'_, T>> {
        let irq = IrqGuard::new();
        // A guard is made only if the lock is ours: the end of any other would open somebody else's.
        self.take().then(|| SpinLockGuard { lock: self, _irq: irq })
    }

    /// Opens a lock whose guard was forgotten, for locks that are taken and opened by two calls.
    ///
    /// # Safety
    /// The caller holds it, by a guard that is never dropped.
    #[inline(always)]
    pub unsafe fn open_again(&self) {
        // Release: what we wrote is visible to the next holder.
        self.holder.store(FREE, Ordering::Release);
    }
}

/// A lock's holder, as somebody sees it who waits.
struct Watched {
    tag: u32,
    holder: &'static Cpu,
    /// What had been stolen from it when it was first seen.
    stolen: Nanos,
}

impl Watched {
    fn new(tag: u32) -> Option<Self> {
        let holder = cpu::get(CpuId(tag.checked_sub(1)?))?;
        Some(Self { tag, holder, stolen: holder.steal.stolen() })
    }

    /// Whether the host has run something else in its place meanwhile. Not every KVM says so while it lasts; but all tell it when they let
    /// the CPU go on, which is before it can open the lock.
    fn was_away(&self) -> bool {
        self.holder.steal.stolen() != self.stolen
    }
}

/// Access to a [`SpinLock`]'s value; releases on drop. `I` is `()` where the caller keeps interrupts off by itself.
pub struct SpinLockGuard<'a, T: ?Sized, I = IrqGuard> {
    lock: &'a SpinLock<T>,
    // Declared after `lock` is released in Drop::drop: fields drop after it, so interrupts come back last.
    _irq: I,
}

impl<T: ?Sized, I> Deref for SpinLockGuard<'_, T, I> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized, I> DerefMut for SpinLockGuard<'_, T, I> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock, and is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized, I> Drop for SpinLockGuard<'_, T, I> {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: what we wrote is visible to the next holder.
        self.lock.holder.store(FREE, Ordering::Release);
    }
}
