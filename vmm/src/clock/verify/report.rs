//! What was measured, beside what was asked for: as a table and as JSON.

use std::fmt;

use serde::Serialize;
use vcpu_sched::clock::Rate;

use super::guest::{Measured, Offset, PerSecond};
use crate::clock::Facts;

/// A rate may be off by this much beyond its uncertainty.
const TOLERANCE_PPM: f64 = 500.0;
/// An offset may be off by this much beyond its uncertainty.
const TOLERANCE_NS: i64 = 1_000;

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What.
    pub what: String,
    /// Its unit.
    pub unit: &'static str,
    /// What was asked for, or follows from it.
    pub asked: f64,
    /// What KVM reports; nothing where it has no part in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reported: Option<f64>,
    /// What a program in the guest measured.
    pub measured: f64,
    /// How far that is off: parts in a million of a rate, nanoseconds of an offset.
    pub error: f64,
    /// How exact the measurement is, in the same.
    pub uncertainty: f64,
    /// Whether it is as asked for.
    pub holds: bool,
}

/// All figures of one guest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// `native` or `virtual`.
    pub mode: &'static str,
    /// The figures.
    pub rows: Vec<Row>,
    /// Whether all of them are as asked for.
    pub holds: bool,
}

fn of_rate(what: &str, unit: &'static str, asked: f64, reported: Option<f64>, measured: PerSecond) -> Row {
    let error = (measured.value / asked - 1.0) * 1e6;
    Row {
        what: what.to_owned(),
        unit,
        asked,
        reported,
        measured: measured.value,
        error,
        uncertainty: measured.uncertainty_ppm,
        holds: error.abs() <= TOLERANCE_PPM + measured.uncertainty_ppm,
    }
}

fn of_offset(asked: i64, offset: &Offset) -> Row {
    let error = offset.nanos.saturating_sub(asked);
    Row {
        what: format!("vCPU {} ahead of vCPU 0", offset.cpu),
        unit: "ns",
        asked: asked as f64,
        reported: None,
        measured: offset.nanos as f64,
        error: error as f64,
        uncertainty: offset.within as f64,
        holds: error.saturating_abs() <= TOLERANCE_NS.saturating_add(offset.within),
    }
}

impl Report {
    pub(super) fn new(facts: &Facts, rate: Rate, offsets: &[i64], measured: &Measured) -> Self {
        let speed = rate.nanos() as f64 / 1e9;
        let khz = |rate: PerSecond| PerSecond { value: rate.value / 1e3, ..rate };
        let reported = (facts.counter_khz != 0).then_some(f64::from(facts.counter_khz));
        let clock = PerSecond { value: measured.clock.value / 1e9, ..measured.clock };
        let mut rows = vec![of_rate("clocks, per second of the host's", "s", speed, None, clock)];
        if facts.told_khz != 0 {
            let told = f64::from(facts.told_khz) * speed;
            rows.push(of_rate("TSC that the guest is told", "kHz", told, None, khz(measured.virtual_tsc)));
        }
        if let Some(counter) = reported {
            rows.push(of_rate("RDTSC in ring 3", "kHz", counter, reported, khz(measured.tsc)));
        }
        let first = offsets.first().copied().unwrap_or(0);
        rows.extend(measured.offsets.iter().map(|offset| {
            let asked = offsets.get(offset.cpu as usize).copied().unwrap_or(0);
            of_offset(asked - first, offset)
        }));
        let holds = rows.iter().all(|row| row.holds);
        Self { mode: if facts.native { "native" } else { "virtual" }, rows, holds }
    }
}

/// Six digits behind the point for what is about 1, none for the rest.
fn figure(value: f64) -> String {
    if value.abs() < 1000.0 && value.fract() != 0.0 { format!("{value:.6}") } else { format!("{value:.0}") }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<34} {:>4} {:>14} {:>14} {:>14} {:>18}  ({} mode)",
            "", "", "asked", "by KVM", "measured", "error", self.mode
        )?;
        for row in &self.rows {
            let by_kvm = row.reported.map_or_else(|| "-".to_owned(), figure);
            let unit = if row.unit == "ns" { "ns" } else { "ppm" };
            let error = format!("{:.0} +-{:.0} {unit}", row.error, row.uncertainty);
            let verdict = if row.holds { "" } else { "  OFF" };
            writeln!(
                f,
                "{:<34} {:>4} {:>14} {by_kvm:>14} {:>14} {error:>18}{verdict}",
                row.what,
                row.unit,
                figure(row.asked),
                figure(row.measured)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(clock: f64) -> Measured {
        let rate = |value| PerSecond { value, uncertainty_ppm: 100.0 };
        Measured {
            clock: rate(clock),
            virtual_tsc: rate(1e9 * clock / 1e9),
            tsc: rate(2.5e9),
            offsets: vec![Offset { cpu: 1, nanos: -4_900, within: 50 }],
        }
    }

    fn report(rate: &str, clock: f64, offsets: &[i64]) -> Report {
        let facts = Facts { told_khz: 1_000_000, counter_khz: 2_500_000, ..Facts::default() };
        Report::new(&facts, rate.parse().unwrap(), offsets, &measured(clock))
    }

    #[test]
    fn what_is_as_asked_for_holds() {
        let report = report("0.5", 0.5e9, &[1_000, -4_000]);
        assert!(report.holds, "{report}");
        assert_eq!(report.rows.iter().map(|row| row.error.round()).collect::<Vec<_>>(), [0.0, 0.0, 0.0, 100.0]);
    }

    #[test]
    fn what_is_off_is_named() {
        assert!(!report("0.5", 1e9, &[0, -5_000]).holds, "the rate has no effect");
        assert!(!report("1", 1.001e9, &[0, -5_000]).holds, "a thousandth");
        assert!(report("1", 1.0004e9, &[0, -5_000]).holds);
        let skewed = report("1", 1e9, &[0, 0]);
        assert!(!skewed.holds);
        assert!(skewed.to_string().lines().last().is_some_and(|line| line.contains("vCPU 1") && line.ends_with("OFF")));
    }
}
