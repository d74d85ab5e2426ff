//! The races of tasks: wake with poll, join with finish, cancel with all of them, and the queues. What a model loses is
//! a deadlock or a count that is wrong; memory with two users at once is reported by loom.

use core::future::{Future, poll_fn};
use core::panic::Location;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::thread;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use super::header::TaskRef;
use super::inbox::Inbox;
use super::ring::Ring;
use super::testing::{Threads, machine, on_cpu};
use super::{Runtime, task};
use crate::ids::CpuId;
use crate::sync::Ordering;

fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 100_000;
    model.check(f);
}

/// A flag whose order comes from nothing but the wake-up.
struct Condition {
    set: AtomicBool,
    /// Filled in the first poll, before there is a second thread. Nothing of loom's: it orders nothing.
    waker: Mutex<Option<Waker>>,
}

impl Condition {
    fn new() -> Arc<Self> {
        Arc::new(Self { set: AtomicBool::new(false), waker: Mutex::new(None) })
    }

    fn wait(self: &Arc<Self>) -> impl Future<Output = u32> + Send + 'static {
        let this = self.clone();
        poll_fn(move |cx| {
            if this.set.load(Ordering::Relaxed) {
                return Poll::Ready(7);
            }
            this.waker.lock().unwrap().get_or_insert_with(|| cx.waker().clone());
            Poll::Pending
        })
    }

    fn waker(&self) -> Waker {
        self.waker.lock().unwrap().clone().unwrap()
    }
}

/// A task that waits for its condition, is woken for nothing, and meanwhile for real: whether it is queued, polled or
/// on its way out of the poll, it sees the condition.
#[test]
fn loom_a_wake_up_is_seen_wherever_the_task_is() {
    model(3, || {
        let runtime = machine(1);
        on_cpu(0, || {
            let mut worker = runtime.worker(CpuId(0)).unwrap();
            let condition = Condition::new();
            let task = runtime.spawn(condition.wait());
            worker.run_until_idle();
            let waker = condition.waker();
            let other = thread::spawn({
                let (condition, waker) = (condition.clone(), waker.clone());
                move || {
                    condition.set.store(true, Ordering::Relaxed);
                    waker.wake();
                }
            });
            waker.wake();
            assert_eq!(worker.block_on(task), Ok(7));
            other.join().unwrap();
        });
    });
}

/// What comes from a thread that is no executor finds an executor that goes to sleep.
#[test]
fn loom_a_task_that_is_spawned_elsewhere_is_run() {
    model(3, || {
        let runtime = machine(1);
        // Not loom's: it orders nothing.
        let ran = Arc::new(core::sync::atomic::AtomicBool::new(false));
        let other = thread::spawn({
            let ran = ran.clone();
            move || runtime.spawn(async move { ran.store(true, Ordering::Relaxed) }).detach()
        });
        on_cpu(0, || {
            let mut worker = runtime.worker(CpuId(0)).unwrap();
            // The worker sleeps in between if it came too early; nobody but the kick wakes it.
            worker.run(|| ran.load(Ordering::Relaxed));
        });
        other.join().unwrap();
    });
}

/// Notifies loom's kind of a condition.
struct Bell(loom::sync::Notify);

impl std::task::Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// The one who joins leaves his waker, twice, while the task ends on another CPU.
#[test]
fn loom_a_join_meets_the_end_of_its_task() {
    model(3, || {
        let runtime = machine(1);
        let mut task = on_cpu(0, || runtime.spawn(async { 7 }));
        let other = thread::spawn(move || {
            on_cpu(0, || runtime.worker(CpuId(0)).unwrap().run_one());
        });
        let bell = Arc::new(Bell(loom::sync::Notify::new()));
        let waker = bell.clone().into();
        let mut cx = Context::from_waker(&waker);
        // Once more than needed: the waker is withdrawn and left again.
        let mut output = Pin::new(&mut task).poll(&mut cx);
        while output.is_pending() {
            output = Pin::new(&mut task).poll(&mut cx);
            if output.is_pending() {
                bell.0.wait();
            }
        }
        assert_eq!(output, Poll::Ready(Ok(7)));
        other.join().unwrap();
    });
}

/// Adds one when it is dropped, and is memory that loom watches.
struct Guard(Arc<AtomicUsize>, loom::cell::UnsafeCell<u32>);

// SAFETY: the cell is there to be found out if this is not so.
unsafe impl Send for Guard {}
// SAFETY: as above.
unsafe impl Sync for Guard {}

impl Guard {
    fn touch(&self) {
        // SAFETY: loom reports a second user.
        self.1.with_mut(|inside| unsafe { *inside += 1 });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.touch();
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A task is cancelled from outside while it is polled, woken and cancelled again: its future is dropped once, by the
/// executor, and used by nobody else meanwhile.
#[test]
fn loom_a_cancelled_future_is_dropped_once_and_by_its_owner() {
    model(3, || {
        let runtime = machine(1);
        let dropped = Arc::new(AtomicUsize::new(0));
        let condition = Condition::new();
        let task = on_cpu(0, || {
            let guard = Guard(dropped.clone(), loom::cell::UnsafeCell::new(0));
            let mut wait = condition.wait();
            runtime.spawn(poll_fn(move |cx| {
                guard.touch();
                Pin::new(&mut wait).poll(cx)
            }))
        });
        on_cpu(0, || runtime.worker(CpuId(0)).unwrap().run_until_idle());
        let waker = condition.waker();
        let executor = thread::spawn(move || {
            waker.wake();
            on_cpu(0, || runtime.worker(CpuId(0)).unwrap().run_until_idle());
        });
        drop(task);
        executor.join().unwrap();
        on_cpu(0, || runtime.worker(CpuId(0)).unwrap().run_until_idle());
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
        assert_eq!(runtime.tasks(), 0);
    });
}

/// The last waker goes while the task ends: the memory is freed after the last use.
#[test]
fn loom_the_last_reference_frees() {
    model(3, || {
        let runtime = machine(1);
        let condition = Condition::new();
        on_cpu(0, || {
            let mut worker = runtime.worker(CpuId(0)).unwrap();
            runtime.spawn(condition.wait()).detach();
            worker.run_until_idle();
        });
        let waker = condition.waker.lock().unwrap().take().unwrap();
        let other = thread::spawn({
            let (waker, condition) = (waker.clone(), condition.clone());
            move || {
                condition.set.store(true, Ordering::Relaxed);
                waker.wake_by_ref();
                drop(waker);
            }
        });
        on_cpu(0, || runtime.worker(CpuId(0)).unwrap().run_until_idle());
        drop(waker);
        other.join().unwrap();
        on_cpu(0, || runtime.worker(CpuId(0)).unwrap().run_until_idle());
        assert_eq!(runtime.tasks(), 0);
    });
}

fn tasks(runtime: &'static Runtime<Threads>, count: u32) -> Vec<(TaskRef, TaskRef)> {
    (0..count).map(|number| task::spawn(runtime, async {}, Location::caller(), number)).collect()
}

fn number(task: &TaskRef) -> u32 {
    task.header().cpu.get()
}

#[test]
fn loom_each_task_of_a_ring_is_taken_once() {
    model(4, || {
        let runtime = machine(1);
        let ring = Arc::new(Ring::new());
        let mut tasks = tasks(runtime, 4).into_iter();
        let mut handles = Vec::new();
        let mut push = |ring: &Ring| {
            let (own, handle) = tasks.next().unwrap();
            handles.push(handle);
            // SAFETY: only the model's first thread pushes.
            unsafe { ring.push(own) }.err()
        };
        assert!(push(&ring).is_none());
        let thief = thread::spawn({
            let ring = ring.clone();
            move || (0..2).filter_map(|_| ring.pop()).map(|task| number(&task)).collect::<Vec<_>>()
        });
        let mut taken = Vec::new();
        for _ in 0..3 {
            // Two places: what doesn't fit comes back.
            taken.extend(push(&ring).as_ref().map(number));
        }
        taken.extend(core::iter::from_fn(|| ring.pop()).map(|task| number(&task)));
        let stolen = thief.join().unwrap();
        assert!(stolen.is_sorted());
        taken.extend(stolen);
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2, 3]);
    });
}

#[test]
fn loom_an_inbox_loses_nothing_and_keeps_each_ones_order() {
    model(4, || {
        let runtime = machine(1);
        let inbox = Arc::new(Inbox::new());
        let mut all = tasks(runtime, 3);
        let (alone, alone_handle) = all.pop().unwrap();
        let pusher = thread::spawn({
            let inbox = inbox.clone();
            move || inbox.push(alone)
        });
        let taker = thread::spawn({
            let inbox = inbox.clone();
            move || inbox.take_all().map(|task| number(&task)).collect::<Vec<_>>()
        });
        let mut handles = std::vec![alone_handle];
        for (own, handle) in all {
            inbox.push(own);
            handles.push(handle);
        }
        pusher.join().unwrap();
        let mut taken = taker.join().unwrap();
        taken.extend(inbox.take_all().map(|task| number(&task)));
        let position = |wanted| taken.iter().position(|&task| task == wanted).expect("lost");
        assert!(position(0) < position(1));
        assert_eq!((position(2) < 3, taken.len()), (true, 3));
    });
}
