//! The doorbell: how an agent sleeps without losing a message.
//!
//! One word in the agent's page. The guest [rings](Bell::ring) after each message, but only for an agent that said at attach that it sleeps:
//! the guest of one that polls pays nothing. The invariant: an agent that was allowed to sleep is woken for every message that
//! it had not seen.
//!
//! # The race
//! Wrong would be: the agent finds no message and sleeps, and the guest believes that it is awake. Both sides make *one*
//! read-modify-write on the word, so one of them is first:
//! - [`may_sleep`](Bell::may_sleep) first: `ring` reads ASLEEP, and the guest wakes the agent.
//! - `ring` first: `may_sleep` finds RUNG and refuses; the agent takes another turn, after [`woke`](Bell::woke).
//!
//! `woke` before every turn, never between a turn and `may_sleep`: that would wipe out the ring for a message that the turn did
//! not see. A ring that it wipes out came after its message was sent, so the turn that follows sees that.
//!
//! The word is the agent's to scribble on; all it gains is to be woken too often, or not.

use crate::sync::{AtomicU64, Ordering};

/// The agent is awake.
const AWAKE: u64 = 0;
/// It sleeps, or is about to.
const ASLEEP: u64 = 1;
/// There was a message since it was [awake](AWAKE) last.
const RUNG: u64 = 2;

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct Bell<'m>(&'m AtomicU64);

impl<'m> Bell<'m> {
    pub(super) fn new(word: &'m AtomicU64) -> Self {
        Self(word)
    }

    /// Guest: there is a message. True: wake the agent.
    ///
    /// Release, so that an agent that finds it rung sees the message; acquire, so that we wake it after it went to sleep.
    #[inline]
    #[must_use = "a sleeping agent notices nothing"]
    pub fn ring(&self) -> bool {
        self.0.swap(RUNG, Ordering::AcqRel) == ASLEEP
    }

    /// Agent: nothing was found; may it sleep?
    ///
    /// Acquire, so that the turn after a refusal sees what was rung for; release, so that the guest wakes us after what we did.
    #[must_use = "one that sleeps although it was rung isn't woken for it"]
    pub fn may_sleep(&self) -> bool {
        self.0.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Agent: it is awake, and takes a turn now.
    ///
    /// A swap rather than a store, so that it can acquire: what was sent before a ring that it wipes out is seen.
    pub fn woke(&self) {
        self.0.swap(AWAKE, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_ring_for_many_messages() {
        let word = AtomicU64::new(AWAKE);
        let bell = Bell::new(&word);
        assert!(bell.may_sleep());
        assert!(bell.ring());
        assert!(!bell.ring() && !bell.may_sleep());
        bell.woke();
        assert!(!bell.ring(), "it is awake");
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::thread;
    use std::rc::Rc;

    #[test]
    fn loom_an_agent_that_sleeps_is_woken_for_what_it_has_not_seen() {
        loom::model(|| {
            // The bell, and two messages.
            let words = Rc::new((AtomicU64::new(AWAKE), AtomicU64::new(0)));
            let guest = thread::spawn({
                let words = words.clone();
                move || {
                    let mut woken = false;
                    for n in 1..=2 {
                        words.1.store(n, Ordering::Relaxed);
                        woken |= Bell::new(&words.0).ring();
                    }
                    woken
                }
            });
            let bell = Bell::new(&words.0);
            let mut seen = 0;
            let mut sleeps = false;
            for _ in 0..3 {
                bell.woke();
                seen = words.1.load(Ordering::Relaxed);
                sleeps = bell.may_sleep();
                if sleeps {
                    break;
                }
            }
            let woken = guest.join().unwrap();
            assert!(!sleeps || seen == 2 || woken, "it sleeps on message {}", seen + 1);
        });
    }
}
