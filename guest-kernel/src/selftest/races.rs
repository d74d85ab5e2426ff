//! Bugs that other kernels had. Each test holds open the window that such a bug needs, or looks at what it left behind; which
//! test guards what is in docs/bugs-of-others.md, and tests/mutants takes each protection out to see its test fail.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::task::state::State;

use super::scheduling::{HANG_MS, move_to, share, take, wait_for};
use super::{Test, TestResult, check, join, rounds, spawn, spawn_on, tests};
use crate::cpu;
use crate::mm::layout::CPU_SLOT;
use crate::sched;
use crate::sync::{IrqGuard, WaitQueue};
use crate::task::{Task, current};
use crate::time::{self, timer};

pub(super) const TESTS: &[Test] = tests![
    a_preempted_waiter_looks_again,
    a_wait_that_ends_leaves_no_entry,
    a_yielding_tasks_stack_has_one_user,
    a_woken_tasks_stack_has_one_user,
    a_task_waits_for_its_cpu_to_leave_its_stack,
    a_cpu_that_goes_idle_hears_every_wake_up,
    a_moved_task_sees_its_cpus_slot,
    interrupts_keep_a_leaf_functions_locals,
    idle_cpus_go_to_sleep,
    a_request_is_taken_up_once,
];

/// Spins on the CPU of others until it is told to stop.
extern "C" fn compete(argument: usize) -> ! {
    let stop = take::<AtomicBool>(argument);
    while !stop.load(Ordering::Relaxed) {
        core::hint::spin_loop();
    }
    drop(stop);
    sched::exit_current()
}

/// A waiter that is preempted after it has announced to block, and before its last look, must run again to look: nobody
/// will wake it.
fn a_preempted_waiter_looks_again() -> TestResult {
    struct Wait {
        queue: WaitQueue,
        over: AtomicBool,
    }
    extern "C" fn wait(argument: usize) -> ! {
        let w = take::<Wait>(argument);
        w.queue.wait_until(|| {
            let me = current();
            if me.state.load() != State::Blocking {
                return None; // the look before the announcement
            }
            let preempted = || me.switches()[1];
            let before = preempted();
            while preempted() == before {
                core::hint::spin_loop();
            }
            Some(())
        });
        w.over.store(true, Ordering::Release);
        drop(w);
        sched::exit_current()
    }
    let (stop, pass_stop) = share(AtomicBool::new(false));
    let (w, pass) = share(Wait { queue: WaitQueue::new(), over: AtomicBool::new(false) });
    let last = cpu::count() - 1;
    let competitor = spawn_on(last, "compete", compete, pass_stop())?;
    let waiter = spawn_on(last, "wait", wait, pass())?;
    let looked = wait_for("the waiter's last look", HANG_MS, || w.over.load(Ordering::Acquire));
    stop.store(true, Ordering::Relaxed);
    join(&competitor);
    looked?;
    join(&waiter);
    Ok(())
}

/// A wait that ends by itself (condition, timeout) takes its entry back: a stale one would swallow the next wake-up.
fn a_wait_that_ends_leaves_no_entry() -> TestResult {
    let queue = WaitQueue::new();
    let _ = queue.wait_interruptible(Some(time::now() + Nanos::from_millis(1)), || None::<()>);
    check!(queue.wake(usize::MAX, |_| true) == 0, "after a timeout");
    let mut looks = 0;
    queue.wait_until(|| {
        looks += 1;
        (looks == 2).then_some(())
    });
    check!(queue.wake(usize::MAX, |_| true) == 0, "after its condition");
    Ok(())
}

/// How long a race is run.
const RACE: Nanos = Nanos::from_millis(700);

/// What the tasks of a stack test share.
struct Users {
    wrong: AtomicU32,
    /// Tasks that still take turns.
    busy: AtomicU32,
    queue: WaitQueue,
}

impl Users {
    /// Gives the CPU away by `leave`, often, and sees that nobody else has used this task's stack meanwhile. For a while, not a
    /// number of times: the windows are short, and what opens them wide is the host, when it takes a vCPU's core away.
    fn leave_often(&self, leave: impl Fn(&Self)) {
        let (end, mut turn) = (time::now() + RACE, 0);
        while turn < 100 || time::now() < end {
            turn += 1;
            let mark = turn << 32 | u64::from(current().id.0);
            let mut marks = [0u64; 8];
            for m in &mut marks {
                // SAFETY: our own array. Volatile: it must be on the stack.
                unsafe { core::ptr::write_volatile(m, mark) };
            }
            leave(self);
            // SAFETY: as above.
            if marks.iter().any(|m| unsafe { core::ptr::read_volatile(m) } != mark) {
                self.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Sleeps a little, as often as it can: its CPU becomes idle and looks for work all the time. Does `work` in between.
fn nap_often(users: &Users, work: impl Fn(&Users)) {
    let nobody = WaitQueue::new();
    while users.busy.load(Ordering::Relaxed) > 0 {
        work(users);
        let _ = nobody.wait_interruptible(Some(time::now() + Nanos(20_000)), || None::<()>);
    }
}

extern "C" fn naps(argument: usize) -> ! {
    nap_often(&take::<Users>(argument), |_| ());
    sched::exit_current()
}

extern "C" fn naps_and_wakes(argument: usize) -> ! {
    nap_often(&take::<Users>(argument), |users| users.queue.wake_all());
    sched::exit_current()
}

extern "C" fn yields(argument: usize) -> ! {
    let users = take::<Users>(argument);
    users.leave_often(|_| sched::yield_now());
    users.busy.fetch_sub(1, Ordering::Relaxed);
    drop(users);
    sched::exit_current()
}

extern "C" fn blocks(argument: usize) -> ! {
    let users = take::<Users>(argument);
    users.leave_often(|users| {
        let mut looks = 0;
        // Not before it announced to block, and not right after it, but when it was woken.
        users.queue.wait_until(|| {
            looks += 1;
            (looks > 2).then_some(())
        });
    });
    users.busy.fetch_sub(1, Ordering::Relaxed);
    drop(users);
    sched::exit_current()
}

/// Runs `leave` on fewer tasks than there are CPUs, and a napping one on every CPU.
fn race(leave: extern "C" fn(usize) -> !, nap: extern "C" fn(usize) -> !) -> TestResult {
    let n = cpu::count().saturating_sub(1).max(1);
    let (users, pass) = share(Users { wrong: AtomicU32::new(0), busy: AtomicU32::new(n), queue: WaitQueue::new() });
    let leaving = (0..n).map(|_| spawn("leaves", None, leave, pass()));
    let napping = (0..cpu::count()).map(|i| spawn_on(i, "naps", nap, pass()));
    let tasks = leaving.chain(napping).collect::<Result<Vec<_>, _>>()?;
    tasks.iter().for_each(join);
    check!(users.wrong.load(Ordering::Relaxed) == 0, "{} wrong stacks", users.wrong.load(Ordering::Relaxed));
    Ok(())
}

/// A task that yields lies in its CPU's queue while that CPU still stands on its stack: idle CPUs must not take it yet.
fn a_yielding_tasks_stack_has_one_user() -> TestResult {
    race(yields, naps)
}

/// A task that blocks is woken at once, from another CPU, which would rather run it itself: it must not, as long as the first
/// one stands on its stack.
fn a_woken_tasks_stack_has_one_user() -> TestResult {
    race(blocks, naps_and_wakes)
}

/// A task that hears every ring of a bell, by number.
struct Bell {
    queue: WaitQueue,
    rung: AtomicU32,
    heard: AtomicU32,
    rings: u32,
    /// Before each wait, the listener forbids itself the CPU that it is on.
    wanders: bool,
}

extern "C" fn listen(argument: usize) -> ! {
    let bell = take::<Bell>(argument);
    for i in 1..=bell.rings {
        if bell.wanders {
            let mut elsewhere = sched::online_mask();
            elsewhere.clear(CpuId(0));
            elsewhere.clear(cpu::this().id);
            let me = current();
            *me.affinity.lock() = elsewhere.clone();
            me.restrict_to(&elsewhere);
        }
        bell.queue.wait_until(|| (bell.rung.load(Ordering::Acquire) >= i).then_some(()));
        bell.heard.store(i, Ordering::Release);
    }
    drop(bell);
    sched::exit_current()
}

fn bell(rings: u32, wanders: bool) -> (Arc<Bell>, impl Fn() -> usize) {
    let (rung, heard) = (AtomicU32::new(0), AtomicU32::new(0));
    share(Bell { queue: WaitQueue::new(), rung, heard, rings, wanders })
}

/// A task blocks, and its CPU is held up before it has left the stack: by a run queue that it wants to take work from. The task
/// is woken and may only run elsewhere; it must not, before its CPU gets on.
fn a_task_waits_for_its_cpu_to_leave_its_stack() -> TestResult {
    if cpu::count() < 3 {
        return Ok(());
    }
    let me = current().to_arc();
    move_to(&me, CpuId(0))?;
    let (stop, pass_stop) = share(AtomicBool::new(false));
    // Makes this CPU one to take work from.
    let company = spawn_on(0, "compete", compete, pass_stop())?;
    let (bell, pass) = bell(20, true);
    let listener = spawn_on(1, "listen", listen, pass())?;
    let mut result = Ok(());
    let (mut i, mut end) = (1, time::now() + Nanos::from_millis(HANG_MS));
    while i <= bell.rings {
        wait_for("the listener", HANG_MS, || bell.heard.load(Ordering::Acquire) == i - 1)?;
        let queue = cpu::this().run_queue.lock();
        let until = |ms: u64, done: &dyn Fn() -> bool| {
            let end = time::now() + Nanos::from_millis(ms);
            while !done() && time::now() < end {
                core::hint::spin_loop();
            }
        };
        // Ready: chaos has woken it, and it can't run before we let go of the lock.
        let waits = || matches!(listener.state.load(), State::Blocked | State::Ready);
        until(5, &waits);
        if !waits() {
            // It runs, and may well be waiting for this very lock.
            drop(queue);
            check!(time::now() < end, "ring {i}: the listener never waits");
            continue;
        }
        let left = cpu::get(CpuId(listener.cpu.load(Ordering::Relaxed))).ok_or("no such CPU")?;
        let switches = left.stats.switches.load(Ordering::Relaxed);
        bell.rung.store(i, Ordering::Release);
        bell.queue.wake_one();
        until(5, &|| bell.heard.load(Ordering::Acquire) == i);
        // Acquire above: who ran the task has seen its CPU leave it, and so do we.
        let still_there = core::ptr::eq(left.current.load(Ordering::Relaxed), Arc::as_ptr(&listener))
            && left.stats.switches.load(Ordering::Relaxed) == switches;
        if bell.heard.load(Ordering::Acquire) == i && still_there {
            result = Err(alloc::format!("ring {i}: ran elsewhere while CPU {} stood on its stack", left.id.0));
        }
        drop(queue);
        (i, end) = (i + 1, time::now() + Nanos::from_millis(HANG_MS));
    }
    join(&listener);
    stop.store(true, Ordering::Relaxed);
    join(&company);
    sched::set_affinity(&me, &CpuMask::full(cpu::MAX_CPUS as u32)).map_err(|e| alloc::format!("{e}"))?;
    result
}

/// A wake-up that comes while a CPU goes idle is heard, at whatever moment of that it comes.
fn a_cpu_that_goes_idle_hears_every_wake_up() -> TestResult {
    if cpu::count() < 2 {
        return Ok(());
    }
    let (bell, pass) = bell(1_000, false);
    move_to(&current().to_arc(), CpuId(0))?;
    let listener = spawn_on(1, "listen", listen, pass())?;
    for i in rounds(bell.rings).map(|round| round + 1) {
        let end = time::now() + Nanos::from_millis(HANG_MS);
        while bell.heard.load(Ordering::Acquire) != i - 1 {
            check!(time::now() < end, "ring {} was not heard", i - 1);
            core::hint::spin_loop();
        }
        for _ in 0..i {
            core::hint::spin_loop();
        }
        bell.rung.store(i, Ordering::Release);
        bell.queue.wake_one();
    }
    // Those for which there was no time.
    bell.rung.store(bell.rings, Ordering::Release);
    bell.queue.wake_one();
    join(&listener);
    sched::set_affinity(&current().to_arc(), &CpuMask::full(cpu::MAX_CPUS as u32)).map_err(|e| alloc::format!("{e}"))
}

/// Whichever CPU runs a task, the task's root maps that CPU's own slot.
fn a_moved_task_sees_its_cpus_slot() -> TestResult {
    let me = current().to_arc();
    let look = || {
        for i in 0..4 * cpu::count() {
            let target = CpuId(i % cpu::count());
            move_to(&me, target)?;
            let _irq = IrqGuard::new();
            let here = cpu::this();
            check!(here.id == target, "sent to {}, runs on {}", target.0, here.id.0);
            let mapped = me.block.top().get(CPU_SLOT).0;
            let own = here.slot_entry.load(Ordering::Relaxed);
            check!(mapped == own, "CPU {}: maps slot {mapped:#x} instead of {own:#x}", here.id.0);
        }
        Ok(())
    };
    let result = look();
    sched::set_affinity(&me, &CpuMask::full(cpu::MAX_CPUS as u32)).map_err(|e| alloc::format!("{e}"))?;
    result
}

struct Fired(AtomicU32);

impl timer::TimerTarget for Fired {
    fn fire(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Keeps its locals on the stack, calls nobody, and is interrupted meanwhile: without a red zone they lie above the stack
/// pointer.
#[inline(never)]
fn leaf(fired: &AtomicU32, seed: u64) -> u32 {
    let mut locals = [0u64; 10];
    for (i, l) in locals.iter_mut().enumerate() {
        // SAFETY: our own array. Volatile: it must be on the stack.
        unsafe { core::ptr::write_volatile(l, seed + i as u64) };
    }
    while fired.load(Ordering::Relaxed) == 0 {
        core::hint::spin_loop();
    }
    let mut wrong = 0;
    for (i, l) in locals.iter().enumerate() {
        // SAFETY: as above.
        wrong += u32::from(unsafe { core::ptr::read_volatile(l) } != seed + i as u64);
    }
    wrong
}

fn interrupts_keep_a_leaf_functions_locals() -> TestResult {
    for round in 0..5 {
        let fired = Arc::new(Fired(AtomicU32::new(0)));
        let timer = timer::call_at(time::now() + Nanos::from_millis(1), fired.clone());
        let wrong = leaf(&fired.0, round << 40);
        check!(!timer.cancel());
        check!(wrong == 0, "{wrong} words overwritten");
    }
    Ok(())
}

/// CPUs that have nothing to do halt: a request that is never cleared would keep them looking for ever.
fn idle_cpus_go_to_sleep() -> TestResult {
    extern "C" fn end(_: usize) -> ! {
        sched::exit_current()
    }
    for id in 0..cpu::count() {
        join(&spawn_on(id, "short", end, 0)?);
    }
    wait_for("sleep of all other CPUs", HANG_MS, || {
        let me = cpu::this().id;
        cpu::all().all(|c| c.id == me || c.sleep.is_idle())
    })
}

/// Each request for another look leads to one, and is then forgotten: a stale one would swallow the next.
fn a_request_is_taken_up_once() -> TestResult {
    struct Turns {
        stop: AtomicBool,
        ran: AtomicU32,
    }
    extern "C" fn count(argument: usize) -> ! {
        take::<Turns>(argument).ran.fetch_add(1, Ordering::Release);
        sched::exit_current()
    }
    extern "C" fn busy(argument: usize) -> ! {
        let turns = take::<Turns>(argument);
        while !turns.stop.load(Ordering::Relaxed) {
            core::hint::spin_loop();
        }
        drop(turns);
        sched::exit_current()
    }
    let (turns, pass) = share(Turns { stop: AtomicBool::new(false), ran: AtomicU32::new(0) });
    let last = cpu::count() - 1;
    let spinner: Arc<Task> = spawn_on(last, "busy", busy, pass())?;
    let mut result = Ok(());
    for i in 1..=5 {
        // One after the other: each comes to a CPU whose timer the one before has left unarmed.
        spawn_on(last, "count", count, pass())?;
        result = wait_for("the newcomer's turn", HANG_MS, || turns.ran.load(Ordering::Acquire) == i);
        if result.is_err() {
            break;
        }
    }
    turns.stop.store(true, Ordering::Relaxed);
    join(&spinner);
    result?;
    wait_for("a look that nobody asks to repeat", HANG_MS, || {
        let _irq = IrqGuard::new();
        sched::yield_now();
        !cpu::this().need_resched.load(Ordering::Relaxed)
    })
}
