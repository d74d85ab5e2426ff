//! The end of threads and processes.
//!
//! A thread ends by itself, always: whoever wants it gone sets `Process::group_exit` (or `exec_by`) and pokes it. The last one
//! closes the files, gives the children away and makes the process a zombie. These functions never return, so their
//! callers hold nothing that must be dropped.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::signal::code::{CLD_EXITED, CLD_KILLED};
use super::signal::flags::SA_NOCLDWAIT;
use super::signal::{self, Action, SIGCHLD, SIGCONT, SIGHUP, SigInfo};
use super::{Process, Thread, futex, table, timers};
use crate::linux::fs::attached;
use crate::linux::{start, strace};
use crate::mm::user;
use crate::sched;
use crate::task::current;
use crate::trace;

/// Inherits orphans. Linux: init.
const INIT: u32 = 1;

/// exit(2): ends the running thread.
pub fn exit(thread: &Thread, code: u64) -> ! {
    leave(thread, (code as u32 & 0xff) << 8)
}

/// exit_group(2): ends the process.
pub fn exit_group(thread: &Thread, code: u64) -> ! {
    signal::start_group_exit(&thread.process, (code as u32 & 0xff) << 8);
    end_thread(thread)
}

/// Ends the running thread because its group ends (or another thread runs exec).
pub fn end_thread(thread: &Thread) -> ! {
    let status = thread.process.group_exit.load(Ordering::Acquire) as u32;
    leave(thread, status)
}

/// `status` becomes the process's if nobody has decided on one and this is its last thread.
fn leave(thread: &Thread, status: u32) -> ! {
    let process = &thread.process;
    let me = current();
    release_memory(thread, true, me.space().is_some_and(|s| s.threads.load(Ordering::Relaxed) > 1));
    let last = {
        let mut s = process.signals.lock();
        let at = s.threads.iter().position(|t| core::ptr::eq(Arc::as_ptr(t), &*me));
        // Not the task's last handle: the task table has one.
        at.map(|i| s.threads.remove(i));
        process.dead_ns.fetch_add(sched::ran(&me).0, Ordering::Relaxed);
        if !s.threads.is_empty() && s.shared.set != 0 {
            signal::recalculate(&s); // one that was ours to take
        }
        s.threads.is_empty()
    };
    process.dead_faults.fetch_add(me.stats.faults.load(Ordering::Relaxed), Ordering::Relaxed);
    for (dead, mine) in process.dead_switches.iter().zip(me.switches()) {
        dead.fetch_add(mine, Ordering::Relaxed);
    }
    if last {
        let status = if process.is_exiting() { process.group_exit.load(Ordering::Acquire) as u32 } else { status };
        strace::exited(thread, status);
        end_process(process, status);
    } else {
        process.thread_gone.wake_all();
    }
    trace::exit(status);
    sched::exit_current()
}

/// What the memory that the thread leaves must know of it (exec, exit): robust mutexes, the joiner's word, a vfork parent.
/// `for_good`: the thread ends.
pub fn release_memory(thread: &Thread, for_good: bool, others_use_it: bool) {
    futex::exit_robust_list(thread);
    futex::thread_ends(thread, for_good);
    let word = thread.clear_child_tid.swap(0, Ordering::Relaxed);
    if word != 0 && others_use_it && user::write(word, &0u32).is_ok() {
        futex::wake_address(word, 1);
    }
    let vfork = thread.vfork.lock().take();
    if let Some(v) = vfork {
        v.finish();
    }
}

fn end_process(process: &Arc<Process>, status: u32) {
    if process.pid == INIT {
        start::first_program_ended(status);
    }
    timers::end(process);
    process.fs.close_all();
    attached::ended(process.pid, status);
    current().replace_space(None);
    drop(process.set_space(None));
    process.set_image(Arc::default());
    for child in table::give_children(process.pid, INIT) {
        let wanted = child.tasks().iter().find_map(|t| {
            super::thread_of(t).map(|t| t.parent_death_signal.load(Ordering::Relaxed)).filter(|s| *s != 0)
        });
        if let Some(sig) = wanted {
            signal::send_to_process(&child, sig);
        }
        if child.zombie.load(Ordering::Acquire)
            && let Some(init) = table::find(INIT)
        {
            init.child_events.wake_all();
        }
    }
    let leaves_group = process.pgid();
    process.wait_status.store(status, Ordering::Relaxed);
    process.zombie.store(true, Ordering::Release);
    process.thread_gone.wake_all();
    tell_parent(process, status);
    continue_orphans(leaves_group);
}

fn tell_parent(process: &Arc<Process>, status: u32) {
    let Some(parent) = table::find(process.ppid()) else {
        drop(table::remove(process.pid));
        return;
    };
    let sig = process.exit_signal.load(Ordering::Relaxed);
    let action = parent.signals.lock().action(SIGCHLD);
    let unwanted = sig == SIGCHLD && (action.handler == Action::IGNORE || action.flags & SA_NOCLDWAIT != 0);
    if unwanted {
        drop(table::remove(process.pid));
    }
    if sig != 0 && !(unwanted && action.handler == Action::IGNORE) {
        let (what, value) = match status & 0x7f {
            0 => (CLD_EXITED, status >> 8 & 0xff),
            s => (CLD_KILLED, s),
        };
        let ticks = super::times::clock_ticks(process.dead_ns.load(Ordering::Relaxed));
        signal::send_info(&parent, SigInfo::child(sig, what, process.pid, value, ticks));
    }
    parent.child_events.wake_all();
}

/// A stopped group that nobody can continue any more is hung up and continued (POSIX, exit).
fn continue_orphans(pgid: u32) {
    let stopped =
        table::snapshot(|p| p.pgid() == pgid && !p.zombie.load(Ordering::Relaxed) && p.signals.lock().stopped);
    if !stopped.is_empty() && table::is_orphaned(pgid) {
        signal::send_to_group(pgid, SIGHUP);
        signal::send_to_group(pgid, SIGCONT);
    }
}
