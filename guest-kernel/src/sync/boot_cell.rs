//! A value that boot sets once, before the other CPUs start, and everybody reads afterwards without a lock.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

/// See the module's text.
pub struct BootCell<T> {
    set: AtomicBool,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: written once, before `set` is released; only shared references are given out after it is acquired.
unsafe impl<T: Send + Sync> Sync for BootCell<T> {}

impl<T> BootCell<T> {
    /// Empty.
    pub const fn new() -> Self {
        Self { set: AtomicBool::new(false), value: UnsafeCell::new(None) }
    }

    /// Sets the value. Boot CPU only, while it is the only one.
    ///
    /// # Panics
    /// If it is set already.
    pub fn set(&self, value: T) {
        assert!(!self.set.load(Ordering::Relaxed), "boot value set twice");
        // SAFETY: the only CPU, and nobody has a reference before `set`.
        unsafe { *self.value.get() = Some(value) };
        self.set.store(true, Ordering::Release);
    }

    /// The value, once it is set.
    #[inline(always)]
    pub fn get(&self) -> Option<&T> {
        if !self.set.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: never written again.
        unsafe { (*self.value.get()).as_ref() }
    }
}
