//! The simulator's own tests, and the scheduler's under it: whatever workloads do, every record goes through the checker,
//! nobody starves, shares follow the weights, admitted deadlines are kept, and a run can be repeated.
//!
//! A random workload that fails is named with its seed; `SIM_SEED=n cargo test -p vcpu-sched --features sim --test sim`
//! runs that one alone, `SIM_SEEDS=n` runs so many.

use std::env;

use vcpu_sched::checker::{Checker, Options, Stamped};
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::events::{Event, Kind, Record};
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::params::{Class, DeadlineParams, Nice, RtPriority, SchedParams};
use vcpu_sched::runqueue::PolicyKind;
use vcpu_sched::sim::model::{
    Affinity, Change, ChannelFamily, ChannelKind, ChannelRef, Group, Intervention, Member, Op, Workload,
};
use vcpu_sched::sim::random::{Span, Stream};
use vcpu_sched::sim::{Config, Costs, End, Fault, Figures, Machine, Sink};
use vcpu_sched::topology::Topology;

const MS: fn(u64) -> Nanos = Nanos::from_millis;
const US: fn(u64) -> Nanos = Nanos::from_micros;

/// Feeds the checker and keeps the records, if there are not too many.
struct Watch {
    checker: Checker,
    records: Vec<(CpuId, Record)>,
}

impl Sink for Watch {
    fn record(&mut self, cpu: CpuId, record: &Record) {
        self.checker.feed(Stamped { cpu, time: Nanos(record.tsc), record: *record });
        self.records.push((cpu, *record));
    }
}

/// In a simulation nothing is late but by what the costs say.
fn strict(costs: Costs) -> Options {
    let late = (costs.switch + costs.ipi + costs.idle_exit).saturating_mul(4) + costs.call + US(10);
    let elsewhere = late + Nanos::from_millis(5);
    let base = Options { complete: true, ..Options::default() };
    Options { own_queue: late, kicked: elsewhere, elsewhere, lower_class: late, forbidden: late, ..base }
}

fn config(cpus: u32, policy: PolicyKind) -> Config {
    Config { cpus, topology: Topology::flat(), policy, seed: 1, costs: Costs::default(), per_task: true }
}

fn try_run(config: &Config, workload: &Workload, time: Nanos) -> Result<(Figures, Vec<(CpuId, Record)>), String> {
    let mut watch = Watch { checker: Checker::new(strict(config.costs)), records: Vec::new() };
    let mut machine = Machine::new(config.clone(), workload, &mut watch).map_err(|fault| fault.to_string())?;
    let end = loop {
        if let Some(end) = machine.run(time, 1 << 20).map_err(|fault| fault.to_string())? {
            break end;
        }
    };
    let figures = machine.finish(end);
    let outcome = watch.checker.finish();
    match outcome.first.first() {
        None => Ok((figures, watch.records)),
        Some(first) => {
            let mut text = format!("{} violations, the first: {first}\n", outcome.violations());
            for stamped in &first.around {
                text += &format!("  {} on {}: {:?}\n", stamped.time, stamped.cpu, Event::decode(&stamped.record));
                text += &format!("      {:?}\n", stamped.record);
            }
            Err(text)
        }
    }
}

/// Runs, and fails if the checker objects.
fn run(config: &Config, workload: &Workload, time: Nanos) -> Figures {
    match try_run(config, workload, time) {
        Ok((figures, _)) => figures,
        Err(error) => panic!("{} CPUs, {}, seed {}: {error}", config.cpus, config.policy, config.seed),
    }
}

fn constant(span: Nanos) -> Span {
    Span::Constant(span)
}

fn group(name: &str, count: u32, params: Vec<SchedParams>, program: Vec<Op>) -> Group {
    Group {
        name: name.into(),
        count,
        start: constant(Nanos::ZERO),
        every: constant(Nanos::ZERO),
        params,
        affinity: Affinity::Any,
        program,
        repeat: None,
    }
}

fn nice(value: i32) -> SchedParams {
    SchedParams { nice: Nice::clamped(value), ..SchedParams::NORMAL }
}

fn hogs(count: u32, params: Vec<SchedParams>) -> Workload {
    let program = vec![Op::Run(constant(MS(50)))];
    Workload { groups: vec![group("hog", count, params, program)], ..Workload::default() }
}

fn tokens(capacity: Option<u64>) -> ChannelKind {
    ChannelKind::Tokens { initial: 0, capacity, wake_all: false }
}

fn family(name: &str, count: u32, kind: ChannelKind) -> ChannelFamily {
    ChannelFamily { name: name.into(), count, kind }
}

fn channel(family: usize) -> ChannelRef {
    ChannelRef { family, member: Member::Own { divide: 1, add: 0 } }
}

#[test]
fn a_task_alone_has_the_cpu_to_itself() {
    for policy in PolicyKind::ALL {
        let figures = run(&config(1, policy), &hogs(1, vec![nice(0)]), MS(1000));
        assert_eq!(figures.end, End::TimeUp);
        // It comes when the first interrupt has woken the CPU.
        assert!(figures.tasks[0].counters.run >= MS(999), "{policy}: {:?}", figures.tasks[0]);
        assert_eq!(figures.cpus[0].switches, 1, "{policy}");
        assert_eq!(figures.cpus[0].ticks, 0, "{policy}: a task alone needs no tick");
    }
}

#[test]
fn equals_get_equal_shares_under_every_policy() {
    for policy in PolicyKind::ALL {
        for (cpus, tasks) in [(1, 2), (1, 7), (4, 8), (2, 6)] {
            let figures = run(&config(cpus, policy), &hogs(tasks, vec![nice(0)]), Nanos::from_secs(10));
            let fairness = figures.fairness.unwrap();
            assert!(fairness > 0.998, "{policy}, {tasks} tasks on {cpus} CPUs: {fairness}");
            let busy: u64 = figures.cpus.iter().map(|cpu| cpu.busy.0).sum();
            assert!(busy * 1000 > figures.time.0 * u64::from(cpus) * 999, "{policy}: a CPU idled beside work");
        }
    }
}

#[test]
fn shares_follow_the_weights_within_five_percent() {
    let values = [-10, -5, 0, 5, 10];
    let workload = hogs(5, values.map(nice).into());
    let figures = run(&config(1, PolicyKind::Fair), &workload, Nanos::from_secs(300));
    let sum: u64 = figures.tasks.iter().map(|task| task.counters.run.0).sum();
    // Linux, kernel/sched/core.c: sched_prio_to_weight of these nice values.
    let weights = [9548_f64, 3121.0, 1024.0, 335.0, 110.0];
    let all: f64 = weights.iter().sum();
    for (task, weight) in figures.tasks.iter().zip(weights) {
        let (share, due) = (task.counters.run.0 as f64 / sum as f64, weight / all);
        assert!((share / due - 1.0).abs() < 0.05, "{task:?}: {share} of the CPU, due {due}");
    }
}

#[test]
fn the_same_seed_gives_the_same_records() {
    let bytes = |seed| {
        let mut config = config(4, PolicyKind::Fair);
        config.seed = seed;
        let workload = random_workload(&mut Stream::new(7, 7), 4);
        let (_, records) = try_run(&config, &workload, MS(200)).unwrap();
        assert!(records.len() > 1000);
        records.iter().flat_map(|(cpu, record)| [&cpu.0.to_le_bytes()[..], &record.to_bytes()].concat()).collect()
    };
    let (first, again, other): (Vec<u8>, Vec<u8>, Vec<u8>) = (bytes(3), bytes(3), bytes(4));
    assert!(first == again, "two runs of one seed differ");
    assert!(first != other, "the seed changes nothing");
}

#[test]
fn a_task_draws_the_same_whatever_runs_it() {
    let program = vec![Op::Run(Span::Exponential { mean: US(300) }), Op::Sleep(Span::Exponential { mean: US(300) })];
    let mut workload = Workload { groups: vec![group("t", 3, vec![nice(0)], program)], ..Workload::default() };
    workload.groups[0].repeat = Some(100);
    let cpu_times = |cpus, policy| {
        let mut config = config(cpus, policy);
        config.costs = Costs::NONE;
        let figures = run(&config, &workload, Nanos::from_secs(10));
        assert_eq!(figures.end, End::AllEnded);
        figures.tasks.iter().map(|task| task.counters.run).collect::<Vec<_>>()
    };
    let expected = cpu_times(1, PolicyKind::Fair);
    for policy in PolicyKind::ALL {
        for cpus in [1, 2, 8] {
            assert_eq!(cpu_times(cpus, policy), expected, "{policy} on {cpus}");
        }
    }
}

#[test]
fn no_token_and_no_task_is_lost() {
    // Makers put a known number of tokens, takers take as many, a barrier holds all at the end, a parent waits for all.
    let exponential = |mean| Op::Run(Span::Exponential { mean: US(mean) });
    let door = ChannelRef { family: 1, member: Member::Fixed(0) };
    let member = |divide| ChannelRef { family: 0, member: Member::Own { divide, add: 0 } };
    let body = |op| vec![Op::Repeat { times: 50, body: vec![exponential(20), op] }, Op::Meet(door)];
    let mut workload = Workload {
        groups: vec![
            group("maker", 0, vec![nice(0)], body(Op::Put(member(4), 2))),
            group("taker", 0, vec![nice(3), nice(-3)], body(Op::Take(member(2), 1))),
            group(
                "parent",
                1,
                vec![nice(0)],
                vec![Op::Fork { group: 0, count: 8 }, Op::Fork { group: 1, count: 16 }, Op::Join],
            ),
        ],
        // 8 makers * 50 * 2 tokens over 2 pipes; 16 takers * 50 tokens over 8 of them: the numbers wrap to 2.
        channels: vec![family("pipe", 2, tokens(Some(3))), family("door", 1, ChannelKind::Barrier { parties: 24 })],
        ..Workload::default()
    };
    workload.groups.iter_mut().for_each(|group| group.repeat = Some(1));
    for policy in PolicyKind::ALL {
        for cpus in [1, 2, 3, 16] {
            let figures = run(&config(cpus, policy), &workload, Nanos::from_secs(60));
            assert_eq!(figures.end, End::AllEnded, "{policy}, {cpus} CPUs");
            let ended: u64 = figures.groups.iter().map(|group| group.ended).sum();
            assert_eq!(ended, 25);
        }
    }
}

#[test]
fn who_waits_for_nothing_is_told() {
    let workload = Workload {
        groups: vec![group("stuck", 2, vec![nice(0)], vec![Op::Take(channel(0), 1)])],
        channels: vec![family("never", 1, tokens(None))],
        ..Workload::default()
    };
    let figures = run(&config(2, PolicyKind::Fair), &workload, MS(100));
    assert_eq!(figures.end, End::Deadlock { waiting: 2 });
}

#[test]
fn a_program_that_takes_no_time_is_stopped() {
    let workload = Workload { groups: vec![group("spin", 1, vec![nice(0)], vec![Op::Yield])], ..Workload::default() };
    let mut config = config(1, PolicyKind::RoundRobin);
    config.costs = Costs::NONE;
    let mut machine = Machine::new(config, &workload, ()).unwrap();
    assert!(matches!(machine.run(MS(1), u64::MAX), Err(Fault::NoProgress { group: 0, at: Nanos::ZERO })));
}

#[test]
fn a_machine_that_cannot_be_is_refused() {
    for cpus in [0, 1025] {
        let workload = hogs(1, vec![nice(0)]);
        let refused = Machine::new(config(cpus, PolicyKind::Fair), &workload, ());
        assert_eq!(refused.err(), Some(Fault::Cpus(cpus)));
    }
}

#[test]
fn real_time_goes_first_and_round_robin_is_equal_within_a_slice() {
    let rr = SchedParams::of_class(Class::RoundRobin(RtPriority::new(10).unwrap()));
    let fifo = SchedParams::of_class(Class::Fifo(RtPriority::new(20).unwrap()));
    let busy = |name, count, params| group(name, count, vec![params], vec![Op::Run(constant(MS(10)))]);
    let sensor = vec![Op::Run(constant(US(200))), Op::NextPeriod { period: MS(5), deadline: US(500) }];
    let groups = vec![busy("rr", 3, rr), busy("load", 2, nice(0)), group("fifo", 1, vec![fifo], sensor)];
    let figures = run(&config(1, PolicyKind::Fair), &Workload { groups, ..Workload::default() }, Nanos::from_secs(5));
    let runs: Vec<u64> = figures.tasks[..3].iter().map(|task| task.counters.run.0).collect();
    // Linux: RR_TIMESLICE is 100 ms.
    let spread = runs.iter().max().unwrap() - runs.iter().min().unwrap();
    assert!(spread <= MS(110).0, "round robin: {runs:?}");
    assert_eq!(figures.groups[1].run, Nanos::ZERO, "an ordinary task ran beside a ready real-time one");
    assert_eq!((figures.groups[2].jobs > 990, figures.groups[2].misses), (true, 0));
}

#[test]
fn edf_keeps_every_promise_that_was_admitted() {
    for seed in 0..20 {
        let chance = &mut Stream::new(seed, 99);
        let cpus = 1 + chance.below(4) as u32;
        let mut groups = vec![group("load", cpus * 2, vec![nice(0)], vec![Op::Run(constant(MS(20)))])];
        for i in 0..cpus * 5 {
            let period = US(1_000 + 500 * chance.below(40));
            let runtime = Nanos(period.0 / (2 + chance.below(8)));
            let promise = DeadlineParams::new(runtime, period, period).unwrap();
            let params = SchedParams::of_class(Class::Deadline(promise));
            let least = Nanos(runtime.0 / 2);
            let work = Op::Run(Span::Uniform { low: least, high: runtime });
            let mut task =
                group(&format!("dl{i}"), 1, vec![params], vec![work, Op::NextPeriod { period, deadline: period }]);
            task.start = Span::Uniform { low: Nanos::ZERO, high: MS(10) };
            groups.push(task);
        }
        let workload = Workload { groups, ..Workload::default() };
        for policy in PolicyKind::ALL {
            let mut config = config(cpus, policy);
            (config.seed, config.costs) = (seed, Costs::NONE);
            let figures = run(&config, &workload, Nanos::from_secs(2));
            let admitted = figures.groups.iter().filter(|group| group.jobs > 0 && group.refused == 0);
            let (jobs, misses) = admitted.fold((0, 0), |sum, group| (sum.0 + group.jobs, sum.1 + group.misses));
            assert!(jobs > 100, "seed {seed}");
            assert_eq!(misses, 0, "{policy}, seed {seed}: of {jobs} jobs");
            assert!(figures.groups[0].run > Nanos::ZERO, "ordinary tasks have the rest");
        }
    }
}

/// Anything that a workload can be: tasks of all classes that wake each other, sleep, yield, fork, change their nice value,
/// class and affinity, are changed from outside, and end.
fn random_workload(chance: &mut Stream, cpus: u32) -> Workload {
    let channels = vec![
        family("free", 4, tokens(None)),
        family("pipe", 3, tokens(Some(1 + chance.below(5)))),
        family("herd", 2, ChannelKind::Tokens { initial: 1, capacity: None, wake_all: true }),
    ];
    let mask = |chance: &mut Stream| {
        let mut mask = CpuMask::one_shot(CpuId(chance.below(cpus.into()) as u32));
        for _ in 0..chance.below(cpus.into()) {
            mask.set(CpuId(chance.below(cpus.into()) as u32));
        }
        mask
    };
    let params = |chance: &mut Stream| match chance.below(8) {
        0 => SchedParams::of_class(Class::Fifo(RtPriority::new(1 + chance.below(99) as u32).unwrap())),
        1 => SchedParams::of_class(Class::RoundRobin(RtPriority::new(1 + chance.below(99) as u32).unwrap())),
        2 => SchedParams::of_class(Class::Batch),
        3 => SchedParams::of_class(Class::Idle),
        4 => {
            let runtime = US(100 + chance.below(2_000));
            let period = runtime.saturating_mul(4 + chance.below(8)).max(DeadlineParams::MIN_PERIOD);
            SchedParams::of_class(Class::Deadline(DeadlineParams::new(runtime, period, period).unwrap()))
        }
        _ => nice(chance.below(40) as i32 - 20),
    };
    let mut groups = Vec::new();
    let count = 2 + chance.below(5) as usize;
    for g in 0..count {
        let mut program = Vec::new();
        for _ in 0..1 + chance.below(6) {
            let family = chance.below(3) as usize;
            let member = match chance.below(3) {
                0 => Member::Random,
                1 => Member::Fixed(chance.below(5) as u32),
                _ => Member::Own { divide: 1 + chance.below(3) as u32, add: chance.below(5) as i32 - 2 },
            };
            let channel = ChannelRef { family, member };
            program.push(match chance.below(12) {
                0 | 1 => Op::Run(Span::Exponential { mean: US(1 + chance.below(2_000)) }),
                2 => Op::Sleep(Span::Uniform { low: US(chance.below(100)), high: US(100 + chance.below(3_000)) }),
                3 => Op::Yield,
                4 => Op::Take(channel, 1 + chance.below(2) as u32),
                5 | 6 => Op::Put(channel, 1 + chance.below(3) as u32),
                7 => Op::Params(params(chance)),
                8 => Op::Affinity(mask(chance)),
                9 => Op::Repeat { times: 1 + chance.below(4) as u32, body: vec![Op::Run(constant(US(50)))] },
                10 => Op::NextPeriod { period: US(200 + chance.below(5_000)), deadline: MS(5) },
                // Only later groups are made, so that their number stays bounded.
                _ if g + 1 < count => Op::Fork { group: g + 1, count: 1 + chance.below(3) as u32 },
                _ => Op::Join,
            });
        }
        program.push(Op::Run(constant(US(1 + chance.below(500)))));
        let mut group = group(&format!("g{g}"), 1 + chance.below(12) as u32, vec![params(chance), nice(0)], program);
        group.every = Span::Exponential { mean: US(chance.below(2_000)) };
        group.repeat = Some(1 + chance.below(30) as u32);
        group.affinity = match chance.below(4) {
            0 => Affinity::Mask(mask(chance)),
            1 => Affinity::Spread,
            2 => Affinity::Random(1 + chance.below(cpus.into()) as u32),
            _ => Affinity::Any,
        };
        groups.push(group);
    }
    let script = (0..chance.below(30)).map(|_| Intervention {
        at: US(chance.below(100_000)),
        on: CpuId(chance.below(cpus.into()) as u32),
        group: chance.below(count as u64) as usize,
        task: (chance.below(3) > 0).then(|| chance.below(8) as u32),
        what: match chance.below(3) {
            0 => Change::Params(params(chance)),
            1 => Change::Affinity(mask(chance)),
            _ => Change::Wake,
        },
    });
    let script = script.collect();
    Workload { groups, channels, script }
}

fn random_case(seed: u64) {
    let chance = &mut Stream::new(seed, 0);
    let cpus = [1, 2, 3, 4, 8, 65][chance.below(6) as usize];
    let workload = random_workload(chance, cpus);
    let span = |chance: &mut Stream| Nanos(chance.below(3_000));
    let costs = match chance.below(3) {
        0 => Costs { call: Nanos(1), ..Costs::NONE },
        1 => Costs::default(),
        _ => Costs { switch: span(chance), call: Nanos(1), ipi: span(chance), idle_exit: span(chance) },
    };
    for policy in PolicyKind::ALL {
        let config = Config { cpus, topology: Topology::flat(), policy, seed, costs, per_task: true };
        match try_run(&config, &workload, MS(300)) {
            Ok((_, records)) => assert!(records.iter().any(|(_, record)| record.kind == Kind::Switch as u8)),
            Err(error) => panic!(
                "{error}\npolicy {policy}, {cpus} CPUs; again: SIM_SEED={seed} cargo test -p vcpu-sched --features sim --test sim random_"
            ),
        }
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn random_workloads_break_no_invariant() {
    match number("SIM_SEED") {
        Some(seed) => random_case(seed),
        None => (0..number("SIM_SEEDS").unwrap_or(100)).for_each(random_case),
    }
}

#[test]
fn nobody_starves_under_any_policy() {
    // Sleepers that come and go beside hogs, on few CPUs: whoever is ready gets its turn. The bound is generous: all others
    // of the CPU, each for a slice of round robin, twice.
    let sleeper = vec![Op::Run(Span::Exponential { mean: US(500) }), Op::Sleep(Span::Exponential { mean: MS(2) })];
    for policy in PolicyKind::ALL {
        for cpus in [1, 2, 4] {
            let groups = vec![
                group("hog", 4 * cpus, vec![nice(0)], vec![Op::Run(constant(MS(30)))]),
                group("sleeper", 4 * cpus, vec![nice(0)], sleeper.clone()),
            ];
            let figures = run(&config(cpus, policy), &Workload { groups, ..Workload::default() }, Nanos::from_secs(5));
            for task in &figures.tasks {
                assert!(task.counters.run > MS(20), "{policy}, {cpus} CPUs: {task:?}");
                assert!(task.counters.max_latency < MS(8 * 10 * 2), "{policy}, {cpus} CPUs: {task:?}");
            }
        }
    }
}
