//! What a simulation is about: groups of tasks, what each of them does, and what they wait for each other with.
//!
//! Plain data, built by hand (tests) or from a file or trace (`taskvisor sim`). Times and choices are distributions; drawing
//! from them is the machine's matter. The invariant: a [`Workload`] that [`check`](Workload::check) accepts can be run to
//! its end without a panic, whatever it does.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::random::{Span, SpanError};
use crate::cpumask::CpuMask;
use crate::ids::{CpuId, Nanos};
use crate::params::SchedParams;

/// Most tasks at a time, groups, channels and loop levels that a machine takes: enough for anything that ends in a day.
pub const MAX_TASKS: u32 = 1 << 22;
/// Deepest nesting of [`Op::Repeat`].
pub const MAX_DEPTH: usize = 8;

/// Everything that runs.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// The tasks.
    pub groups: Vec<Group>,
    /// What they wait for each other with.
    pub channels: Vec<ChannelFamily>,
    /// What is done to them from outside, in any order.
    pub script: Vec<Intervention>,
}

/// Tasks of one kind.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name; a task is called after its group and its number in it.
    pub name: String,
    /// How many come by themselves. Others may come by [`Op::Fork`].
    pub count: u32,
    /// When the first one comes.
    pub start: Span,
    /// How long after the one before each further one comes.
    pub every: Span,
    /// How they are scheduled: task `i` gets number `i` modulo the length.
    pub params: Vec<SchedParams>,
    /// Where they may run.
    pub affinity: Affinity,
    /// What they do, over and over.
    pub program: Vec<Op>,
    /// How often; `None`: for ever.
    pub repeat: Option<u32>,
}

/// Where the tasks of a group may run. Restricted to the CPUs that the machine has; if none is left, anywhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Affinity {
    /// Anywhere.
    Any,
    /// On these.
    Mask(CpuMask),
    /// Task `i` on CPU `i` modulo their number, alone.
    Spread,
    /// Each on that many, chosen by chance.
    Random(u32),
}

/// One step of a program.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// Computes.
    Run(Span),
    /// Waits for time to pass.
    Sleep(Span),
    /// Gives way.
    Yield,
    /// Takes tokens, one at a time; waits while there is none.
    Take(ChannelRef, u32),
    /// Puts tokens, one at a time; waits while there is no room.
    Put(ChannelRef, u32),
    /// Waits at a barrier.
    Meet(ChannelRef),
    /// Makes tasks of a group.
    Fork {
        /// Index of the group.
        group: usize,
        /// How many.
        count: u32,
    },
    /// Waits until all tasks that it made have ended.
    Join,
    /// Ends a job of a periodic task, and waits for the release of the next one.
    NextPeriod {
        /// Time between releases. The first is the task's start.
        period: Nanos,
        /// How long after its release a job must have ended.
        deadline: Nanos,
    },
    /// Changes how it is scheduled.
    Params(SchedParams),
    /// Changes where it may run.
    Affinity(CpuMask),
    /// Does something several times.
    Repeat {
        /// How often.
        times: u32,
        /// What.
        body: Vec<Op>,
    },
    /// Ends the task.
    Exit,
}

/// Channels of one kind.
#[derive(Clone, PartialEq, Debug)]
pub struct ChannelFamily {
    /// Their name.
    pub name: String,
    /// How many.
    pub count: u32,
    /// What they are.
    pub kind: ChannelKind,
}

/// What a channel is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelKind {
    /// A semaphore; with a capacity, a pipe; with one token, a mutex.
    Tokens {
        /// Tokens in it at the beginning.
        initial: u64,
        /// Most that it holds; whoever puts more waits.
        capacity: Option<u64>,
        /// Every put wakes all who wait, not just as many as can go on.
        wake_all: bool,
    },
    /// Opens when so many have come.
    Barrier {
        /// How many.
        parties: u64,
    },
}

/// A channel, as a program names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelRef {
    /// Index of the family.
    pub family: usize,
    /// Which of the family.
    pub member: Member,
}

/// Which of a family of channels. Numbers wrap at the family's size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Member {
    /// Number `n`.
    Fixed(u32),
    /// The task's number in its group, divided by `divide`, plus `add`.
    Own {
        /// At least 1.
        divide: u32,
        /// May be negative.
        add: i32,
    },
    /// Another one every time.
    Random,
}

/// Something that is done to tasks from outside.
#[derive(Clone, Debug)]
pub struct Intervention {
    /// When.
    pub at: Nanos,
    /// On which CPU, modulo their number.
    pub on: CpuId,
    /// To which group.
    pub group: usize,
    /// To which of its tasks, counted in the order of their coming; `None`: to all that are there.
    pub task: Option<u32>,
    /// What.
    pub what: Change,
}

/// See [`Intervention`].
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// How it is scheduled.
    Params(SchedParams),
    /// Where it may run.
    Affinity(CpuMask),
    /// A wake-up for no reason.
    Wake,
}

/// What is wrong with a workload, and where.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkloadError {
    /// Where: a group or channel, and a step.
    pub place: String,
    /// What.
    pub what: Flaw,
}

/// See [`WorkloadError`].
#[derive(Clone, PartialEq, Debug)]
pub enum Flaw {
    /// Nothing would ever run.
    NoTasks,
    /// More tasks than [`MAX_TASKS`].
    TooManyTasks(u64),
    /// A group without parameters to schedule by.
    NoParams,
    /// A program that is empty.
    NoProgram,
    /// A distribution that can't be drawn from.
    Span(SpanError),
    /// A family of zero channels.
    NoChannels,
    /// A pipe that holds nothing, or less than it starts with.
    Capacity,
    /// A barrier for nobody.
    Parties,
    /// An index that names no group or channel.
    Unknown,
    /// `take` or `put` at a barrier, or `meet` at a channel that is none.
    WrongKind,
    /// A count of zero.
    Zero,
    /// A mask without any CPU, or a random mask of none.
    NoCpu,
    /// Deeper than [`MAX_DEPTH`].
    TooDeep,
}

impl fmt::Display for WorkloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTasks => f.write_str("no task comes by itself: give at least one group a count above 0"),
            Self::TooManyTasks(count) => write!(f, "{count} tasks are too many (at most {MAX_TASKS})"),
            Self::NoParams => f.write_str("no scheduling parameters are given"),
            Self::NoProgram => f.write_str("the program is empty: give it at least one step"),
            Self::Span(error) => write!(f, "{error}"),
            Self::NoChannels => f.write_str("the count must be at least 1"),
            Self::Capacity => f.write_str("the capacity must be at least 1, and not below the initial tokens"),
            Self::Parties => f.write_str("a barrier needs at least 1 party"),
            Self::Unknown => f.write_str("it names a group or channel that isn't there"),
            Self::WrongKind => f.write_str("barriers are met, all other channels are taken from and put to"),
            Self::Zero => f.write_str("the number must be at least 1"),
            Self::NoCpu => f.write_str("at least one CPU is needed"),
            Self::TooDeep => write!(f, "loops are nested more than {MAX_DEPTH} deep"),
        }
    }
}

impl core::error::Error for WorkloadError {}

impl Workload {
    /// Can it be run?
    ///
    /// # Errors
    /// The first [`WorkloadError`].
    pub fn check(&self) -> Result<(), WorkloadError> {
        let total: u64 = self.groups.iter().map(|group| u64::from(group.count)).sum();
        let flaw = match total {
            0 => Some(Flaw::NoTasks),
            n if n > u64::from(MAX_TASKS) => Some(Flaw::TooManyTasks(n)),
            _ => None,
        };
        if let Some(what) = flaw {
            return Err(WorkloadError { place: String::from("workload"), what });
        }
        for family in &self.channels {
            family.check().map_err(|what| WorkloadError { place: alloc::format!("channel {}", family.name), what })?;
        }
        for group in &self.groups {
            let place = alloc::format!("group {}", group.name);
            group.check(self, &place)?;
        }
        for (i, step) in self.script.iter().enumerate() {
            let no_cpu = matches!(&step.what, Change::Affinity(mask) if mask.is_empty());
            let flaw =
                if step.group >= self.groups.len() { Some(Flaw::Unknown) } else { no_cpu.then_some(Flaw::NoCpu) };
            if let Some(what) = flaw {
                return Err(WorkloadError { place: alloc::format!("intervention {}", i + 1), what });
            }
        }
        Ok(())
    }
}

impl ChannelFamily {
    fn check(&self) -> Result<(), Flaw> {
        match self.kind {
            _ if self.count == 0 => Err(Flaw::NoChannels),
            ChannelKind::Tokens { initial, capacity: Some(most), .. } if most == 0 || most < initial => {
                Err(Flaw::Capacity)
            }
            ChannelKind::Barrier { parties: 0 } => Err(Flaw::Parties),
            ChannelKind::Tokens { .. } | ChannelKind::Barrier { .. } => Ok(()),
        }
    }
}

impl Group {
    fn check(&self, workload: &Workload, place: &str) -> Result<(), WorkloadError> {
        let flawed = |what| Err(WorkloadError { place: String::from(place), what });
        if self.params.is_empty() {
            return flawed(Flaw::NoParams);
        }
        if self.program.is_empty() {
            return flawed(Flaw::NoProgram);
        }
        match &self.affinity {
            Affinity::Mask(mask) if mask.is_empty() => return flawed(Flaw::NoCpu),
            Affinity::Random(0) => return flawed(Flaw::NoCpu),
            _ => {}
        }
        for (span, name) in [(&self.start, "start"), (&self.every, "every")] {
            span.check()
                .map_err(|e| WorkloadError { place: alloc::format!("{place}, {name}"), what: Flaw::Span(e) })?;
        }
        check_ops(&self.program, workload, place, 0)
    }
}

fn check_ops(ops: &[Op], workload: &Workload, outer: &str, depth: usize) -> Result<(), WorkloadError> {
    for (i, op) in ops.iter().enumerate() {
        let place = || alloc::format!("{outer}, step {}", i + 1);
        op.check(workload).map_err(|what| WorkloadError { place: place(), what })?;
        if let Op::Repeat { body, .. } = op {
            if depth + 1 > MAX_DEPTH {
                return Err(WorkloadError { place: place(), what: Flaw::TooDeep });
            }
            check_ops(body, workload, &place(), depth + 1)?;
        }
    }
    Ok(())
}

impl Op {
    /// Looks at this step, not at the body of a loop.
    fn check(&self, workload: &Workload) -> Result<(), Flaw> {
        let channel = |channel: &ChannelRef, barrier: bool| {
            let family = workload.channels.get(channel.family).ok_or(Flaw::Unknown)?;
            match channel.member {
                Member::Own { divide: 0, .. } => Err(Flaw::Zero),
                _ if matches!(family.kind, ChannelKind::Barrier { .. }) != barrier => Err(Flaw::WrongKind),
                _ => Ok(()),
            }
        };
        match self {
            Self::Run(span) | Self::Sleep(span) => span.check().map_err(Flaw::Span),
            Self::Take(_, 0) | Self::Put(_, 0) | Self::Fork { count: 0, .. } => Err(Flaw::Zero),
            Self::Take(at, _) | Self::Put(at, _) => channel(at, false),
            Self::Meet(at) => channel(at, true),
            Self::Fork { group, .. } if *group >= workload.groups.len() => Err(Flaw::Unknown),
            Self::NextPeriod { period: Nanos::ZERO, .. } | Self::Repeat { times: 0, .. } => Err(Flaw::Zero),
            Self::Repeat { body, .. } if body.is_empty() => Err(Flaw::NoProgram),
            Self::Affinity(mask) if mask.is_empty() => Err(Flaw::NoCpu),
            Self::Yield
            | Self::Fork { .. }
            | Self::Join
            | Self::NextPeriod { .. }
            | Self::Params(_)
            | Self::Affinity(_)
            | Self::Repeat { .. }
            | Self::Exit => Ok(()),
        }
    }
}
