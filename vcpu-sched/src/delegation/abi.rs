//! The numbers and records of the shared region: what a C agent sees, field by field.
//!
//! These types are the *picture* of the memory, for the C header that is generated from this file and for those who read a
//! dump; the code of this crate reads and writes 64-bit words ([`Region`](super::layout::Region)), whose halves and quarters
//! lie where the fields lie here (tests compare them). The invariant: nothing here ever moves without another [`VERSION`].
//! All numbers are little-endian.

/// First eight bytes of a region: "TVDELEG\0".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TVDELEG\0");
/// Version of everything in this file. A reader refuses any other; a transaction with another is answered
/// `UNSUPPORTED_VERSION`.
pub const VERSION: u32 = 1;
/// Sections begin at multiples of this many bytes.
pub const SECTION_ALIGN: u64 = 4096;
/// 64-bit words of the header's CPU set.
pub const CPU_SET_WORDS: usize = 16;
/// Most CPUs of a region.
pub const MAX_CPUS: u32 = 1024;
/// Most status words.
pub const MAX_TASKS: u32 = 1 << 20;
/// Most channels.
pub const MAX_CHANNELS: u32 = 1024;
/// Most messages of a channel, and entries of a pick-next ring.
pub const MAX_RING: u32 = 1 << 20;

/// What stands in `gtid` for no task: the CPU is to be taken from its task.
pub const GTID_NONE: u64 = 0;
/// In `gtid`: the agent itself (one in the guest).
pub const GTID_AGENT: u64 = u64::MAX;
/// In `gtid`: nothing; the CPU is to idle until the next commit.
pub const GTID_IDLE: u64 = u64::MAX - 1;

/// The region's first page. Written once by the guest, before an agent may see it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// The enclave's number, unique in the guest.
    pub enclave: u32,
    /// CPU numbers go from 0 to this; every section "for each CPU" has so many.
    pub cpus: u32,
    /// Status words.
    pub tasks: u32,
    /// Channels. Number 0 is the default one.
    pub channels: u32,
    /// Messages of each channel, a power of two.
    pub channel_len: u32,
    /// Entries of each pick-next ring, a power of two.
    pub pick_len: u32,
    /// 0.
    pub reserved: u32,
    /// Size of the region in bytes.
    pub bytes: u64,
    /// Offset of the guest's page ([`GuestPage`]); all offsets are in bytes from the region's beginning.
    pub guest: u64,
    /// Offset of the CPUs ([`CpuWord`]).
    pub cpu: u64,
    /// Offset of the tasks ([`StatusWord`]).
    pub task: u64,
    /// Offset of the channels ([`ChannelHead`], then messages, for each).
    pub channel: u64,
    /// Offset of the host's words ([`HostWord`]).
    pub host: u64,
    /// Offset of the agent's page ([`AgentPage`]).
    pub agent: u64,
    /// Offset of the tails (a 64-byte line for each channel, whose first word counts).
    pub tail: u64,
    /// Offset of the transactions ([`Transaction`]).
    pub transaction: u64,
    /// Offset of the pick-next rings (a 64-byte line whose first word is the head, then [`PickEntry`]s, for each).
    pub pick: u64,
    /// The enclave's CPUs: bit n of word w is CPU 64 w + n. [`CPU_SET_WORDS`] of them.
    pub cpu_set: [u64; 16],
}

/// The page that the guest writes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestPage {
    /// Number of the agent that the word beside speaks of.
    pub nonce: u32,
    /// A [`guest_state`].
    pub state: u32,
    /// Number of the last request that was answered.
    pub answered: u32,
    /// Its answer, an [`answer`].
    pub answer: u32,
}

/// What a CPU does. Written by the guest.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuWord {
    /// The agent barrier: CPU messages, pings and latches so far.
    pub barrier: u32,
    /// [`cpu_flags`].
    pub flags: u32,
    /// The task it runs, or [`GTID_NONE`].
    pub gtid: u64,
    /// When that was switched to; nanoseconds of the guest's clock.
    pub switch_time: u64,
    /// Its history's number.
    pub cpu_seqnum: u64,
    /// Entries of its pick-next ring that were taken.
    pub pick_tail: u64,
    /// 0.
    pub reserved: [u64; 3],
}

/// What a task does. Written by the guest.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusWord {
    /// The task barrier: its messages so far.
    pub barrier: u32,
    /// [`task_flags`].
    pub flags: u32,
    /// The task, never reused.
    pub gtid: u64,
    /// When it was switched to last.
    pub switch_time: u64,
    /// CPU time it used before that.
    pub runtime: u64,
}

/// What a channel tells beside its messages. Written by the guest.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelHead {
    /// Messages that found no room.
    pub overflow: u64,
    /// 0.
    pub reserved: [u64; 7],
}

/// One message. `word0` is written last and read first.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Position in the channel plus one, modulo 2^32: the message is there when this is the one awaited.
    pub position: u32,
    /// What happened: a `TVD_MSG_` number, `MessageType`.
    pub kind: u16,
    /// [`message_flags`].
    pub flags: u16,
    /// Of a task message: its status word. Of a CPU message: 0.
    pub slot: u32,
    /// Of a task message: the task barrier after it. Of a CPU message: the agent barrier.
    pub seqnum: u32,
    /// The task, or [`GTID_NONE`].
    pub gtid: u64,
    /// Number of the CPU's history; 0 in messages that say nothing of a CPU.
    pub cpu_seqnum: u64,
    /// CPU time of the task up to now.
    pub runtime: u64,
    /// When it happened; nanoseconds of the guest's clock.
    pub time: u64,
    /// The CPU it happened on. WAKEUP: the CPU it ran on last.
    pub cpu: u16,
    /// WAKEUP: the CPU where it is queued now.
    pub wake_up_cpu: u16,
    /// WAKEUP: the CPU of the waker.
    pub waker_cpu: u16,
    /// NEW, PRIORITY_CHANGED: the nice value, signed.
    pub nice: i16,
    /// NEW: the parent, or 0. TIMER_EXPIRED: the cookie. LATCH_FAILURE: the state that the commit would have had. NOT_IDLE: what runs next.
    pub extra: u64,
}

/// What the agent asks for on one CPU.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// A `TVD_TXN_` number, `TxnState`.
    pub state: u16,
    /// While claimed: the CPU that claimed it.
    pub claimer: u16,
    /// [`VERSION`].
    pub version: u16,
    /// [`txn_flags`].
    pub flags: u16,
    /// The task, or one of the three special numbers.
    pub gtid: u64,
    /// Its status word.
    pub slot: u32,
    /// The task barrier that the agent has seen.
    pub task_barrier: u32,
    /// The agent barrier that an agent in the guest has seen.
    pub agent_barrier: u32,
    /// The CPU, again; must agree with the transaction's place.
    pub cpu: u16,
    /// Sync group: the CPU that commits the whole group, plus one; 0: no group.
    pub sync_group_owner: u16,
    /// [`run_flags`].
    pub run_flags: u32,
    /// [`commit_flags`].
    pub commit_flags: u32,
    /// Result: when it was committed.
    pub commit_time: u64,
    /// Result: number of the CPU's history at the commit.
    pub cpu_seqnum: u64,
    /// 0.
    pub reserved: u64,
}

/// One entry of a pick-next ring.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PickEntry {
    /// The task's status word.
    pub slot: u32,
    /// The task barrier that the agent has seen.
    pub task_barrier: u32,
    /// The task.
    pub gtid: u64,
}

/// What only the hypervisor knows of a vCPU. Written by the VMM; all 0 if nobody does.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostWord {
    /// [`host_flags`].
    pub flags: u32,
    /// The host CPU it runs or ran on.
    pub host_cpu: u32,
    /// Since when it is as `flags` say; nanoseconds of the guest's clock.
    pub since: u64,
    /// Nanoseconds for which it wanted to run and did not, since the beginning.
    pub stolen: u64,
    /// Number of the core that it shares with the CPUs of the same number, plus one; 0: unknown.
    pub core: u64,
    /// 0.
    pub reserved: [u64; 4],
}

/// The page that the agent writes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AgentPage {
    /// The agent's number, chosen at random and not 0; 0: no agent. Taken by compare-and-swap of both fields.
    pub nonce: u32,
    /// [`attach_flags`].
    pub flags: u32,
    /// [`tunables`].
    pub tunables: u32,
    /// Milliseconds that a task may wait queued before the agent counts as hung; 0 or more than the enclave's limit: that limit.
    pub runnable_timeout: u32,
    /// The doorbell: 1 while the agent sleeps, 2 rung, 0 awake.
    pub bell: u64,
    /// Number of the request; a new number posts it. Written last.
    pub request: u32,
    /// A [`request`].
    pub op: u32,
    /// The task's status word. ARM_TIMER: the CPU.
    pub slot: u32,
    /// The task barrier seen.
    pub barrier: u32,
    /// ASSOCIATE: the channel. ARM_TIMER: the time.
    pub value: u64,
    /// ARM_TIMER: comes back in TIMER_EXPIRED.
    pub cookie: u64,
}

macro_rules! bits {
    ($($(#[$doc:meta])* $module:ident: $type:ident { $($(#[$bit_doc:meta])* $name:ident = $value:expr,)* })*) => {$(
        $(#[$doc])*
        pub mod $module {
            $($(#[$bit_doc])* pub const $name: $type = $value;)*
            /// All that are defined.
            pub const ALL: $type = 0 $(| $name)*;
            /// Each with its name.
            pub const NAMES: &[(&str, $type)] = &[$((stringify!($name), $name)),*];
        }
    )*};
}

/// As [`bits`], for numbers of which there is one at a time.
macro_rules! numbers {
    ($($(#[$doc:meta])* $module:ident: $type:ident { $($(#[$number_doc:meta])* $name:ident = $value:expr,)* })*) => {$(
        $(#[$doc])*
        pub mod $module {
            $($(#[$number_doc])* pub const $name: $type = $value;)*
            /// Each with its name.
            pub const NAMES: &[(&str, $type)] = &[$((stringify!($name), $name)),*];
        }
    )*};
}

bits! {
    /// Flags of a CPU.
    cpu_flags: u32 {
        /// In the enclave and online.
        ONLINE = 1,
        /// No task of a higher class runs or waits there.
        CPU_AVAIL = 2,
        /// The agent there (one in the guest) is runnable or runs.
        BOOST_PRIO = 4,
        /// A latch waits to be switched to.
        LATCHED = 8,
    }
    /// Flags of a task.
    task_flags: u32 {
        /// The status word belongs to a task.
        INUSE = 1,
        /// The task has gone; the agent may forget it.
        CANFREE = 2,
        /// The status word was used at least once.
        ALLOCATED = 4,
        /// It is on a CPU.
        TASK_ONCPU = 0x100,
        /// It may run.
        TASK_RUNNABLE = 0x200,
        /// It is the agent.
        IS_AGENT = 0x400,
        /// Its NEW is still to come; no transaction for it is accepted.
        MSG_GATED = 0x800,
    }
    /// Flags of a message.
    message_flags: u16 {
        /// The task had its CPU from a chain of SWITCHTO.
        FROM_SWITCHTO = 1,
        /// PREEMPT, ON_CPU: it was latched and never ran.
        WAS_LATCHED = 2,
        /// DEPARTED: it was on `cpu`.
        WAS_CURRENT = 4,
        /// WAKEUP: may wait for the next decision.
        DEFERRABLE = 8,
        /// NEW: it may run.
        RUNNABLE = 16,
    }
    /// Flags in a transaction's first word.
    txn_flags: u16 {
        /// Set by the guest: this CPU is busy and looks when it schedules; who wants it to look before must kick it.
        KICK = 1,
        /// Set by the guest: this CPU halts; who makes the transaction READY must kick it.
        HALTED = 2,
    }
    /// When and how a transaction is committed; 0: at the first opportunity.
    commit_flags: u32 {
        /// Only when the CPU schedules or idles.
        AT_SCHEDULE = 1,
        /// Only at a kick or the commit call, or while the CPU idles.
        AT_TXN_COMMIT = 2,
        /// No error if the task is on this very CPU already.
        ALLOW_TASK_ONCPU = 4,
        /// The latch doesn't count in the agent barrier.
        ELIDE_AGENT_BARRIER_INC = 8,
        /// A failure counts in the agent barrier.
        INC_AGENT_BARRIER_ON_FAILURE = 16,
    }
    /// How a task runs, and what its end does.
    run_flags: u32 {
        /// Run the agent when it is preempted.
        RTLA_ON_PREEMPT = 1,
        /// Run the agent when it blocks.
        RTLA_ON_BLOCKED = 2,
        /// Run the agent when it yields.
        RTLA_ON_YIELD = 4,
        /// Run the agent when the CPU idles.
        RTLA_ON_IDLE = 8,
        /// With [`GTID_IDLE`](super::GTID_IDLE): NOT_IDLE when something runs there all the same.
        NEED_CPU_NOT_IDLE = 16,
        /// No PREEMPT for the task that this one displaces.
        ELIDE_PREEMPT = 32,
        /// ON_CPU when it is switched to.
        SEND_TASK_ON_CPU = 64,
        /// Stays latched when the agent takes the CPU.
        DEFER_LATCHED_PREEMPTION_BY_AGENT = 128,
        /// No other transaction takes its CPU.
        DO_NOT_PREEMPT = 256,
    }
    /// Flags of a vCPU as the host sees it.
    host_flags: u32 {
        /// Somebody writes these words.
        KNOWN = 1,
        /// It runs on a host CPU.
        RUNNING = 2,
        /// It halts of its own will.
        HALTED = 4,
    }
    /// What an agent wants at attach.
    attach_flags: u32 {
        /// It wants to be online.
        ONLINE = 1,
        /// NEW for every task there is.
        DISCOVER = 2,
        /// It sleeps between messages: the guest rings the doorbell.
        SLEEPS = 4,
    }
    /// What the agent may set at any time.
    tunables: u32 {
        /// Look for a transaction at ticks, too.
        COMMIT_AT_TICK = 1,
        /// Send TICK.
        DELIVER_TICKS = 2,
        /// Send AGENT_BLOCKED and AGENT_WAKEUP.
        DELIVER_AGENT_RUNNABILITY = 4,
        /// Send AVAILABLE and BUSY.
        DELIVER_CPU_AVAILABILITY = 8,
        /// Refuse to give a CPU away directly: the task blocks, the other wakes.
        SWITCHTO_DISABLED = 16,
        /// Queue a woken task on the waker's CPU, not on its own.
        WAKE_ON_WAKER_CPU = 32,
    }
}

numbers! {
    /// What the guest says of the agent.
    guest_state: u32 {
        /// No agent; tasks run as fair ones.
        VACANT = 0,
        /// This agent decides.
        ONLINE = 1,
        /// This agent has left, and the next is awaited.
        HAND_OFF = 2,
        /// Ejected: a task waited too long.
        EJECTED_TIMEOUT = 3,
        /// Ejected: too many refused commits or requests.
        EJECTED_FLOOD = 4,
        /// Ejected: the enclave's owner wanted it.
        EJECTED_OWNER = 5,
    }
    /// What an agent can ask for.
    request: u32 {
        /// Messages of task `slot` go to channel `value` from now on.
        ASSOCIATE = 1,
        /// NEW for every task.
        DISCOVER = 2,
        /// TIMER_EXPIRED on CPU `slot` at time `value`.
        ARM_TIMER = 3,
        /// The record of a task that has gone is not needed any more.
        FREE = 4,
    }
    /// What the guest says to a request.
    answer: u32 {
        /// Done.
        OK = 0,
        /// A message came between; look again.
        STALE = 1,
        /// No such task.
        NO_TASK = 2,
        /// It was so already.
        ALREADY = 3,
        /// No such channel, CPU or request.
        INVALID = 4,
    }
}

const _: () = {
    assert!(size_of::<Header>() - core::mem::offset_of!(Header, cpu_set) == CPU_SET_WORDS * 8);
    assert!(size_of::<Header>() <= SECTION_ALIGN as usize && size_of::<CpuWord>() == 64 && size_of::<HostWord>() == 64);
    assert!(size_of::<StatusWord>() == 32 && size_of::<Message>() == 64 && size_of::<Transaction>() == 64);
    assert!(size_of::<PickEntry>() == 16 && size_of::<ChannelHead>() == 64);
};
