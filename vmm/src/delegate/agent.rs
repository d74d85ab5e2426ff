//! The agent's thread.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vcpu_sched::delegation::agent::{Agent, AgentError, Options};
use vcpu_sched::ids::{CpuId, Nanos};

use super::region::{EnclaveError, Mapped};
use super::{Bell, Delegate, Figures, Kicks, Watch};
use crate::clock::Clock;
use crate::guestview::Reader;
use crate::memory::Ram;
use crate::sandbox::{self, Kind};

/// Turns without anything to do before an agent that may sleep does: some microseconds.
const TURNS_BEFORE_SLEEP: u32 = 200;
/// A sleeping agent looks again after this time even if nobody rings: a policy may want to act by time alone, and the guest's word
/// about the bell is the guest's.
const NAP: Duration = Duration::from_millis(5);
/// How often the clock is read: the agent's time may be so many turns old.
const TURNS_A_CLOCK: u32 = 16;

/// What the agent works with.
#[derive(Debug)]
pub struct Desk {
    /// What was asked for.
    pub wanted: Delegate,
    /// Where the guest tells of its enclave.
    pub reader: Reader,
    /// Where that is.
    pub ram: Ram,
    /// What the guest's clock shows.
    pub clock: Clock,
    /// How vCPUs are interrupted.
    pub kicks: Kicks,
    /// What wakes it.
    pub bell: Arc<Bell>,
    /// What the host does with the vCPUs.
    pub watch: Watch,
}

/// The running agent; ended when dropped.
#[derive(Debug)]
pub struct Thread {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
    figures: Arc<Figures>,
}

impl Thread {
    /// Starts it. It waits for the guest's directory first.
    pub fn start(mut desk: Desk) -> io::Result<Self> {
        let (bell, figures) = (desk.bell.clone(), Arc::new(Figures::default()));
        let noted = figures.clone();
        let thread = thread::Builder::new().name("agent".into()).spawn(move || {
            if let Some(cpu) = desk.wanted.cpu {
                seat(cpu);
            }
            if let Err(error) = sandbox::enter(Kind::Agent) {
                return log::error!("there is no agent: {error}");
            }
            if let Err(error) = desk.work(&noted) {
                log::error!("--delegate: {error}");
            }
        })?;
        Ok(Self { bell, thread: Some(thread), figures })
    }

    /// What it did.
    pub fn figures(&self) -> Arc<Figures> {
        self.figures.clone()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.bell.end();
        if let Some(thread) = self.thread.take() {
            // A panic there was told by the hook; the guest's kernel has gone on by itself.
            let _ = thread.join();
        }
    }
}

/// Gives the calling thread a host CPU.
fn seat(cpu: u32) {
    let mut set = rustix::thread::CpuSet::new();
    let fits = (cpu as usize) < rustix::thread::CpuSet::MAX_CPU;
    if fits {
        set.set(cpu as usize);
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        log::warn!("--agent-cpu {cpu}: {error}; the agent runs where the host wants");
    }
}

/// Why the agent ended before the guest did.
#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error(transparent)]
    Enclave(#[from] EnclaveError),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl Desk {
    fn work(&mut self, figures: &Figures) -> Result<(), WorkError> {
        let mapped = loop {
            match Mapped::find(&self.reader, &self.ram) {
                Ok(mapped) => break mapped,
                // The bell rings when the guest has told; a kernel of another kind never does.
                Err(EnclaveError::View(_)) => {}
                Err(error) => return Err(error.into()),
            }
            if self.bell.wait(None) {
                return Ok(());
            }
        };
        let region = mapped.region()?;
        // Before the policy is made: it may want to know who shares a core.
        self.watch.look(&region, self.now());
        let sleeps = self.wanted.cpu.is_none();
        let options = Options { nonce: nonce(), sleeps, tunables: 0, runnable_timeout: 0 };
        let mut agent = Agent::attach(region, options, self.wanted.policy.make(&region))?;
        // Any CPU of the enclave sees it.
        if let Some(cpu) = region.cpu_set().first() {
            self.kicks.kick(cpu.0);
        }
        let kicks = self.kicks.clone();
        let mut kicker = |cpu: CpuId| kicks.kick(cpu.0);
        let (mut idle, mut naps, mut turn, mut now) = (0, 0, 0_u32, self.now());
        let ended = loop {
            if self.bell.has_ended() {
                break Ok(());
            }
            if turn.is_multiple_of(TURNS_A_CLOCK) {
                now = self.now();
                self.watch.look(&region, now);
            }
            turn = turn.wrapping_add(1);
            match agent.step(now, &mut kicker) {
                Ok(true) => idle = 0,
                Ok(false) => idle += 1,
                Err(error) => break Err(error.into()),
            }
            if idle < TURNS_BEFORE_SLEEP {
                std::hint::spin_loop();
                continue;
            }
            idle = 0;
            figures.note(agent.counters(), naps);
            if sleeps {
                if agent.may_sleep() || !agent.is_accepted() {
                    naps += 1;
                    self.bell.wait(Some(NAP));
                }
                agent.woke();
                turn = 0;
            }
        };
        figures.note(agent.counters(), naps);
        // A machine that ends needs no hand-off.
        ended
    }

    /// What the guest's clock shows.
    fn now(&self) -> Nanos {
        self.clock.now().unwrap_or(Nanos::ZERO)
    }
}

/// A number for this agent.
fn nonce() -> u32 {
    // Only to differ from the agent before: any number but 0 is right.
    (RandomState::new().build_hasher().finish() as u32).max(1)
}
