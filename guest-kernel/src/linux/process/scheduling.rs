//! Scheduling calls: affinity, policies, priorities, nice values. Checked by `vcpu_sched::params`, carried out by `sched`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use vcpu_sched::cpumask::{CpuMask, MASK_BYTES};
use vcpu_sched::ids::Nanos;
use vcpu_sched::params::{Class, FLAG_RESET_ON_FORK, Nice, RtPriority, SchedAttr, SchedParams, number};
use vcpu_sched::policy::realtime::RR_SLICE;
use vcpu_sched::runqueue::PolicyKind;

use super::identity::task_by_tid;
use super::{Thread, futex, table, times};
use crate::cpu::{self, topology};
use crate::linux::errno::{Errno, SysResult};
use crate::mm::layout::PAGE_SIZE;
use crate::mm::user;
use crate::sched;
use crate::task::{Task, current};

/// SCHED_RESET_ON_FORK in the policy of sched_setscheduler(2). Linux include/uapi/linux/sched.h.
const RESET_ON_FORK: u32 = 0x4000_0000;
/// SCHED_FLAG_KEEP_POLICY, SCHED_FLAG_KEEP_PARAMS.
const KEEP_POLICY: u64 = 0x08;
const KEEP_PARAMS: u64 = 0x10;
/// Sizes of `struct sched_attr`: SCHED_ATTR_SIZE_VER0, and with the two words of utilisation clamping.
const ATTR_SIZE_0: u32 = 48;
const ATTR_SIZE: u32 = 56;
const ATTR_WORDS: usize = ATTR_SIZE as usize / 4;

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
    let cpu = cpu::this().id;
    if cpu_out != 0 {
        user::write(cpu_out, &cpu.0)?;
    }
    if node_out != 0 {
        user::write(node_out, &(topology::node_of(cpu) as u32))?;
    }
    Ok(0)
}

fn change(task: &Arc<Task>, new: &SchedParams) -> SysResult {
    futex::set_params(task, new).map_err(|_| Errno::EBUSY)?;
    Ok(0)
}

/// Policy and priority, all else as it is: a request without a slice of its own is for the default one.
fn of_policy(task: &Task, policy: u32, flags: u64, priority: u32) -> Result<SchedParams, Errno> {
    let nice = futex::own_params(task).nice.get().into();
    let attr = SchedAttr { policy, flags, nice, priority, ..SchedAttr::default() };
    SchedParams::from_attr(&attr).map_err(|_| Errno::EINVAL)
}

/// sched_setscheduler(2).
pub fn set_scheduler(thread: &Thread, pid: u64, policy: u64, param: u64) -> SysResult {
    if param == 0 {
        return Err(Errno::EINVAL);
    }
    let priority = user::read(param)?;
    let task = target(thread, pid)?;
    let flags = if policy as u32 & RESET_ON_FORK != 0 { FLAG_RESET_ON_FORK } else { 0 };
    let new = of_policy(&task, policy as u32 & !RESET_ON_FORK, flags, priority)?;
    change(&task, &new)
}

/// sched_setparam(2).
pub fn set_param(thread: &Thread, pid: u64, param: u64) -> SysResult {
    if param == 0 {
        return Err(Errno::EINVAL);
    }
    let priority: u32 = user::read(param)?;
    let task = target(thread, pid)?;
    let mut new = futex::own_params(&task);
    match &mut new.class {
        Class::Fifo(p) | Class::RoundRobin(p) => *p = RtPriority::new(priority).ok_or(Errno::EINVAL)?,
        // Linux takes the parameters of a deadline task from a sched_attr that has none.
        Class::Deadline(_) | Class::Stop => return Err(Errno::EINVAL),
        Class::Normal | Class::Batch | Class::Idle | Class::Delegated if priority != 0 => return Err(Errno::EINVAL),
        Class::Normal | Class::Batch | Class::Idle | Class::Delegated => {}
    }
    change(&task, &new)
}

/// sched_getscheduler(2).
pub fn get_scheduler(thread: &Thread, pid: u64) -> SysResult {
    let params = futex::own_params(&*target(thread, pid)?);
    let flag = if params.reset_on_fork { RESET_ON_FORK } else { 0 };
    Ok(u64::from(params.policy_number() | flag))
}

/// sched_getparam(2).
pub fn get_param(thread: &Thread, pid: u64, param: u64) -> SysResult {
    if param == 0 {
        return Err(Errno::EINVAL);
    }
    let attr = futex::own_params(&*target(thread, pid)?).to_attr(Nanos::ZERO);
    user::write(param, &attr.priority)?;
    Ok(0)
}

/// sched_get_priority_max(2), sched_get_priority_min(2).
pub fn priority_limit(policy: u64, max: bool) -> SysResult {
    match policy as u32 {
        number::FIFO | number::RR => Ok(u64::from(if max { RtPriority::MAX } else { RtPriority::MIN }.get())),
        number::NORMAL | number::BATCH | number::IDLE | number::DEADLINE => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// How long the task runs at a time: its own slice under `fair`, everybody's under the others.
pub fn slice_of(task: &Task) -> Nanos {
    match sched::policy() {
        PolicyKind::Fair => task.sched.slice(),
        PolicyKind::RoundRobin | PolicyKind::Count | PolicyKind::Runtime => sched::slice(),
    }
}

/// sched_rr_get_interval(2).
pub fn rr_interval(thread: &Thread, pid: u64, out: u64) -> SysResult {
    let task = target(thread, pid)?;
    let slice = match futex::own_params(&task).class {
        Class::RoundRobin(_) => RR_SLICE,
        Class::Normal | Class::Batch | Class::Idle | Class::Delegated => slice_of(&task),
        Class::Fifo(_) | Class::Deadline(_) | Class::Stop => Nanos::ZERO,
    };
    user::write(out, &times::to_timespec(slice))?;
    Ok(0)
}

/// Reads a `struct sched_attr` as Linux's `sched_copy_attr` does: whatever version, as long as what we don't know is zero.
fn read_attr(at: u64) -> Result<SchedAttr, Errno> {
    let too_big = || {
        // As on Linux, the program is told what size would do; if that faults, so be it.
        let _ = user::write(at, &ATTR_SIZE);
        Err(Errno::E2BIG)
    };
    let size = match user::read::<u32>(at)? {
        0 => ATTR_SIZE_0,
        size => size,
    };
    if size < ATTR_SIZE_0 || u64::from(size) > PAGE_SIZE {
        return too_big();
    }
    let mut bytes = [0; PAGE_SIZE as usize / 8];
    let mut words = [0_u32; ATTR_WORDS];
    let known = size.min(ATTR_SIZE) as usize;
    user::read_bytes(&mut bytes[..known], at)?;
    for (word, four) in words.iter_mut().zip(bytes[..known].as_chunks().0) {
        *word = u32::from_le_bytes(*four);
    }
    let (mut from, end) = (at + u64::from(ATTR_SIZE), at + u64::from(size));
    while from < end {
        let n = (end - from).min(bytes.len() as u64) as usize;
        user::read_bytes(&mut bytes[..n], from)?;
        if bytes[..n].iter().any(|b| *b != 0) {
            return too_big();
        }
        from += n as u64;
    }
    let long = |i: usize| u64::from(words[i]) | u64::from(words[i + 1]) << 32;
    Ok(SchedAttr {
        policy: words[1],
        flags: long(2),
        nice: words[4] as i32,
        priority: words[5],
        runtime: long(6),
        deadline: long(8),
        period: long(10),
    })
}

/// sched_setattr(2).
pub fn set_attr(thread: &Thread, pid: u64, attr: u64, flags: u64) -> SysResult {
    if attr == 0 || flags != 0 {
        return Err(Errno::EINVAL);
    }
    let mut wanted = read_attr(attr)?;
    if (wanted.policy as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let task = target(thread, pid)?;
    let present = futex::own_params(&task);
    let keep = wanted.flags & (KEEP_POLICY | KEEP_PARAMS);
    wanted.flags &= !keep;
    if keep & KEEP_PARAMS != 0 {
        // As Linux's `__setscheduler`: this keeps the policy too, and only the flag is left to change.
        wanted = SchedAttr { flags: wanted.flags, ..present.to_attr(Nanos::ZERO) };
    } else if keep & KEEP_POLICY != 0 {
        wanted.policy = present.policy_number();
    }
    if keep & KEEP_PARAMS != 0 || !matches!(wanted.policy, number::NORMAL | number::BATCH | number::IDLE) {
        wanted.nice = present.nice.get().into();
    }
    let new = SchedParams::from_attr(&wanted).map_err(|_| Errno::EINVAL)?;
    change(&task, &new)
}

/// sched_getattr(2).
pub fn get_attr(thread: &Thread, pid: u64, attr: u64, size: u64, flags: u64) -> SysResult {
    if attr == 0 || flags != 0 || size < u64::from(ATTR_SIZE_0) || size > PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    let task = target(thread, pid)?;
    let a = futex::own_params(&task).to_attr(slice_of(&task));
    let size = (size as u32).min(ATTR_SIZE);
    let low_high = |v: u64| [v as u32, (v >> 32) as u32];
    let [f, r, d, p] = [a.flags, a.runtime, a.deadline, a.period].map(low_high);
    // The last two: utilisation clamping, which isn't there.
    let words: [u32; ATTR_WORDS] =
        [size, a.policy, f[0], f[1], a.nice as u32, a.priority, r[0], r[1], d[0], d[1], p[0], p[1], 0, 0];
    let mut bytes = [0; ATTR_SIZE as usize];
    for (four, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *four = word.to_le_bytes();
    }
    user::write_bytes(attr, &bytes[..size as usize])?;
    Ok(0)
}

/// getpriority(2), setpriority(2): the tasks that (`which`, `who`) names.
fn chosen(thread: &Thread, which: u64, who: u64) -> Result<Vec<Arc<Task>>, Errno> {
    let me = &thread.process;
    let group = |g: u32| table::snapshot(|p| p.pgid() == g).iter().flat_map(|p| p.tasks()).collect();
    let tasks: Vec<_> = match (which, who as u32) {
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
    let lowest = tasks.iter().map(|t| futex::own_params(t).nice.get()).min();
    lowest.map(|nice| (20 - i64::from(nice)) as u64).ok_or(Errno::ESRCH)
}

/// setpriority(2).
pub fn set_priority(thread: &Thread, which: u64, who: u64, nice: u64) -> SysResult {
    let nice = Nice::clamped(nice as i32);
    for task in chosen(thread, which, who)? {
        let params = futex::own_params(&task);
        if params.nice != nice {
            change(&task, &SchedParams { nice, ..params })?;
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
