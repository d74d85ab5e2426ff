//! RCU in the guest, in the manner of rcutorture: readers on every CPU, updaters, waits of every kind, CPUs that stand still, and an account at
//! the end that must be even. The host's tests and models are in vcpu-sched.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::rcu::Backlog;

use super::scheduling::{HANG_MS, move_to, share, take, wait_for};
use super::{Test, TestResult, check, join, rounds, spawn, spawn_on, tests};
use crate::cpu;
use crate::rcu::{self, RcuPointer};
use crate::runtime;
use crate::sched;
use crate::sync::IrqGuard;
use crate::task::{current, table};
use crate::time::{self, timer};

pub(super) const TESTS: &[Test] = tests![
    readers_never_see_what_was_freed,
    a_period_ends_although_a_cpu_never_switches,
    a_period_waits_for_a_reader,
    a_reader_is_not_preempted,
    a_reader_in_an_interrupt_of_an_idle_cpu,
    tasks_are_found_while_others_end,
];

fn text(e: impl core::fmt::Debug) -> alloc::string::String {
    alloc::format!("{e:?}")
}

/// What a live value has, and a dead one hasn't.
const LIVE: u64 = 0x11fe_11fe_11fe_11fe;

/// How many values there are.
static VALUES: AtomicU32 = AtomicU32::new(0);

struct Value {
    mark: AtomicU64,
    twice: [AtomicU64; 2],
}

impl Value {
    fn new(n: u64) -> Self {
        VALUES.fetch_add(1, Ordering::Relaxed);
        Self { mark: AtomicU64::new(LIVE), twice: [AtomicU64::new(n), AtomicU64::new(n)] }
    }

    fn is_whole(&self) -> bool {
        self.mark.load(Ordering::Relaxed) == LIVE
            && self.twice[0].load(Ordering::Relaxed) == self.twice[1].load(Ordering::Relaxed)
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.mark.store(0, Ordering::Relaxed);
        self.twice[0].store(u64::MAX, Ordering::Relaxed);
        VALUES.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Torture {
    pointer: RcuPointer<Value>,
    stop: AtomicBool,
    wrong: AtomicU32,
    reads: AtomicU32,
}

extern "C" fn reads(argument: usize) -> ! {
    let torture = take::<Torture>(argument);
    let mut turn = 0u32;
    while !torture.stop.load(Ordering::Relaxed) {
        turn = turn.wrapping_add(1);
        let outer = rcu::read();
        let value = torture.pointer.load(&outer);
        // Some look for long, some one inside of the other.
        for _ in 0..turn % 50 {
            core::hint::spin_loop();
        }
        if turn.is_multiple_of(3) {
            let inner = rcu::read();
            if !torture.pointer.load(&inner).is_whole() {
                torture.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !value.is_whole() {
            torture.wrong.fetch_add(1, Ordering::Relaxed);
        }
        drop(outer);
        torture.reads.fetch_add(1, Ordering::Relaxed);
        if turn.is_multiple_of(16) {
            sched::yield_now();
        }
    }
    drop(torture);
    sched::exit_current()
}

/// Keeps its CPU for some time without an interrupt, over and over.
extern "C" fn stalls(argument: usize) -> ! {
    let torture = take::<Torture>(argument);
    while !torture.stop.load(Ordering::Relaxed) {
        {
            let _irq = IrqGuard::new();
            let end = time::now() + Nanos::from_millis(1);
            // Bounded: with virtual time, time passes at other points than these.
            for _ in 0..20_000 {
                if time::now() >= end {
                    break;
                }
                core::hint::spin_loop();
            }
        }
        runtime::block_on(runtime::time::sleep(Nanos::from_millis(1)));
    }
    drop(torture);
    sched::exit_current()
}

extern "C" fn updates(argument: usize) -> ! {
    let torture = take::<Torture>(argument);
    let mut n = 0;
    while !torture.stop.load(Ordering::Relaxed) {
        n += 1;
        let backlog = torture.pointer.replace(Value::new(n));
        if backlog == Backlog::Full || n.is_multiple_of(64) {
            _ = runtime::block_on(rcu::synchronize());
        }
        if n.is_multiple_of(97) {
            _ = rcu::synchronize_expedited();
        }
        rcu::tidy(backlog);
        sched::yield_now();
    }
    drop(torture);
    sched::exit_current()
}

fn readers_never_see_what_was_freed() -> TestResult {
    let torture = Torture {
        pointer: RcuPointer::new(rcu::domain(), Value::new(0)),
        stop: AtomicBool::new(false),
        wrong: AtomicU32::new(0),
        reads: AtomicU32::new(0),
    };
    let (torture, pass) = share(torture);
    let mut tasks = Vec::new();
    for i in 0..cpu::count() {
        tasks.push(spawn_on(i, "reads", reads, pass())?);
    }
    for _ in 0..2 {
        tasks.push(spawn("updates", None, updates, pass())?);
    }
    tasks.push(spawn_on(cpu::count() - 1, "stalls", stalls, pass())?);
    let called = Arc::new(AtomicU32::new(0));
    let mut asked = 0;
    for _ in rounds(30) {
        let count = called.clone();
        let backlog = rcu::call(move || _ = count.fetch_add(1, Ordering::Release)).map_err(text)?;
        asked += 1;
        if backlog == Backlog::Full || asked % 4 == 0 {
            runtime::block_on(rcu::synchronize()).map_err(text)?;
        }
        runtime::block_on(runtime::time::sleep(Nanos::from_millis(1)));
    }
    torture.stop.store(true, Ordering::Relaxed);
    tasks.iter().for_each(join);
    check!(torture.wrong.load(Ordering::Relaxed) == 0, "{} wrong reads", torture.wrong.load(Ordering::Relaxed));
    check!(torture.reads.load(Ordering::Relaxed) > 0);
    // The last value goes like the others, and nothing is left: as many were freed as were made.
    let own = torture;
    wait_for("the tasks' handles", HANG_MS, || Arc::strong_count(&own) == 2)?;
    drop(pass);
    drop(own);
    runtime::block_on(rcu::barrier()).map_err(text)?;
    check!(called.load(Ordering::Acquire) == asked, "{} of {asked} calls", called.load(Ordering::Acquire));
    wait_for("the end of all values", HANG_MS, || VALUES.load(Ordering::Relaxed) == 0)?;
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

/// A task has its CPU for itself, and no timer: only an interrupt can tell that there is no reader.
fn a_period_ends_although_a_cpu_never_switches() -> TestResult {
    if cpu::count() < 2 {
        return Ok(());
    }
    move_to(&current().to_arc(), CpuId(0))?;
    let (stop, pass) = share(AtomicBool::new(false));
    let spinner = spawn_on(1, "spin", spin, pass())?;
    wait_for("the spinner", HANG_MS, || spinner.on_cpu.load(Ordering::Relaxed))?;
    let result = rcu::synchronize_expedited().map_err(text);
    let waited = runtime::block_on(rcu::synchronize()).map_err(text);
    stop.store(true, Ordering::Relaxed);
    join(&spinner);
    sched::set_affinity(&current().to_arc(), &sched::online_mask()).map_err(|e| alloc::format!("{e}"))?;
    result.and(waited)
}

/// A reader on one CPU holds up a period however often it is asked; then it goes.
fn a_period_waits_for_a_reader() -> TestResult {
    struct Hold {
        reading: AtomicBool,
        stop: AtomicBool,
    }
    extern "C" fn hold(argument: usize) -> ! {
        let hold = take::<Hold>(argument);
        {
            let _guard = rcu::read();
            hold.reading.store(true, Ordering::Release);
            while !hold.stop.load(Ordering::Acquire) {
                core::hint::spin_loop();
            }
        }
        drop(hold);
        sched::exit_current()
    }
    if cpu::count() < 2 {
        return Ok(());
    }
    move_to(&current().to_arc(), CpuId(0))?;
    let (held, pass) = share(Hold { reading: AtomicBool::new(false), stop: AtomicBool::new(false) });
    let reader = spawn_on(1, "holds", hold, pass())?;
    wait_for("the reader", HANG_MS, || held.reading.load(Ordering::Acquire))?;
    let domain = rcu::domain();
    let cookie = domain.cookie();
    let mut over = false;
    for _ in 0..200 {
        domain.expedite();
        sched::yield_now();
        over |= domain.is_over(cookie);
    }
    held.stop.store(true, Ordering::Release);
    join(&reader);
    check!(!over, "it ended under a reader");
    let ends = wait_for("its end", HANG_MS, || {
        domain.expedite();
        domain.is_over(cookie)
    });
    sched::set_affinity(&current().to_arc(), &sched::online_mask()).map_err(|e| alloc::format!("{e}"))?;
    ends
}

/// With a guard a task keeps its CPU although its slice is over; without it, it gives way at once.
fn a_reader_is_not_preempted() -> TestResult {
    let (stop, pass) = share(AtomicBool::new(false));
    move_to(&current().to_arc(), CpuId(0))?;
    let company = spawn_on(0, "spin", spin, pass())?;
    let me = current();
    let switches = || me.switches().iter().sum::<u64>();
    let mut asked = false;
    let mut result = Ok(());
    for _ in rounds(10) {
        let guard = rcu::read();
        let before = switches();
        let end = time::now() + sched::slice() + sched::slice();
        // Bounded, as virtual time may stand still here.
        for _ in 0..2_000_000 {
            if time::now() >= end {
                break;
            }
            core::hint::spin_loop();
        }
        asked |= cpu::this().need_resched.load(Ordering::Relaxed);
        let stayed = switches() == before;
        drop(guard);
        if !stayed {
            result = Err(alloc::string::String::from("preempted inside of a reader"));
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    join(&company);
    sched::set_affinity(&current().to_arc(), &sched::online_mask()).map_err(|e| alloc::format!("{e}"))?;
    result?;
    check!(asked, "nobody ever asked for the CPU: the test saw nothing");
    Ok(())
}

struct Looks(RcuPointer<Value>, AtomicU32, AtomicU32);

impl timer::TimerTarget for Looks {
    fn fire(&self) {
        let guard = rcu::read();
        self.1.fetch_add(u32::from(!self.0.load(&guard).is_whole()), Ordering::Relaxed);
        drop(guard);
        self.2.fetch_add(1, Ordering::Release);
    }
}

/// The machine sleeps; timers fire and read, while values are replaced.
fn a_reader_in_an_interrupt_of_an_idle_cpu() -> TestResult {
    let looks = Looks(RcuPointer::new(rcu::domain(), Value::new(1)), AtomicU32::new(0), AtomicU32::new(0));
    let looks = Arc::new(looks);
    for i in 1..=10u64 {
        _ = timer::call_at(time::now() + Nanos(300_000), looks.clone());
        _ = looks.0.replace(Value::new(i));
        runtime::block_on(runtime::time::sleep(Nanos(600_000)));
        wait_for("the timer", HANG_MS, || u64::from(looks.2.load(Ordering::Acquire)) >= i)?;
        runtime::block_on(rcu::synchronize()).map_err(text)?;
    }
    check!(looks.1.load(Ordering::Relaxed) == 0);
    Ok(())
}

/// Lookups by number while tasks come and go on all CPUs: what is found is the task of that number.
fn tasks_are_found_while_others_end() -> TestResult {
    struct Search {
        stop: AtomicBool,
        newest: AtomicU32,
        found: AtomicU32,
        wrong: AtomicU32,
    }
    extern "C" fn search(argument: usize) -> ! {
        let search = take::<Search>(argument);
        while !search.stop.load(Ordering::Relaxed) {
            let newest = search.newest.load(Ordering::Relaxed);
            for id in newest.saturating_sub(4)..=newest {
                let id = vcpu_sched::ids::TaskId(id);
                if let Some(task) = table::find(id) {
                    search.found.fetch_add(1, Ordering::Relaxed);
                    search.wrong.fetch_add(u32::from(task.id != id), Ordering::Relaxed);
                }
            }
            sched::yield_now();
        }
        drop(search);
        sched::exit_current()
    }
    extern "C" fn end(_: usize) -> ! {
        sched::exit_current()
    }
    let number = || AtomicU32::new(0);
    let (search_for, pass) =
        share(Search { stop: AtomicBool::new(false), newest: number(), found: number(), wrong: number() });
    let searchers = (0..cpu::count()).map(|i| spawn_on(i, "search", search, pass())).collect::<Result<Vec<_>, _>>()?;
    for _ in rounds(200) {
        let task = spawn("short", None, end, 0)?;
        search_for.newest.store(task.id.0, Ordering::Relaxed);
        check!(table::find(current().id).is_some_and(|found| Arc::ptr_eq(&found, &current().to_arc())));
        join(&task);
        wait_for("its leaving the table", HANG_MS, || table::find(task.id).is_none())?;
    }
    search_for.stop.store(true, Ordering::Relaxed);
    searchers.iter().for_each(join);
    check!(search_for.wrong.load(Ordering::Relaxed) == 0);
    Ok(())
}
