//! Reads a trace: all records of all CPUs, merged by time, in memory that doesn't grow with the trace.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::vec;

use super::index::{Index, Piece, ReadError};
use super::{Header, Stamped, Stream, TraceError};

/// A trace file of either format; which one, its first byte tells.
#[derive(Debug)]
pub struct TraceReader {
    path: PathBuf,
    file: File,
    index: Index,
}

impl TraceReader {
    /// Opens a file and finds out where its records lie.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let io = |source| TraceError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let index = Index::build(&file).map_err(|error| located(path, error))?;
        Ok(Self { path: path.to_owned(), file, index })
    }

    /// What the file says about the recording.
    pub fn header(&self) -> &Header {
        &self.index.header
    }

    /// Which streams there are, by CPU.
    pub fn streams(&self) -> impl Iterator<Item = Stream> + '_ {
        self.index.streams.keys().copied()
    }

    /// All records by time, those of one stream in their order. May be called more than once. After an error nothing more comes.
    pub fn records(&self) -> Records<'_> {
        let sources = self.index.streams.iter().map(|(&stream, pieces)| Source {
            stream,
            pieces: pieces.iter(),
            loaded: Vec::new().into_iter(),
        });
        Records { reader: self, sources: sources.collect(), heads: BinaryHeap::new(), started: false }
    }
}

fn located(path: &Path, error: ReadError) -> TraceError {
    let path = path.to_owned();
    match error {
        ReadError::Io(source) => TraceError::Io { path, source },
        ReadError::Malformed(offset, what) => TraceError::Malformed { path, offset, what },
    }
}

/// One stream as far as it has been read.
#[derive(Debug)]
struct Source<'a> {
    stream: Stream,
    pieces: std::slice::Iter<'a, Piece>,
    loaded: vec::IntoIter<Stamped>,
}

impl Source<'_> {
    fn next(&mut self, reader: &TraceReader) -> Result<Option<Stamped>, ReadError> {
        loop {
            if let Some(stamped) = self.loaded.next() {
                return Ok(Some(stamped));
            }
            let Some(piece) = self.pieces.next() else { return Ok(None) };
            self.loaded = reader.index.load(&reader.file, self.stream, *piece)?.into_iter();
        }
    }
}

/// The next record of a source, ordered by time and then by source.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    source: usize,
    stamped: Stamped,
}

impl Head {
    fn key(&self) -> (u64, usize) {
        (self.stamped.time_ns, self.source)
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Iterator of [`TraceReader::records`].
#[derive(Debug)]
pub struct Records<'a> {
    reader: &'a TraceReader,
    sources: Vec<Source<'a>>,
    /// At most one for each source.
    heads: BinaryHeap<Reverse<Head>>,
    started: bool,
}

impl Records<'_> {
    fn advance(&mut self, source: usize) -> Result<(), TraceError> {
        let Some(from) = self.sources.get_mut(source) else { return Ok(()) };
        if let Some(stamped) = from.next(self.reader).map_err(|error| located(&self.reader.path, error))? {
            self.heads.push(Reverse(Head { source, stamped }));
        }
        Ok(())
    }

    fn try_next(&mut self) -> Result<Option<Stamped>, TraceError> {
        if !std::mem::replace(&mut self.started, true) {
            (0..self.sources.len()).try_for_each(|source| self.advance(source))?;
        }
        let Some(Reverse(head)) = self.heads.pop() else { return Ok(None) };
        self.advance(head.source)?;
        Ok(Some(head.stamped))
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Stamped, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.try_next();
        if result.is_err() {
            self.sources.clear();
            self.heads.clear();
        }
        result.transpose()
    }
}
