//! The guest's clock: what was asked, who does it, and live changes.
//!
//! [`crate::vm`] makes a [`Clock`] for each machine; the control interface holds a clone of it. What a guest's clocks show comes
//! from its clock page (`vcpu_sched::clock`, docs/clock.md), which the VMM writes: when the guest publishes it, and at each change.
//! Invariants: the page is written while no vCPU is in the guest, or before programs run; a clock runs backwards only after
//! [`Step::Backward`], or an offset that was made smaller with leave to do so; what a guest has in its page can break its own
//! clock only.
//!
//! | module | what |
//! | --- | --- |
//! | [`settings`] | what the flags say |
//! | [`plan`] | from there to a clock |
//! | [`counter`] | the guest's counter, told from outside |
//! | [`page`] | the page in guest memory |
//! | [`native`] | KVM's scaling and offsets, measured before they are relied on |
//! | [`interrupt`] | telling the guest's CPUs |
//! | [`verify`] | measuring it all from inside a guest |

pub mod counter;
pub mod interrupt;
pub mod native;
pub mod page;
pub mod plan;
pub mod settings;
mod state;
#[cfg(test)]
mod tests;
pub mod verify;

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use taskvisor_devices::bus::lock;
use vcpu_sched::clock::page::PageError;
use vcpu_sched::clock::{ClockLine, StepError};
pub use vcpu_sched::clock::{Rate, Step};
use vcpu_sched::directory::{Entry, EntryKind};

use self::counter::{Counter, host_ticks};
use self::interrupt::Interrupts;
use self::page::GuestPage;
use self::settings::OnPause;
use self::state::State;
use crate::guestview;
use crate::memory::Ram;
use crate::vm::run_control::{PauseListener, RunControl, RunControlError};

/// Why a clock can't be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// There is nothing to write to.
    #[error("the guest's clock can't be steered: its kernel isn't Taskvisor's own, or hasn't come that far")]
    NoPage,
    /// What the guest has there is no clock.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The clock can't be there.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A clock would run backwards and nobody said that it may.
    #[error(
        "that sets the clock of vCPU {vcpu} back by {nanos} ns: programs would see time run backwards; ask for it by name"
    )]
    Backward {
        /// The first one.
        vcpu: u32,
        /// By how much.
        nanos: u64,
    },
    /// No such vCPU.
    #[error("there is no vCPU {vcpu}, the last one is {}", vcpus.saturating_sub(1))]
    NoVcpu {
        /// Which.
        vcpu: u32,
        /// How many there are.
        vcpus: u32,
    },
    /// The guest can't be stopped for it.
    #[error(transparent)]
    Run(#[from] RunControlError),
}

/// What a machine's clock is made of; fixed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether KVM makes the counter what was asked for, or the clock page makes the clocks so.
    pub native: bool,
    /// Frequency that was asked for.
    pub asked_khz: Option<u32>,
    /// Frequency that the guest is told.
    pub told_khz: u32,
    /// Frequency of the guest's counter, as KVM reports it; 0: unknown.
    pub counter_khz: u32,
    /// Frequency of the host's counter; 0: unknown.
    pub host_khz: u32,
    /// The offset of the first vCPU's counter that KVM reports.
    pub claimed_offset: Option<u64>,
    /// What virtual time does in pauses.
    pub on_pause: OnPause,
}

/// A clock as it is now: the resource of the control interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `native` or `virtual`: see docs/clock.md.
    pub mode: String,
    /// Frequency that was asked for, in kHz.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub asked_khz: Option<u32>,
    /// Frequency that the guest is told.
    pub told_khz: u32,
    /// Frequency of the guest's counter, as KVM reports it.
    pub counter_khz: u32,
    /// Nanoseconds of virtual time in a second of the host's, divided by 10^9.
    pub rate: f64,
    /// By how many nanoseconds each vCPU's clock is ahead.
    pub offsets_ns: Vec<i64>,
    /// What virtual time does in pauses: `stop` or `run`.
    pub on_pause: OnPause,
    /// The guest has shown its clock page, so that changes have effect at once.
    pub steerable: bool,
    /// Virtual time stands still now.
    pub stopped: bool,
    /// What the guest's monotonic clock shows, without any offset; there once it is steerable.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub now_ns: Option<u64>,
    /// Changes so far.
    pub changes: u64,
}

/// A machine's clock; clones are the same one.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    facts: Facts,
    ram: Ram,
    run: RunControl,
    interrupts: Interrupts,
    /// Never held while the vCPUs are being stopped: they may wait for it.
    state: Mutex<State>,
}

impl Clock {
    /// A clock that will run at `rate` with these offsets, one a vCPU, once the guest shows its page.
    pub fn new(facts: Facts, rate: Rate, offsets: Vec<i64>, ram: Ram, run: RunControl, interrupts: Interrupts) -> Self {
        let state = Mutex::new(State::new(rate, offsets, facts.native));
        Self(Arc::new(Shared { facts, ram, run, interrupts, state }))
    }

    /// The clock as it is now.
    pub fn status(&self) -> Status {
        let (facts, state) = (&self.0.facts, lock(&self.0.state));
        Status {
            mode: if facts.native { "native" } else { "virtual" }.into(),
            asked_khz: facts.asked_khz,
            told_khz: facts.told_khz,
            counter_khz: facts.counter_khz,
            rate: state.rate.nanos() as f64 / 1e9,
            offsets_ns: state.offsets.clone(),
            on_pause: facts.on_pause,
            steerable: state.guest.is_some(),
            stopped: state.stopped_at.is_some(),
            now_ns: state.now().map(|now| now.0),
            changes: state.changes,
        }
    }

    /// What the guest's monotonic clock shows, without any offset; `None` before the guest has shown its clock page.
    pub fn now(&self) -> Option<vcpu_sched::ids::Nanos> {
        lock(&self.0.state).now()
    }

    /// From now on virtual time runs so fast. No clock jumps.
    ///
    /// # Errors
    /// [`ClockError`]; nothing has changed then.
    pub fn set_rate(&self, rate: Rate) -> Result<Status, ClockError> {
        self.change(|state| state.change_line(|line, now| Ok(line.with_rate(now, rate)?)).map(|()| state.rate = rate))
    }

    /// All clocks jump.
    ///
    /// # Errors
    /// [`ClockError`]; nothing has changed then.
    pub fn step(&self, step: Step) -> Result<Status, ClockError> {
        self.change(|state| state.change_line(|line, now| Ok(line.with_step(now, step)?)))
    }

    /// Sets by how many nanoseconds a vCPU's clock is ahead, or all of them. `backward`: a clock may be set back by it.
    ///
    /// # Errors
    /// [`ClockError`]; nothing has changed then.
    pub fn set_offset(&self, vcpu: Option<u32>, nanos: i64, backward: bool) -> Result<Status, ClockError> {
        self.change(|state| state.set_offset(vcpu, nanos, backward))
    }

    /// Changes the clock with all vCPUs out of the guest, and has each of them look at it before anything else.
    fn change(&self, f: impl FnOnce(&mut State) -> Result<(), ClockError>) -> Result<Status, ClockError> {
        {
            let _out = self.0.run.pause_briefly()?;
            let mut state = lock(&self.0.state);
            f(&mut state)?;
            state.changes += 1;
            self.0.interrupts.send();
        }
        Ok(self.status())
    }

    /// What to do when the guest tells the page of its directory.
    pub fn directory_listener(&self) -> impl Fn(u32) + Send + use<> {
        let clock = self.clone();
        move |page| clock.published(page)
    }

    /// The guest has published its directory. On the thread of the vCPU that did it; no program runs yet.
    fn published(&self, page: u32) {
        let at = host_ticks();
        // A directory that can't be read is told by those who need all of it.
        let Ok(directory) = guestview::directory(&self.0.ram, page) else { return };
        if let Some(entry) = directory.entries.iter().find(|entry| entry.kind == EntryKind::Clock as u32) {
            self.take(entry, directory.header.tsc, at);
        }
    }

    /// `entry` names the guest's clock page; its counter was `guest_ticks` just before the host's was `host_ticks`.
    fn take(&self, entry: &Entry, guest_ticks: u64, host_ticks: u64) {
        let facts = &self.0.facts;
        let Some(page) = GuestPage::open(&self.0.ram, entry) else {
            log::warn!("the guest says that its clock page is at {:#x}, where none can be", entry.address);
            return;
        };
        let counter = Counter::settle(facts.counter_khz, facts.host_khz, facts.claimed_offset, guest_ticks, host_ticks);
        match lock(&self.0.state).begin(page, counter, facts.told_khz) {
            Ok(()) => self.0.interrupts.send(),
            Err(error) => log::warn!("the guest's clock can't be steered: {error}"),
        }
    }
}

impl PauseListener for Clock {
    fn stopped(&self) {
        if self.0.facts.on_pause == OnPause::Stop {
            lock(&self.0.state).stop();
        }
    }

    fn going_on(&self) {
        if self.0.facts.on_pause == OnPause::Stop && lock(&self.0.state).go_on() {
            self.0.interrupts.send();
        }
    }
}
