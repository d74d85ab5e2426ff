//! eventfd and timerfd: a counter to read and to wait for.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;

use super::inode::Inode;
use super::io::IoCursor;
use super::open_file::{Events, File, Flags, OpenFile};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::Process;
use crate::mm::user;
use crate::sync::{SpinLock, WaitQueue};
use crate::time::timer::{TimerHandle, TimerTarget, call_at};
use crate::time::{self, shown};

/// Nanoseconds between looks at a repeating timer that nobody reads.
const UNREAD_PAUSE: u64 = 4_000_000;
/// EFD_SEMAPHORE.
const SEMAPHORE: u64 = 1;
/// TFD_TIMER_ABSTIME.
const ABSOLUTE: u64 = 1;
const CLOCK_REALTIME: u64 = 0;
const CLOCK_MONOTONIC: u64 = 1;
const CLOCK_BOOTTIME: u64 = 7;
const CLOCK_REALTIME_ALARM: u64 = 8;
const CLOCK_BOOTTIME_ALARM: u64 = 9;
const NANOS: u64 = 1_000_000_000;

/// Flags of the creating calls: SEMAPHORE apart, only these two are allowed.
fn creation_flags(flags: u64, also: u64) -> Result<Flags, Errno> {
    let given = Flags::from_bits_retain((flags & !also) as u32);
    if (Flags::CLOEXEC | Flags::NONBLOCK).contains(given) { Ok(given) } else { Err(Errno::EINVAL) }
}

struct EventFile {
    /// Guards itself only.
    count: SpinLock<u64>,
    semaphore: bool,
    queue: WaitQueue,
}

impl EventFile {
    fn try_take(&self) -> Option<u64> {
        let mut count = self.count.lock();
        if *count == 0 {
            return None;
        }
        let n = if self.semaphore { 1 } else { *count };
        *count -= n;
        Some(n)
    }

    fn try_add(&self, n: u64) -> Option<()> {
        let mut count = self.count.lock();
        // The largest value is u64::MAX - 1.
        *count = count.checked_add(n).filter(|c| *c < u64::MAX)?;
        Some(())
    }
}

impl File for EventFile {
    fn read(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        if io.left() < 8 {
            return Err(Errno::EINVAL);
        }
        let n = match self.try_take() {
            Some(n) => n,
            None if flags.nonblock() => return Err(Errno::EAGAIN),
            None => self.queue.wait_interruptible(None, || self.try_take()).map_err(|_| Errno::ERESTARTSYS)?,
        };
        self.queue.wake_all(); // writers that found it full
        io.put(&n.to_ne_bytes())
    }

    fn write(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        if io.left() < 8 {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; 8];
        io.take(&mut bytes)?;
        let n = u64::from_ne_bytes(bytes);
        if n == u64::MAX {
            return Err(Errno::EINVAL);
        }
        match self.try_add(n) {
            Some(()) => {}
            None if flags.nonblock() => return Err(Errno::EAGAIN),
            None => self.queue.wait_interruptible(None, || self.try_add(n)).map_err(|_| Errno::ERESTARTSYS)?,
        }
        self.queue.wake_all();
        Ok(8)
    }

    fn poll(&self) -> Events {
        let count = *self.count.lock();
        let mut e = Events::empty();
        if count > 0 {
            e |= Events::READ;
        }
        if count < u64::MAX - 1 {
            e |= Events::WRITE;
        }
        e
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn queues(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.queue);
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        None
    }

    fn path(&self) -> Vec<u8> {
        b"anon_inode:[eventfd]".to_vec()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// eventfd2(2).
///
/// # Errors
/// EINVAL, EMFILE.
pub fn create_event(process: &Process, initial: u64, flags: u64) -> SysResult {
    let given = creation_flags(flags, SEMAPHORE)?;
    let file = EventFile {
        count: SpinLock::new(u64::from(initial as u32)),
        semaphore: flags & SEMAPHORE != 0,
        queue: WaitQueue::of(WaitReason::Io),
    };
    process.fs.install(OpenFile::new(file, given | Flags::RDWR), given.contains(Flags::CLOEXEC))
}

struct TimerState {
    /// Monotonic time of the next expiry; none: disarmed.
    next: Option<Nanos>,
    interval: u64,
    expired: u64,
    /// The next look is later than the next expiry.
    paused: bool,
    /// Number of the present setting: a shot of an older one does nothing.
    generation: u64,
    handle: Option<TimerHandle>,
}

struct Timer {
    /// Guards itself only.
    state: SpinLock<TimerState>,
    queue: WaitQueue,
    realtime: bool,
}

/// One arming of the hardware-side timer.
struct Shot {
    timer: Arc<Timer>,
    generation: u64,
}

impl TimerTarget for Shot {
    fn fire(&self) {
        let mut s = self.timer.state.lock();
        if s.generation != self.generation {
            return;
        }
        let Some(due) = s.next else { return };
        s.handle = None;
        let unread = s.expired > 0;
        s.expired = s.expired.saturating_add(1);
        s.next = None;
        // Expiries that were missed meanwhile count at once.
        if let Some(late) = time::now().0.saturating_sub(due.0).checked_div(s.interval) {
            s.expired = s.expired.saturating_add(late);
            let next = Nanos(due.0.saturating_add((late + 1).saturating_mul(s.interval)));
            s.next = Some(next);
            let shot = Shot { timer: self.timer.clone(), generation: self.generation };
            // While nobody reads there is nobody to be told: an interval of nanoseconds must not take the CPU.
            let soonest = if unread { Nanos(time::now().0.saturating_add(UNREAD_PAUSE)) } else { Nanos::ZERO };
            s.paused = soonest > next;
            s.handle = Some(call_at(next.max(soonest), Arc::new(shot)));
        }
        drop(s);
        self.timer.queue.wake_all();
    }
}

impl Timer {
    fn set(self: &Arc<Self>, next: Option<Nanos>, interval: u64) {
        let old = {
            let mut s = self.state.lock();
            s.generation += 1;
            (s.expired, s.paused) = (0, false);
            (s.next, s.interval) = (next, interval);
            s.handle.take()
        };
        if let Some(handle) = old {
            handle.cancel();
        }
        let Some(at) = next else { return };
        let generation = self.state.lock().generation;
        let handle = call_at(at, Arc::new(Shot { timer: self.clone(), generation }));
        let mut s = self.state.lock();
        if s.generation == generation && s.next == next && s.handle.is_none() {
            s.handle = Some(handle);
        } else {
            // It has fired already, or another setting was quicker and will be cancelled by its own generation.
            drop(s);
            handle.cancel();
        }
    }

    /// What timerfd_gettime shows: interval and rest, as struct itimerspec.
    fn remaining(&self) -> [u64; 4] {
        let s = self.state.lock();
        let rest = s.next.map_or(0, |n| n.0.saturating_sub(time::now().0).max(1));
        [s.interval / NANOS, s.interval % NANOS, rest / NANOS, rest % NANOS]
    }

    fn try_take(self: &Arc<Self>) -> Option<u64> {
        let (n, paused) = {
            let mut s = self.state.lock();
            let paused = core::mem::take(&mut s.paused).then(|| s.handle.take()).flatten();
            (core::mem::take(&mut s.expired), paused)
        };
        if let Some(handle) = paused {
            handle.cancel();
            self.go_on();
        }
        (n > 0).then_some(n)
    }

    /// It was read: it is looked at when it is due again.
    fn go_on(self: &Arc<Self>) {
        let mut s = self.state.lock();
        if let (Some(next), None) = (s.next, &s.handle) {
            let shot = Shot { timer: self.clone(), generation: s.generation };
            s.handle = Some(call_at(next, Arc::new(shot)));
        }
    }
}

struct TimerFile(Arc<Timer>);

impl Drop for TimerFile {
    fn drop(&mut self) {
        self.0.set(None, 0);
    }
}

impl File for TimerFile {
    fn read(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        if io.left() < 8 {
            return Err(Errno::EINVAL);
        }
        let n = match self.0.try_take() {
            Some(n) => n,
            None if flags.nonblock() => return Err(Errno::EAGAIN),
            None => self.0.queue.wait_interruptible(None, || self.0.try_take()).map_err(|_| Errno::ERESTARTSYS)?,
        };
        io.put(&n.to_ne_bytes())
    }

    fn write(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn poll(&self) -> Events {
        if self.0.state.lock().expired > 0 { Events::READ } else { Events::empty() }
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn queues(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.0.queue);
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        None
    }

    fn path(&self) -> Vec<u8> {
        b"anon_inode:[timerfd]".to_vec()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// timerfd_create(2).
///
/// # Errors
/// EINVAL, EMFILE.
pub fn create_timer(process: &Process, clock: u64, flags: u64) -> SysResult {
    let known = [CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM];
    if !known.contains(&clock) {
        return Err(Errno::EINVAL);
    }
    let given = creation_flags(flags, 0)?;
    let state = TimerState { next: None, interval: 0, expired: 0, paused: false, generation: 0, handle: None };
    let realtime = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_ALARM;
    let timer = Arc::new(Timer { state: SpinLock::new(state), queue: WaitQueue::of(WaitReason::Io), realtime });
    process.fs.install(OpenFile::new(TimerFile(timer), given | Flags::RDWR), given.contains(Flags::CLOEXEC))
}

fn timer_of(process: &Process, fd: u64) -> Result<Arc<Timer>, Errno> {
    let file = process.fs.file(fd as i32)?;
    let TimerFile(timer) = file.file.as_any().downcast_ref().ok_or(Errno::EINVAL)?;
    Ok(timer.clone())
}

/// timerfd_settime(2).
///
/// # Errors
/// EINVAL, EFAULT, EBADF.
pub fn set_timer(process: &Process, fd: u64, flags: u64, new: u64, old: u64) -> SysResult {
    let timer = timer_of(process, fd)?;
    // struct itimerspec { interval, value }
    let spec: [u64; 4] = user::read(new)?;
    if spec[1] >= NANOS || spec[3] >= NANOS || (spec[0] | spec[2]) > i64::MAX as u64 || flags & !3 != 0 {
        return Err(Errno::EINVAL);
    }
    let nanos = |s: u64, n: u64| s.saturating_mul(NANOS).saturating_add(n);
    let (interval, value) = (nanos(spec[0], spec[1]), nanos(spec[2], spec[3]));
    if old != 0 {
        user::write(old, &timer.remaining())?;
    }
    let next = match (value, flags & ABSOLUTE != 0) {
        (0, _) => None,
        (v, false) => Some(Nanos(time::now().0.saturating_add(v))),
        (v, true) if timer.realtime => Some(shown::wall(Nanos(v))),
        (v, true) => Some(shown::monotonic(Nanos(v))),
    };
    timer.set(next, interval);
    Ok(0)
}

/// timerfd_gettime(2).
///
/// # Errors
/// EINVAL, EFAULT, EBADF.
pub fn get_timer(process: &Process, fd: u64, current: u64) -> SysResult {
    let rest = timer_of(process, fd)?.remaining();
    user::write(current, &rest)?;
    Ok(0)
}
