//! Times and distributions as a workload file spells them.
//!
//! `"2ms"` is always two milliseconds; `{ exponential = "2ms" }`, `{ uniform = ["1ms", "3ms"] }`,
//! `{ normal = ["2ms", "500us"], low = "1ms", high = "5ms" }`, `{ pareto = "1ms", shape = 1.5, high = "1s" }` and
//! `{ choice = [[9, "1ms"], [1, "50ms"]] }` are drawn anew every time. Used by [`super::file`] alone; pure.

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use vcpu_sched::ids::Nanos;
use vcpu_sched::sim::random::Span;

/// Why a time can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Nothing, or no digit in front.
    #[error("'{0}' is no time: write a number and a unit, as in 2ms or 1.5us")]
    NoNumber(String),
    /// No unit.
    #[error("the unit is missing in '{0}': write {0}ns, {0}us, {0}ms or {0}s")]
    NoUnit(String),
    /// A unit that isn't one.
    #[error("unknown unit '{unit}' in '{text}': use ns, us, ms, s or m")]
    Unit {
        /// What stands there.
        unit: String,
        /// The whole.
        text: String,
    },
    /// Doesn't fit, or is finer than a nanosecond.
    #[error("'{0}' is not a whole number of nanoseconds below 584 years")]
    Range(String),
}

/// `2ms`, `1.5us`, `100ns`, `3s`, `1m`.
///
/// # Errors
/// [`TimeError`].
pub fn parse_time(text: &str) -> Result<Nanos, TimeError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') {
        return Err(TimeError::NoNumber(text.to_owned()));
    }
    let scale: u64 = match unit.trim_start() {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "" => return Err(TimeError::NoUnit(text.to_owned())),
        unit => return Err(TimeError::Unit { unit: unit.to_owned(), text: text.to_owned() }),
    };
    let range = || TimeError::Range(text.to_owned());
    let mut nanos = whole.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or_else(range)?;
    let mut place = scale;
    for digit in fraction.bytes() {
        if !place.is_multiple_of(10) {
            return Err(range());
        }
        place /= 10;
        nanos = nanos.checked_add(u64::from(digit - b'0') * place).ok_or_else(range)?;
    }
    Ok(Nanos(nanos))
}

/// A time in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Nanos);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Time;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time in quotes, like \"2ms\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Time, E> {
                parse_time(text).map(Time).map_err(E::custom)
            }
        }
        from.deserialize_str(Text)
    }
}

/// A time or a distribution in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanText(pub Span);

/// The table form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    exponential: Option<Time>,
    uniform: Option<(Time, Time)>,
    normal: Option<(Time, Time)>,
    pareto: Option<Time>,
    choice: Option<Vec<(f64, SpanText)>>,
    shape: Option<f64>,
    low: Option<Time>,
    high: Option<Time>,
}

impl Table {
    fn into_span(self) -> Result<Span, &'static str> {
        let extra = |table: &Self, shape: bool, bounds: bool| {
            (table.shape.is_some() && !shape) || ((table.low.is_some() || table.high.is_some()) && !bounds)
        };
        let low = self.low.map_or(Nanos::ZERO, |low| low.0);
        let high = self.high.map_or(Nanos::MAX, |high| high.0);
        let (span, shape, bounds) = match &self {
            Self { exponential: Some(mean), uniform: None, normal: None, pareto: None, choice: None, .. } => {
                (Span::Exponential { mean: mean.0 }, false, false)
            }
            Self {
                exponential: None, uniform: Some((low, high)), normal: None, pareto: None, choice: None, ..
            } => (Span::Uniform { low: low.0, high: high.0 }, false, false),
            Self { exponential: None, uniform: None, normal: Some((mean, sd)), pareto: None, choice: None, .. } => {
                (Span::Normal { mean: mean.0, deviation: sd.0, low, high }, false, true)
            }
            Self { exponential: None, uniform: None, normal: None, pareto: Some(scale), choice: None, .. } => {
                let shape = self.shape.ok_or("a pareto distribution needs a shape, as in shape = 1.5")?;
                if self.low.is_some() {
                    return Err("a pareto distribution's lower bound is its scale: leave low out");
                }
                (Span::Pareto { scale: scale.0, shape, high }, true, true)
            }
            Self { exponential: None, uniform: None, normal: None, pareto: None, choice: Some(choices), .. } => {
                let choices = choices.iter().map(|(weight, span)| (*weight, span.0.clone())).collect();
                (Span::Choice(choices), false, false)
            }
            _ => return Err("give exactly one of exponential, uniform, normal, pareto and choice"),
        };
        if extra(&self, shape, bounds) {
            return Err("shape belongs to pareto, and low and high to normal and pareto");
        }
        Ok(span)
    }
}

impl<'de> Deserialize<'de> for SpanText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SpanText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time in quotes, like \"2ms\", or a distribution, like { exponential = \"2ms\" }")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<SpanText, E> {
                parse_time(text).map(|time| SpanText(Span::Constant(time))).map_err(E::custom)
            }
            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<SpanText, M::Error> {
                let span = Table::deserialize(MapAccessDeserializer::new(map))?.into_span().map_err(Error::custom)?;
                span.check().map_err(Error::custom)?;
                Ok(SpanText(span))
            }
        }
        from.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, nanos) in
            [("7ns", 7), ("2us", 2_000), ("1.5ms", 1_500_000), ("0.25us", 250), ("3 s", 3_000_000_000), ("0s", 0)]
        {
            assert_eq!(parse_time(text), Ok(Nanos(nanos)), "{text}");
        }
        for (text, error) in [
            ("", "'' is no time: write a number and a unit, as in 2ms or 1.5us"),
            ("ms", "'ms' is no time: write a number and a unit, as in 2ms or 1.5us"),
            ("1.2.3s", "'1.2.3s' is no time: write a number and a unit, as in 2ms or 1.5us"),
            ("5", "the unit is missing in '5': write 5ns, 5us, 5ms or 5s"),
            ("5h", "unknown unit 'h' in '5h': use ns, us, ms, s or m"),
            ("0.5ns", "'0.5ns' is not a whole number of nanoseconds below 584 years"),
            ("99999999999s", "'99999999999s' is not a whole number of nanoseconds below 584 years"),
        ] {
            assert_eq!(parse_time(text).unwrap_err().to_string(), error);
        }
    }

    fn read(text: &str) -> Result<Span, String> {
        #[derive(Deserialize)]
        struct File {
            t: SpanText,
        }
        toml::from_str::<File>(text).map(|file| file.t.0).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn distributions() {
        let ms = Nanos::from_millis;
        let cases = [
            ("t = '2ms'", Span::Constant(ms(2))),
            ("t = { exponential = '2ms' }", Span::Exponential { mean: ms(2) }),
            ("t = { uniform = ['1ms', '3ms'] }", Span::Uniform { low: ms(1), high: ms(3) }),
            (
                "t = { normal = ['2ms', '1ms'], high = '4ms' }",
                Span::Normal { mean: ms(2), deviation: ms(1), low: ms(0), high: ms(4) },
            ),
            ("t = { pareto = '2ms', shape = 1.5 }", Span::Pareto { scale: ms(2), shape: 1.5, high: Nanos::MAX }),
            (
                "t = { choice = [[9, '1ms'], [1, { exponential = '2ms' }]] }",
                Span::Choice(vec![(9.0, Span::Constant(ms(1))), (1.0, Span::Exponential { mean: ms(2) })]),
            ),
        ];
        for (text, span) in cases {
            assert_eq!(read(text), Ok(span), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("t = 2", "a time in quotes"),
            ("t = '2'", "the unit is missing"),
            ("t = {}", "give exactly one of"),
            ("t = { uniform = ['1ms', '2ms'], exponential = '1ms' }", "give exactly one of"),
            ("t = { uniform = ['3ms', '2ms'] }", "lower bound 3ms is above"),
            ("t = { pareto = '2ms' }", "needs a shape"),
            ("t = { exponential = '2ms', high = '3ms' }", "low and high to normal"),
            ("t = { gauss = '2ms' }", "unknown field `gauss`"),
            ("t = { choice = [] }", "nothing to choose from"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
