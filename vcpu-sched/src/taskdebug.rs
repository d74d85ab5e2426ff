//! The task-debug port: how a guest kernel lets its VMM debug what runs in ring 3.
//!
//! Breakpoints and single steps of programs arrive in the guest's own exception handlers, on every host. The kernel writes
//! the event to [`PORT`] before it acts on it, with the address of the saved registers in RDI and what the event is about in
//! RSI, and looks at EAX afterwards: [`HANDLED`] means that a debugger has dealt with it and the program goes on with
//! the saved registers as they are now; anything else, that there is no debugger or that it leaves the event to the kernel.
//! That way a step belongs to its task wherever it runs, and stays in its saved registers when it doesn't.
//!
//! A directory entry of kind [`EntryKind::Debug`](crate::directory::EntryKind::Debug) names the [`flags`] word
//! (`address`), and the virtual address, the same in every task's own page table, of a user task's saved registers
//! (`extra`). Everything here is the guest's word; the VMM checks it.

/// The port, 4 bytes wide (docs/abi.md, "Ports").
pub const PORT: u16 = 0x5cc;

/// Answer in EAX.
pub const HANDLED: u32 = 0;

/// Events, bits 0..8 of what is written.
pub mod event {
    /// An exception in ring 3; its vector in bits 8..16. RSI: the address of a page fault.
    pub const EXCEPTION: u32 = 1;
    /// A page fault of a program has been resolved, and [`flags::FAULTS`](super::flags::FAULTS) is set. RSI: its address.
    pub const FAULT_RESOLVED: u32 = 2;
    /// The kernel panics. RDI: where its registers are, if it was an exception, else 0.
    pub const PANIC: u32 = 3;
}

/// Bits of the word that the VMM writes.
pub mod flags {
    /// Tell each page fault of a program once it is resolved: a breakpoint waits for its page.
    pub const FAULTS: u32 = 1;
    /// Preempt nobody: one task is stepped by itself, and others would pass what is lifted for its step.
    pub const KEEP: u32 = 2;
}

/// A user task's saved registers: 8 bytes each, in this order.
pub mod frame {
    /// Number of words.
    pub const WORDS: usize = 22;
    /// Its size.
    pub const BYTES: usize = 8 * WORDS;
    /// r15, then r14 to r8 downwards.
    pub const R15: usize = 0;
    /// RBP; then RDI, RSI, RDX, RCX, RBX, RAX.
    pub const RBP: usize = 8;
    /// RAX.
    pub const RAX: usize = 14;
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

/// What a task that is on no CPU continues with, from its saved stack pointer upwards: r15, r14, r13, r12, rbx, rbp, and the
/// return address.
pub const SWITCH_WORDS: usize = 7;
