//! What a CPU shows programs of itself: its number and its node, in a page that is at one address and another one on each CPU.
//!
//! The page lies in the per-CPU slot, among the CPU's stacks; a second top-level entry leads ring 3 to the same tables, in which that page
//! alone is open to it, read-only. The entry is written together with the slot's own, so what a program reads there is always its
//! present CPU's, on every host: the instructions that would tell (RDPID, RDTSCP, LSL) tell the host's CPU where ring 3
//! runs on the host's own tables.

use core::sync::atomic::Ordering;

use super::topology;
use crate::mm::PhysAddr;
use crate::mm::layout::{USER_CPU_SLOT, cpu_slot};
use crate::mm::page_table::{Entry, Flags};

/// Where programs read it: the number in 4 bytes, then the node in 4 bytes.
pub const ADDRESS: u64 = (USER_CPU_SLOT as u64) << 39 | (cpu_slot::SHOWN_PAGE - cpu_slot::BASE);

/// The entry by which ring 3 reaches the CPU's slot: never to write, never to execute.
#[inline]
pub fn user_entry(slot: Entry) -> Entry {
    Entry::new(slot.frame(), Flags::PRESENT | Flags::USER | Flags::NO_EXECUTE)
}

/// Fills the pages of all CPUs. When they are up, before they run programs.
pub fn fill() {
    for cpu in super::all() {
        let page = PhysAddr(cpu.shown_page.load(Ordering::Relaxed));
        let node = topology::node_of(cpu.id) as u64;
        // SAFETY: bring-up made the frame for this, and programs read it only after this.
        unsafe { page.as_ptr::<u64>().write(u64::from(cpu.id.0) | node << 32) };
    }
}
