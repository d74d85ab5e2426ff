//! What is known of one task: where it is, its class, where it may run. Used by [`super::rules`] and [`super::cpu`].

use alloc::boxed::Box;
use core::fmt;

use crate::cpumask::{CpuMask, MAX_CPUS};
use crate::events::ClassTag;
use crate::ids::{CpuId, Nanos};

/// Classes by rank: less goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rank(u8);

impl Rank {
    const STOP: Self = Self(0);
    pub(super) const DEADLINE: Self = Self(1);
    /// All that share a CPU fairly; no order among them is checked.
    pub(super) const FAIR: Self = Self(200);
    pub(super) const IDLE: Self = Self(255);

    /// Linux's policy numbers, `include/uapi/linux/sched.h`.
    pub(super) const fn of(class: ClassTag) -> Self {
        const FIFO: u8 = 1;
        const RR: u8 = 2;
        const DEADLINE: u8 = 6;
        const STOP: u8 = 255;
        const IDLE: u8 = ClassTag::IDLE.policy;
        match class.policy {
            STOP => Self::STOP,
            DEADLINE => Self::DEADLINE,
            FIFO | RR => Self(if class.prio < 100 { 2 + class.prio } else { 101 }),
            IDLE => Self::IDLE,
            _ => Self::FAIR,
        }
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::STOP => f.write_str("stop"),
            Self::DEADLINE => f.write_str("deadline"),
            Self::FAIR => f.write_str("fair"),
            Self::IDLE => f.write_str("idle"),
            Self(n) => write!(f, "real-time {}", 101 - n.min(101)),
        }
    }
}

/// Where a task is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Not known: the trace began later, or a record is missing.
    Unknown,
    /// In this CPU's queue.
    Queued(CpuId, Queued),
    /// This CPU runs it, or is about to leave it.
    OnCpu(CpuId),
    /// In no queue, until somebody wakes it.
    Waiting,
}

/// How a task lies in a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Queued {
    pub(super) since: Nanos,
    /// Counted in the queue's supply of tasks that any CPU may take.
    pub(super) free: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("nobody knows where"),
            Self::Queued(cpu, _) => write!(f, "queued on CPU {cpu}"),
            Self::OnCpu(cpu) => write!(f, "on CPU {cpu}"),
            Self::Waiting => f.write_str("waiting"),
        }
    }
}

/// One live task.
#[derive(Debug)]
pub(super) struct TaskState {
    /// Its last place record; none was seen yet if only its affinity is known.
    pub(super) seq: Option<u16>,
    pub(super) place: Place,
    pub(super) rank: Rank,
    pub(super) affinity: Affinity,
}

impl TaskState {
    pub(super) const fn new() -> Self {
        Self { seq: None, place: Place::Unknown, rank: Rank::FAIR, affinity: Affinity::new() }
    }
}

/// Where a task may run, as far as it was told.
#[derive(Debug)]
pub(super) struct Affinity {
    /// Boxed: most tasks never say anything.
    mask: Option<Box<CpuMask>>,
    /// When it was told.
    pub(super) since: Nanos,
    /// Words of the next mask.
    coming: Option<Box<CpuMask>>,
}

impl Affinity {
    const fn new() -> Self {
        Self { mask: None, since: Nanos::ZERO, coming: None }
    }

    /// A word of the mask: its bits, its index and how many there are. Returns whether the mask is whole.
    pub(super) fn word(&mut self, time: Nanos, bits: u64, index: u32, words: u32) -> bool {
        if index == 0 {
            self.coming = Some(Box::new(CpuMask::empty()));
        }
        let Some(coming) = &mut self.coming else { return false };
        for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
            if let Some(cpu) = index.checked_mul(64).and_then(|base| base.checked_add(bit)).filter(|&c| c < MAX_CPUS) {
                coming.set(CpuId(cpu));
            }
        }
        if index.checked_add(1) != Some(words) {
            return false;
        }
        self.mask = self.coming.take();
        self.since = time;
        true
    }

    /// Whether the task may run there; `None` if nothing is known.
    pub(super) fn allows(&self, cpu: CpuId) -> Option<bool> {
        self.mask.as_ref().map(|mask| cpu.0 < MAX_CPUS && mask.test(cpu))
    }

    /// Whether it is known that the task may run on all of `cpus`.
    pub(super) fn allows_all(&self, cpus: &CpuMask) -> bool {
        self.mask.as_ref().is_some_and(|mask| cpus.is_subset(mask))
    }

    pub(super) const fn known(&self) -> Option<&CpuMask> {
        match &self.mask {
            Some(mask) => Some(mask),
            None => None,
        }
    }
}
