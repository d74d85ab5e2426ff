//! Follows every task from place to place and holds each step against the invariants. Fed by [`super::Checker`] in the order
//! that [`super::order`] makes. A step that is wrong is reported once, and the record is believed from there on.

use alloc::collections::BTreeMap;
use alloc::format;

use super::cpu::{Current, Fleet};
use super::dead::DeadSet;
use super::invariant::{Findings, Invariant, Outcome};
use super::order::{is_idle, missing};
use super::task::{Place, Queued, Rank, TaskState};
use super::{Options, Stamped};
use crate::events::{ClassTag, Event, Kind, Record, Side};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::task::state::State;

/// The state of the whole machine, as the records tell it.
#[derive(Debug)]
pub(super) struct Rules {
    options: Options,
    tasks: BTreeMap<TaskId, TaskState>,
    dead: DeadSet,
    fleet: Fleet,
    findings: Findings,
    begin: Option<Nanos>,
    end: Nanos,
    run: u128,
    lost: u64,
    missing: u64,
    adopted: u64,
    unknown: u64,
    ring_totals: BTreeMap<CpuId, u64>,
}

/// Whether a record's word about a task can be held against what was known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It follows the one before.
    Follows,
    /// It is the first, or some are missing: the task's place was not known.
    Jumps,
    /// It was there before, or its task is dead: it changes nothing.
    Void,
}

impl Rules {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            tasks: BTreeMap::new(),
            dead: DeadSet::default(),
            fleet: Fleet::new(options),
            findings: Findings::new(options.kept),
            begin: None,
            end: Nanos::ZERO,
            run: 0,
            lost: 0,
            missing: 0,
            adopted: 0,
            unknown: 0,
            ring_totals: BTreeMap::new(),
        }
    }

    pub(super) fn ring_total(&mut self, cpu: CpuId, lost: u64) {
        self.ring_totals.insert(cpu, lost);
    }

    pub(super) fn live_tasks(&self) -> usize {
        self.tasks.len()
    }

    /// The next record.
    pub(super) fn judge(&mut self, record: &Stamped) {
        self.findings.note(record);
        self.begin = Some(self.begin.map_or(record.time, |begin| begin.min(record.time)));
        self.end = self.end.max(record.time);
        self.fleet.get(record.cpu);
        let task = TaskId(record.record.task);
        match Event::decode(&record.record) {
            Some(Event::Queued { new, target, class, kicked, .. }) => {
                self.queued(record, task, new, target, class);
                self.kick(target, kicked);
            }
            Some(Event::Migrate { from, to, kicked, .. }) => {
                self.migrate(record, task, from, to);
                self.kick(to, kicked);
            }
            Some(Event::Switch { prev_state, prev_class, next, .. }) => {
                let prev = Side { task, seq: record.record.seq, class: prev_class };
                self.switch(record, prev, prev_state, next);
            }
            Some(Event::Name(_)) => {}
            Some(Event::Plain(kind)) => self.plain(record, kind),
            None => self.unknown += 1,
        }
    }

    fn kick(&mut self, cpu: CpuId, kicked: bool) {
        if kicked {
            self.fleet.get(cpu).kicked = true;
        }
    }

    fn plain(&mut self, record: &Stamped, kind: Kind) {
        let (r, task) = (&record.record, TaskId(record.record.task));
        let cpu = self.fleet.get(record.cpu);
        match kind {
            Kind::Affinity if !self.dead.contains(task) => self.affinity(task, r, record.time),
            Kind::Params => self.params(task, ClassTag { policy: r.a as u8, prio: (r.a >> 8) as u8 }, record.time),
            Kind::Ipi if r.flags & crate::events::flag::RECEIVED == 0 => self.kick(CpuId(r.a as u32), true),
            Kind::Halt if r.flags == 0 && cpu.current == Current::Unknown => {
                self.fleet.set(record.cpu, Current::Idle(task), Rank::IDLE, record.time, &mut self.findings);
            }
            Kind::Online if r.flags == 0 => self.forget_cpu(record),
            Kind::Steal | Kind::VcpuSteal => {
                cpu.steal(Nanos(r.a));
                self.findings.stolen(record.cpu, Nanos(r.a));
            }
            Kind::VcpuPause => cpu.pause(record.time, r.flags != 0),
            Kind::Lost => {
                cpu.lost = cpu.lost.saturating_add(r.a);
                self.lost = self.lost.saturating_add(r.a);
                self.findings.check(Invariant::LostCounted, r.a > 0, (record.time, record.cpu), &[], || {
                    format!("CPU {} reports that it lost no record", record.cpu)
                });
                self.forget_cpu(record);
            }
            _ => {}
        }
    }

    fn forget_cpu(&mut self, record: &Stamped) {
        self.fleet.set(record.cpu, Current::Unknown, Rank::FAIR, record.time, &mut self.findings);
    }

    /// A task's affinity changes, maybe in a queue.
    fn affinity(&mut self, id: TaskId, r: &Record, time: Nanos) {
        let queued = match self.tasks.get(&id).map(|task| task.place) {
            Some(Place::Queued(cpu, _)) => Some(cpu),
            _ => None,
        };
        if queued.is_some() {
            self.leave(id, time);
        }
        let state = self.tasks.entry(id).or_insert_with(TaskState::new);
        state.affinity.word(time, r.a, r.b as u32, (r.b >> 32) as u32);
        if let Some(cpu) = queued {
            // Where it may go now it has not waited for yet.
            self.enqueue(id, cpu, None, time);
        }
    }

    /// A task's class changes, maybe in a queue.
    fn params(&mut self, id: TaskId, class: ClassTag, time: Nanos) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        match task.place {
            // As what it is now it has not waited yet.
            Place::Queued(cpu, _) if Rank::of(class) != task.rank => {
                self.leave(id, time);
                self.enqueue(id, cpu, Some(class), time);
            }
            Place::OnCpu(cpu) if self.fleet.get(cpu).current.task() == Some(id) => {
                self.fleet.get(cpu).rank = Rank::of(class);
                self.fleet.compare(cpu, time, &mut self.findings);
            }
            _ => {}
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            task.rank = Rank::of(class);
        }
    }

    fn queued(&mut self, record: &Stamped, id: TaskId, new: bool, target: CpuId, class: ClassTag) {
        let at = (record.time, record.cpu);
        let step = self.step(record, id, record.record.seq, new);
        let Some(task) = self.tasks.get(&id).filter(|_| step != Step::Void) else { return };
        let place = task.place;
        if step == Step::Follows && place != Place::Unknown {
            let findings = &mut self.findings;
            findings.checked(Invariant::OnePlace);
            if new {
                findings.violated(Invariant::OnePlace, at, &[id], || format!("task {id} is new, but it is {place}"));
            } else {
                let once = !matches!(place, Place::Queued(..));
                findings
                    .check(Invariant::WakeOnce, once, at, &[id], || format!("task {id} is woken, but it is {place}"));
                let left = !matches!(place, Place::OnCpu(cpu) if cpu != target);
                findings.check(Invariant::LeftBeforeEnqueued, left, at, &[id], || {
                    format!("task {id} is queued on CPU {target}, but it is {place}")
                });
            }
        }
        self.leave(id, record.time);
        match place {
            // It has overtaken the switch away.
            Place::OnCpu(cpu) if cpu == target && !new => self.enter(id, place, Some(class), record.time),
            // Maybe it has, too.
            Place::Unknown if !new => {}
            _ => self.enqueue(id, target, Some(class), record.time),
        }
    }

    fn migrate(&mut self, record: &Stamped, id: TaskId, from: CpuId, to: CpuId) {
        let at = (record.time, record.cpu);
        let step = self.step(record, id, record.record.seq, false);
        let Some(task) = self.tasks.get(&id).filter(|_| step != Step::Void) else { return };
        let place = task.place;
        if step == Step::Follows && place != Place::Unknown {
            let left = !matches!(place, Place::OnCpu(_));
            self.findings.check(Invariant::LeftBeforeEnqueued, left, at, &[id], || {
                format!("task {id} moves to the queue of CPU {to}, but it is {place}")
            });
            let there = !left || matches!(place, Place::Queued(cpu, _) if cpu == from);
            self.findings.check(Invariant::OnePlace, there, at, &[id], || {
                format!("task {id} moves from the queue of CPU {from}, but it is {place}")
            });
        }
        self.waited(id, record.time);
        self.leave(id, record.time);
        self.enqueue(id, to, None, record.time);
    }

    fn switch(&mut self, record: &Stamped, prev: Side, prev_state: u8, next: Side) {
        let (time, id) = (record.time, record.cpu);
        let cpu = self.fleet.get(id);
        let (there, since) = (cpu.current, cpu.since);
        if let Some(there) = there.task() {
            self.findings.check(
                Invariant::SwitchesAlternate,
                there == prev.task,
                (time, id),
                &[prev.task, there],
                || format!("task {} leaves CPU {id}, but task {there} is there", prev.task),
            );
            self.findings.check(Invariant::RuntimeSum, time >= since, (time, id), &[prev.task], || {
                format!("task {} leaves CPU {id} before it came, at {} ns", prev.task, since.0)
            });
        }
        if let Current::Task(_) = there {
            self.run += u128::from((time - since).0);
        }
        if !is_idle(next.class) {
            self.waited(next.task, time);
        }
        let current = if is_idle(next.class) { Current::Idle(next.task) } else { Current::Task(next.task) };
        let rank = Rank::of(next.class);
        self.fleet.set(id, current, rank, time, &mut self.findings);
        if !is_idle(prev.class) {
            self.leaves_cpu(record, prev, prev_state, since);
        }
        if !is_idle(next.class) {
            self.comes_on_cpu(record, next, next.task == prev.task);
        }
        self.fleet.compare(id, time, &mut self.findings);
    }

    fn leaves_cpu(&mut self, record: &Stamped, prev: Side, state: u8, since: Nanos) {
        let (id, at, cpu) = (prev.task, (record.time, record.cpu), record.cpu);
        let step = self.step(record, id, prev.seq, false);
        let Some(task) = self.tasks.get(&id).filter(|_| step != Step::Void) else { return };
        let place = task.place;
        let (ready, blocked, dead) = (State::Ready as u8, State::Blocked as u8, State::Dead as u8);
        let possible = [ready, blocked, dead].contains(&state);
        if step == Step::Follows && place != Place::Unknown {
            let holds = possible && matches!(place, Place::OnCpu(on) if on == cpu);
            self.findings.check(Invariant::OnePlace, holds, at, &[id], || {
                format!("task {id} leaves CPU {cpu} with state {state}, but it is {place}")
            });
        }
        if task.affinity.allows(cpu) == Some(false) {
            let stayed = record.time - since.max(task.affinity.since);
            self.findings.check(Invariant::Affinity, stayed <= self.options.forbidden, at, &[id], || {
                format!("task {id} stayed on CPU {cpu} for {} ns after its affinity forbade that", stayed.0)
            });
        }
        self.leave(id, record.time);
        if state == dead {
            self.tasks.remove(&id);
            self.dead.insert(id);
        } else if state == blocked {
            self.enter(id, Place::Waiting, Some(prev.class), record.time);
        } else {
            self.enqueue(id, cpu, Some(prev.class), record.time);
        }
    }

    fn comes_on_cpu(&mut self, record: &Stamped, next: Side, again: bool) {
        let (id, at, cpu) = (next.task, (record.time, record.cpu), record.cpu);
        let step = if again { Step::Follows } else { self.step(record, id, next.seq, false) };
        let Some(task) = self.tasks.get(&id).filter(|_| step != Step::Void) else { return };
        let place = task.place;
        if step == Step::Follows && place != Place::Unknown {
            let alone = !matches!(place, Place::OnCpu(_));
            self.findings.check(Invariant::OneStack, alone, at, &[id], || {
                format!("CPU {cpu} runs task {id}, but it is {place}")
            });
            let queued = !alone || matches!(place, Place::Queued(queue, _) if queue == cpu);
            self.findings.check(Invariant::PickedAfterQueued, queued, at, &[id], || {
                format!("CPU {cpu} picks task {id}, but it is {place}")
            });
        }
        if let Some(allowed) = task.affinity.allows(cpu) {
            let holds = allowed || task.affinity.since + self.options.window >= record.time;
            self.findings.check(Invariant::Affinity, holds, at, &[id], || {
                format!("task {id} runs on CPU {cpu}, which its affinity forbids since {} ns", task.affinity.since.0)
            });
        }
        self.leave(id, record.time);
        self.enter(id, Place::OnCpu(cpu), Some(next.class), record.time);
    }

    /// Judges the count of a place record, and whether its task can be there at all.
    fn step(&mut self, record: &Stamped, id: TaskId, seq: u16, begins: bool) -> Step {
        let at = (record.time, record.cpu);
        self.findings.checked(Invariant::NoLostTask);
        let dead = !begins && self.dead.contains(id);
        self.findings
            .check(Invariant::DeadStaysDead, !dead, at, &[id], || format!("task {id} is heard of, but it is dead"));
        if dead {
            return Step::Void;
        }
        if begins {
            self.dead.remove(id);
        }
        let task = self.tasks.entry(id).or_insert_with(TaskState::new);
        let Some(last) = task.seq else {
            task.seq = Some(seq);
            if !begins {
                self.adopted += 1;
                if self.options.complete {
                    self.findings.violated(Invariant::NoLostTask, at, &[id], || format!("task {id} has no beginning"));
                }
            }
            return Step::Jumps;
        };
        if begins {
            task.seq = Some(seq);
            return Step::Follows;
        }
        match missing(last, seq) {
            Some(0) => {
                task.seq = Some(seq);
                Step::Follows
            }
            Some(gap) => {
                task.seq = Some(seq);
                self.missing += u64::from(gap);
                self.findings.gap(at, id, || format!("{gap} records of task {id} are missing before its record {seq}"));
                self.leave(id, record.time);
                self.enter(id, Place::Unknown, None, record.time);
                Step::Jumps
            }
            None => {
                self.findings.violated(Invariant::NoLostTask, at, &[id], || {
                    format!("record {seq} of task {id} comes again, or after its record {last}")
                });
                Step::Void
            }
        }
    }

    /// The task's wait in a queue ends: has a CPU been idle, or run something lower, all the while?
    fn waited(&mut self, id: TaskId, time: Nanos) {
        let Some(task) = self.tasks.get(&id) else { return };
        let Place::Queued(queue, Queued { since, .. }) = task.place else { return };
        let Options { elsewhere, throttled, .. } = self.options;
        let deadline = task.rank == Rank::DEADLINE;
        if task.affinity.known().is_some() {
            let grace = if deadline { throttled } else { elsewhere };
            let mut idle = self.fleet.idle_beside(since, time, grace);
            let found = idle.find(|&(cpu, _)| cpu != queue && task.affinity.allows(cpu) == Some(true));
            drop(idle);
            self.findings.checked(Invariant::NoIdleBesideWork);
            if let Some((idle, excess)) = found {
                let waited = (time - since).0;
                self.findings.late(Invariant::NoIdleBesideWork, (time, idle), excess, &[id], || {
                    format!(
                        "task {id} waited for {waited} ns in the queue of CPU {queue} beside CPU {idle}, which is idle"
                    )
                });
            }
        }
        if deadline {
            let cpu = self.fleet.get(queue);
            let beside = cpu.beside(since, time);
            let lower = matches!(cpu.current, Current::Task(_)) && cpu.rank > task.rank;
            self.findings.checked(Invariant::PriorityOrder);
            if lower && beside > throttled {
                self.findings.late(Invariant::PriorityOrder, (time, queue), beside - throttled, &[id], || {
                    let waited = beside.0;
                    format!("deadline task {id} waited for {waited} ns while CPU {queue} ran a lower class")
                });
            }
        }
    }

    /// Takes a task out of the place where it is.
    fn leave(&mut self, id: TaskId, time: Nanos) {
        if let Some(task) = self.tasks.get_mut(&id)
            && let Place::Queued(cpu, queued) = core::mem::replace(&mut task.place, Place::Unknown)
        {
            self.fleet.dequeue(cpu, id, task.rank, queued.free, time, &mut self.findings);
            self.fleet.compare(cpu, time, &mut self.findings);
        }
    }

    fn enqueue(&mut self, id: TaskId, cpu: CpuId, class: Option<ClassTag>, time: Nanos) {
        let Some(task) = self.tasks.get(&id) else { return };
        let free = task.affinity.allows_all(&self.fleet.seen);
        self.enter(id, Place::Queued(cpu, Queued { since: time, free }), class, time);
    }

    /// Puts a task that is nowhere into a place.
    fn enter(&mut self, id: TaskId, place: Place, class: Option<ClassTag>, time: Nanos) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.place = place;
        if let Some(class) = class {
            task.rank = Rank::of(class);
        }
        if let Place::Queued(cpu, queued) = place {
            // Where it may not run, nobody has to give way to it.
            let forbidden = task.affinity.allows(cpu) == Some(false) && task.rank != Rank::DEADLINE;
            let rank = if forbidden { Rank::FAIR } else { task.rank };
            self.fleet.enqueue(cpu, id, rank, queued.free, time);
            self.fleet.compare(cpu, time, &mut self.findings);
        }
    }

    /// The trace is over: what is still so counts until its end.
    pub(super) fn finish(mut self) -> Outcome {
        let end = self.end;
        let queued: alloc::vec::Vec<TaskId> =
            self.tasks.iter().filter(|(_, t)| matches!(t.place, Place::Queued(..))).map(|(&id, _)| id).collect();
        for id in queued {
            self.waited(id, end);
        }
        for (_, cpu) in self.fleet.iter() {
            if let Current::Task(_) = cpu.current {
                self.run += u128::from((end - cpu.since).0);
            }
        }
        self.fleet.finish(end, &mut self.findings);
        self.findings.settle_suspicions();
        let elapsed = u128::from((end - self.begin.unwrap_or(end)).0);
        let cpus = self.fleet.len();
        let (run, at) = (self.run, (end, CpuId(0)));
        self.findings.check(Invariant::RuntimeSum, run <= elapsed * cpus as u128, at, &[], || {
            format!("the tasks ran for {run} ns together, but {cpus} CPUs had {elapsed} ns each")
        });
        for (&cpu, &total) in &self.ring_totals {
            let told = self.fleet.get(cpu).lost;
            self.findings.check(Invariant::LostCounted, told == total, (end, cpu), &[], || {
                format!("the ring of CPU {cpu} counts {total} lost records, its records {told}")
            });
        }
        self.findings.settle_gaps(self.missing.saturating_sub(self.lost.saturating_mul(2)));
        let (tallies, first) = self.findings.into_parts();
        let Self { lost, missing, adopted, unknown, .. } = self;
        Outcome { tallies, first, lost, missing, adopted, unknown }
    }
}
