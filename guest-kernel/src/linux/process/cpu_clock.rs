//! Clocks of CPU time, of a process or of one thread: what clock_nanosleep sleeps on and timers count by.
//!
//! Nothing happens by itself when such a clock reaches a value, so that switches stay cheap: whoever waits for one looks again
//! at the earliest moment at which it can have been reached ([`CpuClock::next_look`]). Invariant: a look is never early by the
//! clock, and late by no more than [`TICK`] after the clock got there. All CPU time counts as user time, see `times`.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::Ordering;

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;

use super::thread::Restart;
use super::times::to_timespec;
use super::{Process, Thread, identity, table, thread_of};
use crate::cpu;
use crate::linux::errno::{Errno, SysResult};
use crate::mm::user;
use crate::sched;
use crate::sync::{Interrupted, WaitQueue};
use crate::task::{Task, current};
use crate::time;

/// Clock ids: Linux include/uapi/linux/time.h.
const PROCESS: i32 = 2;
const THREAD: i32 = 3;
/// Looks that are due sooner are put off until then: the tick of a Linux with CONFIG_HZ=250, whose CPU timers know no finer
/// time.
pub const TICK: u64 = 4_000_000;

/// One such clock. It keeps nobody alive.
pub enum CpuClock {
    /// Of all threads of a process.
    Process(Weak<Process>),
    /// Of one thread.
    Thread(Weak<Task>),
}

impl CpuClock {
    /// The clock that an id means: one of the two constants, or `~number << 3 | kind`, where bit 2 says that it is a thread's
    /// (Linux include/linux/posix-timers_types.h).
    ///
    /// # Errors
    /// EINVAL: not the id of a CPU clock, or of nobody.
    pub fn of_id(thread: &Thread, id: i32) -> Result<Self, Errno> {
        /// Kinds 0 to 2 (CPUCLOCK_PROF, VIRT, SCHED) are one here; 3 is a descriptor's clock.
        const DESCRIPTOR: i32 = 3;
        let own = || Self::Thread(Arc::downgrade(&current().to_arc()));
        match id {
            PROCESS => return Ok(Self::Process(Arc::downgrade(&thread.process))),
            THREAD => return Ok(own()),
            id if id >= 0 || id & DESCRIPTOR == DESCRIPTOR => return Err(Errno::EINVAL),
            _ => {}
        }
        let number = !(id >> 3) as u32;
        match (id & 4 != 0, number) {
            (true, 0) => Ok(own()),
            (true, n) => {
                let task = identity::task_by_tid(thread, n).ok_or(Errno::EINVAL)?;
                let ours = thread_of(&task).is_some_and(|t| Arc::ptr_eq(&t.process, &thread.process));
                if ours { Ok(Self::Thread(Arc::downgrade(&task))) } else { Err(Errno::EINVAL) }
            }
            (false, 0) => Ok(Self::Process(Arc::downgrade(&thread.process))),
            (false, n) => table::find(n).map(|p| Self::Process(Arc::downgrade(&p))).ok_or(Errno::EINVAL),
        }
    }

    /// What it shows; `None`: its owner has ended. Callable from interrupt context.
    pub fn read(&self) -> Option<Nanos> {
        match self {
            Self::Process(p) => p.upgrade().filter(|p| !p.zombie.load(Ordering::Acquire)).map(|p| Nanos(p.run_ns())),
            Self::Thread(t) => t.upgrade().map(|t| sched::ran(&t)),
        }
    }

    /// The monotonic time at which a clock that shows `now` can show `until` at the earliest.
    pub fn next_look(&self, now: Nanos, until: Nanos) -> Nanos {
        let parallel = match self {
            Self::Process(p) => p.upgrade().map_or(1, |p| p.thread_count()).clamp(1, cpu::count() as usize),
            Self::Thread(_) => 1,
        };
        let wait = until.0.saturating_sub(now.0) / parallel as u64;
        Nanos(time::now().0.saturating_add(wait.max(TICK)))
    }

    fn is_of_caller(&self) -> bool {
        matches!(self, Self::Thread(t) if core::ptr::eq(t.as_ptr(), &*current()))
    }
}

/// clock_nanosleep(2) on a CPU clock. `remaining`: where the rest goes after an interruption.
pub fn nanosleep(thread: &Thread, id: i32, absolute: bool, time: Nanos, remaining: u64) -> SysResult {
    if id == THREAD {
        return Err(Errno::EOPNOTSUPP);
    }
    let clock = CpuClock::of_id(thread, id)?;
    // It would stand still.
    if clock.is_of_caller() {
        return Err(Errno::EINVAL);
    }
    let until = if absolute { time } else { Nanos(clock.read().ok_or(Errno::EINVAL)?.0.saturating_add(time.0)) };
    sleep_until(thread, &clock, id, until, (!absolute).then_some(remaining))
}

/// restart_syscall(2) of a relative sleep.
pub fn resume(thread: &Thread, id: i32, until: Nanos, remaining: u64) -> SysResult {
    let clock = CpuClock::of_id(thread, id)?;
    sleep_until(thread, &clock, id, until, Some(remaining))
}

fn sleep_until(thread: &Thread, clock: &CpuClock, id: i32, until: Nanos, remaining: Option<u64>) -> SysResult {
    // A queue that nobody else knows: only the timer and signals wake us.
    let alone = WaitQueue::of(WaitReason::Sleep);
    loop {
        let now = clock.read().ok_or(Errno::EINVAL)?;
        if now >= until {
            return Ok(0);
        }
        match alone.wait_interruptible(Some(clock.next_look(now, until)), || None::<()>) {
            Ok(()) | Err(Interrupted::TimedOut) => {}
            Err(Interrupted::Signal) => {
                let Some(out) = remaining else { return Err(Errno::ERESTARTNOHAND) };
                if out != 0 {
                    let now = clock.read().unwrap_or(until);
                    user::write(out, &to_timespec(Nanos(until.0.saturating_sub(now.0))))?;
                }
                *thread.restart.lock() = Some(Restart::CpuSleep { id, until, remaining: out });
                return Err(Errno::ERESTART_RESTARTBLOCK);
            }
        }
    }
}
