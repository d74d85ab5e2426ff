//! A workload file: TOML in, [`Workload`] and [`Machine`] out.
//!
//! docs/simulator.md is its reference. Used by [`super::source`]; pure. Every error says what is wrong, where, and what to
//! write instead: syntax and types by line and column, meaning by group and step.

use serde::Deserialize;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::params::{SchedAttr, SchedParams, number};
use vcpu_sched::sim::model::{
    Affinity, Change, ChannelFamily, ChannelKind, ChannelRef, Group, Intervention, Member, Op, Workload,
};
use vcpu_sched::sim::random::Span;

use super::span::{SpanText, Time};

/// What a file says about the machine. Flags go before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineTable {
    /// How many CPUs.
    pub cpus: Option<u32>,
    /// The policy of ordinary tasks.
    pub policy: Option<String>,
    /// How long to simulate.
    pub duration: Option<Time>,
    /// See [`Costs`](vcpu_sched::sim::Costs).
    pub switch: Option<Time>,
    /// See [`Costs`](vcpu_sched::sim::Costs).
    pub call: Option<Time>,
    /// See [`Costs`](vcpu_sched::sim::Costs).
    pub ipi: Option<Time>,
    /// See [`Costs`](vcpu_sched::sim::Costs).
    pub idle_exit: Option<Time>,
}

/// A file that was read.
#[derive(Debug, Clone)]
pub struct File {
    /// What it is, in one line.
    pub description: String,
    /// Its machine.
    pub machine: MachineTable,
    /// Its tasks.
    pub workload: Workload,
}

/// Why a file can't be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FileError {
    /// Not TOML, or not with these names and types.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// Something in a group, channel or intervention.
    #[error("{place}: {what}")]
    Meaning {
        /// Where.
        place: String,
        /// What.
        what: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    description: String,
    #[serde(default)]
    machine: MachineTable,
    #[serde(default)]
    channel: Vec<RawChannel>,
    #[serde(default)]
    group: Vec<RawGroup>,
    #[serde(default)]
    at: Vec<RawAt>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChannel {
    name: String,
    count: Option<u32>,
    initial: Option<u64>,
    capacity: Option<u64>,
    #[serde(default)]
    wake_all: bool,
    parties: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    name: String,
    count: Option<u32>,
    start: Option<SpanText>,
    every: Option<SpanText>,
    repeat: Option<u32>,
    affinity: Option<String>,
    nice: Option<OneOrMany>,
    policy: Option<String>,
    priority: Option<u32>,
    slice: Option<Time>,
    runtime: Option<Time>,
    deadline: Option<Time>,
    period: Option<Time>,
    program: Vec<RawStep>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a nice value, or a list of them")]
enum OneOrMany {
    One(i32),
    Many(Vec<i32>),
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RawStep {
    run: Option<SpanText>,
    sleep: Option<SpanText>,
    r#yield: Option<bool>,
    take: Option<String>,
    put: Option<String>,
    meet: Option<String>,
    count: Option<u32>,
    fork: Option<String>,
    join: Option<bool>,
    next_period: Option<Time>,
    within: Option<Time>,
    affinity: Option<String>,
    nice: Option<i32>,
    policy: Option<String>,
    priority: Option<u32>,
    slice: Option<Time>,
    repeat: Option<u32>,
    r#do: Option<Vec<RawStep>>,
    exit: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAt {
    time: Time,
    group: String,
    task: Option<u32>,
    cpu: Option<u32>,
    affinity: Option<String>,
    nice: Option<i32>,
    policy: Option<String>,
    priority: Option<u32>,
    slice: Option<Time>,
    wake: Option<bool>,
}

/// Reads a file's text.
///
/// # Errors
/// [`FileError`].
pub fn parse(text: &str) -> Result<File, FileError> {
    let raw: Raw = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        FileError::Syntax { line, column, message: error.message().replace('\n', " ") }
    })?;
    let names = Names {
        groups: raw.group.iter().map(|group| group.name.clone()).collect(),
        channels: raw.channel.iter().map(|channel| channel.name.clone()).collect(),
    };
    let mut workload = Workload::default();
    for channel in &raw.channel {
        let kind = channel.kind().map_err(|what| meaning(format!("channel {}", channel.name), what))?;
        let family = ChannelFamily { name: channel.name.clone(), count: channel.count.unwrap_or(1), kind };
        workload.channels.push(family);
    }
    for group in &raw.group {
        workload.groups.push(group.read(&names)?);
    }
    for (i, at) in raw.at.iter().enumerate() {
        let step = at.read(&names).map_err(|what| meaning(format!("at entry {}", i + 1), what))?;
        workload.script.push(step);
    }
    workload.check().map_err(|error| meaning(error.place, error.what.to_string()))?;
    Ok(File { description: raw.description, machine: raw.machine, workload })
}

fn meaning(place: String, what: String) -> FileError {
    FileError::Meaning { place, what }
}

struct Names {
    groups: Vec<String>,
    channels: Vec<String>,
}

impl Names {
    fn group(&self, name: &str) -> Result<usize, String> {
        find(&self.groups, name, "group")
    }

    /// `name`, `name[3]`, `name[self]`, `name[self/20]`, `name[self+1]`, `name[random]`.
    fn channel(&self, text: &str) -> Result<ChannelRef, String> {
        let (name, member) = match text.split_once('[') {
            Some((name, rest)) => match rest.strip_suffix(']') {
                Some(member) => (name, parse_member(member.trim())?),
                None => return Err(format!("a ']' is missing in '{text}'")),
            },
            None => (text, Member::Fixed(0)),
        };
        Ok(ChannelRef { family: find(&self.channels, name.trim(), "channel")?, member })
    }
}

fn find(among: &[String], name: &str, what: &str) -> Result<usize, String> {
    among.iter().position(|known| known == name).ok_or_else(|| {
        let known = if among.is_empty() { "none".to_owned() } else { among.join(", ") };
        format!("there is no {what} '{name}' (there are: {known})")
    })
}

fn parse_member(text: &str) -> Result<Member, String> {
    let bad =
        || format!("'[{text}]' is no choice of a channel: use [3], [self], [self/20], [self+1], [self-1] or [random]");
    if text == "random" {
        return Ok(Member::Random);
    }
    let Some(rest) = text.strip_prefix("self") else {
        return text.parse().map(Member::Fixed).map_err(|_| bad());
    };
    let (divide, add) = match rest.strip_prefix('/') {
        Some(rest) => {
            let end = rest.find(['+', '-']).unwrap_or(rest.len());
            (rest[..end].parse().map_err(|_| bad())?, &rest[end..])
        }
        None => (1, rest),
    };
    let add = if add.is_empty() { 0 } else { add.parse().map_err(|_| bad())? };
    if divide == 0 || !(rest.is_empty() || rest.starts_with(['/', '+', '-'])) {
        return Err(bad());
    }
    Ok(Member::Own { divide, add })
}

fn parse_affinity(text: &str) -> Result<Affinity, String> {
    match text.trim() {
        "any" => Ok(Affinity::Any),
        "spread" => Ok(Affinity::Spread),
        text => match text.strip_prefix("random ") {
            Some(count) => count
                .trim()
                .parse()
                .map(Affinity::Random)
                .map_err(|_| format!("'{text}': after random comes a number of CPUs, as in 'random 2'")),
            None => parse_mask(text).map(Affinity::Mask),
        },
    }
}

fn parse_mask(text: &str) -> Result<CpuMask, String> {
    text.parse().map_err(|error| {
        format!("affinity '{text}': {error}; write a CPU list as in '0-3,8', or 'any', 'spread' or 'random 2'")
    })
}

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
    fn kind(&self) -> Result<ChannelKind, String> {
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
    fn read(&self, names: &Names) -> Result<Group, FileError> {
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
    fn read(&self, names: &Names) -> Result<Intervention, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_all_that_a_workload_can_be() {
        let file = parse(
            r#"
            description = "everything"
            [machine]
            cpus = 4
            duration = "2s"
            [[channel]]
            name = "pipe"
            count = 3
            capacity = 16
            [[channel]]
            name = "door"
            parties = 2
            [[group]]
            name = "a"
            count = 2
            every = { exponential = "1ms" }
            nice = [-5, 5]
            affinity = "random 2"
            program = [
                { run = "1ms" }, { sleep = "2ms" }, { yield = true }, { take = "pipe[self]" },
                { put = "pipe[self+1]", count = 2 }, { meet = "door" }, { fork = "b", count = 3 }, { join = true },
                { nice = 3, slice = "1ms" }, { affinity = "0-1" }, { repeat = 2, do = [{ run = "1us" }] },
            ]
            [[group]]
            name = "b"
            count = 0
            policy = "deadline"
            runtime = "1ms"
            deadline = "5ms"
            period = "10ms"
            repeat = 1
            program = [{ run = "1ms" }, { next_period = "10ms", within = "5ms" }, { exit = true }]
            [[at]]
            time = "1s"
            group = "a"
            nice = 19
            "#,
        )
        .unwrap();
        assert_eq!((file.description.as_str(), file.machine.cpus), ("everything", Some(4)));
        let workload = file.workload;
        assert_eq!(workload.groups[0].program.len(), 11);
        assert_eq!(workload.groups[0].params.len(), 2);
        let own = ChannelRef { family: 0, member: Member::Own { divide: 1, add: 1 } };
        assert_eq!(workload.groups[0].program[4], Op::Put(own, 2));
        let ms = Nanos::from_millis;
        assert_eq!(workload.groups[1].program[1], Op::NextPeriod { period: ms(10), deadline: ms(5) });
        assert_eq!((workload.script.len(), workload.script[0].at), (1, Nanos::from_secs(1)));
    }

    #[test]
    fn members_of_a_family() {
        let own = |divide, add| Ok(Member::Own { divide, add });
        for (text, expected) in [
            ("7", Ok(Member::Fixed(7))),
            ("random", Ok(Member::Random)),
            ("self", own(1, 0)),
            ("self+2", own(1, 2)),
            ("self-1", own(1, -1)),
            ("self/20", own(20, 0)),
            ("self/20+1", own(20, 1)),
        ] {
            assert_eq!(parse_member(text), expected, "{text}");
        }
        for text in ["", "me", "self20", "self/0", "self/", "self+", "-1", "self/2*3"] {
            assert!(parse_member(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_says_where_and_what_to_do() {
        let group = |program: &str| format!("[[group]]\nname = 'g'\nprogram = [{program}]");
        let cases = [
            ("[[group]\n".to_owned(), "line 1, column 9"),
            ("colour = 1".to_owned(), "line 1, column 1: unknown field `colour`"),
            ("[[group]]\nname = 'x'\nprogram = [{ run = '5' }]".to_owned(), "line 3, column 20: the unit is missing"),
            (String::new(), "workload: no task comes by itself"),
            (group(""), "group g: the program is empty"),
            (group("{}"), "group g, step 1: give exactly one of run"),
            (group("{ run = '1ms', sleep = '1ms' }"), "group g, step 1: give exactly one of"),
            (group("{ take = 'x' }"), "group g, step 1: there is no channel 'x' (there are: none)"),
            (group("{ fork = 'h' }"), "there is no group 'h' (there are: g)"),
            (group("{ repeat = 2 }"), "belong together"),
            (
                group("{ repeat = 2, do = [{ run = '1ms' }, { count = 2, run = '1ms' }] }"),
                "group g, step 1, step 2: count",
            ),
            (group("{ policy = 'fifo' }"), "needs a priority"),
            (group("{ nice = 40 }"), "nice values are -20 to 19, not 40"),
            (group("{ affinity = '9-2' }"), "the range ends before it starts"),
            ("[[group]]\nname='g'\npolicy='wild'\nprogram=[{run='1ms'}]".to_owned(), "there is no policy 'wild'"),
            ("[[group]]\nname='g'\npolicy='deadline'\nprogram=[{run='1ms'}]".to_owned(), "needs runtime and deadline"),
            ("[[channel]]\nname='c'\ncapacity=0\n".to_owned() + &group("{run='1ms'}"), "channel c: the capacity"),
        ];
        for (text, part) in cases {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}\n{error}");
        }
    }
}
