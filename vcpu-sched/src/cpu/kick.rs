//! One interrupt for many requests.
//!
//! One [`KickWord`] per CPU. Any CPU calls [`raise`](KickWord::raise) after it has prepared what it requests, and sends
//! the IPI if told so; the IPI's handler calls [`take`](KickWord::take) first of all and then does what was requested.
//! The invariant: a request that found the word taken is followed by an IPI, and one that found it pending is seen by
//! the handler that is still to come.
//!
//! Requests are bits, so that one vector carries all of them, and "interrupted" never has to be guessed to mean
//! "reschedule".
//!
//! # The race
//! Wrong would be: a request finds another one pending, sends nothing, and the handler has already looked past it. So
//! `take` clears the word *before* the handler looks at any work:
//! - `raise` first: its bit is in what `take` returns, and `take` acquires what was prepared before it.
//! - `take` first: `raise` finds the word empty and sends a new IPI, which finds perhaps nothing left to do.
//!
//! Clearing the word after the work would swallow every request that came between.

use core::ops::BitOr;

use crate::sync::{AtomicU32, Ordering, const_new};

/// What a CPU is interrupted for: a set of bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Requests(pub u32);

impl Requests {
    /// Nothing: the word was taken by an earlier handler.
    pub const NONE: Self = Self(0);
    /// Call `schedule()` before returning to the task.
    pub const RESCHEDULE: Self = Self(1 << 0);
    /// Flush what the CPU's shootdown list says from the TLB.
    pub const SHOOTDOWN: Self = Self(1 << 1);
    /// Run what is in the CPU's call list.
    pub const CALL: Self = Self(1 << 2);
    /// Stop for good: the machine has panicked or ends.
    pub const STOP: Self = Self(1 << 3);

    /// Are all of `other`'s bits here?
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Is there nothing?
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Requests {
    type Output = Self;
    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The requests that are pending for a CPU. See the module's text.
#[derive(Debug)]
#[repr(transparent)]
pub struct KickWord(AtomicU32);

impl Default for KickWord {
    fn default() -> Self {
        Self::new()
    }
}

impl KickWord {
    const_new! {
        /// Nothing pending.
        pub const fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// Adds requests. True if the caller must send the IPI; false if one is on its way already, or nothing was asked.
    ///
    /// Release: the handler that takes the bits sees what was prepared before. (Relaxed would do for the other half,
    /// which reads nothing of the CPU's.)
    #[inline]
    #[must_use = "nothing happens without the IPI"]
    pub fn raise(&self, requests: Requests) -> bool {
        self.0.fetch_or(requests.0, Ordering::Release) == 0 && !requests.is_empty()
    }

    /// Takes all requests. The first thing that the IPI's handler does.
    ///
    /// Acquire: what was prepared before [`raise`](KickWord::raise) is visible.
    #[inline]
    pub fn take(&self) -> Requests {
        Requests(self.0.swap(0, Ordering::Acquire))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn many_requests_one_interrupt() {
        let word = KickWord::new();
        assert!(!word.raise(Requests::NONE));
        assert!(word.raise(Requests::RESCHEDULE));
        assert!(!word.raise(Requests::SHOOTDOWN));
        assert!(!word.raise(Requests::RESCHEDULE));
        let taken = word.take();
        assert_eq!(taken, Requests::RESCHEDULE | Requests::SHOOTDOWN);
        assert!(taken.contains(Requests::SHOOTDOWN) && !taken.contains(Requests::CALL));
        assert!(word.take().is_empty());
        assert!(word.raise(Requests::RESCHEDULE));
    }
}

/// A CPU that only waits for IPIs, and others that request things of it: a swallowed request is a deadlock, which loom
/// reports.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::sync::Notify;
    use loom::thread;
    // Loom's threads are coroutines of one thread. Its own Arc adds orderings, and aborts where a model is to fail.
    use std::rc::Rc;

    const REQUESTS: [Requests; 2] = [Requests::RESCHEDULE, Requests::CALL];

    struct Machine {
        word: KickWord,
        /// What was prepared, one word each, in no order of their own.
        prepared: [AtomicU32; 2],
        ipi: Notify,
    }

    impl Machine {
        fn new() -> Rc<Self> {
            Rc::new(Self {
                word: KickWord::new(),
                prepared: [AtomicU32::new(0), AtomicU32::new(0)],
                ipi: Notify::new(),
            })
        }

        /// Requests `REQUESTS[bit]`, with the piece of work `slot`.
        fn request(this: &Rc<Self>, slot: usize, bit: usize) -> thread::JoinHandle<()> {
            let machine = this.clone();
            thread::spawn(move || {
                machine.prepared[slot].store(1, Ordering::Relaxed);
                if machine.word.raise(REQUESTS[bit]) {
                    machine.ipi.notify();
                }
            })
        }

        fn prepared(&self, slot: usize) -> bool {
            self.prepared[slot].load(Ordering::Relaxed) == 1
        }
    }

    #[test]
    fn loom_no_request_is_swallowed() {
        loom::model(|| {
            let machine = Machine::new();
            let others = [Machine::request(&machine, 0, 0), Machine::request(&machine, 1, 1)];
            let mut seen = Requests::NONE;
            while seen != REQUESTS[0] | REQUESTS[1] {
                machine.ipi.wait();
                seen = seen | machine.word.take();
                for (slot, &request) in REQUESTS.iter().enumerate() {
                    assert!(!seen.contains(request) || machine.prepared(slot), "requested, but not there");
                }
            }
            for other in others {
                other.join().unwrap();
            }
        });
    }

    #[test]
    fn loom_two_of_a_kind_share_a_bit_but_none_is_missed() {
        loom::model(|| {
            let machine = Machine::new();
            let others = [Machine::request(&machine, 0, 0), Machine::request(&machine, 1, 0)];
            loop {
                machine.ipi.wait();
                let _ = machine.word.take();
                if machine.prepared(0) && machine.prepared(1) {
                    break;
                }
            }
            for other in others {
                other.join().unwrap();
            }
        });
    }

    /// The model must be able to fail: a word that is cleared after the work swallows what came between.
    #[test]
    #[should_panic = "deadlock"]
    fn loom_sees_a_swallowed_request() {
        loom::model(|| {
            let machine = Machine::new();
            let others = [Machine::request(&machine, 0, 0), Machine::request(&machine, 1, 0)];
            loop {
                machine.ipi.wait();
                let done = machine.prepared(0) && machine.prepared(1);
                let _ = machine.word.take();
                if done {
                    break;
                }
            }
            for other in others {
                other.join().unwrap();
            }
        });
    }
}
