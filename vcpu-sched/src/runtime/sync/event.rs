//! A flag that is waited for: unlike a notification it stays. Anyone may set it, in interrupts too if the lock allows
//! it; the invariant: after [`set`](Event::set), and until a [`clear`](Event::clear), nobody waits.

use super::notify::Notify;
use crate::runtime::lock::{RawLock, Spin};
use crate::sync::{AtomicU8, Ordering};

/// See the module's text.
pub struct Event<R: RawLock = Spin> {
    set: AtomicU8,
    notify: Notify<R>,
}

impl<R: RawLock> Default for Event<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: RawLock> Event<R> {
    /// Not set.
    pub fn new() -> Self {
        Self { set: AtomicU8::new(0), notify: Notify::new() }
    }

    /// It has happened: all who wait go on, and all who come don't wait.
    pub fn set(&self) {
        // Release: who sees it sees what was done before.
        self.set.store(1, Ordering::Release);
        self.notify.notify_all();
    }

    /// It is over; who comes now waits for the next.
    pub fn clear(&self) {
        // Relaxed: nothing is told by it.
        self.set.store(0, Ordering::Relaxed);
    }

    /// Has it happened?
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire) != 0
    }

    /// Waits until it has happened.
    pub async fn wait(&self) {
        loop {
            // First in line, then the look: a `set` that comes between them notifies us. The lock inside orders the
            // two.
            let notified = self.notify.notified();
            if self.is_set() {
                return;
            }
            notified.await;
        }
    }
}
