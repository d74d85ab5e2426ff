//! Placement against its description, on machines of all sizes and in all states.

use proptest::prelude::*;
use vcpu_sched::balance;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;
use vcpu_sched::placement::{
    CpuView, Level, PickVerdict, Placement, enqueue_target, pick_verdict, select_cpu, select_cpu_new,
    select_cpu_realtime,
};
use vcpu_sched::topology::{Seat, Topology};

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

/// A machine with cores, caches and nodes, whose CPUs run and queue real-time tasks.
struct Big {
    flat: Machine,
    topology: Topology,
    levels: Vec<u8>,
}

impl Big {
    /// `cpus` CPUs, two on a core, four on a cache, eight on a node.
    fn new(load: Vec<u32>, levels: Vec<u8>) -> Self {
        let cpus = load.len() as u32;
        let seats: Vec<Seat> = (0..cpus).map(|cpu| Seat { core: cpu / 2, cache: cpu / 4, node: cpu / 8 }).collect();
        Self { flat: Machine { online: CpuMask::full(cpus), load }, topology: Topology::new(&seats), levels }
    }
}

impl CpuView for Big {
    fn online(&self) -> &CpuMask {
        &self.flat.online
    }
    fn is_idle(&self, cpu: CpuId) -> bool {
        self.flat.is_idle(cpu)
    }
    fn nr_running(&self, cpu: CpuId) -> u32 {
        self.flat.nr_running(cpu)
    }
    fn topology(&self) -> Option<&Topology> {
        Some(&self.topology)
    }
    fn level(&self, cpu: CpuId) -> Level {
        if self.is_idle(cpu) { Level::IDLE } else { Level::realtime(self.levels[cpu.index()]) }
    }
    fn waiting_realtime(&self, cpu: CpuId) -> u8 {
        self.levels[cpu.index()]
    }
}

#[test]
fn a_waking_task_stays_near_its_cache_and_prefers_an_idle_core() {
    let all = CpuMask::full(16);
    let choose = |idle: &[usize], last: u32, waker: u32, allowed: &CpuMask| {
        let load = (0..16).map(|cpu| u32::from(!idle.contains(&cpu))).collect();
        select_cpu(&Placement { last_cpu: CpuId(last), allowed }, CpuId(waker), &Big::new(load, vec![0; 16])).0
    };
    assert_eq!(choose(&[1, 2, 3, 9], 1, 9, &all), 1, "its last one");
    assert_eq!(choose(&[1, 2, 3, 9], 0, 9, &all), 2, "near it, on a core of its own");
    assert_eq!(choose(&[1, 9], 0, 9, &all), 1, "near it, beside a busy sibling");
    assert_eq!(choose(&[9, 14], 0, 9, &all), 9, "the waker's");
    assert_eq!(choose(&[4, 11, 14, 15], 0, 9, &all), 11, "near the waker");
    assert_eq!(choose(&[5, 14, 15], 0, 9, &all), 14, "anywhere, on a core of its own first");
    assert_eq!(choose(&[5, 14, 15], 0, 9, &"0-7".parse().unwrap()), 5, "where it is allowed");
    assert_eq!(choose(&[], 0, 9, &all), 0, "no third one without reason");
}

#[test]
fn a_topology_that_tells_nothing_is_flat() {
    let alone: Vec<Seat> = (0..4).map(|cpu| Seat { core: cpu, cache: 0, node: 0 }).collect();
    let topology = Topology::new(&alone);
    for cpu in (0..5).map(CpuId) {
        assert!(
            topology.siblings(cpu).is_none() && topology.shared_cache(cpu).is_none() && topology.node(cpu).is_none()
        );
    }
    assert_eq!(Big::new(vec![0; 16], vec![0; 16]).topology.siblings(CpuId(5)), Some(&"4-5".parse().unwrap()));
}

proptest! {
    #[test]
    fn a_real_time_task_goes_where_it_can_run(
        load in prop::collection::vec(0..3u32, 16), levels in prop::collection::vec(0..6u8, 16),
        allowed in prop::collection::vec(any::<bool>(), 16), last in 0..16u32, priority in 1..6u8,
    ) {
        let (view, allowed) = (Big::new(load, levels), subset(16, allowed));
        let level = Level::realtime(priority);
        let task = Placement { last_cpu: CpuId(last), allowed: &allowed };
        let chosen = select_cpu_realtime(level, &task, CpuId(0), &view);
        if allowed.is_empty() {
            prop_assert_eq!(chosen, CpuId(last));
            return Ok(());
        }
        prop_assert!(allowed.test(chosen));
        // What waits there already runs there before long.
        let soon = |cpu: CpuId| match view.waiting_realtime(cpu) {
            0 => view.level(cpu),
            priority => view.level(cpu).max(Level::realtime(priority)),
        };
        let lowest = allowed.iter().map(soon).min().unwrap();
        if lowest < level {
            prop_assert!(soon(chosen) < level, "it waits although it could run");
            prop_assert!(chosen == CpuId(last) || soon(chosen) == lowest);
        } else if allowed.test(CpuId(last)) {
            prop_assert_eq!(chosen, CpuId(last));
        }
        let pulled = balance::pull_source(level, CpuId(last), &view);
        let most = (0..16).filter(|&cpu| cpu != last).map(|cpu| view.levels[cpu as usize]).max().unwrap();
        prop_assert_eq!(pulled.is_some(), most > priority);
        if let Some(from) = pulled {
            prop_assert_eq!(view.levels[from.index()], most);
        }
    }

    /// Every CPU balances in turn: it ends, and then nobody has two more than another.
    #[test]
    fn balancing_ends_in_balance(load in prop::collection::vec(0..50u32, 1..24)) {
        let count = load.len();
        let mut view = Big::new(load, vec![0; count]);
        let mut moved = true;
        let mut rounds = 0;
        while moved {
            moved = false;
            for cpu in (0..count as u32).map(CpuId) {
                if view.is_idle(cpu) && let Some(from) = balance::idle_victim(cpu, &view) {
                    prop_assert!(view.nr_running(from) > 1);
                    view.flat.load[from.index()] -= 1;
                    view.flat.load[cpu.index()] += 1;
                    moved = true;
                }
                if let Some(plan) = balance::periodic(cpu, &view) {
                    prop_assert_eq!(plan.to, cpu);
                    view.flat.load[plan.from.index()] -= plan.count;
                    view.flat.load[cpu.index()] += plan.count;
                    moved = true;
                }
            }
            rounds += 1;
            prop_assert!(rounds < 100);
        }
        let (least, most) = (view.flat.load.iter().min().unwrap(), view.flat.load.iter().max().unwrap());
        prop_assert!(most - least <= 1, "{:?}", view.flat.load);
    }
}
