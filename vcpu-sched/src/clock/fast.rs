//! A CPU's own copy of the clock, for its scheduler: a subtraction, a shift, a multiplication and an addition, with factors that
//! nobody else writes.
//!
//! The kernel refills it from the [`ClockPage`](super::ClockPage) when that has changed, and once in a while since the copy has less
//! range. Only its own CPU uses it, with interrupts off; it is atomic so that it can live in what CPUs share.

use core::sync::atomic::{AtomicU64, Ordering};

use super::line::ClockLine;
use crate::ids::Nanos;

/// Nanoseconds per tick have so many fractional bits.
const FACTOR_SHIFT: u32 = 57;
/// So the factor has room for fewer nanoseconds a tick than this: 7.8 MHz at real time, 781 MHz a hundred times as fast.
pub const MOST_NANOS_A_TICK: u64 = (1 << (64 - FACTOR_SHIFT)) - 1;
/// Ticks per nanosecond: up to 2^11, a 20 GHz counter at a hundredth.
const INVERSE_SHIFT: u32 = 53;
/// Ticks behind the base from which on a copy must be refilled: 200 days at 4 GHz, half of what there is room for.
pub const REFILL: u64 = 1 << (FACTOR_SHIFT - 1);
/// What rounding down can have taken away here and in [`FastClock::at`].
const ROUNDING: u64 = 2;

/// See the module's text. All accesses are relaxed: one CPU.
#[derive(Debug)]
pub struct FastClock {
    base_ticks: AtomicU64,
    base_ns: AtomicU64,
    factor: AtomicU64,
    inverse: AtomicU64,
    /// The page's sequence that it was filled from.
    sequence: AtomicU64,
}

impl FastClock {
    /// Time stands still at 0.
    pub const fn new() -> Self {
        Self {
            base_ticks: AtomicU64::new(0),
            base_ns: AtomicU64::new(0),
            factor: AtomicU64::new(0),
            inverse: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
        }
    }

    /// Fills it from a line that is in force at `now`.
    pub fn fill(&self, line: &ClockLine, sequence: u64, now: u64) {
        let store = |to: &AtomicU64, value| to.store(value, Ordering::Relaxed);
        // A line checked by `line::scale` fits; any other gives wrong times and nothing worse.
        let (nanos, ticks) = (u128::from(line.rate.nanos()), u128::from(line.counter.0.max(1)) * 1000);
        store(&self.factor, u64::try_from((nanos << FACTOR_SHIFT) / ticks).unwrap_or(u64::MAX));
        store(&self.inverse, u64::try_from((ticks << INVERSE_SHIFT) / nanos).unwrap_or(u64::MAX));
        let base = now.max(line.base_ticks);
        store(&self.base_ticks, base);
        store(&self.base_ns, line.at(base).0);
        store(&self.sequence, sequence);
    }

    /// Whether it must be filled again: the page has another sequence, or the base is long ago.
    #[inline(always)]
    pub fn is_stale(&self, sequence: u64, now: u64) -> bool {
        self.sequence.load(Ordering::Relaxed) != sequence
            || now.wrapping_sub(self.base_ticks.load(Ordering::Relaxed)) > REFILL
    }

    /// The time at a tick from the base on, never more than two nanoseconds from what the line says.
    #[inline(always)]
    pub fn at(&self, ticks: u64) -> Nanos {
        let span = ticks.wrapping_sub(self.base_ticks.load(Ordering::Relaxed)) << (64 - FACTOR_SHIFT);
        let wide = u128::from(span) * u128::from(self.factor.load(Ordering::Relaxed));
        Nanos(((wide >> 64) as u64).wrapping_add(self.base_ns.load(Ordering::Relaxed)))
    }

    /// A span below 104 days in ticks, rounded up by enough that [`at`](FastClock::at) finds it over when they have passed.
    #[inline(always)]
    pub fn span_ticks(&self, span: Nanos) -> u64 {
        let span = span.0.wrapping_add(ROUNDING) << (64 - INVERSE_SHIFT);
        ((u128::from(span) * u128::from(self.inverse.load(Ordering::Relaxed))) >> 64) as u64 + 1
    }

    /// The tick of a time before or after the base, for what was noted before a change.
    pub fn tick_of(&self, time: Nanos) -> u64 {
        let (ticks, ns) = (self.base_ticks.load(Ordering::Relaxed), Nanos(self.base_ns.load(Ordering::Relaxed)));
        ticks.saturating_sub(self.span_ticks(ns - time)).saturating_add(self.span_ticks(time - ns))
    }
}

impl Default for FastClock {
    fn default() -> Self {
        Self::new()
    }
}
