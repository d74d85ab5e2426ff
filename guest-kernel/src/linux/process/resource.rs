//! Resource limits and system information.

use alloc::sync::Arc;

use super::signal::{self, SIGKILL, SIGXCPU, SIGXFSZ};
use super::{Process, Thread, table, timers};
use crate::linux::errno::{Errno, SysResult};
use crate::mm::{frame, user};
use crate::time;

/// Kinds of limits (`RLIM_NLIMITS`) and the ones with a value of their own here: Linux include/uapi/asm-generic/resource.h.
const KINDS: usize = 16;
const CPU: usize = 0;
const FSIZE: usize = 1;
const DATA: usize = 2;
const STACK: usize = 3;
const CORE: usize = 4;
const NPROC: usize = 6;
const NOFILE: usize = 7;
const MEMLOCK: usize = 8;
const AS: usize = 9;
const SIGPENDING: usize = 11;
const MSGQUEUE: usize = 12;
const NICE: usize = 13;
const RTPRIO: usize = 14;
/// "No limit".
pub const INFINITY: u64 = u64::MAX;
/// fs.nr_open.
const MAX_FILES: u64 = 1 << 20;

/// Soft and hard limits of a process. Those that a method tells are kept to; root, and there is nobody else, isn't bound by
/// NPROC, MEMLOCK, NICE, RTPRIO and MSGQUEUE on Linux either.
#[derive(Clone)]
pub struct Limits([[u64; 2]; KINDS]);

impl Limits {
    /// What a fresh Linux gives init.
    pub const fn new() -> Self {
        let mut l = [[INFINITY; 2]; KINDS];
        l[STACK][0] = 8 << 20;
        l[CORE][0] = 0;
        l[NPROC] = [1 << 15; 2];
        l[NOFILE] = [1024, MAX_FILES];
        l[MEMLOCK] = [8 << 20; 2];
        l[SIGPENDING] = [4096; 2];
        l[MSGQUEUE] = [819_200; 2];
        l[NICE] = [0; 2];
        l[RTPRIO] = [0; 2];
        Self(l)
    }

    /// Bytes of address space.
    pub fn address_space(&self) -> u64 {
        self.0[AS][0]
    }

    /// Bytes of private writable memory.
    pub fn data(&self) -> u64 {
        self.0[DATA][0]
    }

    /// Bytes of the stack of a program that starts.
    pub fn stack(&self) -> u64 {
        self.0[STACK][0]
    }

    /// Bytes of a file that is written to.
    pub fn file_size(&self) -> u64 {
        self.0[FSIZE][0]
    }

    /// Signals that wait, and timers.
    pub fn signals(&self) -> u64 {
        self.0[SIGPENDING][0]
    }

    /// Second of CPU time at which RLIMIT_CPU has something to say first.
    pub fn first_cpu_second(&self) -> Option<u64> {
        Some(self.0[CPU][0].min(self.0[CPU][1]).max(1)).filter(|s| *s != INFINITY)
    }

    /// Largest descriptor number plus one.
    pub fn files(&self) -> u64 {
        self.0[NOFILE][0]
    }
}

/// RLIMIT_CPU has been used up, or another second beyond it.
pub fn cpu_limit_reached(p: &Arc<Process>) {
    let hard = p.limits.lock().0[CPU][1];
    let used = p.run_ns() / 1_000_000_000;
    signal::send_to_process(p, if used >= hard { SIGKILL } else { SIGXCPU });
}

/// Whether a file of the running task's process may grow to `size`; if not, SIGXFSZ says so.
///
/// # Errors
/// EFBIG.
pub fn check_file_size(size: u64) -> Result<(), Errno> {
    if size <= super::current().limits.lock().file_size() {
        return Ok(());
    }
    signal::send_to_current_thread(SIGXFSZ);
    Err(Errno::EFBIG)
}

fn change(p: &Arc<Process>, kind: u64, new: u64, old: u64) -> SysResult {
    let kind = usize::try_from(kind).ok().filter(|k| *k < KINDS).ok_or(Errno::EINVAL)?;
    let wanted = if new == 0 { None } else { Some(user::read::<[u64; 2]>(new)?) };
    let was = {
        let mut l = p.limits.lock();
        let was = l.0[kind];
        if let Some(w) = wanted {
            if w[0] > w[1] {
                return Err(Errno::EINVAL);
            }
            if kind == NOFILE && w[1] > MAX_FILES {
                return Err(Errno::EPERM);
            }
            l.0[kind] = w;
        }
        was
    };
    if kind == CPU && wanted.is_some() {
        let first = p.limits.lock().first_cpu_second();
        timers::watch_cpu_limit(p, first);
    }
    if old != 0 {
        user::write(old, &was)?;
    }
    Ok(0)
}

/// getrlimit(2), setrlimit(2).
pub fn rlimit(thread: &Thread, kind: u64, new: u64, old: u64) -> SysResult {
    change(&thread.process, kind, new, old)
}

/// prlimit64(2).
pub fn prlimit(thread: &Thread, pid: u64, kind: u64, new: u64, old: u64) -> SysResult {
    match pid as u32 {
        0 => change(&thread.process, kind, new, old),
        p => change(&table::find(p).ok_or(Errno::ESRCH)?, kind, new, old),
    }
}

/// sysinfo(2): `struct sysinfo`.
pub fn sysinfo(out: u64) -> SysResult {
    let (free, total) = frame::usage();
    let mut w = [0u64; 14];
    w[0] = time::now().0 / 1_000_000_000;
    (w[4], w[5]) = (u64::from(total) << 12, u64::from(free) << 12);
    w[10] = table::count() as u64;
    w[13] = 1; // mem_unit
    user::write(out, &w)?;
    Ok(0)
}
