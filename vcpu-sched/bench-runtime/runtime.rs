//! What tasks cost on the host, one thread each, beside three published executors: `async-executor` (with
//! `async-channel`), `tokio`'s current-thread runtime and `embassy-executor`, which brings neither joining nor a
//! channel, and uses ours of the latter. Run with `cargo bench -p vcpu-sched-bench-runtime`.
//!
//! Every figure is the time of [`BATCH`] operations, entering and leaving the executor included: microseconds of it are
//! nanoseconds of one. `spawn_and_join` makes tasks one after the other, each awaited; `spawn_many` makes all, then
//! runs all; in `yields_in_turns` [`TURNS`] tasks share the operations; `hops` are values over a channel of one place
//! to another task, so each is a wake-up and a poll on either side.

use std::cell::Cell;
use std::future::{Future, Ready};
use std::hint::black_box;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use divan::Bencher;
use divan::counter::ItemsCount;
use embassy_executor::raw;
use vcpu_sched::ids::CpuId;
use vcpu_sched::runtime::lock::Spin;
use vcpu_sched::runtime::sync::channel;
use vcpu_sched::runtime::{Platform, Runtime, Worker};

/// Operations that are timed together.
const BATCH: usize = 1000;

/// Tasks that take turns.
const TURNS: usize = 8;

fn main() {
    divan::main();
}

/// An executor on this thread.
trait Executor {
    fn new() -> Self;
    /// [`BATCH`] tasks, each awaited by one that makes them; `None` where nothing can be awaited.
    fn spawn_and_join(&mut self) -> Option<usize>;
    /// [`BATCH`] tasks at once.
    fn spawn_many(&mut self);
    /// So many tasks that together yield [`BATCH`] times.
    fn yields(&mut self, tasks: usize);
    /// [`BATCH`] values from one task to another.
    fn hops(&mut self);
}

async fn yields(times: usize) {
    for _ in 0..times {
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

thread_local! {
    static IS_EXECUTOR: Cell<bool> = const { Cell::new(false) };
}

/// Threads of the host; the one that benches is the executor.
struct Host;

// SAFETY: the thread says so while it holds the only worker.
unsafe impl Platform for Host {
    type Lock = Spin;

    fn executor_cpu(&self) -> Option<CpuId> {
        IS_EXECUTOR.get().then_some(CpuId(0))
    }

    fn kick(&self, _: CpuId) {}

    fn park(&self, _: CpuId) {
        panic!("nobody else would wake it");
    }
}

struct Ours(&'static Runtime<Host>, Worker<Host>);

impl Executor for Ours {
    fn new() -> Self {
        static RUNTIME: OnceLock<Runtime<Host>> = OnceLock::new();
        let runtime = RUNTIME.get_or_init(|| Runtime::new(Host, 1));
        IS_EXECUTOR.set(true);
        Self(runtime, runtime.worker(CpuId(0)).expect("one bench at a time"))
    }

    fn spawn_and_join(&mut self) -> Option<usize> {
        let runtime = self.0;
        self.1.block_on(async {
            for number in 0..BATCH {
                black_box(runtime.spawn(async move { number }).await).expect("not cancelled");
            }
        });
        Some(BATCH)
    }

    fn spawn_many(&mut self) {
        for number in 0..BATCH {
            self.0.spawn(async move { black_box(number) }).detach();
        }
        self.1.run_until_idle();
    }

    fn yields(&mut self, tasks: usize) {
        for _ in 0..tasks {
            self.0.spawn(yields(BATCH / tasks)).detach();
        }
        self.1.run_until_idle();
    }

    fn hops(&mut self) {
        let (sender, receiver) = channel::<usize, Spin>(1);
        let send = async move {
            for number in 0..BATCH {
                sender.send(number).await.expect("it receives");
            }
        };
        self.0.spawn(send).detach();
        self.1
            .block_on(self.0.spawn(async move { while receiver.receive().await.is_some() {} }))
            .expect("not cancelled");
    }
}

struct AsyncExecutor(async_executor::Executor<'static>);

impl AsyncExecutor {
    /// All that is there to do.
    fn drain(&self) {
        while self.0.try_tick() {}
    }
}

impl Executor for AsyncExecutor {
    fn new() -> Self {
        Self(async_executor::Executor::new())
    }

    fn spawn_and_join(&mut self) -> Option<usize> {
        let executor = &self.0;
        futures_lite::future::block_on(executor.run(async {
            for number in 0..BATCH {
                black_box(executor.spawn(async move { number }).await);
            }
        }));
        Some(BATCH)
    }

    fn spawn_many(&mut self) {
        for number in 0..BATCH {
            self.0.spawn(async move { black_box(number) }).detach();
        }
        self.drain();
    }

    fn yields(&mut self, tasks: usize) {
        for _ in 0..tasks {
            self.0.spawn(yields(BATCH / tasks)).detach();
        }
        self.drain();
    }

    fn hops(&mut self) {
        let (sender, receiver) = async_channel::bounded(1);
        let send = async move {
            for number in 0..BATCH {
                sender.send(number).await.expect("it receives");
            }
        };
        self.0.spawn(send).detach();
        self.0.spawn(async move { while receiver.recv().await.is_ok() {} }).detach();
        self.drain();
    }
}

struct Tokio(tokio::runtime::Runtime);

impl Executor for Tokio {
    fn new() -> Self {
        Self(tokio::runtime::Builder::new_current_thread().build().expect("a runtime"))
    }

    fn spawn_and_join(&mut self) -> Option<usize> {
        self.0.block_on(async {
            for number in 0..BATCH {
                black_box(tokio::spawn(async move { number }).await).expect("not cancelled");
            }
        });
        Some(BATCH)
    }

    fn spawn_many(&mut self) {
        self.0.block_on(async {
            let mut last = tokio::spawn(async { 0 });
            for number in 1..BATCH {
                last = tokio::spawn(async move { black_box(number) });
            }
            last.await.expect("not cancelled");
        });
    }

    fn yields(&mut self, tasks: usize) {
        self.0.block_on(async {
            let mut last = tokio::spawn(yields(BATCH / tasks));
            for _ in 1..tasks {
                last = tokio::spawn(yields(BATCH / tasks));
            }
            last.await.expect("not cancelled");
        });
    }

    fn hops(&mut self) {
        self.0.block_on(async {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                for number in 0..BATCH {
                    sender.send(number).await.expect("it receives");
                }
            });
            tokio::spawn(async move { while receiver.recv().await.is_some() {} }).await.expect("not cancelled");
        });
    }
}

/// Called by the embassy executor when it has something to do; it is polled anyway.
#[unsafe(export_name = "__pender")]
fn pender(_: *mut ()) {}

/// Its tasks lie in static storage, made before and used again.
struct Embassy {
    executor: &'static raw::Executor,
    boxed: Vec<&'static raw::TaskStorage<Boxed>>,
    ready: Vec<&'static raw::TaskStorage<Ready<()>>>,
}

/// One type for the futures that do something; they are few.
type Boxed = Pin<Box<dyn Future<Output = ()>>>;

impl Embassy {
    /// Runs these tasks until the last of them has ended.
    fn run(&self, tasks: Vec<Boxed>) {
        let left = Rc::new(Cell::new(tasks.len()));
        for (storage, task) in self.boxed.iter().zip(tasks) {
            let left = left.clone();
            let counted: Boxed = Box::pin(async move {
                task.await;
                left.set(left.get() - 1);
            });
            self.executor.spawner().spawn(storage.spawn(|| counted).expect("a free storage"));
        }
        while left.get() != 0 {
            // SAFETY: on this thread alone, and not from within itself.
            unsafe { self.executor.poll() };
        }
    }
}

impl Executor for Embassy {
    fn new() -> Self {
        fn pool<F: Future + 'static>(tasks: usize) -> Vec<&'static raw::TaskStorage<F>> {
            (0..tasks).map(|_| &*Box::leak(Box::new(raw::TaskStorage::new()))).collect()
        }
        let executor = Box::leak(Box::new(raw::Executor::new(std::ptr::null_mut())));
        Self { executor, boxed: pool(TURNS), ready: pool(BATCH) }
    }

    fn spawn_and_join(&mut self) -> Option<usize> {
        None
    }

    fn spawn_many(&mut self) {
        for storage in &self.ready {
            self.executor.spawner().spawn(storage.spawn(|| std::future::ready(())).expect("a free storage"));
        }
        // SAFETY: on this thread alone, and not from within itself.
        unsafe { self.executor.poll() };
    }

    fn yields(&mut self, tasks: usize) {
        self.run((0..tasks).map(|_| Box::pin(yields(BATCH / tasks)) as Boxed).collect());
    }

    fn hops(&mut self) {
        let (sender, receiver) = channel::<usize, Spin>(1);
        let send = async move {
            for number in 0..BATCH {
                sender.send(number).await.expect("it receives");
            }
        };
        self.run(vec![Box::pin(send), Box::pin(async move { while receiver.receive().await.is_some() {} })]);
    }
}

fn bench<E: Executor>(bencher: Bencher, mut f: impl FnMut(&mut E)) {
    let mut executor = E::new();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| f(&mut executor));
}

#[divan::bench(types = [Ours, AsyncExecutor, Tokio])]
fn spawn_and_join<E: Executor>(bencher: Bencher) {
    bench::<E>(bencher, |executor| assert!(executor.spawn_and_join().is_some()));
}

#[divan::bench(types = [Ours, AsyncExecutor, Tokio, Embassy])]
fn spawn_many<E: Executor>(bencher: Bencher) {
    bench::<E>(bencher, E::spawn_many);
}

#[divan::bench(types = [Ours, AsyncExecutor, Tokio, Embassy])]
fn yields_alone<E: Executor>(bencher: Bencher) {
    bench::<E>(bencher, |executor| executor.yields(1));
}

#[divan::bench(types = [Ours, AsyncExecutor, Tokio, Embassy])]
fn yields_in_turns<E: Executor>(bencher: Bencher) {
    bench::<E>(bencher, |executor| executor.yields(TURNS));
}

#[divan::bench(types = [Ours, AsyncExecutor, Tokio, Embassy])]
fn hops<E: Executor>(bencher: Bencher) {
    bench::<E>(bencher, E::hops);
}

/// A wake-up from outside to the end of the poll it causes, where tasks can be polled one at a time.
#[divan::bench(types = [Ours, AsyncExecutor, Embassy])]
fn wake_to_poll<E: OneByOne>(bencher: Bencher) {
    let mut executor = E::new();
    let waker = executor.sleeper();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for _ in 0..BATCH {
            waker.wake_by_ref();
            executor.poll_one();
        }
    });
}

/// An executor that can be told to poll one task.
trait OneByOne: Executor {
    /// A task that never ends, and its waker.
    fn sleeper(&mut self) -> Waker;
    fn poll_one(&mut self);
}

/// Never ends, and shows its waker.
fn sleep() -> (impl Future<Output = ()> + Send + 'static, Arc<OnceLock<Waker>>) {
    let place = Arc::new(OnceLock::new());
    let shown = place.clone();
    let future = std::future::poll_fn(move |cx: &mut Context<'_>| {
        if shown.get().is_none() {
            _ = shown.set(cx.waker().clone());
        }
        Poll::Pending
    });
    (future, place)
}

fn shown(place: &OnceLock<Waker>) -> Waker {
    place.get().expect("it was polled").clone()
}

impl OneByOne for Ours {
    fn sleeper(&mut self) -> Waker {
        let (future, place) = sleep();
        self.0.spawn(future).detach();
        self.1.run_until_idle();
        shown(&place)
    }

    fn poll_one(&mut self) {
        assert!(self.1.run_one());
    }
}

impl OneByOne for AsyncExecutor {
    fn sleeper(&mut self) -> Waker {
        let (future, place) = sleep();
        self.0.spawn(future).detach();
        self.drain();
        shown(&place)
    }

    fn poll_one(&mut self) {
        assert!(self.0.try_tick());
    }
}

impl OneByOne for Embassy {
    fn sleeper(&mut self) -> Waker {
        let (future, place) = sleep();
        let token = self.boxed[0].spawn(|| Box::pin(future) as Boxed).expect("a free storage");
        self.executor.spawner().spawn(token);
        self.poll_one();
        shown(&place)
    }

    fn poll_one(&mut self) {
        // SAFETY: on this thread alone, and not from within itself.
        unsafe { self.executor.poll() };
    }
}
