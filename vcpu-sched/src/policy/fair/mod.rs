//! The fair class: EEVDF, earliest eligible virtual deadline first. Called through [`Policy`] by a run queue.
//!
//! The algorithm is Stoica and Abdel-Wahab's (1995), as Linux has it since 6.6 (kernel/sched/fair.c). A task's *virtual
//! runtime* is the time it ran, scaled by its weight; the weighted average of all is where an ideally fair CPU would
//! be. What a task is behind the average is its *lag*; a task with lag is *eligible*. Each asks for slices; the
//! *virtual deadline* of a request is where its virtual runtime will be when the slice is used up. Of the eligible
//! tasks the one with the earliest deadline runs, so that a shorter slice buys earlier service but not more of it. What
//! is as in Linux:
//! - the current task counts in the average, and runs until its request is fulfilled (run to parity). A woken task
//!   preempts it earlier only if the current one has had its share already, or has a longer slice and a later deadline;
//!   and one with its share only after a quarter of its slice since its pick ([`SHELTER`]), so that however many tasks
//!   wake, one slice is cut into five runs at most;
//! - lag is kept over a sleep and over a move, both signs, up to two slices;
//! - a task that blocks with negative lag leaves a *ghost* (Linux: delayed dequeue) that counts in the average until
//!   that has caught up with it. If the task wakes here before, it goes on where it was; after, its debt is paid;
//! - a new task's first request is half a slice long;
//! - a yield gives up the rest of the request;
//! - `SCHED_IDLE` is preempted by every other; `SCHED_BATCH` preempts nobody but that.
//!
//! The invariants: the sum of the members' lags is zero, up to rounding (members: queued tasks, ghosts, and the current
//! task between its `pick_next` and the `put_prev` that ends its being runnable); and the task that is picked is an
//! eligible one.
//!
//! A single queued task needs no order. More lie in two heaps: those that were eligible when last looked at, by
//! deadline, and the others, by virtual runtime. The average mostly rises, so tasks go over from the second to the
//! first; where it fell, the first one's top is found out when it is to be picked. Each move is one heap operation, so
//! everything is O(log n).

mod average;
mod ghosts;
mod pick;
#[cfg(all(test, not(loom)))]
mod tests;
pub mod weight;

use average::Average;
use ghosts::{GhostId, Ghosts};

use super::heap::{Entry, Heap, before};
use super::shelf::Shelf;
use super::{EnqueueReason, Entity, Policy, PutReason};
use crate::entity::FairState;
use crate::ids::{CpuId, Nanos};
use crate::params::number;

pub use weight::DEFAULT_SLICE;

/// For this part of its slice, from its pick on, a task is safe from woken ones that ask for no less. A quarter of
/// [`DEFAULT_SLICE`] is about what Linux has as its base slice on one CPU (0.7 ms), which protects the current task there.
const SHELTER: u64 = 4;

/// Marks of the two heaps in a task's place.
const ELIGIBLE: u32 = 0;
const WAITING: u32 = 1 << 31;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Fair<E> {
    average: Average,
    /// The queued tasks, sorted by the two heaps.
    shelf: Shelf<E>,
    /// By deadline.
    eligible: Heap<ELIGIBLE>,
    /// By virtual runtime.
    waiting: Heap<WAITING>,
    ghosts: Ghosts,
    /// The queued task while there is only one: then no heap is needed, and the heaps are empty.
    single: Option<E>,
    /// The task that was current and is still runnable: often it is the next one, too, or changes places with it.
    returning: Option<E>,
    /// Tells this queue's ghosts from those of others: CPU plus one.
    mark: u32,
    /// What of the current task's run it has been charged.
    charged: u64,
    /// The current task has fulfilled a request since it was picked.
    fulfilled: bool,
}

impl<E: Entity> Fair<E> {
    /// The empty queue of a CPU.
    pub const fn new(cpu: CpuId) -> Self {
        Self {
            average: Average::new(),
            shelf: Shelf::new(),
            eligible: Heap::new(),
            waiting: Heap::new(),
            ghosts: Ghosts::new(),
            single: None,
            returning: None,
            mark: cpu.0 + 1,
            charged: 0,
            fulfilled: false,
        }
    }

    /// How far behind (positive) or ahead of its share a queued or running task is, in its virtual time. For reports.
    pub fn lag(&self, e: &E) -> i64 {
        self.average.value().wrapping_sub(e.sched().fair.vruntime.get()) as i64
    }

    #[inline(always)]
    fn is_eligible(&self, e: &E) -> bool {
        self.average.reaches(e.sched().fair.vruntime.get())
    }

    /// The task that was current becomes one of the others.
    fn settle(&mut self) {
        if let Some(e) = self.returning.take() {
            self.link(e);
        }
    }

    /// Puts a member among the queued ones.
    #[inline]
    fn link(&mut self, e: E) {
        if self.single.is_none() && self.heaped() == 0 {
            self.single = Some(e);
        } else {
            self.link_beside(e);
        }
    }

    /// How many are in the heaps.
    #[inline(always)]
    fn heaped(&self) -> usize {
        self.eligible.len() + self.waiting.len()
    }

    #[inline(never)]
    fn link_beside(&mut self, e: E) {
        if let Some(single) = self.single.take() {
            self.heap(single);
        }
        self.heap(e);
    }

    /// Puts a member into the heap that it belongs to.
    fn heap(&mut self, e: E) {
        let fair = &e.sched().fair;
        let (vruntime, deadline) = (fair.vruntime.get(), fair.deadline.get());
        let slot = self.shelf.put(e);
        if self.average.reaches(vruntime) {
            self.eligible.push(Entry { key: deadline, slot }, &mut self.shelf.places);
        } else {
            self.waiting.push(Entry { key: vruntime, slot }, &mut self.shelf.places);
        }
    }

    /// Takes a queued task away.
    fn unlink(&mut self, e: &E) -> Option<E> {
        if self.single.as_ref().is_some_and(|single| single.id() == e.id()) {
            return self.single.take();
        }
        let place = self.shelf.find(e)?;
        let places = &mut self.shelf.places;
        let entry = self.eligible.remove(place, places).or_else(|| self.waiting.remove(place, places))?;
        self.shelf.take(entry.slot)
    }

    /// Brings the current task's virtual runtime up to date.
    #[inline(always)]
    fn charge(&mut self, current: &E, ran: Nanos) {
        self.fulfilled |= self.advance(current, ran);
        self.charged = ran.0;
    }

    /// The current task's virtual runtime goes on to what it has run. Has it fulfilled a request by that? Then it has made a new one.
    #[inline(always)]
    fn advance(&mut self, current: &E, ran: Nanos) -> bool {
        let fair = &current.sched().fair;
        let delta = ran.0.saturating_sub(self.charged);
        let weight = fair.weight.get();
        let by = weight::virtual_time(delta, weight, fair.inverse.get());
        let vruntime = fair.vruntime.get().wrapping_add(by);
        fair.vruntime.set(vruntime);
        self.average.advance(by, weight);
        let fulfilled = !before(vruntime, fair.deadline.get());
        if fulfilled {
            fair.deadline.set(vruntime.wrapping_add(fair.virtual_slice.get()));
        }
        fulfilled
    }

    /// [`advance`](Self::advance) for a current task that gives up its request: what is left of it counts as run.
    ///
    /// Linux spares those that are not eligible at that moment (they give way anyway), with the effect that of three tasks that
    /// yield in turn one gets 40 %. A task is eligible when it is picked, so it gets no further ahead than a slice either way; while
    /// pushing only the deadline would let it push it out of sight.
    #[inline(always)]
    fn give_up_request(&mut self, current: &E, ran: Nanos) {
        let fair = &current.sched().fair;
        let delta = ran.0.saturating_sub(self.charged);
        let weight = fair.weight.get();
        let (vruntime, mut deadline) = (fair.vruntime.get(), fair.deadline.get());
        let reached = vruntime.wrapping_add(weight::virtual_time(delta, weight, fair.inverse.get()));
        let request = fair.virtual_slice.get();
        if !before(reached, deadline) {
            deadline = reached.wrapping_add(request); // that one is fulfilled, and the next given up
        }
        self.average.advance(deadline.wrapping_sub(vruntime), weight);
        fair.vruntime.set(deadline);
        fair.deadline.set(deadline.wrapping_add(request));
    }

    /// The current task stops being that, and stays. What was charged of its run is of no interest any more.
    #[inline(always)]
    fn stop(&mut self, prev: &E, ran: Nanos, yields: bool) {
        if yields {
            self.give_up_request(prev, ran);
        } else {
            self.advance(prev, ran);
        }
    }

    /// What was taken out is the current task from now on.
    #[inline(always)]
    fn begin(&mut self, task: E) -> E {
        self.charged = 0;
        self.fulfilled = false;
        self.average.follow(task.sched().fair.vruntime.get());
        task
    }

    /// The current task is among the others from now on.
    #[inline(always)]
    fn give_back(&mut self, e: E) {
        if let Some(other) = self.returning.replace(e) {
            self.link(other); // it returned when something of a higher class ran next
        }
    }

    /// Makes a task a member, behind or ahead of the average as it was when it left.
    fn place(&mut self, fair: &FairState, why: EnqueueReason) {
        let weight = fair.weight.get();
        let vruntime = match self.return_of(fair) {
            Some(vruntime) => vruntime, // its ghost was a member
            None => {
                let lag = self.average.inflate(fair.lag.get(), weight);
                let vruntime = self.average.value().wrapping_sub(lag as u64);
                self.average.add(vruntime, weight);
                vruntime
            }
        };
        let request = match (why, fair.left.get()) {
            (EnqueueReason::New, _) => fair.virtual_slice.get() / 2,
            (EnqueueReason::Migrate, left) if left != 0 => left,
            _ => fair.virtual_slice.get(),
        };
        fair.vruntime.set(vruntime);
        fair.deadline.set(vruntime.wrapping_add(request));
    }

    #[inline(never)]
    fn arrive(&mut self, e: E, why: EnqueueReason) {
        self.place(&e.sched().fair, why);
        self.link(e);
    }

    /// If the task's ghost is here, and can be taken over as it is: where it is. Else what is owed is in `lag`.
    #[inline]
    fn return_of(&mut self, fair: &FairState) -> Option<u64> {
        let mark = fair.ghost_queue.get();
        if mark == 0 {
            return None;
        }
        fair.ghost_queue.set(0);
        if mark != self.mark {
            return None; // one left elsewhere burns off by itself
        }
        self.burn_off();
        let id = GhostId { slot: fair.ghost_slot.get(), stamp: fair.ghost_stamp.get() };
        let Some(ghost) = self.ghosts.take(id) else {
            fair.lag.set(0); // paid
            return None;
        };
        if ghost.weight == fair.weight.get() {
            return Some(ghost.vruntime);
        }
        // Its nice value changed while it slept: the debt stays the same in real time.
        let debt = self.average.value().wrapping_sub(ghost.vruntime) as i64;
        let scaled = i128::from(debt) * i128::from(ghost.weight) / i128::from(fair.weight.get());
        fair.lag.set(i64::try_from(scaled).unwrap_or(0));
        self.average.remove(ghost.vruntime, ghost.weight);
        None
    }

    /// Ghosts leave that the average has caught up with.
    #[inline(always)]
    fn burn_off(&mut self) {
        if !self.ghosts.is_empty() {
            self.burn_off_some();
        }
    }

    fn burn_off_some(&mut self) {
        while let Some(ghost) = self.ghosts.first().filter(|ghost| self.average.reaches(ghost.vruntime)) {
            self.ghosts.pop();
            self.average.remove(ghost.vruntime, ghost.weight);
        }
    }

    /// Nobody is left whom a ghost could owe anything.
    #[cold]
    fn forget_ghosts(&mut self) {
        while let Some(ghost) = self.ghosts.pop() {
            self.average.remove(ghost.vruntime, ghost.weight);
        }
    }

    /// A member leaves the queue for now.
    #[inline(never)]
    fn leave(&mut self, fair: &FairState, why: PutReason) {
        let (vruntime, weight) = (fair.vruntime.get(), fair.weight.get());
        if self.average.is_only(weight) {
            // It is the average, and what it has had nobody else wanted.
            fair.lag.set(0);
            if why == PutReason::Migrate {
                fair.left.set((fair.deadline.get().wrapping_sub(vruntime) as i64).max(1) as u64);
            } else {
                fair.left.set(0);
            }
        } else if why != PutReason::Exit {
            self.burn_off();
            let limit = (fair.virtual_slice.get() as i64).saturating_mul(2);
            let lag = (self.average.value().wrapping_sub(vruntime) as i64).clamp(-limit, limit);
            fair.lag.set(lag);
            if why == PutReason::Block {
                fair.left.set(0);
                if lag < 0 {
                    let id = self.ghosts.add(vruntime, weight);
                    fair.ghost_slot.set(id.slot);
                    fair.ghost_stamp.set(id.stamp);
                    fair.ghost_queue.set(self.mark);
                    return;
                }
            } else {
                // At least 1: 0 is no request.
                fair.left.set((fair.deadline.get().wrapping_sub(vruntime) as i64).max(1) as u64);
            }
        }
        self.average.remove(vruntime, weight);
    }
}

impl<E: Entity> Policy<E> for Fair<E> {
    #[inline(always)]
    fn enqueue(&mut self, e: E, why: EnqueueReason, _now: Nanos) {
        match why {
            EnqueueReason::Preempted => self.give_back(e),
            EnqueueReason::Yield => {
                self.give_up_request(&e, Nanos(self.charged)); // its time is charged already
                self.give_back(e);
            }
            EnqueueReason::New | EnqueueReason::Wake | EnqueueReason::Migrate => self.arrive(e, why),
        }
    }

    fn dequeue(&mut self, e: &E) -> Option<E> {
        self.settle();
        let task = self.unlink(e)?;
        self.leave(&task.sched().fair, PutReason::Migrate);
        Some(task)
    }

    #[inline(always)]
    fn pick_next(&mut self, _now: Nanos) -> Option<E> {
        let task = match self.take_of_two() {
            None => self.take_best()?,
            Some(task) => task,
        };
        Some(self.begin(task))
    }

    #[inline(always)]
    fn put_prev(&mut self, prev: &E, ran: Nanos, why: PutReason) {
        self.charge(prev, ran);
        match why {
            PutReason::Preempted | PutReason::Yield => {}
            PutReason::Block | PutReason::Exit | PutReason::Migrate => self.leave(&prev.sched().fair, why),
        }
    }

    #[inline(always)]
    fn put_back(&mut self, prev: E, ran: Nanos, yields: bool, _now: Nanos) {
        self.stop(&prev, ran, yields);
        self.give_back(prev);
    }

    #[inline(always)]
    fn turn(&mut self, prev: E, ran: Nanos, yields: bool, _now: Nanos) -> Option<E> {
        self.stop(&prev, ran, yields);
        let task = match self.change_places(prev) {
            Ok(task) => task,
            Err(prev) => self.take_best_with(prev)?,
        };
        Some(self.begin(task))
    }

    fn adopt(&mut self, e: &E, ran: Nanos, _now: Nanos) {
        self.place(&e.sched().fair, EnqueueReason::Migrate);
        self.charged = ran.0;
        self.fulfilled = false;
    }

    #[inline]
    fn len(&self) -> usize {
        self.heaped() + usize::from(self.single.is_some()) + usize::from(self.returning.is_some())
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.single.is_none() && self.heaped() == 0 && self.returning.is_none()
    }

    /// A request is fulfilled, and there is somebody to give way to.
    #[inline]
    fn tick(&mut self, current: &E, ran: Nanos) -> bool {
        self.charge(current, ran);
        self.fulfilled && !self.is_empty()
    }

    fn wakeup_preempts(&self, current: &E, woken: &E) -> bool {
        let policies = (current.sched().policy_number(), woken.sched().policy_number());
        match policies {
            (number::IDLE, number::IDLE) => {}
            (number::IDLE, _) => return true,
            (_, number::IDLE | number::BATCH) => return false,
            _ => {}
        }
        if !self.is_eligible(woken) {
            return false;
        }
        let slice = current.sched().slice();
        if self.fulfilled || (self.charged >= slice.0 / SHELTER && !self.is_eligible(current)) {
            return true;
        }
        // Who asked for less at a time did so to be served sooner.
        let shorter = woken.sched().slice() < slice;
        shorter && before(woken.sched().fair.deadline.get(), current.sched().fair.deadline.get())
    }

    #[inline(always)]
    fn slice(&self, current: &E) -> Option<Nanos> {
        if self.is_empty() {
            return None;
        }
        let fair = &current.sched().fair;
        let left = fair.deadline.get().wrapping_sub(fair.vruntime.get());
        Some(Nanos(self.charged) + Nanos(weight::real_time(left, fair.weight.get())))
    }

    /// One that is behind its share, if one of those is wanted.
    fn steal(&mut self, mut wanted: impl FnMut(&E) -> bool) -> Option<E> {
        self.settle();
        let found = {
            let heaped = self.eligible.iter().chain(self.waiting.iter());
            let mut queued = self.single.iter().chain(heaped.filter_map(|entry| self.shelf.get(entry.slot)));
            queued.find(|&e| wanted(e))?.clone()
        };
        let task = self.unlink(&found)?;
        self.leave(&task.sched().fair, PutReason::Migrate);
        Some(task)
    }
}
