//! The task-debug port (`vcpu_sched::taskdebug`): a debugger outside may deal with what programs run into.
//!
//! `arch::trap` tells exceptions of ring 3, resolved faults and system calls, `crash` a panic. Without a debugger each costs one port write, or
//! nothing. Invariant: but for a panic, called with nothing locked, since a debugger may keep the CPU here as long as it likes.

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use vcpu_sched::directory::{Entry, EntryKind};
use vcpu_sched::taskdebug::{AGAIN, Area, HANDLED, PORT, Watch, event, flags, frame};

use super::trap_entry::TrapFrame;
use crate::directory;
use crate::mm::PhysAddr;
use crate::mm::layout::task_slot::STACK_TOP;
use crate::mm::user;
use crate::task::current;

/// Written by the VMM.
static AREA: Area = Area::new();

const _: () = assert!(
    size_of::<TrapFrame>() == frame::BYTES
        && offset_of!(TrapFrame, r15) == 8 * frame::R15
        && offset_of!(TrapFrame, r11) == 8 * frame::R11
        && offset_of!(TrapFrame, rbp) == 8 * frame::RBP
        && offset_of!(TrapFrame, rax) == 8 * frame::RAX
        && offset_of!(TrapFrame, vector) == 8 * frame::VECTOR
        && offset_of!(TrapFrame, rip) == 8 * frame::RIP
        && offset_of!(TrapFrame, ss) == 8 * frame::SS
);

/// Lists it in the directory. Boot CPU, before the directory is published.
pub fn show() {
    directory::add(Entry {
        kind: EntryKind::Debug as u32,
        index: 0,
        address: PhysAddr::from_image(core::ptr::from_ref(&AREA) as u64).0,
        len: size_of_val(&AREA) as u64,
        // Every way from ring 3 into the kernel starts at the top of the task's stack.
        extra: STACK_TOP - frame::BYTES as u64,
    });
}

/// Vectors of a debug exception and of a breakpoint.
const DEBUG: u64 = 1;
const BREAKPOINT: u64 = 3;
/// Instructions that raise them by themselves.
const ICEBP: u8 = 0xf1;
const INT3: u8 = 0xcc;
const INT_3: [u8; 2] = [0xcd, 3];
const RFLAGS_TF: u64 = 1 << 8;

/// Tells an event; a debugger's answer, or the event if there is none.
fn tell(event: u32, frame: *mut TrapFrame, about: u64) -> u32 {
    let mut answer = event;
    // SAFETY: a port of ours; where nobody listens, the write goes nowhere and EAX stays. A debugger may change what `frame` points
    // at, which the caller has exclusively, so memory is clobbered.
    unsafe {
        asm!("out dx, eax", in("dx") PORT, inout("eax") answer, in("rdi") frame, in("rsi") about,
            options(nostack, preserves_flags));
    }
    answer
}

/// A program ran into an exception. If this returns true it goes on with what is in the frame now.
pub fn exception(frame: &mut TrapFrame, vector: u64, address: u64) -> bool {
    if vector == DEBUG && goes_on(frame) {
        return true;
    }
    loop {
        // Relaxed, as `wanted`: it changes while all CPUs stand still.
        let session = AREA.session.load(Ordering::Relaxed);
        let answer = tell(event::EXCEPTION | (vector as u32 & 0xff) << 8, frame, address);
        if answer == HANDLED || is_taken_back(frame, vector) {
            return true;
        }
        // A debugger that has come since then may have planted what we have read as the program's own.
        if AREA.session.load(Ordering::Relaxed) == session {
            return false;
        }
    }
}

/// Whether a debugger has caused the exception and taken its cause back before it could be told. Linux does the same with its own
/// breakpoints (`kprobe_int3_handler`).
fn is_taken_back(frame: &mut TrapFrame, vector: u64) -> bool {
    let last = user::read::<u8>(frame.rip.wrapping_sub(1));
    match vector {
        DEBUG => frame.rflags & RFLAGS_TF == 0 && last != Ok(ICEBP),
        BREAKPOINT if last != Ok(INT3) && user::read(frame.rip.wrapping_sub(2)) != Ok(INT_3) => {
            // What is there now, or the fault that nothing is.
            frame.rip = frame.rip.wrapping_sub(1);
            true
        }
        _ => false,
    }
}

/// The trap flag, if it is set in the running task's registers and a debugger has done that. It stays when the registers are replaced, so
/// that a step ends, and isn't in any copy of them.
pub fn debuggers_flag(rflags: u64) -> u64 {
    let me = current();
    let stepped = || AREA.stepped.iter().any(|id| id.load(Ordering::Relaxed) == me.id.0);
    if rflags & RFLAGS_TF != 0 && (stepped() || is_watched(me.process())) { RFLAGS_TF } else { 0 }
}

/// The flags of a new task of `process`, which may be watched as its parent is.
pub fn child_flags(rflags: u64, process: u32) -> u64 {
    rflags & !debuggers_flag(rflags) | if is_watched(process) { RFLAGS_TF } else { 0 }
}

fn is_watched(process: u32) -> bool {
    wanted() & flags::WATCH != 0 && watches_of(process).next().is_some()
}

/// Whether the trap is one of many that end when a watched value changes, and none has.
fn goes_on(frame: &TrapFrame) -> bool {
    wanted() & flags::WATCH != 0
        && frame.rflags & RFLAGS_TF != 0
        && user::read(frame.rip.wrapping_sub(1)) != Ok(ICEBP)
        && {
            let mut watches = watches_of(current().process()).peekable();
            watches.peek().is_some() && watches.all(is_unchanged)
        }
}

/// What is watched of a program. Relaxed, here and below: see [`wanted`].
fn watches_of(process: u32) -> impl Iterator<Item = &'static Watch> {
    AREA.watches.iter().filter(move |watch| {
        watch.length.load(Ordering::Relaxed) != 0 && watch.process.load(Ordering::Relaxed) == process
    })
}

fn is_unchanged(watch: &Watch) -> bool {
    let address = watch.address.load(Ordering::Relaxed);
    let now = match watch.length.load(Ordering::Relaxed) {
        1 => user::read::<u8>(address).map(u64::from),
        2 => user::read::<u16>(address).map(u64::from),
        4 => user::read::<u32>(address).map(u64::from),
        _ => user::read::<u64>(address),
    };
    // What isn't there (any more) has no value to be compared.
    now.is_err() || now == Ok(watch.value.load(Ordering::Relaxed))
}

/// What a debugger wants told of programs: [`flags`].
#[inline]
pub fn wanted() -> u32 {
    // Relaxed: the debugger writes it while all CPUs stand still, or while a moment more or less does no harm.
    AREA.flags.load(Ordering::Relaxed)
}

/// Whether system calls are told, or end a step.
#[inline]
pub fn observes_calls() -> bool {
    wanted() & (flags::SYSCALLS | flags::WATCH) != 0
}

/// A program makes a system call: a debugger may look, and change the registers.
#[cold]
pub fn system_call(frame: &mut TrapFrame) {
    tell_call(event::SYSCALL, frame, frame.rax);
}

/// It is about to return from call `number`.
#[cold]
pub fn system_call_return(frame: &mut TrapFrame, number: u64) {
    if is_watched(current().process()) {
        // It came from a signal's handler, or what is watched is new.
        frame.rflags |= RFLAGS_TF;
    }
    tell_call(event::SYSCALL_RETURN, frame, number);
}

fn tell_call(event: u32, frame: &mut TrapFrame, number: u64) {
    while wanted() & flags::SYSCALLS != 0 && tell(event, frame, number) == AGAIN {}
}

/// A page fault of a program has been resolved.
#[inline]
pub fn fault_resolved(frame: &mut TrapFrame, address: u64) {
    if wanted() & flags::FAULTS != 0 {
        tell(event::FAULT_RESOLVED, frame, address);
    }
}

/// Whether the current task must not be preempted: a debugger steps it, with breakpoints lifted that another would miss.
#[inline(always)]
pub fn keeps_task() -> bool {
    wanted() & flags::KEEP != 0
}

/// Another task has got the CPU all the same.
#[cold]
pub fn switched() {
    tell(event::SWITCHED, core::ptr::null_mut(), 0);
}

/// The kernel is about to report its end.
pub fn panic(frame: *mut TrapFrame) {
    tell(event::PANIC, frame, 0);
}
