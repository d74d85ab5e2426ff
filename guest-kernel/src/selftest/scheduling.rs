//! Switch, preemption, wait and wake, affinity, locks.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;

use super::{Test, TestResult, check, join, spawn, spawn_on, tests};
use crate::arch::instr;
use crate::arch::switch::switch_task;
use crate::cpu;
use crate::sched;
use crate::sync::{IrqGuard, Mutex, WaitQueue};
use crate::task::{Task, current};
use crate::time;

pub(super) const TESTS: &[Test] = tests![
    switch_keeps_callee_saved_registers,
    the_switch_alone_keeps_callee_saved_registers,
    spinning_kernel_task_is_preempted,
    no_wake_is_lost,
    many_wakers_one_wins,
    affinity_is_obeyed,
    running_task_is_moved,
    queued_task_is_moved,
    mutex_excludes,
    idle_cpu_takes_waiting_work,
    tasks_come_and_go,
];

/// Only a hang takes that long: vCPUs wait for each other while the host runs something else.
pub(super) const HANG_MS: u64 = 20_000;

/// Shared by a test and its tasks: leaked into a task's argument, so that no stack is shared.
pub(super) fn share<T>(v: T) -> (Arc<T>, impl Fn() -> usize) {
    let shared = Arc::new(v);
    let source = shared.clone();
    (shared, move || Arc::into_raw(source.clone()) as usize)
}

/// Takes a shared value out of a task's argument.
pub(super) fn take<T>(argument: usize) -> Arc<T> {
    // SAFETY: made by `share` for exactly one task.
    unsafe { Arc::from_raw(argument as *const T) }
}

/// Yields until `condition` holds.
pub(super) fn wait_for(what: &str, timeout_ms: u64, condition: impl Fn() -> bool) -> TestResult {
    let end = time::now().0 + timeout_ms * 1_000_000;
    while !condition() {
        check!(time::now().0 < end, "{what} within {timeout_ms} ms");
        sched::yield_now();
    }
    Ok(())
}

/// Puts a pattern into all callee-saved registers, yields, and says whether it came back.
#[inline(never)]
fn pattern_survives_yield(seed: u64) -> bool {
    extern "C" fn yield_it() {
        sched::yield_now();
    }
    let bad: u64;
    // SAFETY: rbx and rbp are put back by hand; the call clobbers what the C ABI lets it.
    unsafe {
        asm!(
            "push rbx", "push rbp",
            "mov rbx, {s}", "lea rbp, [rbx + 1]", "lea r12, [rbx + 2]", "lea r13, [rbx + 3]", "lea r14, [rbx + 4]", "lea r15, [rbx + 5]",
            "push rbx", "sub rsp, 8",
            "call {f}",
            "add rsp, 8", "pop rcx",
            "xor eax, eax",
            "sub rbx, rcx", "or rax, rbx",
            "sub rbp, rcx", "sub rbp, 1", "or rax, rbp",
            "sub r12, rcx", "sub r12, 2", "or rax, r12",
            "sub r13, rcx", "sub r13, 3", "or rax, r13",
            "sub r14, rcx", "sub r14, 4", "or rax, r14",
            "sub r15, rcx", "sub r15, 5", "or rax, r15",
            "pop rbp", "pop rbx",
            s = in(reg) seed,
            f = sym yield_it,
            out("rax") bad, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("C"),
        );
    }
    bad == 0
}

fn switch_keeps_callee_saved_registers() -> TestResult {
    extern "C" fn body(argument: usize) -> ! {
        let failures = take::<AtomicU32>(argument);
        let seed = u64::from(current().id.0) * 0x1_0001_0001;
        for i in 0..100 {
            if !pattern_survives_yield(seed + i) {
                failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(failures);
        sched::exit_current()
    }
    let (failures, pass) = share(AtomicU32::new(0));
    let tasks: Vec<_> = (0..4).map(|_| spawn_on(0, "regs", body, pass())).collect::<Result<_, _>>()?;
    tasks.iter().for_each(join);
    check!(failures.load(Ordering::Relaxed) == 0);
    Ok(())
}

/// A second stack under the task that runs, and what [`switch_task`] needs to go there and back.
#[repr(C)]
struct There {
    /// Where the task is saved while the other stack is in use, and the other way round.
    rsp_here: u64,
    rsp_there: u64,
    root: u64,
    on_cpu: bool,
}

/// What runs on the other stack: spoils every callee-saved register and goes back. r12 points to the [`There`].
#[unsafe(naked)]
extern "C" fn spoil_and_return() {
    core::arch::naked_asm!(
        "mov rsi, [r12]", "lea rdi, [r12 + 8]", "mov rdx, [r12 + 16]", "lea rcx, [r12 + 24]",
        "mov rax, -1", "mov rbx, rax", "mov rbp, rax", "mov r12, rax", "mov r13, rax", "mov r14, rax", "mov r15, rax",
        "call {switch}",
        "ud2",
        switch = sym switch_task,
    );
}

/// [`switch_task`] without the functions around it, which may happen to save the same registers.
fn the_switch_alone_keeps_callee_saved_registers() -> TestResult {
    let mut stack = alloc::vec![0u64; 512];
    let _irq = IrqGuard::new();
    let mut there = There { rsp_here: 0, rsp_there: 0, root: instr::read_cr3(), on_cpu: true };
    // What `switch_task` takes from the new stack: r15, r14, r13, r12, rbx, rbp, and where to go.
    let at = stack.len() - 16;
    stack[at + 3] = (&raw const there) as u64;
    stack[at + 6] = spoil_and_return as *const () as u64;
    there.rsp_there = (&raw const stack[at]) as u64;
    let bad: u64;
    // SAFETY: as in `pattern_survives_yield`. Interrupts are off; the root stays; the other stack is ours, in the heap, and is
    // left for good when the call returns.
    unsafe {
        asm!(
            "push rbx", "push rbp",
            "mov rbx, {s}", "lea rbp, [rbx + 1]", "lea r12, [rbx + 2]", "lea r13, [rbx + 3]", "lea r14, [rbx + 4]", "lea r15, [rbx + 5]",
            "push rbx", "sub rsp, 8",
            "call {f}",
            "add rsp, 8", "pop rcx",
            "xor eax, eax",
            "sub rbx, rcx", "or rax, rbx",
            "sub rbp, rcx", "sub rbp, 1", "or rax, rbp",
            "sub r12, rcx", "sub r12, 2", "or rax, r12",
            "sub r13, rcx", "sub r13, 3", "or rax, r13",
            "sub r14, rcx", "sub r14, 4", "or rax, r14",
            "sub r15, rcx", "sub r15, 5", "or rax, r15",
            "pop rbp", "pop rbx",
            s = in(reg) 0x5eed_u64,
            f = sym switch_task,
            in("rdi") &raw mut there.rsp_here, in("rsi") there.rsp_there, in("rdx") there.root, in("rcx") &raw mut there.on_cpu,
            out("rax") bad, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("C"),
        );
    }
    check!(bad == 0, "{bad:#x}");
    check!(!there.on_cpu, "on_cpu is still set");
    Ok(())
}

fn spinning_kernel_task_is_preempted() -> TestResult {
    extern "C" fn spin(argument: usize) -> ! {
        let stop = take::<AtomicBool>(argument);
        while !stop.load(Ordering::Relaxed) {
            core::hint::spin_loop();
        }
        drop(stop);
        sched::exit_current()
    }
    extern "C" fn set(argument: usize) -> ! {
        take::<AtomicBool>(argument).store(true, Ordering::Relaxed);
        sched::exit_current()
    }
    let (_stop, pass) = share(AtomicBool::new(false));
    let last = cpu::count() - 1;
    let spinner = spawn_on(last, "spin", spin, pass())?;
    let setter = spawn_on(last, "set", set, pass())?;
    join(&setter);
    join(&spinner);
    Ok(())
}

struct Ball {
    turn: AtomicU32,
    rounds: u32,
    queues: [WaitQueue; 2],
}

fn no_wake_is_lost() -> TestResult {
    extern "C" fn player(argument: usize) -> ! {
        let ball = take::<(Ball, AtomicU32)>(argument);
        let side = ball.1.fetch_add(1, Ordering::Relaxed) & 1;
        for round in 0..ball.0.rounds {
            let mine = 2 * round + side;
            ball.0.queues[side as usize].wait_until(|| (ball.0.turn.load(Ordering::Acquire) == mine).then_some(()));
            ball.0.turn.store(mine + 1, Ordering::Release);
            ball.0.queues[1 - side as usize].wake_one();
        }
        drop(ball);
        sched::exit_current()
    }
    for (a, b) in [(0, 1), (0, 0), (1, 2)] {
        let (ball, pass) = share((
            Ball { turn: AtomicU32::new(0), rounds: 100, queues: [WaitQueue::new(), WaitQueue::new()] },
            AtomicU32::new(0),
        ));
        let tasks = [spawn_on(a, "ping", player, pass())?, spawn_on(b, "pong", player, pass())?];
        tasks.iter().for_each(join);
        check!(ball.0.turn.load(Ordering::Relaxed) == 200);
    }
    Ok(())
}

struct Race {
    queue: WaitQueue,
    tokens: AtomicU32,
    taken: AtomicU32,
    total: u32,
}

fn many_wakers_one_wins() -> TestResult {
    extern "C" fn consumer(argument: usize) -> ! {
        let race = take::<Race>(argument);
        loop {
            let got = race.queue.wait_until(|| {
                if race.taken.load(Ordering::Acquire) >= race.total {
                    return Some(false);
                }
                race.tokens.fetch_update(Ordering::AcqRel, Ordering::Acquire, |t| t.checked_sub(1)).ok().map(|_| true)
            });
            if !got {
                break;
            }
            if race.taken.fetch_add(1, Ordering::AcqRel) + 1 >= race.total {
                race.queue.wake_all();
            }
        }
        drop(race);
        sched::exit_current()
    }
    extern "C" fn producer(argument: usize) -> ! {
        let race = take::<Race>(argument);
        for _ in 0..race.total / 2 {
            race.tokens.fetch_add(1, Ordering::AcqRel);
            race.queue.wake_one();
            race.queue.wake_one();
        }
        drop(race);
        sched::exit_current()
    }
    let (race, pass) =
        share(Race { queue: WaitQueue::new(), tokens: AtomicU32::new(0), taken: AtomicU32::new(0), total: 400 });
    let mut tasks = Vec::new();
    for i in 0..4 {
        tasks.push(spawn_on(i, "consumer", consumer, pass())?);
    }
    for i in 0..2 {
        tasks.push(spawn_on(i, "producer", producer, pass())?);
    }
    tasks.iter().for_each(join);
    check!(race.taken.load(Ordering::Relaxed) == 400 && race.tokens.load(Ordering::Relaxed) == 0);
    Ok(())
}

extern "C" fn note_cpus(argument: usize) -> ! {
    let seen = take::<AtomicU64>(argument);
    for _ in 0..20 {
        seen.fetch_or(1 << cpu::this().id.0, Ordering::Relaxed);
        sched::yield_now();
    }
    drop(seen);
    sched::exit_current()
}

fn affinity_is_obeyed() -> TestResult {
    for id in 0..cpu::count() {
        let (seen, pass) = share(AtomicU64::new(0));
        let tasks: Vec<_> = (0..3).map(|_| spawn_on(id, "pinned", note_cpus, pass())).collect::<Result<_, _>>()?;
        tasks.iter().for_each(join);
        check!(seen.load(Ordering::Relaxed) == 1 << id, "pinned to {id}, ran on {:#b}", seen.load(Ordering::Relaxed));
    }
    Ok(())
}

struct Mover {
    stop: AtomicBool,
    at: AtomicU32,
}

extern "C" fn tell_cpu(argument: usize) -> ! {
    let m = take::<Mover>(argument);
    while !m.stop.load(Ordering::Relaxed) {
        m.at.store(cpu::this().id.0, Ordering::Relaxed);
        core::hint::spin_loop();
    }
    drop(m);
    sched::exit_current()
}

/// Restricts a task to one CPU.
pub(super) fn move_to(task: &Arc<Task>, cpu: CpuId) -> TestResult {
    sched::set_affinity(task, &CpuMask::one_shot(cpu)).map_err(|e| alloc::format!("{e}"))
}

fn running_task_is_moved() -> TestResult {
    let (m, pass) = share(Mover { stop: AtomicBool::new(false), at: AtomicU32::new(u32::MAX) });
    let n = cpu::count();
    let t = spawn_on(n - 1, "mover", tell_cpu, pass())?;
    for i in 0..3 * n {
        let target = CpuId(i % n);
        move_to(&t, target)?;
        wait_for("the task's move", HANG_MS, || m.at.load(Ordering::Relaxed) == target.0).map_err(|e| {
            let on = t.cpu.load(Ordering::Relaxed);
            let (state, on_cpu) = (t.state.load(), t.on_cpu.load(Ordering::Relaxed));
            let resched = cpu::get(CpuId(on)).map(|c| c.need_resched.load(Ordering::Relaxed));
            alloc::format!(
                "{e}; move {i} to CPU {}: {state:?} on CPU {on}, on_cpu {on_cpu}, need_resched {resched:?}",
                target.0
            )
        })?;
    }
    m.stop.store(true, Ordering::Relaxed);
    join(&t);
    Ok(())
}

fn queued_task_is_moved() -> TestResult {
    let n = cpu::count();
    let (m, pass) = share(Mover { stop: AtomicBool::new(false), at: AtomicU32::new(u32::MAX) });
    // Two tasks share a CPU; the one that waits is sent elsewhere.
    let a = spawn_on(n - 1, "a", tell_cpu, pass())?;
    let b = spawn_on(n - 1, "b", tell_cpu, pass())?;
    for t in [&a, &b] {
        move_to(t, CpuId(0))?;
    }
    wait_for("both moves", HANG_MS, || a.cpu.load(Ordering::Relaxed) == 0 && b.cpu.load(Ordering::Relaxed) == 0)?;
    m.stop.store(true, Ordering::Relaxed);
    join(&a);
    join(&b);
    Ok(())
}

fn mutex_excludes() -> TestResult {
    extern "C" fn add(argument: usize) -> ! {
        let m = take::<Mutex<u64>>(argument);
        for i in 0..150 {
            let mut v = m.lock();
            let old = *v;
            if i % 10 == 0 {
                sched::yield_now(); // while holding it
            }
            *v = old + 1;
        }
        drop(m);
        sched::exit_current()
    }
    let (m, pass) = share(Mutex::new(0u64));
    let tasks: Vec<_> = (0..4).map(|i| spawn_on(i, "adder", add, pass())).collect::<Result<_, _>>()?;
    tasks.iter().for_each(join);
    check!(*m.lock() == 600, "{}", *m.lock());
    Ok(())
}

fn idle_cpu_takes_waiting_work() -> TestResult {
    if cpu::count() < 2 {
        return Ok(());
    }
    extern "C" fn work(argument: usize) -> ! {
        let seen = take::<AtomicU64>(argument);
        let all = (1u64 << cpu::count()) - 1;
        let end = time::now().0 + 20_000_000_000;
        while seen.load(Ordering::Relaxed) != all && time::now().0 < end {
            seen.fetch_or(1 << cpu::this().id.0, Ordering::Relaxed);
        }
        drop(seen);
        sched::exit_current()
    }
    let (seen, pass) = share(AtomicU64::new(0));
    let tasks: Vec<_> = (0..2 * cpu::count()).map(|_| spawn("work", None, work, pass())).collect::<Result<_, _>>()?;
    tasks.iter().for_each(join);
    let all = (1u64 << cpu::count()) - 1;
    check!(seen.load(Ordering::Relaxed) == all, "ran on {:#b} of {all:#b}", seen.load(Ordering::Relaxed));
    Ok(())
}

fn tasks_come_and_go() -> TestResult {
    extern "C" fn end(_: usize) -> ! {
        sched::exit_current()
    }
    let before = crate::mm::frame::usage().0;
    // As many as would be missed if they left their blocks behind.
    for round in 0..5u32 {
        let tasks: Vec<Arc<Task>> =
            (0..20u32).map(|i| spawn_on(i + round, "short", end, 0)).collect::<Result<_, _>>()?;
        tasks.iter().for_each(join);
    }
    let after = crate::mm::frame::usage().0;
    // Blocks of 8 frames are kept for the next tasks, and the heap keeps its pages.
    check!(after + 32 * 8 + 64 >= before, "{before} frames free before, {after} after");
    Ok(())
}
