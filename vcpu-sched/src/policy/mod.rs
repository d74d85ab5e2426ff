//! Who runs next on a CPU: the contract between a run queue and a policy.
//!
//! A [`Policy`] is the content of *one* CPU's run queue. It decides order and time, nothing else: it takes no lock,
//! sends no IPI, reads no clock and never looks at another CPU. The run queue that owns it holds its lock, with
//! interrupts off, around every call; a policy is therefore plain data, and the kernel, the VMM and the simulator use
//! the same one.
//!
//! # The story of a task
//! 1. **New, or woken.** [`enqueue`](Policy::enqueue) with [`EnqueueReason::New`] or [`EnqueueReason::Wake`]. If the
//!    CPU is busy, the caller brings the books up to date with a [`tick`](Policy::tick), asks
//!    [`wakeup_preempts`](Policy::wakeup_preempts), and requests a reschedule there if either says so. It also asks for
//!    the current task's [`slice`](Policy::slice) again, which was perhaps of no interest until now.
//! 2. **Picked.** [`pick_next`](Policy::pick_next) takes it *out*: the running task ("current") is in no queue. The CPU
//!    arms its timer for [`slice`](Policy::slice), if that is a time at all.
//! 3. **Ticks.** [`tick`](Policy::tick) charges the time it ran and says whether it must give way now.
//! 4. **It leaves.** The CPU applies the event to the task's [state](crate::task::state), which tells what really
//!    happens: a task that wanted to block may have been woken in the last moment and is then merely preempted. With
//!    that reason it calls [`put_prev`](Policy::put_prev), exactly once for each `pick_next`, which charges the rest of
//!    its time. Then, by reason:
//!    - preempted: `enqueue` with [`EnqueueReason::Preempted`];
//!    - yielded: `enqueue` with [`EnqueueReason::Yield`]; both calls are one in [`put_back`](Policy::put_back), and with the next
//!      pick in [`turn`](Policy::turn);
//!    - blocked, exited: nothing more. The policy has forgotten the task, but may have left something in the entity
//!      (the lag of a sleeper) for its next `enqueue`.
//! 5. **The next is picked**, which may be the same task again. If its affinity forbids this CPU
//!    ([`placement::pick_verdict`](crate::placement::pick_verdict)), `put_prev` with [`PutReason::Migrate`] takes the
//!    pick back, the task goes to another CPU, and the next is picked.
//!
//! So one `schedule()` is event, `put_prev`, perhaps `enqueue`, `pick_next`, in this order and under one hold of the
//! run queue's lock. The lock matters: from the event on, a waker may win the task and enqueue it here, and the policy
//! must have heard first that it left.
//!
//! A queued task leaves for another CPU through [`steal`](Policy::steal) (idle CPUs pull) or
//! [`dequeue`](Policy::dequeue), and arrives there by `enqueue` with [`EnqueueReason::Migrate`], also if it is to run
//! there at once.
//!
//! A queued task whose parameters change is taken out by `dequeue` and comes back by `enqueue` with `Migrate`, because
//! a policy may keep its tasks sorted by what changes. For the current task it is [`put_prev`](Policy::put_prev) with
//! [`PutReason::Migrate`] and then [`adopt`](Policy::adopt), by the policy of its new class.
//!
//! # What a policy knows of a task
//! An [`Entity`] has a number and a [`SchedEntity`](crate::entity::SchedEntity): parameters, and figures that the
//! policies of this crate keep there. Entities are cheap handles; a clone is the same task. A policy of one's own keeps
//! its figures in its own queue, or has a trait above `Entity` and `impl<E: ThatTrait> Policy<E>`; docs/scheduling.md
//! shows one.
//!
//! # Who calls
//! [`RunQueue`](crate::runqueue::RunQueue) holds one policy for each class and calls them; kernel and simulator call
//! it.
//!
//! # The invariant
//! Every entity that went in by `enqueue` comes out exactly once, by `pick_next`, `dequeue` or `steal`. A task is never
//! in two queues, nor in a queue while it is current; one that is on its way out of its CPU (`on_cpu`, see
//! [`task::state`](crate::task::state)) may be in that CPU's own queue, which is why thieves must leave it alone.

pub mod deadline;
pub mod delegated;
pub mod fair;
mod heap;
pub mod list;
pub mod ordered;
pub mod realtime;
pub mod round_robin;
mod shelf;
pub mod stop;

pub use crate::entity::Entity;
use crate::ids::Nanos;

/// Why a task enters a queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EnqueueReason {
    /// It never ran.
    New,
    /// It had blocked.
    Wake,
    /// It was running on this CPU and had to give way.
    Preempted,
    /// It was running on this CPU and gave way of its own will.
    Yield,
    /// It was in a queue, of this CPU or another, and was runnable all the time.
    Migrate,
}

/// Why the current task leaves its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PutReason {
    /// It had to give way; it is enqueued next.
    Preempted,
    /// It gave way; it is enqueued next.
    Yield,
    /// It waits; it will come back by [`EnqueueReason::Wake`].
    Block,
    /// It has ended.
    Exit,
    /// It was picked, but may not run here; it is enqueued on another CPU.
    Migrate,
}

/// The order of one CPU's runnable tasks. The module's text tells who calls what when.
pub trait Policy<E: Entity> {
    /// Adds a runnable task. `now` is this CPU's time.
    ///
    /// May allocate memory; the caller's allocator must allow that under the run queue's lock.
    fn enqueue(&mut self, e: E, why: EnqueueReason, now: Nanos);

    /// Removes a certain task. `None` if it isn't queued here (it may be current, or have left).
    fn dequeue(&mut self, e: &E) -> Option<E>;

    /// Takes out the task that is to run now. `None` if no queued task may run now; then the CPU idles.
    fn pick_next(&mut self, now: Nanos) -> Option<E>;

    /// The current task leaves the CPU after it ran for `ran` since it was picked.
    ///
    /// A policy that doesn't charge time has nothing to do here.
    fn put_prev(&mut self, prev: &E, ran: Nanos, why: PutReason) {
        let _ = (prev, ran, why);
    }

    /// The current task gives way and stays: [`put_prev`](Policy::put_prev) and [`enqueue`](Policy::enqueue) in one, which is all that
    /// this does unless a policy has a shorter way.
    fn put_back(&mut self, prev: E, ran: Nanos, yields: bool, now: Nanos) {
        let (put, why) = if yields {
            (PutReason::Yield, EnqueueReason::Yield)
        } else {
            (PutReason::Preempted, EnqueueReason::Preempted)
        };
        self.put_prev(&prev, ran, put);
        self.enqueue(prev, why, now);
    }

    /// The current task gives way, and the next is picked: [`put_back`](Policy::put_back) and [`pick_next`](Policy::pick_next) in
    /// one, which is all that this does unless a policy has a shorter way.
    fn turn(&mut self, prev: E, ran: Nanos, yields: bool, now: Nanos) -> Option<E> {
        self.put_back(prev, ran, yields, now);
        self.pick_next(now)
    }

    /// The running `e`, which this policy never picked, is current from now on: its parameters have changed. It has run
    /// for `ran` since its CPU picked it, which is charged already.
    fn adopt(&mut self, e: &E, ran: Nanos, now: Nanos) {
        let _ = (e, ran, now);
    }

    /// How many tasks are queued that may run now. The current one isn't queued; one that waits for its budget doesn't
    /// count until [`event`](Policy::event) or `pick_next` has seen that its time has come.
    fn len(&self) -> usize;

    /// Is no task queued that may run now?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The current task has run for `ran` since it was picked (not since the last tick, so that a tick may be missed or
    /// come at any time). Charges it; true if it must give way now.
    fn tick(&mut self, current: &E, ran: Nanos) -> bool;

    /// Should `woken`, just enqueued, run instead of `current` at once?
    ///
    /// The caller charges `current` by a [`tick`](Policy::tick) first, so that the answer doesn't rest on old figures.
    fn wakeup_preempts(&self, current: &E, woken: &E) -> bool;

    /// How long `current` may run, from its pick, before the next [`tick`](Policy::tick) must ask. `None`: for ever, as
    /// long as nothing is enqueued; nobody competes with it, and its class sets no limit.
    fn slice(&self, current: &E) -> Option<Nanos>;

    /// When [`event`](Policy::event) must be called next, because time alone changes who may run. `None`: never.
    fn next_event(&self) -> Option<Nanos> {
        None
    }

    /// The time that [`next_event`](Policy::next_event) told has come (or not: a surplus call is harmless). True if a
    /// task may run now that could not before.
    fn event(&mut self, now: Nanos) -> bool {
        let _ = now;
        false
    }

    /// Takes out one task that `wanted` accepts, preferably one that would wait longest here.
    ///
    /// `wanted` must refuse a task whose `on_cpu` is set, and one whose affinity forbids where it would go.
    fn steal(&mut self, wanted: impl FnMut(&E) -> bool) -> Option<E>;
}
