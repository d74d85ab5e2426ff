//! `--delegate`: an agent of the VMM's own, which schedules the guest's delegated tasks (docs/delegation.md).
//!
//! [`crate::vm`] makes a [`Bell`] before the devices are, and starts the agent's thread ([`Thread`]) after the vCPUs'. The agent is
//! `vcpu_sched::delegation::agent`, over the enclave's memory in guest RAM; what is here gives it a thread, a clock, and a way to
//! interrupt vCPUs. A decision costs no exit: messages and commits go by memory, and only a vCPU that halts or runs something is
//! interrupted. Invariants: what the guest writes there is checked by that crate, so the agent neither panics nor hangs; the event
//! loop and the vCPUs never wait for the agent.

mod agent;
mod host;
mod region;

use std::fmt::Write;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vcpu_sched::delegation::agent::Counters;
use vcpu_sched::delegation::policies::named::Spec;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::agent::{Desk, Thread};
pub use self::host::Watch;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delegate {
    /// Who decides.
    pub policy: Spec,
    /// The host CPU that the agent has for itself, spinning; else it sleeps when there is nothing to do.
    pub cpu: Option<u32>,
    /// How long a task may wait for a decision before the kernel throws the agent out.
    pub timeout: Duration,
}

/// The agent counts as hung after this time, if nothing is said. A policy that lets tasks wait for longer needs more.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The vector of our kernel that makes a CPU look (docs/abi.md).
const LOOK_VECTOR: u32 = 0xf0;
/// Intel SDM vol. 3A 11.11.1: the address of a message to a local APIC, bits 7:0 of its id from bit 12 on. With
/// KVM_CAP_X2APIC_API the upper word has bits 31:8 where they stand in the id.
const MSI_ADDRESS: u32 = 0xfee0_0000;

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

    /// Waits for a ring, for so long at most; none: for ever. True: the machine ends.
    fn wait(&self, limit: Option<Duration>) -> bool {
        // SAFETY: the descriptor is open for as long as `self` lives.
        let evt = unsafe { BorrowedFd::borrow_raw(self.evt.as_raw_fd()) };
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // An interrupted wait is a wake-up too many.
        let _ = poll(&mut [PollFd::from_borrowed_fd(evt, PollFlags::IN)], limit.as_ref());
        let _ = self.evt.read();
        self.has_ended()
    }
}

/// Interrupts vCPUs, by number.
#[derive(Debug, Clone)]
pub struct Kicks {
    vm: Arc<VmFd>,
    apic_ids: Arc<[u32]>,
}

impl Kicks {
    /// Of a machine's vCPUs, in their order.
    pub fn new(vm: Arc<VmFd>, apic_ids: impl Iterator<Item = u32>) -> Self {
        Self { vm, apic_ids: apic_ids.collect() }
    }

    /// Has a vCPU look at its transaction. One that isn't there is the guest's word, and nothing happens.
    fn kick(&self, vcpu: u32) {
        let Some(id) = self.apic_ids.get(vcpu as usize) else { return };
        let message = kvm_msi {
            address_lo: MSI_ADDRESS | (id & 0xff) << 12,
            address_hi: id & !0xff,
            data: LOOK_VECTOR,
            ..kvm_msi::default()
        };
        if let Err(error) = self.vm.signal_msi(message) {
            log::debug!("delegate: KVM_SIGNAL_MSI to {id}: {error}");
        }
    }
}

/// What the agent did, for `--stats`. Written by its thread alone.
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
