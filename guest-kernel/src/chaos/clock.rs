//! Virtual time: what makes a run with chaos on one CPU repeatable.
//!
//! The kernel's clock then doesn't follow the host. It stands still while a program computes, each point moves it on by a seeded
//! amount, and an idle CPU goes straight to its next timer. What is due is looked at where an interrupt could have come, at points
//! with interrupts on. The hardware's timer only watches: should a program compute for seconds without entering the kernel while a
//! timer is armed, time goes on to that timer, and the run is not repeatable any more.
//!
//! One CPU only. `time` reads the clock; `act` moves it; `idle` skips; `trap` brings the watch's interrupts.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::arch::apic;
use crate::cpu::Cpu;
use crate::time::timer;

// All orderings here are relaxed: one CPU, and its own interrupts.

static ON: AtomicBool = AtomicBool::new(false);
/// Nanoseconds since boot.
static NOW: AtomicU64 = AtomicU64::new(0);
/// Moves of the clock.
static MOVES: AtomicU64 = AtomicU64::new(0);
/// A device's or the watch's interrupt is being handled: it comes when it comes, so nothing seeded may happen in it.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Ticks of virtual time are nanoseconds.
pub const KHZ: u32 = 1_000_000;
/// What the wall clock shows at virtual time 0: 2000-01-01, in nanoseconds since 1970.
pub const WALL_OFFSET: u64 = 946_684_800_000_000_000;
/// Looks of the watch without a move until it steps in; they come about once a second.
const PATIENCE: u32 = 3;

/// Whether time is virtual.
#[inline(always)]
pub fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Virtual nanoseconds since boot.
#[cold]
pub fn now() -> u64 {
    NOW.load(Ordering::Relaxed)
}

/// Time is virtual from now on.
pub(super) fn start() {
    ON.store(true, Ordering::Relaxed);
}

/// Moves time on.
pub(super) fn advance(nanos: u64) {
    NOW.store(now() + nanos, Ordering::Relaxed);
    MOVES.store(MOVES.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Whether what happens now is no part of the repeatable run.
pub(super) fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Handles an interrupt that comes at no seeded time. Interrupts are off.
pub fn quietly(handle: impl FnOnce()) {
    if !on() {
        return handle();
    }
    let before = QUIET.swap(true, Ordering::Relaxed);
    handle();
    QUIET.store(before, Ordering::Relaxed);
}

/// The CPU would halt: goes to its next timer instead, if there is one. Own CPU, interrupts off.
pub fn skip(me: &Cpu) -> bool {
    let next = me.timers.armed_for();
    if !on() || next == u64::MAX {
        return false;
    }
    advance(next.saturating_sub(now()));
    timer::interrupt(me);
    true
}

/// What the watch saw last, and how often the same.
static SEEN: AtomicU64 = AtomicU64::new(0);
static LOOKS: AtomicU32 = AtomicU32::new(0);

/// Starts the watch, if time is virtual.
pub(super) fn start_watch() {
    if on() {
        apic::arm_in_a_while();
    }
}

/// The hardware's timer has fired although time is virtual. Own CPU, interrupts off.
pub fn watch(me: &Cpu) {
    apic::arm_in_a_while();
    let moves = MOVES.load(Ordering::Relaxed);
    let next = me.timers.armed_for();
    if SEEN.swap(moves, Ordering::Relaxed) != moves || next == u64::MAX {
        LOOKS.store(0, Ordering::Relaxed);
        return;
    }
    if LOOKS.fetch_add(1, Ordering::Relaxed) + 1 < PATIENCE {
        return;
    }
    LOOKS.store(0, Ordering::Relaxed);
    super::act::not_repeatable();
    advance(next.saturating_sub(now()));
    timer::interrupt(me);
}
