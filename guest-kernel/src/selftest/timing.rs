//! Timers and sleeping.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vcpu_sched::ids::Nanos;

use super::scheduling::{HANG_MS, wait_for};
use super::{Test, TestResult, check, join, spawn_on, tests};
use crate::sched;
use crate::sync::{Interrupted, WaitQueue};
use crate::time::{self, timer};

pub(super) const TESTS: &[Test] = tests![
    clock_runs_forwards,
    sleep_is_never_short,
    earlier_timer_is_armed_again,
    cancelled_timer_stays_silent,
    many_timers_fire_in_order
];

const MS: u64 = 1_000_000;

struct Count {
    fired: AtomicU32,
    at: AtomicU64,
}

impl timer::TimerTarget for Count {
    fn fire(&self) {
        self.at.store(time::now().0, Ordering::Relaxed);
        self.fired.fetch_add(1, Ordering::Release);
    }
}

fn counter() -> Arc<Count> {
    Arc::new(Count { fired: AtomicU32::new(0), at: AtomicU64::new(0) })
}

fn sleep(d: u64) {
    let q = WaitQueue::new();
    let until = Nanos(time::now().0 + d);
    let _ = q.wait_interruptible(Some(until), || None::<()>);
}

fn clock_runs_forwards() -> TestResult {
    let mut last = time::now();
    for _ in 0..1000 {
        let now = time::now();
        check!(now >= last);
        last = now;
    }
    Ok(())
}

fn sleep_is_never_short() -> TestResult {
    for d in [1, 100_000, MS, 3 * MS, 20 * MS] {
        let start = time::now().0;
        let q = WaitQueue::new();
        let r = q.wait_interruptible(Some(Nanos(start + d)), || None::<()>);
        check!(r == Err(Interrupted::TimedOut));
        let took = time::now().0 - start;
        check!(took >= d, "slept {took} ns of {d}");
        check!(took < d + 2_000 * MS, "slept {took} ns instead of {d}");
    }
    Ok(())
}

fn earlier_timer_is_armed_again() -> TestResult {
    let (late, early) = (counter(), counter());
    let start = time::now().0;
    let a = timer::call_at(Nanos(start + 60 * MS), late.clone());
    let b = timer::call_at(Nanos(start + 10 * MS), early.clone());
    sleep(30 * MS);
    check!(early.fired.load(Ordering::Acquire) == 1 && early.at.load(Ordering::Relaxed) >= start + 10 * MS);
    check!(late.fired.load(Ordering::Acquire) == 0 || time::now().0 >= start + 60 * MS);
    sleep(60 * MS);
    check!(late.fired.load(Ordering::Acquire) == 1 && late.at.load(Ordering::Relaxed) >= start + 60 * MS);
    check!(!a.cancel() && !b.cancel());
    Ok(())
}

fn cancelled_timer_stays_silent() -> TestResult {
    let c = counter();
    let h = timer::call_at(Nanos(time::now().0 + 10_000 * MS), c.clone());
    check!(h.cancel());
    check!(Arc::strong_count(&c) == 1, "the timer keeps its target");
    sleep(2 * MS);
    check!(c.fired.load(Ordering::Acquire) == 0);
    Ok(())
}

fn many_timers_fire_in_order() -> TestResult {
    extern "C" fn sleeper(argument: usize) -> ! {
        // SAFETY: leaked by the test for this task.
        let woken = unsafe { Arc::from_raw(argument as *const AtomicU32) };
        sleep(5 * MS);
        woken.fetch_add(1, Ordering::Relaxed);
        drop(woken);
        sched::exit_current()
    }
    let targets: Vec<_> = (0..200).map(|_| counter()).collect();
    let start = time::now().0;
    for (i, t) in targets.iter().enumerate() {
        // Mixed order of arming.
        let slot = (i as u64 * 73) % 200;
        let _ = timer::call_at(Nanos(start + 100 * MS + slot * 10_000), t.clone());
    }
    let woken = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..20)
        .map(|i| spawn_on(i, "sleeper", sleeper, Arc::into_raw(woken.clone()) as usize))
        .collect::<Result<_, _>>()?;
    tasks.iter().for_each(join);
    check!(woken.load(Ordering::Relaxed) == 20);
    for (i, t) in targets.iter().enumerate() {
        let slot = (i as u64 * 73) % 200;
        // Not by a time of our own: they fire on the CPUs that armed them, which a busy host may keep from running.
        wait_for("the timers", HANG_MS, || t.fired.load(Ordering::Acquire) > 0)?;
        check!(t.fired.load(Ordering::Acquire) == 1, "timer {i}");
        check!(t.at.load(Ordering::Relaxed) >= start + 100 * MS + slot * 10_000, "timer {i} was early");
    }
    Ok(())
}
