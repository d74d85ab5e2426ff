//! Virtual time at the ends of its range. The class's promises are tested from outside, in tests/fairness.rs.

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::*;
use crate::entity::SchedEntity;
use crate::ids::TaskId;
use crate::params::{Class, Nice, SchedParams};
use crate::policy::heap;

#[derive(Clone)]
struct Task(Rc<(u32, SchedEntity)>);

impl Task {
    fn new(id: u32, params: SchedParams) -> Self {
        Self(Rc::new((id, SchedEntity::new(params))))
    }
}

impl Entity for Task {
    fn id(&self) -> TaskId {
        TaskId(self.0.0)
    }

    fn sched(&self) -> &SchedEntity {
        &self.0.1
    }
}

fn starting_at(zero: u64) -> Fair<Task> {
    let mut queue = Fair::new(CpuId(0));
    queue.average = Average::starting_at(zero);
    queue
}

/// The order in which `count` tasks of different weights run, with sleeps in between.
fn order(mut queue: Fair<Task>, count: u32) -> Vec<u32> {
    for id in 0..count {
        let params = SchedParams::fair(Nice::clamped(id as i32 * 7 % 40 - 20));
        queue.enqueue(Task::new(id, params), EnqueueReason::New, Nanos::ZERO);
    }
    let mut order = Vec::new();
    for turn in 0..2_000_u64 {
        let Some(task) = queue.pick_next(Nanos::ZERO) else { break };
        order.push(task.id().0);
        let ran = Nanos(turn * 7919 % 4_000_000);
        let (put, back) = match turn % 5 {
            0 => (PutReason::Block, EnqueueReason::Wake),
            1 => (PutReason::Yield, EnqueueReason::Yield),
            2 => (PutReason::Migrate, EnqueueReason::Migrate),
            _ => (PutReason::Preempted, EnqueueReason::Preempted),
        };
        queue.put_prev(&task, ran, put);
        queue.enqueue(task, back, Nanos::ZERO);
    }
    assert_eq!(order.len(), 2_000);
    order
}

#[test]
fn where_virtual_time_starts_changes_nothing() {
    for count in [1, 2, 3, 9] {
        let expected = order(starting_at(0), count);
        for zero in [u64::MAX, u64::MAX - 5_000_000, i64::MAX as u64, i64::MAX as u64 - 3_000_000, 1 << 63] {
            assert_eq!(order(starting_at(zero), count), expected, "{count} tasks from {zero:#x}");
        }
    }
}

#[test]
fn the_longest_run_of_the_lightest_task_overflows_nothing() {
    let mut queue = starting_at(u64::MAX - 1);
    let idle = Task::new(0, SchedParams::of_class(Class::Idle));
    let greedy = Task::new(1, SchedParams::fair(Nice::MIN));
    queue.enqueue(idle.clone(), EnqueueReason::New, Nanos::ZERO);
    let first = queue.pick_next(Nanos::ZERO).expect("queued");
    queue.enqueue(greedy, EnqueueReason::New, Nanos::ZERO);
    // It kept the CPU for three months; times 341, virtual time is half around its circle.
    queue.put_prev(&first, Nanos(u64::MAX / 2 / 342), PutReason::Preempted);
    queue.enqueue(first, EnqueueReason::Preempted, Nanos::ZERO);
    for _ in 0..1000 {
        let next = queue.pick_next(Nanos::ZERO).expect("queued");
        assert_eq!(next.id(), TaskId(1));
        queue.put_prev(&next, DEFAULT_SLICE, PutReason::Preempted);
        queue.enqueue(next, EnqueueReason::Preempted, Nanos::ZERO);
    }
}

#[test]
fn ghosts_leave_when_nobody_is_left() {
    let mut queue = starting_at(0);
    let tasks: Vec<Task> = (0..3).map(|id| Task::new(id, SchedParams::NORMAL)).collect();
    for task in &tasks {
        queue.enqueue(task.clone(), EnqueueReason::New, Nanos::ZERO);
    }
    let mut left = 0;
    while let Some(task) = queue.pick_next(Nanos::ZERO) {
        queue.put_prev(&task, Nanos::from_millis(1), PutReason::Block);
        left += usize::from(!queue.ghosts.is_empty());
    }
    assert!(left > 0, "none was ahead when it blocked");
    assert!(queue.ghosts.is_empty());
    for task in &tasks {
        queue.enqueue(task.clone(), EnqueueReason::Wake, Nanos::ZERO);
        assert_eq!(queue.lag(task), 0);
    }
}

#[test]
fn virtual_time_is_real_time_by_weight() {
    for nice in -20..20 {
        let weight = weight::of_nice(Nice::clamped(nice));
        let inverse = weight::inverse(weight);
        for real in [0, 1, 1_000, 3_000_000, 1 << 40] {
            let exact = real as u128 * 1024 / u128::from(weight);
            let virtual_time = u128::from(weight::virtual_time(real, weight, inverse));
            // The inverse of the greatest weight has 16 bits.
            assert!(virtual_time.abs_diff(exact) <= 1 + exact / 40_000, "nice {nice}: {virtual_time}, not {exact}");
            let back = weight::real_time(virtual_time as u64, weight);
            assert!(
                back.abs_diff(real) <= 1 + real / 20_000 + u64::from(weight / 512),
                "nice {nice}: {back}, not {real}"
            );
        }
    }
    assert_eq!(weight::virtual_time(u64::MAX, weight::IDLE, weight::inverse(weight::IDLE)), i64::MAX as u64);
}

/// How many entries a heap moves for one turn, and for one coming and going, with that many tasks.
fn moves(count: u32) -> f64 {
    const TURNS: u64 = 2_000;
    let mut queue = starting_at(0);
    for id in 0..count {
        queue.enqueue(Task::new(id, SchedParams::NORMAL), EnqueueReason::New, Nanos::ZERO);
    }
    let spare = Task::new(count, SchedParams::NORMAL);
    let before = heap::tests::moves();
    for turn in 0..TURNS {
        let task = queue.pick_next(Nanos::ZERO).expect("queued");
        queue.put_prev(&task, Nanos(turn * 7919 % 4_000_000), PutReason::Preempted);
        queue.enqueue(task, EnqueueReason::Preempted, Nanos::ZERO);
        queue.enqueue(spare.clone(), EnqueueReason::Wake, Nanos::ZERO);
        queue.dequeue(&spare).expect("just queued");
    }
    (heap::tests::moves() - before) as f64 / TURNS as f64
}

#[test]
fn work_grows_with_the_logarithm_of_the_tasks() {
    // Up to 6 operations of heaps, each at most once along a path of the depth log4(n), and the last move.
    for count in [10, 100, 1_000, 10_000, 100_000] {
        let (moves, depth) = (moves(count), f64::from(count).log(4.0));
        assert!(moves > 1.0, "they are counted");
        assert!(moves <= 6.0 * (depth + 2.0), "{count} tasks: {moves} moves");
    }
}
