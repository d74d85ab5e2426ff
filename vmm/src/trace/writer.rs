//! One trace file being written, of either format.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use vcpu_sched::events::Record;

use super::clock::ClockMap;
use super::perfetto::PerfettoWriter;
use super::{Format, Header, Stream, TraceError, jsonl};

/// Records of one chunk at most: bounds what a reader holds of each stream.
const CHUNK: usize = 1024;

#[derive(Debug)]
enum Output {
    Pftrace(Box<PerfettoWriter<BufWriter<File>>>),
    Jsonl(BufWriter<File>),
}

/// A file that takes records. What isn't finished with [`TraceWriter::finish`] may lack its end.
#[derive(Debug)]
pub struct TraceWriter {
    path: PathBuf,
    output: Output,
}

impl TraceWriter {
    /// Makes a file anew; its name tells the format.
    ///
    /// # Errors
    /// [`TraceError`]: the name, or the system.
    pub fn create(path: &Path, header: &Header) -> Result<Self, TraceError> {
        let (file, format) = open(path)?;
        Self::over(path, file, format, header)
    }

    /// As [`TraceWriter::create`], with a file that is open already.
    pub(super) fn over(path: &Path, file: File, format: Format, header: &Header) -> Result<Self, TraceError> {
        let mut out = BufWriter::with_capacity(1 << 18, file);
        let output = match format {
            Format::Pftrace => PerfettoWriter::new(out, header).map(|writer| Output::Pftrace(Box::new(writer))),
            Format::Jsonl => jsonl::write_header(&mut out, header).map(|()| Output::Jsonl(out)),
        };
        let path = path.to_owned();
        match output {
            Ok(output) => Ok(Self { path, output }),
            Err(source) => Err(TraceError::Io { path, source }),
        }
    }

    /// Names in records that are about to be written, but perhaps after others that refer to them.
    pub fn learn_names(&mut self, records: &[Record]) {
        if let Output::Pftrace(writer) = &mut self.output {
            writer.learn_names(records);
        }
    }

    /// Writes records of one stream, in their order. Streams may alternate as they like.
    ///
    /// # Errors
    /// [`TraceError::Io`].
    pub fn write(&mut self, stream: Stream, map: &ClockMap, records: &[Record]) -> Result<(), TraceError> {
        for records in records.chunks(CHUNK) {
            let result = match &mut self.output {
                Output::Pftrace(writer) => writer.write(stream, map, records),
                Output::Jsonl(out) => jsonl::write(out, stream, map, records),
            };
            result.map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// [`TraceError::Io`].
    pub fn finish(self) -> Result<(), TraceError> {
        let Self { path, output } = self;
        let result = match output {
            Output::Pftrace(writer) => writer.finish().map(drop),
            Output::Jsonl(mut out) => out.flush(),
        };
        result.map_err(|source| TraceError::Io { path, source })
    }

    fn failed(&self, source: io::Error) -> TraceError {
        TraceError::Io { path: self.path.clone(), source }
    }
}

/// Opens a file for a trace, so that a bad name shows before there is anything to write.
pub(super) fn open(path: &Path) -> Result<(File, Format), TraceError> {
    let format = Format::of(path).map_err(|source| TraceError::Format { path: path.to_owned(), source })?;
    let file = File::create(path).map_err(|source| TraceError::Io { path: path.to_owned(), source })?;
    Ok((file, format))
}
