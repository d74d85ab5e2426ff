//! The life of an agent, as the guest decides it: a table with its actions.
//!
//! The agent writes its wish into its page (a number and flags); the guest looks now and then, applies [`Event`]s and carries
//! out the [`Action`]. The invariant: tasks wait for an agent only in [`Life::Online`], and in [`Life::HandOff`] for a bounded time.

use super::abi::{attach_flags, guest_state};
use crate::ids::Nanos;

/// Why an agent was ejected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// A task was queued for longer than the limit.
    Timeout,
    /// Too many refused commits or requests.
    Flood,
    /// The enclave's owner wanted it.
    Owner,
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Timeout => "a task waited too long for a decision",
            Self::Flood => "too many refused commits or requests",
            Self::Owner => "the enclave's owner asked for it",
        })
    }
}

/// Who decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Nobody: tasks run as fair ones.
    Vacant,
    /// This agent.
    Online {
        /// Its number.
        nonce: u32,
        /// The guest rings its doorbell.
        sleeps: bool,
    },
    /// This one has left, and the next is awaited.
    HandOff {
        /// Its number.
        nonce: u32,
        /// Since then.
        since: Nanos,
    },
    /// Nobody, because this one was thrown out.
    Ejected {
        /// Its number.
        nonce: u32,
        /// Why.
        reason: Reason,
    },
}

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The agent's wish, looked at.
    Wish {
        /// Its number; 0: none.
        nonce: u32,
        /// [`attach_flags`].
        flags: u32,
        /// The time.
        now: Nanos,
        /// How long a hand-off may last.
        hand_off_limit: Nanos,
    },
    /// Throw it out.
    Eject(Reason),
}

/// What the guest must do.
#[must_use = "the table decides what must be done, and only the caller can do it"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Tasks wait for the agent from now on.
    Start {
        /// Tell it of all tasks.
        discover: bool,
    },
    /// Publish that the agent has left; tasks go on waiting.
    Await,
    /// Tasks run as fair ones from now on.
    FallBack,
}

impl Life {
    /// Do tasks wait for an agent?
    pub const fn delegates(self) -> bool {
        matches!(self, Self::Online { .. } | Self::HandOff { .. })
    }

    /// May commits be made?
    pub const fn is_online(self) -> bool {
        matches!(self, Self::Online { .. })
    }

    /// The agent's number and the [`guest_state`].
    pub const fn told(self) -> (u32, u32) {
        match self {
            Self::Vacant => (0, guest_state::VACANT),
            Self::Online { nonce, .. } => (nonce, guest_state::ONLINE),
            Self::HandOff { nonce, .. } => (nonce, guest_state::HAND_OFF),
            Self::Ejected { nonce, reason } => (
                nonce,
                match reason {
                    Reason::Timeout => guest_state::EJECTED_TIMEOUT,
                    Reason::Flood => guest_state::EJECTED_FLOOD,
                    Reason::Owner => guest_state::EJECTED_OWNER,
                },
            ),
        }
    }

    /// The life, one line per edge.
    pub fn on(self, event: Event) -> (Self, Action) {
        match event {
            Event::Eject(reason) => match self {
                Self::Online { nonce, .. } | Self::HandOff { nonce, .. } => {
                    (Self::Ejected { nonce, reason }, Action::FallBack)
                }
                Self::Vacant | Self::Ejected { .. } => (self, Action::Nothing),
            },
            Event::Wish { nonce, flags, now, hand_off_limit } => {
                let wants = nonce != 0 && flags & attach_flags::ONLINE != 0;
                let online = Self::Online { nonce, sleeps: flags & attach_flags::SLEEPS != 0 };
                let start = Action::Start { discover: flags & attach_flags::DISCOVER != 0 };
                match self {
                    Self::Vacant if wants => (online, start),
                    // One that was thrown out must come back under another number: its wish still stands there.
                    Self::Ejected { nonce: out, .. } if wants && nonce != out => (online, start),
                    Self::Vacant | Self::Ejected { .. } => (self, Action::Nothing),
                    Self::Online { nonce: present, .. } if wants && nonce == present => (self, Action::Nothing),
                    // Another number without a gap between: the hand-over was faster than our look.
                    Self::Online { .. } if wants => (online, start),
                    Self::Online { nonce, .. } => (Self::HandOff { nonce, since: now }, Action::Await),
                    Self::HandOff { .. } if wants => (online, start),
                    Self::HandOff { since, .. } if now.saturating_sub(since) > hand_off_limit => {
                        (Self::Vacant, Action::FallBack)
                    }
                    Self::HandOff { .. } => (self, Action::Nothing),
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn wish(nonce: u32, now: u64) -> Event {
        Event::Wish {
            nonce,
            flags: attach_flags::ONLINE | attach_flags::DISCOVER,
            now: Nanos(now),
            hand_off_limit: Nanos(100),
        }
    }

    const START: Action = Action::Start { discover: true };

    #[test]
    fn agents_come_and_go() {
        let (online, action) = Life::Vacant.on(wish(7, 0));
        assert_eq!((online, action), (Life::Online { nonce: 7, sleeps: false }, START));
        assert_eq!(online.on(wish(7, 1)), (online, Action::Nothing));
        let (between, action) = online.on(wish(0, 5));
        assert_eq!((between.delegates(), between.is_online(), action), (true, false, Action::Await));
        assert_eq!(between.on(wish(0, 105)), (between, Action::Nothing));
        assert_eq!(between.on(wish(0, 106)), (Life::Vacant, Action::FallBack));
        assert_eq!(between.on(wish(8, 106)), (Life::Online { nonce: 8, sleeps: false }, START));
        assert_eq!(online.on(wish(8, 1)), (Life::Online { nonce: 8, sleeps: false }, START));
    }

    #[test]
    fn who_was_thrown_out_stays_out_until_it_has_another_number() {
        for reason in [Reason::Timeout, Reason::Flood, Reason::Owner] {
            let out = Life::Ejected { nonce: 7, reason };
            for from in [Life::Online { nonce: 7, sleeps: true }, Life::HandOff { nonce: 7, since: Nanos(0) }] {
                assert_eq!(from.on(Event::Eject(reason)), (out, Action::FallBack));
            }
            assert_eq!(out.on(Event::Eject(Reason::Owner)), (out, Action::Nothing));
            assert_eq!(out.on(wish(7, 1)), (out, Action::Nothing));
            assert_eq!(out.on(wish(0, 1)), (out, Action::Nothing));
            assert_eq!(out.on(wish(8, 1)).1, START);
        }
        assert_eq!(Life::Vacant.on(Event::Eject(Reason::Owner)), (Life::Vacant, Action::Nothing));
    }

    #[test]
    fn a_number_without_the_flag_is_no_wish() {
        let event = Event::Wish { nonce: 3, flags: attach_flags::SLEEPS, now: Nanos(0), hand_off_limit: Nanos(1) };
        assert_eq!(Life::Vacant.on(event), (Life::Vacant, Action::Nothing));
    }
}
