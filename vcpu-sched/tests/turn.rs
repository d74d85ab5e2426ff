//! A turn is what its calls are one by one: the same tasks run, in the same order, for as long, with the same books.

mod common;

use common::Task;
use proptest::prelude::*;
use vcpu_sched::entity::Entity;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::params::{Class, DeadlineParams, Nice, RtPriority, SchedParams};
use vcpu_sched::policy::{EnqueueReason, PutReason};
use vcpu_sched::runqueue::{PolicyKind, RunQueue};

const TASKS: u32 = 8;

#[derive(Clone, Debug)]
enum Op {
    /// The current task gives way, of its own will or not.
    Turn {
        yields: bool,
    },
    /// It waits, and the next is picked.
    Block,
    /// A task that waits is woken.
    Wake(u32),
    /// A queued task is taken out, and comes back at once.
    Move(u32),
    /// A task that has this remainder modulo 3 is taken out, and comes back at once.
    Steal(u32),
    Tick,
    Time(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => any::<bool>().prop_map(|yields| Op::Turn { yields }),
        1 => Just(Op::Block),
        2 => (0..TASKS).prop_map(Op::Wake),
        1 => (0..TASKS).prop_map(Op::Move),
        1 => (0..3u32).prop_map(Op::Steal),
        1 => Just(Op::Tick),
        4 => (0..8_000_000u64).prop_map(Op::Time),
    ];
    prop::collection::vec(op, 0..200)
}

/// Mostly ordinary tasks.
fn params() -> impl Strategy<Value = SchedParams> {
    let priority = |priority| RtPriority::new(priority).expect("valid");
    let ms = Nanos::from_millis;
    let deadline = move |run, every| DeadlineParams::new(ms(run), ms(every), ms(every)).expect("valid");
    prop_oneof![
        12 => (-20..20i32).prop_map(|nice| SchedParams::fair(Nice::clamped(nice))),
        1 => Just(SchedParams::of_class(Class::Idle)),
        1 => Just(SchedParams::of_class(Class::Stop)),
        2 => (1..4u32).prop_map(move |p| SchedParams::of_class(Class::Fifo(priority(p)))),
        2 => (1..4u32).prop_map(move |p| SchedParams::of_class(Class::RoundRobin(priority(p)))),
        1 => (1..5u64, 5..30u64).prop_map(move |(run, every)| SchedParams::of_class(Class::Deadline(deadline(run, every)))),
    ]
}

/// One of the two that are compared.
struct Side {
    queue: RunQueue<Task>,
    current: Option<Task>,
    tasks: Vec<Task>,
}

impl Side {
    fn new(kind: PolicyKind, classes: &[SchedParams]) -> Self {
        let mut queue = RunQueue::new(CpuId(0), kind);
        let tasks: Vec<Task> = (0..).zip(classes).map(|(id, class)| Task::with_params(id, *class)).collect();
        for task in &tasks {
            queue.enqueue(*task, EnqueueReason::New, Nanos::ZERO);
        }
        let current = queue.pick_next(Nanos::ZERO);
        Self { queue, current, tasks }
    }

    /// Carries out what both sides do in the same way.
    fn act(&mut self, op: &Op, asleep: &[bool], now: Nanos) {
        match *op {
            Op::Block => {
                if let Some(prev) = self.current.take() {
                    self.queue.put_prev(&prev, PutReason::Block, now);
                }
                self.current = self.queue.pick_next(now);
            }
            Op::Wake(i) if asleep[i as usize] => {
                self.queue.enqueue(self.tasks[i as usize], EnqueueReason::Wake, now);
            }
            Op::Move(i) => {
                if let Some(task) = self.queue.dequeue(&self.tasks[i as usize]) {
                    self.queue.enqueue(task, EnqueueReason::Migrate, now);
                }
            }
            Op::Steal(remainder) => {
                if let Some(task) = self.queue.steal(|task| task.number() % 3 == remainder) {
                    self.queue.enqueue(task, EnqueueReason::Migrate, now);
                }
            }
            Op::Tick => {
                let _ = self.queue.event(now);
                if let Some(current) = self.current {
                    let _ = self.queue.tick(&current, now);
                }
            }
            Op::Turn { .. } | Op::Wake(_) | Op::Time(_) => {}
        }
    }
}

proptest! {
    #[test]
    fn a_turn_is_its_calls_in_one(
        kind in prop::sample::select(PolicyKind::ALL.to_vec()),
        classes in prop::collection::vec(params(), TASKS as usize),
        ops in ops(),
    ) {
        let (mut one, mut many) = (Side::new(kind, &classes), Side::new(kind, &classes));
        let mut asleep = [false; TASKS as usize];
        let mut now = Nanos::ZERO;
        for op in ops {
            now += Nanos(1);
            let before = one.current;
            match op {
                Op::Turn { yields } => {
                    let (Some(prev), Some(same)) = (one.current.take(), many.current.take()) else {
                        (one.current, many.current) = (one.queue.pick_next(now), many.queue.pick_next(now));
                        continue;
                    };
                    let waiting = one.queue.len();
                    let turn = if one.queue.is_ordinary(&prev) {
                        one.queue.turn_ordinary(prev, yields, now)
                    } else {
                        one.queue.turn(prev, yields, now)
                    };
                    many.queue.put_back(same, yields, now);
                    many.current = many.queue.pick_next(now);
                    if let Some(turn) = turn {
                        one.current = Some(turn.next);
                        prop_assert_eq!(turn.slice, one.queue.slice(&turn.next));
                        if turn.steady {
                            prop_assert_eq!(one.queue.len(), waiting);
                            prop_assert_eq!(one.queue.next_event(), None);
                        }
                    }
                }
                Op::Time(passes) => now += Nanos(passes),
                _ => {
                    one.act(&op, &asleep, now);
                    many.act(&op, &asleep, now);
                    match op {
                        Op::Block => if let Some(prev) = before {
                            asleep[prev.index()] = true;
                        },
                        Op::Wake(i) => asleep[i as usize] = false,
                        _ => {}
                    }
                }
            }
            prop_assert_eq!(one.current, many.current);
            prop_assert_eq!(one.queue.len(), many.queue.len());
            prop_assert_eq!(one.queue.highest_realtime(), many.queue.highest_realtime());
            if let (Some(a), Some(b)) = (one.current, many.current) {
                prop_assert_eq!(one.queue.slice(&a), many.queue.slice(&b));
            }
            for (a, b) in one.tasks.iter().zip(&many.tasks) {
                prop_assert_eq!(a.sched().accounting().snapshot(), b.sched().accounting().snapshot());
            }
        }
    }
}
