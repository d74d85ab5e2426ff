//! What a task waits for, as far as it can be known: whatever it polled last that wasn't ready notes it in the task. For reports only; nothing
//! is decided by it, and a future that waits for two things at once shows one. Noted by everything that a future can wait for here.

use core::task::Waker;

use super::header;

/// What a task waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Waits {
    /// For what doesn't tell, or for nothing.
    Unknown,
    /// Permits, or a mutex.
    Permits,
    /// A notification, or an event.
    Notification,
    /// A value from a channel.
    Value,
    /// Room in a channel.
    Room,
    /// A time.
    Time,
    /// The end of another task, whose [`id`](super::TaskInfo::id) tells which.
    Task,
    /// The end of an RCU period.
    Period,
}

impl Waits {
    const ALL: [Self; 8] = [
        Self::Unknown,
        Self::Permits,
        Self::Notification,
        Self::Value,
        Self::Room,
        Self::Time,
        Self::Task,
        Self::Period,
    ];

    pub(super) fn from_u8(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Unknown)
    }
}

/// The task behind a waker waits for `what`; `which` is the address of that, or the time. A waker that isn't a task's notes nothing.
#[inline]
pub(crate) fn note(waker: &Waker, what: Waits, which: u64) {
    if let Some(task) = header::task_of(waker) {
        task.waits.set(what as u8);
        task.waits_for.set(which);
    }
}
