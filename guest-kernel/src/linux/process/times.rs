//! Clocks, sleeping, and CPU time.

use core::sync::atomic::Ordering;

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;

use super::thread::Restart;
use super::{Thread, cpu_clock, futex, table};
use crate::linux::errno::{Errno, SysResult};
use crate::mm::user;
use crate::runtime;
use crate::sched;
use crate::task::{Task, current};
use crate::time::{self, shown};

const SECOND: u64 = 1_000_000_000;
/// Clock ids: Linux include/uapi/linux/time.h.
const CLOCK_REALTIME: i32 = 0;
const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_PROCESS_CPUTIME: i32 = 2;
const CLOCK_THREAD_CPUTIME: i32 = 3;
const CLOCK_MONOTONIC_RAW: i32 = 4;
const CLOCK_REALTIME_COARSE: i32 = 5;
const CLOCK_MONOTONIC_COARSE: i32 = 6;
const CLOCK_BOOTTIME: i32 = 7;
const CLOCK_TAI: i32 = 11;
const TIMER_ABSTIME: u64 = 1;
/// `_SC_CLK_TCK` in nanoseconds.
pub const CLOCK_TICK: u64 = SECOND / 100;

/// A `struct timespec` as nanoseconds; a far time saturates.
///
/// # Errors
/// EINVAL for negative or overlong parts.
pub fn from_timespec([sec, nsec]: [i64; 2]) -> Result<Nanos, Errno> {
    if sec < 0 || !(0..SECOND as i64).contains(&nsec) {
        return Err(Errno::EINVAL);
    }
    Ok(Nanos((sec as u64).saturating_mul(SECOND).saturating_add(nsec as u64)))
}

/// Nanoseconds as a `struct timespec`.
pub fn to_timespec(n: Nanos) -> [u64; 2] {
    [n.0 / SECOND, n.0 % SECOND]
}

/// Nanoseconds as a `struct timeval`.
pub fn to_timeval(n: Nanos) -> [u64; 2] {
    [n.0 / SECOND, n.0 % SECOND / 1000]
}

/// Reads a relative timespec; null: none. The monotonic time at which it is over.
///
/// # Errors
/// EFAULT, EINVAL.
pub fn relative_deadline(at: u64) -> Result<Option<Nanos>, Errno> {
    if at == 0 {
        return Ok(None);
    }
    let d = from_timespec(user::read(at)?)?;
    Ok(Some(Nanos(time::now().0.saturating_add(d.0))))
}

/// Reads an absolute timespec of the monotonic or the real-time clock; null: none.
///
/// # Errors
/// EFAULT, EINVAL.
pub fn absolute_deadline(at: u64, realtime: bool) -> Result<Option<Nanos>, Errno> {
    if at == 0 {
        return Ok(None);
    }
    let t = from_timespec(user::read(at)?)?;
    Ok(Some(if realtime { shown::wall(t) } else { shown::monotonic(t) }))
}

/// Nanoseconds as `clock_t`.
pub fn clock_ticks(nanos: u64) -> u64 {
    nanos / CLOCK_TICK
}

fn read_clock(thread: &Thread, id: i32) -> Result<Nanos, Errno> {
    Ok(match id {
        CLOCK_REALTIME | CLOCK_REALTIME_COARSE | CLOCK_TAI => shown::wall_now(),
        CLOCK_MONOTONIC | CLOCK_MONOTONIC_RAW | CLOCK_MONOTONIC_COARSE | CLOCK_BOOTTIME => shown::now(),
        CLOCK_PROCESS_CPUTIME => Nanos(thread.process.run_ns()),
        CLOCK_THREAD_CPUTIME => sched::ran(&current()),
        // Encoded: ~number << 3 | kind, bit 2: a thread (Linux include/linux/posix-timers_types.h).
        id if id < 0 => {
            let number = !(id >> 3) as u32;
            if id & 4 != 0 {
                sched::ran(&*super::identity::task_by_tid(thread, number).ok_or(Errno::EINVAL)?)
            } else if number == 0 {
                Nanos(thread.process.run_ns())
            } else {
                Nanos(table::find(number).ok_or(Errno::EINVAL)?.run_ns())
            }
        }
        _ => return Err(Errno::EINVAL),
    })
}

/// clock_gettime(2).
pub fn clock_gettime(thread: &Thread, id: u64, out: u64) -> SysResult {
    let now = match id as i32 {
        CLOCK_MONOTONIC => shown::now(),
        id => read_clock(thread, id)?,
    };
    user::write(out, &to_timespec(now))?;
    Ok(0)
}

/// clock_getres(2).
pub fn clock_getres(thread: &Thread, id: u64, out: u64) -> SysResult {
    read_clock(thread, id as i32)?;
    if out != 0 {
        user::write(out, &[0u64, 1])?;
    }
    Ok(0)
}

/// gettimeofday(2).
pub fn gettimeofday(tv: u64, tz: u64) -> SysResult {
    if tv != 0 {
        user::write(tv, &to_timeval(shown::wall_now()))?;
    }
    if tz != 0 {
        user::write(tz, &0u64)?;
    }
    Ok(0)
}

/// time(2).
pub fn time(out: u64) -> SysResult {
    let now = shown::wall_now().0 / SECOND;
    if out != 0 {
        user::write(out, &now)?;
    }
    Ok(now)
}

/// nanosleep(2).
pub fn nanosleep(thread: &Thread, request: u64, remaining: u64) -> SysResult {
    let d = from_timespec(user::read(request)?)?;
    sleep(thread, Nanos(time::now().0.saturating_add(d.0)), Some(remaining))
}

/// clock_nanosleep(2).
pub fn clock_nanosleep(thread: &Thread, id: u64, flags: u64, request: u64, remaining: u64) -> SysResult {
    let t = from_timespec(user::read(request)?)?;
    let now = time::now().0;
    match (id as i32, flags & TIMER_ABSTIME != 0) {
        (CLOCK_REALTIME | CLOCK_TAI, true) => sleep(thread, shown::wall(t), None),
        (CLOCK_MONOTONIC | CLOCK_BOOTTIME, true) => sleep(thread, shown::monotonic(t), None),
        (CLOCK_REALTIME | CLOCK_MONOTONIC | CLOCK_BOOTTIME | CLOCK_TAI, false) => {
            sleep(thread, Nanos(now.saturating_add(t.0)), Some(remaining))
        }
        (id @ (CLOCK_PROCESS_CPUTIME | CLOCK_THREAD_CPUTIME | ..0), absolute) => {
            cpu_clock::nanosleep(thread, id, absolute, t, remaining)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Sleeps until a monotonic time. `remaining`: where the rest goes after an interruption (relative sleeps).
pub fn sleep(thread: &Thread, deadline: Nanos, remaining: Option<u64>) -> SysResult {
    // A future on our own stack: to sleep asks for no memory.
    match runtime::interruptible(WaitReason::Sleep, deadline.0, runtime::time::sleep_until(deadline)) {
        Ok(()) => Ok(0),
        Err(_interrupted) => {
            let Some(out) = remaining else { return Err(Errno::ERESTARTNOHAND) };
            if out != 0 {
                let left = Nanos(deadline.0.saturating_sub(time::now().0));
                user::write(out, &to_timespec(left))?;
            }
            *thread.restart.lock() = Some(Restart::Sleep { deadline, remaining: out });
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
    }
}

/// restart_syscall(2).
pub fn restart_syscall(thread: &Thread) -> SysResult {
    let restart = thread.restart.lock().take();
    match restart {
        None => Err(Errno::EINTR),
        Some(Restart::Sleep { deadline, remaining }) => sleep(thread, deadline, Some(remaining)),
        Some(Restart::CpuSleep { id, until, remaining }) => cpu_clock::resume(thread, id, until, remaining),
        Some(Restart::Futex { addr, value, deadline, private, bitset }) => {
            futex::resume(thread, addr, value, deadline, private, bitset)
        }
    }
}

/// `struct rusage` for nanoseconds, kibibytes, switches (voluntary, involuntary) and faults. All time counts as user time:
/// the kernel doesn't tell the two apart.
pub fn usage_words(nanos: u64, max_resident: u64, switches: [u64; 2], faults: u64) -> [u64; 18] {
    let mut w = [0; 18];
    let t = to_timeval(Nanos(nanos));
    w[0..2].copy_from_slice(&t);
    w[4] = max_resident;
    w[8] = faults;
    w[16..18].copy_from_slice(&switches);
    w
}

/// getrusage(2).
pub fn getrusage(thread: &Thread, who: u64, out: u64) -> SysResult {
    let p = &thread.process;
    let sum = |f: fn(&Task) -> u64, dead: u64| dead + p.tasks().iter().map(|t| f(t)).sum::<u64>();
    let resident = p.space().map_or(0, |s| u64::from(s.resident.load(Ordering::Relaxed)) * 4);
    let words = match who as i32 {
        0 => usage_words(
            p.run_ns(),
            resident,
            [
                sum(|t| t.switches()[0], p.dead_switches[0].load(Ordering::Relaxed)),
                sum(|t| t.switches()[1], p.dead_switches[1].load(Ordering::Relaxed)),
            ],
            sum(|t| t.stats.faults.load(Ordering::Relaxed), p.dead_faults.load(Ordering::Relaxed)),
        ),
        -1 => usage_words(p.child_ns.load(Ordering::Relaxed), 0, [0, 0], 0),
        1 => {
            let me = current();
            usage_words(sched::ran(&me).0, resident, me.switches(), me.stats.faults.load(Ordering::Relaxed))
        }
        _ => return Err(Errno::EINVAL),
    };
    user::write(out, &words)?;
    Ok(0)
}

/// times(2).
pub fn times(thread: &Thread, out: u64) -> SysResult {
    if out != 0 {
        let p = &thread.process;
        let children = clock_ticks(p.child_ns.load(Ordering::Relaxed));
        user::write(out, &[clock_ticks(p.run_ns()), 0, children, 0])?;
    }
    Ok(time::now().0 / CLOCK_TICK)
}
