//! Memory whose owner is decided by a protocol around it. Private to this crate; the invariant of each is told where it
//! is declared. In a loom model two accesses that nothing orders are an error.

/// An `UnsafeCell` that can be shared.
pub(crate) struct Owned<T>(
    #[cfg(not(all(test, loom)))] core::cell::UnsafeCell<T>,
    #[cfg(all(test, loom))] loom::cell::UnsafeCell<T>,
);

// SAFETY: every access goes through `with`, whose callers are each other's only ones by protocol; it may be made by any
// of several threads, so what is inside must be fit to move between them.
unsafe impl<T: Send> Sync for Owned<T> {}

impl<T> Owned<T> {
    crate::sync::const_new! {
        /// Holds `value`.
        pub const fn new(value: T) -> Self {
            #[cfg(not(all(test, loom)))]
            return Self(core::cell::UnsafeCell::new(value));
            #[cfg(all(test, loom))]
            return Self(loom::cell::UnsafeCell::new(value));
        }
    }

    /// Gives what is inside to `f`.
    ///
    /// # Safety
    /// The caller must be its owner while `f` runs: nobody else calls `with` meanwhile, `f` itself included.
    #[inline(always)]
    pub(crate) unsafe fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        #[cfg(not(all(test, loom)))]
        // SAFETY: by this function's contract there is no other reference.
        return f(unsafe { &mut *self.0.get() });
        #[cfg(all(test, loom))]
        // SAFETY: by this function's contract there is no other reference; loom checks it.
        return self.0.with_mut(|inside| f(unsafe { &mut *inside }));
    }
}
