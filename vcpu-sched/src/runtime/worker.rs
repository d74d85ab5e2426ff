//! The executor of one CPU: takes tasks and polls them. Run by a thread of the kernel or of a host, one for each CPU;
//! the invariant is that there is one [`Worker`] of a CPU at most, and that it never leaves its thread.

use alloc::sync::Arc;
use alloc::task::Wake;
use core::future::Future;
use core::marker::PhantomData;
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use super::budget;
use super::executor::{PerCpu, Runtime};
use super::header::TaskRef;
use super::inbox::Chain;
use super::platform::Platform;
use super::ring::SLOTS;
use super::state::{Action, Event};
use super::waits::Waits;
use crate::ids::CpuId;
use crate::sync::{AtomicU8, Ordering};

/// After how many polls the inbox is looked into although the ring isn't empty. A prime, so that it falls into step
/// with no round of tasks.
const FAIRNESS: u32 = 61;

/// The executor of one CPU.
pub struct Worker<P: Platform> {
    runtime: &'static Runtime<P>,
    cpu: CpuId,
    /// What was taken from the inbox and doesn't fit into the ring. Others can't take it from here.
    backlog: Chain,
    polls: u32,
    root: Arc<Root<P>>,
    /// Not `Send`: see [`Platform`].
    _stays: PhantomData<*mut ()>,
}

/// The waker of what [`Worker::block_on`] waits for.
struct Root<P: Platform> {
    runtime: &'static Runtime<P>,
    cpu: CpuId,
    woken: AtomicU8,
}

impl<P: Platform> Wake for Root<P> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Release: the one who polls next sees what was done before.
        self.woken.store(1, Ordering::Release);
        self.runtime.kick(self.cpu.index());
    }
}

/// Ends a task without an output. Held around a poll: a future that panics, on hosts where that doesn't end everything,
/// is cancelled for its handle.
struct EndWhenDropped(Option<TaskRef>);

impl Drop for EndWhenDropped {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            // SAFETY: it is RUNNING, by us: the future is ours.
            unsafe { task.clear() };
            task.finish();
        }
    }
}

impl<P: Platform> Runtime<P> {
    /// The worker of a CPU; `None` if there is one already, or no such CPU.
    ///
    /// The caller's [`Platform::executor_cpu`] is expected to tell of it as long as it is there.
    pub fn worker(&'static self, cpu: CpuId) -> Option<Worker<P>> {
        let claimed = &self.cpus.get(cpu.index())?.claimed;
        // Acquire: sees what the worker before did.
        claimed.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let root = Arc::new(Root { runtime: self, cpu, woken: AtomicU8::new(0) });
        Some(Worker { runtime: self, cpu, backlog: Chain::empty(), polls: 0, root, _stays: PhantomData })
    }
}

impl<P: Platform> Worker<P> {
    #[inline(always)]
    fn mine(&self) -> &'static PerCpu<P> {
        &self.runtime.cpus[self.cpu.index()]
    }

    /// Polls one task, if this CPU has one. Takes none from others.
    #[inline]
    pub fn run_one(&mut self) -> bool {
        match self.next() {
            Some(task) => {
                self.poll(task);
                true
            }
            None => false,
        }
    }

    /// Polls tasks until no CPU has one that can be taken.
    pub fn run_until_idle(&mut self) {
        while let Some(task) = self.next().or_else(|| self.steal()) {
            self.poll(task);
        }
    }

    /// Polls tasks, and sleeps while there are none, until `done`. Whoever makes it so must use the
    /// [`waker`](Worker::waker).
    pub fn run(&mut self, mut done: impl FnMut() -> bool) {
        while !done() {
            if !self.run_one() {
                self.idle(&mut done);
            }
        }
    }

    /// A waker that makes [`run`](Worker::run) look again.
    pub fn waker(&self) -> Waker {
        self.root.clone().into()
    }

    /// Polls a future on this thread, and tasks meanwhile, until the future has its output. Sleeps while there is
    /// nothing to do.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let root = self.root.clone();
        let waker = self.waker();
        loop {
            // Cleared before the poll: a wake-up during it counts. Release is not needed, acquire is: see `Root`.
            root.woken.swap(0, Ordering::Acquire);
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            self.run(|| root.woken.load(Ordering::Acquire) != 0);
        }
    }

    /// The next task of this CPU.
    #[inline(always)]
    fn next(&mut self) -> Option<TaskRef> {
        let mine = self.mine();
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(FAIRNESS) && mine.overflowing.get() == 0 {
            self.refill(mine);
        }
        let task = mine.ring.pop().or_else(|| {
            self.refill(mine);
            mine.ring.pop()
        })?;
        if mine.ring.len() != 0 {
            self.runtime.offer();
        }
        Some(task)
    }

    /// Fills the ring with what came from elsewhere, first with what has waited longest.
    fn refill(&mut self, mine: &PerCpu<P>) {
        loop {
            while let Some(task) = self.backlog.next() {
                // SAFETY: this is the CPU's worker.
                if let Err(task) = unsafe { mine.ring.push(task) } {
                    self.backlog.put_back(task);
                    mine.overflowing.set(1);
                    return;
                }
            }
            self.backlog = mine.inbox.take_all();
            if self.backlog.is_empty() {
                mine.overflowing.set(0);
                return;
            }
        }
    }

    /// Takes half of what another CPU has, and the first of it to be polled. This CPU has nothing.
    fn steal(&mut self) -> Option<TaskRef> {
        let (mine, all) = (self.mine(), &self.runtime.cpus);
        let (before, after) = all.split_at(self.cpu.index());
        for victim in after.iter().skip(1).chain(before) {
            let half = victim.ring.len().div_ceil(2).clamp(1, SLOTS / 2);
            if let Some(first) = victim.ring.pop() {
                for task in (1..half).map_while(|_| victim.ring.pop()) {
                    // SAFETY: this is the CPU's worker.
                    if let Err(task) = unsafe { mine.ring.push(task) } {
                        mine.inbox.push(task);
                        mine.overflowing.set(1);
                    }
                }
                return Some(first);
            }
            if !victim.inbox.is_empty() {
                self.backlog = victim.inbox.take_all();
                self.refill(mine);
                if let Some(task) = mine.ring.pop() {
                    return Some(task);
                }
            }
        }
        None
    }

    /// There was nothing to do. The order is that of [`cpu::sleep`](crate::cpu::sleep).
    fn idle(&mut self, done: &mut impl FnMut() -> bool) {
        let mine = self.mine();
        mine.sleep.leave_idle();
        self.runtime.set_idle(self.cpu);
        let found = self.next().or_else(|| self.steal());
        if found.is_none() && !done() && mine.sleep.prepare_idle() {
            self.runtime.platform.park(self.cpu);
        }
        self.runtime.clear_idle(self.cpu);
        if let Some(task) = found {
            self.poll(task);
        }
    }

    /// Polls a task that was taken from a queue.
    #[inline(always)]
    fn poll(&mut self, task: TaskRef) {
        match task.apply(Event::Poll) {
            Action::Poll => {}
            Action::DropFuture => return drop(EndWhenDropped(Some(task))),
            // Not READY: whose ever it is, it isn't ours.
            _ => {
                task.into_raw();
                return;
            }
        }
        let mut polled = EndWhenDropped(Some(task));
        let Some(task) = &polled.0 else { return };
        let header = task.header();
        header.cpu.set(self.cpu.0);
        header.budget.set(budget::BUDGET);
        header.waits.set(Waits::Unknown as u8);
        let waker = task.lend_waker();
        // SAFETY: `Poll` made the future ours.
        let done = unsafe { task.poll(&mut Context::from_waker(&waker)) };
        let Some(task) = polled.0.take() else { return };
        if done {
            return task.finish();
        }
        match task.apply(Event::Pending) {
            // Behind those that are ready already.
            Action::Enqueue => self.runtime.schedule(task),
            Action::DropFuture => drop(EndWhenDropped(Some(task))),
            // Blocked: its reference stays with it until it is woken.
            _ => _ = task.into_raw(),
        }
    }
}

impl<P: Platform> Drop for Worker<P> {
    fn drop(&mut self) {
        let mine = self.mine();
        for task in &mut self.backlog {
            mine.inbox.push(task);
        }
        // Release: for the next worker.
        mine.claimed.store(0, Ordering::Release);
        // Others may take what is left.
        self.runtime.offer();
    }
}
