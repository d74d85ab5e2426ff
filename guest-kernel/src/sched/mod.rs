//! The scheduler's mechanism: it carries out what `vcpu-sched` decides.
//!
//! Each CPU picks from its own queue. The way of a task through this module:
//! - [`start`] and [`wake`] decide on a CPU (`placement`), put the task into that CPU's queue and kick it.
//! - [`yield_now`], [`block`], [`exit_current`] and preemption end in `reschedule`, which asks the state table what becomes of the old
//!   task, picks the next one, and switches.
//! - What the old task still needs from its CPU (dropping the reference, moving to another CPU) is done by its successor
//!   in `finish_switch`, when stack and page table are left.
//!
//! Invariants: at most one run-queue lock is held at a time; interrupts are off from the choice of the next task to the end
//! of the switch; a task with `on_cpu` set or FPU state in a CPU's registers is never taken by another CPU.

pub mod idle;

use alloc::sync::Arc;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::placement::{self, CpuView, Placement};
use vcpu_sched::policy::round_robin::RoundRobin;
use vcpu_sched::policy::{EnqueueReason, Policy, PutReason};
use vcpu_sched::task::state::{Action, Event, State};

use crate::arch::{apic, descriptors::vector, fpu, instr, switch};
use crate::cpu::{self, Cpu};
use crate::mm::layout::CPU_SLOT;
use crate::mm::page_table::Entry;
use crate::mm::shootdown;
use crate::sync::IrqGuard;
use crate::task::{self, Task, TaskRef, current};
use crate::time;

/// The policy in force.
pub type RunQueue = RoundRobin<TaskRef>;

/// CPUs that take tasks, as a word: this kernel brings up at most 64.
static ONLINE: AtomicU64 = AtomicU64::new(0);
/// The task that was left wants to run elsewhere; one flag a CPU, used by that CPU with interrupts off.
static FORWARD: [AtomicBool; cpu::MAX_CPUS] = [const { AtomicBool::new(false) }; cpu::MAX_CPUS];

/// CPUs that take tasks.
pub fn online_mask() -> CpuMask {
    CpuMask::from_le_bytes(&ONLINE.load(Ordering::Acquire).to_le_bytes())
}

/// From now on this CPU takes tasks.
pub fn set_online(id: CpuId) {
    ONLINE.fetch_or(1 << id.0, Ordering::AcqRel);
}

struct View {
    online: CpuMask,
}

impl CpuView for View {
    fn online(&self) -> &CpuMask {
        &self.online
    }

    fn is_idle(&self, id: CpuId) -> bool {
        cpu::get(id).is_some_and(|c| c.nr_running.load(Ordering::Relaxed) == 0)
    }

    fn nr_running(&self, id: CpuId) -> u32 {
        cpu::get(id).map_or(u32::MAX, |c| c.nr_running.load(Ordering::Relaxed))
    }
}

/// Starts a new task on the least loaded CPU that it may run on.
pub fn start(task: Arc<Task>) {
    task::table::insert(&task);
    let _irq = IrqGuard::new();
    if let Ok(Action::Enqueue) = task.state.apply(Event::Start) {
        let me = cpu::this();
        let target = if cpu::count() == 1 {
            me.id
        } else {
            placement::select_cpu_new(&task.affinity.lock(), me.id, &View { online: online_mask() })
        };
        enqueue_on(target, TaskRef(task), EnqueueReason::New);
    }
}

/// Makes a blocked task ready. Costs nothing if it isn't blocked. Returns whether this call did it.
pub fn wake(task: &Arc<Task>) -> bool {
    if matches!(task.state.apply(Event::Wake), Ok(Action::Enqueue)) {
        place(TaskRef(task.clone()), EnqueueReason::Wake);
        return true;
    }
    false
}

/// Puts a ready task that is in no queue into one.
fn place(task: TaskRef, why: EnqueueReason) {
    let _irq = IrqGuard::new();
    let me = cpu::this();
    let last = CpuId(task.cpu.load(Ordering::Relaxed));
    // Acquire on both: if they read as clear, the stack and the registers are left and their contents are visible.
    let tied = task.on_cpu.load(Ordering::Acquire) || task.fpu_live.load(Ordering::Acquire) != fpu::NOT_LIVE;
    let target = if tied {
        last
    } else if cpu::count() == 1 {
        me.id
    } else if task.allowed_on(last) && cpu::get(last).is_some_and(|c| c.nr_running.load(Ordering::Relaxed) == 0) {
        last // the common answer of `select_cpu`, without building a view
    } else {
        let affinity = task.affinity.lock();
        placement::select_cpu(&Placement { last_cpu: last, allowed: &affinity }, me.id, &View { online: online_mask() })
    };
    enqueue_on(target, task, why);
}

/// Puts a ready task into a CPU's queue and makes sure that the CPU will look at it. Interrupts are off.
fn enqueue_on(target: CpuId, task: TaskRef, why: EnqueueReason) {
    let me = cpu::this();
    // Only CPUs of the online mask and CPUs that ran the task before are ever chosen.
    let Some(cpu) = cpu::get(target) else { return };
    let first = {
        let mut rq = cpu.run_queue.lock();
        let first = rq.is_empty();
        rq.enqueue(task, why, time::now());
        first
    };
    cpu.nr_running.fetch_add(1, Ordering::Relaxed);
    if cpu.id == me.id {
        note_competitor(me);
        return;
    }
    // A sleeping CPU needs the interrupt to wake up; a busy one when this is the first competitor, because it runs without
    // a tick until then.
    let asleep = cpu.sleep.kick();
    if asleep || first {
        apic::send_ipi(cpu.apic_id(), vector::IPI_RESCHEDULE);
    }
}

/// This CPU's queue has something: leave the idle task, or limit the current one's time. Interrupts are off.
pub fn note_competitor(me: &Cpu) {
    if core::ptr::eq(me.current.load(Ordering::Relaxed), me.idle.load(Ordering::Relaxed)) {
        me.need_resched.store(true, Ordering::Relaxed);
    } else {
        let end = me.picked_at.load(Ordering::Relaxed).wrapping_add(slice_ticks());
        me.timers.arm_slice(end);
    }
}

/// Length of a slice in TSC ticks: the same for every task under round robin.
static SLICE_TICKS: AtomicU64 = AtomicU64::new(u64::MAX >> 1);

/// Takes the slice's length, once the clock is there. Boot CPU.
pub fn init() {
    SLICE_TICKS.store(time::ticks(vcpu_sched::policy::round_robin::DEFAULT_SLICE), Ordering::Relaxed);
}

#[inline(always)]
fn slice_ticks() -> u64 {
    SLICE_TICKS.load(Ordering::Relaxed)
}

/// The timer has fired: has the current task had its share? Interrupts are off.
pub fn slice_tick(me: &Cpu, now: u64) {
    if core::ptr::eq(me.current.load(Ordering::Relaxed), me.idle.load(Ordering::Relaxed)) {
        return;
    }
    let rq = me.run_queue.lock();
    if rq.is_empty() {
        return;
    }
    drop(rq);
    let end = me.picked_at.load(Ordering::Relaxed).wrapping_add(slice_ticks());
    if now >= end {
        me.need_resched.store(true, Ordering::Relaxed);
    } else {
        me.timers.arm_slice(end);
    }
}

/// Gives way to the next ready task.
pub fn yield_now() {
    let _irq = IrqGuard::new();
    reschedule(Event::Deschedule);
}

/// Leaves the CPU if [`Event::Block`] still stands; see `sync::wait_queue` for the protocol.
pub fn block() {
    let _irq = IrqGuard::new();
    reschedule(Event::Deschedule);
}

/// Takes the CPU from the current task if that was asked for. On the way out of an interrupt or the kernel; interrupts off.
#[inline(always)]
pub fn preempt_if_needed() {
    if cpu::this().need_resched.load(Ordering::Relaxed) {
        reschedule(Event::Preempt);
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
    me.exited.wake_all();
    instr::cli();
    reschedule(Event::Exit);
    unreachable!("an ended task was scheduled");
}

/// Applies `event` to the current task and switches to whoever runs next. Interrupts are off.
fn reschedule(event: Event) {
    let me = cpu::this();
    me.need_resched.store(false, Ordering::Relaxed);
    // SAFETY: the scheduler owns a reference for the running task.
    let prev: &Task = unsafe { &*me.current.load(Ordering::Relaxed) };
    let idle: *const Task = me.idle.load(Ordering::Relaxed);
    let tsc = instr::rdtsc();
    let now = time::at_tsc(tsc);
    let ran = now - Nanos(me.picked_time.load(Ordering::Relaxed));
    prev.stats.run_ticks.fetch_add(tsc.wrapping_sub(me.picked_at.load(Ordering::Relaxed)), Ordering::Relaxed);

    let was_idle = core::ptr::eq(prev, idle);
    let mut rq = me.run_queue.lock();
    // Whether the reference that `prev` runs on has moved to the queue.
    let mut moved = !was_idle && put_prev(me, prev, &mut rq, event, ran, now);
    let next = loop {
        let Some(t) = rq.pick_next(now) else {
            drop(rq);
            let stole = steal(me, now);
            rq = me.run_queue.lock();
            // Something may also have come by itself while the lock was open.
            if stole || !rq.is_empty() {
                continue;
            }
            break None;
        };
        if t.allowed_on(me.id) {
            break Some(t);
        }
        me.nr_running.fetch_sub(1, Ordering::Relaxed);
        if core::ptr::eq(Arc::as_ptr(&t.0), prev) {
            // It may not stay here (it was woken while it was leaving, or its affinity has just changed): its successor sends
            // it on, with the reference that it runs on.
            if core::mem::take(&mut moved) {
                core::mem::forget(t);
            }
            FORWARD[me.id.0 as usize].store(true, Ordering::Relaxed);
            continue;
        }
        drop(rq); // one run-queue lock at a time
        fpu::flush_live(me, &t);
        place(t, EnqueueReason::Migrate);
        rq = me.run_queue.lock();
    };
    let has_competitor = !rq.is_empty();
    drop(rq);
    let next: *const Task = match next {
        Some(t) => {
            if t.state.apply(Event::Pick).is_err() {
                panic!("task {} picked while {:?}", t.id.0, t.state.load());
            }
            Arc::into_raw(t.0)
        }
        None => idle,
    };
    me.picked_at.store(tsc, Ordering::Relaxed);
    me.picked_time.store(now.0, Ordering::Relaxed);
    if has_competitor && !core::ptr::eq(next, idle) {
        me.timers.arm_slice(tsc.wrapping_add(slice_ticks()));
    }
    if core::ptr::eq(next, prev) {
        if !was_idle && !moved {
            // It was woken while it was leaving: the waker's reference came on top of the one that it runs on.
            // SAFETY: `into_raw` above made it.
            drop(unsafe { Arc::from_raw(next) });
        }
        return;
    }
    me.leaving.store(
        if moved || was_idle { core::ptr::null_mut() } else { core::ptr::from_ref(prev).cast_mut() },
        Ordering::Relaxed,
    );
    // SAFETY: `next` is held by the reference that just moved into `current`.
    switch_to(me, prev, unsafe { &*next });
}

/// Tells the state table and the policy what becomes of the task that is being left. Returns whether the reference that it
/// ran on now belongs to the queue.
fn put_prev(me: &Cpu, prev: &Task, rq: &mut RunQueue, event: Event, ran: Nanos, now: Nanos) -> bool {
    // SAFETY: tasks live in Arcs, and the scheduler owns a reference for the running one: this one. It is given away only
    // where `true` is returned.
    let held = ManuallyDrop::new(TaskRef(unsafe { Arc::from_raw(prev) }));
    let wanted_to_block = prev.state.load() == State::Blocking;
    match prev.state.apply(event) {
        Ok(Action::Enqueue) => {
            // A block that a wake-up overtook is no yield: the task asked for nothing and must not be made to pay.
            let yields = event == Event::Deschedule && !wanted_to_block;
            let (put, why) = if yields {
                (PutReason::Yield, EnqueueReason::Yield)
            } else {
                (PutReason::Preempted, EnqueueReason::Preempted)
            };
            let counter = if event == Event::Preempt { &prev.stats.involuntary } else { &prev.stats.voluntary };
            counter.fetch_add(1, Ordering::Relaxed);
            if prev.allowed_on(me.id) {
                rq.put_prev(&held, ran, put);
                rq.enqueue(ManuallyDrop::into_inner(held), why, now);
                return true;
            }
            // It may not stay here: its successor sends it on.
            rq.put_prev(&held, ran, PutReason::Migrate);
            FORWARD[me.id.0 as usize].store(true, Ordering::Relaxed);
        }
        Ok(Action::Nothing) => {
            rq.put_prev(&held, ran, PutReason::Block);
            prev.stats.voluntary.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Action::Reap) => rq.put_prev(&held, ran, PutReason::Exit),
        Err(e) => panic!("task {}: {e}", prev.id.0),
    }
    me.nr_running.fetch_sub(1, Ordering::Relaxed);
    false
}

/// Takes a task from the CPU with the most into this CPU's queue, which is empty. Interrupts are off.
fn steal(me: &Cpu, now: Nanos) -> bool {
    if cpu::count() == 1 {
        return false;
    }
    let busiest = cpu::all()
        .filter(|c| c.id != me.id && c.nr_running.load(Ordering::Relaxed) > 1)
        .max_by_key(|c| c.nr_running.load(Ordering::Relaxed));
    let Some(busiest) = busiest else { return false };
    let stolen = busiest.run_queue.lock().steal(|t| {
        // Acquire: see `place`.
        t.allowed_on(me.id) && !t.on_cpu.load(Ordering::Acquire) && t.fpu_live.load(Ordering::Acquire) == fpu::NOT_LIVE
    });
    let Some(stolen) = stolen else { return false };
    busiest.nr_running.fetch_sub(1, Ordering::Relaxed);
    me.nr_running.fetch_add(1, Ordering::Relaxed);
    me.run_queue.lock().enqueue(stolen, EnqueueReason::Migrate, now);
    true
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

/// Leaves `prev` and continues `next`. Interrupts are off.
fn switch_to(me: &Cpu, prev: &Task, next: &Task) {
    me.stats.switches.fetch_add(1, Ordering::Relaxed);
    if FORWARD[me.id.0 as usize].load(Ordering::Relaxed) {
        fpu::flush_live(me, prev);
    }
    fpu::switch(me, prev, next);
    if next.cpu.swap(me.id.0, Ordering::Relaxed) != me.id.0 {
        next.stats.migrations.fetch_add(1, Ordering::Relaxed);
    }
    // Relaxed: read by others only together with the state or the queue's lock that made `next` ours.
    next.on_cpu.store(true, Ordering::Relaxed);
    let top = next.block.top();
    let slot = Entry(me.slot_entry.load(Ordering::Relaxed));
    if top.get(CPU_SLOT) != slot {
        top.set(CPU_SLOT, slot);
    }
    if next.user().is_some() {
        load_fs_base(me, next.fs_base());
    }
    // SAFETY: we are about to run it.
    shootdown::enter_space(me, unsafe { next.space_ptr() });
    me.current.store(core::ptr::from_ref(next).cast_mut(), Ordering::Relaxed);
    // SAFETY: interrupts are off; `next`'s stack pointer was saved or laid out; its root has the kernel half and now this
    // CPU's slot; tasks live in the heap, that is, in the direct map.
    unsafe { switch::switch_task(prev.saved_rsp(), *next.saved_rsp(), next.block.root().0, prev.on_cpu.as_ptr()) };
    finish_switch();
}

/// What the previous task left to be done, by the task that now runs. Interrupts are off.
fn finish_switch() {
    let me = cpu::this();
    let prev = me.leaving.swap(core::ptr::null_mut(), Ordering::Relaxed);
    if prev.is_null() {
        return;
    }
    // SAFETY: the reference that `current` held until the switch.
    let prev = unsafe { Arc::from_raw(prev.cast_const()) };
    if FORWARD[me.id.0 as usize].swap(false, Ordering::Relaxed) {
        place(TaskRef(prev), EnqueueReason::Migrate);
    }
}

/// First thing that a new task does.
#[unsafe(no_mangle)]
extern "C" fn finish_first_switch() {
    finish_switch();
    instr::sti();
}

/// Restricts a task to `mask` (not empty, and with an online CPU in it) and moves it if it is elsewhere.
pub fn set_affinity(task: &Arc<Task>, mask: &CpuMask) {
    task.set_affinity_mask(mask);
    let on = CpuId(task.cpu.load(Ordering::Relaxed));
    if mask.test(on) {
        return;
    }
    if core::ptr::eq(&*current(), Arc::as_ptr(task)) {
        yield_now();
        return;
    }
    // Running: its CPU preempts it, and sends it on. Queued: it is sent on when it is picked. Blocked: at its wake-up.
    if let Some(c) = cpu::get(on) {
        if core::ptr::eq(c.current.load(Ordering::Relaxed), Arc::as_ptr(task)) {
            c.need_resched.store(true, Ordering::Release);
        }
        let _ = c.sleep.kick();
        apic::send_ipi(c.apic_id(), vector::IPI_RESCHEDULE);
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
