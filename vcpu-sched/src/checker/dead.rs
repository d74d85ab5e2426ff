//! Which task numbers belong to the dead, in little memory.
//!
//! Numbers are given out in rising order as a rule, so that the dead lie in few ranges: between two of them lives a task.
//! Where a trace has it otherwise, the set is bounded and forgets the lowest range; a number that was forgotten counts as
//! never seen. Used by [`super::rules`] alone.

use alloc::collections::BTreeMap;

use crate::ids::TaskId;

/// A set of numbers as disjoint ranges that don't touch.
#[derive(Debug, Default)]
pub(super) struct DeadSet {
    /// First to last, both in it.
    ranges: BTreeMap<u32, u32>,
}

impl DeadSet {
    const MAX_RANGES: usize = 1 << 16;

    pub(super) fn contains(&self, task: TaskId) -> bool {
        self.ranges.range(..=task.0).next_back().is_some_and(|(_, &last)| task.0 <= last)
    }

    pub(super) fn insert(&mut self, TaskId(id): TaskId) {
        if self.contains(TaskId(id)) {
            return;
        }
        let last = match id.checked_add(1).and_then(|after| self.ranges.remove(&after)) {
            Some(last) => last,
            None => id,
        };
        match self.ranges.range_mut(..id).next_back() {
            Some((_, before)) if before.checked_add(1) == Some(id) => *before = last,
            _ => {
                self.ranges.insert(id, last);
            }
        }
        if self.ranges.len() > Self::MAX_RANGES {
            self.ranges.pop_first();
        }
    }

    /// The number is in use again.
    pub(super) fn remove(&mut self, TaskId(id): TaskId) {
        let Some((&first, &last)) = self.ranges.range(..=id).next_back() else { return };
        if id > last {
            return;
        }
        self.ranges.remove(&first);
        if first < id {
            self.ranges.insert(first, id - 1);
        }
        if id < last {
            self.ranges.insert(id + 1, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn neighbours_share_a_range() {
        let mut dead = DeadSet::default();
        for id in [5, 7, 6, u32::MAX, 0] {
            dead.insert(TaskId(id));
        }
        assert_eq!(dead.ranges.into_iter().collect::<std::vec::Vec<_>>(), [(0, 0), (5, 7), (u32::MAX, u32::MAX)]);
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0_u32..40), 0..200)) {
            let (mut dead, mut model) = (DeadSet::default(), BTreeSet::new());
            for (add, id) in steps {
                if add {
                    dead.insert(TaskId(id));
                    model.insert(id);
                } else {
                    dead.remove(TaskId(id));
                    model.remove(&id);
                }
                for id in 0..42 {
                    prop_assert_eq!(dead.contains(TaskId(id)), model.contains(&id));
                }
            }
        }
    }
}
