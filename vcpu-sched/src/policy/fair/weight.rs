//! From nice values to weights, and from real time to virtual time. Used by the fair class and by
//! [`SchedEntity`](crate::entity::SchedEntity); pure.

use crate::ids::Nanos;
use crate::params::Nice;

/// The slice of a task that asked for none, where [`RunQueue::with_slice`](crate::runqueue::RunQueue::with_slice) doesn't
/// say otherwise. Linux's `base_slice_ns` is 0.7 ms times `1 + log2(CPUs)`, 2.8 ms on 8 CPUs
/// and more.
pub const DEFAULT_SLICE: Nanos = Nanos::from_millis(3);

/// The weight of nice 0, for which virtual time is real time.
pub const NICE_0: u32 = 1024;

/// The weight of `SCHED_IDLE`. Linux: `WEIGHT_IDLEPRIO`, kernel/sched/sched.h.
pub const IDLE: u32 = 3;

/// Linux: `sched_prio_to_weight`, kernel/sched/core.c. Each step is about 1.25: one nice level is 10 % of the CPU.
const OF_NICE: [u32; 40] = [
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, // -20 to -11
    9548, 7620, 6100, 4904, 3906, 3121, 2501, 1991, 1586, 1277, // -10 to -1
    1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, // 0 to 9
    110, 87, 70, 56, 45, 36, 29, 23, 18, 15, // 10 to 19
];

/// The weight of a nice value.
pub const fn of_nice(nice: Nice) -> u32 {
    OF_NICE[nice.index()]
}

/// `2^32 / weight`, by which [`virtual_time`] multiplies instead of dividing. Linux: `sched_prio_to_wmult`.
pub const fn inverse(weight: u32) -> u32 {
    if weight <= 1 { u32::MAX } else { ((1 << 32) / weight as u64) as u32 }
}

/// `real * 1024 / weight`, the time as it passes for a task of that weight; `inverse` is [`inverse`] of it.
#[inline(always)]
pub const fn virtual_time(real: u64, weight: u32, inverse: u32) -> u64 {
    if weight == NICE_0 {
        return real;
    }
    // 1024 * 2^32 / weight = inverse * 2^10, so the shift is by 22. 64 by 32 bits: at most 2^96, one `mul` and one
    // `shrd`.
    let wide = (real as u128 * inverse as u128) >> 22;
    if wide > i64::MAX as u128 { i64::MAX as u64 } else { wide as u64 }
}

/// The way back: real time for virtual time, rounded up.
#[inline]
pub const fn real_time(virtual_time: u64, weight: u32) -> u64 {
    if weight == NICE_0 {
        return virtual_time;
    }
    let wide = (virtual_time as u128 * weight as u128 + 1023) >> 10;
    if wide > u64::MAX as u128 { u64::MAX } else { wide as u64 }
}
