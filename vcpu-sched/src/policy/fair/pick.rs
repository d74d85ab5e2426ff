//! Which of the fair class's tasks runs next. Called by [`Fair`]'s `pick_next` and `turn` alone.
//!
//! The invariant: what is taken out is an eligible task with the earliest deadline, the one that was current only if it
//! is strictly before the others; and all others are in the heap that they belong to, or the only one queued.

use super::{Entity, Fair};
use crate::policy::heap::{Entry, before};

impl<E: Entity> Fair<E> {
    /// Of the task that was current and a single other one, if there are no others nor ghosts: does the first run on? The average
    /// is between the two, so that whoever has the lower virtual runtime is the eligible one, and no average is needed.
    #[inline(always)]
    fn stays(prev: &E, other: &E) -> bool {
        let (ours, other) = (&prev.sched().fair, &other.sched().fair);
        let distance = ours.vruntime.get().wrapping_sub(other.vruntime.get()) as i64;
        distance < 0 || (distance == 0 && before(ours.deadline.get(), other.deadline.get()))
    }

    /// The task that is current until now, which is a member but not among the queued ones, stays, or gives its place to the single
    /// other one. `Err`: not so simple, and nothing is done.
    #[inline(always)]
    pub(super) fn change_places(&mut self, prev: E) -> Result<E, E> {
        match &mut self.single {
            Some(single) if self.returning.is_none() && self.ghosts.is_empty() => {
                Ok(if Self::stays(&prev, single) { prev } else { core::mem::replace(single, prev) })
            }
            _ => Err(prev),
        }
    }

    /// Takes out the best of them and the task that was current.
    #[inline(never)]
    pub(super) fn take_best_with(&mut self, prev: E) -> Option<E> {
        if self.heaped() > 1 && self.single.is_none() && self.returning.is_none() {
            return self.take_best_beside(Some(prev));
        }
        self.give_back(prev);
        match self.take_of_two() {
            None => self.take_best(),
            found => found,
        }
    }

    /// [`stays`](Self::stays) for [`returning`](Fair::returning), if there is such a task. `None`: not so simple.
    #[inline(always)]
    pub(super) fn take_of_two(&mut self) -> Option<E> {
        let single = self.single.as_mut()?;
        let Some(prev) = self.returning.as_ref() else { return self.single.take() };
        if !self.ghosts.is_empty() {
            return None;
        }
        if Self::stays(prev, single) {
            return self.returning.take();
        }
        Some(core::mem::replace(single, self.returning.take()?))
    }

    /// Takes out the best task. None if there is none.
    #[inline(never)]
    pub(super) fn take_best(&mut self) -> Option<E> {
        if self.heaped() == 1 {
            self.single = self.take_nearest();
            if let Some(task) = self.take_of_two() {
                return Some(task);
            }
        }
        if let Some(single) = self.single.take() {
            self.heap(single);
        }
        match self.returning.take() {
            None if self.heaped() == 0 => {
                self.forget_ghosts();
                None
            }
            Some(prev) if self.heaped() == 0 => Some(prev),
            prev => self.take_best_beside(prev),
        }
    }

    /// Takes out some eligible one, or the waiting one that is nearest to it. Somebody always is eligible; this is for
    /// when there is no choice, or should rounding ever have it otherwise.
    fn take_nearest(&mut self) -> Option<E> {
        let places = &mut self.shelf.places;
        let entry = self.eligible.pop(places).or_else(|| self.waiting.pop(places))?;
        self.shelf.take(entry.slot)
    }

    /// Takes out the best task, with a choice.
    ///
    /// What goes from one heap to the other is first compared with the best so far, so that the one that will run is
    /// put into no heap before; and the one that returns takes the place of one that leaves, if it can.
    #[inline]
    fn take_best_beside(&mut self, prev: Option<E>) -> Option<E> {
        self.burn_off();
        let (mut eligible, mut late) = (None, None);
        if let Some(prev) = prev {
            let (vruntime, deadline) = (prev.sched().fair.vruntime.get(), prev.sched().fair.deadline.get());
            let slot = self.shelf.put(prev);
            if self.average.reaches(vruntime) {
                eligible = Some(Entry { key: deadline, slot });
            } else {
                late = Some(Entry { key: vruntime, slot });
            }
        }
        let promoted = self.promote(late);
        match self.first_eligible(promoted, eligible) {
            Some(entry) => self.shelf.take(entry.slot),
            None => self.take_nearest(),
        }
    }

    /// Takes those to the eligible ones that have become so, but for the one with the earliest deadline, which is
    /// returned. `late` becomes one of the waiting.
    #[inline(always)]
    fn promote(&mut self, mut late: Option<Entry>) -> Option<Entry> {
        let mut best: Option<Entry> = None;
        while let Some(Entry { key: vruntime, slot }) = self.waiting.first()
            && self.average.reaches(vruntime)
        {
            match late.take() {
                Some(late) => self.waiting.replace_first(late, &mut self.shelf.places),
                None => self.waiting.pop(&mut self.shelf.places),
            };
            let Some(task) = self.shelf.get(slot) else { continue };
            let entry = Entry { key: task.sched().fair.deadline.get(), slot };
            match best {
                Some(other) if before(entry.key, other.key) => {
                    self.eligible.push(other, &mut self.shelf.places);
                    best = Some(entry);
                }
                Some(_) => self.eligible.push(entry, &mut self.shelf.places),
                None => best = Some(entry),
            }
        }
        if let Some(late) = late {
            self.waiting.push(late, &mut self.shelf.places);
        }
        best
    }

    /// Takes out the eligible one with the earliest deadline: of those in the heap, `promoted`, and `prev`, which gives
    /// way to equals. Those two are in no heap, and are put into it unless they are chosen.
    #[inline(always)]
    fn first_eligible(&mut self, promoted: Option<Entry>, prev: Option<Entry>) -> Option<Entry> {
        let goes_before = |entry: Option<Entry>, other: Entry| entry.is_some_and(|entry| before(entry.key, other.key));
        while let Some(first) = self.eligible.first().filter(|&first| !goes_before(promoted, first)) {
            let vruntime = self.shelf.get(first.slot).map_or(first.key, |e| e.sched().fair.vruntime.get());
            let places = &mut self.shelf.places;
            if goes_before(prev, first) {
                if let Some(promoted) = promoted {
                    self.eligible.push(promoted, places);
                }
                return prev;
            }
            if self.average.reaches(vruntime) {
                match (promoted, prev) {
                    (None, None) => return self.eligible.pop(places),
                    (Some(one), None) | (None, Some(one)) => return self.eligible.replace_first(one, places),
                    (Some(one), Some(other)) => {
                        self.eligible.push(other, places);
                        return self.eligible.replace_first(one, places);
                    }
                }
            }
            // The average has fallen since it was looked at.
            self.eligible.pop(places);
            self.waiting.push(Entry { key: vruntime, slot: first.slot }, places);
        }
        match (promoted, prev) {
            (Some(promoted), Some(prev)) => {
                let prev_first = before(prev.key, promoted.key);
                let (chosen, other) = if prev_first { (prev, promoted) } else { (promoted, prev) };
                self.eligible.push(other, &mut self.shelf.places);
                Some(chosen)
            }
            (one, other) => one.or(other),
        }
    }
}
