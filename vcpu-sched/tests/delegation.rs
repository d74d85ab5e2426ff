//! Policies of `delegation::policies` decide for a simulated guest, over the same code and memory as in a real one; and the
//! ways in which an agent may come, go, hang and fail.

#[cfg(target_os = "linux")]
#[path = "delegation/c_agent.rs"]
mod c_agent;
#[path = "delegation/guest.rs"]
mod guest;
#[path = "delegation/hostile.rs"]
mod hostile;

use std::collections::BTreeMap;

use guest::{Doing, Guest, STEP, Script, agent, options};
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::delegation::abi::host_flags;
use vcpu_sched::delegation::agent::{Agent, AgentError};
use vcpu_sched::delegation::enclave::Config;
use vcpu_sched::delegation::layout::Region;
use vcpu_sched::delegation::life::{Life, Reason};
use vcpu_sched::delegation::policies::cores::Cores;
use vcpu_sched::delegation::policies::edf::Edf;
use vcpu_sched::delegation::policies::fifo::Fifo;
use vcpu_sched::delegation::policies::named::named;
use vcpu_sched::delegation::policies::percpu::PerCpu;
use vcpu_sched::delegation::policies::remote::Remote;
use vcpu_sched::delegation::policies::shinjuku::Shinjuku;
use vcpu_sched::delegation::policies::steal::StealAware;
use vcpu_sched::delegation::policies::{Decisions, Policy, Ready, View};
use vcpu_sched::delegation::status::HostStatus;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::runqueue::PolicyKind;

const SHORT: Script = Script { run: 3, wait: 5, rounds: 20, nice: 0 };
const LONG: Script = Script { run: 400, wait: 0, rounds: 5, nice: 0 };

/// A number for each (seed, n), all different enough.
fn mixed(seed: u64, n: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 29;
    x.wrapping_mul(0x94d0_49bb_1331_11eb) >> 32
}

fn crowd(guest: &mut Guest, tasks: u64, seed: u64) {
    for n in 0..tasks {
        let r = |k, max| 1 + mixed(seed, n * 8 + k) % max;
        guest.spawn(Script { run: r(0, 40), wait: r(1, 30) - 1, rounds: r(2, 12), nice: r(3, 39) as i16 - 20 });
    }
}

fn spawn(guest: &mut Guest, count: usize, script: Script) {
    for _ in 0..count {
        guest.spawn(script);
    }
}

fn ends<P: Policy>(policy: impl Fn() -> P) {
    for cpus in [1, 2, 5] {
        for seed in 0..4 {
            let mut guest = Guest::new(cpus);
            crowd(&mut guest, 24, seed);
            let mut agent = agent(&mut guest, policy());
            guest.run_with(&mut agent, 100_000);
            let counters = agent.counters();
            assert_eq!((counters.lost, counters.nonsense), (0, 0));
            assert_eq!(guest.fell_back, None, "it was the agent who decided");
            assert!(counters.messages > 200, "{counters:?}");
        }
    }
}

#[test]
fn every_policy_brings_every_task_to_its_end() {
    ends(Fifo::default);
    ends(PerCpu::default);
    ends(|| Shinjuku::new(Nanos::from_micros(200)));
    ends(Edf::default);
    ends(StealAware::default);
    ends(|| Cores::new(vec![vec![CpuId(0), CpuId(1)], vec![CpuId(2), CpuId(3)], vec![CpuId(4)]], |gtid| gtid % 3));
    for kind in PolicyKind::ALL {
        ends(|| Remote::new(kind));
    }
}

#[test]
fn the_documentation_shows_the_policy_to_copy() {
    let shown = include_str!("../../docs/delegation.md");
    let file = include_str!("../src/delegation/policies/fifo.rs");
    assert!(shown.contains(file), "copy policies/fifo.rs to docs/delegation.md");
}

#[test]
fn every_name_is_a_policy_that_works_and_others_are_refused_with_a_hint() {
    for text in
        ["fifo", "percpu", "shinjuku", "shinjuku:300", "edf", "cores", "cores:2", "steal", "remote", "remote:rr"]
    {
        let mut guest = Guest::new(2);
        guest.region.publish_host(CpuId(0), &HostStatus { core: Some(3), ..HostStatus::default() });
        guest.region.publish_host(CpuId(1), &HostStatus { core: Some(3), ..HostStatus::default() });
        crowd(&mut guest, 10, 1);
        let policy = named(text, &guest.region).unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut agent = agent(&mut guest, policy);
        guest.run_with(&mut agent, 100_000);
    }
    let guest = Guest::new(1);
    let refused = |text| named(text, &guest.region).map(drop).expect_err(text).to_string();
    assert!(refused("lottery").contains("fifo percpu shinjuku"));
    assert!(refused("fifo:3").contains("'fifo' takes another option: none"));
    for text in ["shinjuku:0", "shinjuku:x", "cores:64", "remote:lottery", "steal:1"] {
        assert!(refused(text).contains("takes another option"), "{text}");
    }
}

#[test]
fn the_same_run_twice_is_the_same() {
    let run = || {
        let mut guest = Guest::new(3);
        crowd(&mut guest, 20, 5);
        let mut agent = agent(&mut guest, Shinjuku::new(Nanos::from_micros(100)));
        guest.run_with(&mut agent, 100_000);
        (guest.step, *agent.counters(), guest.tasks.iter().map(|task| task.ended).collect::<Vec<_>>())
    };
    assert_eq!(run(), run());
}

#[test]
fn fifo_keeps_the_order_of_arrival() {
    let mut guest = Guest::new(1);
    for _ in 0..10 {
        guest.spawn(Script { run: 50, wait: 0, rounds: 1, nice: 0 });
    }
    let mut agent = agent(&mut guest, Fifo::default());
    guest.run_with(&mut agent, 10_000);
    assert!(guest.tasks.is_sorted_by_key(|task| task.ended));
}

#[test]
fn a_slice_lets_short_tasks_pass_long_ones() {
    let wait = |slice| {
        let mut guest = Guest::new(2);
        spawn(&mut guest, 4, LONG);
        let short = guest.spawn(SHORT);
        let mut agent = agent(&mut guest, Shinjuku::new(slice));
        guest.run_with(&mut agent, 100_000);
        guest.tasks[short].longest_wait
    };
    let (sliced, not) = (wait(Nanos::from_micros(200)), wait(Nanos::from_secs(1)));
    assert!(sliced * 3 < not, "{sliced} steps with a slice, {not} without");
}

#[test]
fn the_earliest_deadline_preempts() {
    let mut guest = Guest::new(1);
    guest.spawn(Script { nice: 19, ..LONG });
    let urgent = guest.spawn(Script { run: 5, wait: 100, rounds: 10, nice: -20 });
    let mut agent = agent(&mut guest, Edf::default());
    guest.run_with(&mut agent, 100_000);
    assert!(guest.tasks[urgent].longest_wait <= 3, "{} steps", guest.tasks[urgent].longest_wait);
}

#[test]
fn siblings_never_run_different_cookies() {
    let mut guest = Guest::new(4);
    guest.history = Some(Vec::new());
    crowd(&mut guest, 30, 3);
    let cores = vec![vec![CpuId(0), CpuId(1)], vec![CpuId(2), CpuId(3)]];
    let mut agent = agent(&mut guest, Cores::new(cores, |gtid| gtid % 4));
    guest.run_with(&mut agent, 100_000);
    let mut together = 0;
    for step in guest.history.take().expect("asked for") {
        for core in step.chunks(2) {
            if let [Some(a), Some(b)] = core {
                assert_eq!(a % 4, b % 4, "cookies of {a} and {b} on one core");
                together += 1;
            }
        }
    }
    assert!(together > 100, "siblings ran together {together} times");
}

#[test]
fn a_vcpu_that_the_host_preempted_is_given_nothing_while_another_runs() {
    let mut guest = Guest::new(2);
    for n in 0..2 {
        let flags = host_flags::KNOWN | if n == 0 { host_flags::RUNNING } else { 0 };
        guest.region.publish_host(CpuId(n), &HostStatus { flags, ..HostStatus::default() });
    }
    guest.history = Some(Vec::new());
    spawn(&mut guest, 6, SHORT);
    let mut agent = agent(&mut guest, StealAware::default());
    guest.run_with(&mut agent, 100_000);
    assert!(guest.history.take().expect("asked for").iter().all(|step| step[1].is_none()));
}

#[test]
fn a_task_that_lies_ready_runs_without_the_agent() {
    let mut guest = Guest::new(1);
    let first = guest.spawn(Script { run: 10, wait: 0, rounds: 1, nice: 0 });
    let second = guest.spawn(Script { run: 10, wait: 0, rounds: 1, nice: 0 });
    let mut agent = agent(&mut guest, PerCpu::default());
    guest.advance();
    guest.turn(&mut agent);
    // From here the agent is never asked again.
    (0..30).for_each(|_| guest.advance());
    assert_eq!(guest.tasks[first].doing, Doing::Ended);
    assert_eq!(guest.tasks[second].doing, Doing::Ended, "it lay in the pick-next ring");
}

#[test]
fn agents_take_turns_under_load_and_lose_nothing() {
    let mut guest = Guest::new(3);
    crowd(&mut guest, 40, 9);
    let mut nonce = 1;
    while !guest.all_ended() {
        assert!(nonce < 2_000, "it doesn't end");
        nonce += 1;
        let region = Region::open(guest.words).expect("published");
        let mut agent = Agent::attach(region, options(nonce), Fifo::default()).expect("the last one has left");
        for _ in 0..1 + mixed(1, nonce.into()) % 300 {
            guest.advance();
            guest.turn(&mut agent);
            guest.check();
        }
        agent.detach();
        assert_eq!(guest.fell_back, None, "nobody waited for the next agent in vain");
        (0..mixed(2, nonce.into()) % 3).for_each(|_| guest.advance());
    }
}

#[test]
fn an_agent_that_dies_at_any_moment_costs_only_time() {
    for n in 0..1_000 {
        let mut guest = Guest::new(2);
        crowd(&mut guest, 8, n);
        let mut dying = agent(&mut guest, Fifo::default());
        for _ in 0..mixed(n, 77) % 200 {
            guest.advance();
            guest.turn(&mut dying);
        }
        let died = guest.now();
        drop(dying); // it says nothing
        let mut ended = 0;
        while !guest.all_ended() {
            guest.advance();
            if ended % 64 == 0 {
                guest.check();
            }
            ended += 1;
            assert!(ended < 100_000, "they hang: {n}");
        }
        let life = guest.enclave.life();
        if let Some(fallen) = guest.fell_back {
            assert_eq!(fallen, Life::Ejected { nonce: 7, reason: Reason::Timeout });
            assert_eq!(life, fallen);
        } else {
            assert!(guest.now() - died < Nanos::from_secs(10), "all had been decided");
        }
    }
}

#[test]
fn a_hung_agent_is_ejected_soon_after_the_timeout_and_told_so() {
    let mut guest = Guest::new(2);
    spawn(&mut guest, 4, SHORT);
    let region = Region::open(guest.words).expect("published");
    let mut hung = Agent::attach(region, options(5), Fifo::default()).expect("nobody else");
    while guest.fell_back.is_none() {
        assert!(guest.now() < Nanos::from_millis(100), "the timeout is 50 ms");
        guest.advance();
    }
    assert_eq!(guest.enclave.life(), Life::Ejected { nonce: 5, reason: Reason::Timeout });
    let since = guest.now() - Nanos::from_millis(50);
    assert!(since <= Nanos::from_millis(50), "{since:?} after the timeout");
    let told = hung.step(guest.now(), &mut |_| {}).expect_err("ejected");
    assert!(matches!(told, AgentError::Ejected(_)) && told.to_string().contains("waited too long"), "{told}");
    let again = Agent::attach(region, options(5), Fifo::default()).expect("its wish may be replaced");
    drop(again);
    guest.enclave.poll_agent(guest.now());
    assert!(!guest.enclave.delegates(), "not under the same number");
    let region = Region::open(guest.words).expect("published");
    let mut better = Agent::attach(region, options(6), Fifo::default()).expect("a new number");
    guest.run_with(&mut better, 100_000);
    assert_eq!(guest.fell_back, None);
}

/// Decides on what it isn't asked for.
struct Flooding(Fifo);

impl Policy for Flooding {
    fn enqueue(&mut self, view: &View<'_>, slot: u32, why: Ready) {
        self.0.enqueue(view, slot, why);
    }

    fn dequeue(&mut self, view: &View<'_>, slot: u32) {
        self.0.dequeue(view, slot);
    }

    fn decide(&mut self, view: &View<'_>, decisions: &mut Decisions) {
        use vcpu_sched::delegation::policies::{Decision, Target};
        for cpu in view.open.iter() {
            decisions.push(Decision { cpu, target: Target::Idle, run_flags: 1 << 31, group: None });
        }
    }
}

#[test]
fn an_agent_that_floods_is_ejected() {
    let config = Config { flood_limit: 50, ..Config::new(1, CpuMask::full(1)) };
    let mut guest = Guest::with(config, 1, 64);
    guest.spawn(LONG);
    let mut flooding = agent(&mut guest, Flooding(Fifo::default()));
    while guest.fell_back.is_none() {
        assert!(guest.now() < Nanos::from_millis(40), "before the timeout");
        guest.advance();
        let now = guest.now();
        let mut kicks = Vec::new();
        let _ = flooding.step(now, &mut |cpu| kicks.push(cpu));
        kicks.into_iter().for_each(|cpu| guest.kick(cpu));
    }
    assert_eq!(guest.fell_back, Some(Life::Ejected { nonce: 7, reason: Reason::Flood }));
}

#[test]
fn any_number_of_tasks_is_told_of_in_a_small_ring() {
    let mut guest = Guest::with(Config::new(1, CpuMask::full(2)), 2, 4);
    crowd(&mut guest, 30, 11);
    let mut agent = agent(&mut guest, Fifo::default());
    guest.run_with(&mut agent, 100_000);
    assert_eq!(agent.counters().lost, 0);
}

#[test]
fn lost_messages_are_counted_and_made_up_for() {
    let mut guest = Guest::with(Config::new(1, CpuMask::full(4)), 4, 4);
    crowd(&mut guest, 30, 11);
    let mut agent = agent(&mut guest, Fifo::default());
    // An agent that looks so seldom that more happens than the ring holds.
    while !guest.all_ended() {
        for _ in 0..60 {
            guest.advance();
            guest.check();
        }
        guest.turn(&mut agent);
        assert!(guest.now() < Nanos::from_secs(10), "some task was forgotten");
    }
    assert!(agent.counters().lost > 0, "{:?}", agent.counters());
    assert_eq!(guest.fell_back, None);
}

#[test]
fn an_idle_guest_is_kicked_once_for_each_decision_at_most() {
    let mut guest = Guest::new(2);
    spawn(&mut guest, 2, SHORT);
    let mut agent = agent(&mut guest, Fifo::default());
    guest.run_with(&mut agent, 10_000);
    assert!(guest.kicks <= agent.counters().submitted);
    assert_eq!(guest.kicks, agent.counters().kicks);
    let ran: BTreeMap<u64, u64> = guest.tasks.iter().map(|task| (task.gtid, task.ran)).collect();
    assert!(ran.values().all(|&steps| steps == SHORT.run * SHORT.rounds), "{ran:?} at {STEP:?}");
}
