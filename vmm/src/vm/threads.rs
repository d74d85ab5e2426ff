//! The vCPU threads as a group: started together, ended together.
//!
//! Invariant: whatever way [`super::Vm::run`] ends, its threads have been told to end, and have ended unless the host
//! holds one in a system call for longer than [`SHUTDOWN`].

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;

use super::run_control::RunControl;
use crate::affinity::{AffinityError, Plan};
use crate::chaos::{Chaos, Pauses};
use crate::debug::hub::Hub;
use crate::memory::Ram;
use crate::sandbox::{self, Kind, SandboxError};
use crate::trace::Recorder;
use crate::vcpu::counts::ExitCounts;
use crate::vcpu::kick;
use crate::vcpu::run_loop::{Buses, Outcome, Vcpu};

/// How long the threads have to end, so that shutting down stays below 100 ms.
const SHUTDOWN: Duration = Duration::from_millis(80);
/// A kick is repeated in this interval, for a thread that was in another system call.
const KICK_AGAIN: Duration = Duration::from_millis(5);
/// How often the end of threads is looked at.
const LOOK: Duration = Duration::from_micros(50);
/// A vCPU thread needs little: the run loop, devices, a report.
const STACK: usize = 256 << 10;

struct VcpuThread {
    thread: JoinHandle<()>,
    counts: Arc<ExitCounts>,
    /// Host thread id.
    tid: i32,
}

/// What all vCPUs share.
pub struct Shared<'a> {
    /// Who stops and asks them.
    pub control: RunControl,
    /// Size of a `kvm_run` mapping.
    pub run_size: usize,
    /// Where I/O goes.
    pub buses: Arc<Buses>,
    /// Guest memory.
    pub ram: Ram,
    /// Where threads report their end.
    pub outcomes: Sender<Outcome>,
    /// Becomes readable when they do.
    pub outcome_evt: EventFd,
    /// Where they run.
    pub placement: Arc<Plan>,
    /// What records them.
    pub recorder: Option<&'a Recorder>,
    /// Who debugs the guest.
    pub debug: Option<Arc<Hub>>,
    /// What disturbs them.
    pub chaos: Option<Chaos>,
}

/// Why not all threads could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The host refuses a thread.
    #[error("can't start a vCPU thread: {0}")]
    Thread(#[from] io::Error),
    /// Or its place.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// Or its filter.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Running vCPUs; stopped when dropped.
pub struct Threads {
    vcpus: Vec<VcpuThread>,
    control: RunControl,
}

impl Threads {
    /// Starts a thread for each vCPU. Signals to be handled elsewhere must be blocked already. The first vCPU, which alone
    /// runs anything before it is told to by another, comes last: no guest instruction runs before every thread has its
    /// place on the host.
    pub fn start(fds: Vec<VcpuFd>, shared: &Shared<'_>) -> Result<Self, StartError> {
        let mut threads = Self { vcpus: Vec::with_capacity(fds.len()), control: shared.control.clone() };
        for (index, fd) in fds.into_iter().enumerate().rev() {
            let id = index as u32;
            let seat = shared.control.take_seat(index).ok_or_else(|| io::Error::other("a vCPU without a seat"))?;
            let counts = Arc::new(ExitCounts::default());
            let mut vcpu = Vcpu {
                id,
                fd,
                run_size: shared.run_size,
                buses: shared.buses.clone(),
                ram: shared.ram.clone(),
                seat,
                counts: counts.clone(),
                tracer: shared.recorder.and_then(|recorder| recorder.tracer(id)),
                debug: shared.debug.clone(),
                pauses: shared.chaos.map(|chaos| Pauses::new(chaos, id)),
            };
            let (outcomes, evt) = (shared.outcomes.clone(), shared.outcome_evt.try_clone()?);
            let placement = shared.placement.clone();
            let (tell_tid, tid) = channel();
            let thread = thread::Builder::new().name(format!("vcpu{id}")).stack_size(STACK).spawn(move || {
                let seated = placement.take_seat(id).map_err(StartError::from).and_then(|()| {
                    vcpu.begin();
                    Ok(sandbox::enter(Kind::Vcpu)?)
                });
                let goes_on = seated.is_ok();
                // The receiver waits for it, below.
                let _ = tell_tid.send(seated.map(|()| rustix::thread::gettid().as_raw_nonzero().get()));
                if !goes_on {
                    return;
                }
                // A panic is a defect of ours, which must end the VM and not leave it waiting. (The hook has told it.)
                let outcome = catch_unwind(AssertUnwindSafe(|| vcpu.run())).unwrap_or(Outcome::Stopped);
                // The receiver may have gone already, when the VM is being torn down.
                let _ = outcomes.send(outcome);
                let _ = evt.write(1);
            })?;
            let tid = tid.recv().map_err(|_| io::Error::other("a vCPU thread ended at once"))??;
            log::info!("vCPU {id} is host thread {tid}");
            threads.vcpus.push(VcpuThread { thread, counts, tid });
        }
        threads.vcpus.reverse();
        Ok(threads)
    }

    /// The exits of each vCPU.
    pub fn counts(&self) -> Vec<Arc<ExitCounts>> {
        self.vcpus.iter().map(|vcpu| vcpu.counts.clone()).collect()
    }

    /// Host thread id and exits of each vCPU.
    pub fn published(&self) -> impl Iterator<Item = (i32, Arc<ExitCounts>)> {
        self.vcpus.iter().map(|vcpu| (vcpu.tid, vcpu.counts.clone()))
    }

    /// Their host threads, in the order of the vCPUs.
    pub fn tids(&self) -> impl Iterator<Item = i32> {
        self.vcpus.iter().map(|vcpu| vcpu.tid)
    }

    /// Ends all threads, kicking until they have.
    pub fn stop(&mut self) {
        let deadline = Instant::now() + SHUTDOWN;
        self.control.leave();
        while self.running().next().is_some() {
            if Instant::now() >= deadline {
                // On a busy host it only gets no CPU in time, which is nothing that a user could change.
                log::info!("a vCPU thread doesn't end; the end of the process takes it along");
                return;
            }
            self.running().for_each(|vcpu| kick::kick(&vcpu.thread));
            let again = Instant::now() + KICK_AGAIN;
            while Instant::now() < again && self.running().next().is_some() {
                thread::sleep(LOOK);
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = &VcpuThread> {
        self.vcpus.iter().filter(|vcpu| !vcpu.thread.is_finished())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}
