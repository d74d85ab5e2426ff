//! How fast virtual time runs: 1 as the host's, 0.5 half as fast. A decimal number, kept exactly.

use core::fmt;
use core::num::NonZeroU64;
use core::str::FromStr;

/// Nanoseconds of virtual time in a second of the host's; from [`Rate::MIN`] to [`Rate::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rate(NonZeroU64);

const ONE: u64 = 1_000_000_000;
/// Decimal places.
const PLACES: usize = 9;

/// Why a text or a number is no rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RateError {
    /// Not a decimal number.
    NoNumber,
    /// More than nine decimal places.
    TooFine,
    /// Not from 0.01 to 100.
    OutOfRange,
}

impl fmt::Display for RateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNumber => "a rate is a decimal number such as 0.5",
            Self::TooFine => "a rate has nine decimal places at most",
            Self::OutOfRange => "a rate is from 0.01 to 100",
        })
    }
}

impl core::error::Error for RateError {}

impl Rate {
    /// As fast as the host's time.
    pub const REAL: Self = Self::constant(ONE);
    /// A hundredth.
    pub const MIN: Self = Self::constant(ONE / 100);
    /// A hundred times.
    pub const MAX: Self = Self::constant(ONE * 100);

    const fn constant(nanos: u64) -> Self {
        match NonZeroU64::new(nanos) {
            Some(nanos) => Self(nanos),
            None => panic!("a rate of zero"),
        }
    }

    /// From nanoseconds a second.
    pub const fn from_nanos(nanos: u64) -> Result<Self, RateError> {
        match NonZeroU64::new(nanos) {
            Some(n) if nanos >= Self::MIN.0.get() && nanos <= Self::MAX.0.get() => Ok(Self(n)),
            _ => Err(RateError::OutOfRange),
        }
    }

    /// Nanoseconds a second.
    pub const fn nanos(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let (whole, places) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && places.is_empty()) || !digits(whole) || !digits(places) {
            return Err(RateError::NoNumber);
        }
        let places = places.trim_end_matches('0');
        if places.len() > PLACES {
            return Err(RateError::TooFine);
        }
        // Longer is out of range, and can't overflow before it is found so.
        let whole = whole.trim_start_matches('0');
        if whole.len() > PLACES {
            return Err(RateError::OutOfRange);
        }
        let number = |part: &str| part.bytes().fold(0, |n, b| n * 10 + u64::from(b - b'0'));
        let fraction = (places.len()..PLACES).fold(number(places), |n, _| n * 10);
        Self::from_nanos(number(whole) * ONE + fraction)
    }
}

/// Exact, without zeroes at the end.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, mut fraction, mut places) = (self.nanos() / ONE, self.nanos() % ONE, PLACES);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        while fraction % 10 == 0 {
            (fraction, places) = (fraction / 10, places - 1);
        }
        write!(f, "{whole}.{fraction:0places$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn texts_that_are_rates_and_texts_that_are_none() {
        for (text, nanos) in [
            ("1", ONE),
            ("0.5", ONE / 2),
            (".25", ONE / 4),
            ("2.", 2 * ONE),
            ("0.010", ONE / 100),
            ("100.0", 100 * ONE),
        ] {
            assert_eq!(text.parse::<Rate>().map(Rate::nanos), Ok(nanos), "{text}");
        }
        for (text, error) in [
            ("", RateError::NoNumber),
            (".", RateError::NoNumber),
            ("-1", RateError::NoNumber),
            ("1e1", RateError::NoNumber),
            ("0.0000000001", RateError::TooFine),
            ("0", RateError::OutOfRange),
            ("0.009999999", RateError::OutOfRange),
            ("100.000000001", RateError::OutOfRange),
            ("99999999999999999999", RateError::OutOfRange),
        ] {
            assert_eq!(text.parse::<Rate>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(nanos in Rate::MIN.nanos()..=Rate::MAX.nanos()) {
            let rate = Rate::from_nanos(nanos).unwrap();
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }

        #[test]
        fn no_text_is_a_panic(text in "[0-9.]{0,40}|\\PC{0,8}") {
            let _ = text.parse::<Rate>();
        }
    }
}
