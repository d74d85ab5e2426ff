//! Which CPU a ready task goes to, and telling that CPU. Used by the rest of `sched` and by everything that wakes tasks.
//!
//! Invariants: a task that another CPU still stands on, or whose FPU state lives in another CPU's registers, goes to that CPU and
//! no other; whoever queues a task on another CPU makes sure that this CPU looks at it; and a task that has to wait for a busy
//! CPU has an idle one that it may run on, if there is any, come for it.
//!
//! # Idle beside work
//! [`IDLE`] names the CPUs that have found nothing. Wrong would be: a task is queued on a busy CPU, an allowed one halts, and
//! neither knows of the other. It can't happen, because each side writes before it looks, with a full barrier between: the
//! idler sets its bit, then looks into all queues (`balance::pull`); the other queues the task, then looks for bits
//! ([`call_idle`]). Each CPU's bit is in one word, so this holds for each CPU by itself, however many words there are.

use alloc::sync::Arc;
use core::mem::ManuallyDrop;
use core::sync::atomic::Ordering;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::entity::Rank;
use vcpu_sched::events::{Kind, MigrateReason, flag};
use vcpu_sched::ids::CpuId;
use vcpu_sched::placement::{self, CpuView, Level, Placement};
use vcpu_sched::policy::EnqueueReason;
use vcpu_sched::task::state::{Action, Event};
use vcpu_sched::topology::Topology;

use super::{Queue, balance, delegated, tick};
use crate::arch::{apic, descriptors::vector, fpu};
use crate::chaos::{self, Point};
use crate::cpu::set::AtomicCpuSet;
use crate::cpu::{self, Cpu};
use crate::sync::IrqGuard;
use crate::task::{Task, TaskRef, current};
use crate::time;
use crate::trace;

/// CPUs that run their idle task and have looked for work in vain. Set by the CPU itself, cleared by itself when
/// it has found something, or by the one who calls it.
static IDLE: AtomicCpuSet = AtomicCpuSet::new();

/// What placement sees of the CPUs.
pub(super) struct View {
    online: CpuMask,
}

impl View {
    pub(super) fn now() -> Self {
        Self { online: super::online_mask() }
    }
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

    fn level(&self, id: CpuId) -> Level {
        cpu::get(id).map_or(Level::STOP, |c| Level::from_u8(c.level.load(Ordering::Relaxed)))
    }

    fn waiting_realtime(&self, id: CpuId) -> u8 {
        cpu::get(id).map_or(0, |c| c.waiting_realtime.load(Ordering::Relaxed))
    }

    fn topology(&self) -> Option<&Topology> {
        Some(cpu::topology::of_scheduler())
    }
}

/// Why a task comes to a queue.
#[derive(Clone, Copy)]
pub(super) enum Why {
    New,
    Wake,
    Migrate(MigrateReason),
}

impl Why {
    #[inline(always)]
    fn reason(self) -> EnqueueReason {
        match self {
            Self::New => EnqueueReason::New,
            Self::Wake => EnqueueReason::Wake,
            Self::Migrate(_) => EnqueueReason::Migrate,
        }
    }
}

/// Makes a blocked task ready. Costs nothing if it isn't blocked. Returns whether this call did it.
pub fn wake(task: &Arc<Task>) -> bool {
    if matches!(task.state.apply(Event::Wake), Ok(Action::Enqueue)) {
        chaos::point(Point::WakeBefore);
        place(TaskRef(task.clone()));
        chaos::point(Point::WakeAfter);
        return true;
    }
    false
}

/// Puts a woken task, which is in no queue, into one.
#[inline(never)]
pub(super) fn place(task: TaskRef) {
    let _irq = IrqGuard::new();
    let Some(task) = delegated::take(task, Why::Wake) else { return };
    let me = cpu::this();
    let alone = cpu::count() == 1;
    let Some(cpu) = (if alone { Some(me) } else { find_cpu(me, &task) }) else { return };
    put_on(me, cpu, task, Why::Wake, alone);
}

/// Puts a ready task that was in another queue, and is in none now, into one.
pub(super) fn place_again(task: TaskRef, why: MigrateReason) {
    let _irq = IrqGuard::new();
    let Some(task) = delegated::take(task, Why::Migrate(why)) else { return };
    if let Some(cpu) = find_cpu(cpu::this(), &task) {
        enqueue_on(cpu.id, task, Why::Migrate(why));
    }
}

/// The CPU for a ready task. Interrupts are off.
#[inline(always)]
fn find_cpu(me: &'static Cpu, task: &Task) -> Option<&'static Cpu> {
    let last = CpuId(task.cpu.load(Ordering::Relaxed));
    let target = if is_tied(task) {
        last
    } else if let Some(home) = task.sched.home() {
        home // a deadline task: where it was admitted
    } else if task.allowed_on(last) && cpu::get(last).is_some_and(|c| c.nr_running.load(Ordering::Relaxed) == 0) {
        last // the common answer of `select_cpu`, without building a view
    } else {
        select_cpu(task, last, me)
    };
    // Only CPUs of the online mask and CPUs that ran the task before are ever chosen.
    cpu::get(target)
}

#[inline(never)]
fn select_cpu(task: &Task, last: CpuId, me: &Cpu) -> CpuId {
    let affinity = task.affinity.lock();
    let choice = Placement { last_cpu: last, allowed: &affinity };
    match task.sched.level() {
        level if level > Level::NORMAL => placement::select_cpu_realtime(level, &choice, me.id, &View::now()),
        _ => placement::select_cpu(&choice, me.id, &View::now()),
    }
}

/// Whether the task can only run on [`Task::cpu`], which still stands on its stack or has its FPU state in its registers.
///
/// Acquire on both: if they read as clear, the stack and the registers are left and their contents are visible.
#[inline(always)]
pub(super) fn is_tied(task: &Task) -> bool {
    task.on_cpu.load(Ordering::Acquire) || task.fpu_live.load(Ordering::Acquire) != fpu::NOT_LIVE
}

/// A second handle to a task that somebody else holds, without counting it.
///
/// # Safety
/// `task` points into an `Arc`, which outlives the handle.
#[inline(always)]
pub(super) unsafe fn borrowed(task: *const Task) -> ManuallyDrop<TaskRef> {
    // SAFETY: the caller's promise; never dropped, so the count stays as it is.
    ManuallyDrop::new(TaskRef(unsafe { Arc::from_raw(task) }))
}

/// The task that a CPU runs, or is about to; none: the idle task. Its run queue is locked, which keeps the task there.
#[inline(always)]
pub(super) fn running(cpu: &Cpu, _locked: &Queue) -> Option<ManuallyDrop<TaskRef>> {
    let chosen = cpu.chosen.load(Ordering::Relaxed);
    // SAFETY: the scheduler's reference for the running task is given away only under this lock, after `chosen` has changed.
    (!chosen.is_null()).then(|| unsafe { borrowed(chosen) })
}

/// Puts a ready task into a CPU's queue and makes sure that the CPU will look at it. Interrupts are off.
pub(super) fn enqueue_on(target: CpuId, task: TaskRef, why: Why) {
    // As in `find_cpu`.
    let Some(cpu) = cpu::get(target) else { return };
    put_on(cpu::this(), cpu, task, why, cpu::count() == 1);
}

/// [`enqueue_on`], inlined where the reason is known. `alone`: there is one CPU.
#[inline(always)]
fn put_on(me: &Cpu, cpu: &Cpu, task: TaskRef, why: Why, alone: bool) {
    let others = !alone && me.elsewhere.copy_without(&task.may_run, cpu.id);
    let (kick, waits) = {
        let mut rq = cpu.run_queue.lock_irqs_off();
        let now = me.clock.at(time::tsc());
        let from = note_cpu(&task, cpu.id);
        // SAFETY: the queue holds the task for as long as it is locked.
        let queued = unsafe { borrowed(Arc::as_ptr(&task.0)) };
        rq.enqueue(task, why.reason(), now);
        let rank = queued.sched.rank();
        match rank {
            // It may have to wait for its budget, and then doesn't count.
            Rank::Deadline => publish(cpu, &rq),
            _ => cpu.nr_running.store(cpu.nr_running.load(Ordering::Relaxed) + 1, Ordering::Relaxed),
        }
        let running = running(cpu, &rq);
        let busy = running.is_some();
        let resched = running.is_none_or(|running| rq.gives_way(&running, &queued, now));
        let kick = if resched && core::ptr::eq(cpu, me) {
            // Nobody need come for a real-time task that is next here; should it be another one, the switch tells.
            request_own(me, busy)
        } else {
            if rank == Rank::Realtime {
                balance::note_realtime(cpu, &rq);
            }
            if resched { request(me, cpu, busy) } else { look_again(me, cpu, &rq) }
        };
        // An idle CPU that wakes up runs the first of those that it was given.
        let waits = busy || rq.len() > 1;
        if trace::on() {
            record(&queued, why, from, cpu.id, rq.len() as u32, kick);
        }
        (kick, waits)
    };
    if kick {
        kick_now(cpu);
    }
    if waits && others {
        call_idle(me, &me.elsewhere);
    }
}

/// Lets other CPUs know how much is in a queue, which is locked. Figures for placement and balance, stale at once.
#[inline(always)]
pub(super) fn publish(cpu: &Cpu, rq: &Queue) {
    let running = u32::from(!cpu.chosen.load(Ordering::Relaxed).is_null());
    cpu.nr_running.store(rq.len() as u32 + running, Ordering::Relaxed);
    balance::note_realtime(cpu, rq);
}

/// Writes the record of a task that was queued.
#[cold]
fn record(task: &TaskRef, why: Why, from: CpuId, to: CpuId, queued: u32, kicked: bool) {
    let (seq, class) = task.sched.next_place();
    let flags = if kicked { flag::KICKED } else { 0 };
    let waker = current().id;
    match why {
        Why::New => trace::queued(Kind::New, task.id, seq, flags, waker, to, class, queued),
        Why::Wake => trace::queued(Kind::Wake, task.id, seq, flags, waker, to, class, queued),
        Why::Migrate(why) => trace::migrate(task.id, seq, from, to, why, queued, kicked),
    }
}

/// A CPU that runs something, and goes on with it, has got company in its queue, which is locked: it may have to be interrupted sooner.
/// True if it needs an interrupt now.
#[inline(always)]
fn look_again(me: &Cpu, cpu: &Cpu, rq: &Queue) -> bool {
    let look = tick::next_look(cpu, rq, running(cpu, rq).as_deref());
    if core::ptr::eq(cpu, me) {
        me.timers.arm_slice(look, time::tsc());
        return false;
    }
    // It may run without a timer, or with a later one: only it can arm its own.
    look < cpu.timers.slice_end()
}

/// Asks a CPU, whose queue is locked, to pick anew; `busy`: it runs something. True if it needs an interrupt for that.
pub(super) fn request(me: &Cpu, cpu: &Cpu, busy: bool) -> bool {
    if core::ptr::eq(cpu, me) {
        return request_own(me, busy);
    }
    // Relaxed: the lock orders it.
    let asked = cpu.need_resched.load(Ordering::Relaxed);
    cpu.need_resched.store(true, Ordering::Relaxed);
    // A busy CPU that was asked before is on its way: whoever asked has sent the interrupt, or is that CPU itself.
    cpu.sleep.kick() || (busy && !asked)
}

/// [`request`] of this CPU itself.
#[inline(always)]
fn request_own(me: &Cpu, busy: bool) -> bool {
    // Relaxed: the lock orders it.
    me.need_resched.store(true, Ordering::Relaxed);
    // A task of the kernel's own doesn't come to the way out of the kernel; an interrupt takes it there.
    busy && current().user().is_none()
}

/// Sends a CPU the interrupt that makes it look.
pub(super) fn kick_now(cpu: &Cpu) {
    if !chaos::holds_back(cpu) {
        send(cpu);
    }
}

/// See [`kick_now`]; not to be delayed.
pub fn send(cpu: &Cpu) {
    trace::ipi_sent(cpu.id, vector::IPI_RESCHEDULE);
    apic::send_ipi(cpu.apic_id(), vector::IPI_RESCHEDULE);
}

/// A task that may run on `cpus` waits for a busy one: an idle one of them, if any, comes for it. Own CPU, interrupts off.
#[inline]
pub(super) fn call_idle(me: &Cpu, cpus: &AtomicCpuSet) {
    // The exchange is the barrier between what we queued and the look; see the module's text. SeqCst, as the looks: one order of all.
    me.offers.swap(false, Ordering::SeqCst);
    if let Some(idle) = IDLE.first_of_both(cpus, Ordering::SeqCst) {
        call(me, idle);
    }
}

#[cold]
fn call(me: &Cpu, id: CpuId) {
    // Taken off, so that the next one in need calls another. It puts itself back if it finds nothing.
    IDLE.remove(id, Ordering::SeqCst);
    let Some(cpu) = cpu::get(id) else { return };
    let kick = {
        let rq = cpu.run_queue.lock();
        let busy = running(cpu, &rq).is_some();
        request(me, cpu, busy)
    };
    if kick {
        kick_now(cpu);
    }
}

/// This CPU has found nothing in its own queue, and looks into the others' next.
pub(super) fn announce_idle(me: &Cpu) {
    // SeqCst: the barrier before the look into the queues; see the module's text.
    IDLE.insert(me.id, Ordering::SeqCst);
}

/// This CPU has found something.
pub(super) fn leave_idle(me: &Cpu) {
    // Relaxed: only we set it, and who takes it away meanwhile does what we are about to.
    if IDLE.contains(me.id, Ordering::Relaxed) {
        IDLE.remove(me.id, Ordering::SeqCst);
    }
}

/// The task enters a CPU's queue, which is locked. Where it was before.
#[inline(always)]
pub(super) fn note_cpu(task: &Task, to: CpuId) -> CpuId {
    let from = task.cpu.load(Ordering::Relaxed);
    if from != to.0 {
        task.cpu.store(to.0, Ordering::Relaxed);
        if task.sched.last_cpu().is_some() {
            let migrations = &task.stats.migrations;
            migrations.store(migrations.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }
    CpuId(from)
}
