//! An agent's side: attach, drain the channels, keep the books, ask a policy, submit.
//!
//! [`Agent`] is one enclave's agent, in one thread, wherever that runs. [`Agent::step`] is one turn of its loop: it never blocks
//! and never trusts: what the guest writes is copied, bounded and compared with what the agent keeps itself. It is woken and it
//! kicks by means that the caller has ([`Kicker`]).
//!
//! The invariants: a message changes a task's record only if it is newer than what is known (by its sequence number), and a
//! CPU's record only if its `cpu_seqnum` is the newest; a task is handed to the policy as runnable once, until it runs.

mod books;
mod submit;

use alloc::vec::Vec;
use core::fmt;

pub use books::{CpuState, TaskInfo, TaskState};

use super::abi::{attach_flags, guest_state, tunables};
use super::channel::Consumer;
use super::enclave::{REQUEST, REQUEST_COOKIE, REQUEST_TASK, REQUEST_VALUE, TUNABLES, WISH};
use super::layout::{Region, halves, pair};
use super::pick::Filler;
use super::policies::{Decisions, Policy};
use crate::ids::{CpuId, Nanos};
use crate::sync::Ordering;
use books::Books;

/// How an agent interrupts a CPU of its guest.
pub trait Kicker {
    /// Make it look at its transaction.
    fn kick(&mut self, cpu: CpuId);
}

impl<F: FnMut(CpuId)> Kicker for F {
    fn kick(&mut self, cpu: CpuId) {
        self(cpu);
    }
}

/// How an agent wants to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Its number, not 0; another one at each attach, best at random.
    pub nonce: u32,
    /// It will sleep between messages.
    pub sleeps: bool,
    /// [`tunables`].
    pub tunables: u32,
    /// Milliseconds; 0: what the enclave's owner has set.
    pub runnable_timeout: u32,
}

/// What an agent did, for those who want to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Messages read.
    pub messages: u64,
    /// Messages that the guest had no room for.
    pub lost: u64,
    /// Transactions submitted.
    pub submitted: u64,
    /// Of them, committed.
    pub committed: u64,
    /// Of them, refused because a message was under way.
    pub stale: u64,
    /// Of them, refused for another reason.
    pub refused: u64,
    /// Kicks.
    pub kicks: u64,
    /// Messages that made no sense.
    pub nonsense: u64,
}

/// Why an agent can't go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AgentError {
    /// Another one is there; its number.
    Occupied(u32),
    /// The guest has thrown it out; a [`guest_state`].
    Ejected(u32),
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Occupied(nonce) => write!(f, "the enclave has an agent already (number {nonce:#x})"),
            Self::Ejected(guest_state::EJECTED_TIMEOUT) => {
                f.write_str("ejected: a task waited too long for a decision")
            }
            Self::Ejected(guest_state::EJECTED_FLOOD) => f.write_str("ejected: too many refused commits or requests"),
            Self::Ejected(_) => f.write_str("ejected by the enclave's owner"),
        }
    }
}

impl core::error::Error for AgentError {}

/// Says that there is no agent: it has left, or ended without saying so, which only somebody else can tell.
pub fn dismiss(region: &Region<'_>) {
    // Release: all that it asked for before.
    region.agent_page()[WISH].store(0, Ordering::Release);
}

/// See the module's text.
#[derive(Debug)]
pub struct Agent<'m, P> {
    region: Region<'m>,
    options: Options,
    channels: Vec<Consumer>,
    books: Books,
    fillers: Vec<Filler>,
    requests: u32,
    accepted: bool,
    counters: Counters,
    decisions: Decisions,
    /// Tasks that may run on none of the CPUs that are idle: kept from the policy until one is.
    outside: Vec<u32>,
    policy: P,
}

/// Most messages that one step reads, so that decisions aren't put off for ever.
const BATCH: usize = 256;

impl<'m, P: Policy> Agent<'m, P> {
    /// Takes the enclave, which must have no agent: one that hands over has [left](Self::detach) before. The guest will tell of
    /// all tasks anew.
    ///
    /// # Errors
    /// [`AgentError::Occupied`].
    pub fn attach(region: Region<'m>, options: Options, policy: P) -> Result<Self, AgentError> {
        let page = region.agent_page();
        page[TUNABLES].store(
            pair(options.tunables | tunables::DELIVER_CPU_AVAILABILITY, options.runnable_timeout),
            Ordering::Relaxed,
        );
        let sleeps = if options.sleeps { attach_flags::SLEEPS } else { 0 };
        let wish = pair(options.nonce, attach_flags::ONLINE | attach_flags::DISCOVER | sleeps);
        let (told, state) = halves(region.guest_page()[0].load(Ordering::Acquire));
        let found = page[WISH].load(Ordering::Relaxed);
        // The wish of one that was thrown out still stands there.
        let free = found == 0 || state >= guest_state::EJECTED_TIMEOUT && halves(found).0 == told;
        // Release: what was prepared. One of two that come at once gets it.
        if !free || page[WISH].compare_exchange(found, wish, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Err(AgentError::Occupied(halves(page[WISH].load(Ordering::Relaxed)).0));
        }
        let sizes = *region.sizes();
        let channels = (0..sizes.channels).filter_map(|n| region.channel(n));
        Ok(Self {
            channels: channels.map(|memory| Consumer::attach(&memory)).collect(),
            books: Books::new(sizes.cpus, &region.cpu_set()),
            fillers: (0..sizes.cpus).map(|cpu| Filler::attach(&region, CpuId(cpu))).collect(),
            requests: halves(page[REQUEST].load(Ordering::Relaxed)).0,
            accepted: false,
            counters: Counters::default(),
            decisions: Decisions::default(),
            outside: Vec::new(),
            region,
            options,
            policy,
        })
    }

    /// One turn: messages, outcomes, decisions, transactions. True: something was done, so the next turn should come at once.
    ///
    /// # Errors
    /// [`AgentError::Ejected`].
    pub fn step(&mut self, now: Nanos, kicker: &mut impl Kicker) -> Result<bool, AgentError> {
        // Acquire: what the guest did before it accepted or ejected.
        let (nonce, state) = halves(self.region.guest_page()[0].load(Ordering::Acquire));
        if nonce == self.options.nonce {
            match state {
                guest_state::ONLINE => self.accepted = true,
                guest_state::EJECTED_TIMEOUT.. => return Err(AgentError::Ejected(state)),
                _ => {}
            }
        }
        let read = self.drain(now);
        let reaped = self.reap(now);
        let submitted = self.accepted && self.decide(now, kicker);
        Ok(read || reaped || submitted)
    }

    fn drain(&mut self, now: Nanos) -> bool {
        let mut any = false;
        let region = self.region;
        for n in 0..self.channels.len() {
            let Some(memory) = region.channel(n as u32) else { continue };
            let mut read = 0;
            while read < BATCH {
                let Some(message) = self.channels.get_mut(n).and_then(|channel| channel.receive(&memory)) else {
                    break;
                };
                read += 1;
                self.note(&message, now);
            }
            self.counters.messages += read as u64;
            any |= read > 0;
            if let Some(channel) = self.channels.get_mut(n) {
                channel.release(&memory);
                let lost = channel.overflowed(&memory);
                if lost > 0 {
                    // The guest says how many; it may say anything.
                    self.counters.lost = self.counters.lost.saturating_add(lost);
                    // The status words tell what the messages would have; the guest tells of all anew.
                    self.ask_discover();
                }
            }
        }
        any
    }

    /// Leaves: tasks go on for a while, and the next agent may come.
    pub fn detach(self) -> P {
        dismiss(&self.region);
        self.policy
    }

    /// Asks the guest for NEW of every task.
    pub fn ask_discover(&mut self) {
        self.ask(super::abi::request::DISCOVER, 0, 0, 0, 0);
    }

    /// Asks the guest for something; see [`request`](super::abi::request). A request that wasn't answered is replaced.
    pub fn ask(&mut self, op: u32, slot: u32, barrier: u32, value: u64, cookie: u64) {
        let page = self.region.agent_page();
        page[REQUEST_TASK].store(pair(slot, barrier), Ordering::Relaxed);
        page[REQUEST_VALUE].store(value, Ordering::Relaxed);
        page[REQUEST_COOKIE].store(cookie, Ordering::Relaxed);
        self.requests = self.requests.wrapping_add(1);
        // Release: the arguments.
        page[REQUEST].store(pair(self.requests, op), Ordering::Release);
    }

    /// What the guest said to the last request, once it has.
    pub fn answer(&self) -> Option<u32> {
        let (number, answer) = halves(self.region.guest_page()[1].load(Ordering::Acquire));
        (number == self.requests).then_some(answer)
    }

    /// Says that the agent will sleep. True: it may, and the guest will ring; false: there was a message, take another turn.
    /// Only for one that attached with [`Options::sleeps`], and was accepted.
    #[must_use = "one that sleeps although there was a message isn't woken for it"]
    pub fn may_sleep(&self) -> bool {
        self.accepted && self.region.bell().may_sleep()
    }

    /// The agent is awake. Before each turn that follows [`may_sleep`](Self::may_sleep), whatever it said.
    pub fn woke(&self) {
        self.region.bell().woke();
    }

    /// Has the guest accepted it?
    pub fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// What it did.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The policy.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// What it believes of tasks, by status word.
    pub fn tasks(&self) -> &[TaskInfo] {
        &self.books.tasks
    }

    /// What it believes of CPUs.
    pub fn cpus(&self) -> &[CpuState] {
        &self.books.cpus
    }
}
