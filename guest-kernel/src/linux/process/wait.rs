//! wait4(2) and waitid(2).

use core::sync::atomic::Ordering;

use super::signal::code::{CLD_CONTINUED, CLD_EXITED, CLD_KILLED, CLD_STOPPED};
use super::signal::{SIGCHLD, SIGCONT, SigInfo};
use super::table::{self, Verdict};
use super::{Process, Thread, times};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::pidfd;
use crate::mm::user;
use crate::sync::Interrupted;

/// Linux include/uapi/linux/wait.h.
const WNOHANG: u32 = 1;
const WSTOPPED: u32 = 2;
const WEXITED: u32 = 4;
const WCONTINUED: u32 = 8;
const WNOWAIT: u32 = 0x0100_0000;
/// Threads that aren't the caller's own children, other clone flavours: all the same here.
const IGNORED: u32 = 0xe000_0000;

#[derive(Clone, Copy)]
enum Which {
    Any,
    Pid(u32),
    Group(u32),
}

impl Which {
    fn accepts(self, p: &Process) -> bool {
        match self {
            Self::Any => true,
            Self::Pid(pid) => p.pid == pid,
            Self::Group(g) => p.pgid() == g,
        }
    }
}

enum Event {
    Exited,
    Stopped(u32),
    Continued,
}

struct Found {
    pid: u32,
    event: Event,
    status: u32,
    run_ns: u64,
}

/// Looks once. `Err(true)`: there are children, but nothing to report; `Err(false)`: there are none.
fn look(me: &Process, which: Which, options: u32) -> Result<Found, bool> {
    let mut any = false;
    let mut event = None;
    let keep = options & WNOWAIT != 0;
    let child = table::visit_children(me.pid, |p| {
        if !which.accepts(p) {
            return Verdict::Skip;
        }
        any = true;
        // Acquire: a zombie's status and counters are final.
        if p.zombie.load(Ordering::Acquire) {
            if options & WEXITED == 0 {
                return Verdict::Skip;
            }
            event = Some(Event::Exited);
            return if keep { Verdict::Take } else { Verdict::Reap };
        }
        if options & (WSTOPPED | WCONTINUED) == 0 {
            return Verdict::Skip;
        }
        let mut s = p.signals.lock();
        if options & WSTOPPED != 0 && s.stop_report != 0 {
            event = Some(Event::Stopped(s.stop_report));
            if !keep {
                s.stop_report = 0;
            }
            return Verdict::Take;
        }
        if options & WCONTINUED != 0 && s.continue_report {
            event = Some(Event::Continued);
            s.continue_report = keep;
            return Verdict::Take;
        }
        Verdict::Skip
    });
    match (child, event) {
        (Some(p), Some(event)) => {
            let run_ns = p.dead_ns.load(Ordering::Relaxed) + p.child_ns.load(Ordering::Relaxed);
            if matches!(event, Event::Exited) && !keep {
                me.child_ns.fetch_add(run_ns, Ordering::Relaxed);
            }
            Ok(Found { pid: p.pid, event, status: p.wait_status.load(Ordering::Relaxed), run_ns })
        }
        _ => Err(any),
    }
}

fn wait(thread: &Thread, which: Which, options: u32) -> Result<Option<Found>, Errno> {
    let me = &thread.process;
    let attempt = || match look(me, which, options) {
        Ok(f) => Some(Ok(Some(f))),
        Err(false) => Some(Err(Errno::ECHILD)),
        Err(true) if options & WNOHANG != 0 => Some(Ok(None)),
        Err(true) => None,
    };
    match me.child_events.wait_interruptible(None, attempt) {
        Ok(r) => r,
        Err(Interrupted::Signal | Interrupted::TimedOut) => Err(Errno::ERESTARTSYS),
    }
}

/// wait4(2).
pub fn wait4(thread: &Thread, pid: u64, status: u64, options: u64, usage: u64) -> SysResult {
    let options = options as u32;
    if options & !(WNOHANG | WSTOPPED | WCONTINUED | IGNORED) != 0 {
        return Err(Errno::EINVAL);
    }
    let which = match pid as i32 {
        -1 => Which::Any,
        0 => Which::Group(thread.process.pgid()),
        i32::MIN => return Err(Errno::ESRCH),
        p if p < 0 => Which::Group(p.unsigned_abs()),
        p => Which::Pid(p as u32),
    };
    let Some(found) = wait(thread, which, options | WEXITED)? else { return Ok(0) };
    let word: u32 = match found.event {
        Event::Exited => found.status,
        Event::Stopped(sig) => sig << 8 | 0x7f,
        Event::Continued => 0xffff,
    };
    if status != 0 {
        user::write(status, &word)?;
    }
    if usage != 0 {
        user::write(usage, &times::usage_words(found.run_ns, 0, [0, 0], 0))?;
    }
    Ok(u64::from(found.pid))
}

/// waitid(2).
pub fn waitid(thread: &Thread, kind: u64, id: u64, info: u64, options: u64, usage: u64) -> SysResult {
    let options = options as u32;
    if options & !(WNOHANG | WSTOPPED | WEXITED | WCONTINUED | WNOWAIT | IGNORED) != 0
        || options & (WSTOPPED | WEXITED | WCONTINUED) == 0
    {
        return Err(Errno::EINVAL);
    }
    let mut nonblocking = false;
    // P_ALL, P_PID, P_PGID, P_PIDFD.
    let which = match (kind, id as u32) {
        (0, _) => Which::Any,
        (1, p) if p as i32 > 0 => Which::Pid(p),
        (2, 0) => Which::Group(thread.process.pgid()),
        (2, g) if g as i32 > 0 => Which::Group(g),
        (3, fd) if fd as i32 >= 0 => {
            let (child, nonblock) = pidfd::process_of(&thread.process, id)?;
            nonblocking = nonblock && options & WNOHANG == 0;
            Which::Pid(child.pid)
        }
        _ => return Err(Errno::EINVAL),
    };
    let also = if nonblocking { WNOHANG } else { 0 };
    let Some(found) = wait(thread, which, options | also)? else {
        if nonblocking {
            return Err(Errno::EAGAIN);
        }
        if info != 0 {
            user::write(info, &[0u64; 6])?;
        }
        return Ok(0);
    };
    let (what, value) = match found.event {
        Event::Exited if found.status & 0x7f == 0 => (CLD_EXITED, found.status >> 8 & 0xff),
        Event::Exited => (CLD_KILLED, found.status & 0x7f),
        Event::Stopped(sig) => (CLD_STOPPED, sig),
        Event::Continued => (CLD_CONTINUED, SIGCONT),
    };
    if info != 0 {
        let i = SigInfo::child(SIGCHLD, what, found.pid, value, 0);
        user::write(info, &i.to_words())?;
    }
    if usage != 0 {
        user::write(usage, &times::usage_words(found.run_ns, 0, [0, 0], 0))?;
    }
    Ok(0)
}
