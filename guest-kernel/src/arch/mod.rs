//! What only x86-64 knows: instructions, descriptor tables, trap entry and exit, the local APIC, FPU state, the ring-3 engine.
//!
//! Invariant: no other module contains inline assembly.

/// Puts the registers that a callee must preserve (System V ABI) on the stack, RSP aside. [`switch::initial_stack`] lays out
/// the same.
macro_rules! push_callee_saved {
    () => {
        "push rbp\npush rbx\npush r12\npush r13\npush r14\npush r15"
    };
}

/// Takes them back.
macro_rules! pop_callee_saved {
    () => {
        "pop r15\npop r14\npop r13\npop r12\npop rbx\npop rbp"
    };
}

pub mod apic;
pub mod debug_port;
pub mod descriptors;
pub mod features;
pub mod fpu;
pub mod instr;
pub mod ioapic;
pub mod ring3;
pub mod switch;
pub mod trap;
pub mod trap_entry;
pub mod uart;
pub mod user_copy;
