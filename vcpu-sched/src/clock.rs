//! TSC ticks to nanoseconds and back, without a division.
//!
//! Anyone may use a [`TscScale`]; it is a plain value that never changes. The invariant that timers rest on: for a
//! deadline `d`, a TSC that has reached [`to_ticks(d)`](TscScale::to_ticks) also reads at least `d` through
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
    /// 44 to 76.
    shift: u32,
    /// Ticks per nanosecond times `2^inv_shift`, rounded up. At most 2^63, so that rounding up after the multiplication
    /// can't overflow.
    inv_mult: u64,
    inv_shift: u32,
}

impl TscScale {
    /// The scale of a TSC with this frequency; `None` for a frequency of zero.
    pub const fn from_khz(khz: Khz) -> Option<Self> {
        // ticks / (khz * 1000) seconds = ticks * 1_000_000 / khz nanoseconds
        const NS_PER_MS: u128 = 1_000_000;
        if khz.0 == 0 {
            return None;
        }
        // The largest shift with mult < 2^64. NS_PER_MS < 2^20, so nothing here exceeds 2^97.
        let mut shift = 44;
        while (NS_PER_MS << (shift + 1)) / khz.0 as u128 <= u64::MAX as u128 {
            shift += 1;
        }
        let mult = (NS_PER_MS << shift) / khz.0 as u128;
        // ticks = ns * 2^shift / mult, from the rounded `mult`, so that it inverts `to_ns` and not the ideal. With
        // 2^63 <= mult < 2^64, 2^126 / mult is in (2^62, 2^63], and so is it rounded up.
        let inv_mult = (1u128 << 126).div_ceil(mult);
        Some(Self { mult: mult as u64, shift, inv_mult: inv_mult as u64, inv_shift: 126 - shift })
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
