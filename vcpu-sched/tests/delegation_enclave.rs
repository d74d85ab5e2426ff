//! The guest's side by itself: what each commit, flag, tunable and request does, and ghOSt's own tests done over: message order,
//! departed and affinity races, sync groups, chains, hand-off by association.

#[path = "delegation/races.rs"]
mod races;

use std::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::delegation::abi::{
    GTID_AGENT, GTID_IDLE, GTID_NONE, answer, attach_flags, commit_flags, message_flags, request, run_flags, tunables,
};
use vcpu_sched::delegation::channel::Consumer;
use vcpu_sched::delegation::check::How;
use vcpu_sched::delegation::enclave::{Arrival, Config, Enclave, EnclaveError, NewTask, Occasion, Pick};
use vcpu_sched::delegation::layout::{Layout, Region, Sizes};
use vcpu_sched::delegation::message::{Message, MessageType as M};
use vcpu_sched::delegation::pick::{Entry, Filler};
use vcpu_sched::delegation::task::{Leave, Place};
use vcpu_sched::delegation::txn::{Request, Slot, TxnState as S};
use vcpu_sched::ids::{CpuId, Nanos};

const T: Nanos = Nanos(1_000);
const C0: CpuId = CpuId(0);
const C1: CpuId = CpuId(1);

const SIZES: Sizes = Sizes { cpus: 4, tasks: 16, channels: 2, channel_len: 64, pick_len: 4 };

/// Enough for every [`Pair`]; never given back.
fn memory() -> &'static [AtomicU64] {
    let layout = Layout::new(SIZES).expect("sizes");
    (0..layout.words()).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
}

/// An enclave, and an agent that only reads and writes words.
struct Pair {
    enclave: Enclave<'static>,
    region: Region<'static>,
    consumers: Vec<Consumer>,
    gtids: u64,
    requests: u32,
}

impl Pair {
    fn new(cpus: u32) -> Self {
        Self::attached(cpus, attach_flags::ONLINE, 0)
    }

    fn attached(cpus: u32, flags: u32, tunable: u32) -> Self {
        Self::over(memory(), cpus, flags, tunable)
    }

    /// Over memory that another may have used before.
    fn over(words: &'static [AtomicU64], cpus: u32, flags: u32, tunable: u32) -> Self {
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let layout = Layout::new(Sizes { cpus, ..SIZES }).expect("sizes");
        let region = Region::new(words, layout).expect("long enough");
        let config = Config { flood_limit: u32::MAX, ..Config::new(1, CpuMask::full(cpus)) };
        let mut enclave = Enclave::new(region, config);
        (0..cpus).for_each(|cpu| enclave.set_online(CpuId(cpu), true, T));
        let consumers = (0..2).map(|n| Consumer::attach(&region.channel(n).expect("two channels"))).collect();
        region.agent_page()[1].store(tunable.into(), Ordering::Relaxed);
        region.agent_page()[0].store(9 | u64::from(flags) << 32, Ordering::Relaxed);
        enclave.poll_agent(T);
        assert!(enclave.delegates());
        enclave.take_effects();
        Self { enclave, region, consumers, gtids: 100, requests: 0 }
    }

    fn join(&mut self, arrival: Arrival, cpu: CpuId) -> u32 {
        self.gtids += 1;
        let new = NewTask {
            gtid: self.gtids,
            parent: 5,
            nice: 3,
            allowed: CpuMask::full(8),
            runtime: Nanos::ZERO,
            cpu,
            arrival,
        };
        self.enclave.join(&new, T).expect("room")
    }

    fn queued(&mut self) -> u32 {
        self.join(Arrival::Queued, C0)
    }

    fn messages(&mut self) -> Vec<Message> {
        let mut all = Vec::new();
        for (n, consumer) in self.consumers.iter_mut().enumerate() {
            let memory = self.region.channel(n as u32).expect("two channels");
            all.extend(std::iter::from_fn(|| consumer.receive(&memory)));
            consumer.release(&memory);
        }
        all
    }

    fn kinds(&mut self) -> Vec<M> {
        self.messages().iter().map(|message| message.kind).collect()
    }

    fn request(&self, cpu: CpuId, slot: u32) -> Request {
        let gtid = self.region.read_status(slot).expect("a status word").gtid;
        Request::run(cpu, gtid, slot, self.enclave.task_barrier(slot).expect("a task"))
    }

    fn slot(&self, cpu: CpuId) -> Slot<'static> {
        self.region.transaction(cpu).and_then(Slot::new).expect("a CPU")
    }

    /// Submits, lets the CPU look, and returns the end state.
    fn commit(&mut self, request: &Request) -> S {
        let slot = self.slot(request.cpu);
        let _ = slot.submit(request).expect("the last one is over");
        self.enclave.poll(request.cpu, Occasion::Idle, T);
        slot.outcome().expect("answered at once").state
    }

    /// The task runs there from now on.
    fn run(&mut self, slot: u32, cpu: CpuId, flags: u32) {
        let request = Request { run_flags: flags, ..self.request(cpu, slot) };
        assert_eq!(self.commit(&request), S::Complete);
        assert_eq!(self.enclave.pick(cpu, None, T), Pick::Task(slot));
        self.enclave.switched_in(slot, cpu, T).expect("picked");
    }

    fn ask(&mut self, op: u32, slot: u32, barrier: u32, value: u64, cookie: u64) -> u32 {
        let page = self.region.agent_page();
        self.requests += 1;
        page[4].store(u64::from(slot) | u64::from(barrier) << 32, Ordering::Relaxed);
        page[5].store(value, Ordering::Relaxed);
        page[6].store(cookie, Ordering::Relaxed);
        page[3].store(u64::from(self.requests) | u64::from(op) << 32, Ordering::Release);
        self.enclave.poll_agent(T);
        let told = self.region.guest_page()[1].load(Ordering::Acquire);
        assert_eq!(told as u32, self.requests, "answered");
        (told >> 32) as u32
    }
}

#[test]
fn what_a_message_carries() {
    let mut pair = Pair::new(2);
    let task = pair.queued();
    let [new] = pair.messages()[..] else { panic!("one message") };
    assert!(new.is_runnable());
    assert_eq!((new.slot, new.gtid, new.seqnum, new.nice, new.extra), (task, 101, 1, 3, 5));
    pair.run(task, C1, run_flags::SEND_TASK_ON_CPU);
    pair.enclave.leave(task, Leave::Blocked, Nanos(77), T).expect("it ran");
    let woken = pair.enclave.wake(task, C0, true, T).expect("a task");
    assert_eq!(woken, Some(C1), "where it ran last, not on a third CPU");
    let [on_cpu, blocked, wakeup] = pair.messages()[..] else { panic!("three messages") };
    assert_eq!((on_cpu.kind, on_cpu.cpu, on_cpu.seqnum), (M::OnCpu, C1, 2));
    assert_eq!((blocked.kind, blocked.cpu, blocked.runtime), (M::Blocked, C1, Nanos(77)));
    assert!(on_cpu.cpu_seqnum < blocked.cpu_seqnum);
    assert_eq!((wakeup.kind, wakeup.cpu, wakeup.wake_up_cpu, wakeup.waker_cpu), (M::Wakeup, C1, C1, C0));
    assert!(wakeup.has(message_flags::DEFERRABLE));
    assert_eq!(pair.enclave.wake(task, C0, false, T), Ok(None), "surplus");
    assert_eq!(pair.kinds(), []);
}

#[test]
fn the_end_states_of_commits() {
    let mut pair = Pair::new(2);
    let (queued, blocked) = (pair.queued(), pair.join(Arrival::Blocked, C0));
    let good = pair.request(C0, queued);
    let cases = [
        (Request { version: 9, ..good }, S::UnsupportedVersion),
        (Request { commit_flags: 1 << 30, ..good }, S::InvalidFlags),
        (Request { run_flags: run_flags::NEED_CPU_NOT_IDLE, ..good }, S::InvalidFlags),
        (Request { gtid: 7, ..good }, S::TargetNotFound),
        (Request { slot: 15, ..good }, S::TargetNotFound),
        (Request { task_barrier: good.task_barrier + 1, ..good }, S::TargetStale),
        (pair.request(C0, blocked), S::TargetNotRunnable),
        (Request { gtid: GTID_AGENT, ..good }, S::NoAgent),
        (Request { sync_group_owner: Some(CpuId(77)), ..good }, S::InvalidCpu),
    ];
    for (request, expected) in cases {
        assert_eq!(pair.commit(&request), expected, "{request:?}");
        assert_eq!(pair.enclave.place(queued), Some(Place::Queued));
    }
    let elsewhere = Request { cpu: C1, ..good };
    let slot = pair.slot(C0);
    let _ = slot.submit(&elsewhere).expect("over");
    pair.enclave.poll(C0, Occasion::Kick, T);
    assert_eq!(slot.outcome().expect("answered").state, S::InvalidCpu);
    pair.enclave.set_allowed(queued, &CpuMask::one_shot(C1), T).expect("a task");
    let here = pair.request(C0, queued);
    assert_eq!(pair.commit(&here), S::NotPermitted);
    pair.enclave.higher_class(C1, true, T);
    let there = pair.request(C1, queued);
    assert_eq!(pair.commit(&there), S::CpuUnavail);
    pair.enclave.higher_class(C1, false, T);
    pair.enclave.set_online(C1, false, T);
    assert_eq!(pair.commit(&there), S::CpuOffline);
    pair.enclave.set_online(C1, true, T);
    pair.run(queued, C1, run_flags::DO_NOT_PREEMPT);
    assert_eq!(pair.commit(&there), S::TargetOncpu);
    let other = pair.queued();
    let displacing = pair.request(C1, other);
    assert_eq!(pair.commit(&displacing), S::CpuUnavail, "must not be preempted");
}

#[test]
fn a_commit_waits_for_its_occasion() {
    let occasions = [Occasion::Kick, Occasion::Schedule, Occasion::Idle, Occasion::Tick];
    let cases = [
        (0, 0, [true, true, true, false]),
        (0, tunables::COMMIT_AT_TICK, [true, true, true, true]),
        (commit_flags::AT_SCHEDULE, tunables::COMMIT_AT_TICK, [false, true, true, false]),
        (commit_flags::AT_TXN_COMMIT, tunables::COMMIT_AT_TICK, [true, false, true, false]),
    ];
    for (flags, tunable, expected) in cases {
        for (occasion, committed) in occasions.into_iter().zip(expected) {
            let mut pair = Pair::attached(1, attach_flags::ONLINE, tunable);
            let task = pair.queued();
            let request = Request { commit_flags: flags, ..pair.request(C0, task) };
            let _ = pair.slot(C0).submit(&request).expect("unused");
            assert_eq!(pair.enclave.poll(C0, occasion, T), committed, "{flags} at {occasion:?}");
            assert_eq!(pair.slot(C0).outcome().is_some(), committed);
        }
    }
}

#[test]
fn the_agent_barrier_holds_only_for_who_gives_up_its_own_cpu() {
    let mut pair =
        Pair::attached(1, attach_flags::ONLINE, tunables::DELIVER_AGENT_RUNNABILITY | tunables::DELIVER_TICKS);
    let task = pair.queued();
    pair.enclave.agent_joined(C0);
    pair.enclave.run_agent(C0, T);
    assert_eq!(pair.enclave.pick(C0, None, T), Pick::Agent);
    let seen = pair.region.read_cpu(C0).expect("a CPU").barrier;
    pair.enclave.tick(C0, T); // a message that the agent has not seen
    let stale = Request { agent_barrier: seen, ..pair.request(C0, task) };
    let slot = pair.slot(C0);
    let _ = slot.submit(&stale).expect("unused");
    assert!(!pair.enclave.commit(C0, C0, How::LocalBlocking, T));
    assert_eq!(slot.outcome().expect("answered").state, S::AgentStale);
    let fresh = Request { agent_barrier: pair.region.read_cpu(C0).expect("a CPU").barrier, ..stale };
    let _ = slot.submit(&fresh).expect("over");
    assert!(pair.enclave.commit(C0, C0, How::LocalBlocking, T));
    pair.enclave.agent_blocked(C0, T);
    assert_eq!(pair.enclave.pick(C0, None, T), Pick::Task(task));
    let kinds = pair.kinds();
    assert_eq!(kinds, [M::New, M::AgentWakeup, M::Tick, M::AgentBlocked]);
}

#[test]
fn run_flags_wake_the_agent_and_keep_what_is_latched() {
    let reasons = [
        (run_flags::RTLA_ON_BLOCKED, Leave::Blocked),
        (run_flags::RTLA_ON_YIELD, Leave::Yield),
        (run_flags::RTLA_ON_PREEMPT, Leave::Preempt),
    ];
    for (flag, why) in reasons {
        for flags in [flag, 0] {
            let mut pair = Pair::new(1);
            pair.enclave.agent_joined(C0);
            let task = pair.queued();
            pair.run(task, C0, flags);
            pair.enclave.leave(task, why, T, T).expect("it ran");
            let expected = if flags == 0 { Pick::Idle } else { Pick::Agent };
            assert_eq!(pair.enclave.pick(C0, None, T), expected, "{why:?}");
        }
    }
    for flags in [run_flags::DEFER_LATCHED_PREEMPTION_BY_AGENT, 0] {
        let mut pair = Pair::new(1);
        pair.enclave.agent_joined(C0);
        let task = pair.queued();
        let request = Request { run_flags: flags, ..pair.request(C0, task) };
        assert_eq!(pair.commit(&request), S::Complete);
        pair.enclave.run_agent(C0, T);
        assert_eq!(pair.enclave.pick(C0, None, T), Pick::Agent);
        let expected = if flags == 0 { Place::Queued } else { Place::Latched(C0) };
        assert_eq!(pair.enclave.place(task), Some(expected));
    }
}

#[test]
fn who_is_displaced_is_told_or_spared() {
    let mut pair = Pair::new(1);
    let (first, second) = (pair.queued(), pair.queued());
    let latched = Request { run_flags: run_flags::SEND_TASK_ON_CPU, ..pair.request(C0, first) };
    assert_eq!(pair.commit(&latched), S::Complete);
    pair.kinds();
    pair.run(second, C0, 0);
    let told: Vec<(M, bool)> =
        pair.messages().iter().map(|message| (message.kind, message.has(message_flags::WAS_LATCHED))).collect();
    assert_eq!(told, [(M::OnCpu, true), (M::Preempt, true)], "latched, and displaced before it ran");
    for (flags, expected) in [(0, vec![M::Preempt]), (run_flags::ELIDE_PREEMPT, vec![])] {
        let (mut pair, flags) = (Pair::new(1), flags);
        let (first, second) = (pair.queued(), pair.queued());
        pair.run(first, C0, 0);
        pair.kinds();
        let request = Request { run_flags: flags, ..pair.request(C0, second) };
        assert_eq!(pair.commit(&request), S::Complete);
        assert_eq!(pair.enclave.pick(C0, Some(first), T), Pick::Task(second));
        pair.enclave.leave(first, Leave::Preempt, T, T).expect("it ran");
        assert_eq!(pair.kinds(), expected);
        assert_eq!(pair.enclave.place(first), Some(Place::Queued));
    }
}

#[test]
fn special_numbers_unschedule_and_idle() {
    let mut pair = Pair::new(1);
    let task = pair.queued();
    pair.run(task, C0, 0);
    assert_eq!(pair.enclave.pick(C0, Some(task), T), Pick::Keep(task));
    let none = Request::run(C0, GTID_NONE, 0, 0);
    assert_eq!(pair.commit(&none), S::Complete);
    assert_eq!(pair.enclave.pick(C0, Some(task), T), Pick::Idle);
    pair.enclave.leave(task, Leave::Preempt, T, T).expect("it ran");
    let idle = Request { run_flags: run_flags::NEED_CPU_NOT_IDLE, ..Request::run(C0, GTID_IDLE, 0, 0) };
    assert_eq!(pair.commit(&idle), S::Complete);
    assert_eq!(pair.enclave.pick(C0, None, T), Pick::Idle);
    pair.kinds();
    pair.enclave.higher_class(C0, true, T);
    assert_eq!(pair.kinds(), [M::NotIdle]);
}

#[test]
fn a_ring_entry_with_a_special_number_latches_nobody() {
    let mut pair = Pair::new(2);
    let task = pair.queued();
    pair.run(task, C1, 0);
    let mut filler = Filler::attach(&pair.region, C0);
    for gtid in [GTID_NONE, GTID_IDLE, GTID_AGENT] {
        assert!(filler.put(&pair.region, C0, &Entry { slot: task, task_barrier: 0, gtid }));
        assert_eq!(pair.enclave.pick(C0, None, T), Pick::Idle, "{gtid:#x}");
        assert_eq!(pair.enclave.place(task), Some(Place::OnCpu(C1)));
        assert!(pair.enclave.is_consistent());
    }
}

#[test]
fn cpu_messages_come_if_asked_for() {
    let all = tunables::DELIVER_TICKS | tunables::DELIVER_CPU_AVAILABILITY;
    for (tunable, expected) in
        [(0, vec![M::TimerExpired]), (all, vec![M::Busy, M::Available, M::Tick, M::TimerExpired])]
    {
        let mut pair = Pair::attached(1, attach_flags::ONLINE, tunable);
        assert_eq!(pair.ask(request::ARM_TIMER, 0, 0, 500, 42), answer::OK);
        pair.enclave.higher_class(C0, true, T);
        pair.enclave.higher_class(C0, false, T);
        pair.enclave.tick(C0, T);
        let messages = pair.messages();
        assert_eq!(messages.iter().map(|message| message.kind).collect::<Vec<_>>(), expected);
        assert_eq!(messages.last().map(|message| message.extra), Some(42));
        assert!(messages.is_sorted_by_key(|message| (message.cpu_seqnum, message.seqnum)));
    }
}

#[test]
fn association_tells_who_was_faster() {
    let mut pair = Pair::new(1);
    let task = pair.queued();
    let barrier = pair.region.read_status(task).expect("a task").barrier;
    pair.enclave.set_nice(task, 1, T).expect("a task");
    assert_eq!(pair.ask(request::ASSOCIATE, task, barrier, 1, 0), answer::STALE);
    let barrier = pair.region.read_status(task).expect("a task").barrier;
    assert_eq!(pair.ask(request::ASSOCIATE, task, barrier, 1, 0), answer::OK);
    assert_eq!(pair.ask(request::ASSOCIATE, task, barrier, 1, 0), answer::ALREADY);
    assert_eq!(pair.ask(request::ASSOCIATE, task, barrier, 2, 0), answer::INVALID);
    assert_eq!(pair.ask(request::ASSOCIATE, 7, barrier, 1, 0), answer::NO_TASK);
    assert_eq!(pair.ask(99, 0, 0, 0, 0), answer::INVALID);
    pair.messages();
    pair.enclave.set_nice(task, 2, T).expect("a task");
    let second = pair.region.channel(1).expect("two channels");
    assert!(pair.consumers[1].receive(&second).is_some(), "on the other channel now");
    pair.enclave.depart(task, T).expect("a task");
    assert_eq!(pair.ask(request::ASSOCIATE, task, barrier, 0, 0), answer::NO_TASK);
    assert_eq!(pair.ask(request::FREE, task, 0, 0, 0), answer::OK);
}

#[test]
fn discovery_tells_of_each_task_once() {
    let mut pair = Pair::new(2);
    let tasks = [pair.queued(), pair.join(Arrival::Blocked, C0), pair.queued(), pair.queued()];
    pair.run(tasks[2], C0, 0);
    let request = pair.request(C1, tasks[3]);
    assert_eq!(pair.commit(&request), S::Complete);
    pair.messages();
    assert_eq!(pair.ask(request::DISCOVER, 0, 0, 0, 0), answer::OK);
    assert_eq!(pair.kinds(), [M::New, M::New, M::New], "the one that runs is told of when it is off");
    assert_eq!(pair.enclave.place(tasks[3]), Some(Place::Queued));
    assert!(pair.enclave.take_effects().reschedule.test(C0));
    assert_eq!(pair.enclave.pick(C0, Some(tasks[2]), T), Pick::Idle);
    pair.enclave.leave(tasks[2], Leave::Preempt, T, T).expect("it ran");
    assert_eq!(pair.kinds(), [M::New]);
}

#[test]
fn a_sleeping_agent_is_rung_once() {
    let mut pair = Pair::attached(1, attach_flags::ONLINE | attach_flags::SLEEPS, 0);
    let bell = &pair.region.agent_page()[2];
    bell.store(0, Ordering::Relaxed);
    let task = pair.queued();
    assert!(!pair.enclave.take_effects().ring_bell, "it is awake");
    pair.region.agent_page()[2].store(1, Ordering::Relaxed);
    pair.enclave.set_nice(task, 1, T).expect("a task");
    assert!(pair.enclave.take_effects().ring_bell);
    pair.enclave.set_nice(task, 2, T).expect("a task");
    assert!(!pair.enclave.take_effects().ring_bell, "it was rung");
}

#[test]
fn a_chain_of_direct_switches_is_told_by_two_messages() {
    let mut pair = Pair::new(1);
    let tasks: Vec<u32> = (0..5).map(|_| pair.join(Arrival::Blocked, C0)).collect();
    let first = pair.queued();
    pair.run(first, C0, run_flags::RTLA_ON_BLOCKED);
    pair.kinds();
    let mut current = first;
    for &next in &tasks {
        pair.enclave.switch_to(current, next, T, T).expect("it waits");
        assert_eq!(pair.enclave.pick(C0, Some(next), T), Pick::Keep(next));
        current = next;
    }
    assert_eq!(pair.enclave.switch_to(current, current, T, T), Err(EnclaveError::SwitchTo));
    pair.enclave.leave(current, Leave::Blocked, T, T).expect("it ran");
    let told: Vec<(M, u32, bool)> =
        pair.messages().iter().map(|m| (m.kind, m.slot, m.has(message_flags::FROM_SWITCHTO))).collect();
    assert_eq!(told, [(M::SwitchTo, first, false), (M::Blocked, current, true)]);
    let mut pair = Pair::attached(1, attach_flags::ONLINE, tunables::SWITCHTO_DISABLED);
    let (runs, waits) = (pair.queued(), pair.join(Arrival::Blocked, C0));
    pair.run(runs, C0, 0);
    assert_eq!(pair.enclave.switch_to(runs, waits, T, T), Err(EnclaveError::SwitchTo));
}

#[test]
fn what_cannot_happen_changes_nothing() {
    let mut pair = Pair::new(1);
    let task = pair.queued();
    let before = pair.enclave.task_barrier(task);
    assert!(pair.enclave.leave(task, Leave::Preempt, T, T).is_err(), "it ran nowhere");
    assert!(pair.enclave.switched_in(task, C0, T).is_err(), "it was not latched");
    assert_eq!(pair.enclave.wake(77, C0, false, T), Err(EnclaveError::NoTask(77)));
    for gtid in [GTID_NONE, GTID_IDLE, GTID_AGENT] {
        let new = NewTask {
            gtid,
            parent: 0,
            nice: 0,
            allowed: CpuMask::full(1),
            runtime: Nanos::ZERO,
            cpu: C0,
            arrival: Arrival::Queued,
        };
        assert_eq!(pair.enclave.join(&new, T), Err(EnclaveError::Gtid(gtid)));
    }
    assert_eq!((pair.enclave.task_barrier(task), pair.enclave.is_consistent()), (before, true));
    for _ in 1..16 {
        pair.queued();
    }
    let full = NewTask {
        gtid: 999,
        parent: 0,
        nice: 0,
        allowed: CpuMask::full(1),
        runtime: Nanos::ZERO,
        cpu: C0,
        arrival: Arrival::Queued,
    };
    assert_eq!(pair.enclave.join(&full, T), Err(EnclaveError::Full));
}
