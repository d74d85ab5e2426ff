//! Beginning and end of simulated tasks, and the records that are not about scheduling.
//!
//! Called by the machine's other parts. The invariant: a task is in the table from its creation to the moment when its stack
//! is left for the last time, and its figures are added to its group's exactly once.

use alloc::format;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

use super::figures::TaskFigures;
use super::machine::{Fault, Machine, Sink};
use super::model::{Affinity, MAX_TASKS};
use super::random::Stream;
use super::task::{Exec, Task, TaskRef};
use crate::cpumask::{CpuMask, MASK_BYTES};
use crate::entity::SchedEntity;
use crate::events::{Kind, Record};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::params::{Class, SchedParams};
use crate::policy::deadline::{self, Overcommitted};
use crate::task::state::{AtomicState, State};

/// Steps that a task may make on the average without time passing: more than a program can have without a loop.
const MOST_STEPS: u64 = 100_000;

impl<S: Sink> Machine<'_, S> {
    /// Makes a task of a group.
    pub(super) fn create(&mut self, me: CpuId, group: usize, parent: Option<TaskId>) -> TaskRef {
        let id = TaskId(self.tasks.len() as u32 + 1);
        let index = self.made[group];
        self.made[group] += 1;
        self.live += 1;
        let template = &self.workload.groups[group];
        let params = template.params[index as usize % template.params.len()];
        let mut chance = Stream::new(self.config.seed, (group as u64) << 32 | u64::from(index));
        let count = self.cpus.len() as u32;
        let allowed = match &template.affinity {
            Affinity::Any => self.online.clone(),
            Affinity::Mask(mask) => self.usable(mask.clone()),
            Affinity::Spread => CpuMask::one_shot(CpuId(index % count)),
            Affinity::Random(cpus) if *cpus >= count => self.online.clone(),
            Affinity::Random(cpus) => {
                let mut mask = CpuMask::empty();
                while mask.count() < *cpus {
                    mask.set(CpuId(chance.below(count.into()) as u32));
                }
                mask
            }
        };
        let (params, home) = match self.admit(params, &allowed, me) {
            Ok(admitted) => admitted,
            Err(Overcommitted) => {
                self.figures[group].refused += 1;
                (SchedParams::NORMAL, None)
            }
        };
        let allowed = home.map_or(allowed, CpuMask::one_shot);
        self.write_name(me, id, &format!("{}/{index}", template.name));
        if allowed != self.online {
            self.write_affinity(me, id, &allowed);
        }
        let task = TaskRef(Rc::new(Task {
            id,
            group,
            index,
            state: AtomicState::new(State::New),
            sched: SchedEntity::new(params),
            on_cpu: Cell::new(false),
            cpu: Cell::new(me),
            allowed: RefCell::new(allowed),
            woken_at: Cell::new(None),
            born: self.now,
            since: Cell::new(self.now),
            exec: RefCell::new(Exec::new(chance, parent, self.now)),
        }));
        task.sched.set_home(home);
        self.tasks.push(Some(task.clone()));
        task
    }

    /// Finds a CPU that can promise a deadline task what it asks for, and takes it from that CPU's budget. Other tasks need
    /// nothing.
    pub(super) fn admit(
        &mut self,
        params: SchedParams,
        allowed: &CpuMask,
        preferred: CpuId,
    ) -> Result<(SchedParams, Option<CpuId>), Overcommitted> {
        let Class::Deadline(promise) = params.class else { return Ok((params, None)) };
        let home = deadline::choose_cpu(&promise, allowed, preferred, |cpu| self.budgets[cpu.index()])?;
        self.budgets[home.index()].admit(&promise)?;
        Ok((params, Some(home)))
    }

    /// Gives back what a deadline task was promised.
    pub(super) fn release(&mut self, task: &TaskRef) {
        if let (Some(home), Class::Deadline(promise)) = (task.sched.home(), task.sched.params().class) {
            self.budgets[home.index()].release(&promise);
            task.sched.set_home(None);
        }
    }

    /// The part of a mask that the machine has; all of it if that is nothing.
    pub(super) fn usable(&self, mask: CpuMask) -> CpuMask {
        let usable = mask.and(&self.online);
        if usable.is_empty() { self.online.clone() } else { usable }
    }

    /// A living task.
    pub(super) fn task(&self, id: TaskId) -> Option<TaskRef> {
        self.tasks.get(id.0.checked_sub(1)? as usize)?.clone()
    }

    /// A task that has ended is forgotten.
    pub(super) fn reap(&mut self, task: &TaskRef) {
        if self.tasks[task.id.0 as usize - 1].take().is_none() {
            return;
        }
        self.live -= 1;
        self.release(task);
        self.keep_figures(task, Some(task.since.get()));
    }

    /// Adds a task's figures to its group's.
    pub(super) fn keep_figures(&mut self, task: &TaskRef, ended: Option<Nanos>) {
        let figures = TaskFigures::of(task, self.now, ended);
        self.figures[task.group].add(&figures);
        if self.config.per_task {
            self.ended.push(figures);
        }
    }

    /// Counts a step of a program, and stops those that would never end.
    pub(super) fn count_step(&mut self, task: &TaskRef) -> Result<(), Fault> {
        self.steps += 1;
        if self.steps > MOST_STEPS.saturating_mul(u64::from(self.live) + 1) {
            return Err(Fault::NoProgress { group: task.group, at: self.now });
        }
        if self.live > MAX_TASKS {
            return Err(Fault::TooManyTasks { at: self.now });
        }
        Ok(())
    }

    pub(super) fn write(&mut self, cpu: CpuId, record: &Record) {
        self.records += 1;
        self.sink.record(cpu, record);
    }

    pub(super) fn write_name(&mut self, cpu: CpuId, task: TaskId, name: &str) {
        let mut bytes = [0; 16];
        // Cut at a character's end, so that it stays UTF-8.
        let len = (0..=name.len().min(16)).rev().find(|&len| name.is_char_boundary(len)).unwrap_or(0);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        let whole = u128::from_le_bytes(bytes);
        let (a, b) = (whole as u64, (whole >> 64) as u64);
        let record = Record { tsc: self.now.0, task: task.0, kind: Kind::Name as u8, a, b, ..Record::default() };
        self.write(cpu, &record);
    }

    pub(super) fn write_affinity(&mut self, cpu: CpuId, task: TaskId, mask: &CpuMask) {
        const _: () = assert!(MASK_BYTES.is_multiple_of(8));
        let bytes = mask.to_le_bytes();
        let (words, _) = bytes.as_chunks::<8>();
        let used = self.cpus.len().div_ceil(64);
        for (i, word) in words.iter().take(used).enumerate() {
            let (tsc, kind) = (self.now.0, Kind::Affinity as u8);
            let b = i as u64 | (used as u64) << 32;
            let record = Record { tsc, task: task.0, kind, a: u64::from_le_bytes(*word), b, ..Record::default() };
            self.write(cpu, &record);
        }
    }

    pub(super) fn write_halt(&mut self, cpu: CpuId, flags: u8) {
        let queued = self.cpus[cpu.index()].queue.len() as u64;
        let task = Self::idle_id(cpu).0;
        let record = Record { tsc: self.now.0, task, kind: Kind::Halt as u8, flags, a: queued, ..Record::default() };
        self.write(cpu, &record);
    }
}
