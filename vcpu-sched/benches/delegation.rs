//! What scheduling from outside the guest costs on the host: two threads play a guest CPU and an agent over the same code and
//! memory as in a real machine. Run with `cargo bench -p vcpu-sched --bench delegation`, on a machine with two free cores.
//!
//! `message`: from just before the guest sends to just after the agent has it. `commit`: from just before the agent submits to just
//! after it sees the end state; the guest's CPU polls. `end to end`: from a wake-up on the guest's CPU to the pick of that
//! task there: message, decision, transaction, commit. `agent alone`: what the agent needs for message, books, decision and
//! transaction, while nobody else runs. `agent and guest`: decisions in a second with a thread that plays all CPUs at once. The
//! cost of the clock, which is in each measurement, is printed beside them and not taken off.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::delegation::agent::{Agent, Options};
use vcpu_sched::delegation::channel::{Consumer, Producer};
use vcpu_sched::delegation::enclave::{Arrival, Config, Enclave, NewTask, Occasion, Pick};
use vcpu_sched::delegation::layout::{Layout, Region, Sizes};
use vcpu_sched::delegation::message::{Message, MessageType};
use vcpu_sched::delegation::policies::fifo::Fifo;
use vcpu_sched::delegation::task::Leave;
use vcpu_sched::delegation::txn::{Outcome, Request, Rest, Slot, TxnState};
use vcpu_sched::ids::{CpuId, Nanos};

const ROUNDS: usize = 200_000;
const OPTIONS: Options = Options { nonce: 1, sleeps: false, tunables: 0, runnable_timeout: 0 };

/// The counter that both threads read, and how long one of its ticks is.
struct Clock {
    ns_per_tick: f64,
}

fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has the instruction, and it reads nothing but a counter.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        use std::sync::OnceLock;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

impl Clock {
    fn calibrate() -> Self {
        let (start, from) = (Instant::now(), ticks());
        while start.elapsed() < Duration::from_millis(100) {}
        Self { ns_per_tick: start.elapsed().as_nanos() as f64 / (ticks() - from) as f64 }
    }

    fn row(&self, what: &str, mut samples: Vec<u64>, others: &str) {
        samples.sort_unstable();
        let at = |part: f64| samples[(samples.len() as f64 * part) as usize] as f64 * self.ns_per_tick;
        println!("{what:<34} {:>9.0} {:>9.0} {:>9.0}   {others}", at(0.5), at(0.9), at(0.99));
    }
}

fn memory(cpus: u32, tasks: u32) -> (Vec<AtomicU64>, Layout) {
    let sizes = Sizes { cpus, tasks, channels: 1, channel_len: 4096, pick_len: 2 };
    let layout = Layout::new(sizes).expect("sizes");
    ((0..layout.words()).map(|_| AtomicU64::new(0)).collect(), layout)
}

/// Waits for a condition; gives the core away now and then, should the other thread need it.
fn until(mut done: impl FnMut() -> bool) {
    let mut turns = 0_u32;
    while !done() {
        turns += 1;
        if turns.is_multiple_of(100_000) {
            thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

fn message_delivery() -> Vec<u64> {
    let (words, layout) = memory(1, 1);
    let region = Region::new(&words, layout).expect("long enough");
    let seen = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (producer, memory) = (Producer::new(), region.channel(0).expect("one channel"));
            for n in 1..=ROUNDS as u64 {
                let message = Message { extra: ticks(), ..Message::new(MessageType::Tick, CpuId(0), Nanos::ZERO) };
                producer.send(&memory, &message).expect("read each time");
                until(|| seen.load(Ordering::Acquire) == n);
            }
        });
        let memory = region.channel(0).expect("one channel");
        let mut consumer = Consumer::attach(&memory);
        let samples = (1..=ROUNDS as u64).map(|n| {
            let mut taken = 0;
            until(|| match consumer.receive(&memory) {
                Some(message) => {
                    taken = ticks().saturating_sub(message.extra);
                    true
                }
                None => false,
            });
            consumer.release(&memory);
            seen.store(n, Ordering::Release);
            taken
        });
        samples.collect()
    })
}

fn commit() -> Vec<u64> {
    let (words, layout) = memory(1, 1);
    let region = Region::new(&words, layout).expect("long enough");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let slot = region.transaction(CpuId(0)).and_then(Slot::new).expect("one CPU");
            while !stop.load(Ordering::Relaxed) {
                if slot.claim(CpuId(0)).is_some() {
                    let outcome = Outcome { state: TxnState::Complete, commit_time: Nanos::ZERO, cpu_seqnum: 1 };
                    slot.finish(&outcome, Rest::Polls);
                }
                std::hint::spin_loop();
            }
        });
        let slot = region.transaction(CpuId(0)).and_then(Slot::new).expect("one CPU");
        let samples = (0..ROUNDS).map(|_| {
            let from = ticks();
            let _ = slot.submit(&Request::run(CpuId(0), 5, 0, 1));
            until(|| slot.outcome().is_some());
            ticks() - from
        });
        let samples = samples.collect();
        stop.store(true, Ordering::Relaxed);
        samples
    })
}

/// An enclave with that many CPUs, and a task for each, all runnable.
fn guest<'m>(region: Region<'m>, cpus: u32) -> Enclave<'m> {
    let config = Config { runnable_timeout: Nanos::MAX, ..Config::new(1, CpuMask::full(cpus)) };
    let mut enclave = Enclave::new(region, config);
    for n in 0..cpus {
        enclave.set_online(CpuId(n), true, Nanos::ZERO);
        let task = NewTask {
            gtid: u64::from(n) + 1,
            parent: 0,
            nice: 0,
            allowed: CpuMask::full(cpus),
            runtime: Nanos::ZERO,
            cpu: CpuId(n),
            arrival: Arrival::Queued,
        };
        enclave.join(&task, Nanos::ZERO).expect("room");
    }
    enclave
}

fn end_to_end() -> Vec<u64> {
    let (words, layout) = memory(1, 1);
    let region = Region::new(&words, layout).expect("long enough");
    let mut enclave = guest(region, 1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let agent = scope.spawn(|| {
            let region = Region::open(&words).expect("published");
            let mut agent = Agent::attach(region, OPTIONS, Fifo::default()).expect("nobody else");
            while !stop.load(Ordering::Relaxed) {
                let _ = agent.step(Nanos::ZERO, &mut |_| {});
                std::hint::spin_loop();
            }
        });
        let cpu = CpuId(0);
        let mut samples = Vec::with_capacity(ROUNDS);
        let mut from = ticks();
        while samples.len() < ROUNDS {
            until(|| {
                if !enclave.delegates() {
                    enclave.poll_agent(Nanos::ZERO);
                }
                enclave.poll(cpu, Occasion::Idle, Nanos::ZERO)
            });
            let Pick::Task(task) = enclave.pick(cpu, None, Nanos::ZERO) else { panic!("it was committed") };
            samples.push(ticks() - from);
            enclave.switched_in(task, cpu, Nanos::ZERO).expect("picked");
            enclave.leave(task, Leave::Blocked, Nanos::ZERO, Nanos::ZERO).expect("it ran");
            let _ = enclave.rest(cpu, Rest::Polls);
            // Let the agent read that first: what is measured begins with the wake-up.
            let started = ticks();
            until(|| ticks() - started > 2_000);
            from = ticks();
            enclave.wake(task, cpu, false, Nanos::ZERO).expect("it waits");
        }
        stop.store(true, Ordering::Relaxed);
        agent.join().expect("it doesn't panic");
        samples
    })
}

/// One round of the guest: every CPU takes what was committed, runs it for no time, and gives it back.
fn turn(enclave: &mut Enclave<'_>, cpus: u32) -> u64 {
    let mut ran = 0;
    for cpu in (0..cpus).map(CpuId) {
        if enclave.poll(cpu, Occasion::Idle, Nanos::ZERO)
            && let Pick::Task(task) = enclave.pick(cpu, None, Nanos::ZERO)
        {
            enclave.switched_in(task, cpu, Nanos::ZERO).expect("picked");
            enclave.leave(task, Leave::Yield, Nanos::ZERO, Nanos::ZERO).expect("it ran");
            let _ = enclave.rest(cpu, Rest::Polls);
            ran += 1;
        }
    }
    ran
}

/// Nanoseconds of the agent's for each decision, and decisions in a second.
fn alone(cpus: u32) -> (f64, f64) {
    let (words, layout) = memory(cpus, cpus);
    let mut enclave = guest(Region::new(&words, layout).expect("long enough"), cpus);
    let region = Region::open(&words).expect("published");
    let mut agent = Agent::attach(region, OPTIONS, Fifo::default()).expect("nobody else");
    let (mut spent, mut decided) = (Duration::ZERO, 0);
    while decided < 1_000_000 {
        enclave.poll_agent(Nanos::ZERO);
        let from = Instant::now();
        while agent.step(Nanos::ZERO, &mut |_| {}).expect("nobody ejects it") {}
        spent += from.elapsed();
        decided += turn(&mut enclave, cpus);
    }
    (spent.as_nanos() as f64 / decided as f64, decided as f64 / spent.as_secs_f64())
}

/// Decisions in a second while a thread plays all CPUs.
fn together(cpus: u32) -> f64 {
    let (words, layout) = memory(cpus, cpus);
    let mut enclave = guest(Region::new(&words, layout).expect("long enough"), cpus);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let region = Region::open(&words).expect("published");
            let mut agent = Agent::attach(region, OPTIONS, Fifo::default()).expect("nobody else");
            while !stop.load(Ordering::Relaxed) {
                let _ = agent.step(Nanos::ZERO, &mut |_| {});
            }
        });
        let mut decided = 0;
        let from = Instant::now();
        while from.elapsed() < Duration::from_millis(500) {
            enclave.poll_agent(Nanos::ZERO);
            decided += turn(&mut enclave, cpus);
        }
        let rate = decided as f64 / from.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        rate
    })
}

fn main() {
    let clock = Clock::calibrate();
    println!(
        "{:<34} {:>9} {:>9} {:>9}   ghOSt (SOSP 2021, table 3), other hardware",
        "nanoseconds", "p50", "p90", "p99"
    );
    let empty = (0..ROUNDS).map(|_| {
        let from = ticks();
        ticks() - from
    });
    clock.row("clock", empty.collect(), "");
    clock.row("message", message_delivery(), "265 to a global agent");
    clock.row("commit, and back", commit(), "668 agent + 1064 target, with an interrupt");
    clock.row("end to end", end_to_end(), "1772 commit alone");
    println!("\n{:<34} {:>9} {:>14} {:>18}", "CPUs", "ns each", "agent alone/s", "agent and guest/s");
    for cpus in [1, 10, 100, 1_000] {
        let (each, rate) = alone(cpus);
        println!("{cpus:<34} {each:>9.0} {rate:>14.0} {:>18.0}", together(cpus));
    }
}
