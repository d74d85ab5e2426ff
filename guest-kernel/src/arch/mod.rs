//! What only x86-64 knows: instructions, descriptor tables, trap entry and exit, the local APIC, FPU state, the ring-3 engine.
//!
//! Invariant: no other module contains inline assembly.

pub mod apic;
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
