//! What the scheduler keeps of a task, embedded in every task by its owner.
//!
//! [`SchedEntity`] holds the task's parameters, the figures of its class and its [`Accounting`]. Only the policies and the
//! [`RunQueue`](crate::runqueue::RunQueue) write it. The invariant: all but the parameters' copies belong to whoever owns
//! the task at the moment: the holder of the lock of the run queue that the task is in or runs on, or, between two queues,
//! whoever moves it (see [`task::state`](crate::task::state)). The fields are relaxed atomics used as plain cells, because
//! tasks are shared.

#[cfg(all(test, loom))]
mod loom_models;

use crate::accounting::Accounting;
use crate::cell::{I64Cell, U8Cell, U32Cell, U64Cell};
use crate::events::ClassTag;
use crate::ids::{CpuId, Nanos, TaskId};
use crate::params::{Class, DeadlineParams, Nice, RtPriority, SchedParams, Slice, number};
use crate::placement::Level;
use crate::policy::fair::weight;
use crate::sync::{AtomicU8, AtomicU32, Ordering, const_new};

/// A handle to a task, as a run queue stores it; usually a counted pointer. A clone is the same task.
pub trait Entity: Clone {
    /// The task's number.
    fn id(&self) -> TaskId;

    /// The task's scheduling data: always the same one for the same task.
    fn sched(&self) -> &SchedEntity;
}

/// The classes in the order of their rank. Whatever a class has to run goes before all of the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Rank {
    /// [`policy::stop`](crate::policy::stop).
    Stop = 0,
    /// [`policy::deadline`](crate::policy::deadline).
    Deadline = 1,
    /// [`policy::realtime`](crate::policy::realtime).
    Realtime = 2,
    /// [`policy::delegated`](crate::policy::delegated).
    Delegated = 3,
    /// What was chosen at boot: [`PolicyKind`](crate::runqueue::PolicyKind).
    Normal = 4,
}

impl Rank {
    #[inline(always)]
    const fn from_u8(number: u8) -> Self {
        match number {
            0 => Self::Stop,
            1 => Self::Deadline,
            2 => Self::Realtime,
            3 => Self::Delegated,
            _ => Self::Normal,
        }
    }
}

/// No slot: the task is in no queue, or has no ghost.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// See the module's text.
#[derive(Debug)]
pub struct SchedEntity {
    /// What was asked for last. Written by [`SchedEntity::request`] only.
    wanted: ParamCells,
    /// `wanted` is not what is in force.
    pending: AtomicU8,
    /// The CPU whose run queue it is or was in, or which runs it, plus one; 0: none yet.
    queue: AtomicU32,

    /// What is in force, and what follows from it.
    params: ParamCells,
    rank: U8Cell,
    /// See [`SchedEntity::level`].
    level: U8Cell,
    /// The class that it is queued in or runs in: `rank` at the time that it was put there.
    pub(crate) placed: U8Cell,

    /// Where in its queue's memory it lies; its meaning is the policy's.
    pub(crate) slot: U32Cell,
    pub(crate) fair: FairState,
    pub(crate) deadline: DeadlineState,
    /// Rest of its slice under `SCHED_RR`.
    pub(crate) rr_left: U64Cell,
    /// Its key under `count` and `runtime`, what orders equals, and the least key of the queue that it left last.
    pub(crate) key: U64Cell,
    pub(crate) key_order: U64Cell,
    pub(crate) key_base: U64Cell,

    /// Its last CPU, plus one; 0: it never ran.
    last_cpu: U32Cell,
    /// How it came to its queue, if it has not run since: bits of [`arrival`].
    arrival: U8Cell,
    /// What trace records say of it, in one word because two tasks' are in each record of a switch: below its class, above how many
    /// records about its place there were.
    label: U32Cell,
    accounting: Accounting,
}

/// Bits of [`SchedEntity::arrival`].
mod arrival {
    /// It came from elsewhere, or for the first time.
    pub const CAME: u8 = 1;
    /// It was woken.
    pub const WOKEN: u8 = 2;
}

/// One record more in [`SchedEntity::label`], which wraps by itself.
const PLACE_RECORD: u32 = 1 << 16;

/// Figures of the fair class.
#[derive(Debug)]
pub(crate) struct FairState {
    pub(crate) weight: U32Cell,
    /// `2^32 / weight`.
    pub(crate) inverse: U32Cell,
    /// The length of a request, and the same in virtual time.
    slice: U64Cell,
    pub(crate) virtual_slice: U64Cell,
    pub(crate) vruntime: U64Cell,
    /// Virtual deadline while in a queue or running.
    pub(crate) deadline: U64Cell,
    /// While in no queue: how far it was behind (positive) or ahead of the average, in its virtual time.
    pub(crate) lag: I64Cell,
    /// While in no queue: what is left of its request; 0: it will make a new one.
    pub(crate) left: U64Cell,
    /// Its ghost: slot, generation, and queue plus one (0: none).
    pub(crate) ghost_slot: U32Cell,
    pub(crate) ghost_stamp: U32Cell,
    pub(crate) ghost_queue: U32Cell,
}

/// Figures of the deadline class.
#[derive(Debug)]
pub(crate) struct DeadlineState {
    /// What is left of this period's budget; below zero: overdrawn.
    pub(crate) budget: I64Cell,
    /// By when the budget is promised; 0: no promise was made yet.
    pub(crate) deadline: U64Cell,
    /// The CPU whose budget pays for it, plus one; 0: none.
    pub(crate) home: U32Cell,
}

/// Where in a [`SchedEntity`] the numbers lie that a kernel shows its VMM ([`taskview`](crate::taskview)). Of the parameters those that
/// were asked for last: a sleeping task takes them over when it wakes.
pub mod offsets {
    use core::mem::offset_of;

    use super::{ParamCells, SchedEntity};
    use crate::accounting;

    /// Linux's policy number, 1 byte.
    pub const POLICY: usize = offset_of!(SchedEntity, wanted) + offset_of!(ParamCells, policy);
    /// Real-time priority, 1 byte.
    pub const RT_PRIORITY: usize = offset_of!(SchedEntity, wanted) + offset_of!(ParamCells, rt_priority);
    /// Nice value, 1 byte.
    pub const NICE: usize = offset_of!(SchedEntity, wanted) + offset_of!(ParamCells, nice);
    /// Nanoseconds on a CPU, 8 bytes.
    pub const RUN: usize = offset_of!(SchedEntity, accounting) + accounting::RUN_AT;
    /// Times it gave way of its own will, 8 bytes.
    pub const VOLUNTARY: usize = offset_of!(SchedEntity, accounting) + accounting::VOLUNTARY_AT;
    /// Times it was made to give way, 8 bytes.
    pub const INVOLUNTARY: usize = offset_of!(SchedEntity, accounting) + accounting::INVOLUNTARY_AT;
    /// Nanoseconds in a queue, 8 bytes.
    pub const WAIT: usize = offset_of!(SchedEntity, accounting) + accounting::WAIT_AT;
    /// Nanoseconds asleep, 8 bytes.
    pub const SLEEP: usize = offset_of!(SchedEntity, accounting) + accounting::SLEEP_AT;
    /// When the present wait in a queue or sleep began, in nanoseconds of the monotonic clock, 8 bytes.
    pub const SINCE: usize = offset_of!(SchedEntity, accounting) + accounting::SINCE_AT;
}

impl SchedEntity {
    const_new! {
        /// For a task that has not started yet.
        pub const fn new(params: SchedParams) -> Self {
            let derived = Derived::of(&params, weight::DEFAULT_SLICE);
            Self {
                wanted: ParamCells::new(&params),
                pending: AtomicU8::new(0),
                queue: AtomicU32::new(0),
                params: ParamCells::new(&params),
                rank: U8Cell::new(derived.rank as u8),
                level: U8Cell::new(derived.level.get()),
                placed: U8Cell::new(derived.rank as u8),
                slot: U32Cell::new(NO_SLOT),
                fair: FairState::new(&derived),
                deadline: DeadlineState::new(),
                rr_left: U64Cell::new(0),
                key: U64Cell::new(0),
                key_order: U64Cell::new(0),
                key_base: U64Cell::new(0),
                last_cpu: U32Cell::new(0),
                arrival: U8Cell::new(0),
                label: U32Cell::new(params.tag().bits() as u32),
                accounting: Accounting::new(),
            }
        }
    }

    /// The parameters that were asked for last, for programs to see. Read while they change, they can be a mixture.
    pub fn params(&self) -> SchedParams {
        self.wanted.get()
    }

    /// Asks for other parameters. They come into force by [`RunQueue::apply_params`], or when the task is queued next:
    /// see there for the whole protocol. The caller lets nobody else ask for the same task meanwhile.
    ///
    /// [`RunQueue::apply_params`]: crate::runqueue::RunQueue::apply_params
    pub fn request(&self, params: &SchedParams) {
        self.wanted.set(params);
        // Release, for whoever finds it set. That it is found is argued in `queue`.
        self.pending.store(1, Ordering::Release);
    }

    /// The CPU whose run queue it is in or was in last, or which runs it. Stable only while that queue is locked.
    ///
    /// Between a [`request`](Self::request) here and a move to another queue there, at least one must see what the other
    /// did. Both make one read-modify-write of `queue`, so one of them is first:
    /// - the mover's `swap`: this returns the new queue;
    /// - this: the mover's `swap` reads what was written here (the same number) and, acquiring, sees the request.
    #[inline]
    pub fn queue(&self) -> Option<CpuId> {
        // Relaxed for the first look: it only decides what to try. Acquire and release: see above.
        let mut seen = self.queue.load(Ordering::Relaxed);
        while let Err(now) = self.queue.compare_exchange_weak(seen, seen, Ordering::AcqRel, Ordering::Relaxed) {
            seen = now;
        }
        seen.checked_sub(1).map(CpuId)
    }

    /// It is about to enter a queue of `cpu`, which is locked. Returns whether other parameters are to be applied first.
    #[inline]
    pub(crate) fn enter_queue(&self, cpu: CpuId) -> bool {
        // Relaxed: whoever stored it before held the lock of that queue, or made the task ours.
        if self.queue.load(Ordering::Relaxed) != cpu.0 + 1 {
            // Acquire and release: see `queue`. Within one queue its lock does this.
            self.queue.swap(cpu.0 + 1, Ordering::AcqRel);
        }
        // Acquire: what was asked for was written before.
        self.pending.load(Ordering::Acquire) != 0
    }

    /// Is there something to [`apply`](Self::apply)?
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire) != 0
    }

    /// Brings the parameters that were asked for into force. The task is in no queue and runs nowhere, or the policy that
    /// had it has forgotten it. `slice` is for one that asks for none.
    pub(crate) fn apply(&self, slice: Nanos) {
        // Cleared before the reading, and a swap, so that the reading can't come first: whoever asks in between sets it again.
        self.pending.swap(0, Ordering::AcqRel);
        let params = self.wanted.get();
        let derived = Derived::of(&params, slice);
        self.params.set(&params);
        self.rank.set(derived.rank as u8);
        self.level.set(derived.level.get());
        self.show_as(params.tag());
        self.fair.reweight(derived.weight);
        self.fair.slice.set(derived.slice);
        self.fair.virtual_slice.set(derived.virtual_slice);
        self.deadline.deadline.set(0);
    }

    /// The rank of its class.
    #[inline(always)]
    pub fn rank(&self) -> Rank {
        Rank::from_u8(self.rank.get())
    }

    /// It goes to the queue of its class.
    #[inline(always)]
    pub(crate) fn place(&self) -> Rank {
        let rank = self.rank.get();
        self.placed.set(rank);
        Rank::from_u8(rank)
    }

    /// The class that it is queued in or runs in.
    #[inline(always)]
    pub(crate) fn placed(&self) -> Rank {
        Rank::from_u8(self.placed.get())
    }

    /// Class and priority for trace records.
    #[inline]
    pub fn tag(&self) -> ClassTag {
        ClassTag::from_bits(u64::from(self.label.get()))
    }

    /// Has trace records say this of it: for an idle task, which has no class.
    pub fn show_as(&self, tag: ClassTag) {
        let records = self.label.get() & !(PLACE_RECORD - 1);
        self.label.set(records | tag.bits() as u32);
    }

    /// How important it is beside what runs on other CPUs.
    #[inline(always)]
    pub fn level(&self) -> Level {
        Level(self.level.get())
    }

    /// Its real-time priority; 0 if it has none.
    #[inline]
    pub fn rt_priority(&self) -> u8 {
        self.params.rt_priority.get()
    }

    /// Linux's number of its policy.
    #[inline]
    pub fn policy_number(&self) -> u32 {
        self.params.policy.get().into()
    }

    /// Does it want to be scheduled from outside? What was asked for last counts.
    #[inline(always)]
    pub fn wants_delegation(&self) -> bool {
        self.wanted.policy.get() == number::EXT as u8
    }

    /// Was it put where it is by an enclave? For the holder of its queue's lock.
    #[inline(always)]
    pub fn is_delegated(&self) -> bool {
        self.placed() == Rank::Delegated
    }

    /// It waits in an enclave from now on, whose lock is held. What entering a queue is elsewhere.
    #[inline]
    pub fn note_waiting(&self, first: bool, woken: bool, now: Nanos) {
        self.note_queued(first, woken, now);
    }

    /// What it is promised as a deadline task: runtime, deadline, period; zeroes if it is none.
    #[inline]
    pub(crate) fn promise(&self) -> [Nanos; 3] {
        [Nanos(self.params.dl[0].get()), Nanos(self.params.dl[1].get()), Nanos(self.params.dl[2].get())]
    }

    /// How long it runs at a time as a fair task: what it asked for, or what its run queue gives to those that don't ask.
    #[inline]
    pub fn slice(&self) -> Nanos {
        Nanos(self.fair.slice.get())
    }

    /// Its weight in the fair class: 1024 for nice 0.
    #[inline]
    pub fn weight(&self) -> u32 {
        self.fair.weight.get()
    }

    /// Counters of its time.
    #[inline]
    pub fn accounting(&self) -> &Accounting {
        &self.accounting
    }

    /// The CPU that it runs on or ran on last, if it ever ran.
    #[inline]
    pub fn last_cpu(&self) -> Option<CpuId> {
        self.last_cpu.get().checked_sub(1).map(CpuId)
    }

    /// The number for its next record about its place (`seq` of [`events::Record`](crate::events::Record)), from 0,
    /// wrapping. Called with the lock held of the run queue that the record tells of.
    #[inline]
    pub fn next_place_record(&self) -> u16 {
        self.next_place().0
    }

    /// [`next_place_record`](Self::next_place_record) and [`tag`](Self::tag), which nearly every such record has both.
    #[inline(always)]
    pub fn next_place(&self) -> (u16, ClassTag) {
        let label = self.label.get();
        self.label.set(label.wrapping_add(PLACE_RECORD));
        ((label >> 16) as u16, ClassTag::from_bits(u64::from(label)))
    }

    /// How many numbers [`SchedEntity::next_place_record`] has given out, wrapping.
    #[inline]
    pub fn place_records(&self) -> u16 {
        (self.label.get() >> 16) as u16
    }

    /// The CPU whose budget pays for it as a deadline task.
    #[inline]
    pub fn home(&self) -> Option<CpuId> {
        self.deadline.home.get().checked_sub(1).map(CpuId)
    }

    /// Notes whose budget pays for it, when [`deadline::choose_cpu`](crate::policy::deadline::choose_cpu) has chosen.
    #[inline]
    pub fn set_home(&self, home: Option<CpuId>) {
        self.deadline.home.set(home.map_or(0, |cpu| cpu.0 + 1));
    }

    /// It enters a queue.
    #[inline]
    pub(crate) fn note_queued(&self, first: bool, woken: bool, now: Nanos) {
        let mut how = self.arrival.get() | arrival::CAME;
        if woken {
            self.accounting.woken(now);
            how |= arrival::WOKEN;
        } else if first {
            self.accounting.started(now);
        }
        self.arrival.set(how);
    }

    /// It is about to be picked by a CPU that it has not been queued on.
    #[inline]
    pub(crate) fn note_came(&self) {
        self.arrival.set(self.arrival.get() | arrival::CAME);
    }

    /// It was picked by `cpu`.
    #[inline(always)]
    pub(crate) fn note_picked(&self, cpu: CpuId, now: Nanos) {
        let how = self.arrival.get();
        if how == 0 {
            return self.accounting.picked(now, false); // it ran here before
        }
        self.accounting.picked(now, how & arrival::WOKEN != 0);
        self.arrival.set(0);
        let tag = cpu.0 + 1;
        let last = self.last_cpu.get();
        if last != tag {
            self.last_cpu.set(tag);
            if last != 0 {
                self.accounting.migrated();
            }
        }
    }
}

impl Default for SchedEntity {
    fn default() -> Self {
        Self::new(SchedParams::NORMAL)
    }
}

impl FairState {
    const fn new(derived: &Derived) -> Self {
        Self {
            weight: U32Cell::new(derived.weight),
            inverse: U32Cell::new(weight::inverse(derived.weight)),
            slice: U64Cell::new(derived.slice),
            virtual_slice: U64Cell::new(derived.virtual_slice),
            vruntime: U64Cell::new(0),
            deadline: U64Cell::new(0),
            lag: I64Cell::new(0),
            left: U64Cell::new(0),
            ghost_slot: U32Cell::new(NO_SLOT),
            ghost_stamp: U32Cell::new(0),
            ghost_queue: U32Cell::new(0),
        }
    }

    /// Another weight. What it is owed stays the same in real time, so it changes in virtual time. Slow path: divides.
    fn reweight(&self, weight: u32) {
        let old = self.weight.get();
        if old == weight {
            return;
        }
        let scaled = |virtual_time: i128| virtual_time * i128::from(old) / i128::from(weight);
        self.lag.set(i64::try_from(scaled(self.lag.get().into())).unwrap_or(0));
        self.left.set(u64::try_from(scaled(self.left.get().into())).unwrap_or(0));
        self.weight.set(weight);
        self.inverse.set(weight::inverse(weight));
    }
}

impl DeadlineState {
    const fn new() -> Self {
        Self { budget: I64Cell::new(0), deadline: U64Cell::new(0), home: U32Cell::new(0) }
    }
}

/// [`SchedParams`] as cells.
#[derive(Debug)]
struct ParamCells {
    policy: U8Cell,
    rt_priority: U8Cell,
    nice: U8Cell,
    reset_on_fork: U8Cell,
    /// 0: the default.
    slice: U64Cell,
    /// Runtime, deadline and period.
    dl: [U64Cell; 3],
}

impl ParamCells {
    /// Policy number, real-time priority, and runtime, deadline and period.
    const fn class_numbers(class: Class) -> (u8, u8, [u64; 3]) {
        match class {
            Class::Stop => (number::STOP as u8, 0, [0; 3]),
            Class::Deadline(p) => (number::DEADLINE as u8, 0, [p.runtime().0, p.deadline().0, p.period().0]),
            Class::Fifo(p) => (number::FIFO as u8, p.get(), [0; 3]),
            Class::RoundRobin(p) => (number::RR as u8, p.get(), [0; 3]),
            Class::Normal => (number::NORMAL as u8, 0, [0; 3]),
            Class::Batch => (number::BATCH as u8, 0, [0; 3]),
            Class::Idle => (number::IDLE as u8, 0, [0; 3]),
            Class::Delegated => (number::EXT as u8, 0, [0; 3]),
        }
    }

    const fn new(params: &SchedParams) -> Self {
        let (policy, rt_priority, dl) = Self::class_numbers(params.class);
        Self {
            policy: U8Cell::new(policy),
            rt_priority: U8Cell::new(rt_priority),
            nice: U8Cell::new(params.nice.get() as u8),
            reset_on_fork: U8Cell::new(params.reset_on_fork as u8),
            slice: U64Cell::new(params.slice_or_zero()),
            dl: [U64Cell::new(dl[0]), U64Cell::new(dl[1]), U64Cell::new(dl[2])],
        }
    }

    fn set(&self, params: &SchedParams) {
        let (policy, rt_priority, dl) = Self::class_numbers(params.class);
        self.policy.set(policy);
        self.rt_priority.set(rt_priority);
        self.nice.set(params.nice.get() as u8);
        self.reset_on_fork.set(params.reset_on_fork.into());
        self.slice.set(params.slice_or_zero());
        for (cell, ns) in self.dl.iter().zip(dl) {
            cell.set(ns);
        }
    }

    /// Valid whatever the cells hold, see [`SchedEntity::params`].
    fn get(&self) -> SchedParams {
        let rt = || RtPriority::new(self.rt_priority.get().into()).unwrap_or(RtPriority::MIN);
        let class = match u32::from(self.policy.get()) {
            number::STOP => Class::Stop,
            number::FIFO => Class::Fifo(rt()),
            number::RR => Class::RoundRobin(rt()),
            number::BATCH => Class::Batch,
            number::IDLE => Class::Idle,
            number::EXT => Class::Delegated,
            number::DEADLINE => {
                let [runtime, deadline, period] = [0, 1, 2].map(|i| Nanos(self.dl[i].get()));
                DeadlineParams::new(runtime, deadline, period).map_or(Class::Normal, Class::Deadline)
            }
            _ => Class::Normal,
        };
        SchedParams {
            class,
            nice: Nice::clamped(i32::from(self.nice.get() as i8)),
            slice: Slice::clamped(Nanos(self.slice.get())),
            reset_on_fork: self.reset_on_fork.get() != 0,
        }
    }
}

/// What follows from parameters.
struct Derived {
    rank: Rank,
    level: Level,
    weight: u32,
    slice: u64,
    virtual_slice: u64,
}

impl Derived {
    const fn of(params: &SchedParams, default_slice: Nanos) -> Self {
        let (rank, level) = match params.class {
            Class::Stop => (Rank::Stop, Level::STOP),
            Class::Deadline(_) => (Rank::Deadline, Level::DEADLINE),
            Class::Fifo(priority) | Class::RoundRobin(priority) => (Rank::Realtime, Level::realtime(priority.get())),
            // Delegated tasks too: see `RunQueue::pick_delegated` for when they are more.
            Class::Normal | Class::Batch | Class::Idle | Class::Delegated => (Rank::Normal, Level::NORMAL),
        };
        let weight = match params.class {
            Class::Idle => weight::IDLE,
            _ => weight::of_nice(params.nice),
        };
        let slice = match params.slice {
            Some(slice) => slice.get().0,
            None => default_slice.0,
        };
        Self { rank, level, weight, slice, virtual_slice: weight::virtual_time(slice, weight, weight::inverse(weight)) }
    }
}
