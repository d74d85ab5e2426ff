//! Where vCPU threads leave what concerns the debugger.
//!
//! The run loop asks [`Hub::concerns`] about each exit while somebody may be attached, parks its vCPU and calls [`Hub::report`];
//! the debugger's thread takes the events. Invariants: a vCPU that has reported stays out of the guest until
//! the debugger lets it go; without a client no exit concerns the debugger, so that the guest runs as if there were none.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vcpu_sched::directory;
use vcpu_sched::taskdebug::PORT;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::registers::VcpuRegisters;
use crate::vcpu::exit::{Exit, Fatal};

/// What an exit may mean; the registers decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern {
    /// A single step, a hardware breakpoint, or an `int3` where KVM reports it.
    Debug {
        /// Vector.
        exception: u32,
    },
    /// An instruction that KVM can't emulate: an `int3` of ours in ring 0 where ring 0 is interpreted.
    Emulation,
    /// The guest has written to the task-debug port.
    Rang(u32),
    /// The guest has told where its directory is.
    Published,
}

/// What happened on a vCPU, which is out of the guest now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// KVM's debug exit.
    Debug {
        /// Vector.
        exception: u32,
        /// Where.
        rip: u64,
    },
    /// A planted `int3` in ring 0; RIP is on it.
    Planted {
        /// Where.
        rip: u64,
    },
    /// The task-debug port (`vcpu_sched::taskdebug`). All of this is the guest's word.
    Rang {
        /// What was written.
        event: u32,
        /// RDI: where the registers lie.
        frame: u64,
        /// RSI.
        about: u64,
    },
    /// The guest shows its tasks from now on.
    Published,
}

/// A vCPU's word.
#[derive(Debug)]
pub struct Report {
    /// Which.
    pub vcpu: usize,
    /// What happened.
    pub event: Event,
    /// Its registers, which stay so until it is let go.
    pub registers: Box<VcpuRegisters>,
}

/// One machine's.
#[derive(Debug)]
pub struct Hub {
    attached: AtomicBool,
    /// Virtual addresses of ring 0 where an `int3` of ours is.
    planted: Mutex<HashSet<u64>>,
    events: Mutex<VecDeque<Report>>,
    evt: EventFd,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// With nobody attached.
    pub fn new() -> std::io::Result<Self> {
        let evt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { attached: AtomicBool::new(false), planted: Mutex::default(), events: Mutex::default(), evt })
    }

    /// Somebody is, or isn't any more.
    pub fn attach(&self, attached: bool) {
        // Relaxed: set while the vCPUs are parked, whose locks order it.
        self.attached.store(attached, Ordering::Relaxed);
    }

    /// Whether an exit may be the debugger's. Called after every exit.
    pub fn concerns(&self, exit: &Exit<'_>) -> Option<Concern> {
        if !self.attached.load(Ordering::Relaxed) {
            return None;
        }
        match exit {
            Exit::PortOut { port: PORT, size: 4, data } => {
                data.first_chunk().map(|event| Concern::Rang(u32::from_le_bytes(*event)))
            }
            Exit::PortOut { port: directory::PORT, .. } => Some(Concern::Published),
            Exit::Fatal(Fatal::Debug(exception)) => Some(Concern::Debug { exception: *exception }),
            Exit::Fatal(Fatal::Emulation { .. }) => Some(Concern::Emulation),
            _ => None,
        }
    }

    /// Whether there is a breakpoint of ours.
    pub fn is_planted(&self, rip: u64) -> bool {
        lock(&self.planted).contains(&rip)
    }

    /// Where they are now.
    pub fn set_planted(&self, addresses: impl Iterator<Item = u64>) {
        *lock(&self.planted) = addresses.collect();
    }

    /// By a vCPU that has parked.
    pub fn report(&self, report: Report) {
        lock(&self.events).push_back(report);
        // It can't overflow; whoever reads takes all.
        let _ = self.evt.write(1);
    }

    /// Everything that was reported, in its order.
    pub fn take(&self) -> VecDeque<Report> {
        let _ = self.evt.read();
        std::mem::take(&mut *lock(&self.events))
    }

    /// Readable while something is reported.
    pub fn evt(&self) -> BorrowedFd<'_> {
        fd(&self.evt)
    }
}

/// An eventfd for poll.
pub fn fd(evt: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `evt` is borrowed.
    unsafe { BorrowedFd::borrow_raw(evt.as_raw_fd()) }
}
