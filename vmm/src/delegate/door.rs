//! The door for agents' processes (`--delegate external:SOCKET`): hands the enclave's memory, its doorbell and the vCPUs' kicks to
//! one process at a time, and notices when that has gone.
//!
//! Called by [`super::thread`] alone. What is handed out can't be taken back: a process that keeps the memory after its connection has
//! ended can still write what an agent writes, and that is all it can (docs/security.md). The invariant: at most one connection at a
//! time has been welcomed, and when it ends, the guest is told that its agent has left.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vcpu_sched::delegation::agent;
use vcpu_sched::delegation::door::{Kicks, MAX_KICKS, Welcome};
use vcpu_sched::delegation::layout::Region;
use vcpu_sched::ids::Nanos;

use super::agent::until_there;
use super::memory::{Memory, RegionError};
use super::{Bell, Watch, wire};
use crate::clock::Clock;
use crate::control::socket::{self, Socket};

/// How often the host's words are written while an agent is there.
const LOOK: Duration = Duration::from_millis(5);

/// Who came.
#[derive(Debug, Default)]
pub struct Visits {
    welcomed: AtomicU64,
    refused: AtomicU64,
}

impl Visits {
    /// One `stats:` line.
    pub fn render(&self) -> String {
        // Relaxed: figures.
        let (welcomed, refused) = (self.welcomed.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed));
        format!("stats: agents attached={welcomed} refused={refused}\n")
    }
}

/// What the thread works with.
#[derive(Debug)]
pub struct Door {
    /// Where processes connect.
    pub socket: Socket,
    /// The enclave's memory.
    pub memory: Memory,
    /// What the guest's clock shows.
    pub clock: Clock,
    /// One for each vCPU.
    pub kicks: Vec<OwnedFd>,
    /// What the guest rings.
    pub doorbell: OwnedFd,
    /// What wakes this thread.
    pub bell: Arc<Bell>,
    /// What the host does with the vCPUs.
    pub watch: Watch,
    /// Who came.
    pub visits: Arc<Visits>,
}

/// A process that was welcomed.
struct Visitor {
    stream: UnixStream,
    process: u32,
}

impl Door {
    /// Keeps it until the machine ends.
    pub fn keep(mut self) -> Result<(), DoorError> {
        let memory = self.memory;
        let Some(region) = until_there(&memory, &self.bell)? else { return Ok(()) };
        let listener = self.socket.listener().map_err(DoorError::Listen)?;
        let hall = Hall { listener, memory: &memory, region, kicks: &self.kicks, doorbell: &self.doorbell };
        let mut visitor: Option<Visitor> = None;
        loop {
            let (knocked, stirred) = hall.wait(&self.bell, visitor.as_ref());
            if self.bell.has_ended() {
                return Ok(());
            }
            if stirred && let Some(gone) = visitor.take_if(|visitor| hall.is_gone(visitor)) {
                hall.see_off(&gone);
            }
            if knocked {
                hall.answer(&mut visitor, &self.visits);
            }
            if visitor.is_some() {
                self.watch.look(&region, self.clock.now().unwrap_or(Nanos::ZERO));
            }
        }
    }
}

/// Why the door is shut.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// There is nothing behind it.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Nobody can come.
    #[error("no agent can connect: {0}")]
    Listen(io::Error),
}

/// What a visitor is given, and where he comes in.
struct Hall<'d> {
    listener: UnixListener,
    memory: &'d Memory,
    region: Region<'d>,
    kicks: &'d [OwnedFd],
    doorbell: &'d OwnedFd,
}

impl Hall<'_> {
    /// Waits for a ring, a knock, or something of the visitor's: (knocked, stirred).
    fn wait(&self, bell: &Bell, visitor: Option<&Visitor>) -> (bool, bool) {
        let limit = visitor.and_then(|_| Timespec::try_from(LOOK).ok());
        let mut fds =
            vec![PollFd::from_borrowed_fd(bell.fd(), PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(visitor.map(|visitor| PollFd::new(&visitor.stream, PollFlags::IN)));
        // An interrupted wait is a look too many.
        let _ = poll(&mut fds, limit.as_ref());
        let told = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
        let (knocked, stirred) = (told(1), told(2));
        bell.clear();
        (knocked, stirred)
    }

    /// Has he left? One who says something is sent away: agents have nothing to say here.
    fn is_gone(&self, visitor: &Visitor) -> bool {
        let mut word = [0; 8];
        !matches!(rustix::io::read(&visitor.stream, &mut word), Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR))
    }

    /// The guest's kernel waits for another one for a while, and then schedules by itself.
    fn see_off(&self, visitor: &Visitor) {
        log::warn!(
            "--delegate: the agent's process {} has gone; tasks wait a moment for another one, then the kernel schedules them",
            visitor.process
        );
        agent::dismiss(&self.region);
        // Any CPU sees it.
        if let Some(kick) = self.region.cpu_set().first().and_then(|cpu| self.kicks.get(cpu.index())) {
            // It can only fail when the counter is full, and then the CPU is kicked.
            let _ = rustix::io::write(kick, &1_u64.to_ne_bytes());
        }
    }

    fn answer(&self, visitor: &mut Option<Visitor>, visits: &Visits) {
        let (stream, process) = match socket::accept(&self.listener) {
            Ok(accepted) => accepted,
            Err(error) => return log::debug!("--delegate: nobody came in: {error}"),
        };
        if let Some(there) = visitor {
            visits.refused.fetch_add(1, Ordering::Relaxed);
            log::info!("--delegate: process {process} is refused: process {} is the agent", there.process);
            // Who doesn't wait for the answer needs none.
            let _ = wire::send(stream.as_fd(), &Welcome::occupied(there.process).to_bytes(), &[]);
            return;
        }
        match self.welcome(&stream) {
            Ok(()) => {
                visits.welcomed.fetch_add(1, Ordering::Relaxed);
                log::info!("--delegate: process {process} is the agent");
                *visitor = Some(Visitor { stream, process });
            }
            Err(error) => log::warn!("--delegate: process {process} can't be given the enclave: {error}"),
        }
    }

    fn welcome(&self, stream: &UnixStream) -> io::Result<()> {
        let ((guest, guest_bytes), (agent, agent_bytes)) = (self.memory.files.guest(), self.memory.files.agent());
        let welcome = Welcome::to(self.kicks.len() as u32, guest_bytes, agent_bytes);
        wire::send(stream.as_fd(), &welcome.to_bytes(), &[guest, agent, self.doorbell.as_fd()])?;
        for (first, some) in (0..).step_by(MAX_KICKS).zip(self.kicks.chunks(MAX_KICKS)) {
            let kicks: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
            wire::send(stream.as_fd(), &Kicks { first, count: some.len() as u32 }.to_bytes(), &kicks)?;
        }
        Ok(())
    }
}
