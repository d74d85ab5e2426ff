//! The deadline and the real-time class, the order of the classes, and changes of parameters, on one CPU.

mod common;

use common::Task;
use common::machine::OneCpu;
use proptest::prelude::*;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::entity::{Entity, Rank};
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::params::{Class, DeadlineParams, Nice, RtPriority, SchedParams};
use vcpu_sched::policy::deadline::{Budget, Overcommitted, choose_cpu};
use vcpu_sched::policy::realtime::RR_SLICE;
use vcpu_sched::policy::{EnqueueReason, PutReason};
use vcpu_sched::runqueue::{PolicyKind, RunQueue};

const fn ms(ms: u64) -> Nanos {
    Nanos::from_millis(ms)
}

fn deadline(runtime: Nanos, deadline: Nanos, period: Nanos) -> SchedParams {
    SchedParams::of_class(Class::Deadline(DeadlineParams::new(runtime, deadline, period).expect("valid")))
}

fn fifo(priority: u32) -> SchedParams {
    SchedParams::of_class(Class::Fifo(RtPriority::new(priority).expect("valid")))
}

fn rr(priority: u32) -> SchedParams {
    SchedParams::of_class(Class::RoundRobin(RtPriority::new(priority).expect("valid")))
}

/// When each task ran; the CPU must never be idle.
fn runs(machine: &mut OneCpu, time: Nanos) -> Vec<(Task, Nanos, Nanos)> {
    let mut runs = Vec::new();
    let (mut at, end) = (machine.now, machine.now + time);
    machine.run_until(end, |task, time| {
        runs.push((task, at, at + time));
        at += time;
    });
    assert_eq!(at, end, "it was idle");
    runs
}

fn within(runs: &[(Task, Nanos, Nanos)], task: Task, from: Nanos, to: Nanos) -> Nanos {
    let parts = runs.iter().filter(|(who, ..)| *who == task).map(|&(_, start, end)| end.min(to) - start.max(from));
    parts.fold(Nanos::ZERO, |sum, part| sum + part)
}

proptest! {
    /// Tasks that always want to run, whose promises fill the CPU up to the last millisecond: each gets its runtime by every
    /// deadline, and not a nanosecond more in any period.
    #[test]
    fn every_promise_is_kept_up_to_a_full_cpu(
        wishes in prop::collection::vec((1..40u64, 1..20u64, 0..3u64), 1..8),
    ) {
        let mut left = 1_000_000_u64; // parts per million
        let mut machine = OneCpu::new(PolicyKind::Fair);
        let mut tasks = Vec::new();
        machine.add(Task::new(100), EnqueueReason::New); // takes what is left
        for (id, (period, runtime, shorter)) in wishes.into_iter().enumerate() {
            let period = period * 10;
            let within = period - period * shorter / 10;
            let runtime = Nanos::from_micros((runtime * within * 50).min(within * left / 1000));
            let Ok(params) = DeadlineParams::new(runtime, ms(within), ms(period)) else { continue };
            left -= (runtime.0 / within).min(left);
            let task = Task::with_params(id as u32, SchedParams::of_class(Class::Deadline(params)));
            tasks.push((task, params));
        }
        for &(task, _) in &tasks {
            machine.add(task, EnqueueReason::New);
        }
        let runs = runs(&mut machine, Nanos::from_secs(4));
        for (task, params) in tasks {
            let mut start = Nanos::ZERO;
            while start + params.period() <= Nanos::from_secs(4) {
                let by_deadline = within(&runs, task, start, start + params.deadline());
                let in_all = within(&runs, task, start, start + params.period());
                prop_assert_eq!(by_deadline, params.runtime(), "{:?} {:?} from {}", task, params, start);
                prop_assert_eq!(in_all, params.runtime(), "{:?} {:?} from {}", task, params, start);
                start += params.period();
            }
        }
    }
}

#[test]
fn a_deadline_task_that_wakes_late_takes_no_more_than_its_share() {
    let mut machine = OneCpu::new(PolicyKind::Fair);
    let greedy = Task::with_params(1, deadline(ms(5), ms(10), ms(10)));
    let victim = Task::with_params(2, deadline(ms(5), ms(10), ms(10)));
    for task in [greedy, victim] {
        machine.add(task, EnqueueReason::New);
    }
    // The first one blocks at once with its whole budget, and comes back 1 ms before its deadline: with the old deadline it
    // would run twice in a row.
    let first = machine.current.expect("one runs");
    machine.schedule(PutReason::Block);
    machine.run_until(ms(9), |_, _| ());
    machine.add(first, EnqueueReason::Wake);
    let mut ran = [Nanos::ZERO; 3];
    let end = ms(19);
    machine.run_until(end, |task, time| ran[task.index()] += time);
    assert!(ran[first.index()] <= ms(5), "{ran:?}");
    let other = if first == greedy { victim } else { greedy };
    assert!(ran[other.index()] >= Nanos::from_micros(4_999), "{ran:?}");
}

#[test]
fn a_yield_waits_for_the_next_period() {
    let mut machine = OneCpu::new(PolicyKind::Fair);
    let task = Task::with_params(0, deadline(ms(3), ms(10), ms(10)));
    machine.add(task, EnqueueReason::New);
    machine.now = ms(1);
    machine.schedule(PutReason::Yield);
    assert_eq!((machine.current, machine.queue.len()), (None, 0));
    assert_eq!(machine.queue.next_event(), Some(ms(10)));
    assert!(!machine.queue.event(Nanos(9_999_999)));
    assert!(machine.queue.event(ms(10)));
    assert_eq!(machine.queue.len(), 1);
    machine.now = ms(10);
    machine.schedule(PutReason::Preempted);
    assert_eq!(machine.current, Some(task));
    assert_eq!(machine.queue.slice(&task), Some(ms(3)), "its whole budget, and not what was left over");
}

#[test]
fn an_overrun_is_paid_back() {
    let mut queue = RunQueue::new(CpuId(0), PolicyKind::Fair);
    let task = Task::with_params(0, deadline(ms(2), ms(10), ms(10)));
    queue.enqueue(task, EnqueueReason::New, Nanos::ZERO);
    assert_eq!(queue.pick_next(Nanos::ZERO), Some(task));
    assert!(queue.tick(&task, ms(3)), "the timer came a millisecond late");
    queue.put_prev(&task, PutReason::Preempted, ms(3));
    queue.enqueue(task, EnqueueReason::Preempted, ms(3));
    assert_eq!(queue.pick_next(ms(3)), None);
    assert_eq!(queue.pick_next(ms(10)), Some(task));
    assert_eq!(queue.slice(&task), Some(ms(1)));
}

#[test]
fn a_cpu_promises_95_percent_and_the_first_that_fits_is_chosen() {
    let half = DeadlineParams::new(ms(5), ms(10), ms(10)).expect("valid");
    let mut budgets = [Budget::new(); 3];
    let all = CpuMask::full(3);
    let mut chosen = Vec::new();
    for _ in 0..3 {
        let cpu = choose_cpu(&half, &all, CpuId(1), |cpu| budgets[cpu.index()]).expect("fits");
        budgets[cpu.index()].admit(&half).expect("was looked at");
        chosen.push(cpu.0);
    }
    assert_eq!(chosen, [1, 0, 2], "the preferred one, then in order; two halves are more than 95 %");
    assert_eq!(choose_cpu(&half, &all, CpuId(1), |cpu| budgets[cpu.index()]), Err(Overcommitted));
    assert_eq!(budgets[0].parts_per_million(), 500_000);
    assert_eq!(budgets[0].admit(&half), Err(Overcommitted));
    budgets[0].release(&half);
    assert_eq!(budgets[0], Budget::new());
    assert_eq!(
        choose_cpu(&half, &CpuMask::one_shot(CpuId(2)), CpuId(0), |cpu| budgets[cpu.index()]),
        Err(Overcommitted)
    );
    assert_eq!(choose_cpu(&half, &all, CpuId(1), |cpu| budgets[cpu.index()]), Ok(CpuId(0)));
}

#[test]
fn round_robin_tasks_are_equal_to_a_slice_and_fifo_tasks_run_until_they_stop() {
    let mut machine = OneCpu::new(PolicyKind::Fair);
    for id in 0..4 {
        machine.add(Task::with_params(id, rr(50)), EnqueueReason::New);
    }
    let mut ran = [Nanos::ZERO; 4];
    machine.run_until(Nanos::from_secs(10), |task, time| {
        ran[task.index()] += time;
        let (least, most) = (ran.iter().min().unwrap(), ran.iter().max().unwrap());
        assert!(*most - *least <= RR_SLICE, "{ran:?}");
    });
    let mut machine = OneCpu::new(PolicyKind::Fair);
    let [first, second] = [0, 1].map(|id| Task::with_params(id, fifo(10)));
    machine.add(first, EnqueueReason::New);
    machine.add(second, EnqueueReason::New);
    machine.run_until(Nanos::from_secs(5), |task, _| assert_eq!(task, first));
    machine.schedule(PutReason::Yield);
    assert_eq!(machine.current, Some(second));
    // A more important one comes and goes: whoever was preempted goes on, at the head.
    let important = Task::with_params(2, fifo(11));
    machine.add(important, EnqueueReason::Wake);
    assert_eq!(machine.current, Some(important));
    machine.schedule(PutReason::Block);
    assert_eq!(machine.current, Some(second));
    // A new priority puts the waiting one above.
    assert!(machine.queue.change_params(&first, &fifo(12), machine.now));
    assert_eq!(machine.queue.highest_realtime(), 12);
    machine.schedule(PutReason::Preempted);
    assert_eq!(machine.current, Some(first));
}

#[test]
fn stealing_takes_the_most_important_and_leaves_what_is_bound() {
    let mut queue = RunQueue::new(CpuId(0), PolicyKind::Fair);
    let stop = Task::with_params(0, SchedParams::of_class(Class::Stop));
    let bound = Task::with_params(1, deadline(ms(1), ms(10), ms(10)));
    let [low, high] = [Task::with_params(2, fifo(3)), Task::with_params(3, rr(7))];
    let normal = Task::new(4);
    for task in [normal, low, stop, high, bound] {
        queue.enqueue(task, EnqueueReason::New, Nanos::ZERO);
    }
    assert_eq!(queue.len(), 5);
    assert_eq!(queue.steal_realtime(7, |_| true), None);
    assert_eq!(queue.steal_realtime(2, |task| *task != high), Some(low));
    assert_eq!(queue.steal(|_| true), Some(high));
    assert_eq!(queue.steal(|_| true), Some(normal));
    assert_eq!(queue.steal(|_| true), None);
    assert_eq!(queue.len(), 2);
    assert_eq!(queue.pick_next(Nanos::ZERO), Some(stop));
    queue.put_prev(&stop, PutReason::Exit, Nanos::ZERO);
    assert_eq!(queue.pick_next(Nanos::ZERO), Some(bound));
}

#[derive(Clone, Debug)]
enum Op {
    Wake(usize),
    Schedule(PutReason),
    Change(usize, SchedParams),
    Dequeue(usize),
    Steal(u32),
    Time(u64),
}

fn params() -> impl Strategy<Value = SchedParams> {
    prop_oneof![
        4 => (-20..20i32).prop_map(|nice| SchedParams::fair(Nice::clamped(nice))),
        1 => Just(SchedParams::of_class(Class::Idle)),
        1 => Just(SchedParams::of_class(Class::Stop)),
        2 => (1..100u32).prop_map(fifo),
        2 => (1..100u32).prop_map(rr),
        2 => (1..5u64, 5..20u64, 20..30u64).prop_map(|(run, within, every)| deadline(ms(run), ms(within), ms(every))),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let put = prop::sample::select(vec![PutReason::Preempted, PutReason::Yield, PutReason::Block]);
    let task = 0..10usize;
    let op = prop_oneof![
        3 => task.clone().prop_map(Op::Wake),
        4 => put.prop_map(Op::Schedule),
        2 => (task.clone(), params()).prop_map(|(task, params)| Op::Change(task, params)),
        1 => task.prop_map(Op::Dequeue),
        1 => (0..3u32).prop_map(Op::Steal),
        3 => (0..20_000_000u64).prop_map(Op::Time),
    ];
    prop::collection::vec(op, 0..200)
}

proptest! {
    /// Whatever happens to parameters of queued, running and sleeping tasks: what goes in comes out once, the highest class
    /// goes first, and a task has what it asked for last as soon as it runs.
    #[test]
    fn classes_keep_their_order_and_nothing_is_lost(kind in prop::sample::select(PolicyKind::ALL.to_vec()), ops in ops()) {
        let mut queue = RunQueue::new(CpuId(3), kind);
        prop_assert_eq!(queue.kind(), kind);
        let tasks: Vec<Task> = (0..10).map(Task::new).collect();
        let mut queued = [false; 10];
        let mut current: Option<Task> = None;
        let mut now = Nanos::ZERO;
        let throttled = |task: &Task, queue: &RunQueue<Task>| {
            task.sched().rank() == Rank::Deadline && queue.next_event().is_some()
        };
        for op in ops {
            now += Nanos(100);
            match op {
                Op::Wake(i) => if !queued[i] && current != Some(tasks[i]) {
                    queue.enqueue(tasks[i], EnqueueReason::Wake, now);
                    queued[i] = true;
                    if let Some(current) = &current {
                        let _ = queue.tick(current, now);
                        let (woken, running) = (tasks[i].sched().rank(), current.sched().rank());
                        if woken != running {
                            prop_assert_eq!(queue.wakeup_preempts(current, &tasks[i]), woken < running);
                        }
                    }
                },
                Op::Schedule(why) => {
                    if let Some(prev) = current.take() {
                        queue.put_prev(&prev, why, now);
                        let again = match why {
                            PutReason::Preempted => Some(EnqueueReason::Preempted),
                            PutReason::Yield => Some(EnqueueReason::Yield),
                            _ => None,
                        };
                        if let Some(why) = again {
                            queue.enqueue(prev, why, now);
                            queued[prev.index()] = true;
                        }
                    }
                    current = queue.pick_next(now);
                    if let Some(next) = current {
                        prop_assert!(std::mem::take(&mut queued[next.index()]), "{:?} wasn't queued", next);
                        for task in tasks.iter().filter(|task| queued[task.index()] && !throttled(task, &queue)) {
                            prop_assert!(task.sched().rank() >= next.sched().rank(), "{:?} waits", task);
                        }
                        let wanted = next.sched().params();
                        prop_assert_eq!(next.sched().tag(), wanted.tag());
                        prop_assert!(queue.slice(&next).is_none_or(|slice| slice > Nanos::ZERO));
                    } else {
                        prop_assert!(tasks.iter().filter(|task| queued[task.index()]).all(|task| throttled(task, &queue)));
                    }
                }
                Op::Change(i, new) => {
                    queue.change_params(&tasks[i], &new, now);
                    prop_assert_eq!(tasks[i].sched().params(), new);
                }
                Op::Dequeue(i) => {
                    let got = queue.dequeue(&tasks[i]);
                    prop_assert_eq!(got.is_some(), std::mem::take(&mut queued[i]));
                }
                Op::Steal(remainder) => if let Some(task) = queue.steal(|task| task.number() % 3 == remainder) {
                    prop_assert_eq!(task.number() % 3, remainder);
                    prop_assert!(task.sched().rank() > Rank::Deadline);
                    prop_assert!(std::mem::take(&mut queued[task.index()]));
                },
                Op::Time(passes) => {
                    now += Nanos(passes);
                    queue.event(now);
                }
            }
            prop_assert!(queue.len() <= queued.iter().filter(|&&q| q).count());
        }
        // Time enough for every budget: all of them come out.
        if let Some(current) = current {
            queue.put_prev(&current, PutReason::Exit, now);
        }
        now += Nanos::from_secs(10);
        while let Some(task) = queue.pick_next(now) {
            prop_assert!(std::mem::take(&mut queued[task.index()]));
            queue.put_prev(&task, PutReason::Exit, now);
        }
        prop_assert_eq!(queued, [false; 10]);
    }

    /// To put a task back is to take it off and enqueue it: the same tasks run, in the same order, with the same books.
    #[test]
    fn put_back_is_both_calls_in_one(
        kind in prop::sample::select(PolicyKind::ALL.to_vec()),
        classes in prop::collection::vec(params(), 1..6),
        turns in prop::collection::vec((any::<bool>(), 0..8_000_000u64, any::<bool>()), 0..100),
    ) {
        let count = classes.len() as u32;
        let mut queues = [RunQueue::new(CpuId(0), kind), RunQueue::new(CpuId(0), kind)];
        for (number, class) in (0..).zip(&classes) {
            for (queue, first) in queues.iter_mut().zip([0, count]) {
                let task = Task::new(first + number);
                task.sched().request(class);
                queue.enqueue(task, EnqueueReason::New, Nanos::ZERO);
            }
        }
        let mut now = Nanos::ZERO;
        for (yields, passes, ticks) in turns {
            let [in_one, in_two] = queues.each_mut().map(|queue| queue.pick_next(now));
            prop_assert_eq!(in_one.map(|task| task.number() + count), in_two.map(|task| task.number()));
            now += Nanos(passes);
            let (Some(in_one), Some(in_two)) = (in_one, in_two) else {
                // Whether anything came of it, the pick tells.
                for queue in &mut queues {
                    let _ = queue.event(now);
                }
                continue;
            };
            if ticks {
                prop_assert_eq!(queues[0].tick(&in_one, now), queues[1].tick(&in_two, now));
                now += Nanos(passes / 3);
            }
            let normal = queues[0].put_back(in_one, yields, now);
            prop_assert_eq!(normal, in_one.sched().rank() == Rank::Normal);
            let (put, why) = if yields {
                (PutReason::Yield, EnqueueReason::Yield)
            } else {
                (PutReason::Preempted, EnqueueReason::Preempted)
            };
            queues[1].put_prev(&in_two, put, now);
            queues[1].enqueue(in_two, why, now);
            prop_assert_eq!(queues[0].len(), queues[1].len());
            let [one, two] = [in_one, in_two].map(|task| task.sched().accounting().snapshot());
            prop_assert_eq!(one, two);
        }
    }

    /// Each nanosecond of a task's life is counted once.
    #[test]
    fn accounts_add_up(steps in prop::collection::vec((0..3u8, 1..1_000_000u64), 0..100)) {
        let mut queue = RunQueue::new(CpuId(0), PolicyKind::Fair);
        let task = Task::new(0);
        let (mut now, mut running, mut wakes, mut switches) = (Nanos(5), false, 0, 0);
        queue.enqueue(task, EnqueueReason::New, now);
        let mut asleep = false;
        for (step, passes) in steps {
            now += Nanos(passes);
            match (step, running, asleep) {
                (0, false, false) => running = queue.pick_next(now).is_some(),
                (1, true, _) => {
                    queue.put_prev(&task, PutReason::Block, now);
                    (running, asleep, switches) = (false, true, switches + 1);
                }
                (2, true, _) => {
                    queue.put_back(task, false, now);
                    (running, switches) = (false, switches + 1);
                }
                (_, _, true) => {
                    queue.enqueue(task, EnqueueReason::Wake, now);
                    (asleep, wakes) = (false, wakes + 1);
                }
                _ => {}
            }
        }
        if asleep {
            queue.enqueue(task, EnqueueReason::Wake, now);
            wakes += 1;
        }
        if !running {
            prop_assert_eq!(queue.pick_next(now), Some(task));
        }
        queue.put_prev(&task, PutReason::Exit, now);
        let seen = task.sched().accounting().snapshot();
        prop_assert_eq!(seen.run + seen.wait + seen.sleep, now - Nanos(5));
        prop_assert_eq!(seen.wakeups, wakes);
        prop_assert_eq!(seen.switches(), switches + 1);
        prop_assert_eq!(u64::from(seen.latency.iter().sum::<u32>()), wakes);
        prop_assert_eq!(seen.migrations, 0);
    }
}
