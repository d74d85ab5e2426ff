//! What futures wait for. Each is safe to drop at any moment: what was handed to a waiter that goes is handed to the
//! next.
//!
//! None asks for memory while it waits; the waiting future itself is the entry of the list. The lock is a parameter:
//! with one that keeps interrupts off ([`Platform::Lock`](super::Platform::Lock) of a kernel), what the text of a
//! module allows may be done in interrupts. Wakers are used and dropped when the lock is open.

mod channel;
mod event;
mod mutex;
mod notify;
mod semaphore;
pub(crate) mod waiters;

#[cfg(all(test, not(loom)))]
mod tests;

pub use channel::{Receiver, Receiving, Sender, Sending, TrySendError, channel};
pub use event::Event;
pub use mutex::{Mutex, MutexGuard};
pub use notify::{Notified, Notify};
pub use semaphore::{Acquire, Closed, Permits, Semaphore};
