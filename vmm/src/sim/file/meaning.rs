//! What the tables of a workload file mean: every error says where, and what to write instead. Used by [`super`]; pure.

use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::params::{SchedAttr, SchedParams, number};
use vcpu_sched::sim::model::{Affinity, Change, ChannelKind, Group, Intervention, Op};
use vcpu_sched::sim::random::Span;

use super::names::{Names, parse_affinity, parse_mask};
use super::tables::{OneOrMany, RawAt, RawChannel, RawGroup, RawStep};
use super::{FileError, meaning};
use crate::sim::span::{SpanText, Time};

/// How a task is to be scheduled, as it stands in several tables.
#[derive(Default)]
struct Sched<'a> {
    policy: Option<&'a str>,
    priority: Option<u32>,
    nice: i32,
    slice: Option<Time>,
    deadline: Option<[Nanos; 3]>,
}

impl Sched<'_> {
    fn params(&self) -> Result<SchedParams, String> {
        let policy = match self.policy {
            None | Some("normal") => number::NORMAL,
            Some("batch") => number::BATCH,
            Some("idle") => number::IDLE,
            Some("fifo") => number::FIFO,
            Some("rr") => number::RR,
            Some("deadline") => number::DEADLINE,
            Some(other) => {
                return Err(format!(
                    "there is no policy '{other}' for a task: use normal, batch, idle, fifo, rr or deadline"
                ));
            }
        };
        let real_time = policy == number::FIFO || policy == number::RR;
        match self.priority {
            None if real_time => return Err("a fifo or rr task needs a priority from 1 to 99".to_owned()),
            Some(_) if !real_time => return Err("a priority is for fifo and rr tasks only: use nice".to_owned()),
            _ => {}
        }
        if !(-20..=19).contains(&self.nice) {
            return Err(format!("nice values are -20 to 19, not {}", self.nice));
        }
        let mut attr = SchedAttr { policy, nice: self.nice, ..SchedAttr::default() };
        attr.priority = self.priority.unwrap_or(0);
        attr.runtime = self.slice.map_or(0, |slice| slice.0.0);
        if policy == number::DEADLINE {
            let Some([runtime, deadline, period]) = self.deadline else {
                return Err("a deadline task needs runtime and deadline (and period, if it isn't the deadline)".into());
            };
            (attr.runtime, attr.deadline, attr.period) = (runtime.0, deadline.0, period.0);
        } else if self.deadline.is_some() {
            return Err("runtime, deadline and period are for policy = \"deadline\" only".to_owned());
        }
        SchedParams::from_attr(&attr).map_err(|error| error.to_string())
    }
}

impl RawChannel {
    pub(super) fn kind(&self) -> Result<ChannelKind, String> {
        match self.parties {
            None => Ok(ChannelKind::Tokens {
                initial: self.initial.unwrap_or(0),
                capacity: self.capacity,
                wake_all: self.wake_all,
            }),
            Some(_) if self.initial.is_some() || self.capacity.is_some() || self.wake_all => {
                Err("with parties it is a barrier, and has no initial, capacity or wake_all".to_owned())
            }
            Some(parties) => Ok(ChannelKind::Barrier { parties }),
        }
    }
}

impl RawGroup {
    pub(super) fn read(&self, names: &Names) -> Result<Group, FileError> {
        let place = format!("group {}", self.name);
        let here = |what| meaning(place.clone(), what);
        if names.groups.iter().filter(|&name| *name == self.name).count() > 1 {
            return Err(here("there are several groups of this name".to_owned()));
        }
        let deadline = match (self.runtime, self.deadline) {
            (Some(runtime), Some(deadline)) => {
                Some([runtime.0, deadline.0, self.period.map_or(Nanos::ZERO, |period| period.0)])
            }
            (None, None) if self.period.is_none() => None,
            _ => return Err(here("runtime, deadline and period belong together".to_owned())),
        };
        let nice = match &self.nice {
            None => vec![0],
            Some(OneOrMany::One(nice)) => vec![*nice],
            Some(OneOrMany::Many(list)) => list.clone(),
        };
        let params = nice.iter().map(|&nice| {
            let (policy, priority, slice) = (self.policy.as_deref(), self.priority, self.slice);
            Sched { policy, priority, nice, slice, deadline }.params()
        });
        let span = |text: &Option<SpanText>| text.as_ref().map_or(Span::Constant(Nanos::ZERO), |text| text.0.clone());
        Ok(Group {
            name: self.name.clone(),
            count: self.count.unwrap_or(1),
            start: span(&self.start),
            every: span(&self.every),
            params: params.collect::<Result<_, _>>().map_err(here)?,
            affinity: self.affinity.as_deref().map_or(Ok(Affinity::Any), parse_affinity).map_err(here)?,
            program: read_steps(&self.program, names, &place)?,
            repeat: self.repeat,
        })
    }
}

fn read_steps(steps: &[RawStep], names: &Names, outer: &str) -> Result<Vec<Op>, FileError> {
    let one = |(i, step): (usize, &RawStep)| {
        let place = format!("{outer}, step {}", i + 1);
        step.read(names, &place)
    };
    steps.iter().enumerate().map(one).collect()
}

const STEPS: &str = "give exactly one of run, sleep, yield, take, put, meet, fork, join, next_period, affinity, nice or \
                     policy, repeat, exit";

impl RawStep {
    fn read(&self, names: &Names, place: &str) -> Result<Op, FileError> {
        let here = |what: String| meaning(place.to_owned(), what);
        let mut ops = Vec::new();
        let count = self.count.unwrap_or(1);
        if let Some(span) = &self.run {
            ops.push(Op::Run(span.0.clone()));
        }
        if let Some(span) = &self.sleep {
            ops.push(Op::Sleep(span.0.clone()));
        }
        for (given, op) in [(self.r#yield, Op::Yield), (self.join, Op::Join), (self.exit, Op::Exit)] {
            match given {
                None => {}
                Some(true) => ops.push(op),
                Some(false) => return Err(here("a step is there or not: write true, or leave it out".to_owned())),
            }
        }
        if let Some(text) = &self.take {
            ops.push(Op::Take(names.channel(text).map_err(here)?, count));
        }
        if let Some(text) = &self.put {
            ops.push(Op::Put(names.channel(text).map_err(here)?, count));
        }
        if let Some(text) = &self.meet {
            ops.push(Op::Meet(names.channel(text).map_err(here)?));
        }
        if let Some(name) = &self.fork {
            ops.push(Op::Fork { group: names.group(name).map_err(here)?, count });
        }
        if let Some(period) = self.next_period {
            let deadline = self.within.unwrap_or(period).0;
            ops.push(Op::NextPeriod { period: period.0, deadline });
        }
        if let Some(text) = &self.affinity {
            ops.push(Op::Affinity(parse_mask(text).map_err(here)?));
        }
        if self.nice.is_some() || self.policy.is_some() {
            let (policy, priority, slice) = (self.policy.as_deref(), self.priority, self.slice);
            let sched = Sched { policy, priority, nice: self.nice.unwrap_or(0), slice, deadline: None };
            ops.push(Op::Params(sched.params().map_err(here)?));
        } else if self.priority.is_some() || self.slice.is_some() {
            return Err(here("priority and slice go with policy or nice".to_owned()));
        }
        match (self.repeat, &self.r#do) {
            (None, None) => {}
            (Some(times), Some(body)) => ops.push(Op::Repeat { times, body: read_steps(body, names, place)? }),
            _ => return Err(here("repeat = N and do = [...] belong together".to_owned())),
        }
        if self.count.is_some() && !matches!(ops.as_slice(), [Op::Take(..) | Op::Put(..) | Op::Fork { .. }]) {
            return Err(here("count goes with take, put and fork".to_owned()));
        }
        if self.within.is_some() && self.next_period.is_none() {
            return Err(here("within goes with next_period".to_owned()));
        }
        match ops.len() {
            1 => ops.pop().ok_or_else(|| here(STEPS.to_owned())),
            _ => Err(here(STEPS.to_owned())),
        }
    }
}

impl RawAt {
    pub(super) fn read(&self, names: &Names) -> Result<Intervention, String> {
        let params = self.nice.is_some() || self.policy.is_some();
        let what = match (&self.affinity, params, self.wake) {
            (Some(text), false, None) => Change::Affinity(parse_mask(text)?),
            (None, true, None) => {
                let (policy, priority, slice) = (self.policy.as_deref(), self.priority, self.slice);
                let sched = Sched { policy, priority, nice: self.nice.unwrap_or(0), slice, deadline: None };
                Change::Params(sched.params()?)
            }
            (None, false, Some(true)) => Change::Wake,
            _ => return Err("give exactly one of affinity, nice or policy, wake = true".to_owned()),
        };
        let (at, on) = (self.time.0, CpuId(self.cpu.unwrap_or(0)));
        Ok(Intervention { at, on, group: names.group(&self.group)?, task: self.task, what })
    }
}
