//! The policy that docs/scheduling.md shows: it is the text that stands there, and it does what it says.

mod common;
#[path = "own_policy/lottery.rs"]
mod lottery;

use common::Task;
use lottery::Lottery;
use vcpu_sched::entity::Entity;
use vcpu_sched::ids::Nanos;
use vcpu_sched::params::{Nice, SchedParams};
use vcpu_sched::policy::{EnqueueReason, Policy, PutReason};

#[test]
fn the_documentation_shows_this_file() {
    let shown = include_str!("../../docs/scheduling.md");
    assert!(shown.contains(include_str!("own_policy/lottery.rs")), "copy the file to docs/scheduling.md");
}

#[test]
fn tickets_are_chances() {
    let tasks: Vec<Task> =
        (0..3).map(|id| Task::with_params(id, SchedParams::fair(Nice::clamped(id as i32 * 2)))).collect();
    let mut queue = Lottery::new(42);
    for &task in &tasks {
        queue.enqueue(task, EnqueueReason::New, Nanos::ZERO);
    }
    let mut won = [0_u32; 3];
    for _ in 0..30_000 {
        let task = queue.pick_next(Nanos::ZERO).expect("none is lost");
        won[task.index()] += 1;
        assert_eq!(queue.len(), 2);
        queue.put_prev(&task, Nanos::from_millis(5), PutReason::Preempted);
        queue.enqueue(task, EnqueueReason::Preempted, Nanos::ZERO);
    }
    let tickets: u32 = tasks.iter().map(|task| task.sched().weight()).sum();
    for (task, won) in tasks.iter().zip(won) {
        let expected = 30_000.0 * f64::from(task.sched().weight()) / f64::from(tickets);
        // More than five standard deviations of the binomial distribution, with a fixed seed.
        assert!((f64::from(won) - expected).abs() < 450.0, "{task:?}: {won}, not {expected}");
        assert_eq!(queue.dequeue(task), Some(*task));
    }
    assert_eq!(queue.pick_next(Nanos::ZERO), None);
}
