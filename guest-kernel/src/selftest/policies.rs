//! Classes and policies: who goes before whom, for how long, and changes of that while tasks run, wait and sleep.
//!
//! The test's own task is the highest real-time task of CPU 0 meanwhile, and sleeps while the others run. What is compared is CPU
//! time and order, never time on the wall.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vcpu_sched::accounting::Snapshot;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::params::{Class, DeadlineParams, Nice, RtPriority, SchedParams};
use vcpu_sched::policy::realtime::RR_SLICE;
use vcpu_sched::runqueue::PolicyKind;

use super::scheduling::{HANG_MS, move_to, share, take};
use super::{Test, TestResult, check, join, rounds, spawn, spawn_on, tests};
use crate::cpu;
use crate::sched;
use crate::sync::{SpinLock, WaitQueue};
use crate::task::{Task, current};
use crate::time;

pub(super) const TESTS: &[Test] = tests![
    fifo_runs_by_priority,
    a_woken_fifo_task_preempts,
    round_robin_takes_turns,
    a_deadline_task_is_throttled_and_replenished,
    deadlines_are_admitted_up_to_a_bound,
    nice_shares_the_cpu,
    classes_change_while_running_queued_and_blocked,
    affinity_and_class_storm,
];

fn fifo(priority: u32) -> SchedParams {
    RtPriority::new(priority).map_or(SchedParams::NORMAL, |p| SchedParams::of_class(Class::Fifo(p)))
}

fn deadline(runtime_ms: u64, period_ms: u64) -> Result<SchedParams, alloc::string::String> {
    let period = Nanos::from_millis(period_ms);
    DeadlineParams::new(Nanos::from_millis(runtime_ms), period, period)
        .map(|p| SchedParams::of_class(Class::Deadline(p)))
        .map_err(|e| alloc::format!("{e}"))
}

fn set(task: &Arc<Task>, params: &SchedParams) -> TestResult {
    sched::set_params(task, params).map_err(|e| alloc::format!("{e}"))
}

/// Runs a test as the most important task of CPU 0.
fn in_charge(test: impl FnOnce() -> TestResult) -> TestResult {
    let me = current().to_arc();
    move_to(&me, CpuId(0))?;
    set(&me, &fifo(99))?;
    let result = test();
    set(&me, &SchedParams::NORMAL)?;
    sched::set_affinity(&me, &CpuMask::full(cpu::MAX_CPUS as u32)).map_err(|e| alloc::format!("{e}"))?;
    result
}

/// Lets the others run.
fn nap() {
    let nobody = WaitQueue::new();
    let until = time::now() + Nanos::from_millis(2);
    let _ = nobody.wait_interruptible(Some(until), || None::<()>);
}

fn wait_for(what: &str, condition: impl Fn() -> bool) -> TestResult {
    let end = time::now() + Nanos::from_millis(HANG_MS);
    while !condition() {
        check!(time::now() < end, "{what}");
        nap();
    }
    Ok(())
}

fn figures(task: &Task) -> Snapshot {
    task.sched.accounting().snapshot()
}

/// Spins until it is told to stop.
struct Spin {
    stop: AtomicBool,
    turns: AtomicU64,
}

extern "C" fn spin(argument: usize) -> ! {
    let s = take::<Spin>(argument);
    while !s.stop.load(Ordering::Relaxed) {
        s.turns.fetch_add(1, Ordering::Relaxed);
    }
    drop(s);
    sched::exit_current()
}

fn spinner() -> (Arc<Spin>, impl Fn() -> usize) {
    share(Spin { stop: AtomicBool::new(false), turns: AtomicU64::new(0) })
}

fn stop(spin: &Spin, task: &Arc<Task>) {
    spin.stop.store(true, Ordering::Relaxed);
    join(task);
}

fn fifo_runs_by_priority() -> TestResult {
    type Log = SpinLock<Vec<u32>>;
    extern "C" fn note(argument: usize) -> ! {
        let log = take::<Log>(argument);
        for _ in 0..2 {
            log.lock().push(u32::from(current().sched.rt_priority()));
            sched::yield_now(); // behind its equals, before all that are lower
        }
        drop(log);
        sched::exit_current()
    }
    in_charge(|| {
        let (log, pass) = share(Log::new(Vec::with_capacity(8)));
        let mut tasks = Vec::new();
        for priority in [10, 30, 20, 20] {
            let task = spawn_on(0, "fifo", note, pass())?;
            set(&task, &fifo(priority))?;
            tasks.push(task);
        }
        tasks.iter().for_each(join);
        let log = log.lock().clone();
        check!(log == [30, 30, 20, 20, 20, 20, 10, 10], "{log:?}");
        Ok(())
    })
}

fn a_woken_fifo_task_preempts() -> TestResult {
    struct Pair {
        queue: WaitQueue,
        woken: AtomicBool,
        ran: AtomicBool,
        at_once: AtomicBool,
    }
    extern "C" fn high(argument: usize) -> ! {
        let p = take::<Pair>(argument);
        p.queue.wait_until(|| p.woken.load(Ordering::Acquire).then_some(()));
        p.ran.store(true, Ordering::Release);
        drop(p);
        sched::exit_current()
    }
    extern "C" fn low(argument: usize) -> ! {
        let p = take::<Pair>(argument);
        p.woken.store(true, Ordering::Release);
        p.queue.wake_one();
        // It never yields: only preemption lets the other one run before it ends.
        let end = time::now() + Nanos::from_millis(HANG_MS / 2);
        while !p.ran.load(Ordering::Acquire) && time::now() < end {
            core::hint::spin_loop();
        }
        p.at_once.store(p.ran.load(Ordering::Acquire), Ordering::Relaxed);
        drop(p);
        sched::exit_current()
    }
    in_charge(|| {
        let (p, pass) = share(Pair {
            queue: WaitQueue::new(),
            woken: AtomicBool::new(false),
            ran: AtomicBool::new(false),
            at_once: AtomicBool::new(false),
        });
        let high = spawn_on(0, "high", high, pass())?;
        set(&high, &fifo(20))?;
        wait_for("the high task sleeps", || {
            high.state.load() == vcpu_sched::task::state::State::Blocked && !high.on_cpu.load(Ordering::Acquire)
        })?;
        let low = spawn_on(0, "low", low, pass())?;
        set(&low, &fifo(10))?;
        join(&low);
        join(&high);
        check!(p.at_once.load(Ordering::Relaxed));
        Ok(())
    })
}

fn round_robin_takes_turns() -> TestResult {
    in_charge(|| {
        let priority = RtPriority::new(5).unwrap_or(RtPriority::MIN);
        let params = SchedParams::of_class(Class::RoundRobin(priority));
        let (s, pass) = spinner();
        let tasks = [spawn_on(0, "rr", spin, pass())?, spawn_on(0, "rr", spin, pass())?];
        for t in &tasks {
            set(t, &params)?;
        }
        let enough = Nanos(RR_SLICE.0 * 5 / 2);
        wait_for("two and a half slices each", || tasks.iter().all(|t| figures(t).run >= enough))?;
        let [a, b] = [&tasks[0], &tasks[1]].map(|t| figures(t).run);
        tasks.iter().for_each(|t| stop(&s, t));
        // One slice apart at most, but for what a host adds that takes the CPU away.
        check!(a.0.abs_diff(b.0) <= 2 * RR_SLICE.0, "{a} and {b}");
        Ok(())
    })
}

fn a_deadline_task_is_throttled_and_replenished() -> TestResult {
    in_charge(|| {
        let (other, pass_other) = spinner();
        let (s, pass) = spinner();
        let ordinary = spawn_on(0, "ordinary", spin, pass_other())?;
        let task = spawn_on(0, "deadline", spin, pass())?;
        set(&task, &deadline(5, 50)?)?;
        let turns = |s: &Spin| s.turns.load(Ordering::Relaxed);
        for _ in 0..4 {
            // Neither ever sleeps: that the ordinary one runs means that the other's budget was used up, and the other way
            // round that it got a new one.
            let before = turns(&other);
            wait_for("its budget is used up", || turns(&other) > before)?;
            let before = turns(&s);
            wait_for("it gets a new budget", || turns(&s) > before)?;
        }
        let ran = figures(&task).run;
        stop(&s, &task);
        stop(&other, &ordinary);
        check!(ran >= Nanos::from_millis(15), "ran {ran} with four budgets");
        Ok(())
    })
}

fn deadlines_are_admitted_up_to_a_bound() -> TestResult {
    in_charge(|| {
        let (s, pass) = spinner();
        let tasks = [spawn_on(0, "first", spin, pass())?, spawn_on(0, "second", spin, pass())?];
        check!(sched::set_params(&tasks[0], &deadline(96, 100)?).is_err());
        set(&tasks[0], &deadline(50, 100)?)?;
        check!(sched::set_params(&tasks[1], &deadline(50, 100)?).is_err());
        set(&tasks[1], &deadline(40, 100)?)?;
        // Less is always possible, and what is given back can be promised again.
        set(&tasks[0], &SchedParams::NORMAL)?;
        set(&tasks[1], &deadline(90, 100)?)?;
        tasks.iter().for_each(|t| stop(&s, t));
        // The end of a task gives back what it was promised.
        let (s, pass) = spinner();
        let task = spawn_on(0, "third", spin, pass())?;
        set(&task, &deadline(90, 100)?)?;
        stop(&s, &task);
        Ok(())
    })
}

fn nice_shares_the_cpu() -> TestResult {
    if sched::policy() != PolicyKind::Fair {
        return Ok(());
    }
    in_charge(|| {
        let (s, pass) = spinner();
        let tasks = [spawn_on(0, "nice 0", spin, pass())?, spawn_on(0, "nice 5", spin, pass())?];
        set(&tasks[1], &SchedParams::fair(Nice::clamped(5)))?;
        // The weights are 1024 and 335 (Linux's sched_prio_to_weight). Neither is ahead of its share by more than a slice and what it ran at one
        // go: time that the host steals counts as that of the task it was stolen from, which gives it back later.
        let times = || [&tasks[0], &tasks[1]].map(|t| figures(t).run.0);
        let (seen, longest) = (Cell::new([0; 2]), Cell::new(0));
        wait_for("the two tasks' CPU time", || {
            let now = times();
            let went_on = now.iter().zip(seen.replace(now)).map(|(now, before)| now - before);
            longest.set(went_on.fold(longest.get(), u64::max));
            now.iter().sum::<u64>() >= Nanos::from_millis(300).0.max(10 * longest.get())
        })?;
        let [a, b] = seen.get();
        let ahead = (a * 335).abs_diff(b * 1024) / (1024 + 335);
        let bound = 2 * (sched::slice().0 + longest.get());
        tasks.iter().for_each(|t| stop(&s, t));
        check!(ahead <= bound, "{a} and {b} ns: {ahead} ns ahead, at most {bound}");
        Ok(())
    })
}

fn classes_change_while_running_queued_and_blocked() -> TestResult {
    extern "C" fn sleeper(argument: usize) -> ! {
        let s = take::<(WaitQueue, AtomicBool, AtomicBool)>(argument);
        s.0.wait_until(|| s.1.load(Ordering::Acquire).then_some(()));
        s.2.store(true, Ordering::Release);
        drop(s);
        sched::exit_current()
    }
    in_charge(|| {
        let [(a, pass_a), (b, pass_b)] = [spinner(), spinner()];
        let first = spawn_on(0, "first", spin, pass_a())?;
        let second = spawn_on(0, "second", spin, pass_b())?;
        let (door, pass) = share((WaitQueue::new(), AtomicBool::new(false), AtomicBool::new(false)));
        let blocked = spawn_on(0, "blocked", sleeper, pass())?;
        wait_for("it sleeps", || blocked.state.load() == vcpu_sched::task::state::State::Blocked)?;
        let turns = |s: &Spin| s.turns.load(Ordering::Relaxed);

        // Of two ordinary tasks, one is raised: it alone runs on.
        set(&first, &fifo(10))?;
        nap();
        let (before_a, before_b) = (turns(&a), turns(&b));
        wait_for("the raised task runs", || turns(&a) > before_a)?;
        check!(turns(&b) == before_b);
        // The one that waits is raised above it.
        set(&second, &fifo(20))?;
        wait_for("the one raised while it waited runs", || turns(&b) > before_b)?;
        // The one that sleeps is raised above both.
        set(&blocked, &fifo(30))?;
        door.1.store(true, Ordering::Release);
        door.0.wake_one();
        wait_for("the one raised in its sleep runs", || door.2.load(Ordering::Acquire))?;
        join(&blocked);
        // The one that runs is lowered below the first.
        let before_a = turns(&a);
        set(&second, &SchedParams::NORMAL)?;
        wait_for("the first runs again", || turns(&a) > before_a)?;
        stop(&a, &first);
        stop(&b, &second);
        Ok(())
    })
}

fn affinity_and_class_storm() -> TestResult {
    struct Storm {
        stop: AtomicBool,
        door: WaitQueue,
        round: AtomicU32,
    }
    extern "C" fn body(argument: usize) -> ! {
        let s = take::<Storm>(argument);
        let mut seen = 0;
        while !s.stop.load(Ordering::Acquire) {
            match seen % 3 {
                0 => sched::yield_now(),
                1 => (0..50).for_each(|_| core::hint::spin_loop()),
                _ => {
                    s.door.wake_one();
                    let now = s.round.load(Ordering::Acquire);
                    let until = time::now() + Nanos::from_millis(1);
                    let moved_on =
                        || (s.stop.load(Ordering::Acquire) || s.round.load(Ordering::Acquire) != now).then_some(());
                    let _ = s.door.wait_interruptible(Some(until), moved_on);
                }
            }
            seen += 1;
        }
        drop(s);
        sched::exit_current()
    }
    extern "C" fn short(_: usize) -> ! {
        sched::exit_current()
    }
    in_charge(|| {
        let n = cpu::count();
        let (s, pass) = share(Storm { stop: AtomicBool::new(false), door: WaitQueue::new(), round: AtomicU32::new(0) });
        let tasks: Vec<_> = (0..3 * n).map(|_| spawn("storm", None, body, pass())).collect::<Result<_, _>>()?;
        // A linear congruential generator (Knuth's MMIX): the same storm each time.
        let mut seed = 1_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for round in rounds(200) {
            let task = &tasks[random(tasks.len() as u64) as usize];
            let mask = 1 + random((1 << n) - 1);
            sched::set_affinity(task, &CpuMask::from_le_bytes(&mask.to_le_bytes()))
                .map_err(|e| alloc::format!("{e}"))?;
            let params = match random(4) {
                0 => fifo(1 + random(5) as u32),
                1 => SchedParams::fair(Nice::clamped(random(39) as i32 - 20)),
                2 => SchedParams::of_class(Class::Batch),
                _ => SchedParams::NORMAL,
            };
            set(task, &params)?;
            s.round.store(round, Ordering::Release);
            s.door.wake_one();
            let gone = spawn("short", None, short, 0)?;
            if round % 8 == 0 {
                join(&gone);
                nap();
            }
        }
        s.stop.store(true, Ordering::Release);
        s.door.wake_all();
        tasks.iter().for_each(join);
        Ok(())
    })
}
