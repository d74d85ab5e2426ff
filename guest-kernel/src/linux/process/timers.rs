//! Timers that send signals: setitimer, alarm, timer_create and its kin, RLIMIT_CPU.
//!
//! A [`Timer`] fires in interrupt context; a fire that lost the race with a change finds that its time has not come. One on CPU
//! time is looked at when its time can have come at the earliest, and armed anew if it has not.
//!
//! A repeating timer goes on when its signal is taken ([`taken`]), as Linux's do: an interval shorter than a handler would leave the
//! program no time. Signals that nobody takes don't stop it: it is looked at every [`TICK`], and what was missed is counted. One that
//! is due again whenever its signal is taken leaves the program nothing but its handler, for as long as a slow or busy machine takes for
//! that: it is slowed down until it isn't ([`State::pause`]).

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicU32, Ordering};

use vcpu_sched::ids::Nanos;

use super::cpu_clock::{CpuClock, TICK};
use super::signal::{self, MAX_SIGNAL, SIGALRM, SIGPROF, SIGVTALRM, SigInfo, code};
use super::times::{from_timespec, to_timespec, to_timeval};
use super::{Process, Thread, identity, resource};
use crate::linux::errno::{Errno, SysResult};
use crate::mm::user;
use crate::sync::SpinLock;
use crate::task::Task;
use crate::time::timer::{TimerHandle, TimerTarget, call_at};
use crate::time::{self, shown};

/// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF: their signals.
const INTERVAL_SIGNALS: [u32; 3] = [SIGALRM, SIGVTALRM, SIGPROF];
const ITIMER_REAL: usize = 0;
const TIMER_ABSTIME: u64 = 1;
/// `sigev_notify`: Linux include/uapi/asm-generic/siginfo.h.
const SIGEV_SIGNAL: u32 = 0;
const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD: u32 = 2;
const SIGEV_THREAD_ID: u32 = 4;
/// POSIX timers of one process, whatever RLIMIT_SIGPENDING says.
const MAX_TIMERS: usize = 1024;
const SECOND: u64 = 1_000_000_000;
/// No repeating timer is slowed down by more than this.
const MAX_PAUSE: u64 = SECOND;

/// A process's timers.
pub struct Timers {
    /// By `ITIMER_*`.
    intervals: [Option<Arc<Timer>>; 3],
    /// RLIMIT_CPU.
    limit: Option<Arc<Timer>>,
    posix: BTreeMap<i32, Arc<Timer>>,
    next_id: i32,
}

impl Timers {
    /// None.
    pub const fn new() -> Self {
        Self { intervals: [const { None }; 3], limit: None, posix: BTreeMap::new(), next_id: 0 }
    }

    /// Deletes the POSIX timers (exec).
    pub fn forget_posix(&mut self) {
        core::mem::take(&mut self.posix).values().for_each(|t| {
            t.set(None, 0);
        });
    }
}

/// Stops all timers of an ending process.
pub fn end(process: &Process) {
    let timers = core::mem::replace(&mut *process.timers.lock(), Timers::new());
    timers.intervals.iter().flatten().chain(&timers.limit).chain(timers.posix.values()).for_each(|t| {
        t.set(None, 0);
    });
}

enum Notify {
    /// A signal from the kernel (setitimer).
    Kernel(u32),
    /// RLIMIT_CPU is reached.
    CpuLimit,
    Nothing,
    /// To the process, or to one thread of it.
    Signal {
        info: SigInfo,
        thread: Option<Weak<Task>>,
    },
}

/// What a timer counts by.
enum Clock {
    /// The monotonic clock.
    Monotonic,
    /// The same: absolute times are translated when they come from the program.
    Realtime,
    Cpu(CpuClock),
}

impl Clock {
    /// `None`: a clock of CPU time whose owner has ended.
    fn now(&self) -> Option<Nanos> {
        match self {
            Self::Monotonic | Self::Realtime => Some(time::now()),
            Self::Cpu(clock) => clock.read(),
        }
    }

    /// Monotonic time of the first look whether `at` is reached.
    fn first_look(&self, now: Nanos, at: Nanos) -> Nanos {
        match self {
            Self::Monotonic | Self::Realtime => at,
            Self::Cpu(clock) => clock.next_look(now, at),
        }
    }
}

struct State {
    /// When it fires, by its clock; `None`: disarmed.
    next: Option<Nanos>,
    interval: u64,
    /// What it leaves to the program between a signal that was taken and the next, whatever the interval: twice as much each time
    /// that it was due again by then, half as much each time that it was not.
    pause: u64,
    handle: Option<TimerHandle>,
}

impl State {
    /// A signal was taken, with the next one due already or not.
    fn pace(&mut self, due: bool) {
        self.pause = if due { (self.pause * 2).max(self.interval).min(MAX_PAUSE) } else { self.pause / 2 };
    }
}

/// One timer.
pub struct Timer {
    me: Weak<Timer>,
    process: Weak<Process>,
    notify: Notify,
    clock: Clock,
    state: SpinLock<State>,
    overrun: AtomicU32,
}

impl Timer {
    fn new(process: &Arc<Process>, notify: Notify, clock: Clock) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            process: Arc::downgrade(process),
            notify,
            clock,
            state: SpinLock::new(State { next: None, interval: 0, pause: 0, handle: None }),
            overrun: AtomicU32::new(0),
        })
    }

    /// Arms or disarms it; returns the time that was left and the interval.
    fn set(&self, next: Option<Nanos>, interval: u64) -> (u64, u64) {
        let now = self.clock.now();
        let look = next.zip(now).map(|(at, now)| self.clock.first_look(now, at));
        let (old, handle) = {
            let mut s = self.state.lock();
            let old = Self::remaining(&s, now);
            let handle = s.handle.take();
            s.next = next;
            s.interval = interval;
            s.pause = 0;
            if let (Some(at), Some(me)) = (look, self.me.upgrade()) {
                s.handle = Some(call_at(at, me));
            }
            (old, handle)
        };
        if let Some(h) = handle {
            h.cancel();
        }
        old
    }

    fn get(&self) -> (u64, u64) {
        let now = self.clock.now();
        Self::remaining(&self.state.lock(), now)
    }

    fn remaining(s: &State, now: Option<Nanos>) -> (u64, u64) {
        // An armed timer never shows 0: that would say disarmed.
        let left = s.next.zip(now).map_or(0, |(at, now)| match at.0.checked_sub(now.0) {
            Some(left) => left.max(1),
            // Due, and not looked at yet: the next time is shown.
            None => (now.0 - at.0).checked_rem(s.interval).map_or(1, |late| s.interval - late),
        });
        (left, s.interval)
    }

    /// `delay` from now, by its clock; none for 0, which disarms.
    fn after(&self, delay: u64) -> Option<Nanos> {
        self.clock.now().filter(|_| delay != 0).map(|now| Nanos(now.0.saturating_add(delay)))
    }

    /// Looks whether the time has come, and goes on to the next one. Returns whether it had.
    fn expire(&self) -> bool {
        let Some(now) = self.clock.now() else { return false };
        let mut s = self.state.lock();
        let Some(at) = s.next else { return false };
        // It named the shot that brought us here, or one that a change has armed meanwhile and that is armed anew.
        let handle = s.handle.take();
        if at <= now {
            s.next = (now.0 - at.0).checked_div(s.interval).map(|missed| {
                self.overrun.fetch_add(missed as u32, Ordering::Relaxed);
                Nanos(at.0.saturating_add(s.interval.saturating_mul(missed + 1)))
            });
        }
        let next = s.next;
        drop(s);
        if let Some(h) = handle {
            h.cancel();
        }
        if let Some((next, me)) = next.zip(self.me.upgrade()) {
            let soonest = if at <= now { Nanos(time::now().0.saturating_add(TICK)) } else { Nanos::ZERO };
            self.arm(next, self.clock.first_look(now, next).max(soonest), me);
        }
        at <= now
    }

    /// Its signal was taken: the next one may come when it is due.
    fn go_on(&self) {
        let Some((now, me)) = self.clock.now().zip(self.me.upgrade()) else { return };
        let (next, pause, handle) = {
            let mut s = self.state.lock();
            let due = s.next.is_some_and(|next| next <= now);
            s.pace(due);
            (s.next, s.pause, s.handle.take())
        };
        if let Some(h) = handle {
            h.cancel();
        }
        if let Some(next) = next {
            let soonest = Nanos(time::now().0.saturating_add(pause));
            self.arm(next, self.clock.first_look(now, next).max(soonest), me);
        }
    }

    /// Arms the next shot, unless the timer was changed meanwhile.
    fn arm(&self, next: Nanos, look: Nanos, me: Arc<Timer>) {
        let mut s = self.state.lock();
        if s.next == Some(next) && s.handle.is_none() {
            s.handle = Some(call_at(look, me));
        }
    }
}

impl TimerTarget for Timer {
    fn fire(&self) {
        if !self.expire() {
            return;
        }
        let Some(process) = self.process.upgrade() else { return };
        match &self.notify {
            Notify::Nothing => {}
            Notify::Kernel(sig) => signal::send_to_process(&process, *sig),
            Notify::CpuLimit => resource::cpu_limit_reached(&process),
            Notify::Signal { info, thread } => {
                let overrun = self.overrun.swap(0, Ordering::Relaxed);
                let mut info = *info;
                info.fields[0] |= u64::from(overrun) << 32;
                match thread.as_ref().map(Weak::upgrade) {
                    None => signal::send_info(&process, info),
                    Some(Some(t)) => signal::send_info_to_thread(&process, &t, info),
                    Some(None) => false,
                };
            }
        }
    }
}

/// A signal was taken; if a timer sent it, that goes on.
pub fn taken(process: &Process, info: &SigInfo) {
    let timer = match info.code {
        code::SI_TIMER => process.timers.lock().posix.get(&(info.fields[0] as i32)).cloned(),
        code::SI_KERNEL => {
            let which = INTERVAL_SIGNALS.iter().position(|s| *s == info.signo);
            which.and_then(|w| process.timers.lock().intervals[w].clone())
        }
        _ => None,
    };
    if let Some(timer) = timer {
        timer.go_on();
    }
}

fn interval_timer(p: &Arc<Process>, which: usize) -> Result<Arc<Timer>, Errno> {
    let signal = *INTERVAL_SIGNALS.get(which).ok_or(Errno::EINVAL)?;
    let clock = if which == ITIMER_REAL { Clock::Monotonic } else { cpu_clock_of(p) };
    let new = Timer::new(p, Notify::Kernel(signal), clock);
    Ok(p.timers.lock().intervals[which].get_or_insert(new).clone())
}

fn cpu_clock_of(p: &Arc<Process>) -> Clock {
    Clock::Cpu(CpuClock::Process(Arc::downgrade(p)))
}

/// Has RLIMIT_CPU told from `seconds` on, and each second from then; `None`: not at all.
pub fn watch_cpu_limit(p: &Arc<Process>, seconds: Option<u64>) {
    if seconds.is_none() && p.timers.lock().limit.is_none() {
        return;
    }
    let new = Timer::new(p, Notify::CpuLimit, cpu_clock_of(p));
    let timer = p.timers.lock().limit.get_or_insert(new).clone();
    timer.set(seconds.map(|s| Nanos(s.saturating_mul(SECOND))), SECOND);
}

/// alarm(2).
pub fn alarm(thread: &Thread, seconds: u64) -> SysResult {
    let delay = u64::from(seconds as u32) * SECOND;
    let timer = interval_timer(&thread.process, ITIMER_REAL)?;
    let (left, _) = timer.set(timer.after(delay), 0);
    // Rounded, but never down to "none".
    Ok(if left == 0 { 0 } else { ((left + SECOND / 2) / SECOND).max(1) })
}

fn interval_words((left, interval): (u64, u64)) -> [u64; 4] {
    let ([a, b], [c, d]) = (to_timeval(Nanos(interval)), to_timeval(Nanos(left.next_multiple_of(1000))));
    [a, b, c, d]
}

/// getitimer(2).
pub fn getitimer(thread: &Thread, which: u64, out: u64) -> SysResult {
    let timer = interval_timer(&thread.process, which as u32 as usize)?;
    user::write(out, &interval_words(timer.get()))?;
    Ok(0)
}

/// setitimer(2).
pub fn setitimer(thread: &Thread, which: u64, new: u64, old: u64) -> SysResult {
    let timer = interval_timer(&thread.process, which as u32 as usize)?;
    let [a, b, c, d] = if new == 0 { [0; 4] } else { user::read::<[i64; 4]>(new)? };
    let nanos = |s: i64, us: i64| from_timespec([s, us.checked_mul(1000).ok_or(Errno::EINVAL)?]);
    let (interval, value) = (nanos(a, b)?, nanos(c, d)?);
    let was = timer.set(timer.after(value.0), interval.0);
    if old != 0 {
        user::write(old, &interval_words(was))?;
    }
    Ok(0)
}

/// timer_create(2).
pub fn timer_create(thread: &Thread, clock: u64, event: u64, out: u64) -> SysResult {
    let clock = match clock as i32 {
        0 | 11 => Clock::Realtime,
        1 | 7 => Clock::Monotonic,
        id => Clock::Cpu(CpuClock::of_id(thread, id)?),
    };
    let limit = usize::try_from(thread.process.limits.lock().signals()).unwrap_or(MAX_TIMERS).min(MAX_TIMERS);
    let process = &thread.process;
    let id = {
        let mut t = process.timers.lock();
        if t.posix.len() >= limit {
            return Err(Errno::EAGAIN);
        }
        t.next_id = (t.next_id + 1) & i32::MAX;
        t.next_id
    };
    // struct sigevent: value, signo, notify, thread id.
    let [value, how, target] =
        if event == 0 { [id as u64, u64::from(SIGALRM), 0] } else { user::read::<[u64; 3]>(event)? };
    let (signo, notify) = (how as u32, (how >> 32) as u32);
    if notify != SIGEV_NONE && !(1..=MAX_SIGNAL).contains(&signo) {
        return Err(Errno::EINVAL);
    }
    let info = SigInfo { signo, code: code::SI_TIMER, fields: [id as u64, value, 0, 0], ..SigInfo::default() };
    let notify = match notify {
        SIGEV_NONE => Notify::Nothing,
        SIGEV_SIGNAL | SIGEV_THREAD => Notify::Signal { info, thread: None },
        SIGEV_THREAD_ID => {
            let task = identity::task_by_tid(thread, target as u32).ok_or(Errno::EINVAL)?;
            if super::thread_of(&task).is_none_or(|t| !Arc::ptr_eq(&t.process, process)) {
                return Err(Errno::EINVAL);
            }
            Notify::Signal { info, thread: Some(Arc::downgrade(&task)) }
        }
        _ => return Err(Errno::EINVAL),
    };
    let timer = Timer::new(process, notify, clock);
    user::write(out, &id)?;
    process.timers.lock().posix.insert(id, timer);
    Ok(0)
}

fn posix_timer(thread: &Thread, id: u64) -> Result<Arc<Timer>, Errno> {
    thread.process.timers.lock().posix.get(&(id as i32)).cloned().ok_or(Errno::EINVAL)
}

fn spec_words((left, interval): (u64, u64)) -> [u64; 4] {
    let ([a, b], [c, d]) = (to_timespec(Nanos(interval)), to_timespec(Nanos(left)));
    [a, b, c, d]
}

/// timer_settime(2).
pub fn timer_settime(thread: &Thread, id: u64, flags: u64, new: u64, old: u64) -> SysResult {
    let timer = posix_timer(thread, id)?;
    let [a, b, c, d] = user::read::<[i64; 4]>(new)?;
    let (interval, value) = (from_timespec([a, b])?, from_timespec([c, d])?);
    let next = match (value.0, flags & TIMER_ABSTIME != 0) {
        (0, _) => None,
        (v, true) if matches!(timer.clock, Clock::Realtime) => Some(shown::wall(Nanos(v))),
        (v, true) => Some(shown::monotonic(Nanos(v))),
        (v, false) => timer.after(v),
    };
    timer.overrun.store(0, Ordering::Relaxed);
    let was = timer.set(next, interval.0);
    if old != 0 {
        user::write(old, &spec_words(was))?;
    }
    Ok(0)
}

/// timer_gettime(2).
pub fn timer_gettime(thread: &Thread, id: u64, out: u64) -> SysResult {
    user::write(out, &spec_words(posix_timer(thread, id)?.get()))?;
    Ok(0)
}

/// timer_getoverrun(2).
pub fn timer_getoverrun(thread: &Thread, id: u64) -> SysResult {
    Ok(u64::from(posix_timer(thread, id)?.overrun.load(Ordering::Relaxed)))
}

/// timer_delete(2).
pub fn timer_delete(thread: &Thread, id: u64) -> SysResult {
    let timer = thread.process.timers.lock().posix.remove(&(id as i32)).ok_or(Errno::EINVAL)?;
    timer.set(None, 0);
    Ok(0)
}
