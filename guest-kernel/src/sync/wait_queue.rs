//! Waiting for a condition.
//!
//! The protocol that loses no wake-up: the waiter (1) announces `Block`, (2) joins the queue, (3) looks at its condition,
//! (4) leaves its CPU. The waker makes the condition true, then takes waiters off the queue and wakes them. Either the waiter's
//! look comes after the change, or its entry was in the queue when the waker looked; and a wake-up between (1) and (4) turns
//! (4) into a mere yield (the state table, `vcpu_sched::task::state`).
//!
//! A condition is evaluated while the task may already be announced as blocking, so it must not sleep: no `Mutex`, no user
//! memory.
//!
//! Entries hold counted handles and live in the queue's own memory: kernel stacks are mapped at one address in every task,
//! so nothing on a stack can be shared.

use alloc::collections::VecDeque;
use alloc::sync::Arc;

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;
use vcpu_sched::task::state::Event;

use super::SpinLock;
use crate::sched;
use crate::task::{Task, current};
use crate::time;
use crate::trace;

/// Why a wait ended without its condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupted {
    /// The ABI layer has work for the task (a signal).
    Signal,
    /// The deadline has passed.
    TimedOut,
}

/// Called instead of waking a task: an epoll instance, for example. May run in interrupt context; must not sleep.
pub trait WakeTarget: Send + Sync {
    /// The queue was woken.
    fn woken(&self);
}

/// Selects among the waiters of one queue (futex addresses, for example). 0 for queues that don't.
pub type WakeKey = u64;

/// Who waits.
#[derive(Clone)]
pub enum Waiter {
    /// A task, taken off the queue when woken.
    Task(Arc<Task>),
    /// A target that stays until it is removed.
    Target(Arc<dyn WakeTarget>),
}

impl Waiter {
    fn is(&self, other: &Waiter) -> bool {
        match (self, other) {
            (Self::Task(a), Self::Task(b)) => Arc::ptr_eq(a, b),
            (Self::Target(a), Self::Target(b)) => core::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b)),
            _ => false,
        }
    }
}

struct Entry {
    waiter: Waiter,
    key: WakeKey,
    /// A waiter that consumes what it waits for, of which one is enough. Others (poll) are always woken.
    exclusive: bool,
}

/// Tasks that wait for something.
pub struct WaitQueue {
    /// What a task here waits for, for the VMM's task view.
    why: WaitReason,
    /// Guards the list only; conditions have their own protection.
    entries: SpinLock<VecDeque<Entry>>,
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self::of(WaitReason::Other)
    }

    /// Nobody waits; who will, waits for this.
    pub const fn of(why: WaitReason) -> Self {
        Self { why, entries: SpinLock::new(VecDeque::new()) }
    }

    /// Adds a waiter without blocking (poll, epoll). Remove it with [`WaitQueue::remove`].
    pub fn add(&self, waiter: Waiter, key: WakeKey) {
        self.entries.lock().push_back(Entry { waiter, key, exclusive: false });
    }

    /// Takes a waiter off. Returns whether it was still there.
    pub fn remove(&self, waiter: &Waiter) -> bool {
        let removed = {
            let mut entries = self.entries.lock();
            entries.iter().position(|e| e.waiter.is(waiter)).and_then(|i| entries.remove(i))
        };
        removed.is_some() // the handle drops after the lock
    }

    /// Sleeps until `condition` gives a value, whatever happens meanwhile.
    pub fn wait_until<T>(&self, mut condition: impl FnMut() -> Option<T>) -> T {
        loop {
            if let Some(v) = condition() {
                return v;
            }
            if let Ok(v) = self.wait_once(0, None, false, &mut condition) {
                return v;
            }
        }
    }

    /// Sleeps until `condition` gives a value, the deadline (monotonic clock) passes, or the task has a signal.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn wait_interruptible<T>(
        &self,
        deadline: Option<Nanos>,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Result<T, Interrupted> {
        self.wait_keyed(0, deadline, &mut condition)
    }

    /// As [`WaitQueue::wait_interruptible`], among the waiters with `key`.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn wait_keyed<T>(
        &self,
        key: WakeKey,
        deadline: Option<Nanos>,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Result<T, Interrupted> {
        loop {
            if let Some(v) = condition() {
                return Ok(v);
            }
            match self.wait_once(key, deadline, true, &mut condition) {
                Ok(v) => return Ok(v),
                Err(None) => {}
                Err(Some(e)) => return Err(e),
            }
        }
    }

    /// One round of the protocol. `Err(None)`: woken, look again.
    fn wait_once<T>(
        &self,
        key: WakeKey,
        deadline: Option<Nanos>,
        interruptible: bool,
        condition: &mut impl FnMut() -> Option<T>,
    ) -> Result<T, Option<Interrupted>> {
        let task = current().to_arc();
        let waiter = Waiter::Task(task.clone());
        task.set_wait_reason(self.why);
        let block = task.state.apply(Event::Block);
        debug_assert!(block.is_ok());
        self.entries.lock().push_back(Entry { waiter: waiter.clone(), key, exclusive: true });
        let stop = if let Some(v) = condition() {
            Some(Ok(v))
        } else if interruptible && task.is_interrupted() {
            Some(Err(Some(Interrupted::Signal)))
        } else if deadline.is_some_and(|d| time::now() >= d) {
            Some(Err(Some(Interrupted::TimedOut)))
        } else {
            None
        };
        let result = match stop {
            Some(r) => {
                let _ = task.state.apply(Event::CancelBlock);
                r
            }
            None => {
                let timer = deadline.map(|d| time::timer::wake_at(d, task.clone()));
                trace::block(self.why, core::ptr::from_ref(self) as u64);
                sched::block();
                if let Some(t) = timer {
                    t.cancel();
                }
                Err(None)
            }
        };
        let still_queued = self.remove(&waiter);
        if !still_queued && result.is_err() && matches!(result, Err(Some(_))) {
            // A waker spent its wake-up on us although we give up: pass it on.
            self.wake(1, |k| k == key);
        }
        result
    }

    /// Wakes the first task that waits (and every non-exclusive waiter).
    pub fn wake_one(&self) {
        self.wake(1, |_| true);
    }

    /// Wakes all.
    pub fn wake_all(&self) {
        self.wake(usize::MAX, |_| true);
    }

    /// Wakes up to `n` exclusive waiters whose key `select` accepts, and all others that it accepts. Returns how many
    /// exclusive ones.
    pub fn wake(&self, n: usize, select: impl Fn(WakeKey) -> bool) -> usize {
        let mut woken = 0;
        let mut entries = self.entries.lock();
        let mut i = 0;
        while i < entries.len() {
            let e = &entries[i];
            if !select(e.key) || (e.exclusive && woken >= n) {
                i += 1;
                continue;
            }
            match &e.waiter {
                Waiter::Task(task) => {
                    sched::wake(task);
                    woken += usize::from(e.exclusive);
                    // The waker's own handle is never the last: the task removes itself only after it ran again.
                    if i == 0 {
                        entries.pop_front(); // the common case, and much cheaper
                    } else {
                        entries.remove(i);
                    }
                }
                Waiter::Target(t) => {
                    t.woken();
                    i += 1;
                }
            }
        }
        woken
    }
}
