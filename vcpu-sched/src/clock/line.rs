//! A clock as a straight line through one moment, and what becomes of it when it is changed. Pure: the counter's value is an
//! argument.
//!
//! Invariant: at the moment of a change the old and the new line show the same time, unless a step is what was asked for; so a
//! reader that has seen the old one at an earlier tick, or at the same, never sees less from the new one.

use core::fmt;

use super::rate::Rate;
use super::scale::TscScale;
use crate::ids::{Khz, Nanos};

/// Virtual time as a function of the counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockLine {
    /// The counter ...
    pub base_ticks: u64,
    /// ... at which the clock shows this.
    pub base_ns: Nanos,
    /// Ticks to nanoseconds from there on; counts in `rate`.
    pub scale: TscScale,
    /// How fast virtual time runs.
    pub rate: Rate,
    /// Frequency of the counter that is read.
    pub counter: Khz,
    /// Frequency that the guest is told, and that its virtual counter has.
    pub told: Khz,
    /// The wall clock's value at time 0.
    pub wall: Nanos,
}

/// A jump of the clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// So much later at once.
    Forward(Nanos),
    /// So much earlier, at least 0. Programs see time run backwards.
    Backward(Nanos),
}

/// Why a clock can't be changed so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StepError {
    /// There is no time before 0.
    BeforeZero {
        /// What the clock shows.
        now: Nanos,
    },
    /// Beyond the end of time (584 years).
    TooFar,
    /// The counter is so slow that the scheduler's clock can't run at that rate: see [`FastClock`](super::FastClock).
    CounterTooSlow {
        /// Its frequency.
        counter: Khz,
    },
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeforeZero { now } => write!(f, "the clock shows {now}: it can't be set back by more than that"),
            Self::TooFar => f.write_str("the clock would leave its range of 584 years"),
            Self::CounterTooSlow { counter } => write!(f, "a counter of {counter} can't carry a clock that fast"),
        }
    }
}

impl core::error::Error for StepError {}

/// The scale of a counter for a rate.
///
/// # Errors
/// [`StepError::CounterTooSlow`].
pub fn scale(counter: Khz, rate: Rate) -> Result<TscScale, StepError> {
    // rate nanoseconds in counter * 1000 ticks: below 2^37 and 2^42.
    let ticks = counter.0 as u64 * 1000;
    let fits = rate.nanos() <= ticks.saturating_mul(super::fast::MOST_NANOS_A_TICK);
    TscScale::from_ratio(rate.nanos(), ticks).filter(|_| fits).ok_or(StepError::CounterTooSlow { counter })
}

impl ClockLine {
    /// A clock that shows `base_ns` at `base_ticks` and runs on in real time.
    ///
    /// # Errors
    /// [`StepError::CounterTooSlow`].
    pub fn new(counter: Khz, told: Khz, base_ticks: u64, base_ns: Nanos) -> Result<Self, StepError> {
        let scale = scale(counter, Rate::REAL)?;
        Ok(Self { base_ticks, base_ns, scale, rate: Rate::REAL, counter, told, wall: Nanos::ZERO })
    }

    /// The time at a tick. Ticks from before the base, as another CPU's counter may still show them, are the base.
    #[inline]
    pub const fn at(&self, ticks: u64) -> Nanos {
        self.base_ns.saturating_add(self.scale.to_ns(ticks.saturating_sub(self.base_ticks)))
    }

    /// The time at a tick before or after the base.
    pub const fn around(&self, ticks: u64) -> Nanos {
        self.at(ticks).saturating_sub(self.scale.to_ns(self.base_ticks.saturating_sub(ticks)))
    }

    /// The tick at which the clock shows `time`; the base for what has passed before.
    #[inline]
    pub const fn ticks_at(&self, time: Nanos) -> u64 {
        self.base_ticks.saturating_add(self.scale.to_ticks(time.saturating_sub(self.base_ns)))
    }

    /// The line that shows `time` at `ticks`, else as this one.
    const fn through(self, ticks: u64, time: Nanos) -> Self {
        Self { base_ticks: ticks, base_ns: time, ..self }
    }

    /// From `now` on at another rate.
    ///
    /// # Errors
    /// [`StepError::CounterTooSlow`].
    pub fn with_rate(self, now: u64, rate: Rate) -> Result<Self, StepError> {
        Ok(Self { scale: scale(self.counter, rate)?, rate, ..self.through(now, self.at(now)) })
    }

    /// From `now` on earlier or later.
    ///
    /// # Errors
    /// [`StepError`]: the clock would leave its range.
    pub fn with_step(self, now: u64, step: Step) -> Result<Self, StepError> {
        let time = self.at(now);
        let to = match step {
            Step::Forward(by) => time.0.checked_add(by.0).ok_or(StepError::TooFar)?,
            Step::Backward(by) => time.0.checked_sub(by.0).ok_or(StepError::BeforeZero { now: time })?,
        };
        Ok(self.through(now, Nanos(to)))
    }

    /// The clock stood still from `stopped` until `now`.
    pub const fn without(self, stopped: u64, now: u64) -> Self {
        self.through(now, self.at(stopped))
    }

    /// Ticks of the virtual counter, of frequency [`told`](ClockLine::told), in so much virtual time.
    pub fn told_ticks(&self, time: Nanos) -> u64 {
        told_scale(self.told).map_or(0, |scale| scale.to_ns(time.0).0)
    }
}

/// Nanoseconds to ticks of the virtual counter: the same arithmetic the other way round. `None` for no frequency.
pub const fn told_scale(told: Khz) -> Option<TscScale> {
    TscScale::from_ratio(told.0 as u64, 1_000_000)
}
