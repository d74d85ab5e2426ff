//! The task-debug port: how a guest kernel lets its VMM debug what runs in ring 3.
//!
//! Breakpoints and single steps of programs arrive in the guest's own exception handlers, on every host. The kernel writes
//! the event to [`PORT`] before it acts on it, with the address of the saved registers in RDI and what the event is about in
//! RSI, and looks at EAX afterwards: [`HANDLED`] means that a debugger has dealt with it and the program goes on with
//! the saved registers as they are now; anything else, that there is no debugger or that it leaves the event to the kernel.
//! Then the kernel looks whether a debugger has taken back what led there while it was on its way: an `int3` that isn't in memory any
//! more is no exception, the instruction that is there now runs; neither is a step whose trap flag has gone from the saved registers.
//! That way a step belongs to its task wherever it runs, and stays in its saved registers when it doesn't.
//!
//! A directory entry of kind [`EntryKind::Debug`](crate::directory::EntryKind::Debug) names an [`Area`] (`address`, `len`) that
//! the VMM writes, and the virtual address, the same in every task's own page table, of a user task's saved registers
//! (`extra`). Everything here is the guest's word; the VMM checks it.
//!
//! Watched memory is compared by the guest's kernel, since a switch to the VMM for each instruction would cost ten times as much: a
//! program of which something is watched ([`Watch`]) runs with the trap flag set, and its traps are told only when a value has changed.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// The port, 4 bytes wide (docs/abi.md, "Ports").
pub const PORT: u16 = 0x5cc;

/// Answer in EAX.
pub const HANDLED: u32 = 0;
/// Answer to a system call: tell it once more, the debugger was busy with something else.
pub const AGAIN: u32 = u32::MAX;

/// Events, bits 0..8 of what is written.
pub mod event {
    /// An exception in ring 3; its vector in bits 8..16. RSI: the address of a page fault.
    pub const EXCEPTION: u32 = 1;
    /// A page fault of a program has been resolved, and [`flags::FAULTS`](super::flags::FAULTS) is set. RSI: its address.
    pub const FAULT_RESOLVED: u32 = 2;
    /// The kernel panics. RDI: where its registers are, if it was an exception, else 0.
    pub const PANIC: u32 = 3;
    /// A program has made a system call, and [`flags::SYSCALLS`](super::flags::SYSCALLS) is set. RSI: its number. RAX among the saved
    /// registers is looked at afterwards.
    pub const SYSCALL: u32 = 4;
    /// It is about to return from it.
    pub const SYSCALL_RETURN: u32 = 5;
    /// Another task has got the CPU though [`flags::KEEP`](super::flags::KEEP) is set: the one that had it waits for something, or was on its way
    /// off already. Told before anything of its program runs.
    pub const SWITCHED: u32 = 6;
}

/// Bits of the word that the VMM writes.
pub mod flags {
    /// Tell each page fault of a program once it is resolved: a breakpoint waits for its page.
    pub const FAULTS: u32 = 1;
    /// Preempt nobody, and tell if another task gets a CPU: one task is stepped by itself, and others would pass what is lifted for its step.
    pub const KEEP: u32 = 2;
    /// Tell each system call before and after.
    pub const SYSCALLS: u32 = 4;
    /// Programs of which something is in [`Area::watches`](super::Area::watches) are stepped, and it is compared after each step.
    pub const WATCH: u32 = 8;
}

/// Tasks that are stepped at a time.
pub const STEPPED: usize = 2;
/// Pieces of memory that can be watched at a time.
pub const WATCHES: usize = 16;

/// What the VMM writes while the guest stands still.
#[derive(Debug)]
#[repr(C)]
pub struct Area {
    /// [`flags`].
    pub flags: AtomicU32,
    /// Another number whenever a debugger has come or gone: what the kernel found out about an exception in between may be old.
    pub session: AtomicU32,
    /// Tasks whose trap flag is a debugger's, which steps them; 0: none. A copy of their registers is made without it.
    pub stepped: [AtomicU32; STEPPED],
    /// What is watched.
    pub watches: [Watch; WATCHES],
}

/// Watched memory.
#[derive(Debug)]
#[repr(C)]
pub struct Watch {
    /// Where, in the program's address space.
    pub address: AtomicU64,
    /// What is there.
    pub value: AtomicU64,
    /// 1, 2, 4 or 8 bytes; 0: the slot is free.
    pub length: AtomicU32,
    /// The program's process.
    pub process: AtomicU32,
}

/// Size of a [`Watch`].
pub const WATCH_BYTES: usize = 24;
/// Where the parts of an [`Area`] are; the flags come first.
pub const SESSION_AT: usize = 4;
/// The first stepped task.
pub const STEPPED_AT: usize = 8;
/// The first watch.
pub const WATCHES_AT: usize = 16;
const _: () = assert!(
    size_of::<Watch>() == WATCH_BYTES
        && offset_of!(Area, session) == SESSION_AT
        && offset_of!(Area, stepped) == STEPPED_AT
        && offset_of!(Area, watches) == WATCHES_AT
);

impl Area {
    /// Nothing is wanted.
    pub const fn new() -> Self {
        Self {
            flags: AtomicU32::new(0),
            session: AtomicU32::new(0),
            stepped: [const { AtomicU32::new(0) }; STEPPED],
            watches: [const { Watch::new() }; WATCHES],
        }
    }
}

impl Default for Area {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    const fn new() -> Self {
        Self {
            address: AtomicU64::new(0),
            value: AtomicU64::new(0),
            length: AtomicU32::new(0),
            process: AtomicU32::new(0),
        }
    }

    /// As the VMM writes it.
    pub fn bytes(address: u64, value: u64, length: u32, process: u32) -> [u8; WATCH_BYTES] {
        let mut bytes = [0; WATCH_BYTES];
        let (words, rest) = bytes.split_at_mut(16);
        words[..8].copy_from_slice(&address.to_le_bytes());
        words[8..].copy_from_slice(&value.to_le_bytes());
        rest[..4].copy_from_slice(&length.to_le_bytes());
        rest[4..].copy_from_slice(&process.to_le_bytes());
        bytes
    }
}

/// A user task's saved registers: 8 bytes each, in this order.
pub mod frame {
    /// Number of words.
    pub const WORDS: usize = 22;
    /// Its size.
    pub const BYTES: usize = 8 * WORDS;
    /// r15, then r14 to r8 downwards.
    pub const R15: usize = 0;
    /// Where SYSCALL has saved the flags, until they are in their place.
    pub const R11: usize = 4;
    /// RBP; then RDI, RSI, RDX, RCX, RBX, RAX.
    pub const RBP: usize = 8;
    /// RAX.
    pub const RAX: usize = 14;
    /// The vector that led to the kernel.
    pub const VECTOR: usize = 15;
    /// Instruction pointer.
    pub const RIP: usize = 17;
    /// Code segment.
    pub const CS: usize = 18;
    /// Flags.
    pub const RFLAGS: usize = 19;
    /// Stack pointer.
    pub const RSP: usize = 20;
    /// Stack segment.
    pub const SS: usize = 21;
}

/// From where SYSCALL leads on, for so many bytes, R11 is what it has saved, or what the kernel puts there for SYSRET, or nothing that
/// matters.
pub const SYSCALL_ENTRY_BYTES: u64 = 128;

/// What a task that is on no CPU continues with, from its saved stack pointer upwards: r15, r14, r13, r12, rbx, rbp, and the
/// return address.
pub const SWITCH_WORDS: usize = 7;
