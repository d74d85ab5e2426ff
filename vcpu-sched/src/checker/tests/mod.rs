//! Right traces are found right; each kind of mistake is found, by the invariant that is there for it.

mod mutants;
mod world;

use std::vec::Vec;

use proptest::prelude::*;

use super::{Checker, Invariant, Options, Outcome, Stamped};
use crate::events::{Kind, Record};
use crate::ids::{CpuId, Nanos};
use crate::task::state::State;

const STEPS: usize = 150;

pub(super) fn check(trace: &[Stamped], options: Options) -> Outcome {
    let mut checker = Checker::new(options);
    for &record in trace {
        checker.feed(record);
    }
    checker.finish()
}

fn complete() -> Options {
    Options { complete: true, ..Options::default() }
}

proptest! {
    #[test]
    fn a_right_trace_violates_nothing(seed: u64) {
        let outcome = check(&world::trace(seed, STEPS), complete());
        prop_assert!(outcome.holds(), "{:#?}", outcome.first);
        prop_assert_eq!((outcome.missing, outcome.adopted, outcome.lost, outcome.unknown), (0, 0, 0, 0));
    }

    #[test]
    fn clocks_that_differ_do_no_harm(seed: u64, offsets in prop::collection::vec(0_u64..5_000_000, 6)) {
        let mut trace = world::trace(seed, STEPS);
        for record in &mut trace {
            record.time += Nanos(offsets[record.cpu.index()]);
        }
        trace.sort_by_key(|record| record.time);
        let outcome = check(&trace, complete());
        prop_assert!(outcome.holds(), "{:#?}", outcome.first);
    }

    #[test]
    fn the_judged_order_is_one_that_could_have_happened(seed: u64, offsets in prop::collection::vec(0_u64..50_000_000, 6)) {
        let right = world::trace(seed, STEPS);
        let mut trace = right.clone();
        for record in &mut trace {
            record.time += Nanos(offsets[record.cpu.index()]);
        }
        trace.sort_by_key(|record| record.time);
        let (mut checker, mut judged) = (Checker::new(complete()), Vec::new());
        for &record in &trace {
            checker.feed_then(record, |r| judged.push(*r));
        }
        checker.finish_then(|r| judged.push(*r));
        prop_assert_eq!(judged.len(), right.len());
        for cpu in (0..6).map(CpuId) {
            let of = |trace: &[Stamped]| trace.iter().filter(|r| r.cpu == cpu).map(|r| r.record).collect::<Vec<_>>();
            prop_assert_eq!(of(&judged), of(&right));
        }
    }

    /// What is lost and counted is no mistake, whatever was lost.
    #[test]
    fn lost_records_are_excused(seed: u64, losses in prop::collection::vec((any::<prop::sample::Index>(), 1_usize..4), 1..4)) {
        let mut trace = world::trace(seed, STEPS);
        for (at, count) in losses {
            let at = at.index(trace.len());
            let cpu = trace[at].cpu;
            let mut lost = 0;
            let mut i = at;
            while i < trace.len() && lost < count {
                if trace[i].cpu == cpu && trace[i].record.kind != Kind::Lost as u8 {
                    trace.remove(i);
                    lost += 1;
                } else {
                    i += 1;
                }
            }
            let time = trace.get(i).or(trace.last()).map_or(Nanos::ZERO, |r| r.time);
            let record = Record { tsc: time.0, kind: Kind::Lost as u8, a: lost as u64, ..Record::default() };
            trace.insert(i, Stamped { cpu, time, record });
        }
        let outcome = check(&trace, Options::default());
        let graced = [Invariant::NoIdleBesideWork, Invariant::PriorityOrder, Invariant::Affinity];
        let wrong: Vec<_> = outcome.first.iter().filter(|v| !graced.contains(&v.invariant)).collect();
        prop_assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec((any::<[u8; 32]>(), 0_u32..4, 0_u8..24), 0..200)) {
        let mut checker = Checker::new(Options { held: 8, ..complete() });
        for (time, (bytes, cpu, kind)) in bytes.into_iter().enumerate() {
            let mut record = Record::from_bytes(&bytes);
            record.kind = kind;
            record.task %= 8;
            checker.feed(Stamped { cpu: CpuId(cpu), time: Nanos(time as u64), record });
        }
        let outcome = checker.finish();
        prop_assert_eq!(outcome.tallies.len(), Invariant::ALL.len());
    }
}

#[test]
fn every_invariant_is_looked_at() {
    let mut trace = world::trace(1, 2_000);
    let last = trace[trace.len() - 1];
    let record = Record { kind: Kind::Lost as u8, a: 1, ..Record::default() };
    trace.push(Stamped { record, ..last });
    for tally in check(&trace, complete()).tallies {
        assert!(tally.checked > 0, "{}", tally.invariant);
    }
}

#[test]
fn memory_is_bounded_by_what_lives() {
    let class = crate::events::ClassTag { prio: 120, policy: 0 };
    let (cpu, mut checker) = (CpuId(0), Checker::new(complete()));
    let idle = crate::events::Side { task: crate::ids::TaskId(1), seq: 0, class: crate::events::ClassTag::IDLE };
    for id in 100..20_100 {
        let task = crate::ids::TaskId(id);
        let time = u64::from(id) * 1_000;
        let side = |seq| crate::events::Side { task, seq, class };
        let records = [
            Record::queued(Kind::New, time, task, 1, 0, idle.task, cpu, class, 1),
            Record::switch(time + 1, idle, side(2), 0, 0),
            Record::switch(time + 2, side(3), idle, State::Dead as u8, 0),
        ];
        for record in records {
            checker.feed(Stamped { cpu, time: Nanos(record.tsc), record });
        }
    }
    assert_eq!(checker.live_tasks(), 0);
    assert!(checker.finish().holds());
}

/// A CPU halts at 1 ms, is given a task at 2 ms, and runs it `late` afterwards. Then the host is asked what it took: `told`.
fn a_late_cpu(late: Nanos, told: Option<Nanos>) -> Outcome {
    use crate::events::{ClassTag, Side};
    use crate::ids::TaskId;
    let class = ClassTag { prio: 120, policy: 0 };
    let (cpu, idle) = (CpuId(0), Side { task: TaskId(1), seq: 0, class: ClassTag::IDLE });
    let side = |seq| Side { task: TaskId(100), seq, class };
    let ms = |ms| Nanos::from_millis(ms);
    let mut records = std::vec![
        (ms(0), Record::queued(Kind::New, 0, TaskId(100), 1, 0, idle.task, cpu, class, 1)),
        (ms(0), Record::switch(0, idle, side(2), 0, 0)),
        (ms(1), Record::switch(0, side(3), idle, State::Blocked as u8, 0)),
        (ms(2), Record::queued(Kind::Wake, 0, TaskId(100), 4, 0, TaskId(7), cpu, class, 1)),
        (ms(2) + late, Record::switch(0, idle, side(5), 0, 0)),
    ];
    if let Some(told) = told {
        records.push((ms(3) + late, Record { kind: Kind::VcpuSteal as u8, a: told.0, ..Record::default() }));
    }
    let trace: Vec<_> = records.into_iter().map(|(time, record)| Stamped { cpu, time, record }).collect();
    check(&trace, complete())
}

#[test]
fn what_the_host_took_is_told_later_and_explains_no_more_than_that() {
    let Options { own_queue, .. } = complete();
    let stolen = Nanos::from_millis(300);
    assert!(a_late_cpu(own_queue, None).holds());
    assert_eq!(a_late_cpu(own_queue + stolen, None).tally(Invariant::NoIdleBesideWork).violations, 1);
    assert!(a_late_cpu(own_queue + stolen, Some(stolen)).holds());
    let outcome = a_late_cpu(own_queue + stolen + Nanos(1), Some(stolen));
    assert_eq!((outcome.violations(), outcome.tally(Invariant::NoIdleBesideWork).violations), (1, 1));
}
