//! What tasks wait for each other with: tokens (semaphores, pipes, mutexes) and barriers.
//!
//! Used by the program interpreter alone. As in a kernel, waking gives nothing away: a waker puts tokens down and takes
//! waiters off the list, and whoever runs first takes them; a waiter that comes too late waits again. Tokens are taken and put
//! one at a time, so that as many waiters are woken as can go on, whatever number each wants in all. The invariant: a task
//! is in at most one waiter list, and only from its announcement to block to its wake-up.

use alloc::collections::VecDeque;

use super::model::ChannelKind;
use crate::ids::TaskId;

/// Tasks in the order in which they came to wait.
type Waiters = VecDeque<TaskId>;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Channel {
    kind: ChannelKind,
    /// Tokens that can be taken; of a barrier, the tasks that have arrived.
    tokens: u64,
    /// How often the barrier has opened.
    opened: u64,
    takers: Waiters,
    putters: Waiters,
}

impl Channel {
    pub(super) fn new(kind: ChannelKind) -> Self {
        let tokens = match kind {
            ChannelKind::Tokens { initial, .. } => initial,
            ChannelKind::Barrier { .. } => 0,
        };
        Self { kind, tokens, opened: 0, takers: Waiters::new(), putters: Waiters::new() }
    }

    /// Is it a pipe, rather than a lock?
    pub(super) fn is_bounded(&self) -> bool {
        matches!(self.kind, ChannelKind::Tokens { capacity: Some(_), .. })
    }

    /// Takes up to `want` tokens and says how many. If they are fewer, `task` has been put on the list. `wake` gets those who
    /// waited for room.
    #[must_use = "the task may have to wait"]
    pub(super) fn take(&mut self, task: TaskId, want: u64, wake: impl FnMut(TaskId)) -> u64 {
        let got = want.min(self.tokens);
        if got < want {
            self.takers.push_back(task);
        }
        self.tokens -= got;
        release(&mut self.putters, got, self.kind, wake);
        got
    }

    /// Puts up to `count` tokens and says how many. If they are fewer, `task` has been put on the list. `wake` gets those who
    /// waited for them.
    #[must_use = "the task may have to wait"]
    pub(super) fn put(&mut self, task: TaskId, count: u64, wake: impl FnMut(TaskId)) -> u64 {
        let room = match self.kind {
            ChannelKind::Tokens { capacity: Some(most), .. } => most.saturating_sub(self.tokens),
            _ => u64::MAX - self.tokens,
        };
        let put = count.min(room);
        if put < count {
            self.putters.push_back(task);
        }
        self.tokens += put;
        release(&mut self.takers, put, self.kind, wake);
        put
    }

    /// Counts a task in that has come to the barrier, and returns the opening that it waits for. `wake` gets all who wait if it
    /// is the last one.
    pub(super) fn arrive(&mut self, wake: impl FnMut(TaskId)) -> u64 {
        let parties = match self.kind {
            ChannelKind::Barrier { parties } => parties,
            ChannelKind::Tokens { .. } => 1, // refused when the workload is checked
        };
        let ticket = self.opened;
        self.tokens += 1;
        if self.tokens >= parties {
            self.tokens = 0;
            self.opened += 1;
            self.takers.drain(..).for_each(wake);
        }
        ticket
    }

    /// Has the barrier opened for this ticket? If not, the task has been put on the list.
    #[must_use = "the task may have to wait"]
    pub(super) fn passed(&mut self, task: TaskId, ticket: u64) -> bool {
        let passed = self.opened > ticket;
        if !passed {
            self.takers.push_back(task);
        }
        passed
    }

    /// Takes a task off the lists, if it is there: it was woken by something else, and will look again.
    pub(super) fn forget(&mut self, task: TaskId) {
        self.takers.retain(|&waiter| waiter != task);
        self.putters.retain(|&waiter| waiter != task);
    }
}

/// Takes those off the list who can go on with `count` tokens, or all of them if the channel wakes everybody.
fn release(waiters: &mut Waiters, count: u64, kind: ChannelKind, wake: impl FnMut(TaskId)) {
    let many = match kind {
        ChannelKind::Tokens { wake_all: true, .. } if count > 0 => waiters.len(),
        _ => usize::try_from(count).map_or(waiters.len(), |count| count.min(waiters.len())),
    };
    waiters.drain(..many).for_each(wake);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn tokens(initial: u64, capacity: Option<u64>, wake_all: bool) -> Channel {
        Channel::new(ChannelKind::Tokens { initial, capacity, wake_all })
    }

    fn take(c: &mut Channel, task: u32, want: u64) -> (u64, Vec<u32>) {
        let mut woken = vec![];
        (c.take(TaskId(task), want, |t| woken.push(t.0)), woken)
    }

    fn put(c: &mut Channel, task: u32, count: u64) -> (u64, Vec<u32>) {
        let mut woken = vec![];
        (c.put(TaskId(task), count, |t| woken.push(t.0)), woken)
    }

    #[test]
    fn as_many_are_woken_as_there_are_tokens() {
        let mut c = tokens(1, None, false);
        assert_eq!(take(&mut c, 1, 1), (1, vec![]));
        for task in 2..=4 {
            assert_eq!(take(&mut c, task, 1), (0, vec![]));
        }
        assert_eq!(put(&mut c, 1, 2), (2, vec![2, 3]));
        // A stranger is faster than task 3, which then has to wait again, at the end.
        assert_eq!(take(&mut c, 9, 1).0, 1);
        assert_eq!(take(&mut c, 2, 1).0, 1);
        assert_eq!(take(&mut c, 3, 1).0, 0);
        assert_eq!(put(&mut c, 1, 5), (5, vec![4, 3]));
    }

    #[test]
    fn a_full_pipe_holds_its_writers() {
        let mut c = tokens(0, Some(2), false);
        assert_eq!(put(&mut c, 1, 5), (2, vec![]));
        assert_eq!(take(&mut c, 2, 1), (1, vec![1]));
        assert_eq!(put(&mut c, 1, 3), (1, vec![]));
        assert_eq!(take(&mut c, 2, 4), (2, vec![1]));
        assert_eq!(put(&mut c, 1, 2), (2, vec![2]));
    }

    #[test]
    fn a_herd_is_woken_whole() {
        let mut c = tokens(0, None, true);
        for task in 1..=3 {
            assert_eq!(take(&mut c, task, 1).0, 0);
        }
        assert_eq!(put(&mut c, 9, 1), (1, vec![1, 2, 3]));
    }

    #[test]
    fn a_barrier_opens_for_the_last_and_closes_again() {
        let mut c = Channel::new(ChannelKind::Barrier { parties: 2 });
        for round in 0..3 {
            let first = c.arrive(|_| unreachable!());
            assert_eq!(first, round);
            assert!(!c.passed(TaskId(1), first));
            let mut woken = vec![];
            let second = c.arrive(|task| woken.push(task.0));
            assert_eq!(woken, [1]);
            assert!(c.passed(TaskId(2), second) && c.passed(TaskId(1), first));
        }
    }

    #[test]
    fn who_is_forgotten_is_not_woken() {
        let mut c = tokens(0, None, false);
        assert_eq!(take(&mut c, 1, 1).0, 0);
        c.forget(TaskId(1));
        assert_eq!(put(&mut c, 2, 1), (1, vec![]));
    }
}
