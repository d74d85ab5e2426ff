//! The weighted average of virtual times: where an ideally fair CPU would be. Used by [`Fair`](super::Fair) alone.
//!
//! As Linux (`avg_vruntime`, kernel/sched/fair.c) it is kept as a sum relative to a zero that moves along, so that
//! being eligible is a multiplication and no division. The sum has 128 bits: with 2^20 tasks of the greatest weight it
//! would pass 64 bits as soon as they are 67 ms apart. On x86-64 that costs one more instruction for each addition.

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Average {
    zero: u64,
    /// Of weight times distance from `zero`.
    sum: i128,
    weight: u64,
}

/// How far `zero` may be from a member, as a power of two: 18 minutes of virtual time.
const FAR: u32 = 40;

impl Average {
    pub(super) const fn new() -> Self {
        Self { zero: 0, sum: 0, weight: 0 }
    }

    #[cfg(all(test, not(loom)))]
    pub(super) const fn starting_at(zero: u64) -> Self {
        Self { zero, sum: 0, weight: 0 }
    }

    #[inline(always)]
    const fn distance(&self, vruntime: u64) -> i64 {
        vruntime.wrapping_sub(self.zero) as i64
    }

    #[inline(always)]
    pub(super) const fn add(&mut self, vruntime: u64, weight: u32) {
        self.sum += self.distance(vruntime) as i128 * weight as i128;
        self.weight += weight as u64;
    }

    #[inline(always)]
    pub(super) const fn remove(&mut self, vruntime: u64, weight: u32) {
        self.sum -= self.distance(vruntime) as i128 * weight as i128;
        self.weight -= weight as u64;
    }

    /// A member of this weight moves on.
    #[inline(always)]
    pub(super) const fn advance(&mut self, by: u64, weight: u32) {
        self.sum += (by as u128 * weight as u128) as i128;
    }

    /// Has a member at `vruntime` had no more than its share? There is always one that has not.
    #[inline(always)]
    pub(super) const fn reaches(&self, vruntime: u64) -> bool {
        self.distance(vruntime) as i128 * self.weight as i128 <= self.sum
    }

    /// Is one of this weight all there is?
    #[inline(always)]
    pub(super) const fn is_only(&self, weight: u32) -> bool {
        self.weight == weight as u64
    }

    /// The average, rounded down. Without members: where it was last. Divides.
    pub(super) fn value(&self) -> u64 {
        self.zero.wrapping_add_signed(divide(self.sum, self.weight))
    }

    /// Moves the zero near to a member's `vruntime`, if it is far from it. Changes nothing else.
    #[inline(always)]
    pub(super) fn follow(&mut self, vruntime: u64) {
        // A shift, so that one comparison sees both sides.
        if !matches!(self.distance(vruntime) >> FAR, 0 | -1) {
            self.move_zero(vruntime);
        }
    }

    #[cold]
    fn move_zero(&mut self, to: u64) {
        self.sum -= i128::from(self.distance(to)) * i128::from(self.weight);
        self.zero = to;
    }

    /// The lag with which a newcomer must start so that it has `lag` once it is a member: its coming moves the average
    /// towards it. Linux: `place_entity`, where this is derived. Divides.
    pub(super) fn inflate(&self, lag: i64, weight: u32) -> i64 {
        if lag == 0 || self.weight == 0 {
            return 0;
        }
        divide(i128::from(lag) * i128::from(self.weight + u64::from(weight)), self.weight)
    }
}

/// Rounds down; 0 for a weight of zero.
#[inline]
fn divide(sum: i128, weight: u64) -> i64 {
    match (i64::try_from(sum), i64::try_from(weight)) {
        (_, Ok(0)) => 0,
        // A single instruction, where 128 bits are a function.
        (Ok(sum), Ok(weight)) => sum.div_euclid(weight),
        _ => divide_wide(sum, weight),
    }
}

#[cold]
fn divide_wide(sum: i128, weight: u64) -> i64 {
    let quotient = sum.div_euclid(i128::from(weight));
    if quotient < 0 { i64::try_from(quotient).unwrap_or(i64::MIN) } else { i64::try_from(quotient).unwrap_or(i64::MAX) }
}
