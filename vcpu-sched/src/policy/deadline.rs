//! The deadline class: earliest deadline first, each task within a budget (`SCHED_DEADLINE`).
//!
//! Called through [`Policy`] by a run queue. A task is promised `runtime` by `deadline` in every `period`. It runs in
//! the order of absolute deadlines; the constant bandwidth server (Abeni and Buttazzo 1998, as in Linux's
//! kernel/sched/deadline.c) takes care that it can't take more: when its budget is used up, it waits for its next
//! period. The invariants: no task runs for more than its runtime in a period, but for what its timer comes late, and
//! that is taken off the next; and as long as the admitted tasks of a CPU fit into it ([`Budget`]) and nothing above
//! this class runs, each has had its runtime by its deadline, if it wanted it.
//!
//! Scheduling is partitioned: a task belongs to one CPU, whose budget it was admitted to ([`choose_cpu`]), and is never
//! stolen. With global EDF no bound as simple as "the sum is at most 1" holds.

use core::fmt;

use super::heap::{Entry, Heap};
use super::shelf::Shelf;
use super::{EnqueueReason, Entity, Policy, PutReason};
use crate::cpumask::CpuMask;
use crate::ids::{CpuId, Nanos};
use crate::params::DeadlineParams;

/// Marks of the two heaps in a task's place.
const READY: u32 = 0;
const THROTTLED: u32 = 1 << 31;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Deadline<E> {
    /// The queued tasks, sorted by the two heaps.
    shelf: Shelf<E>,
    /// By absolute deadline.
    ready: Heap<READY>,
    /// Those whose budget is used up, by the time of their next one.
    throttled: Heap<THROTTLED>,
    /// What of the current task's run is taken off its budget.
    charged: Nanos,
}

impl<E: Entity> Deadline<E> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { shelf: Shelf::new(), ready: Heap::new(), throttled: Heap::new(), charged: Nanos::ZERO }
    }

    fn charge(&mut self, current: &E, ran: Nanos) {
        let budget = &current.sched().deadline.budget;
        budget.set(budget.get().saturating_sub_unsigned((ran - self.charged).0));
        self.charged = ran;
    }

    /// When the period after the one of the present deadline begins.
    fn next_period(e: &E) -> Nanos {
        let [_, deadline, period] = e.sched().promise();
        Nanos(e.sched().deadline.deadline.get()) - deadline + period
    }

    /// A promise that counts from now.
    fn start_over(e: &E, now: Nanos) {
        let [runtime, deadline, _] = e.sched().promise();
        e.sched().deadline.budget.set(runtime.0 as i64);
        e.sched().deadline.deadline.set((now + deadline).0);
    }

    /// Its next period has come: a budget more, a period later. What it overdrew is paid with whole periods.
    fn replenish(e: &E, now: Nanos) {
        let [runtime, _, period] = e.sched().promise();
        let state = &e.sched().deadline;
        let mut left = 64_u32; // more than 64 periods overdrawn: it starts over
        while state.budget.get() <= 0 && left > 0 {
            state.budget.set(state.budget.get().saturating_add(runtime.0 as i64));
            state.deadline.set((Nanos(state.deadline.get()) + period).0);
            left -= 1;
        }
        if left == 0 || Nanos(state.deadline.get()) <= now {
            Self::start_over(e, now);
        }
    }

    /// After a sleep: may what is left of the old promise still be used? Only if it asks for no more of the time until
    /// the deadline than the whole promise does, or it would take what others were promised.
    fn wake(e: &E, now: Nanos) {
        let [runtime, deadline, period] = e.sched().promise();
        let state = &e.sched().deadline;
        let (budget, until) = (state.budget.get(), Nanos(state.deadline.get()));
        if until <= now {
            // A constrained one waits for its period even if the deadline is over: see `insert`.
            if deadline == period || Self::next_period(e) <= now {
                Self::start_over(e, now);
            } else {
                state.budget.set(0);
            }
        } else if budget > 0 {
            let left = until - now;
            // budget / left > runtime / deadline
            let asks_too_much =
                u128::from(budget.unsigned_abs()) * u128::from(deadline.0) > u128::from(left.0) * u128::from(runtime.0);
            if asks_too_much && deadline == period {
                Self::start_over(e, now);
            } else if asks_too_much {
                // Linux: `update_dl_revised_wakeup`. As much as fits; division only here.
                let fits = u128::from(left.0) * u128::from(runtime.0) / u128::from(deadline.0.max(1));
                state.budget.set(i64::try_from(fits).unwrap_or(budget));
            }
        }
    }

    #[inline(never)]
    fn pick_first(&mut self, now: Nanos) -> Option<E> {
        self.event(now);
        self.charged = Nanos::ZERO;
        let first = self.ready.pop(&mut self.shelf.places)?;
        self.shelf.take(first.slot)
    }

    /// Is no task queued, not even one that waits for its budget?
    #[inline(always)]
    pub(crate) fn has_none(&self) -> bool {
        self.ready.len() == 0 && self.throttled.len() == 0
    }

    /// Into the heap that it belongs to.
    fn insert(&mut self, e: E, now: Nanos) {
        let state = &e.sched().deadline;
        if state.budget.get() <= 0 {
            let at = Self::next_period(&e);
            if at > now {
                let slot = self.shelf.put(e);
                return self.throttled.push(Entry { key: at.0, slot }, &mut self.shelf.places);
            }
            Self::replenish(&e, now);
        }
        let key = e.sched().deadline.deadline.get();
        let slot = self.shelf.put(e);
        self.ready.push(Entry { key, slot }, &mut self.shelf.places);
    }
}

impl<E: Entity> Default for Deadline<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Entity> Policy<E> for Deadline<E> {
    fn enqueue(&mut self, e: E, why: EnqueueReason, now: Nanos) {
        let state = &e.sched().deadline;
        match why {
            _ if state.deadline.get() == 0 => Self::start_over(&e, now),
            EnqueueReason::New => Self::start_over(&e, now),
            EnqueueReason::Wake => Self::wake(&e, now),
            // "I'm done for this period" (sched_yield(2) for deadline tasks).
            EnqueueReason::Yield => state.budget.set(state.budget.get().min(0)),
            EnqueueReason::Preempted | EnqueueReason::Migrate => {}
        }
        self.insert(e, now);
    }

    fn dequeue(&mut self, e: &E) -> Option<E> {
        let place = self.shelf.find(e)?;
        let places = &mut self.shelf.places;
        let entry = self.ready.remove(place, places).or_else(|| self.throttled.remove(place, places))?;
        self.shelf.take(entry.slot)
    }

    #[inline(always)]
    fn pick_next(&mut self, now: Nanos) -> Option<E> {
        if self.has_none() { None } else { self.pick_first(now) }
    }

    fn put_prev(&mut self, prev: &E, ran: Nanos, _why: PutReason) {
        self.charge(prev, ran);
    }

    fn adopt(&mut self, e: &E, ran: Nanos, now: Nanos) {
        self.charged = ran;
        Self::start_over(e, now);
    }

    fn len(&self) -> usize {
        self.ready.len()
    }

    /// The budget is used up, or somebody has an earlier deadline.
    fn tick(&mut self, current: &E, ran: Nanos) -> bool {
        self.charge(current, ran);
        let state = &current.sched().deadline;
        let first = self.ready.first();
        state.budget.get() <= 0 || first.is_some_and(|first| first.key < state.deadline.get())
    }

    fn wakeup_preempts(&self, current: &E, woken: &E) -> bool {
        let (current, woken) = (&current.sched().deadline, &woken.sched().deadline);
        woken.budget.get() > 0 && woken.deadline.get() < current.deadline.get()
    }

    /// Always limited: by the budget.
    fn slice(&self, current: &E) -> Option<Nanos> {
        Some(self.charged + Nanos(current.sched().deadline.budget.get().max(0).unsigned_abs()))
    }

    fn next_event(&self) -> Option<Nanos> {
        self.throttled.first().map(|first| Nanos(first.key))
    }

    fn event(&mut self, now: Nanos) -> bool {
        let mut any = false;
        while self.throttled.first().is_some_and(|first| Nanos(first.key) <= now) {
            let first = self.throttled.pop(&mut self.shelf.places);
            if let Some(e) = first.and_then(|first| self.shelf.take(first.slot)) {
                self.insert(e, now);
                any = true;
            }
        }
        any
    }

    /// Nothing: each task was admitted to this CPU.
    fn steal(&mut self, _wanted: impl FnMut(&E) -> bool) -> Option<E> {
        None
    }
}

/// One in the fixed-point numbers of [`Budget`].
const WHOLE: u64 = 1 << 20;

/// What of a CPU is promised to deadline tasks. Kept by the kernel, one for each CPU, under a lock of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Budget {
    promised: u64,
}

/// No CPU that the task may use can promise it what it asks for (`EBUSY`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overcommitted;

impl fmt::Display for Overcommitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no allowed CPU has enough left of the 95 % that deadline tasks can be promised")
    }
}

impl core::error::Error for Overcommitted {}

impl Budget {
    /// What can be promised at most: 95 %, as Linux's `sched_rt_runtime_us` of `sched_rt_period_us`. Ordinary tasks
    /// have the rest.
    const LIMIT: u64 = WHOLE * 95 / 100;

    /// Nothing promised.
    pub const fn new() -> Self {
        Self { promised: 0 }
    }

    /// The part of a CPU that a promise needs: `runtime / min(deadline, period)`, rounded up. With deadlines shorter
    /// than periods this is more than the task uses in the long run, and enough for EDF to keep every promise.
    const fn density(params: &DeadlineParams) -> u64 {
        let wide = params.runtime().0 as u128 * WHOLE as u128;
        let within = if params.deadline().0 < params.period().0 { params.deadline().0 } else { params.period().0 };
        wide.div_ceil(within as u128) as u64
    }

    /// Can this be promised beside what is?
    pub const fn fits(&self, params: &DeadlineParams) -> bool {
        self.promised + Self::density(params) <= Self::LIMIT
    }

    /// Promises it.
    ///
    /// # Errors
    /// [`Overcommitted`] if it doesn't fit; nothing has changed then.
    pub const fn admit(&mut self, params: &DeadlineParams) -> Result<(), Overcommitted> {
        if !self.fits(params) {
            return Err(Overcommitted);
        }
        self.promised += Self::density(params);
        Ok(())
    }

    /// Takes back what was admitted.
    pub const fn release(&mut self, params: &DeadlineParams) {
        self.promised = self.promised.saturating_sub(Self::density(params));
    }

    /// What is promised, in parts per million of the CPU.
    pub const fn parts_per_million(&self) -> u32 {
        (self.promised * 1_000_000 / WHOLE) as u32
    }
}

/// Chooses the CPU for a deadline task: `preferred` (its last one) if its budget allows, else the first allowed that
/// fits.
///
/// # Errors
/// [`Overcommitted`] if none does.
pub fn choose_cpu(
    params: &DeadlineParams,
    allowed: &CpuMask,
    preferred: CpuId,
    budget: impl Fn(CpuId) -> Budget,
) -> Result<CpuId, Overcommitted> {
    let fits = |&cpu: &CpuId| budget(cpu).fits(params);
    let preferred = Some(preferred).filter(|&cpu| allowed.test(cpu));
    preferred.filter(fits).or_else(|| allowed.iter().find(fits)).ok_or(Overcommitted)
}
