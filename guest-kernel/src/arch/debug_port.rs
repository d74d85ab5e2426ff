//! The task-debug port (`vcpu_sched::taskdebug`): a debugger outside may deal with what programs run into.
//!
//! `arch::trap` tells exceptions of ring 3 and resolved faults, `crash` a panic. Without a debugger each costs one port write, or
//! nothing. Invariant: but for a panic, called with nothing locked, since a debugger may keep the CPU here as long as it likes.

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};

use vcpu_sched::directory::{Entry, EntryKind};
use vcpu_sched::taskdebug::{HANDLED, PORT, event, flags, frame};

use super::trap_entry::TrapFrame;
use crate::directory;
use crate::mm::PhysAddr;
use crate::mm::layout::task_slot::STACK_TOP;

/// Written by the VMM.
static FLAGS: AtomicU32 = AtomicU32::new(0);

const _: () = assert!(
    size_of::<TrapFrame>() == frame::BYTES
        && offset_of!(TrapFrame, r15) == 8 * frame::R15
        && offset_of!(TrapFrame, rbp) == 8 * frame::RBP
        && offset_of!(TrapFrame, rax) == 8 * frame::RAX
        && offset_of!(TrapFrame, rip) == 8 * frame::RIP
        && offset_of!(TrapFrame, ss) == 8 * frame::SS
);

/// Lists it in the directory. Boot CPU, before the directory is published.
pub fn show() {
    directory::add(Entry {
        kind: EntryKind::Debug as u32,
        index: 0,
        address: PhysAddr::from_image(core::ptr::from_ref(&FLAGS) as u64).0,
        len: size_of_val(&FLAGS) as u64,
        // Every way from ring 3 into the kernel starts at the top of the task's stack.
        extra: STACK_TOP - frame::BYTES as u64,
    });
}

/// Tells an event; whether a debugger has dealt with it.
fn tell(event: u32, frame: *mut TrapFrame, about: u64) -> bool {
    let mut answer = event;
    // SAFETY: a port of ours; where nobody listens, the write goes nowhere and EAX stays. A debugger may change what `frame` points
    // at, which the caller has exclusively, so memory is clobbered.
    unsafe {
        asm!("out dx, eax", in("dx") PORT, inout("eax") answer, in("rdi") frame, in("rsi") about,
            options(nostack, preserves_flags));
    }
    answer == HANDLED
}

/// A program ran into an exception. If this returns true it goes on with what is in the frame now.
pub fn exception(frame: &mut TrapFrame, vector: u64, address: u64) -> bool {
    tell(event::EXCEPTION | (vector as u32 & 0xff) << 8, frame, address)
}

/// A page fault of a program has been resolved.
#[inline]
pub fn fault_resolved(frame: &mut TrapFrame, address: u64) {
    // Relaxed: the debugger sets it while this CPU is stopped.
    if FLAGS.load(Ordering::Relaxed) & flags::FAULTS != 0 {
        tell(event::FAULT_RESOLVED, frame, address);
    }
}

/// Whether the current task must not be preempted: a debugger steps it, with breakpoints lifted that another would miss.
pub fn keeps_task() -> bool {
    // Relaxed: the debugger sets it while this CPU is stopped, and a moment more or less does no harm when it takes it back.
    FLAGS.load(Ordering::Relaxed) & flags::KEEP != 0
}

/// The kernel is about to report its end.
pub fn panic(frame: *mut TrapFrame) {
    tell(event::PANIC, frame, 0);
}
