//! Trace records: what the scheduler did, as 32 bytes each. Written by the guest kernel, the simulator and (its own kinds)
//! the VMM; read by the trace's writers and the checker. Part of the guest/host line: a reader treats every field as hostile.
//!
//! The invariants a writer keeps:
//! - Records of one CPU (one ring) have rising time stamps.
//! - A record about a task's place (`New`, `Wake`, `Switch`, `Migrate`) is written with the run queue locked that the task
//!   enters or leaves, so that the records of one task are ordered as the events were; `seq` counts them per task, wrapping.
//! - A record that could not be written is counted ([`LOST`](crate::directory::RingHeader::LOST)), never silently dropped.

use crate::ids::{CpuId, TaskId};

/// Size of a record in bytes.
pub const RECORD_BYTES: usize = 32;

/// One record, as it lies in memory (little-endian).
///
/// `a` and `b` are read by [`Event::decode`] according to `kind`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Record {
    /// Time stamp: TSC ticks in a guest's ring, nanoseconds of virtual time in a simulator's.
    pub tsc: u64,
    /// The task that it is about; of a switch, the one that leaves.
    pub task: u32,
    /// That task's count of place records, wrapping; 0 in records that are not about a task's place.
    pub seq: u16,
    /// A [`Kind`].
    pub kind: u8,
    /// By kind.
    pub flags: u8,
    /// By kind.
    pub a: u64,
    /// By kind.
    pub b: u64,
}

const _: () = assert!(size_of::<Record>() == RECORD_BYTES && align_of::<Record>() == 8);

impl Record {
    /// The record's bytes in guest memory.
    pub const fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        let words = [
            self.tsc,
            self.task as u64 | (self.seq as u64) << 32 | (self.kind as u64) << 48 | (self.flags as u64) << 56,
            self.a,
            self.b,
        ];
        let mut i = 0;
        while i < RECORD_BYTES {
            out[i] = (words[i / 8] >> (8 * (i % 8))) as u8;
            i += 1;
        }
        out
    }

    /// From the bytes in guest memory. Any bytes are a record; what it means is [`Event::decode`]'s matter.
    pub const fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Self {
        let mut words = [0_u64; 4];
        let mut i = 0;
        while i < RECORD_BYTES {
            words[i / 8] |= (bytes[i] as u64) << (8 * (i % 8));
            i += 1;
        }
        Self {
            tsc: words[0],
            task: words[1] as u32,
            seq: (words[1] >> 32) as u16,
            kind: (words[1] >> 48) as u8,
            flags: (words[1] >> 56) as u8,
            a: words[2],
            b: words[3],
        }
    }
}

/// What a record tells. Numbers are part of the ABI and never reused; below 64 the guest's, from 64 the VMM's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Clock of this ring: `a` monotonic nanoseconds at `tsc`, `b` the TSC's frequency in kHz. First record of every ring,
    /// and again when the clock changes.
    Clock = 1,
    /// `a`, `b`: the task's name, 16 bytes, zero-padded UTF-8. Before its `New`, and when it is renamed.
    Name = 2,
    /// A new task was queued. Fields as [`Kind::Wake`]; the "waker" is its creator.
    New = 3,
    /// A blocked task was made ready and queued. `a`: waker's id (32 bits), target CPU (16), priority (8), policy (8);
    /// `b`: tasks queued there now (32). Flags: [`flag::KICKED`], [`flag::FROM_INTERRUPT`].
    Wake = 4,
    /// The CPU changes from `task` to another. `a`: next task's id (32 bits), its seq (16), its priority (8), its policy (8);
    /// `b`: tasks queued now (32), priority (8) and policy (8) of the one that leaves. Flags: low 3 bits the leaving task's
    /// [`State`](crate::task::state::State) afterwards, and [`flag::PREEMPTED`].
    Switch = 5,
    /// A ready task went to another CPU's queue. `a`: from (16), to (16), why (8, [`MigrateReason`]), tasks queued there
    /// now (16). Flags: [`flag::KICKED`]. Written by the ring of the CPU that moved it.
    Migrate = 6,
    /// The current task is going to wait. `a`: for what ([`WaitReason`]); `b`: an address or number that tells which.
    Block = 7,
    /// The task has ended. `a`: exit status.
    Exit = 8,
    /// Timer interrupt. Flags: [`flag::SLICE_OVER`].
    Tick = 9,
    /// Interrupt to another CPU. `a`: target CPU (32), vector (8). Flags: [`flag::RECEIVED`]; then `a` is the vector alone.
    Ipi = 10,
    /// Page fault. `a`: address, `b`: RIP. Flags: the error code's low bits.
    Fault = 11,
    /// System call entered. `a`: number, `b`: first argument.
    SyscallEnter = 12,
    /// System call left. `a`: number, `b`: result.
    SyscallExit = 13,
    /// Delegated scheduling: message, transaction or ejection. Fields as in the delegation ABI.
    Delegation = 14,
    /// 64 CPUs of a task's new affinity mask. `a`: the word, `b`: its index (32) and how many words there are (32).
    Affinity = 15,
    /// The task's class changed. `a`: policy (8), priority (8), nice as i8 (8); `b`: slice or deadline runtime in ns.
    Params = 16,
    /// The idle task halts the CPU (flags 0), or goes on (flags 1). `a`: tasks queued.
    Halt = 17,
    /// Time that the host took from this vCPU since the last such record. `a`: nanoseconds.
    Steal = 18,
    /// A chaos point did something. `a`: which point (32), what ([`ChaosAction`], 8); `b`: the random word used.
    Chaos = 19,
    /// `a` records were lost in this ring before this one.
    Lost = 20,
    /// This CPU takes tasks from now on (flags 1) or no more (flags 0).
    Online = 21,
    /// The task belongs to process `a`. After its `Name`, before its `New`; a kernel task has none and writes none.
    Process = 22,

    /// VMM: the vCPU is about to enter the guest. `task` is 0.
    VcpuEntry = 64,
    /// VMM: the vCPU has left the guest. `a`: exit reason (the VMM's numbering, named in the trace file).
    VcpuExit = 65,
    /// VMM: host CPU affinity of the vCPU's thread was set. `a`: first 64 CPUs of the mask.
    VcpuPin = 66,
    /// VMM: the vCPU's thread waited for a host CPU. `a`: nanoseconds since the last such record.
    VcpuSteal = 67,
    /// VMM: the vCPU was stopped on purpose (flags 1) or goes on (flags 0).
    VcpuPause = 68,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 27] = [
        Self::Clock,
        Self::Name,
        Self::New,
        Self::Wake,
        Self::Switch,
        Self::Migrate,
        Self::Block,
        Self::Exit,
        Self::Tick,
        Self::Ipi,
        Self::Fault,
        Self::SyscallEnter,
        Self::SyscallExit,
        Self::Delegation,
        Self::Affinity,
        Self::Params,
        Self::Halt,
        Self::Steal,
        Self::Chaos,
        Self::Lost,
        Self::Online,
        Self::Process,
        Self::VcpuEntry,
        Self::VcpuExit,
        Self::VcpuPin,
        Self::VcpuSteal,
        Self::VcpuPause,
    ];

    /// From a record's number; `None` for one that is not known.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == number)
    }
}

/// Bits of [`Record::flags`]. Those of a switch start above the three bits of the state.
pub mod flag {
    /// Wake, Migrate: an interrupt was sent to the target CPU.
    pub const KICKED: u8 = 1 << 3;
    /// Wake: the waker is an interrupt handler.
    pub const FROM_INTERRUPT: u8 = 1 << 4;
    /// Switch: the task that leaves was made to.
    pub const PREEMPTED: u8 = 1 << 5;
    /// Tick: the current task's slice is over.
    pub const SLICE_OVER: u8 = 1 << 3;
    /// Ipi: this CPU got it.
    pub const RECEIVED: u8 = 1 << 3;
    /// Switch: mask of the leaving task's state.
    pub const STATE: u8 = 0b111;
}

/// Why a ready task changed its queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum MigrateReason {
    /// Its affinity forbids the CPU that it was queued on.
    Affinity = 1,
    /// An idle CPU took it.
    IdlePull = 2,
    /// Periodic balancing.
    Balance = 3,
    /// A real-time or deadline task was pushed to a CPU that runs something lower.
    Push = 4,
    /// An agent outside of the kernel wanted it there, or has gone.
    Delegated = 5,
}

/// What a task waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum WaitReason {
    /// Nothing more is known.
    Other = 0,
    /// A futex; the number is its address.
    Futex = 1,
    /// A pipe, terminal or socket.
    Io = 2,
    /// A point in time; the number is the deadline in nanoseconds.
    Sleep = 3,
    /// A child process.
    Child = 4,
    /// A kernel lock.
    Mutex = 5,
    /// poll, select, epoll.
    Poll = 6,
    /// A signal.
    Signal = 7,
    /// Memory.
    Memory = 8,
    /// Its resumption: it was suspended from outside.
    Suspended = 9,
}

/// What a chaos point did.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ChaosAction {
    /// The current task was preempted.
    Preempt = 1,
    /// A task got a wake-up that nobody sent.
    SpuriousWake = 2,
    /// An interrupt to another CPU was delayed.
    DelayIpi = 3,
    /// A vCPU was stopped for a while.
    Pause = 4,
    /// A ready task was moved to another allowed CPU.
    Migrate = 5,
    /// Virtual time needed the real timer: from here on the run is not repeatable.
    RealTimer = 6,
}

impl Record {
    /// A record of a task that is queued (`New`, `Wake`).
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub const fn queued(
        kind: Kind,
        tsc: u64,
        task: TaskId,
        seq: u16,
        flags: u8,
        waker: TaskId,
        target: CpuId,
        class: ClassTag,
        queued: u32,
    ) -> Self {
        let a = waker.0 as u64 | (target.0 as u64 & 0xffff) << 32 | class.bits() << 48;
        Self { tsc, task: task.0, seq, kind: kind as u8, flags, a, b: queued as u64 }
    }

    /// A switch record.
    #[inline]
    pub const fn switch(tsc: u64, prev: Side, next: Side, flags: u8, queued: u32) -> Self {
        // Both halves of a word at once: an entity has them in one, the other way round.
        let place = next.seq as u32 | (next.class.bits() as u32) << 16;
        let a = next.task.0 as u64 | (place as u64) << 32;
        let b = queued as u64 | prev.class.bits() << 32;
        Self { tsc, task: prev.task.0, seq: prev.seq, kind: Kind::Switch as u8, flags, a, b }
    }
}

impl Record {
    /// A record of a ready task that changes its queue.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub const fn migrate(
        tsc: u64,
        task: TaskId,
        seq: u16,
        from: CpuId,
        to: CpuId,
        why: MigrateReason,
        queued: u32,
        kicked: bool,
    ) -> Self {
        let flags = if kicked { flag::KICKED } else { 0 };
        let queued = if queued > 0xffff { 0xffff } else { queued as u64 };
        let a = from.0 as u64 & 0xffff | (to.0 as u64 & 0xffff) << 16 | (why as u64) << 32 | queued << 40;
        Self { tsc, task: task.0, seq, kind: Kind::Migrate as u8, flags, a, b: 0 }
    }
}

/// One side of a switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Side {
    /// The task.
    pub task: TaskId,
    /// Its count of place records.
    pub seq: u16,
    /// Its class.
    pub class: ClassTag,
}

/// Class and priority of a task, as two bytes of a record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ClassTag {
    /// Linux's priority as tools show it: 0 to 99 above the fair tasks (deadline 0, FIFO and RR 99 minus the priority),
    /// 100 to 139 by nice value, 140 the idle task.
    pub prio: u8,
    /// Linux's policy number (`SCHED_*`); 255: stop class; 254: the idle task.
    pub policy: u8,
}

impl ClassTag {
    /// The idle task.
    pub const IDLE: Self = Self { prio: 140, policy: 254 };

    /// Both as the 16 bits of a record.
    #[inline]
    pub(crate) const fn bits(self) -> u64 {
        self.prio as u64 | (self.policy as u64) << 8
    }

    /// The way back.
    #[inline]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self { prio: bits as u8, policy: (bits >> 8) as u8 }
    }
}

/// The fields of the records that the checker and the writers look into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// [`Kind::New`], [`Kind::Wake`].
    Queued {
        /// New, not woken.
        new: bool,
        /// Who woke or made it.
        waker: TaskId,
        /// Where it was queued.
        target: CpuId,
        /// Its class.
        class: ClassTag,
        /// Tasks queued there.
        queued: u32,
        /// An interrupt was sent.
        kicked: bool,
    },
    /// [`Kind::Switch`].
    Switch {
        /// State of the task that left, as a number.
        prev_state: u8,
        /// It was made to leave.
        preempted: bool,
        /// Class of the task that left.
        prev_class: ClassTag,
        /// The task that runs now.
        next: Side,
        /// Tasks queued.
        queued: u32,
    },
    /// [`Kind::Migrate`].
    Migrate {
        /// From this CPU.
        from: CpuId,
        /// To this one.
        to: CpuId,
        /// A [`MigrateReason`], as a number.
        why: u8,
        /// Tasks queued there.
        queued: u32,
        /// An interrupt was sent.
        kicked: bool,
    },
    /// [`Kind::Name`].
    Name([u8; 16]),
    /// Any other known kind: its fields are `a`, `b` and `flags` as documented there.
    Plain(Kind),
}

impl Event {
    /// Reads a record. `None`: a kind that this version doesn't know.
    pub fn decode(r: &Record) -> Option<Self> {
        let kicked = r.flags & flag::KICKED != 0;
        Some(match Kind::from_u8(r.kind)? {
            kind @ (Kind::New | Kind::Wake) => Self::Queued {
                new: kind == Kind::New,
                waker: TaskId(r.a as u32),
                target: CpuId((r.a >> 32) as u32 & 0xffff),
                class: ClassTag::from_bits(r.a >> 48),
                queued: r.b as u32,
                kicked,
            },
            Kind::Switch => Self::Switch {
                prev_state: r.flags & flag::STATE,
                preempted: r.flags & flag::PREEMPTED != 0,
                prev_class: ClassTag::from_bits(r.b >> 32),
                next: Side { task: TaskId(r.a as u32), seq: (r.a >> 32) as u16, class: ClassTag::from_bits(r.a >> 48) },
                queued: r.b as u32,
            },
            Kind::Migrate => Self::Migrate {
                from: CpuId(r.a as u32 & 0xffff),
                to: CpuId((r.a >> 16) as u32 & 0xffff),
                why: (r.a >> 32) as u8,
                queued: (r.a >> 40) as u32 & 0xffff,
                kicked,
            },
            Kind::Name => {
                let mut name = [0; 16];
                name[..8].copy_from_slice(&r.a.to_le_bytes());
                name[8..].copy_from_slice(&r.b.to_le_bytes());
                Self::Name(name)
            }
            kind => Self::Plain(kind),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        let r = Record { tsc: 1, task: 2, seq: 3, kind: 4, flags: 5, a: 0x0102_0304_0506_0708, b: u64::MAX };
        let bytes = r.to_bytes();
        assert_eq!(bytes[..16], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 4, 5]);
        assert_eq!(Record::from_bytes(&bytes), r);
    }

    #[test]
    fn kinds_have_their_numbers() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_u8(kind as u8), Some(kind));
        }
        assert_eq!(Kind::from_u8(0), None);
        assert_eq!(Kind::from_u8(255), None);
    }

    #[test]
    fn a_switch_decodes_to_what_was_encoded() {
        let (low, high) = (ClassTag { prio: 120, policy: 0 }, ClassTag { prio: 49, policy: 1 });
        let prev = Side { task: TaskId(7), seq: 65535, class: low };
        let next = Side { task: TaskId(u32::MAX), seq: 9, class: high };
        let r = Record::switch(5, prev, next, 4 | flag::PREEMPTED, 12);
        assert_eq!((r.task, r.seq), (7, 65535));
        let expected = Event::Switch { prev_state: 4, preempted: true, prev_class: low, next, queued: 12 };
        assert_eq!(Event::decode(&r), Some(expected));
    }

    #[test]
    fn a_migration_decodes_to_what_was_encoded() {
        let r = Record::migrate(5, TaskId(1), 2, CpuId(1023), CpuId(7), MigrateReason::Push, 70_000, true);
        let (from, to, why) = (CpuId(1023), CpuId(7), MigrateReason::Push as u8);
        assert_eq!(Event::decode(&r), Some(Event::Migrate { from, to, why, queued: 0xffff, kicked: true }));
    }

    #[test]
    fn a_wake_decodes_to_what_was_encoded() {
        let class = ClassTag { prio: 0, policy: 6 };
        let r = Record::queued(Kind::Wake, 5, TaskId(1), 2, flag::KICKED, TaskId(3), CpuId(1023), class, 4);
        let expected =
            Event::Queued { new: false, waker: TaskId(3), target: CpuId(1023), class, queued: 4, kicked: true };
        assert_eq!(Event::decode(&r), Some(expected));
    }
}
