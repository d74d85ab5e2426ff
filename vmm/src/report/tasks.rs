//! The tasks of a trace: what each does with its time. Bounded: where tasks come and go by the hundred thousand, the ended
//! ones that ran least are only counted. Used by [`super::analysis`].

use std::collections::HashMap;

use vcpu_sched::events::ClassTag;

use super::model::{self, Distribution, Unlisted};
use super::spread::Spread;
use crate::trace::policy_name;

/// When there are twice as many, the least interesting ended tasks are dropped until so many are left.
const KEPT: usize = 1 << 14;

/// What a task is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nobody knows: nothing was heard of it yet, or a record is missing.
    Unknown,
    Running,
    Ready,
    Sleeping,
    Dead,
}

/// A wake-up that hasn't led to a run yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wake {
    pub(super) at: u64,
    pub(super) waker: u32,
    /// The CPU on which the waker ran.
    pub(super) cpu: u32,
}

/// One task, from its beginning to its end.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: u32,
    /// Told apart from others that had the same number.
    pub(super) serial: u32,
    pub(super) name: String,
    pub(super) class: ClassTag,
    pub(super) doing: Doing,
    pub(super) since: u64,
    pub(super) first: u64,
    pub(super) ended: Option<u64>,
    pub(super) wake: Option<Wake>,
    pub(super) last_cpu: Option<u32>,
    pub(super) run: u64,
    pub(super) wait: u64,
    pub(super) sleep: u64,
    pub(super) voluntary: u64,
    pub(super) involuntary: u64,
    pub(super) migrations: u64,
    pub(super) wakeups: u64,
    /// Made at its first wake-up.
    latency: Option<Box<Spread>>,
}

impl Task {
    fn new(id: u32, serial: u32, time: u64) -> Self {
        Self {
            id,
            serial,
            name: String::new(),
            class: ClassTag::default(),
            doing: Doing::Unknown,
            since: time,
            first: time,
            ended: None,
            wake: None,
            last_cpu: None,
            run: 0,
            wait: 0,
            sleep: 0,
            voluntary: 0,
            involuntary: 0,
            migrations: 0,
            wakeups: 0,
            latency: None,
        }
    }

    /// From now on it does something else. Returns for how long it did what it did.
    pub(super) fn turn(&mut self, to: Doing, time: u64) -> u64 {
        let lasted = time.saturating_sub(self.since);
        match self.doing {
            Doing::Running => self.run = self.run.saturating_add(lasted),
            Doing::Ready => self.wait = self.wait.saturating_add(lasted),
            Doing::Sleeping => self.sleep = self.sleep.saturating_add(lasted),
            Doing::Unknown | Doing::Dead => {}
        }
        self.doing = to;
        self.since = time;
        lasted
    }

    pub(super) fn woke(&mut self, latency: u64) {
        if self.latency.is_none() {
            self.latency = Spread::new().map(Box::new);
        }
        if let Some(spread) = &mut self.latency {
            spread.add(latency);
        }
    }

    /// The name, or a number where it has none.
    pub(super) fn label(&self) -> String {
        if self.name.is_empty() { format!("task-{}", self.id) } else { self.name.clone() }
    }

    fn model(self) -> model::Task {
        model::Task {
            id: self.id,
            name: self.label(),
            policy: policy_name(self.class.policy),
            prio: self.class.prio,
            run_ns: self.run,
            wait_ns: self.wait,
            sleep_ns: self.sleep,
            switches_voluntary: self.voluntary,
            switches_involuntary: self.involuntary,
            migrations: self.migrations,
            wakeups: self.wakeups,
            wakeup_latency: self.latency.map_or_else(Distribution::default, |spread| spread.figures()),
            first_ns: self.first,
            ended_ns: self.ended,
        }
    }
}

/// All tasks.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    tasks: Vec<Task>,
    /// The last task of each number.
    by_id: HashMap<u32, usize>,
    serials: u32,
    /// Not before there are so many: where that many are alive, there is little to fold.
    fold_at: usize,
    unlisted: Unlisted,
}

impl Tasks {
    /// The task that has this number now.
    pub(super) fn get(&mut self, id: u32, time: u64) -> &mut Task {
        let at = match self.by_id.get(&id) {
            Some(&at) => at,
            None => self.add(id, time),
        };
        &mut self.tasks[at]
    }

    /// A task begins. Its name may have been told before.
    pub(super) fn begin(&mut self, id: u32, time: u64) -> &mut Task {
        if self.by_id.get(&id).is_some_and(|&at| self.tasks[at].doing == Doing::Dead) {
            self.by_id.remove(&id);
        }
        self.get(id, time)
    }

    /// A name that is told of a dead task's number is its next user's.
    pub(super) fn name(&mut self, id: u32, name: String, time: u64) {
        self.begin(id, time).name = name;
    }

    /// The name of the task that has this number now.
    pub(super) fn label(&self, id: u32) -> String {
        self.by_id.get(&id).map_or_else(|| format!("task-{id}"), |&at| self.tasks[at].label())
    }

    pub(super) fn serial(&self, id: u32) -> Option<u32> {
        self.by_id.get(&id).map(|&at| self.tasks[at].serial)
    }

    fn add(&mut self, id: u32, time: u64) -> usize {
        if self.tasks.len() >= self.fold_at.max(2 * KEPT) {
            self.fold();
        }
        let at = self.tasks.len();
        self.tasks.push(Task::new(id, self.serials, time));
        self.serials += 1;
        self.by_id.insert(id, at);
        at
    }

    fn fold(&mut self) {
        let (mut dead, mut rest): (Vec<_>, Vec<_>) = self.tasks.drain(..).partition(|task| task.doing == Doing::Dead);
        dead.sort_by_key(|task| std::cmp::Reverse(task.run));
        for task in dead.drain(KEPT.saturating_sub(rest.len()).min(dead.len())..) {
            self.unlisted.tasks += 1;
            self.unlisted.run_ns = self.unlisted.run_ns.saturating_add(task.run);
        }
        rest.append(&mut dead);
        rest.sort_by_key(|task| task.serial);
        self.tasks = rest;
        self.fold_at = 2 * self.tasks.len();
        self.by_id = self.tasks.iter().enumerate().map(|(at, task)| (task.id, at)).collect();
    }

    /// The trace is over. Idle tasks are no tasks.
    pub(super) fn finish(mut self, end: u64) -> (Vec<(u32, model::Task)>, Option<Unlisted>) {
        self.tasks.retain(|task| task.class.policy != ClassTag::IDLE.policy && task.doing != Doing::Unknown);
        for task in &mut self.tasks {
            task.turn(task.doing, end);
        }
        self.tasks.sort_by_key(|task| (std::cmp::Reverse(task.run), task.serial));
        let unlisted = Some(self.unlisted).filter(|u| u.tasks > 0);
        (self.tasks.into_iter().map(|task| (task.serial, task.model())).collect(), unlisted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_used_again_is_another_task() {
        let mut tasks = Tasks::default();
        tasks.name(5, "old".to_owned(), 1);
        tasks.begin(5, 2).turn(Doing::Running, 2);
        tasks.get(5, 12).turn(Doing::Dead, 12);
        tasks.name(5, "new".to_owned(), 20);
        tasks.begin(5, 21).turn(Doing::Running, 21);
        let (tasks, _) = tasks.finish(24);
        let told: Vec<_> = tasks.iter().map(|(_, t)| (t.name.as_str(), t.run_ns)).collect();
        assert_eq!(told, [("old", 10), ("new", 3)]);
    }

    #[test]
    fn many_short_lives_are_folded_and_long_ones_stay() {
        let mut tasks = Tasks::default();
        for id in 0..100_000 {
            let run = if id == 7 { 1_000_000 } else { 10 };
            let at = u64::from(id) * 2_000_000;
            tasks.begin(id, at).turn(Doing::Running, at);
            tasks.get(id, at).turn(Doing::Dead, at + run);
        }
        assert!(tasks.tasks.len() <= 2 * KEPT);
        let (tasks, unlisted) = tasks.finish(0);
        let unlisted = unlisted.unwrap();
        assert_eq!((tasks[0].1.id, tasks.len() as u64 + unlisted.tasks), (7, 100_000));
        assert_eq!(tasks.iter().map(|(_, t)| t.run_ns).sum::<u64>() + unlisted.run_ns, 99_999 * 10 + 1_000_000);
    }
}
