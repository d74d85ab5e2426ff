//! The real-time class: `SCHED_FIFO` and `SCHED_RR`, priorities 1 to 99, as POSIX describes them.
//!
//! Called through [`Policy`] by a run queue. The invariants: the task that is picked has the highest priority; of
//! equals, the one that has been at its priority longest; and of `SCHED_RR` tasks of one priority none runs longer than
//! a slice while another waits. In POSIX's words (2.8.4, process scheduling): a preempted task goes to the head of its
//! priority's list, one that becomes runnable, yields or has used up its slice goes to the tail; a task whose priority
//! is changed goes to the tail of the new one, and a running one stays running if it still has the highest.
//!
//! A single queued task needs no list: mostly it is one that has just been woken and runs next.

use super::list::{List, Nodes};
use super::{EnqueueReason, Entity, Policy, PutReason};
use crate::ids::Nanos;
use crate::params::number;

/// The slice of `SCHED_RR`. As Linux: `RR_TIMESLICE`, 100 ms. Programs that use it expect that; whoever wants shorter
/// turns has the fair class.
pub const RR_SLICE: Nanos = Nanos::from_millis(100);

/// Lists by priority; that of priority 0 is always empty.
const LEVELS: usize = 100;

/// The highest of a set of priorities; 0 if it is empty.
#[inline(always)]
fn highest_of([low, high]: [u64; 2]) -> usize {
    if high != 0 { 64 + high.ilog2() as usize } else { low.checked_ilog2().unwrap_or(0) as usize }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Realtime<E> {
    /// The queued task while there is only one: then the lists are empty.
    single: Option<E>,
    nodes: Nodes<E>,
    levels: [List; LEVELS],
    /// Somebody waits in the list of priority p: bit p of both words together.
    waiting: [u64; 2],
    /// How many are in lists.
    listed: usize,
    slice: Nanos,
    /// What of the current task's run is taken off its slice already.
    charged: Nanos,
}

impl<E: Entity> Realtime<E> {
    /// An empty queue with [`RR_SLICE`].
    pub const fn new() -> Self {
        Self::with_slice(RR_SLICE)
    }

    /// An empty queue with another slice for `SCHED_RR`.
    pub const fn with_slice(slice: Nanos) -> Self {
        let levels = [List::EMPTY; LEVELS];
        Self { single: None, nodes: Nodes::new(), levels, waiting: [0; 2], listed: 0, slice, charged: Nanos::ZERO }
    }

    /// The highest priority that waits; 0 if none does.
    #[inline(always)]
    pub fn highest(&self) -> u8 {
        match &self.single {
            Some(single) => single.sched().rt_priority(),
            None if self.listed == 0 => 0,
            None => highest_of(self.waiting) as u8,
        }
    }

    #[inline(always)]
    fn level(e: &E) -> usize {
        usize::from(e.sched().rt_priority()).min(LEVELS - 1)
    }

    /// Does somebody wait at this level?
    fn waits_at(&self, level: usize) -> bool {
        match &self.single {
            Some(single) => Self::level(single) == level,
            None => !self.levels[level].is_empty(),
        }
    }

    /// Puts a task into the list of its priority.
    fn link(&mut self, e: E, head: bool) {
        let level = Self::level(&e);
        let list = &mut self.levels[level];
        if head {
            self.nodes.push_front(list, e);
        } else {
            self.nodes.push_back(list, e);
        }
        self.waiting[level / 64] |= 1 << (level % 64);
        self.listed += 1;
    }

    /// Adds a task to others.
    #[inline(never)]
    fn link_beside(&mut self, e: E, head: bool) {
        if let Some(single) = self.single.take() {
            self.link(single, false);
        }
        self.link(e, head);
    }

    /// Takes the first of a list.
    #[inline(never)]
    fn take_first(&mut self) -> Option<E> {
        let level = highest_of(self.waiting);
        let task = self.nodes.pop_front(&mut self.levels[level]);
        self.left(level, task)
    }

    /// Note that a task has left a list.
    fn left(&mut self, level: usize, task: Option<E>) -> Option<E> {
        if task.is_some() {
            self.listed -= 1;
            if self.levels[level].is_empty() {
                self.waiting[level / 64] &= !(1 << (level % 64));
            }
        }
        task
    }

    fn charge(&mut self, current: &E, ran: Nanos) {
        let left = &current.sched().rr_left;
        left.set((Nanos(left.get()) - (ran - self.charged)).0);
        self.charged = ran;
    }

    fn takes_turns(e: &E) -> bool {
        e.sched().policy_number() == number::RR
    }
}

impl<E: Entity> Default for Realtime<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Entity> Policy<E> for Realtime<E> {
    #[inline(always)]
    fn enqueue(&mut self, e: E, why: EnqueueReason, _now: Nanos) {
        let sched = e.sched();
        let used_up = sched.rr_left.get() == 0;
        let head = why == EnqueueReason::Preempted && !(used_up && Self::takes_turns(&e));
        // One that blocked keeps the rest of its slice, as on Linux: sleeping shortly buys no longer turn.
        if used_up || matches!(why, EnqueueReason::New | EnqueueReason::Yield) {
            sched.rr_left.set(self.slice.0);
        }
        match &mut self.single {
            none @ None if self.listed == 0 => *none = Some(e),
            _ => self.link_beside(e, head),
        }
    }

    fn dequeue(&mut self, e: &E) -> Option<E> {
        if self.single.as_ref().is_some_and(|single| single.id() == e.id()) {
            return self.single.take();
        }
        let level = Self::level(e);
        let task = self.nodes.remove(&mut self.levels[level], e);
        self.left(level, task)
    }

    #[inline(always)]
    fn pick_next(&mut self, _now: Nanos) -> Option<E> {
        self.charged = Nanos::ZERO;
        match self.single.take() {
            None if self.listed != 0 => self.take_first(),
            single => single,
        }
    }

    fn put_prev(&mut self, prev: &E, ran: Nanos, _why: PutReason) {
        self.charge(prev, ran);
    }

    fn adopt(&mut self, e: &E, ran: Nanos, _now: Nanos) {
        self.charged = ran;
        e.sched().rr_left.set(self.slice.0);
    }

    fn len(&self) -> usize {
        self.listed + usize::from(self.single.is_some())
    }

    /// Somebody more important waits; or the slice is over, and an equal waits. Without an equal, a new slice begins.
    fn tick(&mut self, current: &E, ran: Nanos) -> bool {
        self.charge(current, ran);
        let level = Self::level(current);
        if usize::from(self.highest()) > level {
            return true;
        }
        if current.sched().rr_left.get() != 0 || !Self::takes_turns(current) {
            return false;
        }
        if !self.waits_at(level) {
            current.sched().rr_left.set(self.slice.0);
            return false;
        }
        true
    }

    fn wakeup_preempts(&self, current: &E, woken: &E) -> bool {
        woken.sched().rt_priority() > current.sched().rt_priority()
    }

    #[inline(always)]
    fn slice(&self, current: &E) -> Option<Nanos> {
        let contended = Self::takes_turns(current) && self.waits_at(Self::level(current));
        contended.then(|| self.charged + Nanos(current.sched().rr_left.get()))
    }

    /// The most important task that is wanted.
    fn steal(&mut self, mut wanted: impl FnMut(&E) -> bool) -> Option<E> {
        if let Some(single) = &self.single {
            return if wanted(single) { self.single.take() } else { None };
        }
        let mut left = self.waiting;
        while left != [0; 2] {
            let level = highest_of(left);
            left[level / 64] &= !(1 << (level % 64));
            let task = self.nodes.remove_first(&mut self.levels[level], &mut wanted);
            if task.is_some() {
                return self.left(level, task);
            }
        }
        None
    }
}
