//! Ticks to nanoseconds and back, without a division.
//!
//! Anyone may use a [`TscScale`]; it is a plain value that never changes. The invariant that timers rest on: for a
//! span `d`, a counter that has moved by [`to_ticks(d)`](TscScale::to_ticks) also shows at least `d` through
//! [`to_ns`](TscScale::to_ns), so a timer that fires is never found to be early.

use crate::ids::{Khz, Nanos};

/// A fixed-point factor between ticks and nanoseconds: `ns = ticks * mult >> shift`, and another one back.
///
/// The factors have 63 or 64 significant bits, not the 32 of `pvclock` and Linux's vDSO: on x86-64 the multiplication
/// costs the same, and the error stays below two nanoseconds over the whole range instead of growing by 20 us a day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TscScale {
    /// Nanoseconds per tick times `2^shift`, rounded down. The top bit is set.
    mult: u64,
    /// In [`SHIFTS`].
    shift: u32,
    /// Ticks per nanosecond times `2^inv_shift`, rounded up. At most 2^63, so that rounding up after the multiplication
    /// can't overflow.
    inv_mult: u64,
    /// `INVERSE - shift`.
    inv_shift: u32,
}

/// Shifts that occur: up to 2^26 nanoseconds a tick (1 kHz, a hundred times as fast), down to 2^-19 (4 THz, a hundredth).
pub const SHIFTS: core::ops::RangeInclusive<u32> = 37..=82;
/// Shift and inverse shift together.
const INVERSE: u32 = 126;

impl TscScale {
    /// The scale of a counter with this frequency; `None` for a frequency of zero.
    pub const fn from_khz(khz: Khz) -> Option<Self> {
        // ticks / (khz * 1000) seconds = ticks * 1_000_000 / khz nanoseconds
        Self::from_ratio(1_000_000, khz.0 as u64)
    }

    /// So many nanoseconds in so many ticks; `None` if that is no ratio, or so far from 1 that its shift isn't in [`SHIFTS`].
    pub const fn from_ratio(nanos: u64, ticks: u64) -> Option<Self> {
        if nanos == 0 || ticks == 0 {
            return None;
        }
        // The largest shift with mult < 2^64. The quotient lies between 2^(d-1) and 2^(d+1) with `d` the difference of the
        // lengths in bits, so it is this shift or one less. Shifted, `nanos` has at most 128 bits.
        let mut shift = 64 + nanos.leading_zeros() - ticks.leading_zeros();
        let mut mult = ((nanos as u128) << shift) / ticks as u128;
        if mult > u64::MAX as u128 {
            shift -= 1;
            mult = ((nanos as u128) << shift) / ticks as u128;
        }
        if shift < *SHIFTS.start() || shift > *SHIFTS.end() {
            return None;
        }
        // ticks = ns * 2^shift / mult, from the rounded `mult`, so that it inverts `to_ns` and not the ideal. With
        // 2^63 <= mult < 2^64, 2^126 / mult is in (2^62, 2^63], and so is it rounded up.
        let inv_mult = (1u128 << INVERSE).div_ceil(mult);
        Some(Self { mult: mult as u64, shift, inv_mult: inv_mult as u64, inv_shift: INVERSE - shift })
    }

    /// From what [`parts`](TscScale::parts) gave; `None` if no scale has such parts.
    pub const fn from_parts([mult, shift, inv_mult, inv_shift]: [u64; 4]) -> Option<Self> {
        if shift < *SHIFTS.start() as u64 || shift > *SHIFTS.end() as u64 || mult >> 63 == 0 {
            return None;
        }
        let expected = (1u128 << INVERSE).div_ceil(mult as u128) as u64;
        if inv_mult != expected || inv_shift != INVERSE as u64 - shift {
            return None;
        }
        Some(Self { mult, shift: shift as u32, inv_mult, inv_shift: inv_shift as u32 })
    }

    /// The same, from a source that is known to hold a scale. Other parts give wrong times and nothing worse.
    #[inline(always)]
    pub const fn from_trusted_parts([mult, shift, inv_mult, inv_shift]: [u64; 4]) -> Self {
        Self { mult, shift: shift as u32 & 127, inv_mult, inv_shift: inv_shift as u32 & 127 }
    }

    /// Multiplier and shift, and those of the inverse.
    pub const fn parts(self) -> [u64; 4] {
        [self.mult, self.shift as u64, self.inv_mult, self.inv_shift as u64]
    }

    /// Nanoseconds for a number of ticks, rounded down, at most [`Nanos::MAX`].
    ///
    /// With the exact value `x = ticks * 1_000_000 / khz`, the result is `floor(x)` or 1 less; 2 less is possible for
    /// `x` of 2^63 (292 years) and more. It never decreases when `ticks` grows.
    #[inline]
    pub const fn to_ns(self, ticks: u64) -> Nanos {
        let ns = (ticks as u128 * self.mult as u128) >> self.shift;
        Nanos(if ns > u64::MAX as u128 { u64::MAX } else { ns as u64 })
    }

    /// The first tick at which [`to_ns`](TscScale::to_ns) reads `ns` or more, or a few ticks later; at most `u64::MAX`.
    ///
    /// With the exact value `x = ns * khz / 1_000_000`, the result is at least `ceil(x)` and at most 1 more; up to 6 more
    /// are possible for `x` of 2^61 (24 years at 3 GHz) and more.
    #[inline]
    pub const fn to_ticks(self, ns: Nanos) -> u64 {
        let round_up = (1u128 << self.inv_shift) - 1;
        let ticks = (ns.0 as u128 * self.inv_mult as u128 + round_up) >> self.inv_shift;
        if ticks > u64::MAX as u128 { u64::MAX } else { ticks as u64 }
    }
}
