//! Chance, from a seed: streams of random numbers, and the distributions that a workload draws time spans from.
//!
//! Used by the simulator alone. The invariant: what a stream yields depends on the seed and the stream's number only. Every
//! task has its own, so that its bursts and sleeps are the same under every policy and number of CPUs, however often others
//! draw in between.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use rand_distr::{Distribution, Exp1, Pareto, StandardNormal};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::ids::Nanos;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Stream(Xoshiro256PlusPlus);

impl Stream {
    /// Stream number `number` of a seed.
    pub fn new(seed: u64, number: u64) -> Self {
        /// 2^64 over the golden ratio, odd: spreads consecutive numbers over the whole range (Knuth, TAOCP vol. 3, 6.4).
        /// `seed_from_u64` mixes them further.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        Self(Xoshiro256PlusPlus::seed_from_u64(seed ^ number.wrapping_mul(SPREAD)))
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product (Lemire). Its bias is bound / 2^64, which nothing here can see.
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// From 0 to below 1, with 53 bits.
    fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A time span that is drawn anew at every use.
#[derive(Clone, PartialEq, Debug)]
pub enum Span {
    /// Always this.
    Constant(Nanos),
    /// Anything from `low` to `high`, both included.
    Uniform {
        /// Least.
        low: Nanos,
        /// Most.
        high: Nanos,
    },
    /// Memoryless: what is left of it is as long as the whole. Arrivals of independent events.
    Exponential {
        /// Its mean.
        mean: Nanos,
    },
    /// The bell curve, cut off at both ends.
    Normal {
        /// Its middle.
        mean: Nanos,
        /// Two thirds lie within this distance of the mean.
        deviation: Nanos,
        /// What is less becomes this.
        low: Nanos,
        /// What is more becomes this.
        high: Nanos,
    },
    /// Many short ones and few very long ones, cut off above.
    Pareto {
        /// The shortest.
        scale: Nanos,
        /// The smaller, the heavier the tail; up to 1 the mean is infinite but for the cut.
        shape: f64,
        /// What is more becomes this.
        high: Nanos,
    },
    /// One of several, by weight.
    Choice(Vec<(f64, Span)>),
}

/// Why a [`Span`] can't be drawn from.
#[derive(Clone, PartialEq, Debug)]
pub enum SpanError {
    /// `low` is above `high`.
    Reversed {
        /// As given.
        low: Nanos,
        /// As given.
        high: Nanos,
    },
    /// A Pareto distribution whose scale is zero or above its limit.
    Scale(Nanos),
    /// A Pareto distribution whose shape isn't a positive number.
    Shape(f64),
    /// A choice of nothing.
    NoChoice,
    /// A weight that is negative or not a number, or weights whose sum is zero.
    Weight(f64),
    /// Something is wrong with one of the choices.
    InChoice(usize, Box<SpanError>),
}

impl fmt::Display for SpanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reversed { low, high } => write!(f, "the lower bound {low} is above the upper bound {high}"),
            Self::Scale(scale) => write!(f, "the scale {scale} must be more than 0 and not above the upper bound"),
            Self::Shape(shape) => write!(f, "the shape must be a number above 0, not {shape}"),
            Self::NoChoice => f.write_str("there is nothing to choose from"),
            Self::Weight(weight) => write!(f, "weights must not be negative, and their sum above 0, not {weight}"),
            Self::InChoice(i, error) => write!(f, "choice {}: {error}", i + 1),
        }
    }
}

impl core::error::Error for SpanError {}

impl Span {
    /// Can it be drawn from?
    ///
    /// # Errors
    /// [`SpanError`].
    pub fn check(&self) -> Result<(), SpanError> {
        match self {
            Self::Constant(_) | Self::Exponential { .. } => Ok(()),
            &Self::Uniform { low, high } | &Self::Normal { low, high, .. } if low > high => {
                Err(SpanError::Reversed { low, high })
            }
            Self::Uniform { .. } | Self::Normal { .. } => Ok(()),
            Self::Pareto { scale, high, .. } if *scale == Nanos::ZERO || scale > high => Err(SpanError::Scale(*scale)),
            Self::Pareto { shape, .. } if !(shape.is_finite() && *shape > 0.0) => Err(SpanError::Shape(*shape)),
            Self::Pareto { .. } => Ok(()),
            Self::Choice(choices) => {
                if choices.is_empty() {
                    return Err(SpanError::NoChoice);
                }
                for (i, (weight, span)) in choices.iter().enumerate() {
                    if !(weight.is_finite() && *weight >= 0.0) {
                        return Err(SpanError::Weight(*weight));
                    }
                    span.check().map_err(|error| SpanError::InChoice(i, Box::new(error)))?;
                }
                let sum: f64 = choices.iter().map(|(weight, _)| weight).sum();
                if sum > 0.0 && sum.is_finite() { Ok(()) } else { Err(SpanError::Weight(sum)) }
            }
        }
    }

    /// Draws a span. One that [`check`](Span::check) refuses gives something, but nothing that makes sense.
    pub fn draw(&self, from: &mut Stream) -> Nanos {
        match *self {
            Self::Constant(span) => span,
            Self::Uniform { low, high } => low + Nanos(from.below((high - low).0.saturating_add(1))),
            Self::Exponential { mean } => {
                let x: f64 = Exp1.sample(&mut from.0);
                nanos(x * mean.0 as f64)
            }
            Self::Normal { mean, deviation, low, high } => {
                let x: f64 = StandardNormal.sample(&mut from.0);
                nanos(x * deviation.0 as f64 + mean.0 as f64).max(low).min(high)
            }
            Self::Pareto { scale, shape, high } => match Pareto::new(scale.0 as f64, shape) {
                Ok(pareto) => nanos(pareto.sample(&mut from.0)).min(high),
                Err(_) => scale,
            },
            Self::Choice(ref choices) => {
                let sum: f64 = choices.iter().map(|(weight, _)| weight).sum();
                let mut left = from.unit() * sum;
                for (weight, span) in choices {
                    if left < *weight {
                        return span.draw(from);
                    }
                    left -= weight;
                }
                // Rounding can leave a rest behind the last.
                choices.last().map_or(Nanos::ZERO, |(_, span)| span.draw(from))
            }
        }
    }
}

/// Rounded to whole nanoseconds; below zero becomes zero, above the range its end (`as` saturates).
fn nanos(x: f64) -> Nanos {
    Nanos((x + 0.5) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn drawn(span: &Span, seed: u64) -> Vec<f64> {
        span.check().unwrap();
        let mut stream = Stream::new(seed, 3);
        (0..40_000).map(|_| span.draw(&mut stream).0 as f64).collect()
    }

    fn mean(of: &[f64]) -> f64 {
        of.iter().sum::<f64>() / of.len() as f64
    }

    const US: fn(u64) -> Nanos = Nanos::from_micros;

    #[test]
    fn the_means_are_what_the_names_promise() {
        let two = Span::Choice(vec![(3.0, Span::Constant(US(1))), (1.0, Span::Constant(US(5)))]);
        let cases = [
            (Span::Constant(US(7)), 7_000.0),
            (Span::Uniform { low: US(2), high: US(4) }, 3_000.0),
            (Span::Exponential { mean: US(10) }, 10_000.0),
            (Span::Normal { mean: US(10), deviation: US(2), low: US(0), high: US(20) }, 10_000.0),
            (Span::Pareto { scale: US(3), shape: 3.0, high: Nanos::MAX }, 4_500.0),
            (two, 2_000.0),
        ];
        for (span, expected) in cases {
            let found = mean(&drawn(&span, 1));
            assert!((found - expected).abs() < 0.03 * expected, "{span:?}: {found}, not {expected}");
        }
    }

    #[test]
    fn bounds_are_kept_and_reached() {
        let uniform = drawn(&Span::Uniform { low: Nanos(3), high: Nanos(5) }, 1);
        for wanted in [3.0, 4.0, 5.0] {
            assert!(uniform.contains(&wanted));
        }
        assert!(uniform.iter().all(|x| (3.0..=5.0).contains(x)));
        let normal = drawn(&Span::Normal { mean: US(1), deviation: US(9), low: Nanos(7), high: US(3) }, 1);
        assert!(normal.contains(&7.0) && normal.contains(&3000.0));
        assert!(normal.iter().all(|x| (7.0..=3000.0).contains(x)));
        assert!(
            drawn(&Span::Pareto { scale: US(1), shape: 0.5, high: US(9) }, 1)
                .iter()
                .all(|x| (1000.0..=9000.0).contains(x))
        );
    }

    #[test]
    fn a_stream_is_its_seed_and_number() {
        let span = Span::Exponential { mean: US(10) };
        assert_eq!(drawn(&span, 1), drawn(&span, 1));
        assert_ne!(drawn(&span, 1), drawn(&span, 2));
        let (mut a, mut b) = (Stream::new(1, 3), Stream::new(1, 4));
        assert!((0..8).any(|_| a.below(1000) != b.below(1000)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let one = || Span::Constant(Nanos(1));
        let cases = [
            (Span::Uniform { low: Nanos(2), high: Nanos(1) }, "the lower bound 2ns is above the upper bound 1ns"),
            (
                Span::Normal { mean: Nanos(1), deviation: Nanos(1), low: Nanos(2), high: Nanos(1) },
                "the lower bound 2ns is above the upper bound 1ns",
            ),
            (
                Span::Pareto { scale: Nanos(0), shape: 1.0, high: Nanos(1) },
                "the scale 0ns must be more than 0 and not above the upper bound",
            ),
            (
                Span::Pareto { scale: Nanos(1), shape: f64::NAN, high: Nanos(1) },
                "the shape must be a number above 0, not NaN",
            ),
            (Span::Choice(vec![]), "there is nothing to choose from"),
            (Span::Choice(vec![(0.0, one())]), "weights must not be negative, and their sum above 0, not 0"),
            (Span::Choice(vec![(-1.0, one())]), "weights must not be negative, and their sum above 0, not -1"),
            (
                Span::Choice(vec![(1.0, one()), (1.0, Span::Choice(vec![]))]),
                "choice 2: there is nothing to choose from",
            ),
        ];
        for (span, expected) in cases {
            assert_eq!(std::string::ToString::to_string(&span.check().unwrap_err()), expected);
        }
    }
}
