//! Posting signals. Callable from anywhere, interrupt context included: nothing here sleeps.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::info::{code, flags};
use super::{SIGCHLD, SIGCONT, SIGKILL, STOPPING, SigInfo, SignalState, UNBLOCKABLE, bit};
use crate::linux::process::{EXITING, Process, Thread, table, thread_of};
use crate::sched;
use crate::task::{self, Task, work};

/// Makes a task look at its signals soon, wherever it is.
fn poke(task: &Arc<Task>) {
    // SeqCst: a task about to block has announced that before it reads `work` (see `wait_queue`).
    task.work.fetch_or(work::USER, Ordering::SeqCst);
    if !sched::wake(task) {
        sched::nudge(task);
    }
}

/// Ends the whole group with a wait status. The first call decides; returns whether this was it.
pub fn start_group_exit(process: &Process, status: u32) -> bool {
    let s = process.signals.lock();
    start_group_exit_locked(process, &s, status)
}

fn start_group_exit_locked(process: &Process, s: &SignalState, status: u32) -> bool {
    if process.is_exiting() {
        return false;
    }
    process.group_exit.store(EXITING | u64::from(status), Ordering::Release);
    for task in &s.threads {
        sched::lift(task);
        poke(task);
    }
    process.resumed.wake_all();
    process.thread_gone.wake_all();
    true
}

/// Signals a process, as the kernel does.
pub fn send_to_process(process: &Arc<Process>, sig: u32) {
    send_info(process, SigInfo::kernel(sig));
}

/// Signals every process of a group. Returns how many there are.
pub fn send_to_group(pgid: u32, sig: u32) -> usize {
    let members = table::snapshot(|p| p.pgid() == pgid);
    for p in &members {
        send_to_process(p, sig);
    }
    members.len()
}

/// Signals the running thread, as the kernel does (SIGPIPE).
pub fn send_to_current_thread(sig: u32) {
    let me = task::current();
    if let Some(t) = thread_of(&me) {
        post(&t.process, Some(&me.to_arc()), SigInfo::kernel(sig));
    }
}

/// Signals a process.
pub fn send_info(process: &Process, info: SigInfo) -> bool {
    post(process, None, info)
}

/// Signals one thread of a process.
pub fn send_info_to_thread(process: &Process, task: &Arc<Task>, info: SigInfo) -> bool {
    post(process, Some(task), info)
}

/// Posts a signal. Returns false if a real-time signal found no room.
fn post(process: &Process, target: Option<&Arc<Task>>, info: SigInfo) -> bool {
    let sig = info.signo;
    let mut resumed = false;
    let mut room = true;
    {
        let mut s = process.signals.lock();
        if s.threads.is_empty() || process.is_exiting() {
            return true;
        }
        if sig == SIGKILL {
            start_group_exit_locked(process, &s, SIGKILL);
            return true;
        }
        if sig == SIGCONT {
            forget(&mut s, STOPPING);
            if core::mem::take(&mut s.stopped) {
                (s.stop_report, s.continue_report) = (0, true);
                resumed = true;
            }
        } else if STOPPING & bit(sig) != 0 {
            forget(&mut s, bit(SIGCONT));
        }
        let reference = target.or(s.threads.first()).cloned();
        let Some(thread) = reference.as_deref().and_then(thread_of) else { return true };
        let kept = thread.blocked() | thread.waiting_for.load(Ordering::Relaxed);
        if kept & bit(sig) != 0 || !s.discards(sig) {
            let most = process.limits.lock().signals();
            room = match target {
                Some(_) => thread.pending.lock().add(info, most),
                None => s.shared.add(info, most),
            };
            match target {
                Some(t) => poke_if_wanted(t, sig),
                None => poke_one(&s, sig),
            }
            process.signal_files.wake_all();
        }
    }
    if resumed {
        process.resumed.wake_all();
        notify_parent(process, code::CLD_CONTINUED, SIGCONT);
    }
    room
}

fn forget(s: &mut SignalState, set: u64) {
    s.shared.discard(set);
    for t in &s.threads {
        if let Some(t) = thread_of(t) {
            t.pending.lock().discard(set);
        }
    }
}

fn wants(task: &Task, sig: u32) -> bool {
    thread_of(task).is_some_and(|t| {
        let deaf = t.blocked() & !t.waiting_for.load(Ordering::Relaxed) & !UNBLOCKABLE;
        deaf & bit(sig) == 0
    })
}

fn poke_if_wanted(task: &Arc<Task>, sig: u32) {
    if wants(task, sig) {
        poke(task);
    }
}

/// Picks a thread for a signal of the whole process: the running one if it can take it, else the first that can.
fn poke_one(s: &SignalState, sig: u32) {
    let me = task::current();
    let mine = s.threads.iter().find(|t| core::ptr::eq(&*me, Arc::as_ptr(t)) && wants(t, sig));
    if let Some(t) = mine.or_else(|| s.threads.iter().find(|t| wants(t, sig))) {
        poke(t);
    }
}

/// After the running thread's mask, or the set of threads, has changed: makes sure that somebody looks at what is pending.
pub fn recalculate(s: &SignalState) {
    for t in &s.threads {
        let Some(thread) = thread_of(t) else { continue };
        let open = !thread.blocked() | UNBLOCKABLE;
        if (s.shared.set | thread.pending.lock().set) & open != 0 {
            poke(t);
        }
    }
}

/// A signal that the running thread can't escape: its own fault. A handler runs even if the signal was blocked or ignored
/// only in so far as Linux does that: it is set back to the default then.
pub fn force(thread: &Thread, info: SigInfo) {
    let mut s = thread.process.signals.lock();
    let sig = info.signo;
    let set = bit(sig);
    let blocked = thread.blocked();
    if blocked & set != 0 || s.ignored() & set != 0 {
        s.set_action(sig, super::Action::DEFAULT);
        thread.blocked.store(blocked & !set, Ordering::Relaxed);
    }
    let mut pending = thread.pending.lock();
    pending.discard(set);
    pending.add(info, u64::MAX);
    drop(pending);
    task::current().work.fetch_or(work::USER, Ordering::SeqCst);
}

/// Tells the parent that a child stopped or continued.
pub fn notify_parent(child: &Process, what: i32, sig: u32) {
    let Some(parent) = table::find(child.ppid()) else { return };
    let wants_it = {
        let action = parent.signals.lock().action(SIGCHLD);
        action.handler > super::Action::IGNORE && action.flags & flags::SA_NOCLDSTOP == 0
    };
    if wants_it {
        send_info(&parent, SigInfo::child(SIGCHLD, what, child.pid, sig, 0));
    }
    parent.child_events.wake_all();
}
