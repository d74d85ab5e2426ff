//! Resource limits and system information.

use super::{Process, Thread, table};
use crate::linux::errno::{Errno, SysResult};
use crate::mm::{frame, user};
use crate::time;

/// Kinds of limits (`RLIM_NLIMITS`) and the ones with a value of their own here: Linux include/uapi/asm-generic/resource.h.
const KINDS: usize = 16;
const STACK: usize = 3;
const CORE: usize = 4;
const NPROC: usize = 6;
const NOFILE: usize = 7;
const MEMLOCK: usize = 8;
const SIGPENDING: usize = 11;
const MSGQUEUE: usize = 12;
const NICE: usize = 13;
const RTPRIO: usize = 14;
const INFINITY: u64 = u64::MAX;

/// Soft and hard limits of a process. Kept and shown; `fs` may ask for [`Limits::files`].
#[derive(Clone)]
pub struct Limits([[u64; 2]; KINDS]);

impl Limits {
    /// What a fresh Linux gives init.
    pub const fn new() -> Self {
        let mut l = [[INFINITY; 2]; KINDS];
        l[STACK][0] = 8 << 20;
        l[CORE][0] = 0;
        l[NPROC] = [1 << 15; 2];
        l[NOFILE] = [1024, 1 << 20];
        l[MEMLOCK] = [8 << 20; 2];
        l[SIGPENDING] = [4096; 2];
        l[MSGQUEUE] = [819_200; 2];
        l[NICE] = [0; 2];
        l[RTPRIO] = [0; 2];
        Self(l)
    }

    /// Largest descriptor number plus one.
    pub fn files(&self) -> u64 {
        self.0[NOFILE][0]
    }
}

fn change(p: &Process, kind: u64, new: u64, old: u64) -> SysResult {
    let kind = usize::try_from(kind).ok().filter(|k| *k < KINDS).ok_or(Errno::EINVAL)?;
    let wanted = if new == 0 { None } else { Some(user::read::<[u64; 2]>(new)?) };
    let was = {
        let mut l = p.limits.lock();
        let was = l.0[kind];
        if let Some(w) = wanted {
            if w[0] > w[1] {
                return Err(Errno::EINVAL);
            }
            l.0[kind] = w;
        }
        was
    };
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
        p => change(&*table::find(p).ok_or(Errno::ESRCH)?, kind, new, old),
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
