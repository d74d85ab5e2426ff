//! The other side of the door: a process that is an enclave's agent. `taskvisor agent` is one; anybody's own program may call this, too
//! (resources/agents/batch.rs).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vcpu_sched::delegation::abi::MAX_CPUS;
use vcpu_sched::delegation::agent::AgentError;
use vcpu_sched::delegation::door::{DOOR_WELCOME, Kicks, Welcome};
use vcpu_sched::delegation::layout::{LayoutError, Region};
use vcpu_sched::delegation::policies::Policy;
use vcpu_sched::ids::{CpuId, Nanos};

use super::drive::{Place, drive};
use super::memory::{Mapped, Rights};
use super::{Figures, wire};

/// How often an agent that spins looks whether the guest has ended.
const LOOK: Duration = Duration::from_millis(1);

/// Why this process is no agent, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Nobody is there.
    #[error("can't connect to {path}: {source}; taskvisor run --delegate external:{path} makes it", path = path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody else is.
    #[error("the enclave has an agent already: process {0}; one at a time can decide")]
    Occupied(u32),
    /// The machine ended before there was an enclave, or speaks of something else.
    #[error("{path} gave no enclave: {source}", path = path.display())]
    Door {
        /// Where.
        path: PathBuf,
        /// What was wrong.
        source: io::Error,
    },
    /// The memory is no region.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Thrown out.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// An enclave, as a process has it.
#[derive(Debug)]
pub struct Attached {
    stream: UnixStream,
    memory: Mapped,
    bell: OwnedFd,
    kicks: Vec<OwnedFd>,
}

impl Attached {
    /// Connects, and waits until the guest has its enclave.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn connect(path: &Path) -> Result<Self, AttachError> {
        let failed = |source| AttachError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        let wrong = |source| AttachError::Door { path: path.to_owned(), source };
        let (welcome, given) = wire::receive(stream.as_fd()).map_err(wrong)?;
        let welcome = Welcome::from_bytes(&welcome).ok_or_else(|| wrong(io::ErrorKind::InvalidData.into()))?;
        if welcome.state != DOOR_WELCOME {
            return Err(AttachError::Occupied(welcome.occupant));
        }
        Self::enter(stream, &welcome, given).map_err(wrong)
    }

    fn enter(stream: UnixStream, welcome: &Welcome, given: Vec<OwnedFd>) -> io::Result<Self> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let [guest, agent, bell] = <[OwnedFd; 3]>::try_from(given).map_err(|_| wrong())?;
        let parts = ((guest.as_fd(), welcome.guest_bytes), (agent.as_fd(), welcome.agent_bytes));
        let memory = Mapped::new(parts.0, parts.1, Rights::Agent)?;
        if welcome.cpus > MAX_CPUS {
            return Err(wrong());
        }
        let mut kicks = Vec::new();
        while kicks.len() < welcome.cpus as usize {
            let (record, some) = wire::receive(stream.as_fd())?;
            let record = Kicks::from_bytes(record);
            if record.first as usize != kicks.len() || some.is_empty() || record.count as usize != some.len() {
                return Err(wrong());
            }
            kicks.extend(some);
        }
        Ok(Self { stream, memory, bell, kicks })
    }

    /// Decides until the guest ends. The policy is made for the region; `sleeps`: not all the time, but when the guest rings.
    ///
    /// # Errors
    /// [`AttachError`]: thrown out, or somebody else decides.
    pub fn decide<P: Policy>(
        &self,
        policy: impl FnOnce(&Region<'_>) -> P,
        sleeps: bool,
        figures: &Figures,
    ) -> Result<(), AttachError> {
        let region = self.memory.region()?;
        let mut place = Outside { with: self, start: Instant::now(), looked: Instant::now(), ended: false };
        Ok(drive(region, policy(&region), sleeps, &mut place, figures)?)
    }
}

/// In a process of its own.
struct Outside<'a> {
    with: &'a Attached,
    start: Instant,
    looked: Instant,
    ended: bool,
}

impl Place for Outside<'_> {
    /// The host's time since it came: policies compare only what they have noted themselves.
    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn look(&mut self, _: &Region<'_>, _: Nanos) {
        if self.looked.elapsed() >= LOOK {
            self.wait(Duration::ZERO);
        }
    }

    fn kick(&self, cpu: CpuId) {
        if let Some(kick) = self.with.kicks.get(cpu.index()) {
            // It can only fail when the counter is full, and then the CPU is kicked.
            let _ = rustix::io::write(kick, &1_u64.to_ne_bytes());
        }
    }

    fn has_ended(&self) -> bool {
        self.ended
    }

    fn wait(&mut self, limit: Duration) {
        let limit = Timespec::try_from(limit).ok();
        let mut fds = [PollFd::new(&self.with.bell, PollFlags::IN), PollFd::new(&self.with.stream, PollFlags::IN)];
        // An interrupted wait is a wake-up too many.
        let _ = poll(&mut fds, limit.as_ref());
        // The VMM says nothing more, so whatever stirs there is the end.
        self.ended |= !fds[1].revents().is_empty();
        if !fds[0].revents().is_empty() {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.with.bell, &mut count);
        }
        self.looked = Instant::now();
    }
}
