//! A recorded trace as a workload: every task does again what it did, on another machine.
//!
//! Used by [`super::source`]. What a task computed between two events stays as long; a sleep stays as long; a wake-up by another
//! task becomes a token that this task puts and the woken one takes. Left out, because the trace doesn't tell it: the promise of a deadline
//! task (it runs as an ordinary one), and changes of affinity and class after a task's beginning. The invariant: a wait
//! that ended in the trace ends in the replay, because every token that is taken is put by somebody whose program says so.

use std::collections::BTreeMap;
use std::path::Path;

use vcpu_sched::events::{ClassTag, Event, Kind, WaitReason, flag};
use vcpu_sched::ids::Nanos;
use vcpu_sched::params::{SchedAttr, SchedParams, number};
use vcpu_sched::sim::model::{
    Affinity, ChannelFamily, ChannelKind, ChannelRef, Group, MAX_TASKS, Member, Op, Workload,
};
use vcpu_sched::sim::random::Span;
use vcpu_sched::task::state::State;

use super::file::{File, MachineTable};
use super::span::Time;
use crate::trace::{Stamped, TraceError, TraceReader};

/// Class of idle tasks in records.
const IDLE: u8 = ClassTag::IDLE.policy;

/// Why a trace can't be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It can't be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Nothing ran in it.
    #[error("there is no task in the trace: was it recorded with the scheduler's events?")]
    Empty,
    /// More tasks than a simulation takes.
    #[error("there are more than {MAX_TASKS} tasks in the trace")]
    TooMany,
}

/// What is known of one task.
struct Life {
    name: String,
    group: usize,
    /// By itself at this time, or forked.
    start: Option<u64>,
    params: SchedParams,
    program: Vec<Op>,
    /// Since when it is on a CPU, less what is told already.
    running: Option<u64>,
    blocked: Option<u64>,
    reason: u64,
}

/// Takes records by time.
#[derive(Default)]
struct Recorder {
    names: BTreeMap<u32, String>,
    lives: BTreeMap<u32, Life>,
    first: Option<u64>,
    last: u64,
}

impl Life {
    /// What it has computed so far becomes a step.
    fn flush(&mut self, now: u64) {
        if let Some(since) = self.running.replace(now)
            && now > since
        {
            self.program.push(Op::Run(Span::Constant(Nanos(now - since))));
        }
    }
}

/// Parameters that give a task this class.
fn params(class: ClassTag) -> SchedParams {
    let mut attr = SchedAttr { policy: class.policy.into(), ..SchedAttr::default() };
    match attr.policy {
        number::FIFO | number::RR => attr.priority = 99_u32.saturating_sub(class.prio.into()),
        number::NORMAL | number::BATCH | number::IDLE => attr.nice = i32::from(class.prio) - 120,
        _ => attr.policy = number::NORMAL,
    }
    SchedParams::from_attr(&attr).unwrap_or(SchedParams::NORMAL)
}

/// The channel of one task's wake-ups.
fn channel(task: usize) -> ChannelRef {
    ChannelRef { family: 0, member: Member::Fixed(task as u32) }
}

impl Recorder {
    fn life(&mut self, id: u32, class: ClassTag, now: u64) -> &mut Life {
        let group = self.lives.len();
        let since = now - self.first.unwrap_or(now);
        let name = self.names.get(&id);
        self.lives.entry(id).or_insert_with(|| Life {
            name: name
                .filter(|name| !name.is_empty())
                .map_or_else(|| format!("task {id}"), |name| format!("{name} {id}")),
            group,
            start: Some(since),
            params: params(class),
            program: Vec::new(),
            running: None,
            blocked: None,
            reason: WaitReason::Other as u64,
        })
    }

    fn take(&mut self, stamped: &Stamped) {
        let (r, now) = (&stamped.record, stamped.time_ns);
        self.first.get_or_insert(now);
        self.last = self.last.max(now);
        match Event::decode(r) {
            Some(Event::Name(name)) => {
                let text = String::from_utf8_lossy(&name);
                self.names.insert(r.task, text.trim_end_matches('\0').to_owned());
            }
            Some(Event::Queued { new, waker, class, .. }) => {
                let by = self.lives.get_mut(&waker.0).filter(|life| life.running.is_some() && waker.0 != r.task);
                let by = by.filter(|_| r.flags & flag::FROM_INTERRUPT == 0).map(|life| {
                    life.flush(now);
                    life.group
                });
                let life = self.life(r.task, class, now);
                let group = life.group;
                let step = if new {
                    life.start = life.start.filter(|_| by.is_none());
                    Op::Fork { group, count: 1 }
                } else {
                    // A wait whose beginning isn't in the trace is none.
                    let Some(since) = life.blocked.take() else { return };
                    if by.is_none() || life.reason == WaitReason::Sleep as u64 {
                        life.program.push(Op::Sleep(Span::Constant(Nanos(now - since))));
                        return;
                    }
                    life.program.push(Op::Take(channel(group), 1));
                    Op::Put(channel(group), 1)
                };
                if by.is_some()
                    && let Some(waker) = self.lives.get_mut(&waker.0)
                {
                    waker.program.push(step);
                }
            }
            Some(Event::Switch { prev_state, prev_class, next, .. }) => {
                if prev_class.policy != IDLE {
                    let life = self.life(r.task, prev_class, now);
                    life.flush(now);
                    life.running = None;
                    life.blocked = (prev_state == State::Blocked as u8).then_some(now);
                }
                if next.class.policy != IDLE {
                    self.life(next.task.0, next.class, now).running = Some(now);
                }
            }
            Some(Event::Plain(Kind::Block)) => {
                if let Some(life) = self.lives.get_mut(&r.task) {
                    life.reason = r.a;
                }
            }
            _ => {}
        }
    }

    fn finish(mut self) -> Result<Workload, ReplayError> {
        let count = u32::try_from(self.lives.len()).ok().filter(|&n| n <= MAX_TASKS).ok_or(ReplayError::TooMany)?;
        if count == 0 {
            return Err(ReplayError::Empty);
        }
        let last = self.last;
        let mut lives: Vec<Life> = std::mem::take(&mut self.lives).into_values().collect();
        lives.sort_by_key(|life| life.group);
        let group = |mut life: Life| {
            life.flush(last);
            life.program.push(Op::Exit);
            Group {
                name: life.name,
                count: u32::from(life.start.is_some()),
                start: Span::Constant(Nanos(life.start.unwrap_or(0))),
                every: Span::Constant(Nanos::ZERO),
                params: vec![life.params],
                affinity: Affinity::Any,
                program: life.program,
                repeat: Some(1),
            }
        };
        let kind = ChannelKind::Tokens { initial: 0, capacity: None, wake_all: false };
        let channels = vec![ChannelFamily { name: "wake-ups".to_owned(), count, kind }];
        Ok(Workload { groups: lives.into_iter().map(group).collect(), channels, script: Vec::new() })
    }
}

/// Reads a trace.
///
/// # Errors
/// [`ReplayError`].
pub fn load(path: &Path) -> Result<File, ReplayError> {
    let reader = TraceReader::open(path)?;
    let header = reader.header();
    let mut recorder = Recorder::default();
    for stamped in reader.records() {
        recorder.take(&stamped?);
    }
    let machine = MachineTable {
        cpus: Some(header.cpus),
        policy: Some(header.policy.clone()).filter(|name| !name.is_empty()),
        // Twice as long, for a slower machine: a replay ends when its last task does.
        duration: Some(Time(Nanos(recorder.last - recorder.first.unwrap_or(0)).saturating_mul(2))),
        ..MachineTable::default()
    };
    let description = format!("a replay of {}", path.display());
    Ok(File { description, machine, workload: recorder.finish()? })
}

#[cfg(test)]
mod tests {
    use vcpu_sched::checker::{Checker, Options};
    use vcpu_sched::events::Record;
    use vcpu_sched::ids::CpuId;
    use vcpu_sched::runqueue::PolicyKind;
    use vcpu_sched::sim::{Config, Costs, End, Machine, Sink};
    use vcpu_sched::topology::Topology;

    use super::*;

    struct Watch(Checker);

    impl Sink for Watch {
        fn record(&mut self, cpu: CpuId, record: &Record) {
            self.0.feed(vcpu_sched::checker::Stamped { cpu, time: Nanos(record.tsc), record: *record });
        }
    }

    /// `sh -c 'for i in 1 2; do (seq 1 20 | wc -l; sleep 0.02) & done; wait'` with two vCPUs, as a guest ran it.
    #[test]
    fn a_guests_trace_runs_to_its_end_on_every_machine() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sim/testdata/shell.pftrace");
        let file = load(&path).unwrap();
        assert_eq!(file.machine.cpus, Some(2));
        let run = |program: &[Op]| -> u64 {
            program.iter().map(|op| if let Op::Run(Span::Constant(time)) = op { time.0 } else { 0 }).sum()
        };
        let computed: u64 = file.workload.groups.iter().map(|group| run(&group.program)).sum();
        for policy in PolicyKind::ALL {
            for cpus in [1, 2, 5] {
                let (topology, costs) = (Topology::flat(), Costs::NONE);
                let config = Config { cpus, topology, policy, seed: 1, costs, per_task: false };
                let mut watch = Watch(Checker::new(Options { complete: true, ..Options::default() }));
                let mut machine = Machine::new(config, &file.workload, &mut watch).unwrap();
                let end = machine.run(Nanos::from_secs(600), u64::MAX).unwrap().unwrap();
                let figures = machine.finish(end);
                assert_eq!(figures.end, End::AllEnded, "{policy}, {cpus} CPUs");
                let ran: u64 = figures.groups.iter().map(|group| group.run.0).sum();
                assert_eq!(ran, computed, "{policy}, {cpus} CPUs: other work than in the trace");
                assert_eq!(watch.0.finish().violations(), 0, "{policy}, {cpus} CPUs");
            }
        }
    }
}
