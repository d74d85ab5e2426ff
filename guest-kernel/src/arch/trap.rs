//! What follows a trap: dispatch, and the work on the way back to ring 3.
//!
//! Called from `trap_entry` only. Invariant: a handler is entered with interrupts off; system calls, and faults that may wait,
//! turn them on; `leave_to_user` turns them off again before it looks at what is left to do, so nothing is missed.

use core::sync::atomic::{AtomicBool, Ordering};

use super::descriptors::vector;
use super::features::{Features, has};
use super::trap_entry::{TrapFrame, VECTOR_SYSCALL, lstar_page_address, syscall_address};
use super::{apic, debug_port, instr, user_copy};
use crate::chaos::{self, Point};
use crate::cpu;
use crate::mm::layout::{USER_END, task_slot};
use crate::mm::{fault, shootdown};
use crate::rcu;
use crate::sched;
use crate::task::{UserContext, UserFault, current, observers, work};
use crate::time;
use crate::trace;

const PAGE_FAULT: u64 = 14;
const NMI: u64 = 2;
const DEBUG: u64 = 1;
const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_RF: u64 = 1 << 16;

/// Set when some CPU has panicked.
pub static STOPPING: AtomicBool = AtomicBool::new(false);

/// Turns SYSCALL on for this CPU. Intel SDM vol. 3A 5.8.8.
pub fn init_syscall() {
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    const FMASK: u32 = 0xc000_0084;
    let lstar = if has(Features::PF_SYSCALL) { lstar_page_address() } else { syscall_address() };
    // SYSCALL loads CS 0x10, SS 0x18; SYSRET loads CS 0x23 + 16, SS 0x23 + 8. IF, TF, DF, AC, NT are cleared on entry.
    // SAFETY: architectural registers; the entry code is mapped in every root.
    unsafe {
        instr::wrmsr(STAR, 0x0023_0010 << 32);
        instr::wrmsr(LSTAR, lstar);
        instr::wrmsr(FMASK, 0x4_4700);
    }
}

/// Ring 3 was interrupted.
#[unsafe(no_mangle)]
extern "C" fn trap_from_user(frame: &mut TrapFrame) {
    match frame.vector {
        PAGE_FAULT => {
            let addr = instr::read_cr2();
            if has(Features::PF_SYSCALL) && frame.rip == lstar_page_address() {
                // SYSCALL that could not raise the privilege level: RCX and R11 hold what it saved. A program that jumps
                // here without SYSCALL only fools itself.
                frame.rip = frame.rcx;
                frame.rflags = frame.r11 & !RFLAGS_RF | RFLAGS_IF;
                frame.error = frame.rax;
                frame.vector = VECTOR_SYSCALL;
                system_call(frame);
            } else {
                instr::sti();
                trace::fault(addr, frame.rip, frame.error);
                chaos::point(Point::Fault);
                match fault::handle(addr, frame.error) {
                    Ok(()) => debug_port::fault_resolved(frame, addr),
                    Err(e) => exception(frame, UserFault::Page(addr, e, fault::access_of(frame.error))),
                }
            }
        }
        v if v < 32 => {
            if cpu::this().in_excursion() {
                panic!(
                    "exception {v} in the ring-3 engine at {:#x}, error {:#x}, cr2 {:#x}",
                    frame.rip,
                    frame.error,
                    instr::read_cr2()
                );
            }
            instr::sti();
            exception(frame, UserFault::Exception(v));
        }
        v => interrupt(v as u8),
    }
    leave_to_user(frame);
}

/// SYSCALL where it works. Returns whether SYSRET may be used.
#[unsafe(no_mangle)]
extern "C" fn syscall_from_user(frame: &mut TrapFrame) -> bool {
    system_call(frame);
    leave_to_user(frame);
    frame.rcx == frame.rip
        && frame.r11 == frame.rflags
        && frame.rip < USER_END
        && frame.rflags & (RFLAGS_TF | RFLAGS_RF) == 0
}

/// Inlined into both its callers: it is a quarter of what a call that does nothing costs.
#[inline(always)]
fn system_call(frame: &mut TrapFrame) {
    cpu::count_system_call();
    instr::sti();
    let me = current();
    let Some(user) = me.user() else { call_of_nobody() };
    if observers::any() || debug_port::observes_calls() {
        observed_call(&**user, frame);
    } else {
        user.syscall(frame);
    }
    if frame.rflags & RFLAGS_TF != 0 {
        step_ends(frame);
    }
}

/// A system call that somebody looks at.
#[cold]
#[inline(never)]
fn observed_call(user: &dyn UserContext, frame: &mut TrapFrame) {
    chaos::point(Point::SyscallEnter);
    if debug_port::observes_calls() {
        debug_port::system_call(frame);
        let number = frame.rax;
        user.observed_syscall(frame);
        debug_port::system_call_return(frame, number);
    } else {
        user.observed_syscall(frame);
    }
    chaos::point(Point::SyscallExit);
}

/// The step that went into a system call ends where the call does, as on Linux.
#[cold]
#[inline(never)]
fn step_ends(frame: &mut TrapFrame) {
    exception(frame, UserFault::Exception(DEBUG));
}

#[cold]
#[inline(never)]
fn call_of_nobody() -> ! {
    panic!("system call of a kernel task")
}

fn exception(frame: &mut TrapFrame, fault: UserFault) {
    let (vector, address) = match fault {
        UserFault::Page(address, ..) => (PAGE_FAULT, address),
        UserFault::Exception(vector) => (vector, 0),
    };
    if debug_port::exception(frame, vector, address) {
        return;
    }
    match current().user() {
        Some(user) => user.exception(frame, fault),
        None => panic!("{fault:?} in ring 3 of a kernel task at {:#x}", frame.rip),
    }
}

/// Does what is left before ring 3 runs on. Returns with interrupts off.
#[inline(always)]
pub fn leave_to_user(frame: &mut TrapFrame) {
    instr::cli();
    sched::preempt_if_needed();
    if current().work.load(Ordering::Acquire) != 0 {
        finish_work(frame);
    }
}

/// Does what [`Task::work`](crate::task::Task::work) asks for. Called and left with interrupts off. Apart from
/// [`leave_to_user`], so that a call that leaves nothing to be done doesn't save the registers that this needs.
#[cold]
#[inline(never)]
fn finish_work(frame: &mut TrapFrame) {
    loop {
        instr::cli();
        sched::preempt_if_needed();
        let me = current();
        let left = me.work.load(Ordering::Acquire);
        if left == 0 {
            return;
        }
        instr::sti();
        if left & work::HELD != 0 {
            // Before the rest: a task that is held must not change, not even by a signal's frame.
            sched::wait_while_held(me);
        } else if let Some(user) = me.user() {
            user.before_user(frame);
        }
    }
}

/// Ring 0 was interrupted.
#[unsafe(no_mangle)]
extern "C" fn trap_from_kernel(frame: &mut TrapFrame) {
    match frame.vector {
        PAGE_FAULT => kernel_page_fault(frame),
        // A debugger's step that went astray.
        DEBUG => frame.rflags &= !RFLAGS_TF,
        v if v < 32 => kernel_exception(frame),
        v => {
            interrupt(v as u8);
            if frame.rflags & RFLAGS_IF != 0 {
                sched::preempt_if_needed();
            }
        }
    }
}

fn kernel_page_fault(frame: &mut TrapFrame) {
    let addr = instr::read_cr2();
    let Some(fixup) = user_copy::fixup(frame.rip).filter(|_| addr < USER_END) else {
        kernel_exception(frame);
    };
    if frame.rflags & RFLAGS_IF != 0 {
        instr::sti();
        trace::fault(addr, frame.rip, frame.error);
        let resolved = fault::handle(addr, frame.error).is_ok();
        instr::cli();
        if resolved {
            return;
        }
    }
    frame.rip = fixup;
}

fn kernel_exception(frame: &TrapFrame) -> ! {
    crate::crash::kernel_exception(frame, instr::read_cr2())
}

/// NMI, double fault, machine check: on their own stacks.
#[unsafe(no_mangle)]
extern "C" fn trap_on_ist(frame: &mut TrapFrame) {
    if frame.vector == NMI {
        if STOPPING.load(Ordering::Acquire) {
            instr::halt_forever();
        }
        return;
    }
    let cr2 = instr::read_cr2();
    if frame.vector == 8 && (task_slot::BASE..task_slot::STACK_BOTTOM).contains(&cr2) {
        crate::crash::stack_overflow(frame, cr2);
    }
    crate::crash::kernel_exception(frame, cr2)
}

fn interrupt(v: u8) {
    let me = cpu::this();
    match v {
        vector::TIMER => {
            apic::end_of_interrupt();
            if chaos::clock::on() {
                chaos::clock::quietly(|| chaos::clock::watch(me));
            } else {
                chaos::send_held();
                time::timer::interrupt(me);
            }
        }
        vector::IPI_RESCHEDULE => {
            apic::end_of_interrupt();
            trace::ipi_received(v);
            me.stats.reschedule_ipis.fetch_add(1, Ordering::Relaxed);
            rcu::interrupted(me);
            sched::rearm(me);
            sched::delegated::kicked(me);
        }
        vector::IPI_SHOOTDOWN => {
            apic::end_of_interrupt();
            trace::ipi_received(v);
            shootdown::service_pending();
        }
        vector::REQUEST => {
            apic::end_of_interrupt();
            chaos::clock::quietly(crate::requests::posted);
        }
        vector::IPI_STOP => instr::halt_forever(),
        vector::SPURIOUS => {}
        v if (vector::GSI_BASE..vector::GSI_BASE + vector::GSI_COUNT).contains(&v) => {
            apic::end_of_interrupt();
            chaos::clock::quietly(|| crate::console::device_interrupt(v - vector::GSI_BASE));
        }
        v => crate::warn!("unexpected interrupt vector {v:#x}"),
    }
}
