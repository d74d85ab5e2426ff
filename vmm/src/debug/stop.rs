//! A stop: who, why, and by which signal, as clients are told.

use super::registers::number;

/// The registers that a stop reply carries along, so that the client needn't ask.
pub const EXPEDITED: [usize; 3] = [number::RBP, number::RSP, number::RIP];

/// Signals as gdb numbers them (gdb/signals.def).
pub mod signal {
    /// Ctrl-C.
    pub const INT: u8 = 2;
    /// No such instruction.
    pub const ILL: u8 = 4;
    /// Breakpoint, step.
    pub const TRAP: u8 = 5;
    /// The kernel panics.
    pub const ABRT: u8 = 6;
    /// Arithmetic.
    pub const FPE: u8 = 8;
    /// No such memory.
    pub const SEGV: u8 = 11;
}

/// Why the guest stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A software breakpoint.
    Software,
    /// A hardware breakpoint.
    Hardware,
    /// A step, Ctrl-C, a fault: the signal says it.
    Signal,
    /// Watched memory at this address has changed.
    Watch(u64),
    /// A system call.
    Call {
        /// Its number.
        number: u64,
        /// It is over.
        over: bool,
    },
}

/// A stop to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Who.
    pub thread: u32,
    /// gdb's number.
    pub signal: u8,
    /// Why.
    pub why: Why,
}

impl Stop {
    /// The number of the system call that it is for, else -1.
    pub fn call(&self) -> u64 {
        if let Why::Call { number, .. } = self.why { number } else { u64::MAX }
    }
}
