//! A value that one task at a time may use, also while it waits for something else. Not for interrupts; the invariant
//! is that of the semaphore with one permit under it: who has the permit has the value.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

use super::semaphore::{Permits, Semaphore};
use crate::runtime::lock::{RawLock, Spin};

/// See the module's text. Fair: first come, first served.
pub struct Mutex<T, R: RawLock = Spin> {
    semaphore: Semaphore<R>,
    value: UnsafeCell<T>,
}

// SAFETY: the permit lets one task at a time reach the value, which therefore only has to be fit to move between
// threads.
unsafe impl<T: Send, R: RawLock> Sync for Mutex<T, R> {}

/// The value is the holder's until this is dropped.
#[must_use = "dropping it unlocks"]
pub struct MutexGuard<'a, T, R: RawLock = Spin> {
    value: &'a UnsafeCell<T>,
    _permit: Permits<'a, R>,
}

// SAFETY: a shared guard gives shared references to the value, and nothing else.
unsafe impl<T: Sync, R: RawLock> Sync for MutexGuard<'_, T, R> {}
// SAFETY: a guard that moves to another thread moves the right to the value there; the permit can go back from
// anywhere.
unsafe impl<T: Send, R: RawLock> Send for MutexGuard<'_, T, R> {}

impl<T, R: RawLock> Mutex<T, R> {
    /// Unlocked.
    pub fn new(value: T) -> Self {
        Self { semaphore: Semaphore::new(1), value: UnsafeCell::new(value) }
    }

    /// Waits until the value is ours.
    pub async fn lock(&self) -> MutexGuard<'_, T, R> {
        loop {
            // Nobody closes the semaphore of a mutex.
            if let Ok(permit) = self.semaphore.acquire(1).await {
                return MutexGuard { value: &self.value, _permit: permit };
            }
        }
    }

    /// The value, if nobody has it or waits for it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T, R>> {
        let permit = self.semaphore.try_acquire(1).ok()??;
        Some(MutexGuard { value: &self.value, _permit: permit })
    }
}

impl<T, R: RawLock> Deref for MutexGuard<'_, T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the permit is ours.
        unsafe { &*self.value.get() }
    }
}

impl<T, R: RawLock> DerefMut for MutexGuard<'_, T, R> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the permit is ours, and so is the guard.
        unsafe { &mut *self.value.get() }
    }
}
