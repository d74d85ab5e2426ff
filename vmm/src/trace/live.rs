//! Recordings that begin and end while the guest runs: into a file without a name, which can be fetched when they have ended.
//!
//! The control interface calls [`Live`] from threads that may wait for the guest. A guest that was started without `--trace` has no
//! rings; the first recording has its kernel make them, and until then tracing costs the guest a flag that is tested. What
//! the VMM notes of its vCPUs is not recorded so. Invariants: the file never grows much beyond its limit (what comes then is
//! counted, not kept); a recording can be ended whatever the guest does.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use taskvisor_devices::bus::lock;
use taskvisor_devices::trace_ring::RingError;
use vcpu_sched::directory::RingHeader;
use vcpu_sched::events::{Kind, Record};
use vcpu_sched::requests::message::{Refusal, Request, Tracing};

use super::merge::{Feed, Published, Summary};
use super::recorder::{Message, QUEUE, Shared, rdtsc};
use super::{Format, Header, Stream, TraceError, TraceReader, TraceWriter, clock::ClockMap};
use crate::requests::{Mailbox, RequestError};

/// Records of a ring that a recording has made, if it doesn't say: those of `--trace`.
const DEFAULT_RECORDS: u32 = 4096;
/// Bytes of a recording's file at most, if it doesn't say.
const DEFAULT_LIMIT: u64 = 256 << 20;
/// Bytes that a recording may ask for.
const LIMITS: std::ops::RangeInclusive<u64> = 1 << 20..=64 << 30;

/// Why a recording can't begin, end or be had.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// One at a time.
    #[error("a trace is being recorded already")]
    Recording,
    /// There is nothing to end.
    #[error("no trace is being recorded")]
    Idle,
    /// There is nothing to fetch.
    #[error("no trace was recorded")]
    Nothing,
    /// Not a size of rings.
    #[error("a ring can't have {0} records: a power of two from {least} to {most}", least = RingHeader::CAPACITIES.start(), most = RingHeader::CAPACITIES.end())]
    Records(u32),
    /// Not a size of files.
    #[error("a trace can't be limited to {0} bytes: from {least} to {most}", least = LIMITS.start(), most = LIMITS.end())]
    Limit(u64),
    /// The guest has rings that nobody can drain.
    #[error("the guest's rings overwrite their oldest records (trace=ring), so that they can't be read while it runs")]
    Overwrites,
    /// What the guest says is no ring.
    #[error("the guest's trace ring of CPU {0} can't be used: {1}")]
    Ring(u32, RingError),
    /// The guest told no clock.
    #[error("the guest's kernel wrote no clock record")]
    NoClock,
    /// The guest's kernel.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The file.
    #[error("the trace's temporary file: {0}")]
    File(#[from] io::Error),
    /// The writer.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// How a recording shall be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Records of a CPU's ring, if it has to be made: a power of two.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ring_records: Option<u32>,
    /// Bytes of the file at most.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit_bytes: Option<u64>,
}

/// Whether there is a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// None was begun.
    Idle,
    /// It goes on.
    Recording,
    /// It has ended, and can be fetched.
    Stopped,
}

/// What can be told of a recording at any time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether there is one.
    pub state: Phase,
    /// Records that were written.
    pub records: u64,
    /// Records that the guest had to drop.
    pub lost: u64,
    /// Records that came when the file was full.
    pub over_limit: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The whole run is recorded into a file of its own, too (`--trace`).
    pub run_is_traced: bool,
}

/// What the writer's thread has counted.
#[derive(Debug, Default)]
struct Counts {
    records: AtomicU64,
    lost: AtomicU64,
    over_limit: AtomicU64,
}

#[derive(Debug)]
enum State {
    Idle,
    Recording { file: File, counts: Arc<Counts>, writer: JoinHandle<Result<Summary, TraceError>> },
    Stopped { file: File, counts: Arc<Counts> },
}

/// See the module's text.
pub struct Live {
    shared: Arc<Shared>,
    vcpus: u32,
    header: Header,
    state: Mutex<State>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Live {
    pub(super) fn new(shared: Arc<Shared>, vcpus: u32, header: Header) -> Self {
        Self { shared, vcpus, header, state: Mutex::new(State::Idle) }
    }

    /// Begins a recording. What was recorded before is forgotten.
    ///
    /// # Errors
    /// [`LiveError`]; nothing is recorded then.
    pub fn start(&self, mailbox: &Mailbox, wanted: &Wanted) -> Result<Status, LiveError> {
        let records = wanted.ring_records.unwrap_or(DEFAULT_RECORDS);
        if !records.is_power_of_two() || !RingHeader::CAPACITIES.contains(&records) {
            return Err(LiveError::Records(records));
        }
        let limit = wanted.limit_bytes.unwrap_or(DEFAULT_LIMIT);
        if !LIMITS.contains(&limit) {
            return Err(LiveError::Limit(limit));
        }
        let mut state = lock(&self.state);
        if matches!(*state, State::Recording { .. }) {
            return Err(LiveError::Recording);
        }
        self.open_rings(mailbox, records)?;
        // What is left of a recording before goes no further. What each ring began with is known from here on.
        self.shared.take();
        mailbox.ask(&Request::Trace(Tracing::Clock))?;
        let told = self.shared.take();
        let clock = told.iter().flat_map(|(_, records)| records).rfind(|r| r.kind == Kind::Clock as u8);
        let clock = *clock.ok_or(LiveError::NoClock)?;

        let file = tempfile::tempfile()?;
        let counts = Arc::<Counts>::default();
        let (sender, receiver) = sync_channel(QUEUE);
        let path = PathBuf::from("the recording");
        let feed = Feed::new(path, file.try_clone()?, Format::Pftrace, self.header.clone());
        let (sized, counted) = (file.try_clone()?, counts.clone());
        let thread = thread::Builder::new().name("trace-live".into());
        let writer = thread.spawn(move || write_all(&receiver, feed, &sized, limit, &counted))?;
        self.open_feed(&sender, &clock);
        self.shared.set_live(Some(sender));
        if let Err(error) = mailbox.ask(&Request::Trace(Tracing::Start)) {
            // Its writer ends with the sender, and the file with its last handle.
            self.shared.set_live(None);
            return Err(error.into());
        }
        *state = State::Recording { file, counts, writer };
        Ok(self.tell(&state))
    }

    /// Ends the recording. A guest that is paused or doesn't answer is left as it is: what it still writes goes nowhere.
    ///
    /// # Errors
    /// [`LiveError::Idle`]; what the writer met.
    pub fn stop(&self, mailbox: Option<&Mailbox>) -> Result<Status, LiveError> {
        let mut state = lock(&self.state);
        let (file, counts, writer) = match std::mem::replace(&mut *state, State::Idle) {
            State::Recording { file, counts, writer } => (file, counts, writer),
            other => {
                *state = other;
                return Err(LiveError::Idle);
            }
        };
        // The file of the whole run goes on, and with it the guest's records.
        if let Some(mailbox) = mailbox.filter(|_| !self.shared.has_file())
            && let Err(error) = mailbox.ask(&Request::Trace(Tracing::Stop))
        {
            log::warn!("the guest goes on writing trace records, which nobody keeps: {error}");
        }
        self.shared.drain(None);
        // The last sender: the writer comes to its end.
        self.shared.set_live(None);
        // A panic of the writer has been told by the hook; there is nothing more to say about the file.
        writer.join().unwrap_or_else(|_| Ok(Summary::default()))?;
        *state = State::Stopped { file, counts };
        Ok(self.tell(&state))
    }

    /// What there is. The rings are emptied for it, which the guest doesn't notice; what was in them is counted a moment later.
    pub fn status(&self) -> Status {
        let state = lock(&self.state);
        if matches!(*state, State::Recording { .. }) {
            self.shared.drain(None);
        }
        self.tell(&state)
    }

    /// The recording, as a file of its own position that can be read whatever becomes of this one.
    ///
    /// # Errors
    /// [`LiveError::Recording`], [`LiveError::Nothing`]; the file.
    pub fn fetch(&self, format: Format) -> Result<File, LiveError> {
        let stored = match &*lock(&self.state) {
            State::Idle => return Err(LiveError::Nothing),
            State::Recording { .. } => return Err(LiveError::Recording),
            State::Stopped { file, .. } => reopen(file)?,
        };
        match format {
            Format::Pftrace => Ok(stored),
            Format::Jsonl => as_lines(&stored),
        }
    }

    fn tell(&self, state: &State) -> Status {
        let (state, file, counts) = match state {
            State::Idle => (Phase::Idle, None, None),
            State::Recording { file, counts, .. } => (Phase::Recording, Some(file), Some(counts)),
            State::Stopped { file, counts } => (Phase::Stopped, Some(file), Some(counts)),
        };
        // Relaxed: counters for people.
        let count = |of: fn(&Counts) -> &AtomicU64| counts.map_or(0, |counts| of(counts).load(Ordering::Relaxed));
        Status {
            state,
            records: count(|c| &c.records),
            lost: count(|c| &c.lost),
            over_limit: count(|c| &c.over_limit),
            bytes: file.and_then(|file| file.metadata().ok()).map_or(0, |data| data.len()),
            run_is_traced: self.shared.has_file(),
        }
    }

    /// Has the guest make the rings that there aren't, and opens them.
    fn open_rings(&self, mailbox: &Mailbox, records: u32) -> Result<(), LiveError> {
        let mut first = 0;
        while first < self.vcpus {
            let addresses = match mailbox.ask_for_bytes(&Request::TraceRings { first, records }) {
                Ok((count, addresses)) if count > 0 && count.checked_mul(8) == Some(addresses.len() as u64) => {
                    addresses
                }
                Ok(_) => return Err(RequestError::Broken("its trace rings and their number don't agree").into()),
                // vCPUs that the guest didn't bring up.
                Err(RequestError::Refused(Refusal::NoCpu)) if first > 0 => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let (addresses, _) = addresses.as_chunks();
            for (cpu, address) in (first..self.vcpus).zip(addresses) {
                let address = u64::from_le_bytes(*address);
                let opened = lock(&self.shared.rings).open_at(&self.shared.ram, cpu, address);
                if !opened.map_err(|error| LiveError::Ring(cpu, error))? {
                    return Err(LiveError::Overwrites);
                }
            }
            first = first.saturating_add(addresses.len() as u32);
        }
        Ok(())
    }

    /// What a recording begins with, on each CPU: the clock as it is now, the name of the idle task, the CPU's presence.
    fn open_feed(&self, sender: &SyncSender<Message>, clock: &Record) {
        let now = |record: &Record| match record.kind == Kind::Clock as u8 {
            true => *clock,
            false => Record { tsc: clock.tsc, ..*record },
        };
        let rings = lock(&self.shared.rings);
        let openings = rings.openings().map(|(stream, records)| (stream, records.iter().map(now).collect()));
        let openings: Vec<(Stream, Vec<Record>)> = openings.collect();
        drop(rings);
        let realtime = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let published = Published {
            guest_tsc: clock.tsc,
            host_tsc: rdtsc(),
            host_khz: self.header.tsc_khz,
            realtime_ns: u64::try_from(realtime).unwrap_or(0),
        };
        // The receiver is there; the queue is empty and holds both.
        let _ = sender.send(Message::Records(openings));
        let _ = sender.send(Message::Published(published));
    }
}

/// The writer's thread. After a failure it takes and forgets, so that the guest isn't held up.
fn write_all(
    messages: &Receiver<Message>,
    mut feed: Feed,
    file: &File,
    limit: u64,
    counts: &Counts,
) -> Result<Summary, TraceError> {
    let mut failure = None;
    let mut full = false;
    for message in messages {
        let result = match message {
            Message::End => break,
            _ if failure.is_some() => Ok(()),
            Message::Published(published) => feed.published(&published),
            Message::Records(records) => {
                let all = records.iter().flat_map(|(_, records)| records);
                let lost: u64 = all.clone().filter(|r| r.kind == Kind::Lost as u8).map(|r| r.a).sum();
                let number = all.count() as u64;
                full = full || file.metadata().is_ok_and(|data| data.len() >= limit);
                // Relaxed: counters for people.
                counts.lost.fetch_add(lost, Ordering::Relaxed);
                if full { &counts.over_limit } else { &counts.records }.fetch_add(number, Ordering::Relaxed);
                if full { Ok(()) } else { feed.records(records) }
            }
        };
        failure = failure.or(result.err());
    }
    match failure {
        Some(error) => Err(error),
        None => feed.finish(),
    }
}

/// The same file, from its beginning, with a position of its own.
fn reopen(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The same records in the other format.
fn as_lines(stored: &File) -> Result<File, LiveError> {
    let reader = TraceReader::open(&PathBuf::from(format!("/proc/self/fd/{}", stored.as_raw_fd())))?;
    let lines = tempfile::tempfile()?;
    let path = PathBuf::from("the recording");
    let mut writer = TraceWriter::over(&path, lines.try_clone()?, Format::Jsonl, reader.header())?;
    for stamped in reader.records() {
        let stamped = stamped?;
        // A map of this one stamp: its time is as it was read.
        let map = ClockMap { tsc: stamped.record.tsc, ns: stamped.time_ns, khz: reader.header().tsc_khz };
        writer.write(Stream { cpu: stamped.cpu, vmm: false }, &map, &[stamped.record])?;
    }
    writer.finish()?;
    Ok(reopen(&lines)?)
}
