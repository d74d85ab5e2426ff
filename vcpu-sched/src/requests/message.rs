//! Requests and answers as values. [`Request::encode`] is the VMM's, [`Request::decode`] the kernel's.

use alloc::vec::Vec;
use core::fmt;

use super::change::ParamChange;
use super::cursor::{Reader, Short, Writer};
use super::head::{AnswerHead, RequestHead};
pub use super::program::{END, Output, READY, Spawn, Streaming, Streams};
use super::program::{read_spawn, read_streaming, write_spawn, write_streaming};
use crate::cpumask::{CpuMask, MASK_BYTES};
use crate::task::suspension::Holder;

/// What kind of request it is, by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Nothing but an answer.
    Ping = 1,
    /// [`Request::SetParams`].
    SetParams = 2,
    /// [`Request::SetAffinity`].
    SetAffinity = 3,
    /// [`Request::Signal`].
    Signal = 4,
    /// [`Request::Suspend`].
    Suspend = 5,
    /// [`Request::Resume`].
    Resume = 6,
    /// [`Request::Spawn`].
    Spawn = 7,
    /// [`Request::TraceRings`].
    TraceRings = 8,
    /// [`Request::Trace`].
    Trace = 9,
    /// [`Request::Streaming`].
    Streaming = 10,
}

impl Kind {
    /// All, in the order of their numbers.
    const ALL: [Self; 10] = [
        Self::Ping,
        Self::SetParams,
        Self::SetAffinity,
        Self::Signal,
        Self::Suspend,
        Self::Resume,
        Self::Spawn,
        Self::TraceRings,
        Self::Trace,
        Self::Streaming,
    ];
}

/// What a VMM can ask. Tasks are named by their numbers, as the task view shows them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Answer, if you are there.
    Ping,
    /// Schedule a task otherwise.
    SetParams {
        /// Its number.
        task: u32,
        /// What changes.
        change: ParamChange,
    },
    /// Run a task on these CPUs only.
    SetAffinity {
        /// Its number.
        task: u32,
        /// The CPUs.
        cpus: CpuMask,
    },
    /// Send a signal.
    Signal {
        /// Number of the task.
        task: u32,
        /// Number of the signal.
        signal: u32,
        /// To that thread alone, not to its process.
        thread_only: bool,
    },
    /// Take a task off its CPU and let it execute no instruction of its program until it is resumed. Answered when it is off.
    Suspend {
        /// Its number.
        task: u32,
        /// Who wants that.
        holder: Holder,
    },
    /// `holder` doesn't hold the task any more. It runs when nobody does.
    Resume {
        /// Its number.
        task: u32,
        /// Who held it.
        holder: Holder,
    },
    /// Start a program. Answered with its process number, when its program is loaded.
    Spawn(Spawn),
    /// Have a trace ring on each CPU from this one on, those that have one already included, as many as an answer holds. Answered with
    /// their number; the body is the rings' physical addresses in the order of the CPUs.
    TraceRings {
        /// The first CPU's number.
        first: u32,
        /// Records of a ring that has to be made, as `RingHeader::CAPACITIES` has them.
        records: u32,
    },
    /// Do something about trace records.
    Trace(Tracing),
    /// Do something with the streams of a program, or with a file.
    Streaming {
        /// Its process; 0 for a file.
        process: u32,
        /// What to do.
        what: Streaming,
    },
}

/// What to do about trace records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Tracing {
    /// Write no more.
    Stop = 0,
    /// Write them from now on, first the names of all tasks.
    Start = 1,
    /// Write a clock record now, into the ring of any CPU, whether others are written or not.
    Clock = 2,
}

impl Tracing {
    const ALL: [Self; 3] = [Self::Stop, Self::Start, Self::Clock];
}

/// Why a request was not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Refusal {
    /// A kind of request that this kernel doesn't know.
    Unknown = 1,
    /// Not as this version writes it.
    Malformed = 2,
    /// No task of that number.
    NoSuchTask = 3,
    /// A task of the kernel's own.
    KernelTask = 4,
    /// Values that no task can have.
    Invalid = 5,
    /// No CPU of the mask takes tasks.
    NoCpu = 6,
    /// No CPU has the time that a deadline task asks for.
    Overcommitted = 7,
    /// Not enough memory.
    NoMemory = 8,
    /// No such file.
    NotFound = 9,
    /// Not a program that this kernel can run.
    NotExecutable = 10,
    /// The task is ending.
    Ending = 11,
    /// This kernel was built without what it takes.
    Unsupported = 12,
    /// Too many programs are attached already.
    TooManyAttached = 13,
    /// No attached program of that number.
    NotAttached = 14,
    /// The program doesn't read its input any more.
    InputClosed = 15,
    /// The file can't be written.
    NotWritable = 16,
}

impl Refusal {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Unknown,
        Self::Malformed,
        Self::NoSuchTask,
        Self::KernelTask,
        Self::Invalid,
        Self::NoCpu,
        Self::Overcommitted,
        Self::NoMemory,
        Self::NotFound,
        Self::NotExecutable,
        Self::Ending,
        Self::Unsupported,
        Self::TooManyAttached,
        Self::NotAttached,
        Self::InputClosed,
        Self::NotWritable,
    ];
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "the guest's kernel doesn't know this request",
            Self::Malformed => "the guest's kernel doesn't understand this request",
            Self::NoSuchTask => "the guest has no such task; it may have ended",
            Self::KernelTask => "it is a task of the guest's kernel, which only programs' tasks can be asked of",
            Self::Invalid => "no task can have such values",
            Self::NoCpu => "none of these CPUs takes tasks",
            Self::Overcommitted => "no CPU has so much time left for a deadline task",
            Self::NoMemory => "the guest has not enough memory",
            Self::NotFound => "there is no such file in the guest",
            Self::NotExecutable => "the guest can't run that file: no program, dynamically linked, or not executable",
            Self::Ending => "the task is ending",
            Self::Unsupported => "the guest's kernel was built without that",
            Self::TooManyAttached => "as many programs as the guest's kernel allows have their streams attached",
            Self::NotAttached => "no program of that number has its streams attached; it may have been forgotten",
            Self::InputClosed => "the program reads no more input",
            Self::NotWritable => "the guest can't write a file of that name",
        })
    }
}

impl core::error::Error for Refusal {}

/// What became of a request: a value by its kind (see [`Request`]; 0 where that tells of none), or why not.
pub type Outcome = Result<u64, Refusal>;

/// The answer's head.
pub fn answer(sequence: u64, outcome: Outcome) -> AnswerHead {
    let (value, refusal) = match outcome {
        Ok(value) => (value, 0),
        Err(refusal) => (0, refusal as u32),
    };
    AnswerHead { sequence, value, refusal, ..AnswerHead::default() }
}

/// What a head says; `None` if it is a refusal that this version doesn't know.
pub fn outcome(head: &AnswerHead) -> Option<Outcome> {
    match head.refusal {
        0 => Some(Ok(head.value)),
        number => Refusal::ALL.into_iter().find(|refusal| *refusal as u32 == number).map(Err),
    }
}

/// Bits that say which values of a [`ParamChange`] are there.
mod present {
    pub const POLICY: u32 = 1;
    pub const NICE: u32 = 1 << 1;
    pub const PRIORITY: u32 = 1 << 2;
    pub const RUNTIME: u32 = 1 << 3;
    pub const DEADLINE: u32 = 1 << 4;
    pub const PERIOD: u32 = 1 << 5;
    pub const RESET: u32 = 1 << 6;
    pub const ALL: u32 = (1 << 7) - 1;
}

fn write_change(out: &mut Writer, change: &ParamChange) {
    let bit = |there: bool, bit: u32| if there { bit } else { 0 };
    out.u32(
        bit(change.policy.is_some(), present::POLICY)
            | bit(change.nice.is_some(), present::NICE)
            | bit(change.priority.is_some(), present::PRIORITY)
            | bit(change.runtime.is_some(), present::RUNTIME)
            | bit(change.deadline.is_some(), present::DEADLINE)
            | bit(change.period.is_some(), present::PERIOD)
            | bit(change.reset_on_fork.is_some(), present::RESET),
    );
    out.u32(change.policy.unwrap_or(0));
    out.u32(change.nice.unwrap_or(0).cast_unsigned());
    out.u32(change.priority.unwrap_or(0));
    out.u32(change.reset_on_fork.unwrap_or(false).into());
    for time in [change.runtime, change.deadline, change.period] {
        out.u64(time.unwrap_or(0));
    }
}

fn read_change(from: &mut Reader<'_>) -> Result<ParamChange, Short> {
    let bits = from.u32()?;
    if bits & !present::ALL != 0 {
        return Err(Short);
    }
    let has = |bit: u32| bits & bit != 0;
    let (policy, nice, priority, reset) = (from.u32()?, from.u32()?, from.u32()?, from.u32()?);
    let (runtime, deadline, period) = (from.u64()?, from.u64()?, from.u64()?);
    Ok(ParamChange {
        policy: has(present::POLICY).then_some(policy),
        nice: has(present::NICE).then_some(nice.cast_signed()),
        priority: has(present::PRIORITY).then_some(priority),
        runtime: has(present::RUNTIME).then_some(runtime),
        deadline: has(present::DEADLINE).then_some(deadline),
        period: has(present::PERIOD).then_some(period),
        reset_on_fork: has(present::RESET).then_some(reset != 0),
    })
}

impl Request {
    /// Head and body.
    pub fn encode(&self, sequence: u64) -> (RequestHead, Vec<u8>) {
        let mut body = Writer::default();
        let (kind, task) = match self {
            Self::Ping => (Kind::Ping, 0),
            Self::SetParams { task, change } => {
                write_change(&mut body, change);
                (Kind::SetParams, *task)
            }
            Self::SetAffinity { task, cpus } => {
                body.bytes(&cpus.to_le_bytes());
                (Kind::SetAffinity, *task)
            }
            Self::Signal { task, signal, thread_only } => {
                body.u32(*signal);
                body.u32((*thread_only).into());
                (Kind::Signal, *task)
            }
            Self::Suspend { task, holder } => {
                body.u32(*holder as u32);
                (Kind::Suspend, *task)
            }
            Self::Resume { task, holder } => {
                body.u32(*holder as u32);
                (Kind::Resume, *task)
            }
            Self::Spawn(spawn) => {
                write_spawn(&mut body, spawn);
                (Kind::Spawn, 0)
            }
            Self::TraceRings { first, records } => {
                body.u32(*first);
                body.u32(*records);
                (Kind::TraceRings, 0)
            }
            Self::Trace(what) => {
                body.u32(*what as u32);
                (Kind::Trace, 0)
            }
            Self::Streaming { process, what } => {
                write_streaming(&mut body, what);
                (Kind::Streaming, *process)
            }
        };
        let len = u32::try_from(body.0.len()).unwrap_or(u32::MAX);
        (RequestHead { sequence, kind: kind as u32, task, len, ..RequestHead::default() }, body.0)
    }

    /// Reads what was encoded. Any bytes give an answer.
    ///
    /// # Errors
    /// [`Refusal::Unknown`] or [`Refusal::Malformed`].
    pub fn decode(head: &RequestHead, body: &[u8]) -> Result<Self, Refusal> {
        let task = head.task;
        let mut from = Reader(body);
        let malformed = |_: Short| Refusal::Malformed;
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u32 == head.kind).ok_or(Refusal::Unknown)?;
        let request = match kind {
            Kind::Ping => Self::Ping,
            Kind::SetParams => Self::SetParams { task, change: read_change(&mut from).map_err(malformed)? },
            Kind::SetAffinity => {
                let bytes = from.bytes().map_err(malformed)?;
                if bytes.len() > MASK_BYTES {
                    return Err(Refusal::Malformed);
                }
                Self::SetAffinity { task, cpus: CpuMask::from_le_bytes(bytes) }
            }
            Kind::Signal => {
                let (signal, thread_only) = (from.u32().map_err(malformed)?, from.u32().map_err(malformed)?);
                Self::Signal { task, signal, thread_only: thread_only != 0 }
            }
            Kind::Suspend | Kind::Resume => {
                let holder = from.u32().map_err(malformed)?;
                let holder = Holder::from_number(holder).ok_or(Refusal::Malformed)?;
                match kind {
                    Kind::Suspend => Self::Suspend { task, holder },
                    _ => Self::Resume { task, holder },
                }
            }
            Kind::Spawn => Self::Spawn(read_spawn(&mut from).map_err(malformed)?),
            Kind::TraceRings => {
                let (first, records) = (from.u32().map_err(malformed)?, from.u32().map_err(malformed)?);
                Self::TraceRings { first, records }
            }
            Kind::Trace => {
                let what = from.u32().map_err(malformed)?;
                Self::Trace(Tracing::ALL.into_iter().find(|t| *t as u32 == what).ok_or(Refusal::Malformed)?)
            }
            Kind::Streaming => Self::Streaming { process: task, what: read_streaming(&mut from).map_err(malformed)? },
        };
        from.end().map_err(malformed)?;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::CpuId;

    fn change() -> impl Strategy<Value = ParamChange> {
        type Times = (Option<u64>, Option<u64>, Option<u64>);
        let numbers = any::<(Option<u32>, Option<i32>, Option<u32>, Option<bool>)>();
        (numbers, any::<Times>()).prop_map(|((policy, nice, priority, reset_on_fork), (runtime, deadline, period))| {
            ParamChange { policy, nice, priority, runtime, deadline, period, reset_on_fork }
        })
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1..=u8::MAX, 1..20)
    }

    fn streaming() -> impl Strategy<Value = Streaming> {
        let from = prop_oneof![Just(Output::Stdout), Just(Output::Stderr)];
        let bytes = || proptest::collection::vec(any::<u8>(), 0..50);
        prop_oneof![
            (from, any::<u32>()).prop_map(|(from, max)| Streaming::Read { from, max }),
            (bytes(), any::<bool>()).prop_map(|(bytes, end)| Streaming::Write { bytes, end }),
            Just(Streaming::Status),
            Just(Streaming::Forget),
            (text(), any::<(u32, u64)>(), bytes()).prop_map(|(path, (mode, offset), bytes)| Streaming::File {
                path,
                mode,
                offset,
                bytes
            }),
        ]
    }

    fn request() -> impl Strategy<Value = Request> {
        let holder = || prop_oneof![Just(Holder::Api), Just(Holder::Debugger)];
        let list = || proptest::collection::vec(text(), 0..5);
        let streams = prop_oneof![Just(Streams::Console), Just(Streams::Null), Just(Streams::Attached)];
        prop_oneof![
            Just(Request::Ping),
            (any::<u32>(), change()).prop_map(|(task, change)| Request::SetParams { task, change }),
            (any::<u32>(), proptest::collection::vec(0..1024_u32, 0..9)).prop_map(|(task, set)| {
                let mut cpus = CpuMask::empty();
                set.into_iter().for_each(|cpu| cpus.set(CpuId(cpu)));
                Request::SetAffinity { task, cpus }
            }),
            any::<(u32, u32, bool)>().prop_map(|(task, signal, thread_only)| Request::Signal {
                task,
                signal,
                thread_only
            }),
            (any::<u32>(), holder()).prop_map(|(task, holder)| Request::Suspend { task, holder }),
            (any::<u32>(), holder()).prop_map(|(task, holder)| Request::Resume { task, holder }),
            any::<(u32, u32)>().prop_map(|(first, records)| Request::TraceRings { first, records }),
            (0..3_usize).prop_map(|which| Request::Trace(Tracing::ALL[which])),
            (text(), list(), list(), text(), streams)
                .prop_map(|(path, args, env, cwd, streams)| Request::Spawn(Spawn { path, args, env, cwd, streams })),
            (any::<u32>(), streaming()).prop_map(|(process, what)| Request::Streaming { process, what }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_asked_is_what_arrives(request in request(), sequence: u64) {
            let (head, body) = request.encode(sequence);
            prop_assert_eq!(head.sequence, sequence);
            prop_assert_eq!(head.len as usize, body.len());
            prop_assert_eq!(Request::decode(&head, &body), Ok(request));
        }

        #[test]
        fn a_body_that_was_cut_or_lengthened_is_refused(request in request(), cut in 1_usize..9, more: bool) {
            let (head, mut body) = request.encode(1);
            if more {
                body.push(0);
            } else {
                prop_assume!(!body.is_empty());
                body.truncate(body.len().saturating_sub(cut));
            }
            prop_assert_eq!(Request::decode(&head, &body), Err(Refusal::Malformed));
        }

        #[test]
        fn any_bytes_give_an_answer(kind in 0..16_u32, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let head = RequestHead { kind, len: body.len() as u32, ..RequestHead::default() };
            let _ = Request::decode(&head, &body);
        }
    }

    #[test]
    fn outcomes_go_both_ways() {
        for outcome_ in [Ok(0), Ok(u64::MAX)].into_iter().chain(Refusal::ALL.map(Err)) {
            assert_eq!(outcome(&answer(9, outcome_)), Some(outcome_));
        }
        let foreign = AnswerHead { refusal: 99, ..AnswerHead::default() };
        assert_eq!(outcome(&foreign), None);
    }
}
