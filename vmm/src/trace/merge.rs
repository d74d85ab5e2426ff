//! Between the recorder's queue and the file: gives each stream its clock.
//!
//! A guest's ring begins with a clock record, which tells what its stamps mean. The VMM's own stamps are the host's TSC, which
//! need not be the guest's: the two are related when the guest publishes its directory, by the guest's TSC just before the port
//! write and the host's just after the exit. The error is the time of one exit, and never lets an exit precede its cause.
//! The VMM's records from before are kept until then, and a guest that never publishes gets a time of its own, from the first of
//! them on. Runs on the writer's thread alone.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use vcpu_sched::events::{Kind, Record};

use super::clock::ClockMap;
use super::{Format, Header, Stream, TraceError, TraceWriter};

/// The VMM's records that wait for a clock at most; a guest that makes so many exits first isn't one of ours.
const MAX_WAITING: usize = 1 << 16;

/// What is known at the exit in which the directory is published.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// The guest's TSC just before; 0: not told.
    pub guest_tsc: u64,
    /// The host's just after.
    pub host_tsc: u64,
    /// The host's TSC frequency; 0: unknown.
    pub host_khz: u32,
    /// Wall clock.
    pub realtime_ns: u64,
}

/// What a recording came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records in the file.
    pub records: u64,
    /// Records that a guest had to drop.
    pub lost: u64,
    /// The guest showed at least one ring.
    pub rings: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Feed {
    path: PathBuf,
    /// Until the header is written, with which it becomes `writer`.
    file: Option<(File, Format)>,
    header: Header,
    writer: Option<TraceWriter>,
    /// Clocks of the guest's streams.
    guest: HashMap<u32, ClockMap>,
    /// Clock of the VMM's.
    host: Option<ClockMap>,
    waiting: Vec<(Stream, Vec<Record>)>,
    waiting_records: usize,
    host_khz: u32,
    summary: Summary,
}

impl Feed {
    /// Will write to `file`.
    pub fn new(path: PathBuf, file: File, format: Format, header: Header) -> Self {
        Self {
            path,
            file: Some((file, format)),
            header,
            writer: None,
            guest: HashMap::new(),
            host: None,
            waiting: Vec::new(),
            waiting_records: 0,
            host_khz: 0,
            summary: Summary::default(),
        }
    }

    /// Takes records of streams.
    pub fn records(&mut self, records: Vec<(Stream, Vec<Record>)>) -> Result<(), TraceError> {
        self.waiting_records += records.iter().map(|(_, records)| records.len()).sum::<usize>();
        self.waiting.extend(records);
        if self.host.is_none() {
            if self.waiting_records < MAX_WAITING {
                return Ok(());
            }
            self.go_alone();
        }
        self.write_waiting()
    }

    /// The guest has published its directory; the first records of its rings have been taken already.
    pub fn published(&mut self, at: &Published) -> Result<(), TraceError> {
        if self.host.is_some() {
            return Ok(());
        }
        for (stream, records) in &self.waiting {
            if let (false, Some(clock)) = (stream.vmm, records.iter().find_map(clock_of)) {
                self.guest.entry(stream.cpu).or_insert(clock);
            }
        }
        let clock = self.guest.get(&0).copied();
        let khz = clock.map_or(at.host_khz, |clock| clock.khz);
        let ns = clock.filter(|_| at.guest_tsc != 0).map_or(0, |clock| clock.time_ns(at.guest_tsc));
        self.header.tsc_khz = khz;
        self.header.realtime_ns = at.realtime_ns.saturating_sub(ns);
        self.host_khz = if at.host_khz != 0 { at.host_khz } else { khz };
        self.host = Some(ClockMap { tsc: at.host_tsc, ns, khz: self.host_khz });
        self.write_waiting()
    }

    /// There is no guest's clock: time 0 is the first of the VMM's records.
    fn go_alone(&mut self) {
        let stamps = self.waiting.iter().filter(|(stream, _)| stream.vmm).flat_map(|(_, records)| records);
        let tsc = stamps.map(|r| r.tsc).min().unwrap_or(0);
        self.host = Some(ClockMap { tsc, ns: 0, khz: self.header.tsc_khz.max(1) });
    }

    fn write_waiting(&mut self) -> Result<(), TraceError> {
        if let Some((file, format)) = self.file.take() {
            self.writer = Some(TraceWriter::over(&self.path, file, format, &self.header)?);
        }
        self.waiting_records = 0;
        let waiting = std::mem::take(&mut self.waiting);
        if let Some(writer) = &mut self.writer {
            // A task may run on one CPU before the ring of the one that named it is written.
            waiting.iter().for_each(|(_, records)| writer.learn_names(records));
        }
        for (stream, records) in waiting {
            self.write(stream, &records)?;
        }
        Ok(())
    }

    /// Writes records, each under the clock that holds for it.
    fn write(&mut self, stream: Stream, records: &[Record]) -> Result<(), TraceError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        self.summary.records += records.len() as u64;
        if stream.vmm {
            let map = self.host.unwrap_or(ClockMap::NANOS);
            return writer.write(stream, &map, records);
        }
        self.summary.rings = true;
        let lost = records.iter().filter(|r| r.kind == Kind::Lost as u8).map(|r| r.a);
        self.summary.lost = lost.fold(self.summary.lost, u64::saturating_add);
        for piece in records.chunk_by(|_, next| clock_of(next).is_none()) {
            if let Some(clock) = piece.first().and_then(clock_of) {
                self.guest.insert(stream.cpu, clock);
            }
            // A ring that doesn't begin with its clock is taken as one that counts nanoseconds.
            let map = self.guest.get(&stream.cpu).copied().unwrap_or(ClockMap::NANOS);
            writer.write(stream, &map, piece)?;
        }
        Ok(())
    }

    /// Writes everything that is left.
    pub fn finish(mut self) -> Result<Summary, TraceError> {
        if self.host.is_none() {
            self.go_alone();
        }
        self.write_waiting()?;
        if let Some(writer) = self.writer {
            writer.finish()?;
        }
        Ok(self.summary)
    }
}

/// What a clock record says.
fn clock_of(record: &Record) -> Option<ClockMap> {
    let khz = u32::try_from(record.b).ok().filter(|khz| *khz != 0);
    (record.kind == Kind::Clock as u8).then_some(())?;
    Some(ClockMap { tsc: record.tsc, ns: record.a, khz: khz? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{TraceReader, writer};

    const GUEST: Stream = Stream { cpu: 0, vmm: false };
    const VMM: Stream = Stream { cpu: 0, vmm: true };

    fn at(tsc: u64, kind: Kind) -> Record {
        Record { tsc, kind: kind as u8, ..Record::default() }
    }

    fn times(dir: &tempfile::TempDir, run: impl FnOnce(&mut Feed)) -> (Vec<(Kind, u64)>, Header, Summary) {
        let path = dir.path().join("t.pftrace");
        let (file, format) = writer::open(&path).unwrap();
        let header = Header { version: crate::trace::VERSION, cpus: 1, tsc_khz: 1_000_000, ..Header::default() };
        let mut feed = Feed::new(path.clone(), file, format, header);
        run(&mut feed);
        let summary = feed.finish().unwrap();
        let reader = TraceReader::open(&path).unwrap();
        let records = reader.records().map(|r| r.map(|s| (Kind::from_u8(s.record.kind).unwrap(), s.time_ns)).unwrap());
        (records.collect(), reader.header().clone(), summary)
    }

    #[test]
    fn both_clocks_are_one_after_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let clock = |tsc, ns, khz| Record { a: ns, b: khz, ..at(tsc, Kind::Clock) };
        let (records, header, summary) = times(&dir, |feed| {
            // The host's TSC is 10^9 ahead and counts half as fast.
            feed.records(vec![(VMM, vec![at(1_000_000_900, Kind::VcpuEntry)])]).unwrap();
            feed.records(vec![(GUEST, vec![clock(1000, 50, 2_000_000), at(1400, Kind::Tick)])]).unwrap();
            let published =
                Published { guest_tsc: 2000, host_tsc: 1_000_001_000, host_khz: 1_000_000, realtime_ns: 5000 };
            feed.published(&published).unwrap();
            feed.records(vec![(VMM, vec![at(1_000_001_007, Kind::VcpuExit)])]).unwrap();
            feed.records(vec![(GUEST, vec![at(2100, Kind::Tick), clock(3000, 9000, 1_000_000), at(3001, Kind::Halt)])])
                .unwrap();
            feed.records(vec![(GUEST, vec![Record { a: 3, ..at(3001, Kind::Lost) }])]).unwrap();
        });
        let expected = [
            (Kind::Clock, 50),
            (Kind::Tick, 250),
            (Kind::VcpuEntry, 450),
            (Kind::VcpuExit, 557),
            (Kind::Tick, 600),
            (Kind::Clock, 9000),
            (Kind::Halt, 9001),
            (Kind::Lost, 9001),
        ];
        assert_eq!(records, expected);
        assert_eq!((header.tsc_khz, header.realtime_ns), (2_000_000, 4450));
        assert_eq!(summary, Summary { records: 8, lost: 3, rings: true });
    }

    #[test]
    fn a_guest_that_shows_nothing_has_a_time_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (records, _, summary) = times(&dir, |feed| {
            feed.records(vec![(VMM, vec![at(7000, Kind::VcpuEntry), at(7005, Kind::VcpuExit)])]).unwrap();
        });
        assert_eq!(records, [(Kind::VcpuEntry, 0), (Kind::VcpuExit, 5)]);
        assert!(!summary.rings);
    }
}
