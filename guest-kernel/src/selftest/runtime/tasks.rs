//! Executors: spawning, waking from tasks, from other CPUs and from interrupts, sleeping, taking work, cancelling.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::pending;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::params::{Class, RtPriority, SchedParams};
use vcpu_sched::runtime::budget::yield_now;
use vcpu_sched::runtime::{Cancelled, bytes_of};

use super::{Alive, Test, TestResult, check, join, rounds, start, tests};
use crate::cpu;
use crate::mm::{frame, heap};
use crate::runtime::sync::{Notify, channel};
use crate::runtime::{self, time as sleeping};
use crate::sched;
use crate::selftest::scheduling::{HANG_MS, move_to, share, take, wait_for};
use crate::selftest::{join as join_task, spawn_on};
use crate::sync::WaitQueue;
use crate::task::current;
use crate::time::{self, timer};

pub(crate) const TESTS: &[Test] = tests![
    tasks_run_and_give_their_outputs,
    a_task_waits_for_others_across_cpus,
    a_waiting_thread_hears_every_wake_up,
    an_interrupt_wakes_a_task,
    sleepers_wake_in_order_and_not_too_early,
    a_timeout_ends_a_wait,
    work_of_a_busy_executor_is_taken,
    an_executor_shares_its_cpu,
    a_cancelled_task_drops_what_it_has,
    a_wait_inside_of_a_wait_loses_nothing,
    waiting_asks_for_no_memory,
    soak_a_hundred_thousand_idle_tasks,
];

fn tasks_run_and_give_their_outputs() -> TestResult {
    let handles = (0..300u64).map(|i| start(async move { i * i })).collect::<Result<Vec<_>, _>>()?;
    for (i, handle) in (0..).zip(handles) {
        check!(join(handle)? == i * i);
    }
    Ok(())
}

/// A value goes round through a ring of tasks, which were spread over all CPUs: each hop is a wake-up, most of them of another CPU.
fn a_task_waits_for_others_across_cpus() -> TestResult {
    let n = 2 * cpu::count() as usize;
    let hops = 40 * n as u32;
    let (first, mut before) = channel::<u32>(1);
    for _ in 1..n {
        let (sender, receiver) = channel::<u32>(1);
        let from = core::mem::replace(&mut before, receiver);
        start(async move {
            while let Some(value) = from.receive().await {
                if sender.send(value + 1).await.is_err() {
                    return;
                }
            }
        })?
        .detach();
    }
    let last = start(async move {
        let mut value = 0;
        while value < hops {
            first.send(value + 1).await.map_err(|_| value)?;
            value = before.receive().await.ok_or(value)?;
        }
        Ok::<u32, u32>(value)
    })?;
    let end = join(last)?;
    check!(end.is_ok_and(|value| value >= hops), "the ring broke at {end:?}");
    Ok(())
}

/// What a thread and a task of the runtime call to one another.
struct Bell {
    notify: Notify,
    rung: AtomicU32,
    heard: AtomicU32,
    rings: u32,
}

extern "C" fn listen(argument: usize) -> ! {
    let bell = take::<Bell>(argument);
    for i in 1..=bell.rings {
        runtime::block_on(async {
            while bell.rung.load(Ordering::Acquire) < i {
                bell.notify.notified().await;
            }
        });
        bell.heard.store(i, Ordering::Release);
    }
    drop(bell);
    sched::exit_current()
}

/// A thread blocks on a future; the wake-up comes at every moment of that, on its own CPU and on another.
fn a_waiting_thread_hears_every_wake_up() -> TestResult {
    move_to(&current().to_arc(), CpuId(0))?;
    for on in [0, cpu::count() - 1] {
        let (rung, heard) = (AtomicU32::new(0), AtomicU32::new(0));
        let (bell, pass) = share(Bell { notify: Notify::new(), rung, heard, rings: 500 });
        let listener = spawn_on(on, "listen", listen, pass())?;
        for i in rounds(bell.rings).map(|round| round + 1) {
            wait_for("the listener", HANG_MS, || bell.heard.load(Ordering::Acquire) == i - 1)?;
            for _ in 0..i % 64 {
                core::hint::spin_loop();
            }
            bell.rung.store(i, Ordering::Release);
            bell.notify.notify_one();
        }
        // Those for which there was no time.
        bell.rung.store(bell.rings, Ordering::Release);
        bell.notify.notify_one();
        join_task(&listener);
        check!(bell.heard.load(Ordering::Acquire) == bell.rings);
    }
    let everywhere = sched::online_mask();
    sched::set_affinity(&current().to_arc(), &everywhere).map_err(|e| alloc::format!("{e}"))
}

struct Bang(Notify, AtomicU32);

impl timer::TimerTarget for Bang {
    fn fire(&self) {
        self.1.fetch_add(1, Ordering::Release);
        self.0.notify_one();
    }
}

/// The notification is given in the timer's interrupt.
fn an_interrupt_wakes_a_task() -> TestResult {
    let bang = Arc::new(Bang(Notify::new(), AtomicU32::new(0)));
    let hears = bang.clone();
    let task = start(async move {
        for i in 1..=5 {
            while hears.1.load(Ordering::Acquire) < i {
                hears.0.notified().await;
            }
        }
    })?;
    for i in 1..=5 {
        _ = timer::call_at(time::now() + Nanos(200_000), bang.clone());
        wait_for("the interrupt", HANG_MS, || bang.1.load(Ordering::Acquire) == i)?;
    }
    join(task)
}

fn sleepers_wake_in_order_and_not_too_early() -> TestResult {
    let order = Arc::new(AtomicU64::new(0));
    let base = time::now() + Nanos::from_millis(2);
    let mut handles = Vec::new();
    // Latest first: each arms the timer anew.
    for i in (1..=6u64).rev() {
        let order = order.clone();
        handles.push(start(async move {
            let until = base + Nanos::from_millis(2 * i);
            sleeping::sleep_until(until).await;
            (time::now() >= until, order.fetch_max(i, Ordering::AcqRel) <= i)
        })?);
    }
    let mut early = 0;
    for handle in handles {
        early += u32::from(!join(handle)?.0);
    }
    check!(early == 0, "{early} woke too early");
    check!(order.load(Ordering::Acquire) == 6);
    // A thread, too.
    let until = time::now() + Nanos::from_millis(1);
    runtime::block_on(sleeping::sleep_until(until));
    check!(time::now() >= until);
    Ok(())
}

fn a_timeout_ends_a_wait() -> TestResult {
    let result = join(start(async {
        let late = sleeping::timeout_at(time::now() + Nanos::from_millis(1), pending::<()>()).await.is_err();
        let ready = sleeping::timeout_at(time::now() + Nanos::from_millis(10_000), yield_now()).await.is_ok();
        (late, ready)
    })?)?;
    check!(result == (true, true), "{result:?}");
    Ok(())
}

/// A task that never gives its executor back spawns others there: executors of idle CPUs come for them.
fn work_of_a_busy_executor_is_taken() -> TestResult {
    if cpu::count() < 2 {
        return Ok(());
    }
    let done = Arc::new(AtomicU32::new(0));
    let ran = join(start(async move {
        let runtime = runtime::get().ok()?;
        for _ in 0..20 {
            let done = done.clone();
            runtime.spawn(async move { done.fetch_add(1, Ordering::AcqRel) }).detach();
        }
        let end = time::now() + Nanos::from_millis(HANG_MS);
        while done.load(Ordering::Acquire) < 20 && time::now() < end {
            core::hint::spin_loop();
        }
        Some(done.load(Ordering::Acquire))
    })?)?;
    check!(ran == Some(20), "{ran:?} of 20 were taken");
    Ok(())
}

extern "C" fn spin(argument: usize) -> ! {
    let stop = take::<AtomicBool>(argument);
    while !stop.load(Ordering::Relaxed) {
        core::hint::spin_loop();
    }
    drop(stop);
    sched::exit_current()
}

/// Executors are scheduled like anybody else: beside tasks that never give way on all CPUs they get their turn, also as real-time tasks.
fn an_executor_shares_its_cpu() -> TestResult {
    let (stop, pass) = share(AtomicBool::new(false));
    let hogs = (0..cpu::count()).map(|i| spawn_on(i, "hog", spin, pass())).collect::<Result<Vec<_>, _>>()?;
    runtime::get().map_err(|e| alloc::format!("{e:?}"))?;
    let executor = runtime::executor(CpuId(0)).ok_or("no executor")?;
    let class = |class| sched::set_params(&executor, &SchedParams::of_class(class)).map_err(|e| alloc::format!("{e}"));
    let mut result = Ok(());
    for realtime in [false, true] {
        if realtime {
            class(Class::Fifo(RtPriority::MIN))?;
        }
        let handles = (0..10).map(|_| start(yield_now())).collect::<Result<Vec<_>, _>>()?;
        result = wait_for("tasks beside others", HANG_MS, || handles.iter().all(|handle| handle.is_finished()));
        if result.is_err() {
            break;
        }
    }
    class(Class::Normal)?;
    stop.store(true, Ordering::Relaxed);
    hogs.iter().for_each(join_task);
    result
}

fn a_cancelled_task_drops_what_it_has() -> TestResult {
    let alive = Alive::default();
    let handles = (0..50)
        .map(|i| {
            let one = alive.one();
            start(async move {
                let _one = one;
                if i % 2 == 0 {
                    sleeping::sleep(Nanos::from_millis(60_000)).await;
                } else {
                    pending::<()>().await;
                }
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    check!(alive.count() == 50);
    handles[0].cancel();
    let mut handles = handles.into_iter();
    check!(handles.next().map(runtime::block_on) == Some(Err(Cancelled)));
    handles.for_each(drop);
    wait_for("the end of all futures", HANG_MS, || alive.count() == 0)
}

/// A future that is polled by a waiting thread waits for another in its own way: the outer one's wake-up, which the inner wait may
/// take, is not lost.
fn a_wait_inside_of_a_wait_loses_nothing() -> TestResult {
    let outer = Arc::new(Notify::new());
    let ring = outer.clone();
    let mut inside = false;
    runtime::block_on(async {
        let mut notified = core::pin::pin!(outer.notified());
        core::future::poll_fn(|cx| {
            let polled = notified.as_mut().poll(cx);
            if !core::mem::replace(&mut inside, true) {
                // The outer wait's wake-up comes while the inner one waits.
                let ring = ring.clone();
                if let Ok(task) = start(async move { ring.notify_one() }) {
                    runtime::block_on(async {
                        sleeping::sleep(Nanos::from_millis(1)).await;
                        _ = task.await;
                    });
                }
            }
            polled
        })
        .await;
    });
    Ok(())
}

/// A sleep, a timeout, a notification, and a wait in a queue that others have used before.
fn waiting_asks_for_no_memory() -> TestResult {
    let notify = Arc::new(Notify::new());
    let queue = WaitQueue::new();
    let bell = notify.clone();
    let over = Arc::new(AtomicBool::new(false));
    let stop = over.clone();
    let rings = start(async move {
        while !stop.load(Ordering::Relaxed) {
            sleeping::sleep(Nanos(200_000)).await;
            bell.notify_one();
        }
    })?;
    let wait = || {
        let mut looks = 0;
        queue.wait_until(|| {
            looks += 1;
            (looks > 1).then_some(())
        });
        runtime::block_on(sleeping::sleep(Nanos(100_000)));
        runtime::block_on(notify.notified());
        _ = runtime::block_on(sleeping::timeout_at(time::now() + Nanos(100_000), pending::<()>()));
        _ = runtime::interruptible(WaitReason::Sleep, 0, sleeping::sleep(Nanos(100_000)));
    };
    // The first times make room in the lists, those of the scheduler included.
    (0..10).for_each(|_| wait());
    let (_, asked) = heap::WATCHED.during(|| (0..5).for_each(|_| wait()));
    // The counter counts: the test can fail.
    let (_, made) = heap::WATCHED.during(|| drop(core::hint::black_box(alloc::boxed::Box::new(asked))));
    over.store(true, Ordering::Relaxed);
    join(rings)?;
    check!(made == 1, "the counter counts {made} for one");
    check!(asked == 0, "asked {asked} times");
    Ok(())
}

/// For `make soak`: what each of very many idle tasks takes.
fn soak_a_hundred_thousand_idle_tasks() -> TestResult {
    const TASKS: u32 = 100_000;
    let wake = Arc::new(Notify::new());
    let runtime = runtime::get().map_err(|e| alloc::format!("{e:?}"))?;
    let (before, free) = (runtime.tasks(), frame::usage().0);
    let future = |notify: Arc<Notify>| async move { notify.notified().await };
    fn size<F: Future<Output = ()> + Send + 'static>(_: &impl Fn(Arc<Notify>) -> F) -> usize {
        bytes_of::<F, runtime::Kernel>()
    }
    let each = size(&future);
    for _ in 0..TASKS {
        runtime.spawn(future(wake.clone())).detach();
    }
    check!(runtime.tasks() - before == TASKS as usize);
    // Each is polled once, and waits.
    let blocked = || {
        let mut n = 0;
        runtime.for_each_task(|task| n += u32::from(task.state == vcpu_sched::runtime::state::State::BLOCKED));
        n
    };
    wait_for("the first polls", 10 * HANG_MS, || blocked() >= TASKS)?;
    let used = u64::from(free - frame::usage().0) * 4096 / u64::from(TASKS);
    crate::log::report(format_args!("{TASKS} idle tasks: {used} bytes of memory each, {each} of them the task"));
    check!(used < 200, "{used} bytes each");
    wake.notify_all();
    wait_for("the end of all", 10 * HANG_MS, || runtime.tasks() == before)
}
