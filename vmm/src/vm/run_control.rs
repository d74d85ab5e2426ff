//! Stopping the guest as a whole and asking its vCPUs: [`RunControl`], a handle that anybody may clone.
//!
//! The control interface, snapshots and the debugger use it, from any thread but a vCPU's own. Invariants: while a
//! [`Paused`] lives, no vCPU is in the guest but those it has let go itself; several of them don't undo each other: the
//! guest goes on when the last one is dropped; nothing here waits for a vCPU whose thread has ended.

use std::fmt;
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use tokio::sync::watch;

use crate::vcpu::seat::{Seat, Taken};

/// A vCPU leaves the guest within microseconds. This long only if its thread waits in a device for somebody to read the
/// guest's output.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why vCPUs can't be stopped or asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RunControlError {
    /// Its thread does something else.
    #[error("vCPU {vcpu} doesn't stop: it waits for somebody to read the guest's output")]
    Busy {
        /// Which.
        vcpu: usize,
    },
    /// No such number.
    #[error("there is no vCPU {vcpu}")]
    NoVcpu {
        /// Which.
        vcpu: usize,
    },
    /// The machine is ending.
    #[error("vCPU {vcpu} has ended")]
    Gone {
        /// Which.
        vcpu: usize,
    },
    /// It was let go.
    #[error("vCPU {vcpu} is running")]
    Running {
        /// Which.
        vcpu: usize,
    },
}

/// Who wants to know when the guest stands still as a whole, and when it goes on. Called by whoever pauses and resumes; pauses may
/// overlap, then the calls nest.
pub trait PauseListener: Send + Sync {
    /// No vCPU is in the guest.
    fn stopped(&self);
    /// One of them is about to be, as far as this pause is concerned.
    fn going_on(&self);
}

/// All vCPU threads of one machine.
#[derive(Debug, Clone)]
pub struct RunControl(Arc<Shared>);

struct Shared {
    seats: Box<[Arc<Seat>]>,
    /// How many [`Paused`] there are.
    holders: watch::Sender<usize>,
    listener: OnceLock<Box<dyn PauseListener>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("seats", &self.seats).field("holders", &self.holders).finish_non_exhaustive()
    }
}

impl RunControl {
    /// For this many vCPUs, whose threads don't exist yet. Holding them before they do is allowed: they wait before their
    /// first instruction.
    pub fn new(vcpus: usize) -> Self {
        let seats = (0..vcpus).map(|_| Arc::default()).collect();
        Self(Arc::new(Shared { seats, holders: watch::Sender::new(0), listener: OnceLock::new() }))
    }

    /// Tells `listener` of all pauses but brief ones from now on. The first one stays.
    pub fn listen(&self, listener: Box<dyn PauseListener>) {
        // A second one would be a defect of ours, and harmless.
        let _ = self.0.listener.set(listener);
    }

    /// For the thread of vCPU `index`, see [`Seat::take`].
    pub fn take_seat(&self, index: usize) -> Option<Taken> {
        self.0.seats.get(index).map(Seat::take)
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.0.seats.len()
    }

    /// Whether anybody holds the guest.
    pub fn paused(&self) -> bool {
        *self.0.holders.borrow() > 0
    }

    /// Waits until nobody holds it.
    pub async fn until_running(&self) {
        // It only fails when the sender is gone, which is ours.
        let _ = self.0.holders.subscribe().wait_for(|holders| *holders == 0).await;
    }

    /// Stops all vCPUs. When this returns they are out of the guest, with registers that may be read and changed.
    pub fn pause(&self) -> Result<Paused, RunControlError> {
        let mut paused = self.pause_briefly()?;
        paused.tells = true;
        paused.tell();
        Ok(paused)
    }

    /// The same for a change that takes microseconds, of which the [`PauseListener`] isn't told.
    pub fn pause_briefly(&self) -> Result<Paused, RunControlError> {
        let paused = self.hold();
        let deadline = Instant::now() + PATIENCE;
        for (vcpu, seat) in self.0.seats.iter().enumerate() {
            // Dropping `paused` lets the others go again.
            if !seat.wait(deadline) {
                return Err(RunControlError::Busy { vcpu });
            }
        }
        Ok(paused)
    }

    fn hold(&self) -> Paused {
        self.0.holders.send_modify(|holders| *holders += 1);
        self.0.seats.iter().for_each(|seat| seat.hold());
        Paused { control: self.clone(), held: vec![true; self.0.seats.len()], tells: false, told: false }
    }

    /// Lets a vCPU go on that has stopped by itself and stands still, as far as nobody holds it. One that this holder lets run may have
    /// stopped anew: [`Paused::release_stopped`] is for that.
    pub fn go(&self, vcpu: usize) {
        if let Some(seat) = self.0.seats.get(vcpu) {
            seat.go();
        }
    }

    /// Ends all threads. May be called again, as a further kick.
    pub fn leave(&self) {
        self.0.seats.iter().for_each(|seat| seat.leave());
    }
}

/// The guest stands still while this lives.
#[derive(Debug)]
#[must_use = "the guest goes on when this is dropped"]
pub struct Paused {
    control: RunControl,
    /// Which vCPUs this one holds.
    held: Vec<bool>,
    /// The listener is told of it.
    tells: bool,
    /// And believes that the guest stands still because of it.
    told: bool,
}

impl Paused {
    /// Does something with a vCPU, in the vCPU's own thread.
    pub fn with_vcpu<T: Send + 'static>(
        &self,
        vcpu: usize,
        work: impl FnOnce(&mut VcpuFd) -> T + Send + 'static,
    ) -> Result<T, RunControlError> {
        let seat = self.seat(vcpu)?;
        if self.held.get(vcpu) != Some(&true) {
            return Err(RunControlError::Running { vcpu });
        }
        let (answer, answered) = channel();
        // The receiver is below and waits.
        let job = Box::new(move |fd: &mut VcpuFd| drop(answer.send(work(fd))));
        seat.give(job).map_err(|_| RunControlError::Gone { vcpu })?;
        answered.recv().map_err(|_| RunControlError::Gone { vcpu })
    }

    /// Lets one vCPU go, as far as this holder is concerned. One that has stopped by itself stays where it is.
    pub fn release(&mut self, vcpu: usize) -> Result<(), RunControlError> {
        self.release_by(vcpu, Seat::release)
    }

    /// The same, also of one that has stopped by itself.
    pub fn release_stopped(&mut self, vcpu: usize) -> Result<(), RunControlError> {
        self.release_by(vcpu, Seat::release_stopped)
    }

    fn release_by(&mut self, vcpu: usize, release: impl FnOnce(&Seat)) -> Result<(), RunControlError> {
        let held = self.held.get_mut(vcpu).ok_or(RunControlError::NoVcpu { vcpu })?;
        if std::mem::take(held) {
            self.tell();
            release(self.seat(vcpu)?);
        }
        Ok(())
    }

    /// Tells the listener, if what this one holds has become all vCPUs or isn't any more.
    fn tell(&mut self) {
        let all = self.tells && self.held.iter().all(|held| *held);
        if all != std::mem::replace(&mut self.told, all)
            && let Some(listener) = self.control.0.listener.get()
        {
            if all { listener.stopped() } else { listener.going_on() }
        }
    }

    /// Holds one vCPU again; returns when it is out of the guest.
    pub fn hold(&mut self, vcpu: usize) -> Result<(), RunControlError> {
        let seat = self.seat(vcpu)?.clone();
        let held = self.held.get_mut(vcpu).ok_or(RunControlError::NoVcpu { vcpu })?;
        if !std::mem::replace(held, true) {
            seat.hold();
        }
        if !seat.wait(Instant::now() + PATIENCE) {
            return Err(RunControlError::Busy { vcpu });
        }
        self.tell();
        Ok(())
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.held.len()
    }

    /// Lets the guest go on, unless somebody else holds it too.
    pub fn resume(self) {}

    fn seat(&self, vcpu: usize) -> Result<&Arc<Seat>, RunControlError> {
        self.control.0.seats.get(vcpu).ok_or(RunControlError::NoVcpu { vcpu })
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.tells = false;
        self.tell();
        let held = self.control.0.seats.iter().zip(&self.held).filter(|(_, held)| **held);
        held.for_each(|(seat, _)| seat.release());
        // Last: whoever waits for it finds vCPUs that may run.
        self.control.0.holders.send_modify(|holders| *holders = holders.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests;
