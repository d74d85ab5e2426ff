//! `TimerQueue` against a list as its model.

use proptest::prelude::*;
use vcpu_sched::ids::Nanos;
use vcpu_sched::timer::{TimerId, TimerQueue};

#[derive(Clone, Debug)]
enum Op {
    Arm(u64),
    /// The n-th timer ever armed, modulo their number.
    Cancel(usize),
    Pop(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Few deadlines, so that many are equal.
    let deadline = || prop_oneof![8 => 0..10u64, 1 => any::<u64>()];
    let op = prop_oneof![
        3 => deadline().prop_map(Op::Arm),
        1 => any::<usize>().prop_map(Op::Cancel),
        2 => deadline().prop_map(Op::Pop),
    ];
    prop::collection::vec(op, 0..200)
}

proptest! {
    #[test]
    fn behaves_as_a_sorted_list(ops in ops()) {
        let mut queue = TimerQueue::new();
        let mut armed: Vec<(Nanos, usize)> = Vec::new(); // in the order they were armed
        let mut ids: Vec<TimerId> = Vec::new();
        for op in ops {
            match op {
                Op::Arm(at) => {
                    let number = ids.len();
                    let id = queue.arm(Nanos(at), number);
                    prop_assert_eq!(id.deadline(), Nanos(at));
                    prop_assert!(!ids.contains(&id));
                    ids.push(id);
                    armed.push((Nanos(at), number));
                }
                Op::Cancel(which) => {
                    if let Some(number) = which.checked_rem(ids.len()) {
                        let there = armed.iter().position(|&(_, n)| n == number);
                        prop_assert_eq!(queue.cancel(ids[number]), there.map(|at| armed.remove(at).1));
                    }
                }
                Op::Pop(now) => {
                    let first = armed.iter().copied().min().filter(|&(at, _)| at <= Nanos(now));
                    armed.retain(|&timer| Some(timer) != first);
                    prop_assert_eq!(queue.pop_expired(Nanos(now)), first.map(|(_, number)| number));
                }
            }
            prop_assert_eq!(queue.next_deadline(), armed.iter().map(|&(at, _)| at).min());
            prop_assert_eq!(queue.len(), armed.len());
            prop_assert_eq!(queue.is_empty(), armed.is_empty());
        }
    }
}
