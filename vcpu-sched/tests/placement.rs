//! Placement against its description, on machines of all sizes and in all states.

use proptest::prelude::*;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;
use vcpu_sched::placement::{
    CpuView, PickVerdict, Placement, enqueue_target, pick_verdict, select_cpu, select_cpu_new,
};

#[derive(Clone, Debug)]
struct Machine {
    online: CpuMask,
    load: Vec<u32>,
}

impl CpuView for Machine {
    fn online(&self) -> &CpuMask {
        &self.online
    }
    fn is_idle(&self, cpu: CpuId) -> bool {
        assert!(self.online.test(cpu), "asked about CPU {cpu}, which is offline");
        self.load[cpu.index()] == 0
    }
    fn nr_running(&self, cpu: CpuId) -> u32 {
        assert!(self.online.test(cpu), "asked about CPU {cpu}, which is offline");
        self.load[cpu.index()]
    }
}

fn subset(count: u32, bits: Vec<bool>) -> CpuMask {
    (0..count).filter(|&cpu| bits[cpu as usize]).map(CpuId).collect()
}

#[derive(Clone, Debug)]
struct Case {
    machine: Machine,
    allowed: CpuMask,
    last: CpuId,
    waker: CpuId,
}

fn cases() -> impl Strategy<Value = Case> {
    prop_oneof![3 => 1..9u32, 1 => 1..200u32].prop_flat_map(|count| {
        let flags = |on: f64| prop::collection::vec(prop::bool::weighted(on), count as usize);
        let loads = prop_oneof![
            prop::collection::vec(0..4u32, count as usize),
            prop::collection::vec(1..4u32, count as usize),
        ];
        (flags(0.9), loads, flags(0.6), 0..count, 0..count).prop_map(move |(online, load, allowed, last, waker)| Case {
            machine: Machine { online: subset(count, online), load },
            allowed: subset(count, allowed),
            last: CpuId(last),
            waker: CpuId(waker),
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn waking_goes_where_the_description_says(Case { machine, allowed, last, waker } in cases()) {
        let task = Placement { last_cpu: last, allowed: &allowed };
        let chosen = select_cpu(&task, waker, &machine);
        let usable = allowed.and(&machine.online);
        prop_assert_eq!(enqueue_target(None, &task, waker, &machine), chosen);
        if usable.is_empty() {
            prop_assert_eq!(chosen, allowed.first().unwrap_or(last));
            return Ok(());
        }
        prop_assert!(usable.test(chosen), "affinity and online are never violated");
        let load = |cpu: CpuId| machine.load[cpu.index()];
        let mut circle = usable.iter().filter(|&cpu| cpu >= last).chain(usable.iter().filter(|&cpu| cpu < last));
        let idle = |cpu: CpuId| usable.test(cpu) && load(cpu) == 0;
        let expected = if idle(last) {
            last
        } else if idle(waker) {
            waker
        } else if let Some(other) = circle.clone().find(|&cpu| idle(cpu)) {
            other
        } else {
            match (usable.test(last), usable.test(waker)) {
                (true, true) => if load(waker) < load(last) { waker } else { last },
                (true, false) => last,
                (false, true) => waker,
                (false, false) => {
                    let least = usable.iter().map(load).min().unwrap();
                    circle.find(|&cpu| load(cpu) == least).unwrap()
                }
            }
        };
        prop_assert_eq!(chosen, expected);
    }

    #[test]
    fn a_new_task_goes_to_the_next_of_the_least_loaded(Case { machine, allowed, last, .. } in cases()) {
        let chosen = select_cpu_new(&allowed, last, &machine);
        let usable = allowed.and(&machine.online);
        if usable.is_empty() {
            prop_assert_eq!(chosen, allowed.first().unwrap_or(last));
            return Ok(());
        }
        let least = usable.iter().map(|cpu| machine.load[cpu.index()]).min().unwrap();
        let equals: CpuMask = usable.iter().filter(|cpu| machine.load[cpu.index()] == least).collect();
        prop_assert_eq!(Some(chosen), equals.next_wrapping(last));
    }

    #[test]
    fn a_task_whose_stack_is_in_use_goes_to_its_user(Case { machine, allowed, last, waker } in cases(), on in 0..200u32) {
        let task = Placement { last_cpu: last, allowed: &allowed };
        let target = enqueue_target(Some(CpuId(on)), &task, waker, &machine);
        prop_assert_eq!(target, CpuId(on));
        let verdict = pick_verdict(target, &allowed, true);
        prop_assert_eq!(verdict == PickVerdict::Run, allowed.test(target));
        prop_assert_ne!(verdict, PickVerdict::Forward, "not before the stack is left");
    }
}

#[test]
fn equal_cpus_take_turns() {
    let machine = Machine { online: CpuMask::full(4), load: vec![1; 4] };
    let allowed: CpuMask = "0,2-3".parse().unwrap();
    let mut after = CpuId(3);
    let turns: Vec<u32> = (0..6)
        .map(|_| {
            after = select_cpu_new(&allowed, after, &machine);
            after.0
        })
        .collect();
    assert_eq!(turns, [0, 2, 3, 0, 2, 3]);
}

#[test]
fn an_empty_affinity_gives_back_what_was_passed() {
    let machine = Machine { online: CpuMask::full(2), load: vec![0; 2] };
    let task = Placement { last_cpu: CpuId(1), allowed: &CpuMask::empty() };
    assert_eq!(select_cpu(&task, CpuId(0), &machine), CpuId(1));
    assert_eq!(select_cpu_new(&CpuMask::empty(), CpuId(1), &machine), CpuId(1));
}

#[test]
fn verdicts() {
    let here = CpuMask::one_shot(CpuId(1));
    let elsewhere = CpuMask::one_shot(CpuId(2));
    assert_eq!(pick_verdict(CpuId(1), &here, false), PickVerdict::Run);
    assert_eq!(pick_verdict(CpuId(1), &here, true), PickVerdict::Run);
    assert_eq!(pick_verdict(CpuId(1), &elsewhere, false), PickVerdict::Forward);
    assert_eq!(pick_verdict(CpuId(1), &elsewhere, true), PickVerdict::ForwardAfterSwitch);
}
