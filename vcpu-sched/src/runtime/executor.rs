//! All CPUs' queues and the tasks in them: what a waker, a handle and a [`Worker`](super::Worker) work on.
//!
//! Anyone may spawn and look; the invariant: a task that is `READY` is in exactly one ring, inbox or worker's hands,
//! and if it came from another CPU or from an interrupt, the CPU it went to was kicked afterwards.

use alloc::boxed::Box;
use core::future::Future;
use core::panic::Location;
use core::ptr::NonNull;

use super::header::{Header, TaskRef};
use super::inbox::Inbox;
use super::join::JoinHandle;
use super::platform::Platform;
use super::registry::{Shard, TaskInfo};
use super::ring::Ring;
use super::task;
use crate::cell::U8Cell;
use crate::cpu::sleep::SleepState;
use crate::ids::CpuId;
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// As many executors as there are bits in the word of the idle ones.
pub const MAX_EXECUTORS: u32 = 64;

/// One CPU's share. Apart by cache lines, two because they are fetched in pairs.
#[repr(align(128))]
pub(super) struct PerCpu<P: Platform> {
    pub ring: Ring,
    pub inbox: Inbox,
    pub sleep: SleepState,
    /// There is a worker.
    pub claimed: AtomicU8,
    /// The ring was full, and what comes now must queue up behind what went to the inbox. The worker's own.
    pub overflowing: U8Cell,
    shard: Shard<P::Lock>,
}

/// The executors of all CPUs.
pub struct Runtime<P: Platform> {
    pub(super) platform: P,
    pub(super) cpus: Box<[PerCpu<P>]>,
    /// A bit for each CPU that has found nothing to do and hasn't been told of anything since.
    idle: AtomicU64,
    /// Where the next task goes that no executor spawned.
    spread: AtomicU32,
}

impl<P: Platform> Runtime<P> {
    /// For CPUs 0 to `cpus - 1`, at least one and at most [`MAX_EXECUTORS`].
    pub fn new(platform: P, cpus: u32) -> Self {
        let cpu = |_| PerCpu {
            ring: Ring::new(),
            inbox: Inbox::new(),
            sleep: SleepState::new(),
            claimed: AtomicU8::new(0),
            overflowing: U8Cell::new(0),
            shard: Shard::new(),
        };
        let cpus = (0..cpus.clamp(1, MAX_EXECUTORS)).map(cpu).collect();
        Self { platform, cpus, idle: AtomicU64::new(0), spread: AtomicU32::new(0) }
    }

    /// What was given to [`new`](Runtime::new).
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// Makes a task of a future and queues it: on the executor that calls, or on each CPU in turn. The task is named
    /// after the place of the call.
    ///
    /// The handle that is dropped cancels the task; see [`JoinHandle::detach`].
    #[track_caller]
    pub fn spawn<F>(&'static self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let cpu = match self.platform.executor_cpu() {
            Some(cpu) => cpu.0,
            // Relaxed: any number will do.
            None => self.spread.fetch_add(1, Ordering::Relaxed),
        };
        let cpu = cpu % self.cpus.len() as u32;
        let (own, handle) = task::spawn(self, future, Location::caller(), cpu);
        self.cpus[cpu as usize].shard.link(&own);
        self.schedule(own);
        JoinHandle::new(handle)
    }

    /// How many tasks live.
    pub fn tasks(&self) -> usize {
        self.cpus.iter().map(|cpu| cpu.shard.len()).sum()
    }

    /// Shows each living task to `f`. One CPU's list is locked meanwhile: `f` must be short, and not spawn.
    pub fn for_each_task(&self, mut f: impl FnMut(TaskInfo)) {
        self.cpus.iter().for_each(|cpu| cpu.shard.for_each(&mut f));
    }

    /// The same for reports of a crash: a list that somebody has locked is left out.
    pub fn try_for_each_task(&self, mut f: impl FnMut(TaskInfo)) {
        self.cpus.iter().for_each(|cpu| cpu.shard.try_for_each(&mut f));
    }

    /// Cancels all tasks there are. Their futures are dropped by the workers, each when its poll is over.
    pub fn cancel_all(&self) {
        self.cpus.iter().for_each(|cpu| cpu.shard.cancel_all());
    }

    /// Queues a task that became ready.
    #[inline(always)]
    pub(super) fn schedule(&self, task: TaskRef) {
        match self.platform.executor_cpu() {
            Some(cpu) => self.schedule_here(cpu, task),
            None => self.schedule_there(task),
        }
    }

    /// On the CPU whose executor calls.
    #[inline(always)]
    fn schedule_here(&self, cpu: CpuId, task: TaskRef) {
        let Some(cpu) = self.cpus.get(cpu.index()) else { return self.schedule_there(task) };
        let full = if cpu.overflowing.get() == 0 {
            // SAFETY: the platform says that this is the CPU's executor, of which there is one.
            unsafe { cpu.ring.push(task) }
        } else {
            Err(task)
        };
        if let Err(task) = full {
            // No kick: we are awake, and look there when the ring is empty.
            cpu.overflowing.set(1);
            cpu.inbox.push(task);
        }
        self.offer();
    }

    /// On the CPU that polled it last, from an interrupt or from no executor.
    fn schedule_there(&self, task: TaskRef) {
        let index = task.header().cpu.get() as usize % self.cpus.len();
        self.cpus[index].inbox.push(task);
        self.kick(index);
    }

    /// Something was put into a CPU's inbox.
    pub(super) fn kick(&self, index: usize) {
        if self.cpus[index].sleep.kick() {
            self.platform.kick(CpuId(index as u32));
        }
    }

    /// There is something to take from here: has one idle CPU come for it.
    ///
    /// A CPU sets its bit before it looks at all queues for the last time. A look at the word here that comes a moment
    /// too early may miss it, as a store (of the ring's tail) and a load may pass each other; then the next look after
    /// a pop, whose exchange no load passes on x86, doesn't. Nothing is lost by that, only kept waiting for one poll.
    #[inline(always)]
    pub(super) fn offer(&self) {
        if self.idle.load(Ordering::Relaxed) != 0 {
            self.fetch_idle();
        }
    }

    #[cold]
    fn fetch_idle(&self) {
        let idle = self.idle.load(Ordering::Relaxed);
        if idle == 0 {
            return;
        }
        let index = idle.trailing_zeros();
        // One of those who offer takes the bit, and kicks. Acquire and release as with the bit's setting: see
        // `set_idle`.
        if self.idle.fetch_and(!(1 << index), Ordering::AcqRel) & 1 << index != 0 {
            self.kick(index as usize);
        }
    }

    /// The CPU is about to look at all queues for the last time. Acquire: it sees what was queued by whoever found
    /// its bit unset and changed the word before.
    pub(super) fn set_idle(&self, cpu: CpuId) {
        self.idle.fetch_or(1 << cpu.0, Ordering::AcqRel);
    }

    /// The CPU has something to do. Relaxed: who finds the bit still set kicks once for nothing.
    pub(super) fn clear_idle(&self, cpu: CpuId) {
        self.idle.fetch_and(!(1 << cpu.0), Ordering::Relaxed);
    }

    /// # Safety
    /// The task must be linked, and this must be its runtime.
    pub(super) unsafe fn unlink(&self, task: NonNull<Header>) {
        // SAFETY: the task is alive, and in the list it was put into by `spawn`.
        unsafe {
            let shard = task.as_ref().shard as usize;
            self.cpus[shard].shard.unlink(task);
        }
    }
}
