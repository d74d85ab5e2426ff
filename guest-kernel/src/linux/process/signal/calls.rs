//! The signal system calls.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vcpu_sched::events::WaitReason;

use super::frame::{alt_stack_words, set_alt_stack};
use super::info::{Action, SigInfo, code};
use super::{MAX_SIGNAL, SigSet, UNBLOCKABLE, bit, recalculate, send_info, send_info_to_thread};
use crate::arch::trap_entry::TrapFrame;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::identity::task_by_tid;
use crate::linux::process::{Process, Thread, table, thread_of, timers, times};
use crate::mm::user;
use crate::sync::{Interrupted, WaitQueue};

/// `sizeof(sigset_t)` of the kernel's ABI.
const SET_SIZE: u64 = 8;

fn check_signal(sig: u64) -> Result<u32, Errno> {
    let sig = sig as u32;
    if (1..=MAX_SIGNAL).contains(&sig) { Ok(sig) } else { Err(Errno::EINVAL) }
}

fn check_size(size: u64) -> Result<(), Errno> {
    if size == SET_SIZE { Ok(()) } else { Err(Errno::EINVAL) }
}

/// rt_sigaction(2).
pub fn rt_sigaction(thread: &Thread, sig: u64, new: u64, old: u64, size: u64) -> SysResult {
    check_size(size)?;
    let sig = check_signal(sig)?;
    let wanted = if new == 0 { None } else { Some(user::read::<[u64; 4]>(new)?) };
    let was = {
        let mut s = thread.process.signals.lock();
        let was = s.action(sig);
        if let Some([handler, flags, restorer, mask]) = wanted {
            if UNBLOCKABLE & bit(sig) != 0 {
                return Err(Errno::EINVAL);
            }
            s.set_action(sig, Action { handler, flags, restorer, mask: mask & !UNBLOCKABLE });
            if s.discards(sig) {
                // POSIX: what is pending is forgotten, even if it is blocked.
                s.shared.discard(bit(sig));
                for t in &s.threads {
                    if let Some(t) = thread_of(t) {
                        t.pending.lock().discard(bit(sig));
                    }
                }
            }
        }
        was
    };
    if old != 0 {
        user::write(old, &[was.handler, was.flags, was.restorer, was.mask])?;
    }
    Ok(0)
}

/// rt_sigprocmask(2).
pub fn rt_sigprocmask(thread: &Thread, how: u64, set: u64, old: u64, size: u64) -> SysResult {
    const SIG_BLOCK: u64 = 0;
    const SIG_UNBLOCK: u64 = 1;
    const SIG_SETMASK: u64 = 2;
    check_size(size)?;
    let was = thread.blocked();
    if set != 0 {
        let set: SigSet = user::read(set)?;
        let new = match how {
            SIG_BLOCK => was | set,
            SIG_UNBLOCK => was & !set,
            SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        } & !UNBLOCKABLE;
        if new != was {
            let s = thread.process.signals.lock();
            thread.blocked.store(new, Ordering::Relaxed);
            // Newly blocked: another thread may have to take what was meant for us. Unblocked: we may.
            if s.shared.set != 0 || thread.pending.lock().set != 0 {
                recalculate(&s);
            }
        }
    }
    if old != 0 {
        user::write(old, &was)?;
    }
    Ok(0)
}

/// rt_sigpending(2).
pub fn rt_sigpending(thread: &Thread, out: u64, size: u64) -> SysResult {
    if size > SET_SIZE {
        return Err(Errno::EINVAL);
    }
    let set = thread.process.signals.lock().shared.set | thread.pending.lock().set;
    user::write_bytes(out, &(set & thread.blocked()).to_le_bytes()[..size as usize])?;
    Ok(0)
}

/// rt_sigsuspend(2).
pub fn rt_sigsuspend(mask: u64, size: u64) -> SysResult {
    check_size(size)?;
    super::set_temporary_mask(user::read(mask)?);
    pause()
}

/// pause(2).
pub fn pause() -> SysResult {
    // Only signals wake us.
    let alone = WaitQueue::of(WaitReason::Signal);
    match alone.wait_interruptible(None, || None::<()>) {
        Ok(()) => Ok(0),
        Err(Interrupted::Signal | Interrupted::TimedOut) => Err(Errno::ERESTARTNOHAND),
    }
}

/// rt_sigtimedwait(2).
pub fn rt_sigtimedwait(thread: &Thread, set: u64, info: u64, timeout: u64, size: u64) -> SysResult {
    check_size(size)?;
    let set: SigSet = user::read::<SigSet>(set)? & !UNBLOCKABLE;
    let deadline = times::relative_deadline(timeout)?;
    let take = || {
        let mut s = thread.process.signals.lock();
        let own = thread.pending.lock().take(set);
        own.or_else(|| s.shared.take(set))
    };
    thread.waiting_for.store(set, Ordering::SeqCst);
    let alone = WaitQueue::of(WaitReason::Signal);
    // The sender sets `work` to wake us: what it sent may be what we wait for, so look before giving up.
    let found = alone.wait_interruptible(deadline, take).or_else(|e| take().ok_or(e));
    if let Ok(info) = &found {
        timers::taken(&thread.process, info);
    }
    thread.waiting_for.store(0, Ordering::SeqCst);
    match found {
        Ok(i) => {
            if info != 0 {
                write_info(info, i)?;
            }
            Ok(u64::from(i.signo))
        }
        Err(Interrupted::TimedOut) => Err(Errno::EAGAIN),
        Err(Interrupted::Signal) => Err(Errno::EINTR),
    }
}

fn write_info(at: u64, info: SigInfo) -> Result<(), Errno> {
    let mut w = [0; 16];
    w[..6].copy_from_slice(&info.to_words());
    Ok(user::write(at, &w)?)
}

/// sigaltstack(2).
pub fn sigaltstack(thread: &Thread, frame: &TrapFrame, new: u64, old: u64) -> SysResult {
    let was = alt_stack_words(&thread.alt_stack.lock(), frame.rsp);
    if new != 0 {
        set_alt_stack(thread, user::read(new)?, frame.rsp)?;
    }
    if old != 0 {
        user::write(old, &was)?;
    }
    Ok(0)
}

/// Signal 0 only asks whether the target is there.
fn optional_signal(sig: u64) -> Result<Option<u32>, Errno> {
    if sig as u32 == 0 { Ok(None) } else { check_signal(sig).map(Some) }
}

fn kill_one(process: &Process, info: Option<SigInfo>) {
    if let Some(i) = info {
        send_info(process, i);
    }
}

/// kill(2).
pub fn kill(thread: &Thread, pid: u64, sig: u64) -> SysResult {
    let me = &thread.process;
    let info = optional_signal(sig)?.map(|s| SigInfo::user(s, code::SI_USER, me.pid));
    let targets = match pid as i32 {
        p if p > 0 => {
            kill_one(&*table::find(p as u32).ok_or(Errno::ESRCH)?, info);
            return Ok(0);
        }
        0 => table::snapshot(|p| p.pgid() == me.pgid()),
        -1 => table::snapshot(|p| p.pid != 1 && p.pid != me.pid),
        i32::MIN => return Err(Errno::ESRCH),
        g => table::snapshot(|p| p.pgid() == g.unsigned_abs()),
    };
    if targets.is_empty() {
        return Err(Errno::ESRCH);
    }
    targets.iter().for_each(|p| kill_one(p, info));
    Ok(0)
}

fn send_to_tid(thread: &Thread, group: Option<u32>, tid: u64, info: Option<SigInfo>) -> SysResult {
    if tid as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let task = task_by_tid(thread, tid as u32).ok_or(Errno::ESRCH)?;
    let target = thread_of(&task).ok_or(Errno::ESRCH)?;
    if group.is_some_and(|g| g != target.process.pid) {
        return Err(Errno::ESRCH);
    }
    match info {
        Some(i) if !send_info_to_thread(&target.process, &task, i) => Err(Errno::EAGAIN),
        _ => Ok(0),
    }
}

/// tkill(2).
pub fn tkill(thread: &Thread, tid: u64, sig: u64) -> SysResult {
    let info = optional_signal(sig)?.map(|s| SigInfo::user(s, code::SI_TKILL, thread.process.pid));
    send_to_tid(thread, None, tid, info)
}

/// tgkill(2).
pub fn tgkill(thread: &Thread, group: u64, tid: u64, sig: u64) -> SysResult {
    if group as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let info = optional_signal(sig)?.map(|s| SigInfo::user(s, code::SI_TKILL, thread.process.pid));
    send_to_tid(thread, Some(group as u32), tid, info)
}

/// A program's own siginfo: nobody may pretend to be the kernel, or kill, towards others.
fn read_info(thread: &Thread, pid: u64, sig: u64, at: u64) -> Result<Option<SigInfo>, Errno> {
    let info = SigInfo::from_words(user::read(at)?);
    if (info.code >= 0 || info.code == code::SI_TKILL) && pid as u32 != thread.process.pid {
        return Err(Errno::EPERM);
    }
    Ok(optional_signal(sig)?.map(|signo| SigInfo { signo, ..info }))
}

/// rt_sigqueueinfo(2).
pub fn rt_sigqueueinfo(thread: &Thread, pid: u64, sig: u64, info: u64) -> SysResult {
    let info = read_info(thread, pid, sig, info)?;
    let target: Arc<Process> = table::find(pid as u32).ok_or(Errno::ESRCH)?;
    match info {
        Some(i) if !send_info(&target, i) => Err(Errno::EAGAIN),
        _ => Ok(0),
    }
}

/// rt_tgsigqueueinfo(2).
pub fn rt_tgsigqueueinfo(thread: &Thread, group: u64, tid: u64, sig: u64, info: u64) -> SysResult {
    let info = read_info(thread, group, sig, info)?;
    send_to_tid(thread, Some(group as u32), tid, info)
}
