//! One mistake in a right trace, and the invariant that has to see it.

use std::vec::Vec;

use proptest::prelude::*;
use proptest::sample::Index;

use super::{STEPS, check, complete, world};
use crate::checker::{Invariant, Outcome, Stamped};
use crate::events::{ClassTag, Event, Kind, Record, Side};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::task::state::State;

/// Longer than every grace.
const LONG: Nanos = Nanos::from_secs(20);

fn event(record: &Stamped) -> Event {
    Event::decode(&record.record).expect("the world writes known kinds")
}

/// The tasks in a place record, with their counts.
fn places(record: &Stamped) -> Vec<(TaskId, u16)> {
    super::super::order::parts(record, &event(record)).into_iter().flatten().map(|p| (p.task, p.seq)).collect()
}

fn next_of(record: &Stamped) -> Option<Side> {
    match event(record) {
        Event::Switch { next, .. } => Some(next).filter(|n| n.class != ClassTag::IDLE),
        _ => None,
    }
}

/// The task that leaves, and its state afterwards.
fn leaver(record: &Stamped) -> Option<(TaskId, u8)> {
    match event(record) {
        Event::Switch { prev_state, prev_class, .. } if prev_class != ClassTag::IDLE => {
            Some((TaskId(record.record.task), prev_state))
        }
        _ => None,
    }
}

/// The next place record of a task.
fn then(trace: &[Stamped], at: usize, task: TaskId) -> Option<usize> {
    (at + 1..trace.len()).find(|&i| places(&trace[i]).iter().any(|&(t, _)| t == task))
}

/// Counts the task's place records from `at` on one up, so that one more fits in before.
fn make_room(trace: &mut [Stamped], at: usize, task: TaskId) {
    for record in &mut trace[at..] {
        let next = next_of(record).filter(|n| n.task == task);
        if places(record).iter().any(|&(t, _)| t == task) {
            if next.is_some() {
                let seq = (record.record.a >> 32) as u16;
                record.record.a = record.record.a & !(0xffff << 32) | u64::from(seq.wrapping_add(1)) << 32;
            } else {
                record.record.seq = record.record.seq.wrapping_add(1);
            }
        }
    }
}

/// Chooses one of the places that `fits`, makes the mistake there and checks. `None`: this trace has no such place.
fn mutate(
    seed: u64,
    index: Index,
    fits: impl Fn(&[Stamped], usize) -> bool,
    mistake: impl FnOnce(&mut Vec<Stamped>, usize),
) -> Option<Outcome> {
    let mut trace = world::trace(seed, STEPS);
    let candidates: Vec<usize> = (0..trace.len()).filter(|&i| fits(&trace, i)).collect();
    if candidates.is_empty() {
        return None;
    }
    let at = *index.get(&candidates);
    mistake(&mut trace, at);
    Some(check(&trace, complete()))
}

/// The property of one mistake: `$invariant` sees it.
macro_rules! mistakes {
    ($($(#[$meta:meta])* $name:ident: $invariant:ident, $fits:expr, $mistake:expr;)*) => {
        proptest! {
            $($(#[$meta])* #[test]
            fn $name(seed: u64, index: Index) {
                let outcome = mutate(seed, index, $fits, $mistake);
                prop_assume!(outcome.is_some());
                let outcome = outcome.expect("assumed");
                let tally = outcome.tally(Invariant::$invariant);
                prop_assert!(tally.violations > 0, "{:#?}", outcome.first);
                prop_assert!(outcome.first.iter().any(|v| v.invariant == Invariant::$invariant && !v.around.is_empty()));
            })*
        }
    };
}

mistakes! {
    a_dropped_record: NoLostTask,
        |trace, i| places(&trace[i]).iter().any(|&(task, _)| then(trace, i, task).is_some()),
        |trace, i| { trace.remove(i); };
    a_repeated_record: NoLostTask,
        |trace, i| leaver(&trace[i]).is_none_or(|(_, s)| s != State::Dead as u8) && !places(&trace[i]).is_empty()
            && event(&trace[i]) != Event::Plain(Kind::Halt) && trace[i].record.kind != Kind::New as u8,
        |trace, i| { let again = trace[i]; trace.insert(i + 1, again); };
    a_second_beginning: OnePlace,
        |trace, i| trace[i].record.kind == Kind::New as u8 && !trace[i..].iter().filter_map(leaver)
            .any(|(task, state)| task.0 == trace[i].record.task && state == State::Dead as u8),
        |trace, i| { let again = trace[i]; trace.insert(i + 1, again); };
    a_pick_on_another_cpu: PickedAfterQueued,
        |trace, i| next_of(&trace[i]).is_some(),
        |trace, i| trace[i].cpu = CpuId(trace[i].cpu.0 + 1);
    a_switch_on_another_cpu: SwitchesAlternate,
        |trace, i| leaver(&trace[i]).is_some() && trace[..i].iter().any(|r| r.cpu.0 == trace[i].cpu.0 + 1),
        |trace, i| trace[i].cpu = CpuId(trace[i].cpu.0 + 1);
    a_leaver_that_was_not_there: SwitchesAlternate,
        |trace, i| leaver(&trace[i]).is_some(),
        |trace, i| trace[i].record.task ^= 1 << 20;
    a_task_that_left_ready_and_never_woke: PickedAfterQueued,
        |trace, i| leaver(&trace[i]).is_some_and(|(task, state)| state == State::Ready as u8
            && then(trace, i, task).is_some_and(|j| next_of(&trace[j]).is_some_and(|n| n.task == task))),
        |trace, i| trace[i].record.flags = State::Blocked as u8;
    a_move_of_a_waiting_task: OnePlace,
        |trace, i| leaver(&trace[i]).is_some_and(|(task, state)| state == State::Ready as u8
            && then(trace, i, task).is_some_and(|j| trace[j].record.kind == Kind::Migrate as u8)),
        |trace, i| trace[i].record.flags = State::Blocked as u8;
    a_wake_up_of_a_ready_task: WakeOnce,
        |trace, i| leaver(&trace[i]).is_some_and(|(task, state)| state == State::Blocked as u8
            && then(trace, i, task).is_some_and(|j| trace[j].record.kind == Kind::Wake as u8)),
        |trace, i| trace[i].record.flags = State::Ready as u8;
    a_leaver_that_still_runs: OnePlace,
        |trace, i| leaver(&trace[i]).is_some(),
        |trace, i| trace[i].record.flags = State::Running as u8;
    life_after_death: DeadStaysDead,
        |trace, i| leaver(&trace[i]).is_some_and(|(task, state)| state != State::Dead as u8
            && then(trace, i, task).is_some()),
        |trace, i| trace[i].record.flags = State::Dead as u8;
    a_wake_up_into_another_queue: PickedAfterQueued,
        |trace, i| trace[i].record.kind == Kind::Wake as u8 && then(trace, i, TaskId(trace[i].record.task))
            .is_some_and(|j| next_of(&trace[j]).is_some_and(|n| n.task.0 == trace[i].record.task)),
        |trace, i| trace[i].record.a ^= 1 << 40;
    a_move_from_another_queue: OnePlace,
        |trace, i| trace[i].record.kind == Kind::Migrate as u8,
        |trace, i| trace[i].record.a ^= 1 << 8;
    a_second_wake_up: WakeOnce,
        |trace, i| trace[i].record.kind == Kind::Wake as u8 && then(trace, i, TaskId(trace[i].record.task))
            .is_some_and(|j| next_of(&trace[j]).is_some_and(|n| n.task.0 == trace[i].record.task)),
        |trace, i| {
            let again = trace[i];
            make_room(&mut trace[i + 1..], 0, TaskId(again.record.task));
            trace.insert(i + 1, Stamped { record: Record { seq: again.record.seq.wrapping_add(1), ..again.record }, ..again });
        };
    a_wake_up_before_the_stack_was_left: LeftBeforeEnqueued,
        |trace, i| next_of(&trace[i]).is_some(),
        |trace, i| {
            let (runs, next) = (trace[i], next_of(&trace[i]).expect("fits"));
            make_room(&mut trace[i + 1..], 0, next.task);
            let elsewhere = CpuId(runs.cpu.0 ^ 1);
            let record = Record::queued(Kind::Wake, 0, next.task, next.seq.wrapping_add(1), 0, TaskId(1), elsewhere, next.class, 1);
            trace.insert(i + 1, Stamped { record, ..runs });
        };
    two_cpus_on_one_stack: OneStack,
        |trace, i| next_of(&trace[i]).is_some(),
        |trace, i| {
            let (runs, next) = (trace[i], next_of(&trace[i]).expect("fits"));
            make_room(&mut trace[i + 1..], 0, next.task);
            let idle = Side { task: TaskId(90), seq: 0, class: ClassTag::IDLE };
            let record = Record::switch(0, idle, Side { seq: next.seq.wrapping_add(1), ..next }, 0, 0);
            trace.insert(i + 1, Stamped { cpu: CpuId(9), time: runs.time, record });
        };
    a_task_on_a_forbidden_cpu: Affinity,
        |trace, i| next_of(&trace[i]).is_some(),
        |trace, i| {
            let (runs, task) = (trace[i], next_of(&trace[i]).expect("fits").task);
            let (kind, a) = (Kind::Affinity as u8, !(1 << runs.cpu.0));
            // Told at the beginning, and no other mask after it.
            trace.retain(|r| r.record.kind != kind || r.record.task != task.0);
            let record = Record { task: task.0, kind, a, b: 1 << 32, ..Record::default() };
            for r in trace.iter_mut() {
                r.time += LONG;
            }
            trace.insert(0, Stamped { cpu: runs.cpu, time: Nanos::ZERO, record });
        };
    an_idle_cpu_beside_its_queue: NoIdleBesideWork,
        |trace, i| next_of(&trace[i]).is_some_and(|n| n.class.policy == 0) && leaver(&trace[i]).is_none() && i > 0
            && trace[i - 1].record.kind != Kind::Affinity as u8,
        |trace, i| {
            for record in &mut trace[i..] {
                record.time += LONG;
            }
        };
    a_lower_class_beside_a_higher: PriorityOrder,
        |trace, i| leaver(&trace[i]).is_some_and(|(_, s)| s == State::Ready as u8) && i > 0
            && next_of(&trace[i]).is_some_and(|n| n.class.policy == 255) && matches!(event(&trace[i]),
                Event::Switch { prev_class, .. } if prev_class.policy == 0)
            && matches!(event(&trace[i - 1]), Event::Queued { .. }),
        |trace, i| {
            for record in &mut trace[i..] {
                record.time += LONG;
            }
        };
    a_task_that_leaves_before_it_came: RuntimeSum,
        |trace, i| leaver(&trace[i]).is_some() && trace[..i].iter().any(|r| r.cpu == trace[i].cpu && next_of(r).is_some()),
        |trace, i| trace[i].time = Nanos::ZERO;
    an_empty_loss: LostCounted,
        |_, i| i > 0,
        |trace, i| {
            let record = Record { kind: Kind::Lost as u8, ..Record::default() };
            let at = trace[i];
            trace.insert(i, Stamped { record, ..at });
        };
}

#[test]
fn a_ring_that_lost_more_than_it_told() {
    let trace = world::trace(3, STEPS);
    let mut checker = crate::checker::Checker::new(complete());
    for &record in &trace {
        checker.feed(record);
    }
    checker.ring_total(CpuId(0), 0);
    checker.ring_total(CpuId(1), 7);
    let outcome = checker.finish();
    assert_eq!((outcome.tally(Invariant::LostCounted).checked, outcome.violations()), (2, 1));
    assert!(outcome.first[0].what.contains("counts 7 lost records, its records 0"), "{}", outcome.first[0]);
}

proptest! {
    #[test]
    fn a_violation_shows_what_came_before(seed: u64, index: Index) {
        let other_cpu = |trace: &mut Vec<Stamped>, i: usize| trace[i].cpu = CpuId(trace[i].cpu.0 + 1);
        let outcome = mutate(seed, index, |trace, i| next_of(&trace[i]).is_some(), other_cpu);
        prop_assume!(outcome.is_some());
        let first = outcome.and_then(|o| o.first.into_iter().next());
        let violation = first.expect("found");
        prop_assert!(violation.around.len() > 1 && violation.around.len() <= 8);
        prop_assert_eq!(violation.around.last().map(|r| r.time), Some(violation.time));
    }
}

/// CPU 0 has two tasks that take turns every 20 ms, none waits for long; CPU 1 idles.
#[test]
fn an_idle_cpu_beside_another_s_queue() {
    let class = ClassTag { prio: 120, policy: 0 };
    let (idle, task) = (|n| Side { task: TaskId(n), seq: 0, class: ClassTag::IDLE }, |n| TaskId(100 + n));
    let side = |n, seq| Side { task: task(n), seq, class };
    let mut trace = Vec::new();
    let mut write = |cpu, ms, record| trace.push(Stamped { cpu: CpuId(cpu), time: Nanos::from_millis(ms), record });
    write(1, 0, Record { task: 2, kind: Kind::Halt as u8, ..Record::default() });
    for n in 0..2 {
        let affinity = Record { task: task(n).0, kind: Kind::Affinity as u8, a: 0b11, b: 1 << 32, ..Record::default() };
        write(0, 0, affinity);
        write(0, 0, Record::queued(Kind::New, 0, task(n), 1, 0, TaskId(1), CpuId(0), class, 1));
    }
    write(0, 1, Record::switch(0, idle(1), side(0, 2), 0, 1));
    for turn in 0..20_u32 {
        let (leaves, comes, seq) = (turn % 2, 1 - turn % 2, turn as u16);
        write(
            0,
            20 + 20 * u64::from(turn),
            Record::switch(0, side(leaves, seq + 3 - leaves as u16), side(comes, seq + 2 + leaves as u16), 1, 1),
        );
    }
    let right = check(&trace[..trace.len() / 4], complete());
    assert!(right.holds(), "{:#?}", right.first);
    let outcome = check(&trace, complete());
    assert_eq!(outcome.violations(), outcome.tally(Invariant::NoIdleBesideWork).violations, "{:#?}", outcome.first);
    assert!(outcome.first.iter().any(|v| v.cpu == CpuId(1)), "{:#?}", outcome.first);
}
