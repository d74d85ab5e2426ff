//! What a machine needs for its enclave: made with it, started with its vCPUs.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vcpu_sched::delegation::policies::named::Spec;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::agent::Desk;
use super::door::{Door, Visits};
use super::memory::Memory;
use super::{Bell, Delegate, Kicks, Thread, Watch, Who, owned};
use crate::clock::Clock;
use crate::control::socket::{Socket, SocketError};

/// See the module's text.
#[derive(Debug)]
pub struct Delegation {
    memory: Memory,
    bell: Arc<Bell>,
    role: Role,
}

/// Who decides, with what he needs.
#[derive(Debug)]
enum Role {
    Vmm { policy: Spec, cpu: Option<u32> },
    Process { socket: Socket, doorbell: EventFd, kicks: Vec<OwnedFd> },
}

/// Why nobody can decide.
#[derive(Debug, thiserror::Error)]
pub enum DelegationError {
    /// The socket.
    #[error("--delegate external:{0}")]
    Socket(#[from] SocketError),
    /// A descriptor.
    #[error("--delegate: can't make an eventfd: {0}")]
    Evt(#[from] io::Error),
    /// KVM's side of kicks.
    #[error("--delegate: KVM refuses interrupts by eventfd: {0}")]
    Kicks(#[from] kvm_ioctls::Error),
}

/// What is around it when the vCPUs run.
#[derive(Debug)]
pub struct Surroundings {
    /// What the guest's clock shows.
    pub clock: Clock,
    /// How vCPUs are interrupted.
    pub kicks: Kicks,
    /// What the host does with the vCPUs.
    pub watch: Watch,
}

impl Delegation {
    /// For an enclave with this memory.
    ///
    /// # Errors
    /// [`DelegationError`].
    pub fn new(wanted: &Delegate, memory: Memory, kicks: &Kicks) -> Result<Self, DelegationError> {
        let role = match &wanted.who {
            Who::Vmm(policy) => Role::Vmm { policy: *policy, cpu: wanted.cpu },
            Who::Process(path) => Role::Process {
                socket: Socket::bind(path)?,
                doorbell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                kicks: kicks.events()?,
            },
        };
        Ok(Self { memory, bell: Bell::new()?, role })
    }

    /// To be rung when the guest has told of its directory, and with it of its enclave.
    pub fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }

    /// To be rung by the guest when an agent that sleeps has a message.
    pub fn doorbell(&self) -> &EventFd {
        match &self.role {
            Role::Vmm { .. } => self.bell.evt(),
            Role::Process { doorbell, .. } => doorbell,
        }
    }

    /// Starts its thread.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn start(self, around: Surroundings) -> io::Result<Thread> {
        let Self { memory, bell, role } = self;
        let Surroundings { clock, kicks, watch } = around;
        match role {
            Role::Vmm { policy, cpu } => Thread::decide(Desk { policy, cpu, memory, clock, kicks, bell, watch }),
            Role::Process { socket, doorbell, kicks } => {
                let (doorbell, visits) = (owned(doorbell), Arc::new(Visits::default()));
                Thread::keep(Door { socket, memory, clock, kicks, doorbell, bell, watch, visits })
            }
        }
    }
}
