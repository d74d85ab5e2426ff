//! What tasks do with the CPU: the interpreter of programs.
//!
//! Called by the machine when the current task of a CPU has done the work of its stage. Waiting follows the kernel's
//! protocol: announce to block, look, leave; a wake-up only makes the task look again. The invariant: a stage ends with the
//! task's next stage set, whether the task stays on the CPU or not.

use super::channel::Channel;
use super::code::Instr;
use super::machine::{Fault, Machine, Sink};
use super::model::{ChannelRef, Member};
use super::task::{Exec, Stage, TaskRef};
use crate::events::{Kind, Record, WaitReason};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::task::state::Event;

/// What a look at what a task waits for has shown.
enum Seen {
    /// It goes on.
    Go,
    /// It waits.
    Wait(WaitReason, u64),
}

impl Exec {
    fn next(&mut self) {
        self.pc += 1;
        self.stage = Stage::Fetch;
    }
}

impl<S: Sink> Machine<'_, S> {
    /// The current task has done the work of its stage: what comes then.
    pub(super) fn step(&mut self, me: CpuId, task: &TaskRef) -> Result<(), Fault> {
        self.count_step(task)?;
        let code = self.code[task.group].clone();
        let mut exec = task.exec.borrow_mut();
        let instr = &code[exec.pc];
        if exec.stage == Stage::Fetch {
            exec.left = match instr {
                Instr::Run(span) => span.draw(&mut exec.chance),
                Instr::Enter(_) | Instr::Leave(_) | Instr::Again => Nanos::ZERO,
                _ => self.config.costs.call,
            };
            exec.stage = Stage::Work;
            return Ok(());
        }
        match instr {
            Instr::Run(_) => exec.next(),
            Instr::Enter(times) => {
                exec.loops.push(*times);
                exec.next();
            }
            Instr::Leave(start) => {
                let again = exec.loops.pop().is_some_and(|left| {
                    if left > 1 {
                        exec.loops.push(left - 1);
                    }
                    left > 1
                });
                exec.next();
                if again {
                    exec.pc = *start;
                }
            }
            Instr::Again => {
                exec.passes += 1;
                exec.next();
                exec.pc = 0;
                if self.workload.groups[task.group].repeat.is_some_and(|times| exec.passes >= u64::from(times)) {
                    drop(exec);
                    return self.exit(me, task);
                }
            }
            Instr::Exit => {
                drop(exec);
                return self.exit(me, task);
            }
            Instr::Yield => {
                exec.next();
                drop(exec);
                return self.reschedule(me, Event::Deschedule);
            }
            Instr::Fork { group, count } => {
                exec.next();
                exec.children += count;
                drop(exec);
                for _ in 0..*count {
                    let child = self.create(me, *group, Some(task.id));
                    self.start(me, child)?;
                }
            }
            Instr::Params(params) => {
                exec.next();
                drop(exec);
                self.set_params(me, task, params);
            }
            Instr::Affinity(mask) => {
                exec.next();
                drop(exec);
                let mask = self.usable(mask.clone());
                self.set_affinity(me, task, mask);
            }
            Instr::Sleep(_)
            | Instr::Take(..)
            | Instr::Put(..)
            | Instr::Meet(_)
            | Instr::Join
            | Instr::NextPeriod { .. } => {
                drop(exec);
                return self.wait(me, task, instr);
            }
        }
        Ok(())
    }

    /// A step that may have to wait: one round of the protocol.
    fn wait(&mut self, me: CpuId, task: &TaskRef, instr: &Instr) -> Result<(), Fault> {
        task.state.apply(Event::Block).map(drop)?;
        let seen = {
            let mut exec = task.exec.borrow_mut();
            if exec.stage == Stage::Work {
                exec.stage = Stage::Look;
                self.announce(me, task, &mut exec, instr);
            } else if let Some(channel) = exec.waits_for.take() {
                self.channels[channel].forget(task.id);
            }
            self.look(task, &mut exec, instr)
        };
        self.wake_listed(me)?;
        match seen {
            Seen::Go => {
                task.exec.borrow_mut().next();
                task.state.apply(Event::CancelBlock).map(drop)?;
                Ok(())
            }
            Seen::Wait(reason, which) => {
                let (tsc, kind) = (self.now.0, Kind::Block as u8);
                let record = Record { tsc, task: task.id.0, kind, a: reason as u64, b: which, ..Record::default() };
                self.write(me, &record);
                self.reschedule(me, Event::Deschedule)
            }
        }
    }

    /// The task comes to a step that may have to wait: what is done once, however often it then looks.
    fn announce(&mut self, me: CpuId, task: &TaskRef, exec: &mut Exec, instr: &Instr) {
        match instr {
            Instr::Sleep(span) => {
                exec.pending = (self.now + span.draw(&mut exec.chance)).0;
                self.arm_sleep(me, task, exec.pending);
            }
            Instr::NextPeriod { period, deadline } => {
                exec.jobs += 1;
                exec.misses += u64::from(self.now > exec.release + *deadline);
                self.figures[task.group].job(self.now - exec.release);
                exec.release += *period;
                exec.pending = exec.release.0;
                if exec.release > self.now {
                    self.arm_sleep(me, task, exec.pending);
                }
            }
            Instr::Take(channel, count) | Instr::Put(channel, count) => {
                exec.channel = self.resolve(task, exec, channel);
                exec.pending = *count;
            }
            Instr::Meet(channel) => {
                exec.channel = self.resolve(task, exec, channel);
                let woken = &mut self.woken;
                exec.pending = self.channels[exec.channel].arrive(|id| woken.push(id));
            }
            _ => {}
        }
    }

    fn arm_sleep(&mut self, me: CpuId, task: &TaskRef, until: u64) {
        // Disarmed by its expiry alone: nothing else ends a sleep.
        let _ = self.cpus[me.index()].timers.arm(Nanos(until), task.id);
    }

    /// Has what the task waits for happened?
    fn look(&mut self, task: &TaskRef, exec: &mut Exec, instr: &Instr) -> Seen {
        let woken = &mut self.woken;
        match instr {
            Instr::Sleep(_) | Instr::NextPeriod { .. } if self.now.0 < exec.pending => {
                Seen::Wait(WaitReason::Sleep, exec.pending)
            }
            Instr::Join if exec.children > 0 => Seen::Wait(WaitReason::Child, 0),
            Instr::Take(..) => {
                let channel = &mut self.channels[exec.channel];
                exec.pending -= channel.take(task.id, exec.pending, |id| woken.push(id));
                Self::seen(channel, exec, exec.pending == 0)
            }
            Instr::Put(..) => {
                let channel = &mut self.channels[exec.channel];
                exec.pending -= channel.put(task.id, exec.pending, |id| woken.push(id));
                Self::seen(channel, exec, exec.pending == 0)
            }
            Instr::Meet(_) => {
                let channel = &mut self.channels[exec.channel];
                let passed = channel.passed(task.id, exec.pending);
                Self::seen(channel, exec, passed)
            }
            _ => Seen::Go,
        }
    }

    fn seen(channel: &Channel, exec: &mut Exec, go: bool) -> Seen {
        if go {
            return Seen::Go;
        }
        exec.waits_for = Some(exec.channel);
        let reason = if channel.is_bounded() { WaitReason::Io } else { WaitReason::Futex };
        Seen::Wait(reason, exec.channel as u64)
    }

    /// Wakes those whom a channel has let go.
    fn wake_listed(&mut self, me: CpuId) -> Result<(), Fault> {
        if self.woken.is_empty() {
            return Ok(());
        }
        let mut woken = core::mem::take(&mut self.woken);
        let result = woken.drain(..).try_for_each(|id| {
            let Some(task) = self.task(id) else { return Ok(()) };
            task.exec.borrow_mut().waits_for = None;
            self.wake(me, &task, false)
        });
        self.woken = woken; // its memory is used again
        result
    }

    /// Which channel a task means.
    fn resolve(&self, task: &TaskRef, exec: &mut Exec, channel: &ChannelRef) -> usize {
        let (first, count) = self.families[channel.family];
        let number = match channel.member {
            Member::Fixed(n) => i64::from(n),
            Member::Own { divide, add } => i64::from(task.index / divide) + i64::from(add),
            Member::Random => exec.chance.below(count as u64) as i64,
        };
        first + number.rem_euclid(count as i64) as usize
    }

    /// The current task ends.
    fn exit(&mut self, me: CpuId, task: &TaskRef) -> Result<(), Fault> {
        self.write(me, &Record { tsc: self.now.0, task: task.id.0, kind: Kind::Exit as u8, ..Record::default() });
        let parent = task.exec.borrow().parent;
        if let Some(parent) = parent.and_then(|id: TaskId| self.task(id)) {
            let left = {
                let mut exec = parent.exec.borrow_mut();
                exec.children = exec.children.saturating_sub(1);
                exec.children
            };
            // Harmless if it doesn't wait for its children.
            if left == 0 && !parent.is(task) {
                self.wake(me, &parent, false)?;
            }
        }
        self.reschedule(me, Event::Exit)
    }
}
