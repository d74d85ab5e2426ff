//! A sleeping lock, for task context only.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use vcpu_sched::events::WaitReason;

use super::WaitQueue;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// Mutual exclusion that lets the CPU go while it waits. Not for interrupt context, not with a [`super::SpinLock`] held.
pub struct Mutex<T: ?Sized> {
    state: AtomicU32,
    waiters: WaitQueue,
    value: UnsafeCell<T>,
}

// SAFETY: one holder at a time; see `SpinLock`.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}
// SAFETY: owning the lock is owning the value.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}

impl<T> Mutex<T> {
    /// A new, free lock.
    pub const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(FREE), waiters: WaitQueue::of(WaitReason::Mutex), value: UnsafeCell::new(value) }
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the lock; sleeps until it is free.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // Acquire: the last holder's writes are visible.
        if self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_err() {
            // Whoever waits marks the lock, so that the holder knows that it must wake somebody. The one who gets it this way
            // keeps the mark: there may be others.
            self.waiters.wait_until(|| (self.state.swap(CONTENDED, Ordering::Acquire) == FREE).then_some(()));
        }
        MutexGuard { mutex: self }
    }

    /// The value, without locking: nobody else has a reference.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// Access to a [`Mutex`]'s value; releases on drop.
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
}

// SAFETY: sharing the guard shares the value.
unsafe impl<T: ?Sized + Sync> Sync for MutexGuard<'_, T> {}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock, and is borrowed mutably.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Release: our writes are visible to the next holder.
        if self.mutex.state.swap(FREE, Ordering::Release) == CONTENDED {
            self.mutex.waiters.wake_one();
        }
    }
}
