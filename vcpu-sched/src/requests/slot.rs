//! Who owns a slot of the mailbox: one word, changed by both sides.
//!
//! ```text
//!            post (VMM)            take (kernel)           answer (kernel)
//!   Free ---------------> Posted ---------------> Taken -------------------> Answered
//!    ^                      |                                                   |
//!    +----------------------+---------------------------------------------------+
//!         withdraw (VMM)                      release (VMM)
//! ```
//! Free and Answered slots are the VMM's, Taken ones the kernel's. Posted is the one state that both may leave: each by a
//! compare-and-swap, so one of them gets it. The invariant: a side writes into a slot only while it owns it.

use crate::sync::{AtomicU32, Ordering, const_new};

/// What the word says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum SlotState {
    /// Nothing in it.
    Free = 0,
    /// A request that nobody has looked at.
    Posted = 1,
    /// The kernel carries it out.
    Taken = 2,
    /// The answer is in it.
    Answered = 3,
}

/// The word of one slot.
#[derive(Debug)]
#[repr(transparent)]
pub struct SlotWord(AtomicU32);

impl Default for SlotWord {
    fn default() -> Self {
        Self::new()
    }
}

impl SlotWord {
    const_new! {
        /// Of a free slot.
        pub const fn new() -> Self {
            Self(AtomicU32::new(SlotState::Free as u32))
        }
    }

    /// Acquire on success, so that the new owner sees what the last one wrote; release, so that the next one sees what this one
    /// did. A failure decides nothing that rests on memory.
    fn change(&self, from: SlotState, to: SlotState) -> bool {
        self.0.compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The VMM has written a request. False: the kernel says that the slot isn't free.
    #[must_use]
    pub fn post(&self) -> bool {
        self.change(SlotState::Free, SlotState::Posted)
    }

    /// The VMM waits no more. True: the kernel has not seen the request and never will, the slot is free. False: it is about it,
    /// or done.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        self.change(SlotState::Posted, SlotState::Free)
    }

    /// The kernel looks for something to do. True: the slot is its own now.
    #[must_use]
    pub fn take(&self) -> bool {
        self.change(SlotState::Posted, SlotState::Taken)
    }

    /// The kernel has written the answer. False: it had not taken the slot.
    pub fn answer(&self) -> bool {
        self.change(SlotState::Taken, SlotState::Answered)
    }

    /// Whether the VMM may read the answer. Acquire: what the kernel wrote before is seen.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.0.load(Ordering::Acquire) == SlotState::Answered as u32
    }

    /// The VMM has read the answer. False: there was none.
    pub fn release(&self) -> bool {
        self.change(SlotState::Answered, SlotState::Free)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_side_changes_only_what_is_its_own() {
        type Step = fn(&SlotWord) -> bool;
        let steps: [(Step, SlotState); 5] = [
            (SlotWord::post, SlotState::Free),
            (SlotWord::withdraw, SlotState::Posted),
            (SlotWord::take, SlotState::Posted),
            (SlotWord::answer, SlotState::Taken),
            (SlotWord::release, SlotState::Answered),
        ];
        for state in [SlotState::Free, SlotState::Posted, SlotState::Taken, SlotState::Answered] {
            for (step, from) in steps {
                let word = SlotWord::new();
                word.0.store(state as u32, Ordering::Relaxed);
                assert_eq!(step(&word), state == from, "{state:?}, a step from {from:?}");
            }
        }
        // What no side ever wrote is left alone.
        let word = SlotWord::new();
        word.0.store(77, Ordering::Relaxed);
        assert!(steps.iter().all(|(step, _)| !step(&word)) && !word.is_answered());
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::thread;
    use std::rc::Rc;

    struct Shared {
        word: SlotWord,
        /// Loom reports two sides that touch it at once, or in no order.
        place: UnsafeCell<()>,
        /// Relaxed everywhere: the word must order it.
        content: AtomicU32,
    }

    impl Shared {
        fn write(&self, content: u32) {
            self.place.with_mut(|_| ());
            self.content.store(content, Ordering::Relaxed);
        }

        fn read(&self) -> u32 {
            self.place.with(|_| ());
            self.content.load(Ordering::Relaxed)
        }

        fn kernel(&self) {
            if self.word.take() {
                self.write(self.read() + 100);
                assert!(self.word.answer());
            }
        }
    }

    #[test]
    fn loom_a_slot_has_one_owner_and_an_answer_belongs_to_its_request() {
        loom::model(|| {
            let slot =
                Rc::new(Shared { word: SlotWord::new(), place: UnsafeCell::new(()), content: AtomicU32::new(0) });
            slot.write(1);
            assert!(slot.word.post());
            let guest = thread::spawn({
                let slot = slot.clone();
                move || slot.kernel()
            });
            // The VMM loses patience at some moment.
            let again = slot.word.withdraw();
            if again {
                slot.write(2);
                assert!(slot.word.post());
            }
            guest.join().unwrap();
            slot.kernel(); // the interrupt of the second request
            assert!(slot.word.is_answered());
            assert_eq!(slot.read(), if again { 102 } else { 101 });
            assert!(slot.word.release());
        });
    }
}
