//! `taskvisor report`: what a trace shows. Tables for people, JSON for machines, a page with a time line, and whether the
//! scheduler's invariants held.
//!
//! [`report`] reads the file once, in memory that grows with the CPUs and tasks that are alive: [`vcpu_sched::checker`] puts the records
//! in order and judges them, `analysis` adds them up, `timeline` keeps what the picture needs. The binary is its caller.
//! Invariant: nothing that a file holds makes it panic, and a damaged file is an error that says where.

mod analysis;
#[cfg(test)]
mod browser_tests;
mod cpus;
mod html;
pub mod model;
mod spread;
mod tasks;
#[cfg(test)]
mod tests;
mod text;
mod timeline;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vcpu_sched::checker::{Checker, Options, Outcome, Stamped};
use vcpu_sched::events::{Event, Kind};
use vcpu_sched::ids::{CpuId, Nanos};

use crate::trace::{self, Header, TraceError, TraceReader};
use analysis::{Analysed, Analysis};
use model::Report;
use timeline::Timeline;

/// The exit code of `taskvisor report` when an invariant was violated.
pub const EXIT_VIOLATED: u8 = 1;

/// Slices in a page: enough for a close look, and few enough for a browser.
const SLICES: usize = 1_000_000;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The trace can't be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The page can't be written.
    #[error("{path}: {source}", path = path.display())]
    Page {
        /// The page.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Reads the trace, writes `page` if it is wanted, and tells the rest.
///
/// # Errors
/// [`ReportError`].
pub fn report(path: &Path, page: Option<&Path>, options: Options) -> Result<Report, ReportError> {
    let reader = TraceReader::open(path)?;
    let mut checker = Checker::new(options);
    let mut analysis = Analysis::new(page.map(|_| Timeline::new(SLICES)));
    let mut progress = Progress::new();
    for record in reader.records() {
        let trace::Stamped { cpu, time_ns, record } = record?;
        checker.feed_then(Stamped { cpu: CpuId(cpu), time: Nanos(time_ns), record }, |r| analysis.take(r));
        progress.step();
    }
    let outcome = checker.finish_then(|r| analysis.take(r));
    let records = progress.finish();
    let analysed = analysis.finish();
    let Some(page) = page else { return Ok(compose(reader.header(), records, analysed, outcome).0) };
    let io = |source| ReportError::Page { path: page.to_owned(), source };
    let (report, lanes) = compose(reader.header(), records, analysed, outcome);
    let mut file = std::io::BufWriter::new(std::fs::File::create(page).map_err(io)?);
    html::write(&mut file, &report, &lanes).and_then(|()| file.flush()).map_err(io)?;
    Ok(report)
}

/// What the page has beside the report: the time line, and the serial number of each of the report's tasks.
struct Lanes {
    timeline: Option<Timeline>,
    serials: Vec<u32>,
}

fn compose(header: &Header, records: u64, analysed: Analysed, outcome: Outcome) -> (Report, Lanes) {
    let Analysed { tasks, unlisted, cpus, latency, delay, migrations, worst, timeline, begin, end } = analysed;
    let (serials, tasks) = tasks.into_iter().unzip();
    let invariants = outcome.tallies.iter().map(|t| model::Invariant {
        name: t.invariant.name(),
        checked: t.checked,
        violations: t.violations,
    });
    let report = Report {
        schema: model::SCHEMA,
        trace: model::Trace {
            program: header.program.clone(),
            policy: header.policy.clone(),
            cpus: header.cpus.max(cpus.len() as u32),
            begin_ns: begin,
            end_ns: end,
            records,
            unknown_records: outcome.unknown,
            lost_records: outcome.lost,
            missing_places: outcome.missing,
            adopted_tasks: outcome.adopted,
        },
        tasks,
        unlisted,
        cpus,
        wakeup_latency: latency,
        run_delay: delay,
        migrations,
        worst_delays: worst,
        invariants: invariants.collect(),
        violations: outcome.first.into_iter().map(violation).collect(),
    };
    (report, Lanes { timeline, serials })
}

fn violation(v: vcpu_sched::checker::Violation) -> model::Violation {
    let around = v.around.iter().map(|r| model::Around {
        time_ns: r.time.0,
        cpu: r.cpu.0,
        kind: Kind::from_u8(r.record.kind).map_or("unknown", trace::kind_name),
        task: r.record.task,
        seq: r.record.seq,
        to: match Event::decode(&r.record) {
            Some(Event::Switch { next, .. }) => Some(next.task.0),
            Some(Event::Queued { target, .. }) => Some(target.0),
            Some(Event::Migrate { to, .. }) => Some(to.0),
            _ => None,
        },
    });
    model::Violation {
        invariant: v.invariant.name(),
        time_ns: v.time.0,
        cpu: v.cpu.0,
        tasks: v.tasks.iter().map(|t| t.0).collect(),
        what: v.what,
        around: around.collect(),
    }
}

/// Tells a person at a terminal that there is progress, once it takes long.
struct Progress {
    records: u64,
    next: Instant,
    shown: bool,
    terminal: bool,
}

impl Progress {
    const EVERY: Duration = Duration::from_secs(1);
    /// The clock is looked at once in so many records.
    const GRAIN: u64 = 1 << 16;

    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { records: 0, next: Instant::now() + Self::EVERY, shown: false, terminal }
    }

    fn step(&mut self) {
        self.records += 1;
        if self.terminal && self.records.is_multiple_of(Self::GRAIN) && Instant::now() >= self.next {
            self.next = Instant::now() + Self::EVERY;
            self.shown = true;
            let _ = write!(std::io::stderr(), "\r{:.1} million records", self.records as f64 / 1e6);
        }
    }

    /// How many there were.
    fn finish(self) -> u64 {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        self.records
    }
}
