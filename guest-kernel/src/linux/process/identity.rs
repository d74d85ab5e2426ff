//! Who is who: process and thread numbers, groups and sessions, users, names, and calls that only ask or set small things.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vcpu_sched::ids::TaskId;

use super::signal::MAX_SIGNAL;
use super::{Thread, table, thread_of};
use crate::linux::errno::{Errno, SysResult};
use crate::mm::layout::USER_END;
use crate::mm::user;
use crate::task::{self, Task, current};

/// A living thread by Linux's number. The caller's own process is searched first: after an exec the number of a thread
/// need not be its task's.
pub fn task_by_tid(thread: &Thread, tid: u32) -> Option<Arc<Task>> {
    let has = |t: &Arc<Task>| thread_of(t).is_some_and(|t| t.tid() == tid);
    let own = thread.process.signals.lock().threads.iter().find(|t| has(t)).cloned();
    own.or_else(|| task::table::find(TaskId(tid)).filter(has))
        .or_else(|| table::find(tid).and_then(|p| p.tasks().into_iter().find(has)))
}

/// The process that a number means; 0: the caller's.
fn process(thread: &Thread, pid: u64) -> Result<Arc<super::Process>, Errno> {
    match pid as u32 {
        0 => Ok(thread.process.clone()),
        p => table::find(p).ok_or(Errno::ESRCH),
    }
}

/// getpgid(2).
pub fn getpgid(thread: &Thread, pid: u64) -> SysResult {
    Ok(u64::from(process(thread, pid)?.pgid()))
}

/// getsid(2).
pub fn getsid(thread: &Thread, pid: u64) -> SysResult {
    Ok(u64::from(process(thread, pid)?.sid()))
}

/// setpgid(2).
pub fn setpgid(thread: &Thread, pid: u64, pgid: u64) -> SysResult {
    if (pgid as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let me = &thread.process;
    let pid = if pid as u32 == 0 { me.pid } else { pid as u32 };
    let pgid = if pgid as u32 == 0 { pid } else { pgid as u32 };
    table::set_group(me, pid, pgid)?;
    Ok(0)
}

/// setsid(2).
pub fn setsid(thread: &Thread) -> SysResult {
    table::new_session(&thread.process).map(u64::from)
}

/// getresuid(2), getresgid(2): everybody is root.
pub fn getres(a: &[u64; 6]) -> SysResult {
    for out in &a[..3] {
        user::write(*out, &0u32)?;
    }
    Ok(0)
}

/// setuid(2) and its kin: root may become root, and there is nobody else.
pub fn set_ids(ids: &[u64]) -> SysResult {
    if ids.iter().all(|i| matches!(*i as u32, 0 | u32::MAX)) { Ok(0) } else { Err(Errno::EINVAL) }
}

/// uname(2).
pub fn uname(out: u64) -> SysResult {
    /// `__NEW_UTS_LEN` plus the zero.
    const FIELD: usize = 65;
    let fields = ["Linux", "taskvisor", RELEASE, VERSION, "x86_64", "(none)"];
    let mut b = [0; FIELD * 6];
    for (i, f) in fields.iter().enumerate() {
        b[i * FIELD..i * FIELD + f.len()].copy_from_slice(f.as_bytes());
    }
    user::write_bytes(out, &b)?;
    Ok(0)
}

/// What uname and /proc say.
pub const RELEASE: &str = "6.1.0-taskvisor";
/// See [`RELEASE`].
pub const VERSION: &str = concat!("#1 SMP Taskvisor ", env!("CARGO_PKG_VERSION"));

/// arch_prctl(2).
pub fn arch_prctl(code: u64, addr: u64) -> SysResult {
    /// Linux arch/x86/include/uapi/asm/prctl.h.
    const SET_GS: u64 = 0x1001;
    const SET_FS: u64 = 0x1002;
    const GET_FS: u64 = 0x1003;
    const GET_GS: u64 = 0x1004;
    match code {
        SET_FS if addr >= USER_END => Err(Errno::EPERM),
        SET_FS => {
            current().set_fs_base(addr);
            Ok(0)
        }
        GET_FS => {
            user::write(addr, &current().fs_base())?;
            Ok(0)
        }
        // The kernel keeps ring 3's GS base at 0: no toolchain for static Linux programs uses it.
        SET_GS if addr == 0 => Ok(0),
        GET_GS => {
            user::write(addr, &0u64)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// prctl(2).
pub fn prctl(thread: &Thread, a: &[u64; 6]) -> SysResult {
    /// Linux include/uapi/linux/prctl.h.
    const SET_PDEATHSIG: u64 = 1;
    const GET_PDEATHSIG: u64 = 2;
    const GET_DUMPABLE: u64 = 3;
    const SET_DUMPABLE: u64 = 4;
    const GET_KEEPCAPS: u64 = 7;
    const SET_NAME: u64 = 15;
    const GET_NAME: u64 = 16;
    const SET_TIMERSLACK: u64 = 29;
    const GET_TIMERSLACK: u64 = 30;
    const SET_NO_NEW_PRIVS: u64 = 38;
    const GET_NO_NEW_PRIVS: u64 = 39;
    const SET_VMA: u64 = 0x5356_4d41;
    const DEFAULT_SLACK: u64 = 50_000;
    match a[0] {
        SET_PDEATHSIG => {
            if a[1] > u64::from(MAX_SIGNAL) {
                return Err(Errno::EINVAL);
            }
            thread.parent_death_signal.store(a[1] as u32, Ordering::Relaxed);
            Ok(0)
        }
        GET_PDEATHSIG => {
            user::write(a[1], &thread.parent_death_signal.load(Ordering::Relaxed))?;
            Ok(0)
        }
        GET_DUMPABLE => Ok(1),
        SET_DUMPABLE if a[1] <= 1 => Ok(0),
        GET_KEEPCAPS => Ok(0),
        SET_NAME => {
            let mut raw = [0; 16];
            read_name(&mut raw, a[1])?;
            let len = raw.iter().position(|b| *b == 0).unwrap_or(15).min(15);
            let name = core::str::from_utf8(&raw[..len]).map_err(|_| Errno::EINVAL)?;
            current().set_name(name);
            Ok(0)
        }
        GET_NAME => {
            let name = current().name();
            let mut raw = [0; 16];
            let n = name.len().min(15);
            raw[..n].copy_from_slice(&name.as_bytes()[..n]);
            user::write(a[1], &raw)?;
            Ok(0)
        }
        SET_TIMERSLACK => Ok(0),
        GET_TIMERSLACK => Ok(DEFAULT_SLACK),
        SET_NO_NEW_PRIVS if a[1] == 1 => Ok(0),
        GET_NO_NEW_PRIVS => Ok(0),
        SET_VMA => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// A name may end right before an unmapped page.
fn read_name(out: &mut [u8; 16], at: u64) -> Result<(), Errno> {
    for (i, b) in out.iter_mut().enumerate().take(15) {
        *b = user::read(at.wrapping_add(i as u64))?;
        if *b == 0 {
            break;
        }
    }
    Ok(())
}

/// capget(2): all capabilities.
pub fn capget(header: u64, data: u64) -> SysResult {
    /// `_LINUX_CAPABILITY_VERSION_3`.
    const VERSION_3: u32 = 0x2008_0522;
    let version: u32 = user::read(header)?;
    if version != VERSION_3 {
        user::write(header, &VERSION_3)?;
        return if data == 0 { Ok(0) } else { Err(Errno::EINVAL) };
    }
    if data != 0 {
        let all = [u32::MAX, u32::MAX, 0, 0x1ff, 0x1ff, 0];
        user::write(data, &all)?;
    }
    Ok(0)
}

/// set_robust_list(2).
pub fn set_robust_list(thread: &Thread, head: u64, len: u64) -> SysResult {
    /// sizeof(struct robust_list_head).
    const HEAD_SIZE: u64 = 24;
    if len != HEAD_SIZE {
        return Err(Errno::EINVAL);
    }
    thread.robust_list.store(head, Ordering::Relaxed);
    Ok(0)
}

/// get_robust_list(2).
pub fn get_robust_list(thread: &Thread, tid: u64, head: u64, len: u64) -> SysResult {
    let task = if tid as u32 == 0 { None } else { Some(task_by_tid(thread, tid as u32).ok_or(Errno::ESRCH)?) };
    let list = match task.as_deref().map(thread_of) {
        Some(t) => t.ok_or(Errno::ESRCH)?.robust_list.load(Ordering::Relaxed),
        None => thread.robust_list.load(Ordering::Relaxed),
    };
    user::write(len, &24u64)?;
    user::write(head, &list)?;
    Ok(0)
}

/// set_tid_address(2).
pub fn set_tid_address(thread: &Thread, word: u64) -> SysResult {
    thread.clear_child_tid.store(word, Ordering::Relaxed);
    Ok(u64::from(thread.tid()))
}

/// getgroups(2): root's one group.
pub fn getgroups(size: u64, list: u64) -> SysResult {
    match size as i32 {
        0 => Ok(1),
        n if n < 0 => Err(Errno::EINVAL),
        _ => {
            user::write(list, &0u32)?;
            Ok(1)
        }
    }
}
