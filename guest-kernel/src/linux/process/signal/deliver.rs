//! Taking signals, on the way to ring 3, by the thread itself. Also where interrupted system calls are restarted, stopped
//! threads wait, and threads of an ending group end.

use core::sync::atomic::Ordering;

use super::info::{Action, SigInfo, code, flags};
use super::{REPORTED, SIGSEGV, SIGSTOP, STOPPING, SigSet, UNBLOCKABLE, bit, force, recalculate};
use crate::arch::trap_entry::{TrapFrame, VECTOR_SYSCALL};
use crate::linux::errno::Errno;
use crate::linux::process::{Process, Thread, crash_report, exit, out_of_memory, table, timers};
use crate::linux::strace;
use crate::mm::frame;
use crate::task::{current, work};

/// Bytes of the SYSCALL instruction.
const SYSCALL_LENGTH: u64 = 2;
/// restart_syscall(2).
const NR_RESTART_SYSCALL: u64 = 219;

enum Next {
    /// The group or this thread ends.
    End,
    /// The group is stopped.
    Wait,
    Signal(SigInfo, Action),
    Nothing,
}

/// Does what is pending for the running thread. Called with `Task::work` set, by `arch::trap::leave_to_user`, until it isn't.
pub fn before_user(thread: &Thread, frame: &mut TrapFrame) {
    // Cleared first: what comes from now on sets it again. SeqCst: against the senders' order of `pending`, then `work`.
    current().work.fetch_and(!work::USER, Ordering::SeqCst);
    if frame::is_critical() {
        out_of_memory::wait_for_room(&thread.process);
    }
    loop {
        match next(thread) {
            Next::End => exit::end_thread(thread),
            Next::Wait => wait_while_stopped(&thread.process),
            Next::Nothing => break,
            Next::Signal(info, action) => {
                timers::taken(&thread.process, &info);
                strace::signal(thread, &info);
                if action.handler == Action::IGNORE {
                    continue;
                }
                if action.handler == Action::DEFAULT.handler {
                    by_default(thread, frame, &info);
                    continue;
                }
                restart(frame, Some(&action));
                if super::frame::push(thread, frame, &info, &action).is_err() {
                    // No room for the frame. A SIGSEGV whose own handler can't run ends the program.
                    if info.signo == SIGSEGV {
                        thread.process.signals.lock().set_action(SIGSEGV, Action::DEFAULT);
                    }
                    force(thread, SigInfo::kernel(SIGSEGV));
                    continue;
                }
                recalculate_if_pending(thread);
                return;
            }
        }
    }
    restart(frame, None);
    restore_mask(thread);
}

fn next(thread: &Thread) -> Next {
    let process = &thread.process;
    let mut s = process.signals.lock();
    let exec_by = process.exec_by.load(Ordering::Relaxed);
    if process.is_exiting() || (exec_by != 0 && exec_by != thread.tid()) {
        return Next::End;
    }
    if s.stopped {
        return Next::Wait;
    }
    let open = !thread.blocked() | UNBLOCKABLE;
    let own = thread.pending.lock().take(open);
    let Some(info) = own.or_else(|| s.shared.take(open)) else { return Next::Nothing };
    let action = s.action(info.signo);
    if action.handler > Action::IGNORE && action.flags & flags::SA_RESETHAND != 0 {
        s.set_action(info.signo, Action::DEFAULT);
    }
    Next::Signal(info, action)
}

fn by_default(thread: &Thread, frame: &TrapFrame, info: &SigInfo) {
    let process = &thread.process;
    let sig = info.signo;
    if STOPPING & bit(sig) != 0 {
        if sig != SIGSTOP && table::is_orphaned(process.pgid()) {
            return;
        }
        stop(process, sig);
        return;
    }
    let ignored = process.signals.lock().discards(sig);
    if ignored {
        return;
    }
    if super::start_group_exit(process, sig) {
        if REPORTED & bit(sig) != 0 {
            crash_report::report(thread, frame, info);
        } else {
            crate::debug!("{} (process {}) ends by {}", current().name(), process.pid, super::name(sig));
        }
    }
}

fn stop(process: &Process, sig: u32) {
    {
        let mut s = process.signals.lock();
        if process.is_exiting() {
            return;
        }
        s.stopped = true;
        (s.stop_report, s.continue_report) = (sig, false);
        let me = current();
        for t in s.threads.iter().filter(|t| !core::ptr::eq(&***t, &*me)) {
            t.work.fetch_or(work::USER, Ordering::SeqCst);
            if !crate::sched::wake(t) {
                crate::sched::nudge(t);
            }
        }
    }
    super::notify_parent(process, code::CLD_STOPPED, sig);
}

fn wait_while_stopped(process: &Process) {
    process.resumed.wait_until(|| (!process.signals.lock().stopped || process.is_exiting()).then_some(()));
}

/// Makes an interrupted system call run again, or tells the program of the interruption. `handler`: what runs in between.
fn restart(frame: &mut TrapFrame, handler: Option<&Action>) {
    if frame.vector != VECTOR_SYSCALL {
        return;
    }
    let number = match (0u64.wrapping_sub(frame.rax)) as i32 {
        e if e == Errno::ERESTARTSYS.0 => match handler {
            Some(a) if a.flags & flags::SA_RESTART == 0 => None,
            _ => Some(frame.error),
        },
        e if e == Errno::ERESTARTNOINTR.0 => Some(frame.error),
        e if e == Errno::ERESTARTNOHAND.0 => handler.is_none().then_some(frame.error),
        e if e == Errno::ERESTART_RESTARTBLOCK.0 => handler.is_none().then_some(NR_RESTART_SYSCALL),
        _ => return,
    };
    // Once: what follows is another context.
    frame.vector = 0;
    match number {
        Some(n) => {
            frame.rax = n;
            frame.rip = frame.rip.wrapping_sub(SYSCALL_LENGTH);
        }
        None => frame.rax = (-i64::from(Errno::EINTR.0)) as u64,
    }
}

/// Blocks `mask` until the present system call is over (ppoll, sigsuspend). A handler that interrupts it runs under this
/// mask; the old one comes back after it.
pub fn set_temporary_mask(mask: SigSet) {
    let me = current();
    let Some(thread) = super::super::thread_of(&me) else { return };
    let s = thread.process.signals.lock();
    thread.saved_mask.store(thread.blocked(), Ordering::Relaxed);
    thread.mask_is_saved.store(true, Ordering::Relaxed);
    thread.blocked.store(mask & !UNBLOCKABLE, Ordering::Relaxed);
    recalculate(&s);
}

/// Ends [`set_temporary_mask`].
pub fn restore_mask(thread: &Thread) {
    if thread.mask_is_saved.load(Ordering::Relaxed) {
        let s = thread.process.signals.lock();
        thread.mask_is_saved.store(false, Ordering::Relaxed);
        thread.blocked.store(thread.saved_mask.load(Ordering::Relaxed), Ordering::Relaxed);
        recalculate(&s);
    }
}

fn recalculate_if_pending(thread: &Thread) {
    let s = thread.process.signals.lock();
    let open = !thread.blocked() | UNBLOCKABLE;
    if (s.shared.set | thread.pending.lock().set) & open != 0 || s.stopped {
        current().work.fetch_or(work::USER, Ordering::SeqCst);
    }
}
