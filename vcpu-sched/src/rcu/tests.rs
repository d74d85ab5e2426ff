//! Readers and updaters on the host. The machine's CPUs are played by one thread that says which it is, or by threads.

use core::cell::Cell;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::{Context, Poll, Waker};
use std::boxed::Box;
use std::sync::{Arc, Mutex};
use std::vec::Vec;
use std::{eprintln, thread};

use super::{Backlog, Domain, InReader, RcuMap, RcuPlatform, RcuPointer};
use crate::cpumask::CpuMask;
use crate::ids::{CpuId, Nanos};
use crate::runtime::lock::Spin;

std::thread_local! {
    static CPU: Cell<u32> = const { Cell::new(0) };
}

#[derive(Default)]
struct Host {
    now: AtomicU64,
    kicks: Mutex<Vec<u32>>,
    /// What each CPU has counted, of the first few.
    passages: [AtomicU64; 4],
}

// SAFETY: a CPU is played by one thread at a time. One that plays several keeps each guard on the CPU it came from: a
// guard knows its CPU, and nothing else is done between `pin` and `unpin`.
unsafe impl RcuPlatform for Host {
    type Lock = Spin;

    fn pin(&self) -> CpuId {
        CpuId(CPU.get())
    }

    fn unpin(&self) {}

    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::Relaxed))
    }

    fn kick(&self, cpu: CpuId) {
        self.kicks.lock().unwrap().push(cpu.0);
    }

    fn relax(&self) {
        thread::yield_now();
    }

    fn passages(&self, cpu: CpuId) -> u64 {
        self.passages.get(cpu.index()).map_or(0, |passages| passages.load(Ordering::SeqCst))
    }
}

fn domain(cpus: u32, limit: u32) -> &'static Domain<Host> {
    let domain = Box::leak(Box::new(Domain::new(Host::default(), cpus, limit, Nanos(100))));
    for cpu in 0..cpus {
        on(cpu, || domain.leave_away());
    }
    domain
}

fn on<T>(cpu: u32, f: impl FnOnce() -> T) -> T {
    let before = CPU.replace(cpu);
    let result = f();
    CPU.set(before);
    result
}

/// All CPUs report and callbacks run, for as many periods as anything can wait.
fn settle(domain: &Domain<Host>, cpus: u32) -> usize {
    let mut run = 0;
    for _ in 0..4 {
        _ = domain.advance();
        (0..cpus).for_each(|cpu| on(cpu, || domain.report()));
        _ = domain.advance();
        run += domain.run_callbacks(usize::MAX);
    }
    run
}

/// Says when it is dropped.
struct Value(u32, Arc<AtomicUsize>);

impl Drop for Value {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_a_reader_sees_stays_until_it_goes() {
    let domain = domain(2, 10);
    let dropped = Arc::new(AtomicUsize::new(0));
    let pointer = RcuPointer::new(domain, Value(1, dropped.clone()));
    let guard = domain.read();
    let old = pointer.load(&guard);
    assert_eq!(on(1, || pointer.replace(Value(2, dropped.clone()))), Backlog::Room);
    assert_eq!(settle(domain, 2), 0);
    assert_eq!((old.0, pointer.load(&guard).0, dropped.load(Ordering::Relaxed)), (1, 2, 0));
    drop(guard);
    assert_eq!(settle(domain, 2), 1);
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
    drop(pointer);
    assert_eq!(dropped.load(Ordering::Relaxed), 1, "nor is the last value dropped by who drops the pointer");
    settle(domain, 2);
    assert_eq!((dropped.load(Ordering::Relaxed), domain.pending()), (2, 0));
}

#[test]
fn guards_nest_and_the_last_one_counts_whatever_their_order() {
    let domain = domain(1, 10);
    let (outer, inner) = (domain.read(), domain.read());
    let cookie = domain.cookie();
    _ = domain.advance();
    drop(outer);
    domain.report();
    _ = domain.advance();
    assert!(!domain.is_over(cookie));
    drop(inner);
    _ = domain.advance();
    assert!(domain.is_over(cookie), "it was asked to report, and the last reader does");
}

#[test]
fn cpus_that_are_away_hold_nothing_up_but_their_readers_do() {
    let domain = domain(3, 10);
    assert!(on(1, || domain.enter_away()) && on(2, || domain.enter_away()));
    assert_eq!(domain.synchronize_blocking(), Ok(()), "nobody else has to do anything");
    // A reader on a CPU that is away, as in an interrupt that came upon its sleep.
    let guard = on(2, || domain.read());
    let cookie = domain.cookie();
    _ = domain.advance();
    domain.report();
    _ = domain.advance();
    assert!(!domain.is_over(cookie), "it reads");
    on(2, || drop(guard));
    _ = domain.advance();
    assert!(domain.is_over(cookie), "it has gone away again by itself");
    on(2, || {
        let guard = domain.read();
        assert!(!domain.enter_away(), "not with a reader");
        // It is woken while it reads: it stays then.
        domain.leave_away();
        drop(guard);
    });
    let cookie = domain.cookie();
    _ = domain.advance();
    domain.report();
    _ = domain.advance();
    assert!(!domain.is_over(cookie), "a CPU that works reports for itself");
    on(2, || domain.report());
    _ = domain.advance();
    assert!(domain.is_over(cookie));
}

#[test]
fn a_reader_that_waits_for_readers_is_told() {
    let domain = domain(1, 10);
    let guard = domain.read();
    assert_eq!((domain.synchronize_blocking(), domain.synchronize_expedited()), (Err(InReader), Err(InReader)));
    drop(guard);
    assert_eq!(domain.synchronize_expedited(), Ok(()));
}

#[test]
#[should_panic = "a guard of another domain"]
fn a_guard_of_another_domain_guards_nothing() {
    let pointer = RcuPointer::new(domain(1, 10), 1);
    let other = domain(1, 10);
    pointer.load(&other.read());
}

#[test]
fn a_stalled_cpu_is_told_of_and_waited_for() {
    let domain = domain(3, 10);
    let guard = on(1, || domain.read());
    let cookie = domain.cookie();
    assert!(domain.advance().stall.is_none());
    for cpu in [0, 2] {
        on(cpu, || domain.report());
    }
    domain.platform().now.store(100, Ordering::Relaxed);
    let stall = domain.advance().stall.expect("its time is up");
    assert_eq!((stall.cpus, stall.waited), (CpuMask::one_shot(CpuId(1)), Nanos(100)));
    assert!(!domain.is_over(cookie));
    domain.expedite();
    assert_eq!(*domain.platform().kicks.lock().unwrap(), [1], "only who holds it up is interrupted");
    on(1, || domain.report()); // the interrupt
    on(1, || drop(guard));
    _ = domain.advance();
    assert!(domain.is_over(cookie));
}

#[test]
fn callbacks_run_in_batches_and_the_updater_is_told_when_they_are_many() {
    const LIMIT: u32 = 8;
    let domain = domain(2, LIMIT);
    let order = Arc::new(Mutex::new(Vec::new()));
    for number in 0..LIMIT + 2 {
        let order = order.clone();
        let backlog = domain.call(move || order.lock().unwrap().push(number));
        assert_eq!(backlog == Backlog::Full, number >= LIMIT);
        if number == 3 {
            _ = domain.advance(); // some wait for one period, some for the next
        }
    }
    assert!(!domain.platform().kicks.lock().unwrap().is_empty(), "a full domain is expedited");
    assert_eq!(domain.run_callbacks(100), 0);
    for _ in 0..3 {
        (0..2).for_each(|cpu| on(cpu, || domain.report()));
        _ = domain.advance();
    }
    assert_eq!([domain.run_callbacks(4), domain.run_callbacks(4), domain.run_callbacks(4)], [4, 4, 2]);
    assert_eq!((domain.pending(), domain.run_callbacks(4)), (0, 0));
    assert!(order.lock().unwrap().is_sorted());
}

#[test]
fn a_cpu_runs_what_another_left() {
    let domain = domain(2, 8);
    let called = Arc::new(AtomicBool::new(false));
    let backlog = on(1, || {
        let called = called.clone();
        domain.call(move || called.store(true, Ordering::Relaxed))
    });
    assert_eq!(backlog, Backlog::Room);
    assert!(on(1, || domain.enter_away()));
    domain.synchronize_blocking().unwrap();
    assert_eq!(domain.run_callbacks(8), 1);
    assert!(called.load(Ordering::Relaxed));
}

#[test]
fn a_task_waits_for_a_period_and_one_that_goes_is_forgotten() {
    let domain = domain(2, 8);
    let mut gone = Box::pin(domain.synchronize());
    let mut waits = pin!(domain.synchronize());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(gone.as_mut().poll(&mut cx).is_pending() && waits.as_mut().poll(&mut cx).is_pending());
    drop(gone);
    _ = domain.advance();
    domain.report();
    _ = domain.advance();
    assert!(waits.as_mut().poll(&mut cx).is_pending());
    on(1, || domain.report());
    _ = domain.advance();
    assert_eq!(waits.as_mut().poll(&mut cx), Poll::Ready(()));
}

/// In the manner of rcutorture: readers that look twice, updaters, CPUs that go and come, one that reads for long. The
/// sizes are an argument: `RCU_TORTURE=1000000` makes it a soak.
#[test]
fn torture() {
    const CPUS: u32 = 4;
    let updates: usize = std::env::var("RCU_TORTURE").ok().and_then(|text| text.parse().ok()).unwrap_or(2000);
    let domain = domain(CPUS, 64);
    let dropped = Arc::new(AtomicUsize::new(0));
    let alive = || (Arc::new(AtomicBool::new(true)), dropped.clone());

    /// Says that it is dead when it is dropped, in memory that stays.
    struct Canary((Arc<AtomicBool>, Arc<AtomicUsize>));
    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.0.store(false, Ordering::SeqCst);
            self.0.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    let pointer = RcuPointer::new(domain, Canary(alive()));
    let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|threads| {
        for cpu in 1..CPUS {
            let (pointer, done, reads) = (&pointer, &done, &reads);
            threads.spawn(move || {
                CPU.set(cpu);
                let mut round = 0u32;
                while !done.load(Ordering::Relaxed) {
                    round += 1;
                    let guard = domain.read();
                    let canary = pointer.load(&guard);
                    let witness = canary.0.0.clone();
                    for _ in 0..round % 7 * cpu {
                        // One of the CPUs is slow, so that periods overlap its readers.
                        thread::yield_now();
                        let inner = domain.read();
                        assert!(pointer.load(&inner).0.0.load(Ordering::SeqCst), "dead while it can be reached");
                    }
                    assert!(witness.load(Ordering::SeqCst), "freed under a reader");
                    drop(guard);
                    reads.fetch_add(1, Ordering::Relaxed);
                    match round % 3 {
                        0 => domain.report(),
                        1 => {
                            assert!(domain.enter_away());
                            if round.is_multiple_of(2) {
                                domain.leave_away(); // else its next reader comes back by itself
                            }
                        }
                        _ => _ = domain.advance(),
                    }
                }
                assert!(domain.enter_away());
            });
        }
        for update in 0..updates {
            if pointer.replace(Canary(alive())) == Backlog::Full {
                domain.synchronize_expedited().unwrap();
            }
            if update % 5 == 0 {
                domain.report();
                _ = domain.advance();
            }
            domain.run_callbacks(16);
        }
        done.store(true, Ordering::Relaxed);
    });
    drop(pointer);
    domain.leave_away();
    while domain.pending() != 0 {
        domain.synchronize_blocking().unwrap();
        domain.run_callbacks(16);
    }
    assert_eq!(dropped.load(Ordering::SeqCst), updates + 1, "each value is freed once");
    eprintln!("{} reads beside {updates} updates", reads.load(Ordering::Relaxed));
}

#[test]
fn a_counted_passage_ends_a_period_as_a_report_does() {
    let domain = domain(2, 100);
    let pass = |cpu: usize| _ = domain.platform().passages[cpu].fetch_add(1, Ordering::SeqCst);
    pass(0); // before it begins: doesn't count
    let cookie = domain.cookie();
    _ = domain.advance();
    pass(1);
    _ = domain.advance();
    assert!(!domain.is_over(cookie) && domain.is_wanted(), "CPU 0 has not passed since");
    pass(0);
    _ = domain.advance();
    assert!(domain.is_over(cookie) && !domain.is_wanted());
}

/// A value that knows when it was dropped.
struct Marked(u32, AtomicU64);

const LIVE: u64 = 0x5ca1_ab1e;

impl Drop for Marked {
    fn drop(&mut self) {
        self.1.store(0, Ordering::Relaxed);
    }
}

#[test]
fn a_map_finds_what_is_in_it_and_frees_what_is_not_after_its_readers() {
    let domain = domain(1, 100);
    let map: RcuMap<Marked, Host> = RcuMap::new(domain, 4);
    for key in 0..20 {
        assert!(map.insert(key, Marked(key, AtomicU64::new(LIVE))).is_ok());
    }
    assert!(map.insert(7, Marked(7, AtomicU64::new(LIVE))).is_err(), "it is there");
    let guard = domain.read();
    let seen = map.get(&guard, 7).unwrap();
    let (number, _) = map.remove(7, |value| value.0).unwrap();
    assert_eq!(number, 7);
    assert!(map.remove(7, |_| ()).is_none() && map.get(&guard, 7).is_none());
    assert_eq!(settle(domain, 1), 0);
    assert_eq!(seen.1.load(Ordering::Relaxed), LIVE, "a reader has it");
    let mut keys = Vec::new();
    assert!(
        map.find_map(&guard, 2, |key, _| {
            keys.push(key);
            None::<()>
        })
        .is_none()
    );
    assert_eq!(keys.first().map(|key| key % 4), Some(2), "chain by chain, from that of the number on");
    keys.sort_unstable();
    assert!(keys.iter().copied().eq((0..20).filter(|key| *key != 7)));
    drop(guard);
    assert_eq!(settle(domain, 1), 1);
}

/// Readers on threads, a writer that takes out and puts in: nobody sees a dropped value.
#[test]
fn a_map_under_readers_and_writers() {
    const CPUS: u32 = 4;
    let domain = domain(CPUS, 64);
    let map: &RcuMap<Marked, Host> = Box::leak(Box::new(RcuMap::new(domain, 8)));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for cpu in 1..CPUS {
            let stop = &stop;
            scope.spawn(move || {
                on(cpu, || {
                    let mut number = cpu;
                    while !stop.load(Ordering::Relaxed) {
                        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let guard = domain.read();
                        if let Some(value) = map.get(&guard, number >> 16 & 31) {
                            assert_eq!((value.0, value.1.load(Ordering::Relaxed)), (number >> 16 & 31, LIVE));
                        }
                        drop(guard);
                        domain.report();
                        thread::yield_now();
                    }
                    assert!(domain.enter_away());
                });
            });
        }
        for round in 0..3_000_u32 {
            let key = round.wrapping_mul(7) & 31;
            if map.insert(key, Marked(key, AtomicU64::new(LIVE))).is_err() {
                let full = map.remove(key, |value| assert_eq!(value.0, key)).unwrap().1 == Backlog::Full;
                domain.report();
                _ = domain.advance();
                domain.run_callbacks(8);
                if full {
                    domain.synchronize_blocking().unwrap();
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
