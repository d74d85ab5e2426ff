//! One CPU's tasks, in classes: what the kernel and the simulator call.
//!
//! A [`RunQueue`] holds one [`Policy`] for each class, in strict order: stop, deadline, real-time, and the normal
//! class, whose policy was chosen at boot ([`PolicyKind`]). It offers what [`policy`](crate::policy) tells, in the same
//! order of calls and under the CPU's run-queue lock, and beyond that does what concerns all classes: preemption
//! between them, change of a task's parameters, and each task's [`Accounting`](crate::accounting::Accounting). It
//! measures how long the current task ran itself, from the times it is told.
//!
//! The invariant: [`pick_next`](RunQueue::pick_next) returns a task of the highest class that has one that may run.
//!
//! # Changing parameters
//! A task may be queued, running, asleep, or on its way between two queues when `sched_setattr(2)` comes for it. The
//! changer
//! 1. lets nobody else change the same task meanwhile,
//! 2. calls [`SchedEntity::request`](crate::entity::SchedEntity::request),
//! 3. locks the run queue of [`SchedEntity::queue`](crate::entity::SchedEntity::queue), and looks whether that is still
//!    its queue; if not, it lets go and takes the other one's. No queue: the task never started, and there is nothing
//!    to do,
//! 4. calls [`apply_params`](RunQueue::apply_params), and requests a reschedule of that CPU if it says so.
//!
//! If the task was neither queued nor current there, the change waits in it, and whoever queues it next brings it into
//! force. Nothing is lost between: either the changer sees the new queue in step 3, or the one who queues it there sees
//! the request.

mod kind;
mod turn;

use crate::entity::{Entity, Rank};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::params::SchedParams;
use crate::policy::deadline::Deadline;
use crate::policy::delegated::Delegated;
use crate::policy::fair::Fair;
use crate::policy::ordered::{Measure, Ordered};
use crate::policy::realtime::Realtime;
use crate::policy::round_robin::RoundRobin;
use crate::policy::stop::Stop;
use crate::policy::{EnqueueReason, Policy, PutReason};

pub use kind::{PolicyKind, UnknownPolicy};
pub use turn::Turn;

/// The normal class. An enum, so that nothing is called through a pointer; with a tag of its own, because finding out
/// the variant from a value that others can't have takes six instructions at each use.
#[derive(Clone, Debug)]
#[repr(u8)]
enum Normal<E> {
    Fair(Fair<E>),
    RoundRobin(RoundRobin<E>),
    Ordered(Ordered<E>),
}

/// Calls a method of whichever policy the normal class has.
macro_rules! normal {
    ($normal:expr, $policy:ident => $call:expr) => {
        match $normal {
            Normal::Fair($policy) => $call,
            Normal::RoundRobin($policy) => $call,
            Normal::Ordered($policy) => $call,
        }
    };
}

use normal;

/// Calls a method of the policy of a class.
macro_rules! in_class {
    ($queue:expr, $rank:expr, $policy:ident => $call:expr) => {
        match $rank {
            Rank::Normal => normal!(&mut $queue.normal, $policy => $call),
            Rank::Realtime => {
                let $policy = &mut $queue.realtime;
                $call
            }
            Rank::Delegated => {
                let $policy = &mut $queue.delegated;
                $call
            }
            Rank::Deadline => {
                let $policy = &mut $queue.deadline;
                $call
            }
            Rank::Stop => {
                let $policy = &mut $queue.stop;
                $call
            }
        }
    };
}

/// As [`in_class`], without changing anything.
macro_rules! look_in_class {
    ($queue:expr, $rank:expr, $policy:ident => $call:expr) => {
        match $rank {
            Rank::Normal => normal!(&$queue.normal, $policy => $call),
            Rank::Realtime => {
                let $policy = &$queue.realtime;
                $call
            }
            Rank::Delegated => {
                let $policy = &$queue.delegated;
                $call
            }
            Rank::Deadline => {
                let $policy = &$queue.deadline;
                $call
            }
            Rank::Stop => {
                let $policy = &$queue.stop;
                $call
            }
        }
    };
}

/// No task's number.
const NOBODY: TaskId = TaskId(u32::MAX);

/// See the module's text.
#[derive(Clone, Debug)]
pub struct RunQueue<E> {
    cpu: CpuId,
    /// Or [`NOBODY`].
    current: TaskId,
    /// When the current task was picked.
    picked: Nanos,
    /// Tasks of the classes above the normal one that are queued, whether they may run now or not: zero is the common
    /// case, in which nobody looks at those classes.
    above: u32,
    /// Of a task of the normal class that asks for none.
    slice: Nanos,
    stop: Stop<E>,
    deadline: Deadline<E>,
    realtime: Realtime<E>,
    delegated: Delegated<E>,
    normal: Normal<E>,
}

impl<E: Entity> RunQueue<E> {
    /// The empty queue of a CPU, with the default slice of its policy.
    pub const fn new(cpu: CpuId, kind: PolicyKind) -> Self {
        Self::with_slice(cpu, kind, kind.default_slice())
    }

    /// The empty queue of a CPU whose normal tasks run for `slice` at a time unless they ask for something else. A machine's
    /// queues should agree on it.
    pub const fn with_slice(cpu: CpuId, kind: PolicyKind, slice: Nanos) -> Self {
        let normal = match kind {
            PolicyKind::Fair => Normal::Fair(Fair::new(cpu)),
            PolicyKind::RoundRobin => Normal::RoundRobin(RoundRobin::with_slice(slice)),
            PolicyKind::Count => Normal::Ordered(Ordered::with_slice(Measure::Count, slice)),
            PolicyKind::Runtime => Normal::Ordered(Ordered::with_slice(Measure::Runtime, slice)),
        };
        Self {
            cpu,
            current: NOBODY,
            picked: Nanos::ZERO,
            above: 0,
            slice,
            stop: Stop::new(),
            deadline: Deadline::new(),
            realtime: Realtime::new(),
            delegated: Delegated::new(),
            normal,
        }
    }

    /// The CPU that it belongs to.
    #[inline]
    pub const fn cpu(&self) -> CpuId {
        self.cpu
    }

    /// The policy of the normal class.
    pub const fn kind(&self) -> PolicyKind {
        match &self.normal {
            Normal::Fair(_) => PolicyKind::Fair,
            Normal::RoundRobin(_) => PolicyKind::RoundRobin,
            Normal::Ordered(ordered) => match ordered.measure() {
                Measure::Count => PolicyKind::Count,
                Measure::Runtime => PolicyKind::Runtime,
            },
        }
    }

    /// Adds a runnable task, see [`Policy::enqueue`].
    #[inline(always)]
    pub fn enqueue(&mut self, e: E, why: EnqueueReason, now: Nanos) {
        match why {
            EnqueueReason::Preempted | EnqueueReason::Yield => self.insert(e, why, now),
            EnqueueReason::New | EnqueueReason::Migrate => self.arrive(e, why, now),
            EnqueueReason::Wake => self.arrive_here(e, why, now),
        }
    }

    /// A task comes that was neither current here nor asleep.
    #[inline(never)]
    fn arrive(&mut self, e: E, why: EnqueueReason, now: Nanos) {
        self.arrive_here(e, why, now);
    }

    /// A task comes that was not current here.
    #[inline(always)]
    fn arrive_here(&mut self, e: E, why: EnqueueReason, now: Nanos) {
        let sched = e.sched();
        // A new task doesn't know yet what slice is given here.
        if sched.enter_queue(self.cpu) || why == EnqueueReason::New {
            sched.apply(self.slice);
        }
        sched.note_queued(why == EnqueueReason::New, why == EnqueueReason::Wake, now);
        let rank = sched.place();
        self.insert_into(rank, e, why, now);
    }

    #[inline(never)]
    fn insert(&mut self, e: E, why: EnqueueReason, now: Nanos) {
        self.insert_into(e.sched().placed(), e, why, now);
    }

    #[inline(always)]
    fn insert_into(&mut self, rank: Rank, e: E, why: EnqueueReason, now: Nanos) {
        if rank != Rank::Normal {
            self.above += 1;
        }
        in_class!(self, rank, policy => policy.enqueue(e, why, now));
    }

    /// Removes a certain task, see [`Policy::dequeue`].
    pub fn dequeue(&mut self, e: &E) -> Option<E> {
        let rank = e.sched().placed();
        let task = in_class!(self, rank, policy => policy.dequeue(e))?;
        if rank != Rank::Normal {
            self.above -= 1;
        }
        Some(task)
    }

    /// Takes out the task that is to run now, see [`Policy::pick_next`].
    #[inline(always)]
    pub fn pick_next(&mut self, now: Nanos) -> Option<E> {
        let task = match self.pick_above(now) {
            None => normal!(&mut self.normal, policy => policy.pick_next(now)),
            found => found,
        }?;
        self.begin(&task, now);
        Some(task)
    }

    /// What was picked is the current task from now on.
    #[inline(always)]
    fn begin(&mut self, task: &E, now: Nanos) {
        self.current = task.id();
        self.picked = now;
        task.sched().note_picked(self.cpu, now);
    }

    #[inline(always)]
    fn pick_above(&mut self, now: Nanos) -> Option<E> {
        if self.above == 0 {
            return None;
        }
        let task = match self.stop.pick_next(now) {
            None => {
                let promised = self.deadline.pick_next(now).or_else(|| self.realtime.pick_next(now));
                promised.or_else(|| self.delegated.pick_next(now))
            }
            found => found,
        }?;
        self.above -= 1;
        Some(task)
    }

    /// A task that an enclave has chosen for this CPU is current from now on: what [`pick_next`](Self::pick_next) is for a
    /// task of a queue. Only while [`waits_above_delegated`](Self::waits_above_delegated) is false.
    pub fn pick_delegated(&mut self, task: &E, now: Nanos) {
        let sched = task.sched();
        if sched.enter_queue(self.cpu) {
            sched.apply(self.slice);
        }
        sched.placed.set(Rank::Delegated as u8);
        sched.note_came();
        self.current = task.id();
        self.picked = now;
        sched.note_picked(self.cpu, now);
    }

    /// Does a task wait here that goes before those of enclaves, and may run now?
    #[inline]
    pub fn waits_above_delegated(&self) -> bool {
        self.waits_above(Rank::Delegated)
    }

    /// The current task leaves the CPU, see [`Policy::put_prev`].
    #[inline(always)]
    pub fn put_prev(&mut self, prev: &E, why: PutReason, now: Nanos) {
        let ran = now - self.picked;
        self.current = NOBODY;
        let sched = prev.sched();
        match why {
            PutReason::Preempted => sched.accounting().left(now, ran, false),
            PutReason::Yield | PutReason::Block | PutReason::Exit => sched.accounting().left(now, ran, true),
            PutReason::Migrate => sched.accounting().put_back(now, ran),
        }
        if sched.placed() == Rank::Normal {
            normal!(&mut self.normal, policy => policy.put_prev(prev, ran, why));
        } else {
            self.put_prev_any(prev, ran, why);
        }
    }

    /// The current task leaves the CPU and stays runnable here, see [`Policy::put_back`]. True if it is one of the normal class.
    #[inline(always)]
    pub fn put_back(&mut self, prev: E, yields: bool, now: Nanos) -> bool {
        let ran = now - self.picked;
        self.current = NOBODY;
        let sched = prev.sched();
        sched.accounting().left(now, ran, yields);
        let normal = sched.placed() == Rank::Normal;
        if normal {
            normal!(&mut self.normal, policy => policy.put_back(prev, ran, yields, now));
        } else {
            self.put_back_any(prev, ran, yields, now);
        }
        normal
    }

    #[inline(never)]
    fn put_back_any(&mut self, prev: E, ran: Nanos, yields: bool, now: Nanos) {
        self.above += 1;
        in_class!(self, prev.sched().placed(), policy => policy.put_back(prev, ran, yields, now));
    }

    #[inline(never)]
    fn put_prev_any(&mut self, prev: &E, ran: Nanos, why: PutReason) {
        in_class!(self, prev.sched().placed(), policy => policy.put_prev(prev, ran, why));
    }

    /// Charges the current task; true if it must give way now. See [`Policy::tick`].
    pub fn tick(&mut self, current: &E, now: Nanos) -> bool {
        let ran = now - self.picked;
        let rank = current.sched().placed();
        let over = in_class!(self, rank, policy => policy.tick(current, ran));
        over || self.waits_above(rank)
    }

    /// Does a task wait in a class above `rank` that may run now?
    fn waits_above(&self, rank: Rank) -> bool {
        self.above != 0 && self.best_waiting().is_some_and(|best| best < rank)
    }

    fn best_waiting(&self) -> Option<Rank> {
        if !self.stop.is_empty() {
            Some(Rank::Stop)
        } else if !self.deadline.is_empty() {
            Some(Rank::Deadline)
        } else if !self.realtime.is_empty() {
            Some(Rank::Realtime)
        } else if !self.delegated.is_empty() {
            Some(Rank::Delegated)
        } else if normal!(&self.normal, policy => policy.is_empty()) {
            None
        } else {
            Some(Rank::Normal)
        }
    }

    /// Must `current` give way now that `woken` is enqueued? Charges it first if the two are of one class, whose comparison must not
    /// rest on old figures: [`tick`](Self::tick) and [`wakeup_preempts`](Self::wakeup_preempts) in one.
    #[inline]
    pub fn gives_way(&mut self, current: &E, woken: &E, now: Nanos) -> bool {
        // As numbers, which are in the order of the ranks.
        let (running, waiting) = (current.sched().placed.get(), woken.sched().placed.get());
        if running != waiting {
            return waiting < running;
        }
        self.gives_way_to_equal(current, woken, now)
    }

    #[inline(never)]
    fn gives_way_to_equal(&mut self, current: &E, woken: &E, now: Nanos) -> bool {
        // Both: a tick charges.
        self.tick(current, now) | self.wakeup_preempts(current, woken)
    }

    /// Should `woken`, just enqueued, run instead of `current` at once? After a [`tick`](Self::tick), see
    /// [`Policy::wakeup_preempts`].
    #[inline]
    pub fn wakeup_preempts(&self, current: &E, woken: &E) -> bool {
        let (running, waiting) = (current.sched().placed(), woken.sched().placed());
        if running != waiting {
            return waiting < running;
        }
        look_in_class!(self, running, policy => policy.wakeup_preempts(current, woken))
    }

    /// How long `current` may run, from its pick, before the next [`tick`](Self::tick); `None`: for ever. To be asked
    /// again after every `enqueue` here, because it depends on who waits.
    pub fn slice(&self, current: &E) -> Option<Nanos> {
        look_in_class!(self, current.sched().placed(), policy => policy.slice(current))
    }

    /// Is nothing queued but tasks of the normal class? Then the next pick is one, and no [`event`](Self::event) is due.
    #[inline(always)]
    pub fn has_only_normal(&self) -> bool {
        self.above == 0
    }

    /// [`slice`](Self::slice) of a task of the normal class, for who knows that it is one.
    #[inline(always)]
    pub fn normal_slice(&self, current: &E) -> Option<Nanos> {
        normal!(&self.normal, policy => policy.slice(current))
    }

    /// When [`event`](Self::event) must be called next. `None`: never, as things are.
    #[inline]
    pub fn next_event(&self) -> Option<Nanos> {
        if self.above == 0 { None } else { self.deadline.next_event() }
    }

    /// The time that [`next_event`](Self::next_event) told has come. True if this CPU must reschedule: somebody may run
    /// now that goes before the current task, or there is no current task.
    pub fn event(&mut self, now: Nanos) -> bool {
        self.deadline.event(now)
    }

    /// How many tasks are queued that may run now. The current one isn't queued.
    #[inline]
    pub fn len(&self) -> usize {
        let normal = normal!(&self.normal, policy => policy.len());
        if self.above == 0 { normal } else { self.len_above() + normal }
    }

    fn len_above(&self) -> usize {
        self.stop.len() + self.deadline.len() + self.realtime.len() + self.delegated.len()
    }

    /// Is no task queued that may run now?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The highest real-time priority that is queued; 0 if no real-time task is.
    #[inline]
    pub fn highest_realtime(&self) -> u8 {
        self.realtime.highest()
    }

    /// Takes out a task that `wanted` accepts, of the highest class that has one: see [`Policy::steal`]. Stop and
    /// deadline tasks are bound to their CPU and never taken.
    pub fn steal(&mut self, mut wanted: impl FnMut(&E) -> bool) -> Option<E> {
        if let Some(task) = self.steal_realtime(0, &mut wanted) {
            return Some(task);
        }
        normal!(&mut self.normal, policy => policy.steal(wanted))
    }

    /// Takes out the most important real-time task above priority `above` that `wanted` accepts: what a CPU pulls that
    /// is about to run something lower.
    pub fn steal_realtime(&mut self, above: u8, mut wanted: impl FnMut(&E) -> bool) -> Option<E> {
        if self.above == 0 || self.realtime.highest() <= above {
            return None;
        }
        let task = self.realtime.steal(|e| e.sched().rt_priority() > above && wanted(e))?;
        self.above -= 1;
        Some(task)
    }

    /// Brings into force what [`request`](crate::entity::SchedEntity::request) asked for, if `e` is queued or current
    /// here; see the module's text. True if this CPU must reschedule.
    pub fn apply_params(&mut self, e: &E, now: Nanos) -> bool {
        let sched = e.sched();
        if !sched.is_pending() {
            return false;
        }
        if self.current == e.id() {
            let ran = now - self.picked;
            self.put_prev_any(e, ran, PutReason::Migrate);
            sched.apply(self.slice);
            let rank = sched.place();
            in_class!(self, rank, policy => policy.adopt(e, ran, now));
            // Whether it still is the best is for the next pick to say.
            return !self.is_empty();
        }
        let Some(task) = self.dequeue(e) else { return false };
        sched.apply(self.slice);
        sched.place();
        self.insert(task, EnqueueReason::Migrate, now);
        true
    }

    /// [`request`](crate::entity::SchedEntity::request) and [`apply_params`](Self::apply_params) in one, where nobody
    /// else can move the task between the two.
    pub fn change_params(&mut self, e: &E, new: &SchedParams, now: Nanos) -> bool {
        e.sched().request(new);
        self.apply_params(e, now)
    }
}
