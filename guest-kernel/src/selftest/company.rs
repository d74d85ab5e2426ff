//! A task comes to a CPU that runs another: it gets its turn there when the other's slice is over, or an idle CPU fetches it.
//!
//! All of them take turns by the clock alone (`SCHED_RR`, `SCHED_FIFO`), so nothing but the protection that a test looks at brings
//! about what it waits for. Which bugs that is about: docs/bugs-of-others.md.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::params::{Class, RtPriority, SchedParams};
use vcpu_sched::task::state::State;

use super::scheduling::{HANG_MS, move_to, share, take, wait_for};
use super::{Test, TestResult, check, join, spawn, spawn_on, tests};
use crate::cpu;
use crate::sched;
use crate::sync::WaitQueue;
use crate::task::{Task, current};
use crate::time;

pub(super) const TESTS: &[Test] = tests![
    a_newcomer_from_here_gets_its_turn,
    a_newcomer_from_elsewhere_gets_its_turn,
    an_idle_cpu_fetches_who_was_preempted,
];

/// Turns in each test.
const ROUNDS: u32 = 4;

fn set(task: &Arc<Task>, class: Class) -> TestResult {
    sched::set_params(task, &SchedParams::of_class(class)).map_err(|e| alloc::format!("{e}"))
}

/// As the test began.
fn ordinary_again() -> TestResult {
    let me = current().to_arc();
    set(&me, Class::Normal)?;
    sched::set_affinity(&me, &CpuMask::full(cpu::MAX_CPUS as u32)).map_err(|e| alloc::format!("{e}"))
}

/// Tasks that wait to be called, one at a time.
struct Guests {
    queue: WaitQueue,
    called: AtomicU32,
    came: AtomicU32,
    /// Ends the task that is in their way.
    over: AtomicBool,
}

impl Guests {
    fn new() -> Self {
        let (called, came, over) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
        Self { queue: WaitQueue::new(), called, came, over }
    }

    /// Calls them, and keeps this CPU busy until each has come: nothing here asks the scheduler for anything.
    fn call_one_by_one(&self) -> TestResult {
        for i in 1..=ROUNDS {
            self.called.fetch_add(1, Ordering::Release);
            self.queue.wake_one();
            let end = time::now() + Nanos::from_millis(HANG_MS);
            while self.came.load(Ordering::Acquire) < i {
                check!(time::now() < end, "newcomer {i} never ran");
                core::hint::spin_loop();
            }
        }
        Ok(())
    }
}

extern "C" fn come(argument: usize) -> ! {
    let guests = take::<Guests>(argument);
    let one_less = |called: u32| called.checked_sub(1);
    guests.queue.wait_until(|| guests.called.fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_less).ok());
    guests.came.fetch_add(1, Ordering::Release);
    drop(guests);
    sched::exit_current()
}

extern "C" fn be_in_the_way(argument: usize) -> ! {
    let guests = take::<Guests>(argument);
    while !guests.over.load(Ordering::Relaxed) {
        core::hint::spin_loop();
    }
    drop(guests);
    sched::exit_current()
}

/// Waiting `SCHED_RR` tasks of one CPU.
fn guests_on(id: u32, pass: &impl Fn() -> usize) -> Result<Vec<Arc<Task>>, alloc::string::String> {
    let tasks = (0..ROUNDS).map(|_| spawn_on(id, "come", come, pass())).collect::<Result<Vec<_>, _>>()?;
    for task in &tasks {
        wait_for("its wait", HANG_MS, || task.state.load() == State::Blocked)?;
        set(task, Class::RoundRobin(RtPriority::MIN))?;
    }
    Ok(tasks)
}

/// A task has its CPU for itself, without a timer; then it wakes an equal there.
fn a_newcomer_from_here_gets_its_turn() -> TestResult {
    move_to(&current().to_arc(), CpuId(0))?;
    let (guests, pass) = share(Guests::new());
    let tasks = guests_on(0, &pass)?;
    set(&current().to_arc(), Class::RoundRobin(RtPriority::MIN))?;
    let result = guests.call_one_by_one();
    ordinary_again()?;
    result?;
    tasks.iter().for_each(join);
    Ok(())
}

/// The same, but another CPU wakes the equal.
fn a_newcomer_from_elsewhere_gets_its_turn() -> TestResult {
    if cpu::count() < 2 {
        return Ok(());
    }
    move_to(&current().to_arc(), CpuId(0))?;
    let (guests, pass) = share(Guests::new());
    let tasks = guests_on(1, &pass)?;
    let in_the_way = spawn_on(1, "in the way", be_in_the_way, pass())?;
    set(&in_the_way, Class::RoundRobin(RtPriority::MIN))?;
    let result = guests.call_one_by_one();
    guests.over.store(true, Ordering::Relaxed);
    join(&in_the_way);
    ordinary_again()?;
    result?;
    tasks.iter().for_each(join);
    Ok(())
}

/// An ordinary task and the one that preempts it.
struct Pair {
    turns: AtomicU32,
    stop: AtomicBool,
    start: WaitQueue,
    started: AtomicBool,
    left_behind: AtomicBool,
}

extern "C" fn work(argument: usize) -> ! {
    let pair = take::<Pair>(argument);
    while !pair.stop.load(Ordering::Relaxed) {
        pair.turns.fetch_add(1, Ordering::Relaxed);
    }
    drop(pair);
    sched::exit_current()
}

extern "C" fn preempt(argument: usize) -> ! {
    let pair = take::<Pair>(argument);
    pair.start.wait_until(|| pair.started.load(Ordering::Acquire).then_some(()));
    let (turns, end) = (pair.turns.load(Ordering::Relaxed), time::now() + Nanos::from_millis(HANG_MS));
    let behind = || pair.turns.load(Ordering::Relaxed) == turns;
    while behind() && time::now() < end {
        core::hint::spin_loop();
    }
    pair.left_behind.store(behind(), Ordering::Release);
    drop(pair);
    sched::exit_current()
}

/// A task is preempted by a `SCHED_FIFO` task that doesn't end before it runs again: the idle CPU beside it must come for it.
fn an_idle_cpu_fetches_who_was_preempted() -> TestResult {
    if cpu::count() < 3 {
        return Ok(());
    }
    move_to(&current().to_arc(), CpuId(0))?;
    let mut two = CpuMask::one_shot(CpuId(1));
    two.set(CpuId(2));
    for _ in 0..ROUNDS {
        let (turns, stop) = (AtomicU32::new(0), AtomicBool::new(false));
        let (started, left_behind) = (AtomicBool::new(false), AtomicBool::new(false));
        let (pair, pass) = share(Pair { turns, stop, start: WaitQueue::new(), started, left_behind });
        let worker = spawn("work", Some(two.clone()), work, pass())?;
        wait_for("the worker", HANG_MS, || pair.turns.load(Ordering::Relaxed) > 0)?;
        let preempter = spawn_on(worker.cpu.load(Ordering::Relaxed), "preempt", preempt, pass())?;
        wait_for("its wait", HANG_MS, || preempter.state.load() == State::Blocked)?;
        set(&preempter, Class::Fifo(RtPriority::MIN))?;
        pair.started.store(true, Ordering::Release);
        pair.start.wake_one();
        join(&preempter);
        pair.stop.store(true, Ordering::Relaxed);
        join(&worker);
        check!(!pair.left_behind.load(Ordering::Acquire), "no idle CPU came for it");
    }
    ordinary_again()
}
