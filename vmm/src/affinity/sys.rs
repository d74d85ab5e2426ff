//! The system calls: masks, classes, core-scheduling cookies, of one thread.
//!
//! Used by [`super::plan`] and [`super::live`]. Thread id 0 is the calling thread, everywhere.

use std::io;

use super::Class;
use crate::config::text::{IdSet, MAX_ID};

/// Words of a mask that holds every CPU up to [`MAX_ID`]; more than any kernel has (NR_CPUS is at most 8192), which takes
/// the rest as zero.
const WORDS: usize = (MAX_ID as usize + 1) / 64;

/// Linux, include/uapi/linux/prctl.h.
const PR_SCHED_CORE_CREATE: libc::c_ulong = 1;
const PR_SCHED_CORE_SCOPE_THREAD: libc::c_ulong = 0;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sets the CPUs that a thread may run on. The kernel silently leaves out what it can't use: read it back.
pub fn set_affinity(tid: i32, cpus: &IdSet) -> io::Result<()> {
    let mut mask = vec![0u64; WORDS];
    for cpu in cpus.iter() {
        if let Some(word) = mask.get_mut(cpu as usize / 64) {
            *word |= 1 << (cpu % 64);
        }
    }
    let bytes = size_of_val(mask.as_slice());
    // SAFETY: the mask is `bytes` long and is only read.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, bytes, mask.as_ptr()) }).map(drop)
}

/// The CPUs that a thread may run on.
pub fn affinity(tid: i32) -> io::Result<IdSet> {
    let mut mask = vec![0u64; WORDS];
    let bytes = size_of_val(mask.as_slice());
    // SAFETY: the mask is `bytes` long and nobody else uses it; the kernel writes no more than that.
    let written = check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, bytes, mask.as_mut_ptr()) })?;
    let words = mask.iter().take((written as usize).div_ceil(8)).zip((0u32..).step_by(64));
    Ok(words
        .flat_map(|(word, base)| (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| base + bit))
        .collect())
}

/// Sets a thread's class.
pub fn set_class(tid: i32, class: Class) -> io::Result<()> {
    let (policy, priority, nice) = match class {
        Class::Other => (libc::SCHED_OTHER, 0, None),
        Class::Nice(nice) => (libc::SCHED_OTHER, 0, Some(nice)),
        Class::Fifo(priority) => (libc::SCHED_FIFO, priority, None),
        Class::RoundRobin(priority) => (libc::SCHED_RR, priority, None),
    };
    let param = libc::sched_param { sched_priority: priority as i32 };
    // SAFETY: `param` is a valid sched_param, only read.
    check(unsafe { libc::sched_setscheduler(tid, policy, &raw const param) }.into())?;
    if let Some(nice) = nice {
        // SAFETY: takes numbers only; for a thread id Linux sets that thread alone (setpriority(2), "C library/kernel
        // differences").
        check(unsafe { libc::setpriority(libc::PRIO_PROCESS, tid as libc::id_t, nice) }.into())?;
    }
    Ok(())
}

/// A thread's class. Nice 0 is [`Class::Other`].
pub fn class(tid: i32) -> io::Result<Class> {
    // SAFETY: takes a number only.
    let policy = check(unsafe { libc::sched_getscheduler(tid) }.into())? as i32 & !libc::SCHED_RESET_ON_FORK;
    let mut param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` is a sched_param of ours, which the kernel writes.
    check(unsafe { libc::sched_getparam(tid, &raw mut param) }.into())?;
    let priority = param.sched_priority.unsigned_abs();
    if policy == libc::SCHED_FIFO {
        return Ok(Class::Fifo(priority));
    }
    if policy == libc::SCHED_RR {
        return Ok(Class::RoundRobin(priority));
    }
    // The system call itself answers 20 - nice, so that errors can be told apart (getpriority(2)).
    // SAFETY: takes numbers only.
    let answer = check(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid) })?;
    Ok(match 20 - answer as i32 {
        0 => Class::Other,
        nice => Class::Nice(nice),
    })
}

/// Gives the calling thread a core-scheduling cookie of its own. Threads that it starts inherit it.
pub fn create_core_cookie() -> io::Result<()> {
    // SAFETY: takes numbers only: pid 0 is the caller, no cookie is written anywhere.
    let result = unsafe {
        libc::prctl(libc::PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0 as libc::c_ulong, PR_SCHED_CORE_SCOPE_THREAD, 0usize)
    };
    check(result.into()).map(drop)
}

/// The host's online CPUs; those that this thread has, if the host doesn't tell.
pub fn online() -> IdSet {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    text.trim().parse().ok().or_else(|| affinity(0).ok()).unwrap_or_default()
}
