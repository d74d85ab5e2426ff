//! Futures with stacks of their own, which the timer preempts.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vcpu_sched::ids::Nanos;

use super::{Alive, Test, TestResult, check, join, rounds, start, tests};
use crate::cpu;
use crate::mm::frame::OutOfMemory;
use crate::runtime::sync::Notify;
use crate::runtime::{self, stackful, time as sleeping};
use crate::selftest::scheduling::{HANG_MS, wait_for};
use crate::sync::{Mutex, WaitQueue};
use crate::time;

pub(crate) const TESTS: &[Test] = tests![
    a_stackful_future_is_preempted,
    a_stackful_future_waits_for_another,
    a_wake_up_before_the_sleep_is_not_lost,
    a_blocking_wait_on_an_own_stack,
    a_dropped_stackful_future_ends,
];

/// Futures that compute for ever, one more than there are CPUs; a task of the runtime beside them ends them.
fn a_stackful_future_is_preempted() -> TestResult {
    let stop = Arc::new(AtomicBool::new(false));
    let turns = Arc::new(AtomicU32::new(0));
    let mut computing = Vec::new();
    for _ in 0..=cpu::count() {
        let (stop, turns) = (stop.clone(), turns.clone());
        let future = async move {
            turns.fetch_add(1, Ordering::Relaxed);
            while !stop.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
            7
        };
        computing.push(start(stackful("computes", future).map_err(|e| alloc::format!("{e:?}"))?)?);
    }
    // Each has its turn although none gives way, and so have tasks without a stack.
    wait_for("a turn for each", HANG_MS, || turns.load(Ordering::Relaxed) == cpu::count() + 1)?;
    let stops = stop.clone();
    join(start(async move {
        sleeping::sleep(Nanos::from_millis(1)).await;
        stops.store(true, Ordering::Relaxed);
    })?)?;
    for one in computing {
        check!(join(one)? == 7);
    }
    Ok(())
}

/// Captures one inside of the other: each level waits for the next one on a stack of its own, some by `await`, some by sleeping.
fn a_stackful_future_waits_for_another() -> TestResult {
    type Level = Pin<Box<dyn Future<Output = Result<u32, OutOfMemory>> + Send>>;
    fn level(n: u32) -> Level {
        Box::pin(async move {
            if n == 0 {
                sleeping::sleep(Nanos::from_millis(1)).await;
                return Ok(0);
            }
            let below = stackful("level", level(n - 1))?;
            Ok(1 + if n.is_multiple_of(2) { below.await? } else { runtime::block_on(below)? })
        })
    }
    let top = stackful("level", level(5)).map_err(|e| alloc::format!("{e:?}"))?;
    let depth = join(start(top)?)?.map_err(|e| alloc::format!("{e:?}"))?;
    check!(depth == 5, "{depth}");
    Ok(())
}

/// The wake-up comes during the poll, and at every moment until the task sleeps.
fn a_wake_up_before_the_sleep_is_not_lost() -> TestResult {
    let (rings, rung, heard) = (300, Arc::new((AtomicU32::new(0), Notify::new())), Arc::new(AtomicU32::new(0)));
    let (bell, ear) = (rung.clone(), heard.clone());
    let listens = async move {
        for i in 1..=rings {
            core::future::poll_fn(|cx| {
                // Woken while it is polled: it must be polled again.
                cx.waker().wake_by_ref();
                match bell.0.load(Ordering::Acquire) >= i {
                    true => core::task::Poll::Ready(()),
                    false => core::task::Poll::Pending,
                }
            })
            .await;
            while bell.0.load(Ordering::Acquire) < i + 1 {
                bell.1.notified().await;
            }
            ear.store(i, Ordering::Release);
        }
    };
    let task = start(stackful("listens", listens).map_err(|e| alloc::format!("{e:?}"))?)?;
    for i in rounds(rings).map(|round| round + 1) {
        rung.0.store(i, Ordering::Release);
        for _ in 0..i % 64 {
            core::hint::spin_loop();
        }
        rung.0.store(i + 1, Ordering::Release);
        rung.1.notify_one();
        wait_for("the listener", HANG_MS, || heard.load(Ordering::Acquire) >= i)?;
    }
    rung.0.store(rings + 1, Ordering::Release);
    rung.1.notify_one();
    join(task)
}

/// A future with a stack takes a sleeping lock and waits in a queue, as any task does; tasks of the runtime go on meanwhile.
fn a_blocking_wait_on_an_own_stack() -> TestResult {
    struct Shared {
        queue: WaitQueue,
        lock: Mutex<u32>,
        go: AtomicBool,
    }
    let shared = Arc::new(Shared { queue: WaitQueue::new(), lock: Mutex::new(0), go: AtomicBool::new(false) });
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let shared = shared.clone();
        let waits = async move {
            shared.queue.wait_until(|| shared.go.load(Ordering::Acquire).then_some(()));
            let mut held = shared.lock.lock();
            *held += 1;
            // Holds a sleeping lock over an interval: the others sleep for it.
            runtime::block_on(sleeping::sleep(Nanos(100_000)));
        };
        waiting.push(start(stackful("waits", waits).map_err(|e| alloc::format!("{e:?}"))?)?);
    }
    let meanwhile = (0..20).map(|i| start(async move { i })).collect::<Result<Vec<_>, _>>()?;
    for (i, one) in (0..).zip(meanwhile) {
        check!(join(one)? == i);
    }
    shared.go.store(true, Ordering::Release);
    shared.queue.wake_all();
    for one in waiting {
        join(one)?;
    }
    check!(*shared.lock.lock() == 4);
    Ok(())
}

/// Whoever awaits it goes: the future is dropped where it stands, before its first poll, too.
fn a_dropped_stackful_future_ends() -> TestResult {
    let alive = Alive::default();
    let make = || {
        let one = alive.one();
        let future = async move {
            let _one = one;
            core::future::pending::<()>().await;
        };
        stackful("waits for ever", future).map_err(|e| alloc::format!("{e:?}"))
    };
    drop(make()?);
    check!(alive.count() == 0, "dropped before its first poll");
    let task = start(make()?)?;
    let end = time::now() + Nanos::from_millis(2);
    runtime::block_on(sleeping::sleep_until(end));
    drop(task);
    wait_for("the future's end", HANG_MS, || alive.count() == 0)
}
