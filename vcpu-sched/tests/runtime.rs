//! What tasks cost in memory: counted, by an allocator that counts for each thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::rcu::{Backlog, Domain, RcuPlatform, RcuPointer};
use vcpu_sched::runtime::budget::yield_now;
use vcpu_sched::runtime::lock::Spin;
use vcpu_sched::runtime::sync::{Event, Mutex, Notify, Semaphore, channel};
use vcpu_sched::runtime::{Platform, Runtime, Worker};

struct Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
    static HELD: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        HELD.set(HELD.get() + 1);
        // SAFETY: this function's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.set(HELD.get() - 1);
        // SAFETY: this function's contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `f` asks for memory.
fn asked(f: impl FnOnce()) -> usize {
    let before = ASKED.get();
    f();
    ASKED.get() - before
}

/// One executor: the thread that made it.
struct Alone;

// SAFETY: each test has a runtime of its own, used by its thread only.
unsafe impl Platform for Alone {
    type Lock = Spin;

    fn executor_cpu(&self) -> Option<CpuId> {
        Some(CpuId(0))
    }

    fn kick(&self, _: CpuId) {}

    fn park(&self, _: CpuId) {
        panic!("everybody sleeps");
    }
}

fn alone() -> (&'static Runtime<Alone>, Worker<Alone>) {
    let runtime = &*Box::leak(Box::new(Runtime::new(Alone, 1)));
    (runtime, runtime.worker(CpuId(0)).expect("the first one"))
}

#[test]
fn a_task_is_one_allocation_and_its_polls_and_wakers_none() {
    let (runtime, mut worker) = alone();
    let task = |polls: u32| async move {
        for _ in 0..polls {
            yield_now().await;
        }
        polls
    };
    for polls in [0, 1000] {
        let asked = asked(|| {
            let handle = runtime.spawn(task(polls));
            worker.run_until_idle();
            assert!(handle.is_finished());
        });
        assert_eq!(asked, 1);
    }
}

#[test]
fn nothing_that_waits_asks_for_memory() {
    let semaphore: Semaphore = Semaphore::new(0);
    let (notify, event, mutex): (Notify, Event, Mutex<u32>) = (Notify::new(), Event::new(), Mutex::new(0));
    let (sender, receiver) = channel::<u32, Spin>(1);
    let held = mutex.try_lock();
    let mut cx = Context::from_waker(Waker::noop());
    let asked = asked(|| {
        let mut wait = pin!(async {
            semaphore.acquire(1).await.expect("open").forget();
            notify.notified().await;
            event.wait().await;
            *mutex.lock().await += 1;
            receiver.receive().await
        });
        let mut held = held;
        for step in 0..6 {
            match (step, wait.as_mut().poll(&mut cx)) {
                (0, Poll::Pending) => semaphore.give(1),
                (1, Poll::Pending) => notify.notify_one(),
                (2, Poll::Pending) => event.set(),
                (3, Poll::Pending) => drop(held.take()),
                (4, Poll::Pending) => sender.try_send(7).expect("there is room"),
                (5, Poll::Ready(value)) => assert_eq!(value, Some(7)),
                (step, _) => panic!("not where it should be in step {step}"),
            }
        }
    });
    assert_eq!(asked, 0);
}

#[test]
fn tasks_give_all_their_memory_back() {
    let (runtime, mut worker) = alone();
    let before = HELD.get();
    let semaphore = Arc::new(Semaphore::<Spin>::new(0));
    for round in 0..300 {
        let waits = runtime.spawn({
            let semaphore = semaphore.clone();
            async move {
                let held = Box::new(round);
                semaphore.acquire(1).await.expect("open").forget();
                *held
            }
        });
        match round % 4 {
            0 => worker.run_until_idle(),
            1 => waits.cancel(),
            2 => {
                waits.detach();
                continue;
            }
            _ => {}
        }
        drop(waits);
    }
    worker.run_until_idle();
    semaphore.give(300);
    worker.run_until_idle();
    assert_eq!(runtime.tasks(), 0);
    drop(semaphore);
    assert_eq!(HELD.get(), before);
}

/// One CPU.
struct OneCpu;

// SAFETY: there is one CPU and one thread.
unsafe impl RcuPlatform for OneCpu {
    type Lock = Spin;

    fn pin(&self) -> CpuId {
        CpuId(0)
    }

    fn unpin(&self) {}

    fn now(&self) -> Nanos {
        Nanos::ZERO
    }

    fn kick(&self, _: CpuId) {}

    fn relax(&self) {}
}

#[test]
fn retiring_asks_for_no_memory_and_all_is_given_back() {
    let domain = &*Box::leak(Box::new(Domain::new(OneCpu, 1, 1000, Nanos::MAX)));
    domain.leave_away();
    let before = HELD.get();
    let pointer = RcuPointer::new(domain, 0);
    for value in 1..=100 {
        let asked = asked(|| assert_eq!(pointer.replace(value), Backlog::Room));
        assert_eq!(asked, 1, "the new value, and nothing for the old one");
    }
    drop(pointer);
    assert_eq!(domain.pending(), 101);
    domain.synchronize_blocking().expect("no reader");
    assert_eq!(domain.run_callbacks(200), 101);
    assert_eq!(HELD.get(), before);
}
