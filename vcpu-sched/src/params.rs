//! How a task wants to be scheduled: the values of `sched_setattr(2)`, checked.
//!
//! Made by whoever speaks to programs (the kernel's system calls, a simulator's workload file); applied by
//! [`RunQueue::change_params`](crate::runqueue::RunQueue::change_params). The invariant: a value of these types is one that
//! Linux would accept, so that the policies check nothing again.

use core::fmt;

use crate::events::ClassTag;
use crate::ids::Nanos;

/// Policy numbers of `<linux/sched.h>`.
pub mod number {
    /// `SCHED_NORMAL`, which POSIX calls `SCHED_OTHER`.
    pub const NORMAL: u32 = 0;
    /// `SCHED_FIFO`.
    pub const FIFO: u32 = 1;
    /// `SCHED_RR`.
    pub const RR: u32 = 2;
    /// `SCHED_BATCH`.
    pub const BATCH: u32 = 3;
    /// `SCHED_IDLE`.
    pub const IDLE: u32 = 5;
    /// `SCHED_DEADLINE`.
    pub const DEADLINE: u32 = 6;
    /// `SCHED_EXT`: scheduled from outside of the kernel; here by the agent of an enclave.
    pub const EXT: u32 = 7;
    /// The stop class in trace records: no program can ask for it.
    pub const STOP: u32 = 255;
}

/// `SCHED_FLAG_RESET_ON_FORK` of `sched_attr`.
pub const FLAG_RESET_ON_FORK: u64 = 1;

/// The numbers of a `struct sched_attr` as a program passes them, unchecked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SchedAttr {
    /// `SCHED_*`, see [`number`].
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Of the fair policies.
    pub nice: i32,
    /// Of the real-time policies, 1 to 99; of all others 0.
    pub priority: u32,
    /// Of a deadline task its budget; of a fair one the slice it wants, 0 for the default. Nanoseconds, as the two below.
    pub runtime: u64,
    /// When the budget must have been given, from the start of a period.
    pub deadline: u64,
    /// How often; 0: as `deadline`.
    pub period: u64,
}

/// Why [`SchedAttr`] can't be had. All are `EINVAL` to a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParamError {
    /// No such policy.
    Policy(u32),
    /// A flag that is not supported.
    Flags(u64),
    /// Real-time priorities are 1 to 99, and all other policies have 0.
    Priority {
        /// The policy that was asked for.
        policy: u32,
        /// The priority that came with it.
        priority: u32,
    },
    /// Not `1 us <= runtime <= deadline <= period`, or a period outside of 100 us to about 4.2 s.
    Deadline {
        /// The three as given.
        runtime: u64,
        /// See `runtime`.
        deadline: u64,
        /// See `runtime`.
        period: u64,
    },
}

impl fmt::Display for ParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Policy(policy) => write!(f, "there is no scheduling policy {policy}"),
            Self::Flags(flags) => write!(f, "unknown scheduling flags {flags:#x}"),
            Self::Priority { policy, priority } => write!(f, "policy {policy} can't have priority {priority}"),
            Self::Deadline { runtime, deadline, period } => {
                write!(f, "a budget of {runtime} ns until {deadline} ns every {period} ns can't be given")
            }
        }
    }
}

impl core::error::Error for ParamError {}

/// A nice value, -20 (much CPU) to 19 (little).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Nice(i8);

impl Nice {
    /// The greediest.
    pub const MIN: Self = Self(-20);
    /// The most modest.
    pub const MAX: Self = Self(19);

    /// The nearest nice value, as `setpriority(2)` takes any number.
    #[inline]
    pub const fn clamped(value: i32) -> Self {
        Self(if value < -20 {
            -20
        } else if value > 19 {
            19
        } else {
            value as i8
        })
    }

    /// As a number.
    #[inline]
    pub const fn get(self) -> i8 {
        self.0
    }

    /// 0 for -20 to 39 for 19.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        (self.0 + 20) as usize
    }
}

/// A real-time priority, 1 (lowest) to 99.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RtPriority(u8);

impl RtPriority {
    /// The lowest.
    pub const MIN: Self = Self(1);
    /// The highest.
    pub const MAX: Self = Self(99);

    /// `None` if it is not 1 to 99.
    #[inline]
    pub const fn new(priority: u32) -> Option<Self> {
        if matches!(priority, 1..=99) { Some(Self(priority as u8)) } else { None }
    }

    /// As a number.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// What a deadline task is promised: `runtime` within `deadline` of the start of every `period`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeadlineParams {
    runtime: Nanos,
    deadline: Nanos,
    period: Nanos,
}

impl DeadlineParams {
    /// Linux: a runtime below 2^10 ns is refused (`DL_SCALE`, kernel/sched/deadline.c).
    pub const MIN_RUNTIME: Nanos = Nanos(1 << 10);
    /// Linux: `sched_deadline_period_min_us`.
    pub const MIN_PERIOD: Nanos = Nanos::from_micros(100);
    /// Linux: `sched_deadline_period_max_us`, 2^22.
    pub const MAX_PERIOD: Nanos = Nanos::from_micros(1 << 22);

    /// Checks the three. A period of zero is the deadline.
    ///
    /// # Errors
    /// [`ParamError::Deadline`] if not `MIN_RUNTIME <= runtime <= deadline <= period`, or the period is out of its limits.
    pub const fn new(runtime: Nanos, deadline: Nanos, period: Nanos) -> Result<Self, ParamError> {
        let given = ParamError::Deadline { runtime: runtime.0, deadline: deadline.0, period: period.0 };
        let period = if period.0 == 0 { deadline } else { period };
        let ordered = Self::MIN_RUNTIME.0 <= runtime.0 && runtime.0 <= deadline.0 && deadline.0 <= period.0;
        if !ordered || period.0 < Self::MIN_PERIOD.0 || period.0 > Self::MAX_PERIOD.0 {
            return Err(given);
        }
        Ok(Self { runtime, deadline, period })
    }

    /// The budget of a period.
    #[inline]
    pub const fn runtime(self) -> Nanos {
        self.runtime
    }

    /// When it must have been given, from the start of the period.
    #[inline]
    pub const fn deadline(self) -> Nanos {
        self.deadline
    }

    /// How often.
    #[inline]
    pub const fn period(self) -> Nanos {
        self.period
    }
}

/// A slice that a fair task asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slice(Nanos);

impl Slice {
    /// The shortest. Linux, `__setparam_fair`: 0.1 ms to 100 ms.
    pub const MIN: Self = Self(Nanos::from_micros(100));
    /// The longest.
    pub const MAX: Self = Self(Nanos::from_millis(100));

    /// The nearest that is allowed; `None` for zero, which asks for the default.
    pub const fn clamped(slice: Nanos) -> Option<Self> {
        match slice.0 {
            0 => None,
            ns if ns < Self::MIN.0.0 => Some(Self::MIN),
            ns if ns > Self::MAX.0.0 => Some(Self::MAX),
            _ => Some(Self(slice)),
        }
    }

    /// As a time.
    #[inline]
    pub const fn get(self) -> Nanos {
        self.0
    }
}

/// A task's class with what only that class needs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// Above everything: the kernel's own errands on a CPU. No program can ask for it.
    Stop,
    /// Earliest deadline first, within a budget.
    Deadline(DeadlineParams),
    /// Real-time, until it blocks or yields.
    Fifo(RtPriority),
    /// Real-time, in turn with its equals.
    RoundRobin(RtPriority),
    /// An ordinary task.
    Normal,
    /// An ordinary task that preempts nobody when it wakes.
    Batch,
    /// Takes what others leave.
    Idle,
    /// Run where and when an agent says ([`delegation`](crate::delegation)); an ordinary task while there is no agent.
    Delegated,
}

/// How a task wants to be scheduled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SchedParams {
    /// Its class.
    pub class: Class,
    /// Its nice value, which it keeps while it is in a class that doesn't look at it.
    pub nice: Nice,
    /// The slice it asked for as a fair task; `None` for the default.
    pub slice: Option<Slice>,
    /// Its children start as ordinary tasks.
    pub reset_on_fork: bool,
}

/// Why a task can't have a child: it is a deadline task, whose budget can't be doubled (`EAGAIN`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CantFork;

impl fmt::Display for CantFork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a deadline task can only have children that don't inherit its budget (SCHED_FLAG_RESET_ON_FORK)")
    }
}

impl core::error::Error for CantFork {}

impl SchedParams {
    /// An ordinary task.
    pub const NORMAL: Self = Self::fair(Nice(0));

    /// An ordinary task with this nice value.
    pub const fn fair(nice: Nice) -> Self {
        Self { class: Class::Normal, nice, slice: None, reset_on_fork: false }
    }

    /// A task of this class, and for the rest ordinary.
    pub const fn of_class(class: Class) -> Self {
        Self { class, ..Self::NORMAL }
    }

    /// Checks what a program asked for.
    ///
    /// # Errors
    /// As Linux's `sched_setattr(2)`: [`ParamError`].
    pub const fn from_attr(attr: &SchedAttr) -> Result<Self, ParamError> {
        if attr.flags & !FLAG_RESET_ON_FORK != 0 {
            return Err(ParamError::Flags(attr.flags));
        }
        let bad_priority = ParamError::Priority { policy: attr.policy, priority: attr.priority };
        let class = match attr.policy {
            number::FIFO | number::RR => {
                let Some(priority) = RtPriority::new(attr.priority) else { return Err(bad_priority) };
                if attr.policy == number::FIFO { Class::Fifo(priority) } else { Class::RoundRobin(priority) }
            }
            number::NORMAL => Class::Normal,
            number::BATCH => Class::Batch,
            number::IDLE => Class::Idle,
            number::EXT => Class::Delegated,
            number::DEADLINE => {
                match DeadlineParams::new(Nanos(attr.runtime), Nanos(attr.deadline), Nanos(attr.period)) {
                    Ok(params) => Class::Deadline(params),
                    Err(e) => return Err(e),
                }
            }
            other => return Err(ParamError::Policy(other)),
        };
        if attr.priority != 0 && !matches!(class, Class::Fifo(_) | Class::RoundRobin(_)) {
            return Err(bad_priority);
        }
        let slice = match class {
            Class::Normal | Class::Batch | Class::Idle | Class::Delegated => Slice::clamped(Nanos(attr.runtime)),
            _ => None,
        };
        let reset_on_fork = attr.flags & FLAG_RESET_ON_FORK != 0;
        Ok(Self { class, nice: Nice::clamped(attr.nice), slice, reset_on_fork })
    }

    /// As `sched_getattr(2)` shows them. The slice of a fair task is its own or `default_slice`.
    pub const fn to_attr(self, default_slice: Nanos) -> SchedAttr {
        let mut attr = SchedAttr {
            policy: self.policy_number(),
            flags: if self.reset_on_fork { FLAG_RESET_ON_FORK } else { 0 },
            nice: 0,
            priority: 0,
            runtime: 0,
            deadline: 0,
            period: 0,
        };
        match self.class {
            Class::Stop => {}
            Class::Deadline(p) => {
                (attr.runtime, attr.deadline, attr.period) = (p.runtime.0, p.deadline.0, p.period.0);
            }
            Class::Fifo(p) | Class::RoundRobin(p) => attr.priority = p.0 as u32,
            Class::Normal | Class::Batch | Class::Idle | Class::Delegated => {
                attr.nice = self.nice.0 as i32;
                attr.runtime = match self.slice {
                    Some(slice) => slice.0.0,
                    None => default_slice.0,
                };
            }
        }
        attr
    }

    pub(crate) const fn slice_or_zero(&self) -> u64 {
        match self.slice {
            Some(slice) => slice.0.0,
            None => 0,
        }
    }

    /// Linux's number of the policy, as `sched_getscheduler(2)` returns it (without its flag for reset on fork).
    pub const fn policy_number(&self) -> u32 {
        match self.class {
            Class::Stop => number::STOP,
            Class::Deadline(_) => number::DEADLINE,
            Class::Fifo(_) => number::FIFO,
            Class::RoundRobin(_) => number::RR,
            Class::Normal => number::NORMAL,
            Class::Batch => number::BATCH,
            Class::Idle => number::IDLE,
            Class::Delegated => number::EXT,
        }
    }

    /// Class and priority for trace records.
    pub const fn tag(&self) -> ClassTag {
        let prio = match self.class {
            Class::Stop | Class::Deadline(_) => 0,
            Class::Fifo(p) | Class::RoundRobin(p) => 99 - p.0,
            Class::Normal | Class::Batch | Class::Idle | Class::Delegated => (120 + self.nice.0 as i16) as u8,
        };
        ClassTag { prio, policy: self.policy_number() as u8 }
    }

    /// What a child starts with. With [`reset_on_fork`](Self::reset_on_fork): as an ordinary task, with a nice value that
    /// is not below 0, and without the flag, as Linux's `sched_fork` does it.
    ///
    /// # Errors
    /// [`CantFork`] for a deadline task without the flag.
    pub fn for_child(self) -> Result<Self, CantFork> {
        if self.reset_on_fork {
            let above = matches!(self.class, Class::Stop | Class::Deadline(_) | Class::Fifo(_) | Class::RoundRobin(_));
            let nice = if above { Nice(0) } else { self.nice.max(Nice(0)) };
            let class = if above { Class::Normal } else { self.class };
            return Ok(Self { class, nice, slice: self.slice, reset_on_fork: false });
        }
        match self.class {
            Class::Deadline(_) => Err(CantFork),
            _ => Ok(self),
        }
    }
}

impl Default for SchedParams {
    fn default() -> Self {
        Self::NORMAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Nanos = Nanos::from_millis(3);

    fn attr(policy: u32, priority: u32) -> SchedAttr {
        SchedAttr { policy, priority, ..SchedAttr::default() }
    }

    #[test]
    fn what_linux_accepts_comes_back() {
        for (given, shown) in [
            (SchedAttr { nice: -7, ..attr(0, 0) }, SchedAttr { nice: -7, runtime: DEFAULT.0, ..attr(0, 0) }),
            (SchedAttr { nice: 99, runtime: 1, ..attr(3, 0) }, SchedAttr { nice: 19, runtime: 100_000, ..attr(3, 0) }),
            (SchedAttr { runtime: u64::MAX, ..attr(5, 0) }, SchedAttr { runtime: 100_000_000, ..attr(5, 0) }),
            (SchedAttr { nice: 3, ..attr(7, 0) }, SchedAttr { nice: 3, runtime: DEFAULT.0, ..attr(7, 0) }),
            (attr(1, 99), attr(1, 99)),
            (SchedAttr { flags: 1, ..attr(2, 1) }, SchedAttr { flags: 1, ..attr(2, 1) }),
            (
                SchedAttr { runtime: 1024, deadline: 100_000, ..attr(6, 0) },
                SchedAttr { runtime: 1024, deadline: 100_000, period: 100_000, ..attr(6, 0) },
            ),
        ] {
            let params = SchedParams::from_attr(&given).expect("valid");
            assert_eq!(params.to_attr(DEFAULT), shown);
        }
    }

    #[test]
    fn what_linux_refuses_is_refused() {
        for priority in [0, 100, u32::MAX] {
            assert_eq!(SchedParams::from_attr(&attr(1, priority)), Err(ParamError::Priority { policy: 1, priority }));
        }
        for policy in [0, 3, 5] {
            assert_eq!(SchedParams::from_attr(&attr(policy, 1)), Err(ParamError::Priority { policy, priority: 1 }));
        }
        for policy in [4, 8, 255, u32::MAX] {
            assert_eq!(SchedParams::from_attr(&attr(policy, 0)), Err(ParamError::Policy(policy)));
        }
        assert_eq!(SchedParams::from_attr(&SchedAttr { flags: 2, ..attr(0, 0) }), Err(ParamError::Flags(2)));
        for (runtime, deadline, period) in [
            (1023, 100_000, 100_000),
            (100_001, 100_000, 100_000),
            (50_000, 100_001, 100_000),
            (50_000, 90_000, 0),
            (50_000, 100_000, u64::MAX),
            (0, 0, 0),
        ] {
            let given = SchedAttr { runtime, deadline, period, ..attr(6, 0) };
            assert_eq!(SchedParams::from_attr(&given), Err(ParamError::Deadline { runtime, deadline, period }));
        }
    }

    #[test]
    fn tags_are_as_tools_show_them() {
        let rt = |priority| RtPriority::new(priority).expect("valid");
        for (class, nice, prio, policy) in [
            (Class::Stop, 0, 0, 255),
            (Class::Fifo(rt(99)), 0, 0, 1),
            (Class::RoundRobin(rt(1)), 5, 98, 2),
            (Class::Normal, -20, 100, 0),
            (Class::Batch, 0, 120, 3),
            (Class::Idle, 19, 139, 5),
        ] {
            let params = SchedParams { nice: Nice::clamped(nice), ..SchedParams::of_class(class) };
            assert_eq!(params.tag(), ClassTag { prio, policy }, "{class:?}");
        }
    }

    #[test]
    fn children_inherit_or_start_over() {
        let fifo = SchedParams::of_class(Class::Fifo(RtPriority::MAX));
        assert_eq!(fifo.for_child(), Ok(fifo));
        let reset = SchedParams { reset_on_fork: true, ..fifo };
        assert_eq!(reset.for_child(), Ok(SchedParams::NORMAL));
        let greedy = SchedParams { reset_on_fork: true, ..SchedParams::fair(Nice::MIN) };
        assert_eq!(greedy.for_child(), Ok(SchedParams::NORMAL));
        let promise = DeadlineParams::new(DeadlineParams::MIN_RUNTIME, DeadlineParams::MIN_PERIOD, Nanos::ZERO);
        let deadline = SchedParams::of_class(Class::Deadline(promise.expect("valid")));
        assert_eq!(deadline.for_child(), Err(CantFork));
        assert_eq!(SchedParams { reset_on_fork: true, ..deadline }.for_child(), Ok(SchedParams::NORMAL));
    }
}
