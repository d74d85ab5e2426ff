//! The scheduler's mechanism: it carries out what `vcpu-sched` decides.
//!
//! Each CPU picks from its own queue. The way of a task through this module:
//! - [`start`] and [`wake`] decide on a CPU (`place`), put the task into that CPU's queue and kick it.
//! - [`yield_now`], [`block`], [`exit_current`] and preemption end in `switch`, which asks the state table what becomes of the old
//!   task, picks the next one, and switches.
//! - What the old task still needs from its CPU (dropping the reference, moving to another CPU) is done by its successor
//!   when stack and page table are left.
//!
//! | file | what |
//! | --- | --- |
//! | `place` | which CPU a ready task goes to, and telling that CPU |
//! | `switch` | leaving one task for the next |
//! | `handover` | the end of that: registers, stack, page table |
//! | `balance` | taking work from other CPUs |
//! | `affinity` | where a task may run, changed while it is queued, runs or sleeps |
//! | `params` | how a task is scheduled, changed likewise; what deadline tasks were promised |
//! | `delegated` | tasks that an agent outside of the kernel schedules |
//! | `suspend` | tasks that somebody outside holds off their programs |
//! | `tick` | the end of a slice |
//! | `idle` | nothing to do |
//!
//! Invariants: at most one run-queue lock is held at a time; interrupts are off from the choice of the next task to the end
//! of the switch; a task with `on_cpu` set or FPU state in a CPU's registers is never taken by another CPU; [`Task::cpu`] and
//! `SchedEntity::queue` are written with the run queue locked that the task enters, and name the queue that it is in, the CPU
//! that it runs on, or the one that it left last.

mod affinity;
mod balance;
pub mod delegated;
mod handover;
pub mod idle;
mod params;
mod place;
mod suspend;
mod switch;
mod tick;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::params::Slice;
use vcpu_sched::placement;
use vcpu_sched::runqueue::{PolicyKind, RunQueue};
use vcpu_sched::task::state::{Action, Event};

use crate::arch::features::{Features, has};
use crate::arch::{apic, debug_port, descriptors::vector, fpu, instr};
use crate::boot::cmdline;
use crate::chaos::{self, Point};
use crate::cpu::set::AtomicCpuSet;
use crate::cpu::{self, Cpu};
use crate::sync::IrqGuard;
use crate::task::{self, Task, TaskRef, current};

pub use affinity::set_affinity;
pub use balance::give_away;
pub use params::set_params;
pub use place::{send, wake};
pub use suspend::{hold, let_go, lift, wait_while_held};
use switch::Leave;
pub use switch::ran;
pub use tick::{rearm, timer};

/// One CPU's tasks.
pub type Queue = RunQueue<TaskRef>;

/// The policy of ordinary tasks, by its place in [`PolicyKind::ALL`]. Set at boot, before there are tasks.
static POLICY: AtomicU8 = AtomicU8::new(0);

/// The slice of ordinary tasks that ask for none, in nanoseconds; 0: the policy's own. Set with [`POLICY`].
static SLICE: AtomicU64 = AtomicU64::new(0);

/// The least slice where ring 0 is interpreted. There a preemption and what comes of it (the tasks that find their pipe empty
/// or full again) take some two thousand instructions, two milliseconds: of a slice of three that leaves less than half.
const SLOW_SLICE: Nanos = Nanos::from_millis(10);

/// CPUs that take tasks.
static ONLINE: AtomicCpuSet = AtomicCpuSet::new();

/// CPUs that take tasks.
pub fn online_mask() -> CpuMask {
    // Acquire: a CPU that is seen here has done what it does before it takes tasks.
    ONLINE.read(Ordering::Acquire)
}

/// From now on this CPU takes tasks.
pub fn set_online(id: CpuId) {
    // Release: see `online_mask`.
    ONLINE.insert(id, Ordering::Release);
}

/// The policy of ordinary tasks.
pub fn policy() -> PolicyKind {
    PolicyKind::ALL.get(usize::from(POLICY.load(Ordering::Relaxed))).copied().unwrap_or_default()
}

/// The slice of ordinary tasks that ask for none.
pub fn slice() -> Nanos {
    match SLICE.load(Ordering::Relaxed) {
        0 => policy().default_slice(),
        slice => Nanos(slice),
    }
}

/// The empty queue of a CPU, as the command line wants it.
pub fn new_queue(id: CpuId) -> Queue {
    RunQueue::with_slice(id, policy(), slice())
}

/// Takes policy and slice from the command line. Boot CPU, before there are other CPUs and tasks.
pub fn init() {
    if let Some(name) = cmdline::get("policy") {
        match name.parse::<PolicyKind>() {
            Ok(kind) => {
                let index = PolicyKind::ALL.iter().position(|k| *k == kind).unwrap_or_default();
                POLICY.store(index as u8, Ordering::Relaxed);
            }
            Err(e) => crate::warn!("policy={name}: {e}; using {}", policy()),
        }
    }
    let slow = has(Features::SLOW_RING0) && slice() < SLOW_SLICE;
    let wanted = cmdline::get("slice_us").and_then(|text| {
        let wanted = text.parse().ok().and_then(|us| Slice::clamped(Nanos::from_micros(us)));
        if wanted.is_none() {
            crate::warn!("slice_us={text}: a number of microseconds from 100 to 100000; using {}", slice());
        }
        wanted.map(Slice::get)
    });
    if let Some(slice) = wanted.or(slow.then_some(SLOW_SLICE)) {
        SLICE.store(slice.0, Ordering::Relaxed);
    }
    let me = cpu::this();
    *me.run_queue.lock() = new_queue(me.id);
}

/// Runs `f` with the run queue locked that the task is in, runs on or has left; none: it never started. Interrupts are off.
fn with_queue_of<R>(task: &Task, f: impl FnOnce(&Cpu, &mut Queue) -> R) -> Option<R> {
    loop {
        let on = task.sched.queue()?;
        let cpu = cpu::get(on)?;
        let mut rq = cpu.run_queue.lock_irqs_off();
        // It may have gone elsewhere before we had the lock; with it, it can't.
        if task.sched.queue() == Some(on) {
            return Some(f(cpu, &mut rq));
        }
    }
}

/// Starts a new task on the least loaded CPU that it may run on.
pub fn start(task: Arc<Task>) {
    task::table::insert(&task);
    affinity::record(&task);
    let _irq = IrqGuard::new();
    if let Ok(Action::Enqueue) = task.state.apply(Event::Start) {
        let Some(TaskRef(task)) = delegated::take(TaskRef(task), place::Why::New) else { return };
        let me = cpu::this();
        let target = if cpu::count() == 1 {
            me.id
        } else {
            placement::select_cpu_new(&task.affinity.lock(), me.id, &place::View::now())
        };
        place::enqueue_on(target, TaskRef(task), place::Why::New);
    }
}

/// Gives way to the next ready task. Interrupts are on.
pub fn yield_now() {
    debug_assert!(instr::interrupts_enabled());
    instr::cli();
    switch::reschedule(cpu::this(), Leave::Yield);
    instr::sti();
    chaos::point(Point::InterruptsOn);
}

/// Leaves the CPU if [`Event::Block`] still stands; see `sync::wait_queue` for the protocol.
pub fn block() {
    chaos::point(Point::Block);
    let _irq = IrqGuard::new();
    switch::reschedule(cpu::this(), Leave::Block);
}

/// Takes the CPU from the current task if that was asked for. On the way out of an interrupt or the kernel; interrupts off.
#[inline(always)]
pub fn preempt_if_needed() {
    if cpu::this().need_resched.load(Ordering::Relaxed) {
        preempt();
    }
}

#[cold]
fn preempt() {
    /// How long a wish is put off at a time.
    const PUT_OFF: Nanos = Nanos::from_millis(5);
    if debug_port::keeps_task() {
        // The wish stays, so nobody asks again: the timer does. The step may be called off, and the program doesn't come here then.
        cpu::this().timers.fire_within(PUT_OFF);
    } else {
        preempt_now();
    }
}

/// Takes the CPU from the current task, whatever the policy says, but not if it is pinned there: then a wish to is granted when it is pinned
/// no more. Where an interrupt could come; interrupts are off.
pub fn preempt_now() {
    let me = cpu::this();
    if !me.is_pinned() {
        switch::reschedule(me, Leave::Preempted);
    }
}

/// The current task was pinned until now, and may have been asked to give way meanwhile.
#[cold]
pub fn preempt_after_pin() {
    // With interrupts off it gives way where they are turned on, as ever.
    if instr::interrupts_enabled() {
        instr::cli();
        preempt_if_needed();
        instr::sti();
    }
}

/// Has the current task give way when it leaves the kernel. Own CPU, interrupts off; its run queue may be locked.
pub fn preempt_soon(me: &Cpu) {
    // Relaxed, and without the lock that others set it under: only this CPU clears it, in `reschedule`. Who then has queued a task and
    // sends no interrupt, because we were asked before, has done so before that takes the lock.
    me.need_resched.store(true, Ordering::Relaxed);
    if cpu::count() > 1 && current().user().is_none() {
        // As in `place::request`: a task of the kernel's own doesn't come to the way out of the kernel, and may have no timer either. Whoever
        // asks next relies on it that we are on our way.
        place::send(me);
    }
}

/// Ends the current task. Its ABI layer has let go of what it held.
pub fn exit_current() -> ! {
    let me = current();
    me.replace_space(None);
    {
        let _irq = IrqGuard::new();
        fpu::forget(cpu::this(), &me);
    }
    task::table::remove(me.id);
    params::forget(&me);
    me.exited.wake_all();
    instr::cli();
    switch::reschedule(cpu::this(), Leave::Exit);
    unreachable!("an ended task was scheduled");
}

/// Loads a thread pointer if another one is loaded. Interrupts are off.
#[inline(always)]
pub fn load_fs_base(me: &Cpu, base: u64) {
    /// IA32_FS_BASE. Intel SDM vol. 4 table 2-2.
    const FS_BASE: u32 = 0xc000_0100;
    if me.fs_base.load(Ordering::Relaxed) != base {
        me.fs_base.store(base, Ordering::Relaxed);
        // SAFETY: the register exists in 64-bit mode; `arch_prctl` admits canonical addresses only.
        unsafe { instr::wrmsr(FS_BASE, base) };
    }
}

/// Makes a task that runs on some CPU enter the kernel soon, so that it sees its [`Task::work`].
pub fn nudge(task: &Task) {
    let me = cpu::this();
    if let Some(c) = cpu::get(CpuId(task.cpu.load(Ordering::Relaxed)))
        && c.id != me.id
        && core::ptr::eq(c.current.load(Ordering::Relaxed), task)
    {
        apic::send_ipi(c.apic_id(), vector::IPI_RESCHEDULE);
    }
}
