//! Sizes and durations as people write them on a command line.
//!
//! Used by the flags' parsers; pure. Errors say what is wrong and what to write instead.

use std::time::Duration;

/// Why a size or duration can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Nothing, or no digit in front.
    #[error("it must start with a number, as in {example}")]
    NoNumber {
        /// A good one.
        example: &'static str,
    },
    /// A unit that isn't one.
    #[error("unknown unit '{unit}' at character {at}: use {known}")]
    Unit {
        /// What stands there.
        unit: String,
        /// Its place, counted from 1.
        at: usize,
        /// What could stand there.
        known: &'static str,
    },
    /// A duration without a unit.
    #[error("a unit is missing: {0}s, {0}ms or {0}m?")]
    NoUnit(u64),
    /// Doesn't fit.
    #[error("it is too large")]
    Overflow,
    /// Zero.
    #[error("it must be more than 0")]
    Zero,
}

/// Splits `12.5GiB` into 12, "5" (digits behind the point), "GiB", and the unit's place.
fn split<'a>(text: &'a str, example: &'static str) -> Result<(u64, &'a str, usize), UnitError> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    if number.is_empty() {
        return Err(UnitError::NoNumber { example });
    }
    let number = number.parse().map_err(|_| UnitError::Overflow)?;
    Ok((number, unit, at + 1))
}

/// `64M`, `1G`, `512MiB`, or a number of bytes. Units are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit, at) = split(text, "256M")?;
    let shift = match unit.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(UnitError::Unit { unit: unit.to_owned(), at, known: "K, M, G or T" }),
    };
    number.checked_mul(1 << shift).ok_or(UnitError::Overflow)
}

/// `500ms`, `5s`, `2m`, `1h`; more than zero.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit, at) = split(text, "5s")?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" => return Err(UnitError::NoUnit(number)),
        _ => return Err(UnitError::Unit { unit: unit.to_owned(), at, known: "ms, s, m or h" }),
    };
    if number == 0 {
        return Err(UnitError::Zero);
    }
    number.checked_mul(millis).map(Duration::from_millis).ok_or(UnitError::Overflow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("1G", 1 << 30),
            ("512MiB", 512 << 20),
            ("8KB", 8 << 10),
            ("7b", 7),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "64X", "1.5G", "64M ", "20000000T", "99999999999999999999"] {
            assert!(parse_size(text).is_err(), "{text} passes");
        }
        assert_eq!(parse_size("12Q").unwrap_err().to_string(), "unknown unit 'Q' at character 3: use K, M, G or T");
    }

    #[test]
    fn durations() {
        for (text, millis) in [("500ms", 500), ("5s", 5000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "0s", "5 s", "5d", "99999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text} passes");
        }
        assert_eq!(parse_duration("5").unwrap_err().to_string(), "a unit is missing: 5s, 5ms or 5m?");
    }
}
