//! The measuring guest: a child process, asked by single bytes, answering in lines.
//!
//! When did it read its clocks? Within the round trip of the question, that is certain. Where its counter is seen to be the host's (each
//! of its readings lies between two of the host's around the round trip), the counter tells the moment to a microsecond.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::VerifyError;
use crate::clock::counter::host_ticks;
use crate::config::flags::MachineFlags;

/// Readings of which the sharpest counts.
const TRIES: u32 = 40;
/// The guest ends by itself after the window and this, should anything hang.
const LIMIT: Duration = Duration::from_secs(120);
/// Longer lines are no answers.
const MAX_LINE: u64 = 256;

/// The host's clock and its counter at one moment.
#[derive(Debug, Clone, Copy)]
struct Moment {
    at: Instant,
    ticks: u64,
}

impl Moment {
    /// Both read at once: the sharpest of some tries, for the thread may be preempted between the two.
    fn now() -> Self {
        let once = |_| {
            let (before, at, after) = (host_ticks(), Instant::now(), host_ticks());
            (after.wrapping_sub(before), Self { at, ticks: before + after.wrapping_sub(before) / 2 })
        };
        (0..8).map(once).min_by_key(|(took, _)| *took).map_or_else(|| once(0).1, |(_, moment)| moment)
    }
}

/// What a moment that the counter tells is uncertain by: two clocks read one after the other, twice.
const BY_COUNTER: Duration = Duration::from_micros(1);

/// The guest's clocks at a moment of the host's.
#[derive(Debug, Clone, Copy)]
struct Reading {
    /// In the middle of the round trip.
    at: Instant,
    /// The moment is known to this much on either side.
    within: Duration,
    /// The moment by the counter, if that is the host's.
    by_counter: Option<Instant>,
    monotonic: f64,
    virtual_tsc: f64,
    tsc: f64,
}

/// A rate per second of the host's, and how exact it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct PerSecond {
    pub value: f64,
    pub uncertainty_ppm: f64,
}

/// A vCPU's clock against the first one's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offset {
    pub cpu: u32,
    pub nanos: i64,
    pub within: i64,
}

/// What was measured.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    /// Nanoseconds of the monotonic clock.
    pub clock: PerSecond,
    /// Ticks of the virtual counter.
    pub virtual_tsc: PerSecond,
    /// Ticks of RDTSC.
    pub tsc: PerSecond,
    pub offsets: Vec<Offset>,
}

/// The running guest; killed when dropped.
struct Guest {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    _files: tempfile::TempDir,
}

#[cfg(feature = "embedded-kernel")]
fn program() -> Option<&'static [u8]> {
    taskvisor_resources::program("clocks")
}

#[cfg(not(feature = "embedded-kernel"))]
fn program() -> Option<&'static [u8]> {
    None
}

impl Guest {
    fn start(machine: &MachineFlags, kernel: Option<&Path>, limit: Duration) -> Result<Self, VerifyError> {
        let elf = program().ok_or(VerifyError::NoProgram)?;
        let files = tempfile::tempdir().map_err(VerifyError::Start)?;
        let (config, clocks) = (files.path().join("machine.toml"), files.path().join("clocks"));
        fs::write(&config, toml::to_string(machine)?).map_err(VerifyError::Start)?;
        fs::write(&clocks, elf).map_err(VerifyError::Start)?;
        fs::set_permissions(&clocks, fs::Permissions::from_mode(0o755)).map_err(VerifyError::Start)?;
        let mut command = Command::new(std::env::current_exe().map_err(VerifyError::Start)?);
        command.arg("run").arg("--config").arg(&config).arg("--timeout").arg(format!("{}s", limit.as_secs().max(1)));
        if let Some(kernel) = kernel {
            command.arg("--kernel").arg(kernel);
        }
        command.arg("--").arg(&clocks).arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(VerifyError::Start)?;
        let (Some(questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(VerifyError::Answer(String::new()));
        };
        let mut guest = Self { child, questions, answers: BufReader::new(answers), _files: files };
        let first = guest.line()?;
        if first == "ready" { Ok(guest) } else { Err(VerifyError::Answer(first)) }
    }

    fn ask(&mut self, what: u8) -> Result<(), VerifyError> {
        self.questions.write_all(&[what]).map_err(|error| VerifyError::Answer(error.to_string()))
    }

    fn line(&mut self) -> Result<String, VerifyError> {
        let mut line = String::new();
        let read = self.answers.by_ref().take(MAX_LINE).read_line(&mut line);
        match read {
            Ok(n) if n > 0 && line.ends_with('\n') => Ok(line.trim_end().to_owned()),
            _ => Err(VerifyError::Answer(line)),
        }
    }

    /// The sharpest of some readings.
    fn read(&mut self) -> Result<Reading, VerifyError> {
        let mut best: Option<Reading> = None;
        for _ in 0..TRIES {
            let before = Moment::now();
            self.ask(b'r')?;
            let line = self.line()?;
            let after = Moment::now();
            let within = (after.at - before.at) / 2;
            if best.is_some_and(|best| best.within <= within) {
                continue;
            }
            let [monotonic, virtual_tsc, tsc] = numbers(&line, "read")?;
            let span = after.ticks.wrapping_sub(before.ticks) as f64;
            let part = (tsc - before.ticks as f64) / span;
            let by_counter = (0.0..=1.0).contains(&part).then(|| before.at + (within * 2).mul_f64(part));
            best = Some(Reading { at: before.at + within, within, by_counter, monotonic, virtual_tsc, tsc });
        }
        best.ok_or_else(|| VerifyError::Answer(String::new()))
    }

    fn offsets(&mut self) -> Result<Vec<Offset>, VerifyError> {
        self.ask(b'o')?;
        let mut offsets = Vec::new();
        loop {
            let line = self.line()?;
            if line == "offsets" {
                return Ok(offsets);
            }
            let [cpu, nanos, within] = numbers(&line, "offset")?;
            offsets.push(Offset { cpu: cpu as u32, nanos: nanos as i64, within: within as i64 });
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nobody to kill and only a status to be taken.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The three numbers behind a word. All of them stay below 2^53, or matter only by their differences, where 2^-53 of a
/// counter is less than a microsecond.
fn numbers(line: &str, word: &str) -> Result<[f64; 3], VerifyError> {
    let wrong = || VerifyError::Answer(line.to_owned());
    let rest = line.strip_prefix(word).ok_or_else(wrong)?;
    let parsed: Result<Vec<f64>, _> =
        rest.split_ascii_whitespace().map(|n| n.parse::<i128>().map(|n| n as f64)).collect();
    parsed.ok().and_then(|all| all.try_into().ok()).ok_or_else(wrong)
}

impl Measured {
    /// Starts a guest on this machine and measures for `window`.
    pub(super) fn take(machine: &MachineFlags, kernel: Option<&Path>, window: Duration) -> Result<Self, VerifyError> {
        let mut guest = Guest::start(machine, kernel, LIMIT + window)?;
        let offsets = guest.offsets()?;
        let first = guest.read()?;
        // Nothing is waited for: the window is what is measured.
        thread::sleep(window);
        let last = guest.read()?;
        let (passed, uncertain) = match (first.by_counter, last.by_counter) {
            (Some(first), Some(last)) => (last - first, BY_COUNTER * 2),
            _ => (last.at - first.at, first.within + last.within),
        };
        let seconds = passed.as_secs_f64();
        let uncertainty_ppm = uncertain.as_secs_f64() / seconds * 1e6;
        let rate = |of: fn(&Reading) -> f64| PerSecond { value: (of(&last) - of(&first)) / seconds, uncertainty_ppm };
        Ok(Self {
            clock: rate(|reading| reading.monotonic),
            virtual_tsc: rate(|reading| reading.virtual_tsc),
            tsc: rate(|reading| reading.tsc),
            offsets,
        })
    }
}
