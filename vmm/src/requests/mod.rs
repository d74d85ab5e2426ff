//! What the VMM asks of its guest's kernel: [`Mailbox::ask`].
//!
//! The control interface and the debugger use it, from any thread but a vCPU's. The protocol is `vcpu_sched::requests`'. Invariants:
//! everything that the guest writes is copied and checked before it is believed, and nothing of it leads outside of the mailbox; a
//! guest that doesn't answer costs its asker the time that the asker has given, and one slot until it does.

mod region;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use tokio::sync::watch;
use vcpu_sched::requests::message::{self, READY, Refusal, Request};
use vcpu_sched::requests::{HeaderError, VECTOR};

use self::region::Region;
use crate::guestview::{GuestViewError, Reader};
use crate::memory::Ram;

/// How long an answer may take, unless the asker says otherwise. The kernel answers within microseconds of its CPU's time; on hosts
/// that interpret kernels, and while the host is busy, that is some milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Intel SDM vol. 3A 11.11.1: the address of a message to a local APIC, its id from bit 12 on.
const MSI_ADDRESS: u32 = 0xfee0_0000;
/// Ids that fit such an address.
const MAX_APIC_ID: u32 = 0xff;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The guest's kernel has looked at it and says no.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The guest shows nothing at all.
    #[error(transparent)]
    NoGuest(#[from] GuestViewError),
    /// It has no mailbox.
    #[error("the guest takes no requests: its kernel isn't Taskvisor's own, or was started without mailbox=1")]
    NoMailbox,
    /// Its mailbox is none.
    #[error("the guest's mailbox can't be used: {0}")]
    Header(#[from] HeaderError),
    /// Its mailbox isn't in memory, or its answer is none.
    #[error("the guest's mailbox can't be used: {0}")]
    Broken(&'static str),
    /// More than fits a slot.
    #[error("the request has {bytes} bytes, the guest takes {max}")]
    TooLong {
        /// What it has.
        bytes: usize,
        /// What fits.
        max: usize,
    },
    /// No slot became free.
    #[error("the guest is still about other requests, {0:?} after this one came")]
    Busy(Duration),
    /// The guest has not begun.
    #[error("the guest has not looked at the request within {0:?}; it will not be carried out")]
    Unseen(Duration),
    /// The guest has begun, and no more is known.
    #[error("the guest has not answered within {0:?}; it may still carry the request out")]
    Silent(Duration),
    /// The interrupt.
    #[error("the guest can't be interrupted: {0}")]
    Interrupt(io::Error),
    /// The machine is ending.
    #[error("the guest has ended")]
    Ended,
}

/// How a guest's CPU, by the id of its local APIC, is told that there is a request.
pub type Interrupt = Box<dyn Fn(u32) -> io::Result<()> + Send + Sync>;

/// Interrupts through KVM's interrupt controller.
pub fn interrupt_through(vm: Arc<VmFd>) -> Interrupt {
    Box::new(move |apic_id| {
        if apic_id > MAX_APIC_ID {
            return Err(io::Error::other("its CPU has no id that a message can name"));
        }
        let address_lo = MSI_ADDRESS | apic_id << 12;
        vm.signal_msi(kvm_msi { address_lo, data: VECTOR.into(), ..kvm_msi::default() })?;
        Ok(())
    })
}

/// The guest rings when it has answered. Made before the devices are, whose doorbell port it listens to.
#[derive(Debug, Clone, Default)]
pub struct Bell(Arc<Ring>);

#[derive(Debug, Default)]
struct Ring {
    state: Mutex<State>,
    rung: Condvar,
    /// Changes when an attached program may have something to read, room for more, or have ended.
    ready: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Once the guest has told where it is.
    region: Option<Region>,
    /// Of the last request.
    sequence: u64,
    ended: bool,
}

impl Bell {
    /// What the doorbell port calls. The number that it is given is the guest's word: who waits, looks.
    pub fn listener(&self) -> impl FnMut(u32) + Send + 'static {
        let bell = self.clone();
        move |number| match number {
            READY => bell.0.ready.send_modify(|()| ()),
            _ => bell.ring(),
        }
    }

    fn ring(&self) {
        // The lock: who has looked and not begun to wait yet would miss it.
        drop(self.lock());
        self.0.rung.notify_all();
    }

    /// The machine ends: who waits, waits no more.
    pub fn end(&self) {
        self.lock().ended = true;
        self.0.rung.notify_all();
        self.0.ready.send_modify(|()| ());
    }

    /// The state is whole at every moment, also after a panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a ring, until `deadline` at most. None: that has passed.
    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, deadline: Instant) -> (MutexGuard<'a, State>, bool) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (state, false);
        }
        let (state, _) = self.0.rung.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        (state, true)
    }
}

/// One guest's mailbox, for many askers.
#[derive(Clone)]
pub struct Mailbox {
    bell: Bell,
    reader: Reader,
    ram: Ram,
    interrupt: Arc<Interrupt>,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("bell", &self.bell).finish_non_exhaustive()
    }
}

impl Mailbox {
    /// Over a guest's memory.
    pub fn new(bell: Bell, reader: Reader, ram: Ram, interrupt: Interrupt) -> Self {
        Self { bell, reader, ram, interrupt: Arc::new(interrupt) }
    }

    /// Asks, and waits for the answer: [`PATIENCE`] at most.
    pub fn ask(&self, request: &Request) -> Result<u64, RequestError> {
        self.ask_within(request, PATIENCE)
    }

    /// As [`Mailbox::ask`], with a patience of its own.
    pub fn ask_within(&self, request: &Request, patience: Duration) -> Result<u64, RequestError> {
        self.exchange(request, patience).map(|(value, _)| value)
    }

    /// As [`Mailbox::ask`]; the answer's body, too.
    pub fn ask_for_bytes(&self, request: &Request) -> Result<(u64, Vec<u8>), RequestError> {
        self.exchange(request, PATIENCE)
    }

    /// Changes when what an attached program's streams could not do before may be possible now.
    pub fn ready(&self) -> watch::Receiver<()> {
        self.bell.0.ready.subscribe()
    }

    fn exchange(&self, request: &Request, patience: Duration) -> Result<(u64, Vec<u8>), RequestError> {
        let deadline = Instant::now() + patience;
        let mut state = self.bell.lock();
        let (slot, sequence) = loop {
            if state.ended {
                return Err(RequestError::Ended);
            }
            if state.region.is_none() {
                state.region = Some(Region::find(&self.reader, &self.ram)?);
            }
            let sequence = state.sequence.wrapping_add(1);
            state.sequence = sequence;
            if let Some(slot) = state.region.as_mut().and_then(|region| region.claim(&self.ram)) {
                break (slot, sequence);
            }
            let waited;
            (state, waited) = self.bell.wait(state, deadline);
            if !waited {
                return Err(RequestError::Busy(patience));
            }
        };
        // From here on the slot is ours: every way out gives it back, or leaves it to the guest.
        let Some(region) = state.region.as_mut() else { return Err(RequestError::NoMailbox) };
        let apic_id = region.apic_id();
        let (head, body) = request.encode(sequence);
        if let Err(error) = region.post(&self.ram, slot, &head, &body) {
            region.give_back(slot);
            return Err(error);
        }
        drop(state);
        let interrupted = (self.interrupt)(apic_id).map_err(RequestError::Interrupt);

        let mut state = self.bell.lock();
        loop {
            let ended = state.ended;
            let Some(region) = state.region.as_mut() else { return Err(RequestError::NoMailbox) };
            if region.is_answered(&self.ram, slot)? {
                let answer = region.answer(&self.ram, slot);
                drop(state);
                // Somebody may wait for a slot.
                self.bell.0.rung.notify_all();
                let (head, body) = answer?;
                if head.sequence != sequence {
                    return Err(RequestError::Broken("its answer belongs to another request"));
                }
                let outcome = message::outcome(&head);
                let value = outcome.ok_or(RequestError::Broken("its answer is none that this version knows"))??;
                return Ok((value, body));
            }
            if ended {
                return Err(RequestError::Ended);
            }
            if let Err(error) = interrupted {
                region.withdraw(&self.ram, slot);
                return Err(error);
            }
            let waited;
            (state, waited) = self.bell.wait(state, deadline);
            if !waited {
                let Some(region) = state.region.as_mut() else { return Err(RequestError::NoMailbox) };
                return Err(match region.withdraw(&self.ram, slot) {
                    true => RequestError::Unseen(patience),
                    false => RequestError::Silent(patience),
                });
            }
        }
    }
}
