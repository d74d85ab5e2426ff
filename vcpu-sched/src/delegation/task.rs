//! A delegated task's way, as a table: where it is, and what each event tells the agent.
//!
//! The guest keeps one [`Record`] for each task, in private memory, under the enclave's lock, and applies an [`Event`] for
//! everything that happens. The invariants: a task is in exactly one [`Place`]; NEW is the first message of each; YIELD, BLOCKED
//! and PREEMPT are told once the task is off its CPU; a chain of SWITCHTO is told by two messages, whatever its length.

use super::abi::{message_flags, task_flags};
use super::message::MessageType;
use crate::ids::CpuId;

/// Where a task is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// In no enclave (any more).
    Gone,
    /// Waits for something.
    Blocked,
    /// May run, and waits for the agent.
    Queued,
    /// Committed for that CPU, which has not switched to it.
    Latched(CpuId),
    /// Runs there.
    OnCpu(CpuId),
}

/// What the guest knows of a task's way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// Where it is.
    pub place: Place,
    /// Its NEW is still to come.
    pub new_deferred: bool,
    /// It has its CPU from another task, which the agent was not told.
    pub in_chain: bool,
}

/// How a task leaves its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Leave {
    /// It waits.
    Blocked,
    /// It gives way.
    Yield,
    /// It must give way.
    Preempt,
}

/// What happens to a task.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// It comes into the enclave while it runs nowhere.
    Join {
        /// It may run.
        runnable: bool,
    },
    /// It comes into the enclave while it runs.
    JoinRunning(CpuId),
    /// An agent wants to be told of all tasks.
    Discover,
    /// What it waited for has happened.
    Wake,
    /// A commit chose it.
    Latch(CpuId),
    /// Its CPU switches to it.
    SwitchIn {
        /// Where.
        cpu: CpuId,
        /// ON_CPU was asked for.
        tell: bool,
        /// There is no agent: it was not latched.
        undelegated: bool,
    },
    /// Another commit, or a higher class, takes its place before it ran.
    Displace {
        /// ON_CPU was asked for.
        tell: bool,
    },
    /// It is off its CPU.
    Leave {
        /// Why.
        why: Leave,
        /// The one who displaced it asked for silence.
        elide: bool,
    },
    /// It gives its CPU to another, and waits. It is off its CPU.
    GiveAway,
    /// It has been given that CPU.
    TakeOver(CpuId),
    /// It leaves the enclave.
    Depart,
    /// It has ended.
    Die,
    /// Its CPU set was changed.
    AffinityChanged,
    /// Its nice value was changed.
    PriorityChanged,
}

/// A message to send: its kind and flags.
pub type Tell = (MessageType, u16);

/// The messages of an event, in order.
pub type Tells = [Option<Tell>; 2];

/// An event that can't happen to a task there; a fault of the kernel's, for which the agent can do nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadTransition {
    /// The record before, unchanged.
    pub from: Record,
    /// The event.
    pub event: Event,
}

impl core::fmt::Display for BadTransition {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "delegated task in {:?}: impossible {:?}", self.from, self.event)
    }
}

impl core::error::Error for BadTransition {}

const SILENT: Tells = [None, None];

const fn one(kind: MessageType, flags: u16) -> Tells {
    [Some((kind, flags)), None]
}

impl Record {
    /// Of a status word that no task has.
    pub const GONE: Self = Self { place: Place::Gone, new_deferred: false, in_chain: false };

    const fn at(place: Place) -> Self {
        Self { place, ..Self::GONE }
    }

    const fn chain_flag(self) -> u16 {
        if self.in_chain { message_flags::FROM_SWITCHTO } else { 0 }
    }

    /// What [`task_flags`] say of it.
    pub const fn flags(self) -> u32 {
        let place = match self.place {
            Place::Gone => return task_flags::CANFREE | task_flags::ALLOCATED,
            Place::Blocked => 0,
            Place::Queued | Place::Latched(_) => task_flags::TASK_RUNNABLE,
            Place::OnCpu(_) => task_flags::TASK_RUNNABLE | task_flags::TASK_ONCPU,
        };
        let gated = if self.new_deferred { task_flags::MSG_GATED } else { 0 };
        task_flags::INUSE | task_flags::ALLOCATED | place | gated
    }

    /// The way, one line per edge.
    ///
    /// # Errors
    /// [`BadTransition`]; nothing has changed.
    pub const fn on(self, event: Event) -> Result<(Self, Tells), BadTransition> {
        use MessageType as M;
        use Place::{Blocked, Gone, Latched, OnCpu, Queued};
        let runnable = message_flags::RUNNABLE;
        Ok(match (self.place, event) {
            (Gone, Event::Join { runnable: true }) => (Self::at(Queued), one(M::New, runnable)),
            (Gone, Event::Join { runnable: false }) => (Self::at(Blocked), one(M::New, 0)),
            // Told when it is off: an agent can do nothing with a task that runs, and must not see another message first.
            (Gone, Event::JoinRunning(cpu)) => (Self { new_deferred: true, ..Self::at(OnCpu(cpu)) }, SILENT),

            (Gone, Event::Discover) => (self, SILENT),
            (OnCpu(_), Event::Discover) => (Self { new_deferred: true, ..self }, SILENT),
            (Blocked, Event::Discover) => (self, one(M::New, 0)),
            (Queued | Latched(_), Event::Discover) => (Self::at(Queued), one(M::New, runnable)),

            (Blocked, Event::Wake) => (Self::at(Queued), one(M::Wakeup, 0)),
            (_, Event::Wake) => (self, SILENT), // surplus

            (Queued, Event::Latch(cpu)) => (Self::at(Latched(cpu)), SILENT),
            (Latched(_), Event::SwitchIn { cpu, tell: true, .. }) => (Self::at(OnCpu(cpu)), one(M::OnCpu, 0)),
            (Latched(_), Event::SwitchIn { cpu, tell: false, .. }) => (Self::at(OnCpu(cpu)), SILENT),
            (Queued, Event::SwitchIn { cpu, undelegated: true, .. }) => (Self::at(OnCpu(cpu)), SILENT),
            (Latched(_), Event::Displace { tell }) => {
                let preempt = Some((M::Preempt, message_flags::WAS_LATCHED));
                let on_cpu = if tell { Some((M::OnCpu, message_flags::WAS_LATCHED)) } else { None };
                (Self::at(Queued), if tell { [on_cpu, preempt] } else { [preempt, None] })
            }

            (OnCpu(_), Event::Leave { why, elide }) => {
                let (place, kind) = match why {
                    Leave::Blocked => (Blocked, M::Blocked),
                    Leave::Yield => (Queued, M::Yield),
                    Leave::Preempt => (Queued, M::Preempt),
                };
                let tells = if self.new_deferred {
                    one(M::New, if matches!(place, Queued) { runnable } else { 0 })
                } else if elide && matches!(why, Leave::Preempt) && !self.in_chain {
                    SILENT
                } else {
                    one(kind, self.chain_flag())
                };
                (Self::at(place), tells)
            }

            // In the middle of a chain nothing is told: the agent still has it for blocked.
            (OnCpu(_), Event::GiveAway) if self.in_chain => (Self::at(Blocked), SILENT),
            (OnCpu(_), Event::GiveAway) if self.new_deferred => {
                (Self::at(Blocked), [Some((M::New, 0)), Some((M::SwitchTo, 0))])
            }
            (OnCpu(_), Event::GiveAway) => (Self::at(Blocked), one(M::SwitchTo, 0)),
            (Blocked, Event::TakeOver(cpu)) => (Self { in_chain: true, ..Self::at(OnCpu(cpu)) }, SILENT),

            (Blocked | Queued, Event::Depart) => (Self::GONE, one(M::Departed, 0)),
            (Latched(_), Event::Depart) => {
                (Self::GONE, [Some((M::Preempt, message_flags::WAS_LATCHED)), Some((M::Departed, 0))])
            }
            // Not runnable: an agent that tried to run it would fail, because it is gone already.
            (OnCpu(_), Event::Depart) if self.new_deferred => {
                (Self::GONE, [Some((M::New, 0)), Some((M::Departed, message_flags::WAS_CURRENT))])
            }
            (OnCpu(_), Event::Depart) => (Self::GONE, one(M::Departed, message_flags::WAS_CURRENT | self.chain_flag())),
            (OnCpu(_), Event::Die) if self.new_deferred => (Self::GONE, [Some((M::New, 0)), Some((M::Dead, 0))]),
            (OnCpu(_), Event::Die) => (Self::GONE, one(M::Dead, self.chain_flag())),
            // One that never started, or was killed before it ran again.
            (Blocked | Queued, Event::Die) => (Self::GONE, one(M::Dead, 0)),
            (Latched(_), Event::Die) => {
                (Self::GONE, [Some((M::Preempt, message_flags::WAS_LATCHED)), Some((M::Dead, 0))])
            }

            (Gone, Event::AffinityChanged | Event::PriorityChanged) => (self, SILENT), // it raced with its end
            (_, Event::AffinityChanged | Event::PriorityChanged) if self.new_deferred => (self, SILENT),
            (_, Event::AffinityChanged) => (self, one(M::AffinityChanged, 0)),
            (_, Event::PriorityChanged) => (self, one(M::PriorityChanged, 0)),

            (_, event) => return Err(BadTransition { from: self, event }),
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::vec::Vec;

    const C: CpuId = CpuId(1);

    fn walk(events: &[Event]) -> (Record, Vec<Tell>) {
        events.iter().fold((Record::GONE, Vec::new()), |(record, mut told), &event| {
            let (next, tells) = record.on(event).unwrap_or_else(|bad| panic!("{bad}"));
            told.extend(tells.into_iter().flatten());
            (next, told)
        })
    }

    const IN: Event = Event::SwitchIn { cpu: C, tell: false, undelegated: false };
    const PREEMPT: Event = Event::Leave { why: Leave::Preempt, elide: false };
    const BLOCK: Event = Event::Leave { why: Leave::Blocked, elide: false };
    const JOIN: Event = Event::Join { runnable: true };

    #[test]
    fn new_is_first_and_takes_the_place_of_what_it_was_deferred_over() {
        use MessageType as M;
        let told = |events: &[Event]| walk(events).1;
        let join = Event::JoinRunning(C);
        assert_eq!(told(&[join, PREEMPT]), [(M::New, message_flags::RUNNABLE)]);
        assert_eq!(told(&[join, BLOCK]), [(M::New, 0)]);
        assert_eq!(told(&[join, Event::AffinityChanged, Event::PriorityChanged]), []);
        assert_eq!(told(&[join, Event::Depart]), [(M::New, 0), (M::Departed, message_flags::WAS_CURRENT)]);
        assert_eq!(told(&[join, Event::Die]), [(M::New, 0), (M::Dead, 0)]);
        assert_eq!(told(&[join, Event::GiveAway]), [(M::New, 0), (M::SwitchTo, 0)]);
        assert_eq!(told(&[join, Event::Depart, Event::AffinityChanged])[2..], [], "affinity race");
    }

    #[test]
    fn a_latch_that_is_displaced_is_told_in_order() {
        use MessageType as M;
        let latched = [JOIN, Event::Latch(C)];
        let (record, told) = walk(&[latched[0], latched[1], Event::Displace { tell: true }]);
        let was_latched = message_flags::WAS_LATCHED;
        assert_eq!(record.place, Place::Queued);
        assert_eq!(told[1..], [(M::OnCpu, was_latched), (M::Preempt, was_latched)]);
        let (_, told) = walk(&[latched[0], latched[1], Event::Depart]);
        assert_eq!(told[1..], [(M::Preempt, was_latched), (M::Departed, 0)]);
    }

    #[test]
    fn a_chain_of_any_length_costs_two_messages() {
        use MessageType as M;
        for length in 1..10 {
            let runs = [JOIN, Event::Latch(C), IN].iter().fold(Record::GONE, |r, &e| r.on(e).expect("runs").0);
            let mut told = Vec::new();
            let mut current = runs;
            for _ in 0..length {
                let (_, tells) = current.on(Event::GiveAway).expect("gives");
                told.extend(tells.into_iter().flatten());
                let sleeper = walk(&[Event::Join { runnable: false }]).0;
                let (taker, tells) = sleeper.on(Event::TakeOver(C)).expect("takes");
                told.extend(tells.into_iter().flatten());
                current = taker;
            }
            for end in [BLOCK, PREEMPT, Event::Leave { why: Leave::Preempt, elide: true }, Event::Depart] {
                let (_, tells) = current.on(end).expect("ends");
                let all: Vec<Tell> = told.iter().copied().chain(tells.into_iter().flatten()).collect();
                assert_eq!(all.len(), 2, "{end:?} after {length}");
                assert_eq!(all[0], (M::SwitchTo, 0));
                assert!(all[1].1 & message_flags::FROM_SWITCHTO != 0);
            }
        }
    }

    /// Every sequence of events up to a length, from the beginning: what is told agrees with what an agent that only reads
    /// messages makes of it.
    #[test]
    fn an_agent_that_reads_all_messages_knows_where_a_task_is() {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Believed {
            Unknown,
            Blocked,
            Runnable,
            Gone,
        }
        fn reads(believed: Believed, (kind, flags): Tell) -> Believed {
            use MessageType as M;
            match (believed, kind) {
                (Believed::Unknown | Believed::Gone, M::New) | (_, M::New) => {
                    if flags & message_flags::RUNNABLE != 0 {
                        Believed::Runnable
                    } else {
                        Believed::Blocked
                    }
                }
                (Believed::Unknown | Believed::Gone, other) => panic!("{other:?} before NEW or after the end"),
                (_, M::Dead | M::Departed) => Believed::Gone,
                (_, M::Blocked | M::SwitchTo) => Believed::Blocked,
                (_, M::Wakeup | M::Yield | M::Preempt) => Believed::Runnable,
                (same, _) => same,
            }
        }
        fn explore(record: Record, believed: Believed, depth: u32, visited: &mut u32) {
            *visited += 1;
            let fits = match record.place {
                _ if record.new_deferred => true,
                Place::Gone => matches!(believed, Believed::Unknown | Believed::Gone),
                Place::Blocked => believed == Believed::Blocked,
                Place::Queued | Place::Latched(_) => believed == Believed::Runnable,
                Place::OnCpu(_) if record.in_chain => believed == Believed::Blocked,
                Place::OnCpu(_) => believed == Believed::Runnable,
            };
            assert!(fits, "{record:?}, but the agent has {believed:?}");
            if depth == 0 {
                return;
            }
            let cpu = CpuId(0);
            let events = [
                Event::Join { runnable: true },
                Event::Join { runnable: false },
                Event::JoinRunning(cpu),
                Event::Discover,
                Event::Wake,
                Event::Latch(cpu),
                Event::SwitchIn { cpu, tell: true, undelegated: false },
                Event::Displace { tell: true },
                Event::Leave { why: Leave::Blocked, elide: false },
                Event::Leave { why: Leave::Yield, elide: false },
                Event::Leave { why: Leave::Preempt, elide: true },
                Event::GiveAway,
                Event::TakeOver(cpu),
                Event::Depart,
                Event::Die,
                Event::AffinityChanged,
                Event::PriorityChanged,
            ];
            for event in events {
                match record.on(event) {
                    Ok((next, tells)) => {
                        let believed = tells.into_iter().flatten().fold(believed, reads);
                        explore(next, believed, depth - 1, visited);
                    }
                    Err(bad) => assert_eq!((bad.from, bad.event), (record, event)),
                }
            }
        }
        let mut visited = 0;
        explore(Record::GONE, Believed::Unknown, 6, &mut visited);
        assert!(visited > 10_000, "{visited}");
    }
}
