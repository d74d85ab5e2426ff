//! Our scheduling records as the ftrace events that Perfetto's scheduler, wake-up and thread-state tracks are made of.

use std::io::{self, Write};

use vcpu_sched::events::{ClassTag, Event, Record, Side};
use vcpu_sched::task::state::State;

use super::proto::{
    Event as Ftrace, FtraceEvent, FtraceEventBundle, SchedMigrateTask, SchedProcessExit, SchedSwitch, SchedWakeup,
    TaskRename,
};
use super::{PerfettoWriter, Track};

/// `prev_state` of sched_switch, Linux include/linux/sched.h from 4.14 on.
const RUNNING: i64 = 0;
const INTERRUPTIBLE: i64 = 1;
const DEAD: i64 = 0x10;
/// TASK_REPORT_MAX: it was preempted.
const PREEMPTED: i64 = 0x100;

fn linux_state(state: u8, preempted: bool) -> i64 {
    match State::from_u8(state) {
        Some(State::Dead) => DEAD,
        Some(State::Blocked | State::Blocking) => INTERRUPTIBLE,
        _ if preempted => PREEMPTED,
        _ => RUNNING,
    }
}

impl<W: Write> PerfettoWriter<W> {
    pub(super) fn scheduling(
        &mut self,
        cpu: u32,
        at: u64,
        event: &Event,
        record: &Record,
        bundle: &mut FtraceEventBundle,
    ) -> io::Result<()> {
        let task = record.task;
        match *event {
            Event::Queued { new, waker, target, class, queued, .. } => {
                let wakeup = SchedWakeup {
                    comm: Some(self.comm(task)),
                    pid: Some(self.pid(task)),
                    prio: Some(class.prio.into()),
                    success: Some(1),
                    target_cpu: Some(target.0 as i32),
                };
                let what = if new { Ftrace::WakeupNew(wakeup) } else { Ftrace::Waking(wakeup) };
                bundle.event.push(self.event(at, waker.0, what));
                self.counter(Track::Queue, target.0, at, queued.into())
            }
            Event::Switch { prev_state, preempted, prev_class, next, queued } => {
                self.note_idle(task, prev_class);
                self.note_idle(next.task.0, next.class);
                let switch = self.switch(task, prev_class, linux_state(prev_state, preempted), &next);
                bundle.event.push(self.event(at, task, Ftrace::Switch(switch)));
                self.counter(Track::Queue, cpu, at, queued.into())
            }
            Event::Migrate { from, to, queued, .. } => {
                let migrate = SchedMigrateTask {
                    comm: Some(self.comm(task)),
                    pid: Some(self.pid(task)),
                    orig_cpu: Some(from.0 as i32),
                    dest_cpu: Some(to.0 as i32),
                };
                bundle.event.push(self.event(at, 0, Ftrace::Migrate(migrate)));
                self.counter(Track::Queue, to.0, at, queued.into())
            }
            Event::Name(name) => {
                if let Some(old) = self.rename(task, &name)? {
                    let rename =
                        TaskRename { pid: Some(self.pid(task)), oldcomm: Some(old), newcomm: Some(self.comm(task)) };
                    bundle.event.push(self.event(at, task, Ftrace::Rename(rename)));
                }
                Ok(())
            }
            Event::Plain(_) => Ok(()),
        }
    }

    pub(super) fn exit_event(&self, at: u64, record: &Record) -> FtraceEvent {
        let task = record.task;
        let process = self.tasks.get(&task).and_then(|known| known.process).unwrap_or(task);
        let exit =
            SchedProcessExit { comm: Some(self.comm(task)), pid: Some(self.pid(task)), tgid: Some(process as i32) };
        self.event(at, task, Ftrace::ProcessExit(exit))
    }

    fn switch(&self, prev: u32, prev_class: ClassTag, prev_state: i64, next: &Side) -> SchedSwitch {
        SchedSwitch {
            prev_comm: Some(self.comm(prev)),
            prev_pid: Some(self.pid(prev)),
            prev_prio: Some(prev_class.prio.into()),
            prev_state: Some(prev_state),
            next_comm: Some(self.comm(next.task.0)),
            next_pid: Some(self.pid(next.task.0)),
            next_prio: Some(next.class.prio.into()),
        }
    }

    /// An event in the context of a task.
    fn event(&self, at: u64, context: u32, event: Ftrace) -> FtraceEvent {
        FtraceEvent { timestamp: Some(at), pid: Some(self.pid(context) as u32), event: Some(event) }
    }

    fn note_idle(&mut self, task: u32, class: ClassTag) {
        if class.policy == ClassTag::IDLE.policy {
            self.idle.insert(task);
        }
    }

    /// The thread id that Perfetto sees: idle tasks are 0, as in Linux.
    fn pid(&self, task: u32) -> i32 {
        if self.idle.contains(&task) { 0 } else { task as i32 }
    }
}
