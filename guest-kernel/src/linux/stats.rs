//! `--stats`: what was counted, as report lines at the end of the guest.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vcpu_sched::ids::{CpuId, Nanos};

use super::names;
use crate::boot::cmdline;
use crate::cpu;
use crate::log::report;
use crate::task;
use crate::time;

static ON: AtomicBool = AtomicBool::new(false);
/// Calls by number; the last one counts all numbers beyond.
static CALLS: [AtomicU64; names::LIMIT + 1] = [const { AtomicU64::new(0) }; names::LIMIT + 1];
/// Those of them that this kernel doesn't have.
static UNKNOWN: [AtomicU64; names::LIMIT + 1] = [const { AtomicU64::new(0) }; names::LIMIT + 1];

/// Reads the command line.
pub fn init() {
    ON.store(cmdline::flag("stats"), Ordering::Relaxed);
}

/// Whether they are counted.
pub fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

fn slot(nr: u64) -> usize {
    usize::try_from(nr).unwrap_or(names::LIMIT).min(names::LIMIT)
}

/// One more call.
pub fn count(nr: u64) {
    CALLS[slot(nr)].fetch_add(1, Ordering::Relaxed);
}

/// A call that isn't there.
pub fn unknown(nr: u64) {
    if UNKNOWN[slot(nr)].fetch_add(1, Ordering::Relaxed) == 0 {
        match names::name(nr) {
            Some(n) => crate::debug!("system call {n} ({nr}) of {} is not supported: ENOSYS", task::current().name()),
            None => crate::debug!("system call {nr} of {} does not exist: ENOSYS", task::current().name()),
        }
    }
}

fn lines(title: &str, counts: &[AtomicU64]) {
    for (nr, c) in counts.iter().enumerate().filter(|(_, c)| c.load(Ordering::Relaxed) != 0) {
        let c = c.load(Ordering::Relaxed);
        match names::name(nr as u64) {
            Some(n) => report(format_args!("stats: {title} {n} {c}")),
            None => report(format_args!("stats: {title} {nr} {c}")),
        }
    }
}

/// Prints everything, if it was asked for.
pub fn print() {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    lines("unknown", &UNKNOWN);
    lines("syscall", &CALLS);
    for c in cpu::all() {
        let s = &c.stats;
        let v = |c: &AtomicU64| c.load(Ordering::Relaxed);
        report(format_args!(
            "stats: cpu {} switches {} faults {} syscalls {} timer_interrupts {} reschedule_ipis {} shootdown_ipis {} excursions {} lock_waits {} \
             lock_waits_preempted {} steal_us {}",
            c.id,
            v(&s.switches),
            v(&s.faults),
            v(&s.syscalls),
            v(&s.timer_interrupts),
            v(&s.reschedule_ipis),
            v(&s.shootdown_ipis),
            v(&s.excursions),
            v(&s.lock_waits),
            v(&s.lock_waits_preempted),
            c.steal.stolen().0 / 1000
        ));
    }
    let now = time::now();
    for t in task::table::snapshot() {
        let (s, a) = (&t.stats, t.sched.accounting().snapshot());
        // The present slice isn't in the counter yet.
        let present = cpu::get(CpuId(t.cpu.load(Ordering::Relaxed)))
            .filter(|c| core::ptr::eq(c.current.load(Ordering::Relaxed), &*t))
            .map_or(Nanos::ZERO, |c| now - Nanos(c.picked_time.load(Ordering::Relaxed)));
        let v = |c: &AtomicU64| c.load(Ordering::Relaxed);
        report(format_args!(
            "stats: task {} \"{}\" run_us {} voluntary {} involuntary {} migrations {} faults {} wait_us {} sleep_us {} wakeups {} max_latency_us {}",
            t.id,
            t.name(),
            (a.run + present).0 / 1000,
            a.voluntary,
            a.involuntary,
            v(&s.migrations),
            v(&s.faults),
            a.wait.0 / 1000,
            a.sleep.0 / 1000,
            a.wakeups,
            a.max_latency.0 / 1000
        ));
    }
}
