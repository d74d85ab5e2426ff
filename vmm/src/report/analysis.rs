//! Adds up what tasks and CPUs did. Fed record by record in the order that the checker makes; memory grows with what is alive.

use std::collections::BTreeMap;

use vcpu_sched::checker::Stamped;
use vcpu_sched::events::{ClassTag, Event, Kind, Side, flag};
use vcpu_sched::task::state::State;

use super::cpus::{Cpu, Ran};
use super::model::{self, Delay, Distribution, Instead, Migration};
use super::spread::Spread;
use super::tasks::{Doing, Tasks, Wake};
use super::timeline::{Slice, Timeline};
use crate::vcpu::counts;

/// So many of the longest delays are told.
const WORST: usize = 10;
/// So many tasks that ran instead are told with each.
const INSTEAD: usize = 5;

/// A trace as far as it was read.
#[derive(Debug)]
pub(super) struct Analysis {
    tasks: Tasks,
    cpus: BTreeMap<u32, Cpu>,
    latency: Option<Spread>,
    delay: Option<Spread>,
    migrations: BTreeMap<(u32, u32), u64>,
    worst: Vec<Delay>,
    timeline: Option<Timeline>,
    /// The slice that each CPU is in, for the time line.
    open: BTreeMap<u32, Slice>,
    begin: Option<u64>,
    end: u64,
}

/// What there is to report.
#[derive(Debug)]
pub(super) struct Analysed {
    /// With the serial numbers that the time line uses.
    pub(super) tasks: Vec<(u32, model::Task)>,
    pub(super) unlisted: Option<model::Unlisted>,
    pub(super) cpus: Vec<model::Cpu>,
    pub(super) latency: Distribution,
    pub(super) delay: Distribution,
    pub(super) migrations: Vec<Migration>,
    pub(super) worst: Vec<Delay>,
    pub(super) timeline: Option<Timeline>,
    pub(super) begin: u64,
    pub(super) end: u64,
}

impl Analysis {
    /// `timeline`: keep what a picture needs.
    pub(super) fn new(timeline: Option<Timeline>) -> Self {
        Self {
            tasks: Tasks::default(),
            cpus: BTreeMap::new(),
            latency: Spread::new(),
            delay: Spread::new(),
            migrations: BTreeMap::new(),
            worst: Vec::new(),
            timeline,
            open: BTreeMap::new(),
            begin: None,
            end: 0,
        }
    }

    /// The next record.
    pub(super) fn take(&mut self, record: &Stamped) {
        let (time, r) = (record.time.0, &record.record);
        self.begin = Some(self.begin.map_or(time, |begin| begin.min(time)));
        self.end = self.end.max(time);
        let cpu = record.cpu.0;
        self.cpu(cpu);
        match Event::decode(r) {
            Some(Event::Queued { new, waker, class, kicked, .. }) => {
                self.cpu(cpu).figures.ipis_sent += u64::from(kicked);
                let task = if new { self.tasks.begin(r.task, time) } else { self.tasks.get(r.task, time) };
                task.class = class;
                task.wakeups += u64::from(!new);
                task.wake = (!new).then_some(Wake { at: time, waker: waker.0, cpu });
                // One that is still on its CPU is about to leave it.
                if task.doing != Doing::Running {
                    task.turn(Doing::Ready, time);
                }
            }
            Some(Event::Migrate { kicked, .. }) => {
                self.cpu(cpu).figures.ipis_sent += u64::from(kicked);
                let task = self.tasks.get(r.task, time);
                if task.doing != Doing::Ready {
                    task.turn(Doing::Ready, time);
                }
            }
            Some(Event::Switch { prev_state, preempted, prev_class, next, .. }) => {
                if prev_class.policy != ClassTag::IDLE.policy {
                    self.leaves(r.task, prev_state, preempted, prev_class, time);
                }
                self.comes(cpu, next, prev_state, preempted, time);
            }
            Some(Event::Name(name)) => {
                let len = name.iter().position(|&b| b == 0).unwrap_or(name.len());
                self.tasks.name(r.task, String::from_utf8_lossy(&name[..len]).into_owned(), time);
            }
            Some(Event::Plain(kind)) => self.plain(cpu, kind, record),
            None => {}
        }
    }

    fn cpu(&mut self, cpu: u32) -> &mut Cpu {
        let state = self.cpus.entry(cpu).or_default();
        state.figures.cpu = cpu;
        state
    }

    fn plain(&mut self, cpu: u32, kind: Kind, record: &Stamped) {
        let (r, time) = (&record.record, record.time.0);
        let state = self.cpu(cpu);
        match kind {
            Kind::Tick => state.figures.ticks += 1,
            Kind::Ipi if r.flags & flag::RECEIVED != 0 => state.figures.ipis_received += 1,
            Kind::Ipi => state.figures.ipis_sent += 1,
            Kind::Steal | Kind::VcpuSteal => state.figures.steal_ns = state.figures.steal_ns.saturating_add(r.a),
            Kind::VcpuExit => *state.figures.exits.entry(counts::Kind::name_of(r.a)).or_default() += 1,
            Kind::Halt if state.current.is_none() => {
                state.switch(None, time);
            }
            Kind::Lost => {
                state.figures.lost = state.figures.lost.saturating_add(r.a);
                if let Some(ran) = state.forget(time) {
                    self.close(cpu, ran, 0, false);
                }
            }
            _ => {}
        }
    }

    fn leaves(&mut self, id: u32, state: u8, preempted: bool, class: ClassTag, time: u64) {
        let task = self.tasks.get(id, time);
        task.class = class;
        let dead = state == State::Dead as u8;
        task.voluntary += u64::from(!preempted && !dead);
        task.involuntary += u64::from(preempted && !dead);
        let doing = match state {
            _ if dead => Doing::Dead,
            _ if state == State::Blocked as u8 => Doing::Sleeping,
            _ => Doing::Ready,
        };
        task.turn(doing, time);
        if dead {
            task.ended = Some(time);
        }
    }

    fn comes(&mut self, cpu: u32, next: Side, prev_state: u8, preempted: bool, time: u64) {
        let idle = next.class.policy == ClassTag::IDLE.policy;
        let state = self.cpu(cpu);
        state.figures.switches += 1;
        if let Some(ran) = state.switch((!idle).then_some(next.task.0), time) {
            self.close(cpu, ran, prev_state, preempted);
        }
        let task = self.tasks.get(next.task.0, time);
        task.class = next.class;
        if idle {
            return;
        }
        let known = task.doing == Doing::Ready;
        let waited = task.turn(Doing::Running, time);
        let from = task.last_cpu.replace(cpu).filter(|&from| from != cpu);
        task.migrations += u64::from(from.is_some());
        let wake = task.wake.take();
        let serial = task.serial;
        let latency = wake.map(|wake| time.saturating_sub(wake.at));
        if let Some(latency) = latency {
            task.woke(latency);
        }
        if let (Some(spread), Some(latency)) = (&mut self.latency, latency) {
            spread.add(latency);
        }
        if let Some(from) = from {
            *self.migrations.entry((from, cpu)).or_default() += 1;
        }
        if known {
            if let Some(spread) = &mut self.delay {
                spread.add(waited);
            }
            self.rank(next.task.0, cpu, time, waited, wake);
        }
        if self.timeline.is_some() {
            let waker = wake.and_then(|wake| Some((self.tasks.serial(wake.waker)?, wake.cpu)));
            let wait = if known { waited } else { 0 };
            self.open.insert(cpu, Slice::begin(serial, time, wait, waker, latency.unwrap_or(0)));
        }
    }

    /// A CPU has left what it ran.
    fn close(&mut self, cpu: u32, ran: Ran, state: u8, preempted: bool) {
        if let (Some(timeline), Some(slice)) = (&mut self.timeline, self.open.remove(&cpu)) {
            timeline.add(cpu, slice.end(ran.to, state, preempted));
        }
    }

    /// Keeps the delay if it is among the worst.
    fn rank(&mut self, task: u32, cpu: u32, time: u64, delay_ns: u64, wake: Option<Wake>) {
        let at = self.worst.partition_point(|worse| worse.delay_ns >= delay_ns);
        if at >= WORST || delay_ns == 0 {
            return;
        }
        let ready_ns = time.saturating_sub(delay_ns);
        let ran = self.cpus.get(&cpu).map(|state| state.ran_between(ready_ns, time)).unwrap_or_default();
        let instead = ran.into_iter().filter(|(other, _)| *other != Some(task)).take(INSTEAD).map(|(task, ran_ns)| {
            let name = task.map_or_else(|| "idle".to_owned(), |id| self.tasks.label(id));
            Instead { task, name, ran_ns }
        });
        let instead = instead.collect();
        let (name, woken_by) = (self.tasks.label(task), wake.map(|wake| wake.waker));
        self.worst.insert(at, Delay { task, name, cpu, ready_ns, delay_ns, woken_by, instead });
        self.worst.truncate(WORST);
    }

    /// The trace is over.
    pub(super) fn finish(mut self) -> Analysed {
        let end = self.end;
        let cpus: Vec<u32> = self.cpus.keys().copied().collect();
        for cpu in cpus {
            if let Some(ran) = self.cpu(cpu).forget(end) {
                self.close(cpu, ran, State::Running as u8, false);
            }
        }
        let (tasks, unlisted) = self.tasks.finish(end);
        Analysed {
            tasks,
            unlisted,
            cpus: self.cpus.into_values().map(|cpu| cpu.figures).collect(),
            latency: self.latency.map(|s| s.buckets()).unwrap_or_default(),
            delay: self.delay.map(|s| s.buckets()).unwrap_or_default(),
            migrations: self.migrations.into_iter().map(|((from, to), count)| Migration { from, to, count }).collect(),
            worst: self.worst,
            timeline: self.timeline,
            begin: self.begin.unwrap_or(end),
            end,
        }
    }
}
