//! The lock around waiter lists and lists of tasks. The kernel supplies its own ([`RawLock`]), which keeps interrupts
//! off where wakers are used in interrupts; [`Spin`] is for hosts. The invariant: nothing is woken, dropped or polled
//! while one is held.

use super::owned::Owned;
use crate::sync::{AtomicU8, Ordering, const_new};

/// A lock without data.
///
/// # Safety
/// Between the return of [`acquire`](RawLock::acquire) and the matching [`release`](RawLock::release) no other
/// `acquire` returns, and whoever acquires next sees all that was done before the release.
pub unsafe trait RawLock: Send + Sync + 'static {
    /// What must be put back afterwards, such as the state of the interrupts.
    type Saved;

    /// An open lock.
    fn open() -> Self;

    /// Waits until the lock is ours.
    fn acquire(&self) -> Self::Saved;

    /// Takes it if it is open: for reports of a crash, which may have come upon its holder.
    fn try_acquire(&self) -> Option<Self::Saved>;

    /// Gives it back.
    ///
    /// # Safety
    /// The caller must have it, and `saved` must come from that `acquire`.
    unsafe fn release(&self, saved: Self::Saved);
}

/// Spins. For hosts and tests.
#[derive(Debug)]
pub struct Spin(AtomicU8);

impl Spin {
    const_new! {
        /// An open lock.
        pub const fn new() -> Self {
            Self(AtomicU8::new(0))
        }
    }
}

impl Default for Spin {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: one exchange of 0 for 1 succeeds until a 0 is stored; acquire and release order what is done between.
unsafe impl RawLock for Spin {
    type Saved = ();

    fn open() -> Self {
        Self::new()
    }

    #[inline]
    fn acquire(&self) {
        // Acquire: sees what the one before did. Relaxed on failure: nothing is decided but to try again.
        while self.0.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            crate::sync::relax();
        }
    }

    fn try_acquire(&self) -> Option<()> {
        // Acquire: as above.
        self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).ok().map(drop)
    }

    #[inline]
    unsafe fn release(&self, (): ()) {
        // Release: for whoever acquires next.
        self.0.store(0, Ordering::Release);
    }
}

/// A value under a [`RawLock`].
pub(crate) struct Lock<T, R: RawLock> {
    raw: R,
    /// Owned by whoever has the lock.
    value: Owned<T>,
}

impl<T, R: RawLock> Lock<T, R> {
    pub(crate) fn new(value: T) -> Self {
        Self { raw: R::open(), value: Owned::new(value) }
    }

    /// Does `f` with the lock held. No guard: what is inside can't be held on to by mistake.
    #[inline]
    pub(crate) fn with<O>(&self, f: impl FnOnce(&mut T) -> O) -> O {
        self.holding(self.raw.acquire(), f)
    }

    /// The same if it is open.
    pub(crate) fn try_with<O>(&self, f: impl FnOnce(&mut T) -> O) -> Option<O> {
        Some(self.holding(self.raw.try_acquire()?, f))
    }

    /// Does `f`, and opens the lock, which is ours.
    #[inline(always)]
    fn holding<O>(&self, saved: R::Saved, f: impl FnOnce(&mut T) -> O) -> O {
        /// Opens the lock also if `f` panics, on a host.
        struct Held<'a, R: RawLock>(&'a R, Option<R::Saved>);

        impl<R: RawLock> Drop for Held<'_, R> {
            #[inline]
            fn drop(&mut self) {
                if let Some(saved) = self.1.take() {
                    // SAFETY: acquired below, and this is its only release.
                    unsafe { self.0.release(saved) };
                }
            }
        }

        let _held = Held(&self.raw, Some(saved));
        // SAFETY: the lock is ours.
        unsafe { self.value.with(f) }
    }
}
