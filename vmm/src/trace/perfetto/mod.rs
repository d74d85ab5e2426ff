//! Writes Perfetto traces: our records as they are, and beside them what Perfetto's own tracks are made of.
//!
//! [`super::writer`] calls it with one chunk of one stream at a time. Chunks of different CPUs needn't come in order of time:
//! Perfetto sorts. Invariant: memory grows with the number of tasks, not of records.

mod events;
pub mod proto;

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};

use prost::Message;
use vcpu_sched::events::{Event, Kind, Record};

use self::proto::{
    CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_REALTIME, COUNTER, Chunk, Clock, ClockSnapshot, Content, CounterDescriptor,
    Data, Extension, ExtensionPacket, FtraceEventBundle, HeaderMessage, INSTANT, PACKET_KEY, Process, ProcessTree,
    SLICE_BEGIN, SLICE_END, SystemInfo, Thread, TracePacket, TrackDescriptor, TrackEvent, Utsname,
};
use super::clock::ClockMap;
use super::names;
use super::{Header, Stream};
use crate::vcpu::counts;

/// Packets of one writer share a sequence id, which must not be 0.
const SEQUENCE: u32 = 1;
/// SEQ_INCREMENTAL_STATE_CLEARED: nothing before this packet is referred to.
const STATE_CLEARED: u32 = 1;
/// The kernel whose numbers for task states the events use: `sched_switch` changed them in Linux 4.14.
const STATES_OF: &str = "6.1.0-taskvisor";

/// What is known of a task.
#[derive(Debug, Default)]
struct Task {
    name: String,
    process: Option<u32>,
}

/// Which track of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Track {
    /// In or out of the guest, and why.
    Vcpu,
    /// Tasks queued.
    Queue,
    /// Time that the vCPU's thread waited for a host CPU.
    Steal,
}

/// See the module's text.
#[derive(Debug)]
pub struct PerfettoWriter<W> {
    out: W,
    buffer: Vec<u8>,
    tasks: HashMap<u32, Task>,
    /// Idle tasks, which Perfetto knows as thread 0.
    idle: BTreeSet<u32>,
    /// Tracks that have been described.
    tracks: BTreeSet<(Track, u32)>,
    /// vCPUs whose track has an open slice.
    open: BTreeSet<u32>,
    /// Nanoseconds stolen from each vCPU so far.
    stolen: HashMap<u32, u64>,
}

impl From<HeaderMessage> for Header {
    fn from(m: HeaderMessage) -> Self {
        let HeaderMessage { version, cpus, tsc_khz, policy, command_line, program, realtime_ns } = m;
        Self { version, cpus, tsc_khz, policy, command_line, program, realtime_ns }
    }
}

impl From<Header> for HeaderMessage {
    fn from(h: Header) -> Self {
        let Header { version, cpus, tsc_khz, policy, command_line, program, realtime_ns } = h;
        Self { version, cpus, tsc_khz, policy, command_line, program, realtime_ns }
    }
}

impl<W: Write> PerfettoWriter<W> {
    /// Writes to `out`, from the header on.
    pub fn new(out: W, header: &Header) -> io::Result<Self> {
        let mut writer = Self {
            out,
            buffer: Vec::new(),
            tasks: HashMap::new(),
            idle: BTreeSet::new(),
            tracks: BTreeSet::new(),
            open: BTreeSet::new(),
            stolen: HashMap::new(),
        };
        writer.extension(Content::Header(header.clone().into()))?;
        let clock = |clock_id, timestamp| Clock { clock_id: Some(clock_id), timestamp: Some(timestamp) };
        let mut clocks = vec![clock(CLOCK_BOOTTIME, 0), clock(CLOCK_MONOTONIC, 0)];
        if header.realtime_ns != 0 {
            clocks.push(clock(CLOCK_REALTIME, header.realtime_ns));
        }
        writer.packet(Some(0), Data::ClockSnapshot(ClockSnapshot { clocks }))?;
        let utsname =
            Utsname { sysname: Some("Linux".into()), release: Some(STATES_OF.into()), machine: Some("x86_64".into()) };
        let info = SystemInfo { utsname: Some(utsname), num_cpus: Some(header.cpus) };
        writer.packet(None, Data::SystemInfo(info))?;
        Ok(writer)
    }

    /// Writes records of one stream, in their order.
    pub fn write(&mut self, stream: Stream, map: &ClockMap, records: &[Record]) -> io::Result<()> {
        let chunk = Chunk {
            cpu: stream.cpu,
            vmm: stream.vmm,
            clock_tsc: map.tsc,
            clock_ns: map.ns,
            clock_khz: map.khz,
            records: records.iter().flat_map(|r| r.to_bytes()).collect(),
        };
        self.extension(Content::Chunk(chunk))?;
        let mut bundle = FtraceEventBundle { cpu: Some(stream.cpu), event: Vec::new(), lost_events: None };
        for record in records {
            let at = map.time_ns(record.tsc);
            match Event::decode(record) {
                Some(Event::Plain(kind)) => self.plain(stream.cpu, at, kind, record, &mut bundle)?,
                Some(event) => self.scheduling(stream.cpu, at, &event, record, &mut bundle)?,
                None => {}
            }
        }
        if !bundle.event.is_empty() || bundle.lost_events.is_some() {
            self.packet(None, Data::Ftrace(bundle))?;
        }
        Ok(())
    }

    /// Takes names of tasks that have none yet, ahead of the records' own turn.
    pub fn learn_names(&mut self, records: &[Record]) {
        for record in records {
            if let Some(Event::Name(name)) = Event::decode(record) {
                let known = &mut self.tasks.entry(record.task).or_default().name;
                if known.is_empty() {
                    *known = names::text_of(&name);
                }
            }
        }
    }

    /// Gives the file back, with everything written.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }

    fn plain(
        &mut self,
        cpu: u32,
        at: u64,
        kind: Kind,
        record: &Record,
        bundle: &mut FtraceEventBundle,
    ) -> io::Result<()> {
        match kind {
            Kind::Process => self.belongs(record.task, record.a as u32),
            Kind::Exit => {
                bundle.event.push(self.exit_event(at, record));
                Ok(())
            }
            Kind::Lost => {
                bundle.lost_events = Some(true);
                Ok(())
            }
            Kind::VcpuEntry => self.slice(cpu, at, "guest"),
            Kind::VcpuExit => self.slice(cpu, at, counts::Kind::name_of(record.a)),
            Kind::VcpuPause => self.instant(cpu, at, if record.flags & 1 != 0 { "pause" } else { "resume" }.into()),
            Kind::VcpuPin => self.instant(cpu, at, format!("pinned to host CPUs {:#x}", record.a)),
            Kind::VcpuSteal => {
                let total = self.stolen.entry(cpu).or_default();
                *total = total.saturating_add(record.a);
                let total = i64::try_from(*total).unwrap_or(i64::MAX);
                self.counter(Track::Steal, cpu, at, total)
            }
            _ => Ok(()),
        }
    }

    /// A change of the vCPU's track: what it did ends, something else begins.
    fn slice(&mut self, cpu: u32, at: u64, what: &str) -> io::Result<()> {
        let track = self.track(Track::Vcpu, cpu)?;
        let event = |kind, name| TrackEvent { r#type: Some(kind), track_uuid: Some(track), name, counter_value: None };
        if !self.open.insert(cpu) {
            self.packet(Some(at), Data::TrackEvent(event(SLICE_END, None)))?;
        }
        self.packet(Some(at), Data::TrackEvent(event(SLICE_BEGIN, Some(what.to_owned()))))
    }

    fn instant(&mut self, cpu: u32, at: u64, what: String) -> io::Result<()> {
        let track = self.track(Track::Vcpu, cpu)?;
        let (kind, name) = (Some(INSTANT), Some(what));
        let event = TrackEvent { r#type: kind, track_uuid: Some(track), name, counter_value: None };
        self.packet(Some(at), Data::TrackEvent(event))
    }

    fn counter(&mut self, which: Track, cpu: u32, at: u64, value: i64) -> io::Result<()> {
        let track = self.track(which, cpu)?;
        let (kind, counter_value) = (Some(COUNTER), Some(value));
        let event = TrackEvent { r#type: kind, track_uuid: Some(track), name: None, counter_value };
        self.packet(Some(at), Data::TrackEvent(event))
    }

    /// A track's number; it is described the first time.
    fn track(&mut self, which: Track, cpu: u32) -> io::Result<u64> {
        // Any numbers do that differ; 0 is Perfetto's default track.
        let uuid = 1 + (u64::from(cpu) << 2 | which as u64);
        if self.tracks.insert((which, cpu)) {
            let unit = |name: &str| Some(CounterDescriptor { unit_name: Some(name.into()) });
            let (name, counter) = match which {
                Track::Vcpu => (format!("vCPU {cpu}"), None),
                Track::Queue => (format!("CPU {cpu} queue"), unit("tasks")),
                Track::Steal => (format!("vCPU {cpu} steal"), unit("ns")),
            };
            let descriptor = TrackDescriptor { uuid: Some(uuid), name: Some(name), parent_uuid: None, counter };
            self.packet(None, Data::TrackDescriptor(descriptor))?;
        }
        Ok(uuid)
    }

    /// A task's process is known now, and with it what Perfetto's process tree says.
    fn belongs(&mut self, task: u32, process: u32) -> io::Result<()> {
        self.tasks.entry(task).or_default().process = Some(process);
        self.tree(task)
    }

    fn tree(&mut self, task: u32) -> io::Result<()> {
        let Some(Task { name, process: Some(process) }) = self.tasks.get(&task) else { return Ok(()) };
        let (tid, tgid) = (Some(task as i32), Some(*process as i32));
        let mut tree = ProcessTree::default();
        if tid == tgid {
            tree.processes.push(Process { pid: tgid, ppid: None, cmdline: vec![name.clone()] });
        }
        tree.threads.push(Thread { tid, name: Some(name.clone()), tgid });
        self.packet(None, Data::ProcessTree(tree))
    }

    fn extension(&mut self, content: Content) -> io::Result<()> {
        let extension = Some(Extension { content: Some(content) });
        self.put(&ExtensionPacket { extension })
    }

    fn packet(&mut self, timestamp: Option<u64>, data: Data) -> io::Result<()> {
        // A reader waits for a packet that says so before it believes the rest of a sequence.
        let sequence_flags = matches!(data, Data::ClockSnapshot(_)).then_some(STATE_CLEARED);
        let trusted_packet_sequence_id = Some(SEQUENCE);
        self.put(&TracePacket { timestamp, trusted_packet_sequence_id, sequence_flags, data: Some(data) })
    }

    fn put(&mut self, message: &impl Message) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.push(PACKET_KEY);
        message.encode_length_delimited(&mut self.buffer).map_err(io::Error::other)?;
        self.out.write_all(&self.buffer)
    }

    /// The name that Perfetto shows.
    fn comm(&self, task: u32) -> String {
        match self.tasks.get(&task) {
            Some(known) if !known.name.is_empty() => known.name.clone(),
            _ => format!("task {task}"),
        }
    }

    fn rename(&mut self, task: u32, name: &[u8; 16]) -> io::Result<Option<String>> {
        let new = names::text_of(name);
        let known = &mut self.tasks.entry(task).or_default().name;
        if *known == new {
            return Ok(None);
        }
        let old = std::mem::replace(known, new);
        self.tree(task)?;
        Ok((!old.is_empty()).then_some(old))
    }
}
