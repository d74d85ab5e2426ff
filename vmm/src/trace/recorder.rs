//! Records a running guest: drains its rings when they are full, adds the VMM's own records, and feeds the writer's thread.
//!
//! [`crate::vm`] makes a [`Recorder`], gives its ports' listeners to the devices and a [`VcpuTracer`] to each vCPU thread, and
//! finishes it when the vCPUs have stopped. Invariants: nothing is lost here (a queue that is full makes its sender wait, which is
//! the guest's doorbell or exit); the records of a stream reach the writer in their order; a ring that a guest breaks is told
//! once and read no more. What is recorded at run time ([`super::live`]) gets a copy of what is drained.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use taskvisor_devices::bus::lock;
use vcpu_sched::events::{Kind, Record};

use super::merge::{Feed, Published, Summary};
use super::rings::Rings;
use super::{Header, Live, Stream, TraceError, writer};
use crate::memory::Ram;
use crate::sandbox;
use crate::vcpu::counts;

/// Messages between the vCPU threads and the writer: some megabytes.
pub(super) const QUEUE: usize = 64;
/// The VMM's records of a vCPU that are handed on at once.
const BATCH: usize = 1024;
/// The host's account of waiting is looked at no more often than this, since each look is a system call.
const STEAL_INTERVAL_NS: u64 = 1_000_000;

/// What the writer's thread is told.
#[derive(Debug)]
pub(super) enum Message {
    /// Records of streams, those of each in their order; all from one look at the rings.
    Records(Vec<(Stream, Vec<Record>)>),
    /// The guest has told where its rings are. Their first records have been sent before.
    Published(Published),
    /// Nothing more comes.
    End,
}

thread_local! {
    /// The host's TSC when this thread's vCPU last left the guest: what a port's listener sees as the time of the write.
    static LAST_EXIT: Cell<u64> = const { Cell::new(0) };
}

/// What the threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) ram: Ram,
    pub(super) rings: Mutex<Rings>,
    /// Who writes the file of the whole run.
    file: Option<SyncSender<Message>>,
    /// Who writes a recording that was begun at run time.
    live: Mutex<Option<SyncSender<Message>>>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    host_khz: u32,
    /// Of the file of the whole run.
    writer: Option<JoinHandle<Result<Summary, TraceError>>>,
}

/// Host's time stamp counter.
pub(super) fn rdtsc() -> u64 {
    // SAFETY: the instruction is there on every x86-64 CPU, and reads a counter.
    unsafe { std::arch::x86_64::_rdtsc() }
}

impl Recorder {
    /// Without a file: records nothing but what [`Recorder::live`] is asked for.
    pub fn idle(ram: Ram, vcpus: u32, host_khz: u32) -> Self {
        let rings = Mutex::new(Rings::new(vcpus));
        Self { shared: Arc::new(Shared { ram, rings, file: None, live: Mutex::default() }), host_khz, writer: None }
    }

    /// Makes the file and starts its writer. `host_khz`: frequency of the host's TSC, 0 if that isn't known.
    ///
    /// # Errors
    /// [`TraceError`]: the file.
    pub fn start(path: &Path, ram: Ram, vcpus: u32, host_khz: u32, header: Header) -> Result<Self, TraceError> {
        let io = |source| TraceError::Io { path: path.to_owned(), source };
        let (file, format) = writer::open(path)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let feed = Feed::new(path.to_owned(), file, format, header);
        let thread = thread::Builder::new().name("trace".into());
        let confined = path.to_owned();
        let writer = thread.spawn(move || {
            sandbox::enter(sandbox::Kind::Trace)
                .map_err(|error| TraceError::Io { path: confined, source: io::Error::other(error) })?;
            write_all(&receiver, feed)
        });
        let writer = writer.map_err(io)?;
        let rings = Mutex::new(Rings::new(vcpus));
        let shared = Arc::new(Shared { ram, rings, file: Some(sender), live: Mutex::default() });
        Ok(Self { shared, host_khz, writer: Some(writer) })
    }

    /// What begins and ends recordings at run time. `header` as in [`Recorder::start`].
    pub fn live(&self, vcpus: u32, header: Header) -> Live {
        Live::new(self.shared.clone(), vcpus, header)
    }

    /// What to do when the guest tells the page of its directory.
    pub fn directory_listener(&self) -> impl Fn(u32) + Send + use<> {
        let (shared, host_khz) = (self.shared.clone(), self.host_khz);
        move |page| shared.published(page, host_khz)
    }

    /// What to do when the guest says that the ring of a CPU is full.
    pub fn doorbell_listener(&self) -> impl Fn(u32) + Send + use<> {
        let shared = self.shared.clone();
        move |cpu| shared.drain(Some(cpu))
    }

    /// For the thread of vCPU `cpu`; none if there is no file that its records would go to.
    pub fn tracer(&self, cpu: u32) -> Option<VcpuTracer> {
        self.writer.as_ref()?;
        Some(VcpuTracer {
            shared: self.shared.clone(),
            stream: Stream { cpu, vmm: true },
            buffer: Vec::with_capacity(BATCH),
            host_khz: self.host_khz,
            schedstat: None,
            looked: 0,
            delay: 0,
        })
    }

    /// [`Recorder::finish`], and what a user should know of it.
    pub fn end(self) -> Option<String> {
        match self.finish()? {
            Err(error) => Some(format!("the trace is not complete: {error}")),
            Ok(Summary { rings: false, .. }) => {
                Some("the guest kernel showed no trace rings: the trace has the vCPUs' entries and exits only".into())
            }
            Ok(Summary { lost, .. }) if lost > 0 => Some(format!("the guest had to drop {lost} trace records")),
            Ok(_) => None,
        }
    }

    /// Writes what is left and closes the file, if there is one. All vCPUs have stopped, and their tracers are gone.
    ///
    /// # Errors
    /// [`TraceError`]: what the writer met.
    pub fn finish(self) -> Option<Result<Summary, TraceError>> {
        let writer = self.writer?;
        self.shared.drain(None);
        self.shared.send(Message::Records(lock(&self.shared.rings).last(&self.shared.ram)));
        self.shared.send(Message::End);
        // A panic of the writer has been told by the hook; there is nothing more to say about the file.
        Some(writer.join().unwrap_or_else(|_| Ok(Summary::default())))
    }
}

impl Shared {
    /// To the file of the whole run.
    fn send(&self, message: Message) {
        // The writer stays until `End`; if it panicked, there is nobody to tell.
        let _ = self.file.as_ref().map(|file| file.send(message));
    }

    /// Whether the whole run is recorded.
    pub(super) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Who gets what is drained from now on, beside the file.
    pub(super) fn set_live(&self, sink: Option<SyncSender<Message>>) {
        *lock(&self.live) = sink;
    }

    fn published(&self, page: u32, host_khz: u32) {
        let host_tsc = LAST_EXIT.with(|at| if at.get() == 0 { rdtsc() } else { at.get() });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let realtime_ns = u64::try_from(now).unwrap_or(0);
        let guest_tsc = match lock(&self.rings).open(&self.ram, page) {
            Ok(tsc) => tsc,
            Err(error) => {
                log::warn!("trace: {error}");
                return;
            }
        };
        self.drain(None);
        self.send(Message::Published(Published { guest_tsc, host_tsc, host_khz, realtime_ns }));
    }

    /// Empties all rings, that of CPU `first` first: what its records refer to (names) was written before them, so it is found
    /// in the other rings by the same call.
    pub(super) fn drain(&self, first: Option<u32>) {
        // Held until all is sent, so that no other thread's drain overtakes.
        let mut rings = lock(&self.rings);
        let records = rings.drain(&self.ram, first);
        let live = lock(&self.live).clone();
        match live {
            None => self.send(Message::Records(records)),
            Some(live) => {
                if self.has_file() {
                    self.send(Message::Records(records.clone()));
                }
                // Its writer may have ended meanwhile; then nobody wants them.
                let _ = live.send(Message::Records(records));
            }
        }
    }

    /// Empties all rings and gives what was in them to the file, and to the caller.
    pub(super) fn take(&self) -> Vec<(Stream, Vec<Record>)> {
        let mut rings = lock(&self.rings);
        let records = rings.drain(&self.ram, None);
        if self.has_file() {
            self.send(Message::Records(records.clone()));
        }
        records
    }
}

/// The writer's thread. After a failure it takes and forgets, so that the guest isn't held up.
fn write_all(messages: &Receiver<Message>, mut feed: Feed) -> Result<Summary, TraceError> {
    let mut failure = None;
    for message in messages {
        let result = match message {
            Message::End => break,
            _ if failure.is_some() => Ok(()),
            Message::Records(records) => feed.records(records),
            Message::Published(published) => feed.published(&published),
        };
        failure = failure.or(result.err());
    }
    match failure {
        Some(error) => Err(error),
        None => feed.finish(),
    }
}

/// Writes the VMM's records of one vCPU. Belongs to the vCPU's thread.
#[derive(Debug)]
pub struct VcpuTracer {
    shared: Arc<Shared>,
    stream: Stream,
    buffer: Vec<Record>,
    host_khz: u32,
    /// This thread's account of waiting, opened by the thread itself.
    schedstat: Option<File>,
    /// When it was looked at.
    looked: u64,
    /// What it said.
    delay: u64,
}

impl VcpuTracer {
    fn push(&mut self, tsc: u64, kind: Kind, flags: u8, a: u64) {
        self.buffer.push(Record { tsc, kind: kind as u8, flags, a, ..Record::default() });
        if self.buffer.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.buffer.is_empty() {
            let records = std::mem::replace(&mut self.buffer, Vec::with_capacity(BATCH));
            self.shared.send(Message::Records(vec![(self.stream, records)]));
        }
    }

    /// First on the vCPU's thread: where it may run, and from where on it counts waiting.
    pub fn begin(&mut self) {
        let now = rdtsc();
        let allowed = rustix::thread::sched_getaffinity(None).ok();
        let affinity =
            allowed.map_or(0, |set| (0..64).filter(|cpu| set.is_set(*cpu)).fold(0, |word, cpu| word | 1 << cpu));
        // Without CONFIG_SCHED_INFO there is no such file, and nothing is told.
        self.schedstat = File::open("/proc/thread-self/schedstat").ok();
        self.delay = self.run_delay().unwrap_or(0);
        self.push(now, Kind::VcpuPin, 0, affinity);
    }

    /// The guest is about to be entered.
    pub fn entry(&mut self) {
        self.push(rdtsc(), Kind::VcpuEntry, 0, 0);
    }

    /// The guest has been left.
    pub fn exit(&mut self) {
        LAST_EXIT.with(|at| at.set(rdtsc()));
    }

    /// Why, once that is known and served.
    pub fn reason(&mut self, reason: counts::Kind) {
        let at = LAST_EXIT.with(Cell::get);
        self.push(at, Kind::VcpuExit, 0, reason as u64);
        let interval = STEAL_INTERVAL_NS * u64::from(self.host_khz.max(1)) / 1_000_000;
        if at.wrapping_sub(self.looked) >= interval {
            self.looked = at;
            let delay = self.run_delay().unwrap_or(self.delay);
            let waited = delay.saturating_sub(std::mem::replace(&mut self.delay, delay));
            if waited > 0 {
                self.push(at, Kind::VcpuSteal, 0, waited);
            }
        }
    }

    /// The vCPU stays out of the guest, or goes on.
    pub fn pause(&mut self, paused: bool) {
        self.push(rdtsc(), Kind::VcpuPause, u8::from(paused), 0);
    }

    /// Nanoseconds that this thread has waited for a host CPU. Linux, Documentation/scheduler/sched-stats.rst.
    fn run_delay(&self) -> io::Result<u64> {
        let Some(file) = &self.schedstat else { return Err(io::ErrorKind::NotFound.into()) };
        let mut text = [0; 64];
        let len = file.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..len]);
        text.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).ok_or(io::ErrorKind::InvalidData.into())
    }
}

impl Drop for VcpuTracer {
    fn drop(&mut self) {
        self.flush();
    }
}
