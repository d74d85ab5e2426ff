//! What a guest shows of its tasks and CPUs, so that its VMM can list them without stopping it.
//!
//! Nothing is copied for the VMM's sake: it reads the very fields that the kernel works with. The kernel says once where in its
//! `Task` and its `Cpu` each field lies ([`Header::task_fields`], [`Header::cpu_fields`]), and lists its tasks' addresses in
//! a chain of pages ([`Chunk`]). So the view costs nothing at a switch or a wake-up, and a few stores when a task is made or
//! ends; and the kernel may lay its structures out as it likes.
//!
//! The header's guest-physical address stands in the directory ([`EntryKind::Tasks`](crate::directory::EntryKind::Tasks)), a
//! CPU's under [`EntryKind::Cpu`](crate::directory::EntryKind::Cpu). Pointers that the kernel itself uses (slots of a chunk, [`CpuField::Current`])
//! are addresses in the direct map; the directory says where that begins. All numbers are little-endian.
//!
//! Everything in it is the guest's word. [`Table::parse`] checks a copy as far as that can be done without guest memory; the
//! reader bounds what it follows.
//!
//! # A list that holds together
//! [`Header::generation`] is odd while the list is changed. A reader takes it, reads the list and the tasks, and takes it again:
//! if both are equal and even, the list is that of one moment, and no task that was read had been freed. Else it reads again. The
//! fields of one task may still be from different moments, since the task runs on; a paused guest has no such blur.

mod parse;

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64};

pub use parse::{Record, Table, ViewError};

/// First eight bytes of the header: "TVTASKS\0".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TVTASKS\0");
/// Version of this layout. A reader refuses any other; new fields don't need a new one.
pub const VERSION: u32 = 1;
/// Room for this many fields of each kind.
pub const MAX_FIELDS: usize = 64;
/// Offset that means: this kernel has no such field.
pub const ABSENT: u16 = u16::MAX;
/// Bytes of a task's name.
pub const NAME_BYTES: usize = 16;

/// Head of the view. The guest fills it once; the atomic fields live on.
#[derive(Debug)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// Size of the kernel's task structure; fields lie within.
    pub task_bytes: u32,
    /// Size of its CPU structure.
    pub cpu_bytes: u32,
    /// Tasks listed.
    pub live: AtomicU32,
    /// Slots in all chunks.
    pub slots: AtomicU32,
    /// Tasks that could not be listed, since there was no memory for a chunk.
    pub unlisted: AtomicU32,
    /// Odd while the list is changed; grows with every change.
    pub generation: AtomicU64,
    /// Guest-physical address of the first [`Chunk`]; 0: none.
    pub first_chunk: AtomicU64,
    /// Zero.
    pub reserved: [u64; 2],
    /// Offset of each [`TaskField`], or [`ABSENT`].
    pub task_fields: [u16; MAX_FIELDS],
    /// Offset of each [`CpuField`], or [`ABSENT`].
    pub cpu_fields: [u16; MAX_FIELDS],
}

/// Size of the header.
pub const HEADER_BYTES: usize = 320;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

/// Slots in a chunk.
pub const CHUNK_SLOTS: usize = 511;

/// A page of pointers to tasks. Free slots are zero.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Chunk {
    /// Guest-physical address of the next one; 0: none.
    pub next: AtomicU64,
    /// Direct-map addresses of tasks.
    pub slots: [AtomicU64; CHUNK_SLOTS],
}

/// Size of a chunk.
pub const CHUNK_BYTES: usize = 4096;
const _: () = assert!(size_of::<Chunk>() == CHUNK_BYTES);

macro_rules! fields {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $size:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(usize)]
        pub enum $name { $($(#[$doc])* $field,)* }

        impl $name {
            /// All, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$field,)*];

            /// Width in bytes.
            pub const fn size(self) -> usize {
                match self { $(Self::$field => $size,)* }
            }
        }

        const _: () = assert!($name::ALL.len() <= MAX_FIELDS);
    };
}

fields! {
    /// What is shown of a task. The numbers are the ABI: add at the end.
    TaskField {
        /// Number.
        Id: 4,
        /// [`State`](crate::task::state::State).
        State: 1,
        /// 1 while some CPU stands on its stack.
        OnCpu: 1,
        /// Last or present CPU.
        Cpu: 4,
        /// [`TaskKind`].
        Kind: 1,
        /// [`WaitReason`](crate::events::WaitReason) of its last wait.
        WaitReason: 1,
        /// UTF-8, padded with zeroes.
        Name: 16,
        /// Number of its process; 0: none.
        Process: 4,
        /// Stack pointer that it continues with, if it is not on a CPU.
        SavedRsp: 8,
        /// Guest-physical address of its top-level page table.
        Root: 8,
        /// Thread pointer.
        FsBase: 8,
        /// Time on a CPU up to its last switch, in TSC ticks.
        RunTicks: 8,
        /// Switches away from it that it asked for.
        Voluntary: 8,
        /// Switches that were forced on it.
        Involuntary: 8,
        /// Times it came to another CPU.
        Migrations: 8,
        /// Page faults resolved.
        Faults: 8,
        /// CPUs that it may run on, the first 64.
        Affinity: 8,
        /// Scheduling policy, by Linux's numbers.
        Policy: 1,
        /// Real-time priority, 0 to 99.
        Priority: 1,
        /// Nice value, signed.
        Nice: 1,
        /// Time on a CPU up to its last switch, in nanoseconds.
        RunNanos: 8,
        /// Time ready but not on a CPU, up to its last switch.
        WaitNanos: 8,
        /// Time blocked, up to its last wake-up.
        SleepNanos: 8,
        /// When it became ready or blocked, in nanoseconds of the kernel's monotonic clock; 0: not known. Old while it is on a CPU.
        Since: 8,
        /// Who holds it off its program: 0 for nobody, see [`Suspension`](crate::task::suspension::Suspension).
        Suspension: 4,
        /// CPUs from 64 on that it may run on, in words of 64. Of CPUs that the machine doesn't have it says nothing.
        AffinityRest: 120,
    }
}

fields! {
    /// What is shown of a CPU. The numbers are the ABI: add at the end.
    CpuField {
        /// Number.
        Id: 4,
        /// APIC id.
        ApicId: 4,
        /// Pointer to the running task.
        Current: 8,
        /// Pointer to its idle task.
        Idle: 8,
        /// Tasks ready or running, the idle task not counted.
        NrRunning: 4,
        /// When the running task was picked, in TSC ticks.
        PickedTicks: 8,
        /// The same in nanoseconds of the kernel's monotonic clock.
        PickedNanos: 8,
        /// Task switches.
        Switches: 8,
        /// System calls.
        Syscalls: 8,
        /// Page faults.
        Faults: 8,
        /// Timer interrupts.
        TimerInterrupts: 8,
        /// Reschedule interrupts received.
        RescheduleIpis: 8,
    }
}

/// What sort of task it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum TaskKind {
    /// Works for the kernel.
    Kernel = 0,
    /// Runs when nothing else does, one a CPU.
    Idle = 1,
    /// A thread of a program.
    User = 2,
}

impl TaskKind {
    /// From its number.
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Kernel,
            1 => Self::Idle,
            2 => Self::User,
            _ => return None,
        })
    }

    /// The word to print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Idle => "idle",
            Self::User => "user",
        }
    }
}

/// A [`WaitReason`](crate::events::WaitReason) by its number, as a word to print; `None` if it isn't one.
pub const fn wait_name(number: u8) -> Option<&'static str> {
    const NAMES: [&str; 10] =
        ["other", "futex", "io", "sleep", "child", "mutex", "poll", "signal", "memory", "suspended"];
    // The last one: a new reason needs a name.
    const _: () = assert!(NAMES.len() == crate::events::WaitReason::Suspended as usize + 1);
    if (number as usize) < NAMES.len() { Some(NAMES[number as usize]) } else { None }
}

/// Offset of [`Header::generation`], to read it alone.
pub const GENERATION_AT: usize = offset_of!(Header, generation);
