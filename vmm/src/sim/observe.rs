//! Who looks at a simulation's records: the checker, and the trace file.
//!
//! Used by [`super::run`]. The invariant: every record goes to both, in the order of virtual time.

use std::path::Path;

use vcpu_sched::checker::{self, Checker, Options, Outcome};
use vcpu_sched::events::Record;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::sim::{Costs, Sink};

use crate::trace::clock::ClockMap;
use crate::trace::{Header, Stream, TraceError, TraceWriter};

/// Records that a CPU's buffer holds before they are written.
const BUFFERED: usize = 1024;

/// See the module's text.
#[derive(Debug)]
pub struct Observer {
    checker: Option<Checker>,
    trace: Option<Trace>,
}

#[derive(Debug)]
struct Trace {
    writer: TraceWriter,
    buffers: Vec<Vec<Record>>,
    /// The first error; nothing is written after it.
    failed: Option<TraceError>,
}

/// What the checker is told to expect: in a simulation nothing is late but by what the machine's costs say.
fn options(costs: Costs) -> Options {
    // An interrupt that meets a CPU in the middle of two switches, and one more for good measure of both.
    let late = (costs.switch + costs.ipi + costs.idle_exit).saturating_mul(4) + costs.call + Nanos::from_micros(10);
    let elsewhere = late + Nanos::from_millis(5);
    let base = Options { complete: true, ..Options::default() };
    Options { own_queue: late, kicked: elsewhere, elsewhere, lower_class: late, forbidden: late, ..base }
}

impl Observer {
    /// With what was asked for.
    ///
    /// # Errors
    /// [`TraceError`]: the trace file can't be made.
    pub fn new(check: Option<Costs>, trace: Option<(&Path, &Header)>) -> Result<Self, TraceError> {
        let trace = match trace {
            Some((path, header)) => Some(Trace {
                writer: TraceWriter::create(path, header)?,
                buffers: (0..header.cpus).map(|_| Vec::with_capacity(BUFFERED)).collect(),
                failed: None,
            }),
            None => None,
        };
        Ok(Self { checker: check.map(|costs| Checker::new(options(costs))), trace })
    }

    /// Nothing more comes. What the checker found, if there was one.
    ///
    /// # Errors
    /// [`TraceError`]: the trace file isn't complete.
    pub fn finish(self) -> Result<Option<Outcome>, TraceError> {
        if let Some(mut trace) = self.trace {
            for cpu in 0..trace.buffers.len() {
                trace.flush(cpu);
            }
            match trace.failed {
                Some(error) => return Err(error),
                None => trace.writer.finish()?,
            }
        }
        Ok(self.checker.map(Checker::finish))
    }
}

impl Sink for Observer {
    fn record(&mut self, cpu: CpuId, record: &Record) {
        if let Some(checker) = &mut self.checker {
            checker.feed(checker::Stamped { cpu, time: Nanos(record.tsc), record: *record });
        }
        if let Some(trace) = &mut self.trace
            && let Some(buffer) = trace.buffers.get_mut(cpu.index())
        {
            buffer.push(*record);
            if buffer.len() == BUFFERED {
                trace.flush(cpu.index());
            }
        }
    }
}

impl Trace {
    fn flush(&mut self, cpu: usize) {
        let Some(buffer) = self.buffers.get_mut(cpu) else { return };
        if self.failed.is_none() && !buffer.is_empty() {
            let stream = Stream { cpu: cpu as u32, vmm: false };
            self.failed = self.writer.write(stream, &ClockMap::NANOS, buffer).err();
        }
        buffer.clear();
    }
}
