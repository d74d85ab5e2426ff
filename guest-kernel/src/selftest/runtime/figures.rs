//! What futures cost beside threads that do the same, in ticks of the TSC: under QEMU's `-icount shift=0` and `tsc_khz=1000000` those are
//! instructions. Run only when named, on one CPU.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vcpu_sched::runtime::budget::yield_now;

use super::{Test, TestResult, join, start, tests};
use crate::log;
use crate::runtime::{self, sync::Notify};
use crate::sched;
use crate::selftest::scheduling::{share, take};
use crate::selftest::{join as join_task, spawn_on};
use crate::sync::WaitQueue;
use crate::time::tsc;

pub(crate) const TESTS: &[Test] = tests![soak_figures_of_futures_beside_threads];

/// Operations of each.
const N: u64 = 500;

fn tell(what: &str, future: u64, thread: u64) {
    log::report(format_args!("figure: {what}: future {future}, thread {thread}"));
}

extern "C" fn ends(_: usize) -> ! {
    sched::exit_current()
}

/// Two that take turns, and how long the first has taken.
#[derive(Default)]
struct Pair {
    number: AtomicU32,
    turn: AtomicU32,
    queues: [WaitQueue; 2],
    ticks: AtomicU64,
}

/// Does `f` as one of the two; the first is timed.
fn timed(argument: usize, f: impl Fn(&Pair, u32)) -> ! {
    let pair = take::<Pair>(argument);
    let me = pair.number.fetch_add(1, Ordering::Relaxed);
    let from = tsc();
    f(&pair, me);
    if me == 0 {
        pair.ticks.store(tsc() - from, Ordering::Relaxed);
    }
    drop(pair);
    sched::exit_current()
}

extern "C" fn yields(argument: usize) -> ! {
    timed(argument, |_, _| (0..N).for_each(|_| sched::yield_now()))
}

extern "C" fn hops(argument: usize) -> ! {
    timed(argument, |pair, me| {
        for _ in 0..N {
            pair.queues[me as usize].wait_until(|| (pair.turn.load(Ordering::Acquire) % 2 == me).then_some(()));
            pair.turn.fetch_add(1, Ordering::Release);
            pair.queues[1 - me as usize].wake_one();
        }
    })
}

/// Two threads of this kind on this CPU; ticks of one operation of either.
fn threads(entry: extern "C" fn(usize) -> !) -> Result<u64, alloc::string::String> {
    let (pair, pass) = share(Pair::default());
    let both = [spawn_on(0, "first", entry, pass())?, spawn_on(0, "second", entry, pass())?];
    both.iter().for_each(join_task);
    Ok(pair.ticks.load(Ordering::Relaxed) / (2 * N))
}

async fn yield_often() -> u64 {
    let from = tsc();
    for _ in 0..N {
        yield_now().await;
    }
    tsc() - from
}

async fn hop_often(bells: Arc<[Notify; 2]>, me: usize) -> u64 {
    let from = tsc();
    for _ in 0..N {
        bells[me].notified().await;
        bells[1 - me].notify_one();
    }
    tsc() - from
}

fn soak_figures_of_futures_beside_threads() -> TestResult {
    // The executors, and room in all lists.
    join(start(yield_now())?)?;
    let future = join(start(async {
        let Ok(runtime) = runtime::get() else { return 0 };
        let from = tsc();
        for _ in 0..N {
            _ = runtime.spawn(async {}).await;
        }
        (tsc() - from) / N
    })?)?;
    let from = tsc();
    for _ in 0..N {
        join_task(&spawn_on(0, "ends", ends, 0)?);
    }
    tell("spawn, run, join", future, (tsc() - from) / N);

    let both = [start(yield_often())?, start(yield_often())?];
    let [first, second] = both;
    let future = join(first)? / (2 * N);
    join(second)?;
    tell("yield, two in turn", future, threads(yields)?);

    let bells = Arc::new([Notify::new(), Notify::new()]);
    bells[0].notify_one();
    let (first, second) = (start(hop_often(bells.clone(), 0))?, start(hop_often(bells.clone(), 1))?);
    let future = join(first)? / (2 * N);
    join(second)?;
    tell("wake-up of one by the other", future, threads(hops)?);
    Ok(())
}
