//! One task gives way to the next: what a run queue is asked most often, in one call.
//!
//! The invariant: a turn does what [`put_back`](RunQueue::put_back) and then [`pick_next`](RunQueue::pick_next) do, and
//! tells besides what its caller would ask next.

use super::{Normal, RunQueue, normal};
use crate::entity::{Entity, Rank};
use crate::ids::Nanos;
use crate::policy::Policy;

/// Who is next by [`RunQueue::turn`].
#[derive(Debug)]
pub struct Turn<E> {
    /// The current task from now on.
    pub next: E,
    /// Its slice: how long it may run before the next [`RunQueue::tick`].
    pub slice: Option<Nanos>,
    /// As many tasks may run here as before, and no [`RunQueue::event`] is due.
    pub steady: bool,
}

impl<E: Entity> RunQueue<E> {
    /// Are the current task and all that are queued of the normal class? Then [`turn_ordinary`](Self::turn_ordinary) is for it.
    #[inline(always)]
    pub fn is_ordinary(&self, current: &E) -> bool {
        self.has_only_normal() && current.sched().placed() == Rank::Normal
    }

    /// The current task gives way and stays runnable here, and the next is picked: [`put_back`](Self::put_back) and
    /// [`pick_next`](Self::pick_next) in one, see [`Policy::turn`]. Only if [`is_ordinary`](Self::is_ordinary); the next one, too, is.
    #[inline(always)]
    pub fn turn_ordinary(&mut self, prev: E, yields: bool, now: Nanos) -> Option<Turn<E>> {
        debug_assert!(self.is_ordinary(&prev));
        let ran = now - self.picked;
        prev.sched().accounting().left(now, ran, yields);
        let (next, slice) = normal!(&mut self.normal, policy => {
            let next = policy.turn(prev, ran, yields, now)?;
            let slice = policy.slice(&next);
            (next, slice)
        });
        self.begin(&next, now);
        Some(Turn { next, slice, steady: true })
    }

    /// The same whatever the classes are. `None`: nobody may run, not even the one that gave way, whose budget is used up.
    #[inline(always)]
    pub fn turn(&mut self, prev: E, yields: bool, now: Nanos) -> Option<Turn<E>> {
        self.put_back(prev, yields, now);
        // First what is mostly woken to preempt.
        if self.stop.is_empty()
            && self.deadline.has_none()
            && let Some(next) = self.realtime.pick_next(now)
        {
            self.above -= 1;
            let slice = self.realtime.slice(&next);
            self.begin(&next, now);
            return Some(Turn { next, slice, steady: true });
        }
        let next = self.pick_next(now)?;
        let slice = self.slice(&next);
        // Only a deadline task can be queued and may not run, or begin to while another one is picked.
        let steady = next.sched().placed() != Rank::Deadline && self.deadline.has_none();
        Some(Turn { next, slice, steady })
    }
}
