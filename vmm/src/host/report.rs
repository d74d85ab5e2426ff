//! What `taskvisor doctor` prints: one line per fact, as a table for people and as JSON for programs.
//!
//! Built by [`super::examine`]; [`quirks`] reads it back. Invariant: a line's `name` is stable (it is an interface), its
//! `detail` is for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Quirks;

/// Line names that [`quirks`] reads.
pub mod name {
    /// Interpreted or native.
    pub const RING0_SPEED: &str = "ring 0 speed";
    /// SYSCALL from ring 3.
    pub const SYSCALL: &str = "system calls";
    /// XSAVE in ring 0.
    pub const RING0_XSAVE: &str = "XSAVE in ring 0";
}

/// A line's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As on ordinary hardware.
    Ok,
    /// Different, but there is a way round it, which is taken automatically.
    Quirk,
    /// Not available.
    No,
    /// The probe gave no answer.
    Unknown,
}

impl Status {
    fn mark(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Quirk => "quirk",
            Status::No => "no",
            Status::Unknown => "?",
        }
    }
}

/// One fact about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Stable name.
    pub name: String,
    /// The verdict.
    pub status: Status,
    /// True if no guest can run unless this is ok.
    #[serde(default)]
    pub needed: bool,
    /// What was seen.
    pub detail: String,
    /// What to do about it, where something can be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Line {
    /// A line without a remedy.
    pub fn new(name: &str, status: Status, detail: impl Into<String>) -> Line {
        Line { name: name.into(), status, needed: false, detail: detail.into(), remedy: None }
    }

    /// The same, without which nothing runs.
    pub fn needed(mut self) -> Line {
        self.needed = true;
        self
    }

    /// The same, with advice.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Line {
        self.remedy = Some(remedy.into());
        self
    }

    /// The line of a probe, or that it gave no answer.
    pub fn of<E: fmt::Display>(name: &str, result: Result<Line, E>) -> Line {
        result.unwrap_or_else(|error| Line::new(name, Status::Unknown, error.to_string()))
    }
}

/// Everything found out about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// The facts, most basic first.
    pub lines: Vec<Line>,
}

impl HostReport {
    /// A line by its name.
    pub fn line(&self, name: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.name == name)
    }

    /// Whether a guest can run here at all.
    pub fn can_run(&self) -> bool {
        self.lines.iter().all(|line| !line.needed || line.status == Status::Ok)
    }
}

/// docs/abi.md's quirks, from a full report. ([`Quirks::probe_fast`] finds the same without one.)
pub fn quirks(report: &HostReport) -> Quirks {
    let is_quirk = |name| report.line(name).is_some_and(|line| line.status == Status::Quirk);
    Quirks {
        pf_syscall: is_quirk(name::SYSCALL),
        user_xsave: is_quirk(name::RING0_XSAVE),
        slow_ring0: is_quirk(name::RING0_SPEED),
    }
}

/// The table: name, verdict, detail; advice on a line of its own.
impl fmt::Display for HostReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        for line in &self.lines {
            writeln!(f, "{:width$}  {:5}  {}", line.name, line.status.mark(), line.detail)?;
            if let Some(remedy) = &line.remedy {
                writeln!(f, "{:width$}         -> {remedy}", "")?;
            }
        }
        let quirks = quirks(self);
        writeln!(
            f,
            "{:width$}         {}",
            "quirks",
            if quirks == Quirks::default() { "none".into() } else { quirks.to_string() }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> HostReport {
        HostReport {
            lines: vec![
                Line::new("/dev/kvm", Status::Ok, "opened").needed(),
                Line::new(name::RING0_SPEED, Status::Quirk, "interpreted"),
                Line::new("breakpoints", Status::No, "none").remedy("buy another"),
            ],
        }
    }

    #[test]
    fn the_table_is_aligned() {
        assert_eq!(
            report().to_string(),
            "/dev/kvm      ok     opened\n\
             ring 0 speed  quirk  interpreted\n\
             breakpoints   no     none\n\
             \x20                    -> buy another\n\
             quirks               slow_ring0\n"
        );
    }

    #[test]
    fn json_goes_both_ways_and_keeps_its_names() {
        let json = serde_json::to_string(&report()).unwrap();
        assert!(json.contains(r#"{"name":"ring 0 speed","status":"quirk","needed":false,"detail":"interpreted"}"#));
        assert_eq!(serde_json::from_str::<HostReport>(&json).unwrap(), report());
    }

    #[test]
    fn only_needed_lines_keep_guests_from_running() {
        let mut report = report();
        assert!(report.can_run());
        report.lines[0].status = Status::Unknown;
        assert!(!report.can_run());
    }

    #[test]
    fn quirks_are_read_from_their_lines() {
        let mut report = report();
        assert_eq!(quirks(&report), Quirks { slow_ring0: true, ..Quirks::default() });
        report.lines[1].status = Status::Unknown;
        assert_eq!(quirks(&report), Quirks::default());
    }
}
