//! What every policy owes its run queue (a check that the next policies share), and round robin's order.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::policy::fair::Fair;
use vcpu_sched::policy::ordered::{Measure, Ordered};
use vcpu_sched::policy::realtime::Realtime;
use vcpu_sched::policy::round_robin::{DEFAULT_SLICE, RoundRobin};
use vcpu_sched::policy::{EnqueueReason, Policy, PutReason};

mod common;
use common::Task;

#[derive(Clone, Debug)]
enum Op {
    Enqueue(EnqueueReason),
    /// A task number, queued or not.
    Dequeue(u32),
    /// `schedule()`: the current task leaves so.
    Schedule(PutReason),
    Tick(u64),
    /// Tasks with this remainder modulo 3.
    Steal(u32),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let reason = prop::sample::select(vec![EnqueueReason::New, EnqueueReason::Wake, EnqueueReason::Migrate]);
    let put = prop::sample::select(vec![PutReason::Preempted, PutReason::Yield, PutReason::Block, PutReason::Exit]);
    let op = prop_oneof![
        3 => reason.prop_map(Op::Enqueue),
        1 => (0..40u32).prop_map(Op::Dequeue),
        3 => put.prop_map(Op::Schedule),
        2 => (0..30_000_000u64).prop_map(Op::Tick),
        1 => (0..3u32).prop_map(Op::Steal),
    ];
    prop::collection::vec(op, 0..120)
}

/// Plays the part of a run queue, in the order of calls that the contract tells, and checks the contract's invariant: what
/// goes in comes out exactly once.
fn keeps_the_contract(policy: &mut impl Policy<Task>, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut queued = BTreeSet::new();
    let mut current: Option<Task> = None;
    let (mut now, mut picked_at) = (Nanos::ZERO, Nanos::ZERO);
    let mut made = 0;
    let mut all: Vec<Task> = Vec::new();
    for op in ops {
        now += Nanos(1_000);
        match op {
            Op::Enqueue(why) => {
                let task = Task::new(made);
                all.push(task);
                made += 1;
                queued.insert(task.number());
                policy.enqueue(task, why, now);
                if let Some(current) = &current {
                    policy.tick(current, now - picked_at);
                    let _ = policy.wakeup_preempts(current, &task);
                }
            }
            Op::Dequeue(id) => {
                if let Some(task) = all.get(id as usize) {
                    let got = policy.dequeue(task);
                    prop_assert_eq!(got.map(Task::number), queued.take(&id));
                }
            }
            Op::Schedule(why) => {
                if let Some(prev) = current.take() {
                    policy.put_prev(&prev, now - picked_at, why);
                    let again = match why {
                        PutReason::Preempted => Some(EnqueueReason::Preempted),
                        PutReason::Yield => Some(EnqueueReason::Yield),
                        PutReason::Block | PutReason::Exit | PutReason::Migrate => None,
                    };
                    if let Some(why) = again {
                        queued.insert(prev.number());
                        policy.enqueue(prev, why, now);
                    }
                }
                current = policy.pick_next(now);
                picked_at = now;
                match &current {
                    Some(next) => {
                        prop_assert!(queued.remove(&next.number()), "picked what wasn't queued");
                        prop_assert!(policy.slice(next).is_none_or(|slice| slice > Nanos::ZERO));
                    }
                    None => prop_assert!(queued.is_empty(), "idle beside a runnable task"),
                }
            }
            Op::Tick(ran) => {
                now += Nanos(ran);
                if let Some(current) = &current {
                    let must_give_way = policy.tick(current, now - picked_at);
                    prop_assert!(!must_give_way || !queued.is_empty(), "gives way to nobody");
                }
            }
            Op::Steal(remainder) => {
                let got = policy.steal(|task| task.number() % 3 == remainder);
                prop_assert_eq!(got.is_some(), queued.iter().any(|id| id % 3 == remainder));
                if let Some(task) = got {
                    prop_assert_eq!(task.number() % 3, remainder);
                    prop_assert!(queued.remove(&task.number()), "stole what wasn't queued");
                }
            }
        }
        prop_assert_eq!(policy.len(), queued.len());
        prop_assert_eq!(policy.is_empty(), queued.is_empty());
    }
    while let Some(task) = policy.pick_next(now) {
        prop_assert!(queued.remove(&task.number()));
    }
    prop_assert!(queued.is_empty(), "left behind: {:?}", queued);
    Ok(())
}

/// Picks and has the pick run for a slice, so often; who ran.
fn turns(queue: &mut Ordered<Task>, now: &mut Nanos, times: usize) -> Vec<u32> {
    let turn = |_| {
        let task = queue.pick_next(*now).unwrap();
        *now += DEFAULT_SLICE;
        queue.put_prev(&task, DEFAULT_SLICE, PutReason::Preempted);
        queue.enqueue(task, EnqueueReason::Preempted, *now);
        task.number()
    };
    (0..times).map(turn).collect()
}

#[test]
fn who_ran_alone_for_long_owes_nothing_for_it() {
    for measure in [Measure::Count, Measure::Runtime] {
        let (mut queue, mut now) = (Ordered::new(measure), Nanos::ZERO);
        let (old, new) = (Task::new(0), Task::new(1));
        queue.enqueue(old, EnqueueReason::New, now);
        let alone = queue.pick_next(now).unwrap();
        let ran = Nanos::from_secs(10);
        now += ran;
        queue.enqueue(new, EnqueueReason::New, now);
        assert!(queue.tick(&alone, ran));
        queue.put_prev(&alone, ran, PutReason::Preempted);
        queue.enqueue(alone, EnqueueReason::Preempted, now);
        let order = turns(&mut queue, &mut now, 10);
        assert_eq!(order.iter().filter(|&&n| n == 0).count(), 5, "{measure:?}: {order:?}");
    }
}

#[test]
fn who_slept_after_running_alone_owes_nothing_for_it() {
    for measure in [Measure::Count, Measure::Runtime] {
        let (mut queue, mut now) = (Ordered::new(measure), Nanos::ZERO);
        let (old, new) = (Task::new(0), Task::new(1));
        for _ in 0..100 {
            queue.enqueue(old, EnqueueReason::Wake, now);
            let alone = queue.pick_next(now).unwrap();
            queue.put_prev(&alone, DEFAULT_SLICE, PutReason::Block);
            now += DEFAULT_SLICE;
        }
        queue.enqueue(new, EnqueueReason::New, now);
        queue.enqueue(old, EnqueueReason::Wake, now);
        let order = turns(&mut queue, &mut now, 10);
        assert_eq!(order.iter().filter(|&&n| n == 0).count(), 5, "{measure:?}: {order:?}");
    }
}

#[test]
fn a_measure_means_nothing_on_another_cpu() {
    for measure in [Measure::Count, Measure::Runtime] {
        let (mut here, mut there, mut now) = (Ordered::new(measure), Ordered::new(measure), Nanos::ZERO);
        let [mover, stays, other] = [0, 1, 2].map(Task::new);
        here.enqueue(mover, EnqueueReason::New, now);
        here.enqueue(stays, EnqueueReason::New, now);
        turns(&mut here, &mut now, 200);
        there.enqueue(other, EnqueueReason::New, now);
        let moved = here.steal(|task| task.number() == 0).unwrap();
        there.enqueue(moved, EnqueueReason::Migrate, now);
        let order = turns(&mut there, &mut now, 10);
        assert_eq!(order.iter().filter(|&&n| n == 0).count(), 5, "{measure:?}: {order:?}");
        // And it is no way to get rid of what one had more: back home it is where it was, or behind.
        let moved = there.steal(|task| task.number() == 0).unwrap();
        here.enqueue(moved, EnqueueReason::Migrate, now);
        let order = turns(&mut here, &mut now, 10);
        assert_eq!(order.iter().filter(|&&n| n == 0).count(), 5, "{measure:?}: {order:?}");
    }
}

proptest! {
    #[test]
    fn round_robin_keeps_the_contract(ops in ops()) {
        keeps_the_contract(&mut RoundRobin::new(), ops)?;
    }

    #[test]
    fn fair_keeps_the_contract(ops in ops()) {
        keeps_the_contract(&mut Fair::new(CpuId(0)), ops)?;
    }

    #[test]
    fn count_keeps_the_contract(ops in ops()) {
        keeps_the_contract(&mut Ordered::new(Measure::Count), ops)?;
    }

    #[test]
    fn runtime_keeps_the_contract(ops in ops()) {
        keeps_the_contract(&mut Ordered::new(Measure::Runtime), ops)?;
    }

    #[test]
    fn realtime_keeps_the_contract(ops in ops()) {
        keeps_the_contract(&mut Realtime::new(), ops)?;
    }
}

#[test]
fn round_robin_serves_in_turn() {
    let tasks = [0, 1, 2].map(Task::new);
    let mut queue = RoundRobin::new();
    for task in tasks {
        queue.enqueue(task, EnqueueReason::New, Nanos::ZERO);
    }
    let mut order = Vec::new();
    for _ in 0..7 {
        let task = queue.pick_next(Nanos::ZERO).unwrap();
        order.push(task.number());
        queue.put_prev(&task, DEFAULT_SLICE, PutReason::Preempted);
        queue.enqueue(task, EnqueueReason::Preempted, Nanos::ZERO);
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0]);
    // 1 is first now; a thief gets the first that it wants, and the order of the others stays.
    assert_eq!(queue.steal(|task| task.number() != 1), Some(tasks[2]));
    assert_eq!(queue.pick_next(Nanos::ZERO), Some(tasks[1]));
    assert_eq!(queue.pick_next(Nanos::ZERO), Some(tasks[0]));
}

#[test]
fn round_robin_gives_way_only_after_its_slice_and_only_to_somebody() {
    let mut queue = RoundRobin::with_slice(Nanos::from_millis(2));
    let [current, other] = [0, 1].map(Task::new);
    assert_eq!(queue.slice(&current), None);
    assert!(!queue.tick(&current, Nanos::from_secs(1)));
    queue.enqueue(other, EnqueueReason::Wake, Nanos::ZERO);
    assert_eq!(queue.slice(&current), Some(Nanos::from_millis(2)));
    assert!(!queue.wakeup_preempts(&current, &other));
    assert!(!queue.tick(&current, Nanos(1_999_999)));
    assert!(queue.tick(&current, Nanos::from_millis(2)));
}
