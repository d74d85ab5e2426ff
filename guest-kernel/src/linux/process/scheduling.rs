//! Scheduling calls: affinity is carried out; policies and priorities are checked, kept and shown.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vcpu_sched::cpumask::{CpuMask, MASK_BYTES};

use super::identity::task_by_tid;
use super::{Thread, table, thread_of};
use crate::cpu;
use crate::linux::errno::{Errno, SysResult};
use crate::mm::user;
use crate::sched;
use crate::task::{Task, current};

/// Linux include/uapi/linux/sched.h.
const SCHED_FIFO: u32 = 1;
const SCHED_RR: u32 = 2;
const SCHED_BATCH: u32 = 3;
const SCHED_IDLE: u32 = 5;
const RESET_ON_FORK: u32 = 0x4000_0000;
const MAX_PRIORITY: u32 = 99;

fn target(thread: &Thread, pid: u64) -> Result<Arc<Task>, Errno> {
    match pid as i32 {
        0 => Ok(current().to_arc()),
        p if p < 0 => Err(Errno::EINVAL),
        p => task_by_tid(thread, p as u32).ok_or(Errno::ESRCH),
    }
}

/// sched_setaffinity(2).
pub fn set_affinity(thread: &Thread, pid: u64, size: u64, mask: u64) -> SysResult {
    let mut bytes = [0; MASK_BYTES];
    let n = (size as usize).min(MASK_BYTES);
    user::read_bytes(&mut bytes[..n], mask)?;
    let task = target(thread, pid)?;
    let wanted = CpuMask::from_le_bytes(&bytes).and(&sched::online_mask());
    if wanted.is_empty() {
        return Err(Errno::EINVAL);
    }
    sched::set_affinity(&task, &wanted).map_err(|_| Errno::EBUSY)?;
    Ok(0)
}

/// sched_getaffinity(2). Returns the bytes written.
pub fn get_affinity(thread: &Thread, pid: u64, size: u64, mask: u64) -> SysResult {
    let needed = (cpu::count() as usize).div_ceil(64) * 8;
    if (size as usize) < needed || !size.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let task = target(thread, pid)?;
    let present = task.affinity.lock().and(&sched::online_mask());
    user::write_bytes(mask, &present.to_le_bytes()[..needed])?;
    Ok(needed as u64)
}

/// getcpu(2).
pub fn getcpu(cpu_out: u64, node_out: u64) -> SysResult {
    if cpu_out != 0 {
        user::write(cpu_out, &cpu::this().id.0)?;
    }
    if node_out != 0 {
        user::write(node_out, &0u32)?;
    }
    Ok(0)
}

/// Packs policy and priority into `Thread::policy`.
fn check_policy(policy: u64, priority: u32) -> Result<u64, Errno> {
    let policy = policy as u32;
    let ok = match policy & !RESET_ON_FORK {
        0 | SCHED_BATCH | SCHED_IDLE => priority == 0,
        SCHED_FIFO | SCHED_RR => (1..=MAX_PRIORITY).contains(&priority),
        _ => false,
    };
    if ok { Ok(u64::from(policy) << 32 | u64::from(priority)) } else { Err(Errno::EINVAL) }
}

fn with_thread<T>(thread: &Thread, pid: u64, f: impl FnOnce(&Thread) -> T) -> Result<T, Errno> {
    let task = target(thread, pid)?;
    thread_of(&task).map(f).ok_or(Errno::ESRCH)
}

/// sched_setscheduler(2).
pub fn set_scheduler(thread: &Thread, pid: u64, policy: u64, param: u64) -> SysResult {
    let packed = check_policy(policy, user::read(param)?)?;
    with_thread(thread, pid, |t| t.policy.store(packed, Ordering::Relaxed))?;
    Ok(0)
}

/// sched_setparam(2).
pub fn set_param(thread: &Thread, pid: u64, param: u64) -> SysResult {
    let priority = user::read(param)?;
    let policy = with_thread(thread, pid, |t| t.policy.load(Ordering::Relaxed) >> 32)?;
    let packed = check_policy(policy, priority)?;
    with_thread(thread, pid, |t| t.policy.store(packed, Ordering::Relaxed))?;
    Ok(0)
}

/// sched_getscheduler(2).
pub fn get_scheduler(thread: &Thread, pid: u64) -> SysResult {
    with_thread(thread, pid, |t| t.policy.load(Ordering::Relaxed) >> 32)
}

/// sched_getparam(2).
pub fn get_param(thread: &Thread, pid: u64, param: u64) -> SysResult {
    let priority = with_thread(thread, pid, |t| t.policy.load(Ordering::Relaxed) as u32)?;
    user::write(param, &priority)?;
    Ok(0)
}

/// sched_get_priority_max(2), sched_get_priority_min(2).
pub fn priority_limit(policy: u64, max: bool) -> SysResult {
    match policy as u32 {
        SCHED_FIFO | SCHED_RR => Ok(if max { u64::from(MAX_PRIORITY) } else { 1 }),
        0 | SCHED_BATCH | SCHED_IDLE => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// sched_rr_get_interval(2).
pub fn rr_interval(thread: &Thread, pid: u64, out: u64) -> SysResult {
    target(thread, pid)?;
    let slice = vcpu_sched::policy::round_robin::DEFAULT_SLICE;
    user::write(out, &super::times::to_timespec(slice))?;
    Ok(0)
}

/// `struct sched_attr`, version 0: size, policy, flags, nice, priority, runtime, deadline, period.
const ATTR_SIZE: u32 = 48;

/// sched_setattr(2).
pub fn set_attr(thread: &Thread, pid: u64, attr: u64, flags: u64) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let w: [u32; 6] = user::read(attr)?;
    if w[0] != 0 && w[0] < ATTR_SIZE {
        return Err(Errno::E2BIG);
    }
    let packed = check_policy(u64::from(w[1]), w[5])?;
    with_thread(thread, pid, |t| {
        t.policy.store(packed, Ordering::Relaxed);
        t.nice.store(nice_byte(w[4] as i32), Ordering::Relaxed);
    })?;
    Ok(0)
}

/// sched_getattr(2).
pub fn get_attr(thread: &Thread, pid: u64, attr: u64, size: u64, flags: u64) -> SysResult {
    if flags != 0 || size < u64::from(ATTR_SIZE) {
        return Err(Errno::EINVAL);
    }
    let (packed, nice) =
        with_thread(thread, pid, |t| (t.policy.load(Ordering::Relaxed), t.nice.load(Ordering::Relaxed)))?;
    let nice = i32::from(nice) - 20;
    let w = [ATTR_SIZE, (packed >> 32) as u32, 0, 0, nice as u32, packed as u32, 0, 0, 0, 0, 0, 0];
    user::write(attr, &w)?;
    Ok(0)
}

fn nice_byte(nice: i32) -> u8 {
    (nice.clamp(-20, 19) + 20) as u8
}

/// getpriority(2), setpriority(2): the tasks that (`which`, `who`) names.
fn chosen(thread: &Thread, which: u64, who: u64) -> Result<alloc::vec::Vec<Arc<Task>>, Errno> {
    let me = &thread.process;
    let group = |g: u32| table::snapshot(|p| p.pgid() == g).iter().flat_map(|p| p.tasks()).collect();
    let tasks: alloc::vec::Vec<_> = match (which, who as u32) {
        (0, _) => alloc::vec![target(thread, who)?],
        (1, 0) => group(me.pgid()),
        (1, g) => group(g),
        (2, 0) => table::snapshot(|_| true).iter().flat_map(|p| p.tasks()).collect(),
        (2, _) => return Err(Errno::ESRCH),
        _ => return Err(Errno::EINVAL),
    };
    if tasks.is_empty() { Err(Errno::ESRCH) } else { Ok(tasks) }
}

/// getpriority(2): 20 minus the nice value, as the system call gives it.
pub fn get_priority(thread: &Thread, which: u64, who: u64) -> SysResult {
    let tasks = chosen(thread, which, who)?;
    let lowest = tasks.iter().filter_map(|t| thread_of(t).map(|t| t.nice.load(Ordering::Relaxed))).min();
    lowest.map(|n| u64::from(40 - n)).ok_or(Errno::ESRCH)
}

/// setpriority(2).
pub fn set_priority(thread: &Thread, which: u64, who: u64, nice: u64) -> SysResult {
    for t in chosen(thread, which, who)? {
        if let Some(t) = thread_of(&t) {
            t.nice.store(nice_byte(nice as i32), Ordering::Relaxed);
        }
    }
    Ok(0)
}

/// membarrier(2): the commands that a shootdown-like interrupt would serve are not offered.
pub fn membarrier(command: u64, _flags: u64) -> SysResult {
    /// MEMBARRIER_CMD_QUERY: the set of commands that are there.
    const QUERY: u64 = 0;
    if command == QUERY { Ok(0) } else { Err(Errno::EINVAL) }
}
