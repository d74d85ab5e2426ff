//! The enclave with its lock, and the tasks that have a seat in it.
//!
//! Invariants: a task has at most one seat, and [`Task::seat`] names it (the seat names the task, so a number that was left behind
//! leads nowhere); a seat holds the scheduler's reference of a task that may run and waits for the agent, and of nobody else. The
//! reference of one that was woken while it was leaving its CPU waits there, too, until its successor has told of that.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::delegation::enclave::{Arrival, Effects, Enclave, NewTask, Occasion, Pick, SlotId};
use vcpu_sched::delegation::task::{Leave, Place};
use vcpu_sched::delegation::txn::Rest;
use vcpu_sched::events::Kind;
use vcpu_sched::ids::{CpuId, Nanos, TaskId};
use vcpu_sched::task::state::State;

use super::super::place::{self, Why};
use super::{EXISTS, ON, STATE, TICKS};
use crate::sync::{BootCell, SpinLock};
use crate::task::{Task, TaskRef, current};
use crate::time;
use crate::trace;

/// [`Task::seat`] of a task that has none.
pub const NO_SEAT: u32 = SlotId::MAX;

/// How often a pick is tried again for a task that may not run here any more.
const ATTEMPTS: u32 = 4;

/// A task's place in the enclave, by its status word.
struct Seat {
    task: Option<TaskId>,
    waiting: Option<TaskRef>,
}

/// See the module's text.
pub struct Hosted {
    /// The tables that decide.
    pub enclave: Enclave<'static>,
    seats: Vec<Seat>,
    /// Tasks that wait for nobody any more, to be put into run queues.
    pub homeless: Vec<TaskRef>,
}

/// Guards the enclave. Taken with interrupts off, after a run queue's lock if one is held.
static HOSTED: BootCell<SpinLock<Hosted>> = BootCell::new();

/// There is an enclave from now on. Boot CPU, before programs run.
pub fn set(enclave: Enclave<'static>) {
    HOSTED.set(SpinLock::new(Hosted { enclave, seats: Vec::new(), homeless: Vec::new() }));
    STATE.store(EXISTS, Ordering::Relaxed);
}

/// Does something with the enclave. What must be done afterwards comes back with the answer; `None`: there is no enclave.
pub fn with<R>(act: impl FnOnce(&mut Hosted, Nanos) -> R) -> Option<(R, Effects)> {
    let mut hosted = HOSTED.get()?.lock();
    let result = act(&mut hosted, time::now());
    let effects = hosted.enclave.take_effects();
    if effects.fall_back.is_some() {
        hosted.empty();
    }
    // Relaxed: hints for the hooks, which look again with the lock held.
    STATE.store(if hosted.enclave.delegates() { EXISTS | ON } else { EXISTS }, Ordering::Relaxed);
    TICKS.store(hosted.enclave.needs_ticks(), Ordering::Relaxed);
    Some((result, effects))
}

/// Where a task may run.
pub fn allowed(task: &Task) -> CpuMask {
    // Relaxed: a snapshot.
    task.may_run.read(Ordering::Relaxed)
}

impl Hosted {
    /// The seat of a task.
    pub fn seat_of(&self, task: &Task) -> Option<SlotId> {
        // Relaxed: written with this lock held.
        let slot = task.seat.load(Ordering::Relaxed);
        self.seats.get(slot as usize).filter(|seat| seat.task == Some(task.id)).map(|_| slot)
    }

    fn waiting(&mut self, slot: SlotId) -> Option<&mut Option<TaskRef>> {
        self.seats.get_mut(slot as usize).map(|seat| &mut seat.waiting)
    }

    fn wait(&mut self, slot: SlotId, task: TaskRef) {
        if let Some(waiting) = self.waiting(slot) {
            *waiting = Some(task);
        }
    }

    /// A ready task that is in no queue and runs nowhere; it may still be on its way off its CPU. `Some`: it doesn't come in.
    pub fn take(&mut self, me: CpuId, task: TaskRef, why: Why, now: Nanos) -> Option<TaskRef> {
        if !self.enclave.delegates() {
            return Some(task);
        }
        let (new, woken) = (matches!(why, Why::New), matches!(why, Why::Wake));
        let Some(slot) = self.seat_of(&task) else {
            // Only its CPU can continue one that isn't left yet, and we don't hear of its leaving.
            return if place::is_tied(&task) { Some(task) } else { self.join(task, new, woken, now) };
        };
        task.sched.note_waiting(new, woken, now);
        match self.enclave.place(slot) {
            Some(Place::Blocked) => {
                record(&task, Kind::Wake);
                // It was blocked, so this is an edge of the table.
                let _ = self.enclave.wake(slot, me, false, now);
                self.wait(slot, task);
            }
            // On its way off; its successor goes on with it.
            Some(Place::OnCpu(_)) => self.wait(slot, task),
            _ => return Some(task),
        }
        None
    }

    fn join(&mut self, task: TaskRef, new: bool, woken: bool, now: Nanos) -> Option<TaskRef> {
        let comes = NewTask {
            gtid: task.id.0.into(),
            parent: 0,
            nice: task.sched.params().nice.get().into(),
            allowed: allowed(&task),
            runtime: Nanos(task.run_ns()),
            cpu: CpuId(task.cpu.load(Ordering::Relaxed)),
            arrival: Arrival::Queued,
        };
        // Full: it runs as a fair one.
        let Ok(slot) = self.enclave.join(&comes, now) else { return Some(task) };
        task.sched.note_waiting(new, woken, now);
        if new || woken {
            record(&task, if new { Kind::New } else { Kind::Wake });
        }
        task.seat.store(slot, Ordering::Relaxed);
        while self.seats.len() <= slot as usize {
            self.seats.push(Seat { task: None, waiting: None });
        }
        if let Some(seat) = self.seats.get_mut(slot as usize) {
            *seat = Seat { task: Some(task.id), waiting: Some(task) };
        }
        None
    }

    /// What this CPU runs next; `above`: something that goes before it waits there. `prev` may go on.
    pub fn pick(&mut self, me: CpuId, prev: Option<&Task>, above: bool, now: Nanos) -> Option<TaskRef> {
        // It may have polled before, and what it runs next may be no task of ours: from here on a commit needs a kick.
        let asked = self.enclave.rest(me, Rest::Runs);
        self.enclave.higher_class(me, above, now);
        if above {
            if asked {
                self.enclave.poll(me, Occasion::Schedule, now);
            }
            return None;
        }
        let prev = prev.and_then(|task| Some((self.seat_of(task)?, task)));
        let prev = prev.filter(|&(slot, _)| self.enclave.place(slot) == Some(Place::OnCpu(me)));
        for _ in 0..ATTEMPTS {
            match self.enclave.pick(me, prev.map(|(slot, _)| slot), now) {
                Pick::Keep(_) => {
                    // SAFETY: the scheduler's reference for it still is this CPU's.
                    return prev.map(|(_, task)| TaskRef::clone(&*unsafe { place::borrowed(task) }));
                }
                Pick::Task(slot) => {
                    let Some(task) = self.waiting(slot).and_then(Option::take) else {
                        // Nobody sits there: a fault of ours, of which only the agent may suffer.
                        let _ = self.enclave.depart(slot, now);
                        continue;
                    };
                    if task.allowed_on(me) {
                        let _ = self.enclave.switched_in(slot, me, now);
                        return Some(task);
                    }
                    // Its mask has just changed, and whoever changed it has not come here yet.
                    let mask = allowed(&task);
                    self.wait(slot, task);
                    let _ = self.enclave.set_allowed(slot, &mask, now);
                }
                // There is no agent among the guest's tasks.
                Pick::Agent | Pick::Idle => return None,
            }
        }
        None
    }

    /// A task is off `me`: its stack is left.
    pub fn left(&mut self, me: CpuId, task: TaskRef, forward: bool, yielded: bool, now: Nanos) -> Option<TaskRef> {
        let Some(slot) = self.seat_of(&task) else { return Some(task) };
        if !matches!(self.enclave.place(slot), Some(Place::OnCpu(_))) {
            return Some(task);
        }
        let ran = self.enclave.ran(slot, now);
        if forward {
            let why = if yielded { Leave::Yield } else { Leave::Preempt };
            let _ = self.enclave.leave(slot, why, ran, now);
            self.wait(slot, task);
            return None;
        }
        if task.state.load() == State::Dead {
            let _ = self.enclave.die(slot, now);
            self.vacate(slot);
            return Some(task);
        }
        let _ = self.enclave.leave(slot, Leave::Blocked, ran, now);
        if self.waiting(slot).is_some_and(|waiting| waiting.is_some()) {
            record(&task, Kind::Wake);
            let _ = self.enclave.wake(slot, me, false, now);
        }
        Some(task)
    }

    /// Nobody sits there any more. Who waited there, if somebody did.
    fn vacate(&mut self, slot: SlotId) -> Option<TaskRef> {
        let seat = self.seats.get_mut(slot as usize)?;
        seat.task = None;
        seat.waiting.take()
    }

    /// The task leaves the enclave. If it waited there, it is homeless.
    pub fn depart(&mut self, slot: SlotId, now: Nanos) {
        let _ = self.enclave.depart(slot, now);
        let waited = self.vacate(slot);
        self.homeless.extend(waited);
    }

    /// There is no agent any more: all leave.
    fn empty(&mut self) {
        let now = time::now();
        for slot in 0..self.seats.len() as SlotId {
            if self.seats.get(slot as usize).is_some_and(|seat| seat.task.is_some()) {
                self.depart(slot, now);
            }
        }
        // They were told to reschedule by the enclave already.
        let _ = self.enclave.take_effects();
    }
}

/// Tells the trace that the task waits in the enclave, where it ran last.
fn record(task: &Task, kind: Kind) {
    if trace::on() {
        let to = CpuId(task.cpu.load(Ordering::Relaxed));
        trace::queued(kind, task.id, task.sched.next_place_record(), 0, current().id, to, task.sched.tag(), 0);
    }
}
