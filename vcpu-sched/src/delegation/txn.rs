//! Transactions: what the agent asks for on a CPU, and who owns its eight words when.
//!
//! ```text
//!                submit (agent)           claim (guest)            finish (guest)
//!   any end state ------------> Ready ------------------> Claimed ----------------> an end state
//!        ^                        |
//!        +------------------------+ withdraw (agent): Aborted
//! ```
//! In an end state the words are the agent's, while claimed the guest's. Ready is the one state that both may leave, each by a
//! compare-and-swap. The invariant: the guest acts on a [`Request`] that it copied after it had claimed it, never on the memory.
//!
//! # Must the CPU be kicked?
//! The guest says in the same word whether it will look by itself: no flag while it polls, KICK while it runs something, HALTED
//! when it halts. Wrong would be: the CPU halts, and the agent believes that it will look. Both sides make *one*
//! read-modify-write on the word ([`Slot::submit`], [`Slot::rest`]), so one of them is first:
//! - `submit` first: `rest` finds Ready and says so; the CPU looks before it halts.
//! - `rest` first: `submit` returns the flag that it overwrote, and the agent kicks.

use super::abi::{VERSION, commit_flags, txn_flags};
use super::layout::{halves, pair};
use crate::ids::{CpuId, Nanos};
use crate::sync::{AtomicU64, Ordering};

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// Where a transaction is. Below 256: an end state.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u16)]
        pub enum TxnState {
            $($(#[$doc])* $name = $number,)*
        }

        impl TxnState {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// By its number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

states! {
    /// Committed; or never used.
    Complete = 0,
    /// The agent has taken it back, or the enclave is going.
    Aborted = 1,
    /// The task is on a CPU already.
    TargetOncpu = 2,
    /// The agent has not seen the task's last message, or the task's NEW is still to come, or it has died.
    TargetStale = 3,
    /// No such task.
    TargetNotFound = 4,
    /// The task waits.
    TargetNotRunnable = 5,
    /// The agent has not seen the CPU's last message.
    AgentStale = 6,
    /// The CPU is offline.
    CpuOffline = 7,
    /// The CPU is needed by a higher class, or by a task that must not be preempted.
    CpuUnavail = 8,
    /// Flags that don't exist, or exclude each other.
    InvalidFlags = 9,
    /// The task belongs to no or another enclave.
    InvalidTarget = 10,
    /// The CPU belongs to no or another enclave, or isn't that of the transaction.
    InvalidCpu = 11,
    /// The task may not run there.
    NotPermitted = 12,
    /// There is no agent (any more), or no agent task to run.
    NoAgent = 13,
    /// Another version.
    UnsupportedVersion = 14,
    /// Another of its sync group failed.
    Poisoned = 15,
    /// Wants to be committed.
    Ready = 256,
    /// The guest is about it.
    Claimed = 257,
}

impl TxnState {
    /// Is it over?
    pub const fn is_end(self) -> bool {
        (self as u16) < Self::Ready as u16
    }
}

/// What the agent asks for. [`abi::Transaction`](super::abi::Transaction) tells what each field means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// ABI version.
    pub version: u16,
    /// The CPU.
    pub cpu: CpuId,
    /// The task, or one of the special numbers.
    pub gtid: u64,
    /// Its status word.
    pub slot: u32,
    /// The task barrier seen.
    pub task_barrier: u32,
    /// The agent barrier seen.
    pub agent_barrier: u32,
    /// Who commits the group.
    pub sync_group_owner: Option<CpuId>,
    /// [`run_flags`](super::abi::run_flags).
    pub run_flags: u32,
    /// [`commit_flags`].
    pub commit_flags: u32,
}

impl Request {
    /// Run that task on that CPU at once, without conditions.
    pub const fn run(cpu: CpuId, gtid: u64, slot: u32, task_barrier: u32) -> Self {
        Self {
            version: VERSION as u16,
            cpu,
            gtid,
            slot,
            task_barrier,
            agent_barrier: 0,
            sync_group_owner: None,
            run_flags: 0,
            commit_flags: 0,
        }
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The end state.
    pub state: TxnState,
    /// When.
    pub commit_time: Nanos,
    /// Number of the CPU's history then.
    pub cpu_seqnum: u64,
}

/// The agent must kick the CPU for its transaction to be seen soon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a halted CPU notices nothing without a kick"]
pub enum Kick {
    /// It looks by itself.
    Needless,
    /// It would look only later, or never.
    Needed,
}

/// The last transaction isn't over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy;

/// How a CPU waits for the next transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rest {
    /// It polls.
    Polls,
    /// It runs something.
    Runs,
    /// It halts.
    Halts,
}

impl Rest {
    const fn flags(self) -> u64 {
        let flags = match self {
            Self::Polls => 0,
            Self::Runs => txn_flags::KICK,
            Self::Halts => txn_flags::KICK | txn_flags::HALTED,
        };
        (flags as u64) << 48
    }
}

const STATE: u64 = 0xffff;

const fn first_word(state: TxnState, claimer: CpuId, version: u16) -> u64 {
    state as u16 as u64 | (claimer.0 as u16 as u64) << 16 | (version as u64) << 32
}

/// The words of one CPU's transaction.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'m>(&'m [AtomicU64; 8]);

impl<'m> Slot<'m> {
    /// From the region's words; `None` if they aren't eight.
    pub fn new(words: &'m [AtomicU64]) -> Option<Self> {
        words.try_into().ok().map(Self)
    }

    fn put(&self, at: usize, value: u64) {
        // Relaxed, as all of the seven: the first word orders them.
        self.0[at].store(value, Ordering::Relaxed);
    }

    fn get(&self, at: usize) -> u64 {
        self.0[at].load(Ordering::Relaxed)
    }

    /// Agent: asks for a commit.
    ///
    /// # Errors
    /// [`Busy`].
    #[inline]
    pub fn submit(&self, request: &Request) -> Result<Kick, Busy> {
        if self.state().is_none_or(|state| !state.is_end()) {
            return Err(Busy);
        }
        self.put(1, request.gtid);
        self.put(2, pair(request.slot, request.task_barrier));
        let owner = request.sync_group_owner.map_or(0, |cpu| cpu.0 as u16 + 1);
        self.put(3, pair(request.agent_barrier, u32::from(request.cpu.0 as u16) | u32::from(owner) << 16));
        self.put(4, pair(request.run_flags, request.commit_flags));
        // Release: who claims it sees the fields. Acquire: a kick is sent after what the CPU did before it rested.
        let old = self.0[0].swap(first_word(TxnState::Ready, CpuId(0), request.version), Ordering::AcqRel);
        let patient = request.commit_flags & commit_flags::AT_SCHEDULE != 0;
        let flag = if patient { txn_flags::HALTED } else { txn_flags::KICK };
        Ok(if old >> 48 & u64::from(flag) != 0 { Kick::Needed } else { Kick::Needless })
    }

    /// Agent: takes it back. False: too late.
    pub fn withdraw(&self) -> bool {
        let now = self.0[0].load(Ordering::Relaxed);
        let aborted = now & !STATE | TxnState::Aborted as u64;
        now & STATE == TxnState::Ready as u64
            && self.0[0].compare_exchange(now, aborted, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Either: where it is. `None`: the other side wrote nonsense.
    #[inline]
    pub fn state(&self) -> Option<TxnState> {
        // Acquire: with an end state come its results.
        TxnState::from_number(self.0[0].load(Ordering::Acquire) as u16)
    }

    /// Agent: how it ended, if it has.
    #[inline]
    pub fn outcome(&self) -> Option<Outcome> {
        let state = self.state().filter(|state| state.is_end())?;
        Some(Outcome { state, commit_time: Nanos(self.get(5)), cpu_seqnum: self.get(6) })
    }

    /// Guest: is there something to claim? A look, to be followed by [`Slot::claim`].
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.0[0].load(Ordering::Relaxed) & STATE == TxnState::Ready as u64
    }

    /// Guest: what it asks for now, without claiming; to see whether it may be committed at this occasion.
    pub fn peek(&self) -> Option<Request> {
        // Acquire: the fields that came with this Ready.
        let first = self.0[0].load(Ordering::Acquire);
        (first & STATE == TxnState::Ready as u64).then(|| self.copy(first))
    }

    /// Guest: takes it for `claimer`, and copies it.
    #[inline]
    pub fn claim(&self, claimer: CpuId) -> Option<Request> {
        let now = self.0[0].load(Ordering::Relaxed);
        if now & STATE != TxnState::Ready as u64 {
            return None;
        }
        let claimed = first_word(TxnState::Claimed, claimer, (now >> 32) as u16) | now & 0xffff << 48;
        // Acquire: the agent's fields. A failure decides nothing; whoever was faster has it.
        self.0[0].compare_exchange(now, claimed, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(self.copy(now))
    }

    fn copy(&self, first: u64) -> Request {
        let (slot, task_barrier) = halves(self.get(2));
        let (agent_barrier, place) = halves(self.get(3));
        let (run_flags, commit_flags) = halves(self.get(4));
        let owner = place >> 16;
        Request {
            version: (first >> 32) as u16,
            cpu: CpuId(place & 0xffff),
            gtid: self.get(1),
            slot,
            task_barrier,
            agent_barrier,
            sync_group_owner: owner.checked_sub(1).map(CpuId),
            run_flags,
            commit_flags,
        }
    }

    /// Guest: answers what it claimed, and says how the CPU waits for the next.
    #[inline]
    pub fn finish(&self, outcome: &Outcome, rest: Rest) {
        self.put(5, outcome.commit_time.0);
        self.put(6, outcome.cpu_seqnum);
        // Release: who sees the state sees the results. A store is enough, because the word is ours while claimed.
        self.0[0].store(first_word(outcome.state, CpuId(0), VERSION as u16) | rest.flags(), Ordering::Release);
    }

    /// Guest: from now on the CPU waits so. True: there is a transaction, look at it first.
    #[inline]
    #[must_use = "what came in before is not kicked for"]
    pub fn rest(&self, rest: Rest) -> bool {
        let mut now = self.0[0].load(Ordering::Relaxed);
        loop {
            let wanted = now & !Rest::Halts.flags() | rest.flags();
            // Release: the agent that sees the flag kicks after what we did before. Acquire is the claim's.
            match self.0[0].compare_exchange_weak(now, wanted, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return now & STATE == TxnState::Ready as u64,
                Err(found) => now = found,
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::delegation::abi;
    use core::mem::offset_of;

    fn words() -> [AtomicU64; 8] {
        core::array::from_fn(|_| AtomicU64::new(0))
    }

    const REQUEST: Request = Request {
        version: 1,
        cpu: CpuId(0x102),
        gtid: 0x1122_3344_5566_7788,
        slot: 0x0a0b_0c0d,
        task_barrier: 0x1a1b_1c1d,
        agent_barrier: 0x2a2b_2c2d,
        sync_group_owner: Some(CpuId(0x304)),
        run_flags: 0x3a3b_3c3d,
        commit_flags: 0x4a4b_4c00,
    };

    #[test]
    fn a_transaction_goes_to_the_guest_and_back() {
        let words = words();
        let slot = Slot::new(&words).expect("eight words");
        assert_eq!(slot.claim(CpuId(0)), None, "fresh memory asks for nothing");
        assert_eq!(slot.submit(&REQUEST), Ok(Kick::Needless));
        assert_eq!((slot.submit(&REQUEST), slot.outcome()), (Err(Busy), None));
        assert_eq!(slot.peek(), Some(REQUEST));
        assert_eq!(slot.claim(CpuId(3)), Some(REQUEST));
        assert_eq!((slot.claim(CpuId(4)), slot.withdraw()), (None, false));
        let outcome = Outcome { state: TxnState::TargetStale, commit_time: Nanos(9), cpu_seqnum: 4 };
        slot.finish(&outcome, Rest::Runs);
        assert_eq!(slot.outcome(), Some(outcome));
        assert_eq!(slot.submit(&REQUEST), Ok(Kick::Needed));
        assert!(slot.withdraw());
        assert_eq!((slot.claim(CpuId(0)), slot.state()), (None, Some(TxnState::Aborted)));
    }

    #[test]
    fn only_who_would_not_look_is_kicked() {
        let patient = Request { commit_flags: commit_flags::AT_SCHEDULE, ..REQUEST };
        for (rest, at_once, later) in [
            (Rest::Polls, Kick::Needless, Kick::Needless),
            (Rest::Runs, Kick::Needed, Kick::Needless),
            (Rest::Halts, Kick::Needed, Kick::Needed),
        ] {
            for (request, expected) in [(&REQUEST, at_once), (&patient, later)] {
                let words = words();
                let slot = Slot::new(&words).expect("eight words");
                assert!(!slot.rest(Rest::Halts) && !slot.rest(rest));
                assert_eq!(slot.submit(request), Ok(expected), "{rest:?}");
                assert!(slot.rest(rest), "it is there now");
            }
        }
    }

    #[test]
    fn fields_lie_where_the_c_record_has_them() {
        let words = words();
        let slot = Slot::new(&words).expect("eight words");
        assert_eq!(slot.submit(&REQUEST), Ok(Kick::Needless));
        let bytes: std::vec::Vec<u8> =
            words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        let at = |offset: usize, len: usize| {
            bytes[offset..offset + len].iter().rev().fold(0_u64, |n, &b| n << 8 | u64::from(b))
        };
        assert_eq!(at(offset_of!(abi::Transaction, state), 2), 256);
        assert_eq!(at(offset_of!(abi::Transaction, version), 2), 1);
        assert_eq!(at(offset_of!(abi::Transaction, gtid), 8), REQUEST.gtid);
        assert_eq!(at(offset_of!(abi::Transaction, slot), 4), 0x0a0b_0c0d);
        assert_eq!(at(offset_of!(abi::Transaction, task_barrier), 4), 0x1a1b_1c1d);
        assert_eq!(at(offset_of!(abi::Transaction, agent_barrier), 4), 0x2a2b_2c2d);
        assert_eq!(at(offset_of!(abi::Transaction, cpu), 2), 0x102);
        assert_eq!(at(offset_of!(abi::Transaction, sync_group_owner), 2), 0x305);
        assert_eq!(at(offset_of!(abi::Transaction, run_flags), 4), 0x3a3b_3c3d);
        assert_eq!(at(offset_of!(abi::Transaction, commit_flags), 4), 0x4a4b_4c00);
        let _ = slot.claim(CpuId(0x77));
        assert_eq!(words[0].load(Ordering::Relaxed) >> 16 & 0xffff, 0x77);
        slot.finish(&Outcome { state: TxnState::Poisoned, commit_time: Nanos(5), cpu_seqnum: 6 }, Rest::Halts);
        assert_eq!(words[0].load(Ordering::Relaxed), 15 | 1 << 32 | 3 << 48);
        assert_eq!(words[offset_of!(abi::Transaction, commit_time) / 8].load(Ordering::Relaxed), 5);
        assert_eq!(words[offset_of!(abi::Transaction, cpu_seqnum) / 8].load(Ordering::Relaxed), 6);
    }

    #[test]
    fn states_have_their_numbers() {
        for &state in TxnState::ALL {
            assert_eq!(TxnState::from_number(state as u16), Some(state));
            assert_eq!(state.is_end(), !matches!(state, TxnState::Ready | TxnState::Claimed));
        }
        assert_eq!(TxnState::from_number(16), None);
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::thread;
    use std::rc::Rc;

    fn slot() -> Rc<[AtomicU64; 8]> {
        Rc::new(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn request(n: u32) -> Request {
        Request { agent_barrier: n, ..Request::run(CpuId(0), n.into(), n, n) }
    }

    fn whole(request: Request) -> u32 {
        let n = request.slot;
        assert_eq!((request.gtid, request.task_barrier, request.agent_barrier), (n.into(), n, n), "half a request");
        n
    }

    const DONE: Outcome = Outcome { state: TxnState::Complete, commit_time: Nanos(7), cpu_seqnum: 7 };

    #[test]
    fn loom_one_of_two_cpus_claims_and_the_agent_may_withdraw() {
        loom::model(|| {
            let words = slot();
            let agent = Slot::new(&words[..]).unwrap();
            let _ = agent.submit(&request(1));
            let claim = |cpu| {
                let words = words.clone();
                move || Slot::new(&words[..]).unwrap().claim(CpuId(cpu)).map(whole).is_some()
            };
            let cpus = [thread::spawn(claim(0)), thread::spawn(claim(1))];
            let withdrawn = agent.withdraw();
            let claims = cpus.into_iter().filter(|_| true).map(|cpu| cpu.join().unwrap()).filter(|&won| won).count();
            assert_eq!(claims + usize::from(withdrawn), 1);
        });
    }

    #[test]
    fn loom_results_come_with_the_end_state_and_the_next_request_is_whole() {
        loom::model(|| {
            let words = slot();
            let guest = thread::spawn({
                let words = words.clone();
                move || {
                    let slot = Slot::new(&words[..]).unwrap();
                    if slot.claim(CpuId(0)).map(whole).is_some() {
                        slot.finish(&DONE, Rest::Polls);
                    }
                    if let Some(second) = slot.claim(CpuId(0)) {
                        whole(second);
                    }
                }
            });
            let slot = Slot::new(&words[..]).unwrap();
            let _ = slot.submit(&request(1));
            if let Some(outcome) = slot.outcome() {
                assert_eq!(outcome, DONE);
                let _ = slot.submit(&request(2));
            }
            guest.join().unwrap();
        });
    }

    #[test]
    fn loom_a_cpu_that_halts_is_kicked_or_sees_the_request() {
        loom::model(|| {
            let words = slot();
            let guest = thread::spawn({
                let words = words.clone();
                move || {
                    let slot = Slot::new(&words[..]).unwrap();
                    // Looks, then halts unless told to look again.
                    slot.claim(CpuId(0)).map(whole).is_some()
                        || slot.rest(Rest::Halts) && slot.claim(CpuId(0)).map(whole).is_some()
                }
            });
            let kicked = Slot::new(&words[..]).unwrap().submit(&request(1)) == Ok(Kick::Needed);
            let seen = guest.join().unwrap();
            assert!(seen || kicked, "the request sleeps with the CPU");
        });
    }
}
