//! Tasks on the host: one CPU unless a test says otherwise, so that what happens is the same each time.

use core::future::{pending, poll_fn};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::task::{Poll, Waker};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::sync::{Arc, Mutex};
use std::vec::Vec;
use std::{format, thread};

use super::budget::yield_now;
use super::state::State;
use super::sync::Notify;
use super::testing::{Threads, machine, on_cpu};
use super::{Cancelled, Runtime, Waits, Worker, bytes_of, scope};
use crate::ids::CpuId;

/// A machine with one CPU, whose executor the test is.
fn alone<T>(f: impl FnOnce(&'static Runtime<Threads>, &mut Worker<Threads>) -> T) -> T {
    let runtime = machine(1);
    on_cpu(0, || f(runtime, &mut runtime.worker(CpuId(0)).unwrap()))
}

/// Counts how often it is dropped.
#[derive(Clone, Default)]
struct Drops(Arc<AtomicUsize>);

impl Drops {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn guard(&self) -> impl Send + 'static {
        struct Guard(Drops);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        Guard(self.clone())
    }
}

/// A future that waits for ever, shows its waker and counts its drop and its polls.
fn sleeper(
    drops: &Drops,
    waker: &Arc<Mutex<Option<Waker>>>,
    polls: &Arc<AtomicUsize>,
) -> impl Future<Output = ()> + Send + 'static {
    let (guard, waker, polls) = (drops.guard(), waker.clone(), polls.clone());
    async move {
        let _guard = guard;
        poll_fn(|cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            *waker.lock().unwrap() = Some(cx.waker().clone());
            Poll::<()>::Pending
        })
        .await
    }
}

#[test]
fn a_task_gives_its_output_to_its_handle() {
    alone(|runtime, worker| {
        let task = runtime.spawn(async { runtime.spawn(async { 41 }).await.unwrap() + 1 });
        assert_eq!(worker.block_on(task), Ok(42));
        assert_eq!(runtime.tasks(), 0);
    });
}

#[test]
fn there_is_one_worker_of_a_cpu() {
    let runtime = machine(2);
    let worker = runtime.worker(CpuId(1)).unwrap();
    assert!(runtime.worker(CpuId(1)).is_none());
    assert!(runtime.worker(CpuId(2)).is_none(), "no such CPU");
    drop(worker);
    assert!(runtime.worker(CpuId(1)).is_some());
}

#[test]
fn a_wake_up_during_the_poll_queues_the_task_again() {
    alone(|runtime, worker| {
        let polls = Arc::new(AtomicUsize::new(0));
        let task = runtime.spawn({
            let polls = polls.clone();
            poll_fn(move |cx| {
                cx.waker().wake_by_ref();
                cx.waker().wake_by_ref();
                if polls.fetch_add(1, Ordering::Relaxed) == 2 { Poll::Ready(()) } else { Poll::Pending }
            })
        });
        assert!(worker.run_one() && worker.run_one());
        assert!(!task.is_finished());
        assert!(worker.run_one());
        assert!(!worker.run_one(), "each poll was one turn in the queue");
        assert!(task.is_finished());
    });
}

#[test]
fn the_wakers_of_a_dead_task_do_nothing() {
    alone(|runtime, worker| {
        let (drops, place, polls) = Default::default();
        let task = runtime.spawn(sleeper(&drops, &place, &polls));
        worker.run_until_idle();
        let waker = place.lock().unwrap().take().unwrap();
        drop(task);
        worker.run_until_idle();
        assert_eq!((runtime.tasks(), drops.count()), (0, 1));
        let another = waker.clone();
        waker.wake_by_ref();
        waker.wake();
        another.wake();
        assert!(!worker.run_one(), "nothing was queued");
        assert_eq!(polls.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_dropped_handle_cancels_and_the_executor_drops_the_future() {
    alone(|runtime, worker| {
        let (drops, place, polls) = Default::default();
        let task = runtime.spawn(sleeper(&drops, &place, &polls));
        worker.run_until_idle();
        drop(task);
        assert_eq!(drops.count(), 0, "who drops the handle may stand in an interrupt");
        worker.run_until_idle();
        assert_eq!((drops.count(), runtime.tasks()), (1, 0));
        assert_eq!(polls.load(Ordering::Relaxed), 1, "a cancelled future is not polled again");
    });
}

#[test]
fn a_task_that_is_cancelled_before_it_began_is_never_polled() {
    alone(|runtime, worker| {
        let (drops, place, polls) = Default::default();
        let task = runtime.spawn(sleeper(&drops, &place, &polls));
        task.cancel();
        assert_eq!(worker.block_on(task), Err(Cancelled));
        assert_eq!((drops.count(), polls.load(Ordering::Relaxed)), (1, 0));
    });
}

#[test]
fn a_task_that_cancels_itself_ends_after_its_poll() {
    alone(|runtime, worker| {
        let own = Arc::new(Mutex::new(None));
        let drops = Drops::default();
        let task = runtime.spawn({
            let (own, guard) = (own.clone(), drops.guard());
            async move {
                let _guard = guard;
                drop(own.lock().unwrap().take());
                pending::<()>().await;
            }
        });
        *own.lock().unwrap() = Some(task);
        worker.run_until_idle();
        assert_eq!((drops.count(), runtime.tasks()), (1, 0));
    });
}

#[test]
fn an_output_that_nobody_takes_is_dropped_once() {
    alone(|runtime, worker| {
        let drops = Drops::default();
        let spawn = || {
            let guard = drops.guard();
            runtime.spawn(async move { guard })
        };
        spawn().detach();
        worker.run_until_idle();
        assert_eq!(drops.count(), 1, "no handle when it came");
        let task = spawn();
        worker.run_until_idle();
        assert_eq!(drops.count(), 1, "the handle could still want it");
        drop(task);
        assert_eq!(drops.count(), 2);
        let task = spawn();
        let output = worker.block_on(task).unwrap();
        assert_eq!(drops.count(), 2);
        drop(output);
        assert_eq!(drops.count(), 3);
    });
}

#[test]
fn a_handle_that_was_polled_with_two_wakers_wakes_the_last() {
    #[derive(Default)]
    struct Flag(AtomicBool);
    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    alone(|runtime, worker| {
        let mut task = runtime.spawn(async { 7 });
        let flags = [Arc::new(Flag::default()), Arc::new(Flag::default())];
        for flag in &flags {
            let waker = flag.clone().into();
            let mut cx = core::task::Context::from_waker(&waker);
            assert!(core::pin::Pin::new(&mut task).poll(&mut cx).is_pending());
        }
        worker.run_until_idle();
        assert_eq!(flags.map(|flag| flag.0.load(Ordering::Relaxed)), [false, true]);
        assert_eq!(worker.block_on(&mut task), Ok(7));
        assert_eq!(worker.block_on(&mut task), Err(Cancelled), "there is one output");
    });
}

#[test]
fn a_future_that_panics_is_cancelled_and_the_rest_goes_on() {
    alone(|runtime, worker| {
        let drops = Drops::default();
        let guard = drops.guard();
        let bad = runtime.spawn(async move {
            let _guard = guard;
            yield_now().await;
            if drops.count() == 0 {
                panic!("on purpose");
            }
        });
        let good = runtime.spawn(async { 1 });
        assert!(catch_unwind(AssertUnwindSafe(|| worker.run_until_idle())).is_err());
        worker.run_until_idle();
        assert_eq!(worker.block_on(bad), Err(Cancelled));
        assert_eq!(worker.block_on(good), Ok(1));
        assert_eq!(runtime.tasks(), 0);
    });
}

#[test]
fn tasks_are_polled_in_the_order_in_which_they_came_also_when_the_ring_is_full() {
    const TASKS: usize = 1000; // four rings full
    alone(|runtime, worker| {
        let order = Arc::new(Mutex::new(Vec::new()));
        for task in 0..TASKS {
            let order = order.clone();
            let future = async move {
                for _ in 0..3 {
                    order.lock().unwrap().push(task);
                    yield_now().await;
                }
            };
            runtime.spawn(future).detach();
        }
        worker.run_until_idle();
        let expected: Vec<_> = (0..3).flat_map(|_| 0..TASKS).collect();
        assert!(*order.lock().unwrap() == expected, "each task has its turn before any has its next");
    });
}

#[test]
fn what_comes_from_elsewhere_waits_for_a_bounded_number_of_polls() {
    alone(|runtime, worker| {
        let forever = runtime.spawn(async {
            loop {
                yield_now().await;
            }
        });
        let late = thread::spawn(|| runtime.spawn(async {})).join().unwrap();
        for _ in 0..100 {
            worker.run_one();
        }
        assert!(late.is_finished(), "the ring is never empty, the inbox is looked into all the same");
        drop(forever);
        worker.run_until_idle();
    });
}

#[test]
fn a_report_names_tasks_by_where_they_were_spawned() {
    alone(|runtime, worker| {
        let line = line!() + 1;
        let task = runtime.spawn(pending::<()>());
        worker.run_until_idle();
        let mut seen = Vec::new();
        runtime.for_each_task(|task| seen.push((format!("{}", task.location), task.state.life(), task.cpu)));
        let [(place, state, cpu)] = &seen[..] else { panic!("{seen:?}") };
        assert!(place.contains(&format!("tests.rs:{line}:")), "{place}");
        assert_eq!((*state, *cpu), (State::BLOCKED, 0));
        assert!(format!("{task:?}").contains("BLOCKED"));
        drop(task);
        worker.run_until_idle();
    });
}

#[test]
fn all_tasks_can_be_ended_wherever_they_wait() {
    alone(|runtime, worker| {
        let drops = Drops::default();
        for _ in 0..10 {
            let guard = drops.guard();
            let future = async move {
                let _guard = guard;
                pending::<()>().await;
            };
            runtime.spawn(future).detach();
            worker.run_one(); // some wait, some have not begun
        }
        runtime.cancel_all();
        worker.run_until_idle();
        assert_eq!((drops.count(), runtime.tasks()), (10, 0));
    });
}

#[test]
fn a_scope_ends_after_its_tasks() {
    alone(|runtime, worker| {
        let done = Arc::new(AtomicUsize::new(0));
        let given = worker.block_on(scope(runtime, async |scope| {
            for _ in 0..100 {
                let done = done.clone();
                scope.spawn(async move {
                    yield_now().await;
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            "given"
        }));
        assert_eq!((given, done.load(Ordering::Relaxed), runtime.tasks()), ("given", 100, 0));
    });
}

#[test]
fn a_scope_that_is_dropped_cancels_and_one_that_is_leaked_leaves_its_tasks_alone() {
    alone(|runtime, worker| {
        for leaked in [false, true] {
            let drops = Drops::default();
            let (release, guard) = (Arc::new(AtomicBool::new(false)), drops.guard());
            let seen = release.clone();
            let mut future = std::boxed::Box::pin(scope(runtime, async move |scope| {
                scope.spawn(async move {
                    let _guard = guard;
                    while !seen.load(Ordering::Relaxed) {
                        yield_now().await;
                    }
                });
                pending::<()>().await;
            }));
            let mut cx = core::task::Context::from_waker(Waker::noop());
            assert!(future.as_mut().poll(&mut cx).is_pending());
            worker.run_one();
            if leaked {
                core::mem::forget(future);
                worker.run_one();
                assert_eq!((drops.count(), runtime.tasks()), (0, 1), "it goes on with what it owns");
                release.store(true, Ordering::Relaxed);
            } else {
                drop(future);
            }
            worker.run_until_idle();
            assert_eq!((drops.count(), runtime.tasks()), (1, 0));
        }
    });
}

/// What each task waits for can be told, and of one that waits for another, which.
#[test]
fn the_chain_of_who_waits_for_whom() {
    alone(|runtime, worker| {
        let notify: &'static Notify = std::boxed::Box::leak(std::boxed::Box::default());
        let inner = runtime.spawn(async { notify.notified().await });
        let outer = runtime.spawn(inner);
        worker.run_until_idle();
        let mut seen = Vec::new();
        runtime.for_each_task(|task| seen.push(task));
        let [outer_seen, inner_seen] = seen[..] else { panic!("{seen:?}") };
        assert_eq!((outer_seen.waits, outer_seen.waits_for), (Waits::Task, inner_seen.id));
        let address = core::ptr::from_ref(notify).addr() as u64;
        assert_eq!((inner_seen.waits, inner_seen.waits_for), (Waits::Notification, address));
        notify.notify_one();
        assert_eq!(worker.block_on(outer), Ok(Ok(())));
    });
}

#[test]
fn a_task_is_small() {
    fn bytes<F: Future<Output: Send> + Send + 'static>(_: impl FnOnce() -> F) -> usize {
        bytes_of::<F, Threads>()
    }
    let idle = bytes(|| async { pending::<()>().await });
    assert!(idle <= 128, "{idle} bytes");
    let with_state = bytes(|| async {
        let held = [0u64; 8];
        yield_now().await;
        assert_eq!(held[0], 0);
    });
    assert!(with_state < 200, "{with_state} bytes");
}

/// Runs `first` as a task of a machine whose CPUs are threads of this host.
fn on_threads<T: Send + 'static>(cpus: u32, first: impl AsyncFnOnce(&'static Runtime<Threads>) -> T) -> T {
    let runtime = machine(cpus);
    let stop = AtomicBool::new(false);
    let wakers = Mutex::new(Vec::new());
    thread::scope(|threads| {
        for cpu in 1..cpus {
            let (stop, wakers) = (&stop, &wakers);
            threads.spawn(move || {
                on_cpu(cpu, || {
                    let mut worker = runtime.worker(CpuId(cpu)).unwrap();
                    wakers.lock().unwrap().push(worker.waker());
                    worker.run(|| stop.load(Ordering::Acquire));
                });
            });
        }
        let output = on_cpu(0, || {
            let mut worker = runtime.worker(CpuId(0)).unwrap();
            let output = worker.block_on(first(runtime));
            worker.run_until_idle();
            output
        });
        while wakers.lock().unwrap().len() + 1 < cpus as usize {
            thread::yield_now();
        }
        stop.store(true, Ordering::Release);
        wakers.lock().unwrap().drain(..).for_each(Waker::wake);
        output
    })
}

#[test]
fn an_idle_cpu_takes_work_from_one_that_is_stuck() {
    // The first task of CPU 0 doesn't return from its poll until the second has run, elsewhere.
    let order = on_threads(2, async |runtime| {
        let ran = Arc::new(AtomicBool::new(false));
        let other = runtime.spawn({
            let ran = ran.clone();
            async move { ran.store(true, Ordering::Release) }
        });
        let stuck = runtime.spawn(async move {
            while !ran.load(Ordering::Acquire) {
                thread::yield_now();
            }
        });
        (other.await, stuck.await)
    });
    assert_eq!(order, (Ok(()), Ok(())));
}

#[test]
fn tasks_that_spawn_and_join_on_four_cpus_all_end() {
    fn tree(
        runtime: &'static Runtime<Threads>,
        depth: u32,
    ) -> std::pin::Pin<std::boxed::Box<dyn Future<Output = u64> + Send>> {
        std::boxed::Box::pin(async move {
            if depth == 0 {
                yield_now().await;
                return 1;
            }
            let halves = [0, 1].map(|_| runtime.spawn(tree(runtime, depth - 1)));
            let mut sum = 0;
            for half in halves {
                sum += half.await.unwrap();
            }
            sum
        })
    }
    let leaves = on_threads(4, async |runtime| {
        let leaves = tree(runtime, 10).await;
        while runtime.tasks() != 0 {
            yield_now().await;
        }
        leaves
    });
    assert_eq!(leaves, 1024);
}

#[test]
fn tasks_are_cancelled_while_they_run_on_other_cpus() {
    const TASKS: usize = 500;
    let drops = Drops::default();
    on_threads(3, async |runtime| {
        for round in 0..TASKS {
            let guard = drops.guard();
            let task = runtime.spawn(async move {
                let _guard = guard;
                loop {
                    yield_now().await;
                }
            });
            for _ in 0..round % 5 {
                yield_now().await;
            }
            drop(task);
        }
        while runtime.tasks() != 0 {
            yield_now().await;
        }
    });
    assert_eq!(drops.count(), TASKS);
}

#[test]
fn a_state_prints_its_bits() {
    assert_eq!(format!("{:?}", State::SPAWNED), String::from("READY+JOIN"));
}
