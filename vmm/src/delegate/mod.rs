//! `--delegate`: who schedules the guest's delegated tasks, if not its kernel (docs/delegation.md).
//!
//! [`crate::vm`] makes a [`Delegation`] while it builds the machine, and starts its thread after the vCPUs': the VMM's own agent
//! ([`agent`]), or who keeps the door for an agent's process ([`door`]; [`attach`] is that process's side). Both agents are
//! `vcpu_sched::delegation::agent` in one loop ([`drive`]), over the enclave's memory ([`memory`]). A decision costs no exit: messages
//! and commits go by memory, and only a vCPU that halts or runs something is interrupted ([`kicks`]). Invariants: what the guest writes
//! there is checked by that crate, so an agent neither panics nor hangs; the event loop and the vCPUs never wait for an agent.

mod agent;
pub mod args;
pub mod attach;
mod door;
mod drive;
mod host;
mod kicks;
pub mod memory;
mod start;
mod thread;
mod wire;

use std::fmt::Write;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vcpu_sched::delegation::agent::Counters;
use vcpu_sched::delegation::policies::named::Spec;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::host::Watch;
pub use self::kicks::Kicks;
pub use self::start::{Delegation, DelegationError, Surroundings};
pub use self::thread::{Thread, Told};

/// Who decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// The VMM, by this policy.
    Vmm(Spec),
    /// A process that connects to this socket.
    Process(PathBuf),
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    /// Who decides.
    pub who: Who,
    /// For all programs from their beginning; else for tasks that are made delegated later.
    pub all: bool,
    /// The host CPU that the VMM's agent has for itself, spinning; else it sleeps when there is nothing to do.
    pub cpu: Option<u32>,
    /// How long a task may wait for a decision before the kernel throws the agent out.
    pub timeout: Duration,
}

impl Delegate {
    /// The file of the socket that is made for it.
    pub fn socket(&self) -> Option<&Path> {
        match &self.who {
            Who::Vmm(_) => None,
            Who::Process(path) => Some(path),
        }
    }
}

/// The agent counts as hung after this time, if nothing is said. A policy that lets tasks wait for longer needs more.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// An event descriptor to be handed on.
fn owned(evt: EventFd) -> OwnedFd {
    // SAFETY: it is given up here, so nobody else closes it.
    unsafe { OwnedFd::from_raw_fd(evt.into_raw_fd()) }
}

/// The agent's doorbell: rung by the guest (without an exit to the VMM) when an agent that sleeps has a message, by the VMM when the
/// guest has published its directory and when the machine ends.
#[derive(Debug)]
pub struct Bell {
    evt: EventFd,
    ends: AtomicBool,
}

impl Bell {
    /// A silent one.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { evt: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, ends: AtomicBool::new(false) }))
    }

    /// For KVM, to be rung by the guest.
    pub fn evt(&self) -> &EventFd {
        &self.evt
    }

    /// Wakes the agent.
    pub fn ring(&self) {
        // It can only fail when the counter is full, and then the agent is awake.
        let _ = self.evt.write(1);
    }

    /// The machine ends.
    fn end(&self) {
        // Release and acquire would order nothing: no data goes with it.
        self.ends.store(true, Ordering::Relaxed);
        self.ring();
    }

    fn has_ended(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// For poll.
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.evt.as_raw_fd()) }
    }

    /// What has rung has been heard.
    fn clear(&self) {
        let _ = self.evt.read();
    }

    /// Waits for a ring, for so long at most; none: for ever. True: the machine ends.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // An interrupted wait is a wake-up too many.
        let _ = poll(&mut [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN)], limit.as_ref());
        self.clear();
        self.has_ended()
    }
}

/// What an agent did, for `--stats`. Written by its thread alone.
#[derive(Debug, Default)]
pub struct Figures {
    messages: AtomicU64,
    lost: AtomicU64,
    decisions: AtomicU64,
    commits: AtomicU64,
    stale: AtomicU64,
    refused: AtomicU64,
    interrupts: AtomicU64,
    sleeps: AtomicU64,
}

impl Figures {
    fn note(&self, counters: &Counters, sleeps: u64) {
        // Relaxed: figures.
        for (cell, value) in [
            (&self.messages, counters.messages),
            (&self.lost, counters.lost),
            (&self.decisions, counters.submitted),
            (&self.commits, counters.committed),
            (&self.stale, counters.stale),
            (&self.refused, counters.refused),
            (&self.interrupts, counters.kicks),
            (&self.sleeps, sleeps),
        ] {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// One `stats:` line.
    pub fn render(&self) -> String {
        let mut out = "stats: agent".to_owned();
        for (name, cell) in [
            ("messages", &self.messages),
            ("lost", &self.lost),
            ("decisions", &self.decisions),
            ("commits", &self.commits),
            ("stale", &self.stale),
            ("refused", &self.refused),
            ("interrupts", &self.interrupts),
            ("sleeps", &self.sleeps),
        ] {
            let _ = write!(out, " {name}={}", cell.load(Ordering::Relaxed));
        }
        out.push('\n');
        out
    }
}
