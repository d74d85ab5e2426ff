//! A machine that schedules at random and makes no mistake: where the traces of the tests come from.

use std::vec::Vec;

use crate::checker::Stamped;
use crate::events::{ClassTag, Kind, MigrateReason, Record, Side, flag};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::task::state::State;

/// Ids of the idle tasks; others begin above.
const IDLE_IDS: u32 = 1;
const FIRST_ID: u32 = 100;

/// A small generator of random numbers (SplitMix64), so that a test is repeated by its seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % limit
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize])
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Queued(usize),
    On(usize),
    Waiting,
    Dead,
}

struct Task {
    seq: u16,
    class: ClassTag,
    allowed: u64,
    place: Place,
}

pub(super) struct World {
    random: Random,
    time: u64,
    /// Who runs on each CPU.
    cpus: Vec<Option<usize>>,
    tasks: Vec<Task>,
    trace: Vec<Stamped>,
}

/// A trace of `steps` random events.
pub(super) fn trace(seed: u64, steps: usize) -> Vec<Stamped> {
    let mut random = Random(seed);
    let cpus = 1 + random.below(5) as usize;
    let mut world = World { random, time: 0, cpus: std::vec![None; cpus], tasks: Vec::new(), trace: Vec::new() };
    for cpu in 0..cpus {
        let halt = Record { tsc: 0, task: IDLE_IDS + cpu as u32, kind: Kind::Halt as u8, ..Record::default() };
        world.write(cpu, halt);
    }
    for _ in 0..steps {
        world.step();
        world.settle();
    }
    world.trace
}

impl World {
    fn write(&mut self, cpu: usize, record: Record) {
        let record = Record { tsc: self.time, ..record };
        self.trace.push(Stamped { cpu: CpuId(cpu as u32), time: Nanos(self.time), record });
        self.time += 1;
    }

    fn side(&mut self, task: Option<usize>, cpu: usize) -> Side {
        match task {
            Some(i) => {
                let task = &mut self.tasks[i];
                task.seq = task.seq.wrapping_add(1);
                Side { task: TaskId(FIRST_ID + i as u32), seq: task.seq, class: task.class }
            }
            None => Side { task: TaskId(IDLE_IDS + cpu as u32), seq: 0, class: ClassTag::IDLE },
        }
    }

    fn allowed(&self, task: usize, cpu: usize) -> bool {
        self.tasks[task].allowed >> cpu & 1 != 0
    }

    fn all(&self, wanted: impl Fn(&Task) -> bool) -> Vec<usize> {
        (0..self.tasks.len()).filter(|&i| wanted(&self.tasks[i])).collect()
    }

    fn some_allowed_cpu(&mut self, task: usize) -> usize {
        let cpus: Vec<usize> = (0..self.cpus.len()).filter(|&cpu| self.allowed(task, cpu)).collect();
        self.random.choose(&cpus).expect("no task without a CPU")
    }

    fn step(&mut self) {
        self.time += 1 + self.random.below(2_000_000);
        let by = self.random.below(self.cpus.len() as u64) as usize;
        match self.random.below(10) {
            0 | 1 if self.all(|t| t.place != Place::Dead).len() < 12 => self.create(by),
            2 | 3 => {
                let waiting = self.all(|t| t.place == Place::Waiting);
                if let Some(task) = self.random.choose(&waiting) {
                    let target = self.some_allowed_cpu(task);
                    self.queue(Kind::Wake, by, task, target);
                }
            }
            4 => {
                let queued = self.all(|t| matches!(t.place, Place::Queued(_)));
                if let Some(task) = self.random.choose(&queued) {
                    let to = self.some_allowed_cpu(task);
                    self.migrate(by, task, to);
                }
            }
            5 => {
                let running: Vec<usize> = self.cpus.iter().flatten().copied().collect();
                if let Some(task) = self.random.choose(&running) {
                    self.restrict(by, task);
                }
            }
            6 if self.cpus[by].is_some() => {
                // A wake-up overtakes the switch away.
                let task = self.cpus[by].expect("looked at");
                if self.allowed(task, by) {
                    let waker = self.random.below(self.cpus.len() as u64) as usize;
                    self.queue(Kind::Wake, waker, task, by);
                    self.switch(by, State::Ready);
                }
            }
            7 | 8 if self.cpus[by].is_some() => self.switch(by, State::Ready),
            9 if self.cpus[by].is_some() && self.random.below(3) == 0 => self.switch(by, State::Dead),
            _ if self.cpus[by].is_some() => self.switch(by, State::Blocked),
            _ => {}
        }
    }

    fn create(&mut self, by: usize) {
        let full = (1_u64 << self.cpus.len()) - 1;
        let some = 1 + self.random.below(full);
        let allowed = if self.random.below(3) == 0 { some } else { full };
        let rt = 1 + self.random.below(99) as u8;
        let class = match self.random.below(6) {
            0 => ClassTag { prio: 99 - rt, policy: 1 },
            1 => ClassTag { prio: 99 - rt, policy: 2 },
            2 => ClassTag { prio: 0, policy: 255 },
            _ => ClassTag { prio: 120, policy: 0 },
        };
        self.tasks.push(Task { seq: 0, class, allowed, place: Place::Waiting });
        let task = self.tasks.len() - 1;
        self.tell_affinity(by, task);
        let target = self.some_allowed_cpu(task);
        self.queue(Kind::New, by, task, target);
    }

    fn tell_affinity(&mut self, by: usize, task: usize) {
        let (kind, a) = (Kind::Affinity as u8, self.tasks[task].allowed);
        self.write(by, Record { task: FIRST_ID + task as u32, kind, a, b: 1 << 32, ..Record::default() });
    }

    fn queue(&mut self, kind: Kind, by: usize, task: usize, target: usize) {
        let side = self.side(Some(task), by);
        let kicked = if by != target && self.random.below(2) == 0 { flag::KICKED } else { 0 };
        let waker = TaskId(self.cpus[by].map_or(IDLE_IDS + by as u32, |i| FIRST_ID + i as u32));
        let target_id = CpuId(target as u32);
        self.write(by, Record::queued(kind, 0, side.task, side.seq, kicked, waker, target_id, side.class, 1));
        if !matches!(self.tasks[task].place, Place::On(_)) {
            self.tasks[task].place = Place::Queued(target);
        }
    }

    fn migrate(&mut self, by: usize, task: usize, to: usize) {
        let Place::Queued(from) = self.tasks[task].place else { return };
        let side = self.side(Some(task), by);
        let (from, target, why) = (CpuId(from as u32), CpuId(to as u32), MigrateReason::Balance);
        self.write(by, Record::migrate(0, side.task, side.seq, from, target, why, 1, false));
        self.tasks[task].place = Place::Queued(to);
    }

    /// A running task may not stay where it is.
    fn restrict(&mut self, by: usize, task: usize) {
        let Place::On(cpu) = self.tasks[task].place else { return };
        let rest = self.tasks[task].allowed & !(1 << cpu);
        if rest == 0 {
            return;
        }
        self.tasks[task].allowed = rest;
        self.tell_affinity(by, task);
        self.switch(cpu, State::Ready);
        let to = self.some_allowed_cpu(task);
        self.migrate(cpu, task, to);
    }

    /// The best task that a CPU may run of those in its queue.
    fn best(&self, cpu: usize, not: Option<usize>) -> Option<usize> {
        let queued = self.all(|t| t.place == Place::Queued(cpu));
        let mut fit: Vec<usize> = queued.into_iter().filter(|&t| self.allowed(t, cpu) && Some(t) != not).collect();
        fit.sort_by_key(|&t| self.rank(t));
        fit.first().copied()
    }

    fn rank(&self, task: usize) -> u32 {
        let class = self.tasks[task].class;
        if class.policy == 255 { 0 } else { 1 + u32::from(class.prio) }
    }

    fn switch(&mut self, cpu: usize, state: State) {
        let prev = self.cpus[cpu];
        // A task that gives way may be the best there is: then nothing is switched.
        let mut next = self.best(cpu, None);
        if let (Some(p), State::Ready) = (prev, state)
            && self.allowed(p, cpu)
            && next.is_none_or(|n| self.rank(n) > self.rank(p))
        {
            next = Some(p);
        }
        if prev == next {
            return;
        }
        let (leaves, comes) = (self.side(prev, cpu), self.side(next, cpu));
        let state = if prev.is_none() { State::Ready } else { state };
        self.write(cpu, Record::switch(0, leaves, comes, state as u8, 0));
        if let Some(prev) = prev {
            self.tasks[prev].place = match state {
                State::Ready => Place::Queued(cpu),
                State::Dead => Place::Dead,
                _ => Place::Waiting,
            };
        }
        if let Some(next) = next {
            self.tasks[next].place = Place::On(cpu);
        }
        self.cpus[cpu] = next;
    }

    /// What a good scheduler does at once: higher classes run, and no CPU is idle beside work.
    fn settle(&mut self) {
        loop {
            let before = self.trace.len();
            for cpu in 0..self.cpus.len() {
                let better = self.best(cpu, None);
                let preempts = match (self.cpus[cpu], better) {
                    (Some(current), Some(better)) => self.rank(better) < self.rank(current).min(101),
                    (None, Some(_)) => true,
                    (_, None) => false,
                };
                if preempts {
                    self.switch(cpu, State::Ready);
                } else if self.cpus[cpu].is_none() {
                    let queued = self.all(|t| matches!(t.place, Place::Queued(_)));
                    if let Some(task) = queued.into_iter().find(|&t| self.allowed(t, cpu)) {
                        self.migrate(cpu, task, cpu);
                        self.switch(cpu, State::Ready);
                    }
                }
            }
            if self.trace.len() == before {
                return;
            }
        }
    }
}
