//! The CPUs of a trace: what each runs, and what it ran lately. Used by [`super::analysis`].

use std::collections::VecDeque;

use super::model;

/// What a CPU ran from one switch to the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ran {
    /// None: idle.
    pub(super) task: Option<u32>,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// One CPU.
#[derive(Debug, Default)]
pub(super) struct Cpu {
    pub(super) figures: model::Cpu,
    /// What it runs and since when; none until its first switch.
    pub(super) current: Option<(Option<u32>, u64)>,
    history: VecDeque<Ran>,
}

impl Cpu {
    /// So far back it is known what a CPU ran instead of a task that waited.
    const HISTORY: usize = 512;

    /// The CPU changes to `next`. Returns what it ran until now.
    pub(super) fn switch(&mut self, next: Option<u32>, time: u64) -> Option<Ran> {
        let ran = self.current.map(|(task, from)| Ran { task, from, to: time });
        self.current = Some((next, time));
        if let Some(ran) = ran {
            self.count(ran);
            if self.history.len() == Self::HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(ran);
        }
        ran
    }

    /// What it runs is not known any more.
    pub(super) fn forget(&mut self, time: u64) -> Option<Ran> {
        let ran = self.current.take().map(|(task, from)| Ran { task, from, to: time });
        if let Some(ran) = ran {
            self.count(ran);
        }
        ran
    }

    fn count(&mut self, ran: Ran) {
        let time = ran.to.saturating_sub(ran.from);
        match ran.task {
            Some(_) => self.figures.busy_ns = self.figures.busy_ns.saturating_add(time),
            None => self.figures.idle_ns = self.figures.idle_ns.saturating_add(time),
        }
    }

    /// What it ran between two points in time, as far as that is still known, by task.
    pub(super) fn ran_between(&self, from: u64, to: u64) -> Vec<(Option<u32>, u64)> {
        let mut found: Vec<(Option<u32>, u64)> = Vec::new();
        for ran in self.history.iter().rev().take_while(|ran| ran.to > from) {
            let time = ran.to.min(to).saturating_sub(ran.from.max(from));
            match found.iter_mut().find(|(task, _)| *task == ran.task) {
                Some((_, sum)) => *sum = sum.saturating_add(time),
                None if time > 0 => found.push((ran.task, time)),
                None => {}
            }
        }
        found.sort_by_key(|&(_, time)| std::cmp::Reverse(time));
        found
    }
}
