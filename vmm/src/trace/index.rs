//! Where in a file which stream's records lie: found by one pass over it, so that reading can merge the streams by time.
//!
//! A [`TraceReader`](super::TraceReader) builds it when it opens a file, and loads pieces by it. Everything in a file is taken
//! as possibly wrong.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use prost::Message;
use vcpu_sched::events::{RECORD_BYTES, Record};

use super::clock::ClockMap;
use super::perfetto::proto::{Content, EXTENSION, ExtensionPacket, PACKET_KEY};
use super::{Header, Malformed, Stamped, Stream, VERSION, jsonl};

/// Larger packets and lines are no trace of ours.
const MAX_PIECE: u64 = 16 << 20;
/// JSON lines are looked at in blocks of about this size.
const BLOCK: u64 = 256 << 10;

/// Why a file can't be indexed or read; [`super::TraceError`] without the path.
#[derive(Debug)]
pub enum ReadError {
    /// The system refuses.
    Io(io::Error),
    /// Byte and reason.
    Malformed(u64, Malformed),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A piece of the file that holds records of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    offset: u64,
    len: u32,
}

/// How the file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// A piece is a packet, and holds one stream.
    Packets,
    /// A piece is a block of lines, of any streams.
    Lines,
}

/// See the module's text.
#[derive(Debug)]
pub struct Index {
    pub header: Header,
    pub streams: BTreeMap<Stream, Vec<Piece>>,
    layout: Layout,
}

impl Index {
    /// Looks through a whole file, whose first byte tells the format.
    pub fn build(file: &File) -> Result<Self, ReadError> {
        let mut input = BufReader::with_capacity(1 << 20, file.try_clone()?);
        input.seek(SeekFrom::Start(0))?;
        match input.fill_buf()?.first() {
            Some(&PACKET_KEY) => packets(&mut input),
            Some(b'{') => lines(&mut input),
            _ => Err(ReadError::Malformed(0, Malformed::NotOurs)),
        }
    }

    /// The records of `stream` in a piece, in their order.
    pub fn load(&self, file: &File, stream: Stream, piece: Piece) -> Result<Vec<Stamped>, ReadError> {
        let mut bytes = vec![0; piece.len as usize];
        file.read_exact_at(&mut bytes, piece.offset)?;
        match self.layout {
            Layout::Packets => match extension(&bytes) {
                Some(Content::Chunk(chunk)) => {
                    let map = ClockMap { tsc: chunk.clock_tsc, ns: chunk.clock_ns, khz: chunk.clock_khz };
                    let (records, rest) = chunk.records.as_chunks::<RECORD_BYTES>();
                    if !rest.is_empty() {
                        return Err(ReadError::Malformed(piece.offset, Malformed::Truncated));
                    }
                    let stamp = |bytes| {
                        let record = Record::from_bytes(bytes);
                        Stamped { cpu: stream.cpu, time_ns: map.time_ns(record.tsc), record }
                    };
                    Ok(records.iter().map(stamp).collect())
                }
                _ => Err(ReadError::Malformed(piece.offset, Malformed::NotOurs)),
            },
            Layout::Lines => {
                let mut at = piece.offset;
                let mut found = Vec::new();
                for line in bytes.split_inclusive(|b| *b == b'\n') {
                    let (of, stamped) = jsonl::parse(line).map_err(|what| ReadError::Malformed(at, what))?;
                    if of == stream {
                        found.push(stamped);
                    }
                    at += line.len() as u64;
                }
                Ok(found)
            }
        }
    }
}

fn extension(packet: &[u8]) -> Option<Content> {
    ExtensionPacket::decode(packet).ok()?.extension?.content
}

/// Reads a varint; `None` at the end of the file. Protocol Buffers, "Encoding".
fn varint(input: &mut impl Read, at: &mut u64) -> Result<Option<u64>, ReadError> {
    let (start, mut value) = (*at, 0_u64);
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        if input.read(&mut byte)? == 0 {
            return if shift == 0 { Ok(None) } else { Err(ReadError::Malformed(start, Malformed::Truncated)) };
        }
        *at += 1;
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some(value));
        }
    }
    Err(ReadError::Malformed(start, Malformed::Syntax("a number without end".into())))
}

/// The packets with our extension; all others are skipped.
fn packets(input: &mut BufReader<File>) -> Result<Index, ReadError> {
    // The key of a length-delimited field, as the packet's first bytes.
    let mut ours = Vec::new();
    // Field number and wire type 2, as a varint like any length.
    prost::encode_length_delimiter((EXTENSION << 3 | 2) as usize, &mut ours)
        .map_err(|error| ReadError::Io(io::Error::other(error)))?;

    let end = input.get_ref().metadata()?.len();
    let (mut at, mut header, mut streams) = (0, None, BTreeMap::<_, Vec<Piece>>::new());
    while let Some(key) = varint(input, &mut at)? {
        let start = at;
        let syntax = |what: &str| ReadError::Malformed(start, Malformed::Syntax(what.into()));
        if key != u64::from(PACKET_KEY) {
            return Err(syntax("a packet was expected"));
        }
        let truncated = ReadError::Malformed(start, Malformed::Truncated);
        let Some(len) = varint(input, &mut at)? else { return Err(truncated) };
        if end - at < len {
            return Err(truncated);
        }
        let known = input.fill_buf()?.starts_with(&ours[..ours.len().min(len as usize)]) && len >= ours.len() as u64;
        if !known {
            input.seek_relative(i64::try_from(len).map_err(|_| syntax("a packet that is too long"))?)?;
            at += len;
            continue;
        }
        if len > MAX_PIECE {
            return Err(syntax("a chunk that is too long"));
        }
        let mut bytes = vec![0; len as usize];
        input.read_exact(&mut bytes)?;
        match extension(&bytes) {
            Some(Content::Header(h)) => header = Some(Header::from(h)),
            Some(Content::Chunk(chunk)) => {
                let stream = Stream { cpu: chunk.cpu, vmm: chunk.vmm };
                streams.entry(stream).or_default().push(Piece { offset: at, len: len as u32 });
            }
            // Of a later version; what matters to us would have raised VERSION.
            None => {}
        }
        at += len;
    }
    finish(header, streams, Layout::Packets)
}

fn lines(input: &mut BufReader<File>) -> Result<Index, ReadError> {
    let (mut at, mut line) = (0, Vec::new());
    read_line(input, at, &mut line)?;
    let header = jsonl::parse_header(&line).map_err(|what| ReadError::Malformed(0, what))?;
    at += line.len() as u64;
    let mut streams = BTreeMap::<Stream, Vec<Piece>>::new();
    let (mut start, mut present) = (at, Vec::<Stream>::new());
    loop {
        read_line(input, at, &mut line)?;
        let len = line.len() as u64;
        if len == 0 || at + len - start > BLOCK {
            for stream in present.drain(..) {
                streams.entry(stream).or_default().push(Piece { offset: start, len: (at - start) as u32 });
            }
            start = at;
        }
        if len == 0 {
            return finish(Some(header), streams, Layout::Lines);
        }
        let stream = jsonl::stream_of(&line).map_err(|what| ReadError::Malformed(at, what))?;
        if !present.contains(&stream) {
            present.push(stream);
        }
        at += len;
    }
}

/// A line with its end; empty at the end of the file.
fn read_line(input: &mut impl BufRead, at: u64, line: &mut Vec<u8>) -> Result<(), ReadError> {
    line.clear();
    input.take(MAX_PIECE).read_until(b'\n', line)?;
    match line.last() {
        None | Some(b'\n') => Ok(()),
        Some(_) => Err(ReadError::Malformed(at, Malformed::Truncated)),
    }
}

fn finish(header: Option<Header>, streams: BTreeMap<Stream, Vec<Piece>>, layout: Layout) -> Result<Index, ReadError> {
    match header {
        None => Err(ReadError::Malformed(0, Malformed::NotOurs)),
        Some(header) if header.version != VERSION => Err(ReadError::Malformed(0, Malformed::Version(header.version))),
        Some(header) => Ok(Index { header, streams, layout }),
    }
}
