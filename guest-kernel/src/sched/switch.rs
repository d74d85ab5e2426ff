//! Leaving one task for the next: what becomes of the one, and which the other is; the change itself is `handover`'s. Entered by `sched`
//! only, with interrupts off.
//!
//! `need_resched`: whoever wants another CPU to look again sets it with that CPU's run queue locked. It is cleared under the same
//! lock, at the head of [`reschedule`], and again when something was picked after the lock had been open in between. So a request
//! either comes before the pick, which then takes into account what it was made for, or survives it; and none is left
//! behind that nobody will look at, which would keep others from sending an interrupt.

use alloc::sync::Arc;
use core::mem::ManuallyDrop;
use core::sync::atomic::Ordering;

use vcpu_sched::events::{MigrateReason, Side, flag};
use vcpu_sched::ids::Nanos;
use vcpu_sched::placement::Level;
use vcpu_sched::policy::PutReason;
use vcpu_sched::runqueue::Turn;
use vcpu_sched::task::state::{Action, Event, State};

use super::handover::switch_to;
use super::{Queue, balance, delegated, place, tick, with_queue_of};
use crate::arch::fpu;
use crate::cpu::{self, Cpu};
use crate::rcu;
use crate::sync::{IrqGuard, SpinLockGuard};
use crate::task::{Task, TaskRef};
use crate::time;
use crate::trace;

/// Access to this CPU's run queue.
type RunQueueGuard = SpinLockGuard<'static, Queue, ()>;

/// Why the current task is left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// It gives way.
    Yield,
    /// It waits, if [`Event::Block`] still stands.
    Block,
    /// It is made to give way. An idle task, too, leaves so.
    Preempted,
    /// It has ended.
    Exit,
}

impl Leave {
    const fn event(self) -> Event {
        match self {
            Self::Yield | Self::Block => Event::Deschedule,
            Self::Preempted => Event::Preempt,
            Self::Exit => Event::Exit,
        }
    }

    /// The state in which a task mostly leaves so.
    const fn expects(self) -> State {
        match self {
            Self::Block => State::Blocking,
            Self::Yield | Self::Preempted | Self::Exit => State::Running,
        }
    }

    /// Whether a task that leaves so mostly stays in its queue.
    const fn stays(self) -> bool {
        matches!(self, Self::Yield | Self::Preempted)
    }
}

/// What became of the task that is being left: its state, as the low bits of a switch record's flags have it, and whose it is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Left {
    /// It has ended.
    Dead = State::Dead as u8,
    /// It waits.
    Blocked = State::Blocked as u8,
    /// It is ready, and the reference that it ran on is still ours: it has to be sent on, or was woken while it left; or it is the idle
    /// task.
    Ready = State::Ready as u8,
    /// It is ready, and the reference that it ran on is the queue's now.
    Queued = State::Ready as u8 | 1 << 3,
    /// The same, in the normal class.
    QueuedNormal = State::Ready as u8 | 1 << 4,
}

impl Left {
    #[inline(always)]
    fn is_queued(self) -> bool {
        self as u8 >= Self::Queued as u8
    }

    /// The number of its state.
    #[inline(always)]
    fn state(self) -> u8 {
        self as u8 & flag::STATE
    }
}

/// Leaves the current task of this CPU, and switches to whoever runs next. Interrupts are off.
///
/// Inlined into its few callers, each of which has one reason: the state table then shrinks to an exchange of constants.
#[inline(always)]
pub(super) fn reschedule(me: &'static Cpu, why: Leave) {
    // SAFETY: the scheduler owns a reference for the running task.
    let prev: &Task = unsafe { &*me.current.load(Ordering::Relaxed) };

    let mut rq = me.run_queue.lock_irqs_off();
    // Relaxed: the lock orders it, see the module's text.
    me.need_resched.store(false, Ordering::Relaxed);
    let tsc = time::tsc();
    let now = me.clock.at(tsc);
    let left = 'left: {
        if core::ptr::eq(prev, me.idle.load(Ordering::Relaxed)) {
            prev.sched.accounting().idled(now - Nanos(me.picked_time.load(Ordering::Relaxed)));
            break 'left Left::Ready;
        }
        if why.stays()
            && is_simple(me, prev)
            && prev.state.apply_if(State::Running, why.event()) == Some(Action::Enqueue)
        {
            // SAFETY: as in `put_prev`.
            let held = unsafe { place::borrowed(prev) };
            // One of the two is chosen here, so that the code of each knows what it need not ask.
            let turn = if rq.is_ordinary(&held) {
                take_turns(me, prev, held, rq, why, true, tsc, now)
            } else {
                take_turns(me, prev, held, rq, why, false, tsc, now)
            };
            match turn {
                None => return,
                Some((guard, left)) => {
                    rq = guard;
                    break 'left left;
                }
            }
        }
        put_prev(me, prev, &mut rq, why, now)
    };
    go_on(me, prev, rq, left, why == Leave::Preempted, tsc, now);
}

/// May the task stay in this CPU's queue, with nobody but that to be asked who is next? The run queue is locked.
#[inline(always)]
fn is_simple(me: &Cpu, prev: &Task) -> bool {
    !delegated::exists() && prev.allowed_on(me.id) && !balance::realtime_waits_elsewhere(me)
}

/// The commonest switch: the task that is left, `held`, goes back to the queue, and the next, which may be the same, is the next there.
/// All that time the run queue is locked. `Some`: nobody was found, and all but the first is still to be done.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn take_turns(
    me: &'static Cpu,
    prev: &Task,
    held: ManuallyDrop<TaskRef>,
    mut rq: RunQueueGuard,
    why: Leave,
    ordinary: bool,
    tsc: u64,
    now: Nanos,
) -> Option<(RunQueueGuard, Left)> {
    let (held, yields) = (ManuallyDrop::into_inner(held), why == Leave::Yield);
    let turn = if ordinary { rq.turn_ordinary(held, yields, now) } else { rq.turn(held, yields, now) };
    let Some(Turn { next, slice, steady }) = turn else { return Some((rq, Left::Queued)) };
    if !next.allowed_on(me.id) {
        let mut left = Left::Queued;
        rq = send_away(me, rq, prev, &mut left, next, now);
        return Some((rq, left));
    }
    let event = if steady { None } else { rq.next_event() };
    let next = choose(me, next, ordinary, slice, event, tsc, now);
    if !steady {
        place::publish(me, &rq);
    } else if !ordinary {
        balance::note_realtime(me, &rq);
    }
    let same = core::ptr::eq(next, prev);
    // SAFETY: held by the reference that just moved to `chosen`.
    let next = unsafe { &*next };
    if trace::on() && !same {
        let flags = Left::Queued.state() | if why == Leave::Preempted { flag::PREEMPTED } else { 0 };
        record(me, prev, next, flags, tsc);
    }
    drop(rq);
    if same {
        return None;
    }
    if cpu::count() > 1 {
        let offers = me.offer.copy_without(&prev.may_run, me.id);
        me.offers.store(offers, Ordering::Relaxed);
    }
    switch_to(me, prev, next);
    None
}

/// `next`, which was picked, runs here next, for `slice` at a time, and something is due in its queue at `event`. The queue's reference is
/// `chosen`'s from now on. `ordinary`: the task is known to be of the normal class.
#[inline(always)]
fn choose(
    me: &Cpu,
    next: TaskRef,
    ordinary: bool,
    slice: Option<Nanos>,
    event: Option<Nanos>,
    tsc: u64,
    now: Nanos,
) -> *const Task {
    if next.state.apply(Event::Pick).is_err() {
        picked_wrongly(&next);
    }
    let level = if ordinary { Level::NORMAL } else { next.sched.level() };
    me.level.store(level.get(), Ordering::Relaxed);
    me.picked_at.store(tsc, Ordering::Relaxed);
    me.picked_time.store(now.0, Ordering::Relaxed);
    me.timers.arm_slice(tick::look_at(me, slice, event, tsc), tsc);
    let next = Arc::into_raw(next.0);
    me.chosen.store(next.cast_mut(), Ordering::Relaxed);
    next
}

/// Tells the state table and the queue what becomes of the task that is being left.
#[inline(always)]
fn put_prev(me: &Cpu, prev: &Task, rq: &mut Queue, why: Leave, now: Nanos) -> Left {
    // SAFETY: tasks live in Arcs, and the scheduler owns a reference for the running one: this one. It is given away only
    // where the queue gets it.
    let held = unsafe { place::borrowed(prev) };
    let expected = prev.state.apply_if(why.expects(), why.event());
    match expected.map_or_else(|| prev.state.apply(why.event()), Ok) {
        Ok(Action::Enqueue) => {
            // A block that a wake-up overtook is no yield: the task asked for nothing and must not be made to pay.
            let yields = why == Leave::Yield;
            if !delegated::leaves(prev) && prev.allowed_on(me.id) {
                let normal = rq.put_back(ManuallyDrop::into_inner(held), yields, now);
                return if normal { Left::QueuedNormal } else { Left::Queued };
            }
            send_on(me, &held, rq, yields, now)
        }
        Ok(Action::Nothing) => {
            rq.put_prev(&held, PutReason::Block, now);
            Left::Blocked
        }
        Ok(Action::Reap) => {
            rq.put_prev(&held, PutReason::Exit, now);
            Left::Dead
        }
        Err(_) => left_wrongly(prev, why.event()),
    }
}

/// It may not stay here, or an agent tells where it goes: its successor sends it on.
#[cold]
fn send_on(me: &Cpu, prev: &TaskRef, rq: &mut Queue, yields: bool, now: Nanos) -> Left {
    rq.put_prev(prev, if yields { PutReason::Yield } else { PutReason::Preempted }, now);
    if delegated::leaves(prev) {
        me.gave_way.store(yields, Ordering::Relaxed);
    }
    me.forward.store(true, Ordering::Relaxed);
    Left::Ready
}

/// Picks the next task, and switches to it if it is another one.
#[inline(always)]
fn go_on(me: &'static Cpu, prev: &Task, mut rq: RunQueueGuard, mut left: Left, preempted: bool, tsc: u64, now: Nanos) {
    let idle: *const Task = me.idle.load(Ordering::Relaxed);
    let was_idle = core::ptr::eq(prev, idle);
    // One ordinary task in, one out: the queue's figures stay as they are.
    let mut settled = left == Left::QueuedNormal;
    // The pick is an ordinary task, for which there is less to ask below.
    let mut normal;
    let next = loop {
        if balance::realtime_waits_elsewhere(me)
            && let Some(from) = balance::realtime_source(me, rq.highest_realtime())
        {
            settled = false;
            rq = unlocked(me, rq, prev, &mut left, |me, own| balance::pull_realtime(me, from, own));
        }
        if let Some(t) = delegated::pick(me, &mut rq, prev, now) {
            if core::ptr::eq(Arc::as_ptr(&t.0), prev) {
                // It goes on.
                me.forward.store(false, Ordering::Relaxed);
            }
            (settled, normal) = (false, false);
            break Some(t);
        }
        normal = rq.has_only_normal();
        settled &= normal;
        let Some(t) = rq.pick_next(now) else {
            settled = false;
            if cpu::count() == 1 {
                break None;
            }
            rq = unlocked(me, rq, prev, &mut left, |me, _| {
                place::announce_idle(me);
                balance::pull(me);
            });
            // What was pulled, or has come by itself while the lock was open.
            if rq.is_empty() {
                break None;
            }
            continue;
        };
        if t.allowed_on(me.id) {
            break Some(t);
        }
        settled = false;
        rq = send_away(me, rq, prev, &mut left, t, now);
    };
    let next: *const Task = match next {
        Some(t) => {
            let (slice, event) = if normal { (rq.normal_slice(&t), None) } else { (rq.slice(&t), rq.next_event()) };
            choose(me, t, normal, slice, event, tsc, now)
        }
        None => {
            me.level.store(Level::IDLE.get(), Ordering::Relaxed);
            me.picked_at.store(tsc, Ordering::Relaxed);
            me.picked_time.store(now.0, Ordering::Relaxed);
            me.timers.arm_slice(tick::next_look(me, &rq, None), tsc);
            me.chosen.store(core::ptr::null_mut(), Ordering::Relaxed);
            idle
        }
    };
    let mut offers = false;
    if !settled {
        place::publish(me, &rq);
        if !core::ptr::eq(next, idle) && me.need_resched.load(Ordering::Relaxed) {
            // Asked while the lock was open, when we looked idle: perhaps to come for a task that waits elsewhere. We have
            // found one of our own; another idle CPU shall look.
            me.need_resched.store(false, Ordering::Relaxed);
            me.offer.fill_without(me.id);
            offers = true;
        }
    }
    let same = core::ptr::eq(next, prev);
    // SAFETY: `next` is held by the reference that just moved here.
    let next_task = unsafe { &*next };
    if trace::on() && !same {
        let flags = left.state() | if preempted && !was_idle { flag::PREEMPTED } else { 0 };
        // Nothing was written since `tsc` was read, but by who opened the lock.
        record(me, prev, next_task, flags, if settled { tsc } else { time::tsc() });
    }
    drop(rq);
    if same {
        if offers {
            place::call_idle(me, &me.offer);
        }
        if !was_idle && !left.is_queued() {
            // It was woken while it was leaving: the waker's reference came on top of the one that it runs on.
            // SAFETY: `into_raw` made it.
            drop(unsafe { Arc::from_raw(next) });
        }
        return;
    }
    if was_idle {
        place::leave_idle(me);
        rcu::leave_idle();
    }
    if !left.is_queued() && !was_idle {
        me.leaving.store(core::ptr::from_ref(prev).cast_mut(), Ordering::Relaxed);
        if me.forward.load(Ordering::Relaxed) || delegated::roams(prev) {
            fpu::flush_live(me, prev);
        }
    }
    if cpu::count() > 1 {
        if left.is_queued() && !offers {
            offers = me.offer.copy_without(&prev.may_run, me.id);
        }
        me.offers.store(offers, Ordering::Relaxed);
    }
    switch_to(me, prev, next_task);
}

/// What was picked may not run here. Takes the pick back, and sends the task elsewhere; `prev`, if it is that (it was woken while it was
/// leaving, or its affinity has just changed), by its successor, with the reference that it runs on.
#[cold]
#[inline(never)]
fn send_away(
    me: &'static Cpu,
    mut rq: RunQueueGuard,
    prev: &Task,
    left: &mut Left,
    picked: TaskRef,
    now: Nanos,
) -> RunQueueGuard {
    rq.put_prev(&picked, PutReason::Migrate, now);
    if core::ptr::eq(Arc::as_ptr(&picked.0), prev) {
        if left.is_queued() {
            *left = Left::Ready;
            core::mem::forget(picked);
        }
        me.forward.store(true, Ordering::Relaxed);
        return rq;
    }
    unlocked(me, rq, prev, left, |me, _| {
        fpu::flush_live(me, &picked);
        place::place_again(picked, MigrateReason::Affinity);
    })
}

/// Opens the run queue's lock for `f`, which gets the highest real-time priority in the queue. Until it is locked again, the CPU
/// looks idle to others: it runs nothing that could be preempted. If `prev`, which blocks, is woken meanwhile, it is in our
/// queue (it can go nowhere else), and the record of the switch must say so: that of the wake-up has been written.
#[cold]
fn unlocked(
    me: &'static Cpu,
    rq: RunQueueGuard,
    prev: &Task,
    left: &mut Left,
    f: impl FnOnce(&Cpu, u8),
) -> RunQueueGuard {
    me.chosen.store(core::ptr::null_mut(), Ordering::Relaxed);
    me.level.store(Level::IDLE.get(), Ordering::Relaxed);
    place::publish(me, &rq);
    let (above, places) = (rq.highest_realtime(), prev.sched.place_records());
    drop(rq);
    f(me, above);
    let rq = me.run_queue.lock_irqs_off();
    if *left == Left::Blocked && prev.sched.place_records() != places {
        *left = Left::Ready;
    }
    rq
}

/// Writes the record of a switch at `tsc`. The run queue is locked.
#[cold]
fn record(me: &Cpu, prev: &Task, next: &Task, flags: u8, tsc: u64) {
    // What is running is no more in the queue. Both are as of now: the lock is ours, and they were published.
    let runs = u32::from(!me.chosen.load(Ordering::Relaxed).is_null());
    let queued = me.nr_running.load(Ordering::Relaxed).wrapping_sub(runs);
    let side = |t: &Task| {
        let (seq, class) = t.sched.next_place();
        Side { task: t.id, seq, class }
    };
    trace::switch(me, side(prev), side(next), flags, queued, tsc);
}

#[cold]
fn picked_wrongly(task: &Task) -> ! {
    panic!("task {} picked while {:?}", task.id.0, task.state.load())
}

#[cold]
fn left_wrongly(task: &Task, event: Event) -> ! {
    panic!("task {} left its CPU by {event:?} while {:?}", task.id.0, task.state.load())
}

/// How long a task has run, its present slice included. Callable from interrupt context.
pub fn ran(task: &Task) -> Nanos {
    let _irq = IrqGuard::new();
    let before = || Nanos(task.run_ns());
    // With its queue locked the slice is either in the counter, or the CPU's present one.
    let exact = with_queue_of(task, |cpu, rq| {
        let runs = place::running(cpu, rq).is_some_and(|running| core::ptr::eq(Arc::as_ptr(&running.0), task));
        let picked = Nanos(cpu.picked_time.load(Ordering::Relaxed));
        let slice = if runs { cpu.clock.at(time::tsc()) - picked } else { Nanos::ZERO };
        before() + slice
    });
    exact.unwrap_or_else(before)
}
