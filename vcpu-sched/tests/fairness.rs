//! What the fair class promises, on one CPU with a virtual clock.

mod common;

use std::collections::BTreeMap;

use common::Task;
use common::machine::OneCpu;
use proptest::prelude::*;
use vcpu_sched::entity::Entity;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::params::{Class, Nice, SchedParams, Slice};
use vcpu_sched::policy::fair::{DEFAULT_SLICE, Fair};
use vcpu_sched::policy::{EnqueueReason, Policy, PutReason};
use vcpu_sched::runqueue::PolicyKind;

/// Runs `tasks` against each other for `time`. How long each ran.
fn share(machine: &mut OneCpu, time: Nanos) -> BTreeMap<u32, u64> {
    let mut ran = BTreeMap::new();
    let end = machine.now + time;
    machine.run_until(end, |task, time| *ran.entry(task.number()).or_default() += time.0);
    ran
}

#[test]
fn of_equals_none_is_ever_more_than_a_slice_behind() {
    for n in [2_u32, 3, 7, 50] {
        let mut machine = OneCpu::new(PolicyKind::Fair);
        for id in 0..n {
            machine.add(Task::new(id), EnqueueReason::New);
        }
        let mut ran = vec![0_i64; n as usize];
        let mut total = 0_i64;
        machine.run_until(Nanos::from_secs(2), |task, time| {
            ran[task.index()] += time.0 as i64;
            total += time.0 as i64;
            for &ran in &ran {
                let lag = total / i64::from(n) - ran;
                assert!(lag.abs() <= DEFAULT_SLICE.0 as i64, "{n} tasks: lag {lag}");
            }
        });
        assert_eq!(total, 2_000_000_000, "the CPU was never idle");
    }
}

#[test]
fn nice_values_share_by_weight() {
    for (a, b) in [(0, 1), (0, 5), (-5, 5), (-20, 0), (0, 19), (-20, 19)] {
        let mut machine = OneCpu::new(PolicyKind::Fair);
        let tasks = [a, b].map(|nice| SchedParams::fair(Nice::clamped(nice)));
        let tasks = [Task::with_params(0, tasks[0]), Task::with_params(1, tasks[1])];
        for task in tasks {
            machine.add(task, EnqueueReason::New);
        }
        let ran = share(&mut machine, Nanos::from_secs(600));
        let expected = f64::from(tasks[0].sched().weight()) / f64::from(tasks[1].sched().weight());
        let measured = ran[&0] as f64 / ran[&1] as f64;
        assert!((measured / expected - 1.0).abs() < 0.05, "nice {a} beside {b}: {measured}, not {expected}");
    }
}

#[test]
fn a_changed_nice_value_changes_the_share_of_running_and_queued_tasks() {
    let mut machine = OneCpu::new(PolicyKind::Fair);
    let tasks = [0, 1, 2].map(Task::new);
    for task in tasks {
        machine.add(task, EnqueueReason::New);
    }
    share(&mut machine, Nanos::from_millis(100));
    // One of them runs, the others wait; each is changed where it is.
    for (task, nice) in tasks.into_iter().zip([-5, 0, 5]) {
        if machine.queue.change_params(&task, &SchedParams::fair(Nice::clamped(nice)), machine.now) {
            machine.schedule(PutReason::Preempted);
        }
    }
    let ran = share(&mut machine, Nanos::from_secs(60));
    for (i, j) in [(0, 1), (1, 2)] {
        let expected = f64::from(tasks[i].sched().weight()) / f64::from(tasks[j].sched().weight());
        let measured = ran[&(i as u32)] as f64 / ran[&(j as u32)] as f64;
        assert!((measured / expected - 1.0).abs() < 0.05, "{measured}, not {expected}");
    }
}

#[test]
fn a_shorter_slice_is_served_sooner_and_gets_no_more() {
    let mut machine = OneCpu::new(PolicyKind::Fair);
    let short = SchedParams { slice: Slice::clamped(Nanos::from_micros(300)), ..SchedParams::NORMAL };
    for id in 0..5 {
        machine.add(Task::new(id), EnqueueReason::New);
    }
    machine.add(Task::with_params(5, short), EnqueueReason::New);
    let (mut since, mut longest) = (Nanos::ZERO, [Nanos::ZERO; 6]);
    let mut last_ran = [Nanos::ZERO; 6];
    let mut ran = [0_u64; 6];
    machine.run_until(Nanos::from_secs(6), |task, time| {
        let i = task.index();
        longest[i] = longest[i].max(since - last_ran[i]);
        since += time;
        last_ran[i] = since;
        ran[i] += time.0;
    });
    for ran in ran {
        assert!(ran.abs_diff(1_000_000_000) < 2 * DEFAULT_SLICE.0, "{ran}");
    }
    for other in &longest[..5] {
        assert!(longest[5] < *other, "waited {}, an ordinary one {other}", longest[5]);
    }
}

/// A task sleeps with what lag it has, wakes, and neither loses nor gains: over a long time it gets what it asks for while
/// that is less than its share, however long the others have run in between.
#[test]
fn a_sleeper_gets_what_it_asks_for_and_can_not_save_up() {
    let mut machine = OneCpu::new(PolicyKind::Fair);
    for id in 0..3 {
        machine.add(Task::new(id), EnqueueReason::New);
    }
    let sleeper = Task::new(9);
    machine.add(sleeper, EnqueueReason::New);
    let mut ran = BTreeMap::<u32, u64>::new();
    // Until it has run for a millisecond, then it sleeps for nine.
    for _ in 0..500 {
        let mut wants = Nanos::from_millis(1);
        let mut waited = Nanos::ZERO;
        while wants > Nanos::ZERO {
            let step = Nanos::from_micros(50);
            let end = machine.now + step;
            machine.run_until(end, |task, time| {
                *ran.entry(task.number()).or_default() += time.0;
                if task == sleeper {
                    wants -= time;
                } else {
                    waited += time;
                }
            });
        }
        assert!(waited < Nanos::from_millis(20), "waited for {waited}");
        // It blocks if it is still there, or it is taken from the queue where it waits for its next slice.
        if machine.current == Some(sleeper) {
            machine.schedule(PutReason::Block);
        } else {
            while machine.current != Some(sleeper) {
                let end = machine.now + Nanos::from_micros(50);
                machine.run_until(end, |task, time| *ran.entry(task.number()).or_default() += time.0);
            }
            machine.schedule(PutReason::Block);
        }
        let end = machine.now + Nanos::from_millis(9);
        machine.run_until(end, |task, time| {
            assert_ne!(task, sleeper);
            *ran.entry(task.number()).or_default() += time.0;
        });
        machine.add(sleeper, EnqueueReason::Wake);
    }
    for other in 0..3 {
        assert!(ran[&other].abs_diff(ran[&0]) <= 3 * DEFAULT_SLICE.0, "{ran:?}");
    }
}

#[test]
fn a_yield_gives_way_to_an_equal() {
    for n in 2..6 {
        let mut machine = OneCpu::new(PolicyKind::Fair);
        for id in 0..n {
            machine.add(Task::new(id), EnqueueReason::New);
        }
        let mut turns = vec![0; n as usize];
        for _ in 0..1000 {
            let before = machine.current;
            machine.now += Nanos(500);
            machine.schedule(PutReason::Yield);
            assert_ne!(machine.current, before);
            turns[machine.current.unwrap().index()] += 1;
        }
        for turn in &turns {
            assert!((turn - 1000_i32 / n as i32).abs() <= 2, "{turns:?}");
        }
    }
}

#[test]
fn a_task_is_safe_from_woken_equals_for_a_quarter_of_its_slice() {
    let slice = Nanos::from_millis(8);
    let short = SchedParams { slice: Slice::clamped(Nanos::from_millis(1)), ..SchedParams::NORMAL };
    for (ran, params, preempts) in [
        (Nanos(slice.0 / 4 - 1), SchedParams::NORMAL, false),
        (Nanos(slice.0 / 4), SchedParams::NORMAL, true),
        // It asked to be served sooner.
        (Nanos(1), short, true),
    ] {
        let mut machine = OneCpu::with_slice(PolicyKind::Fair, slice);
        let (busy, woken) = (Task::new(0), Task::with_params(1, params));
        machine.add(busy, EnqueueReason::New);
        let end = machine.now + slice;
        machine.run_until(end, |_, _| {}); // alone: its next request is a whole one
        machine.schedule(PutReason::Preempted);
        machine.add(woken, EnqueueReason::New);
        while machine.current != Some(woken) {
            machine.now += Nanos(1000);
            machine.schedule(PutReason::Preempted);
        }
        machine.schedule(PutReason::Block);
        assert_eq!(machine.current, Some(busy));
        machine.now += ran;
        machine.add(woken, EnqueueReason::Wake);
        assert_eq!(machine.current == Some(woken), preempts, "after {ran}, {params:?}");
    }
}

#[test]
fn an_idle_policy_task_gets_little_and_gives_way_at_once() {
    let mut machine = OneCpu::new(PolicyKind::Fair);
    let idle = Task::with_params(0, SchedParams::of_class(Class::Idle));
    let normal = Task::new(1);
    machine.add(idle, EnqueueReason::New);
    assert_eq!(machine.current, Some(idle));
    machine.now += Nanos(1);
    machine.add(normal, EnqueueReason::New);
    assert_eq!(machine.current, Some(normal));
    let ran = share(&mut machine, Nanos::from_secs(100));
    assert!(ran[&0] < Nanos::from_secs(1).0, "{ran:?}");
    let batch = Task::with_params(2, SchedParams::of_class(Class::Batch));
    while machine.current != Some(normal) {
        share(&mut machine, Nanos::from_millis(1));
    }
    machine.queue.enqueue(batch, EnqueueReason::Wake, machine.now);
    assert!(!machine.queue.wakeup_preempts(&normal, &batch));
}

#[test]
fn a_debt_is_paid_by_sleeping_or_taken_along() {
    let mut queue = Fair::new(CpuId(0));
    let [debtor, other, third] = [0, 1, 2].map(Task::new);
    let ms = Nanos::from_millis;
    for task in [debtor, other, third] {
        queue.enqueue(task, EnqueueReason::Migrate, Nanos::ZERO);
    }
    // Whoever comes first runs two thirds of a slice ahead of the others, and blocks.
    let first = queue.pick_next(Nanos::ZERO).unwrap();
    queue.put_prev(&first, ms(2), PutReason::Block);
    let lag = queue.lag(&first);
    assert!(lag < -1_000_000, "{lag}");
    // It wakes at once: it is where it was.
    queue.enqueue(first, EnqueueReason::Wake, ms(2));
    assert_eq!(queue.lag(&first), lag);
    let second = queue.pick_next(ms(2)).unwrap();
    assert_ne!(second, first);
    // It is taken to another CPU, where two others are: so is its debt.
    queue.dequeue(&first).unwrap();
    let mut elsewhere = Fair::new(CpuId(1));
    for id in 10..12 {
        elsewhere.enqueue(Task::new(id), EnqueueReason::New, Nanos::ZERO);
    }
    elsewhere.enqueue(first, EnqueueReason::Migrate, Nanos::ZERO);
    assert!((elsewhere.lag(&first) - lag).abs() < 10, "{} {lag}", elsewhere.lag(&first));
    // There it blocks again and sleeps while the others run: nothing is left to pay.
    elsewhere.dequeue(&first).unwrap();
    elsewhere.enqueue(first, EnqueueReason::Wake, Nanos::ZERO);
    let mut ran_first = false;
    for _ in 0..4 {
        let task = elsewhere.pick_next(Nanos::ZERO).unwrap();
        if task == first {
            ran_first = true;
            elsewhere.put_prev(&task, ms(3), PutReason::Block);
        } else {
            elsewhere.put_prev(&task, ms(3), PutReason::Preempted);
            elsewhere.enqueue(task, EnqueueReason::Preempted, Nanos::ZERO);
        }
    }
    assert!(ran_first);
    for _ in 0..8 {
        let task = elsewhere.pick_next(Nanos::ZERO).unwrap();
        elsewhere.put_prev(&task, ms(3), PutReason::Preempted);
        elsewhere.enqueue(task, EnqueueReason::Preempted, Nanos::ZERO);
    }
    elsewhere.enqueue(first, EnqueueReason::Wake, Nanos::ZERO);
    assert_eq!(elsewhere.lag(&first), 0);
}

/// EEVDF told in the most direct way: all tasks in a list, exact fractions, no heaps.
#[derive(Clone, Debug)]
struct Model {
    tasks: Vec<(Task, i128, i128)>, // virtual runtime, deadline
}

impl Model {
    fn best(&self) -> Vec<Task> {
        let weight = |task: &Task| i128::from(task.sched().weight());
        let total: i128 = self.tasks.iter().map(|(task, ..)| weight(task)).sum();
        let sum: i128 = self.tasks.iter().map(|(task, v, _)| v * weight(task)).sum();
        let eligible = || self.tasks.iter().filter(|(_, v, _)| v * total <= sum);
        let first = eligible().map(|&(.., deadline)| deadline).min();
        eligible().filter(|&&(.., deadline)| Some(deadline) == first).map(|&(task, ..)| task).collect()
    }
}

proptest! {
    /// As long as nobody comes or goes, the order is exactly that of the definition.
    #[test]
    fn picks_the_earliest_deadline_of_the_eligible(
        nices in prop::collection::vec((-20..20i32, 0..4u64), 1..12),
        runs in prop::collection::vec((1..8_000_000u64, any::<bool>()), 1..200),
    ) {
        let mut queue = Fair::new(CpuId(0));
        let mut model = Model { tasks: Vec::new() };
        for (id, (nice, slice)) in nices.into_iter().enumerate() {
            let slice = Slice::clamped(Nanos::from_millis(slice));
            let task = Task::with_params(id as u32, SchedParams { slice, ..SchedParams::fair(Nice::clamped(nice)) });
            queue.enqueue(task, EnqueueReason::New, Nanos::ZERO);
            model.tasks.push((task, 0, virtual_time(&task, task.sched().slice().0) / 2));
        }
        for (ran, yields) in runs {
            let task = queue.pick_next(Nanos::ZERO).expect("somebody is there");
            prop_assert!(model.best().contains(&task), "{:?}, not {:?}: {:?}", task, model.best(), model.tasks);
            let slice = virtual_time(&task, task.sched().slice().0);
            let (_, v, deadline) = model.tasks.iter_mut().find(|(there, ..)| *there == task).expect("known");
            *v += virtual_time(&task, ran);
            if *v >= *deadline {
                *deadline = *v + slice;
            }
            if yields {
                *v = *deadline;
                *deadline += slice;
            }
            let (put, why) = if yields {
                (PutReason::Yield, EnqueueReason::Yield)
            } else {
                (PutReason::Preempted, EnqueueReason::Preempted)
            };
            queue.put_prev(&task, Nanos(ran), put);
            queue.enqueue(task, why, Nanos::ZERO);
        }
    }

    /// However many tasks wake and whenever: one that never sleeps is interrupted at most five times a slice, four times by
    /// them and once by its end.
    #[test]
    fn a_crowd_that_wakes_cuts_a_slice_into_few_runs(
        slice in 1..12u64,
        gaps in prop::collection::vec(100..400_000u64, 1..600),
    ) {
        let slice = Nanos::from_millis(slice);
        let mut machine = OneCpu::with_slice(PolicyKind::Fair, slice);
        let busy = Task::new(0);
        machine.add(busy, EnqueueReason::New);
        let mut asleep: Vec<_> = (1..=20).map(|id| (Task::new(id), EnqueueReason::New)).collect();
        let (mut cuts, mut ran) = (0, Nanos::ZERO);
        for gap in gaps {
            let end = machine.now + Nanos(gap);
            machine.run_until(end, |task, time| if task == busy { ran += time });
            if machine.current == Some(busy) && let Some((task, why)) = asleep.pop() {
                machine.add(task, why);
            }
            cuts += u64::from(machine.current != Some(busy));
            while let Some(task) = machine.current.filter(|&task| task != busy) {
                machine.now += Nanos(1000);
                asleep.push((task, EnqueueReason::Wake));
                machine.schedule(PutReason::Block);
            }
        }
        prop_assert!(cuts <= 5 * (ran.0 / slice.0 + 1), "{cuts} times in {ran} with slices of {slice}");
    }

    /// Comings and goings of all kinds: every task stays within a bounded distance of the average, and nobody starves.
    #[test]
    fn lags_stay_bounded_whatever_happens(
        steps in prop::collection::vec((0..6u8, 0..8usize, 1..5_000_000u64), 1..300),
    ) {
        let tasks: Vec<Task> = (0..8)
            .map(|id| Task::with_params(id, SchedParams::fair(Nice::clamped(id as i32 * 2 - 8))))
            .collect();
        let mut queue = Fair::new(CpuId(0));
        let mut queued = [false; 8];
        for (step, which, ran) in steps {
            let task = tasks[which];
            match step {
                0 | 1 => if !queued[which] {
                    queue.enqueue(task, EnqueueReason::Wake, Nanos::ZERO);
                    queued[which] = true;
                },
                2 => if queue.dequeue(&task).is_some() {
                    queue.enqueue(task, EnqueueReason::Migrate, Nanos::ZERO);
                },
                _ => if let Some(task) = queue.pick_next(Nanos::ZERO) {
                    let why = if step == 3 { PutReason::Block } else { PutReason::Preempted };
                    queue.put_prev(&task, Nanos(ran), why);
                    if why == PutReason::Block {
                        queued[task.index()] = false;
                    } else {
                        queue.enqueue(task, EnqueueReason::Preempted, Nanos::ZERO);
                    }
                },
            }
            let total: u64 = tasks.iter().zip(queued).filter(|&(_, q)| q).map(|(t, _)| u64::from(t.sched().weight())).sum();
            for (task, _) in tasks.iter().zip(queued).filter(|&(_, q)| q) {
                // One run of at most 5 ms, and two slices that a sleeper may bring, each weighed against the rest.
                let bound = 40_000_000_i128 * i128::from(total.max(1024)) / i128::from(task.sched().weight());
                prop_assert!(i128::from(queue.lag(task)).abs() <= bound, "{:?}: lag {}", task, queue.lag(task));
            }
        }
    }
}

/// Virtual time, as the crate computes it: by the inverse weight, whose rounding is part of the definition.
fn virtual_time(task: &Task, real: u64) -> i128 {
    let weight = task.sched().weight();
    vcpu_sched::policy::fair::weight::virtual_time(real, weight, vcpu_sched::policy::fair::weight::inverse(weight))
        .into()
}
