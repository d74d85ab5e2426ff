//! The directory page: how a guest kernel tells its VMM where the memory is that both look at.
//!
//! The kernel fills one page and writes the page's number (guest-physical address / 4096) as 32 bits to [`PORT`], once, when
//! what it lists is there; it may write it again after it has added entries. Everything that the VMM finds there is the
//! guest's word and may be wrong or change while it is read: [`Directory::parse`] works on a copy, checks everything that can
//! be checked without the guest's memory map, and the reader checks the rest against that map.
//!
//! All numbers are little-endian. Layout of the page: [`Header`] (32 bytes), then `count` entries of 32 bytes.

use alloc::vec::Vec;
use core::fmt;

/// The I/O port, 4 bytes wide (docs/abi.md, "Ports").
pub const PORT: u16 = 0x5c0;
/// First eight bytes of the page: "TVGUEST\0".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TVGUEST\0");
/// Version of this layout. A reader refuses any other.
pub const VERSION: u32 = 1;
/// Size of the page.
pub const PAGE: usize = 4096;
/// Size of the header and of an entry.
pub const ENTRY_BYTES: usize = 32;
/// Most entries that fit.
pub const MAX_ENTRIES: usize = PAGE / ENTRY_BYTES - 1;
/// Bytes of a table ([`EntryKind::More`]) that a reader looks at: two entries for each of the most CPUs, and as many others again.
pub const MAX_TABLE: usize = 4 * crate::cpumask::MAX_CPUS as usize * ENTRY_BYTES;

/// Head of the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// How many entries follow.
    pub count: u32,
    /// Virtual address of the direct map: guest-physical 0.
    pub direct_map: u64,
    /// The publishing CPU's TSC just before it wrote the port; 0 if it doesn't tell. With the host's clock at that exit it
    /// relates the two clocks.
    pub tsc: u64,
}

/// One thing that the guest shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Entry {
    /// An [`EntryKind`]; others are skipped.
    pub kind: u32,
    /// Which, if there are several: a CPU's number.
    pub index: u32,
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
    /// By kind.
    pub extra: u64,
}

const _: () = assert!(size_of::<Header>() == ENTRY_BYTES && size_of::<Entry>() == ENTRY_BYTES);

/// What an entry shows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum EntryKind {
    /// Table of further entries, without header: `len` bytes of them. For guests with more than fit on the page.
    More = 1,
    /// Trace ring of CPU `index`: a [`RingHeader`] and its records. `extra`: the id of the CPU's idle task.
    TraceRing = 2,
    /// What CPU `index` is doing, see `taskview`.
    Cpu = 3,
    /// The table of tasks, see `taskview`.
    Tasks = 4,
    /// What a debugger needs: see `taskdebug`.
    Debug = 9,
    /// The clock page, see `clock::page`.
    Clock = 8,
    /// Memory of enclave `index`, see [`delegation`](crate::delegation).
    Enclave = 10,
    /// The mailbox, see [`requests`](crate::requests).
    Mailbox = 5,
}

/// Head of a trace ring, 192 bytes; the records follow. The guest writes HEAD and LOST, the host TAIL; each on its own cache
/// line.
///
/// HEAD and TAIL count records since the beginning; a record's place is its number modulo the capacity, a power of two. The
/// guest writes a record, then HEAD (release); the host reads HEAD (acquire), the records, then writes TAIL (release). A guest
/// that finds HEAD - TAIL equal to the capacity writes [`RingHeader::DOORBELL`] and looks again, and counts the record in
/// LOST if there is still no room. The host never trusts HEAD: more than the capacity ahead of TAIL means that the ring is
/// broken, and it is read no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingHeader;

impl RingHeader {
    /// "TVRING\0\0".
    pub const MAGIC: u64 = u64::from_le_bytes(*b"TVRING\0\0");
    /// Offset of the magic number, 8 bytes.
    pub const MAGIC_AT: usize = 0;
    /// Offset of the capacity in records, 4 bytes; a power of two from 64 to 2^20.
    pub const CAPACITY: usize = 8;
    /// Offset of flags, 4 bytes: [`RingHeader::DRAINED`], [`RingHeader::OVERWRITES`].
    pub const FLAGS: usize = 12;
    /// Offset of HEAD, 8 bytes.
    pub const HEAD: usize = 64;
    /// Offset of LOST, 8 bytes: records that found no room, since the beginning.
    pub const LOST: usize = 72;
    /// Offset of LIMIT, 8 bytes: the HEAD at which there is no room, as far as the guest knows. Its own note, of no use to the host.
    pub const LIMIT: usize = 80;
    /// Offset of TAIL, 8 bytes.
    pub const TAIL: usize = 128;
    /// Size; offset of the first record.
    pub const BYTES: usize = 192;
    /// Bit of FLAGS, set by the host: it drains this ring, and answers its doorbell.
    pub const DRAINED: u32 = 1;
    /// Bit of FLAGS, set by the guest before it publishes the ring: it overwrites the oldest records, looks at no TAIL and rings
    /// no doorbell. Such a ring can only be read once its CPU has stopped: the last records, up to the capacity.
    pub const OVERWRITES: u32 = 2;
    /// The port to which a guest writes its CPU's number (4 bytes) when its ring is full: the VMM drains before the write
    /// returns.
    pub const DOORBELL: u16 = 0x5c4;
    /// Least and largest capacity.
    pub const CAPACITIES: core::ops::RangeInclusive<u32> = 64..=1 << 20;
}

/// What is wrong with a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirectoryError {
    /// The page doesn't start with [`MAGIC`].
    Magic(u64),
    /// Another version.
    Version(u32),
    /// More entries than fit.
    Count(u32),
}

impl fmt::Display for DirectoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "no directory there: magic number {found:#018x}, expected {MAGIC:#018x}"),
            Self::Version(found) => write!(f, "directory version {found}, this VMM knows {VERSION}"),
            Self::Count(found) => write!(f, "directory claims {found} entries, a page holds {MAX_ENTRIES}"),
        }
    }
}

impl core::error::Error for DirectoryError {}

/// A copy of a directory page, checked as far as it can be alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directory {
    /// Its head.
    pub header: Header,
    /// Its entries, unknown kinds included.
    pub entries: Vec<Entry>,
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u64_at(bytes, at & !7).to_le_bytes()[at & 7..][..4].iter().rev().fold(0, |n, &b| n << 8 | u32::from(b))
}

impl Entry {
    /// The entry's bytes.
    pub fn to_bytes(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        out[..4].copy_from_slice(&self.kind.to_le_bytes());
        out[4..8].copy_from_slice(&self.index.to_le_bytes());
        out[8..16].copy_from_slice(&self.address.to_le_bytes());
        out[16..24].copy_from_slice(&self.len.to_le_bytes());
        out[24..].copy_from_slice(&self.extra.to_le_bytes());
        out
    }

    /// From its bytes.
    pub fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Self {
        Self {
            kind: u32_at(bytes, 0),
            index: u32_at(bytes, 4),
            address: u64_at(bytes, 8),
            len: u64_at(bytes, 16),
            extra: u64_at(bytes, 24),
        }
    }
}

impl Header {
    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        out[..8].copy_from_slice(&self.magic.to_le_bytes());
        out[8..12].copy_from_slice(&self.version.to_le_bytes());
        out[12..16].copy_from_slice(&self.count.to_le_bytes());
        out[16..24].copy_from_slice(&self.direct_map.to_le_bytes());
        out[24..].copy_from_slice(&self.tsc.to_le_bytes());
        out
    }
}

impl Directory {
    /// Reads a copy of the page.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn parse(page: &[u8; PAGE]) -> Result<Self, DirectoryError> {
        let header = Header {
            magic: u64_at(page, 0),
            version: u32_at(page, 8),
            count: u32_at(page, 12),
            direct_map: u64_at(page, 16),
            tsc: u64_at(page, 24),
        };
        if header.magic != MAGIC {
            return Err(DirectoryError::Magic(header.magic));
        }
        if header.version != VERSION {
            return Err(DirectoryError::Version(header.version));
        }
        if header.count as usize > MAX_ENTRIES {
            return Err(DirectoryError::Count(header.count));
        }
        let (entries, _) = page[ENTRY_BYTES..].as_chunks::<ENTRY_BYTES>();
        Ok(Self { header, entries: entries[..header.count as usize].iter().map(Entry::from_bytes).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(header: Header, entries: &[Entry]) -> [u8; PAGE] {
        let mut page = [0xa5; PAGE];
        page[..ENTRY_BYTES].copy_from_slice(&header.to_bytes());
        for (i, e) in entries.iter().enumerate() {
            page[(i + 1) * ENTRY_BYTES..][..ENTRY_BYTES].copy_from_slice(&e.to_bytes());
        }
        page
    }

    const GOOD: Header = Header { magic: MAGIC, version: VERSION, count: 2, direct_map: 1 << 63, tsc: 5 };

    #[test]
    fn what_was_written_is_read() {
        let ring = Entry { kind: EntryKind::TraceRing as u32, index: 3, address: 0x1234_5000, len: 65536, extra: 7 };
        let unknown = Entry { kind: 99, ..ring };
        let read = Directory::parse(&page(GOOD, &[ring, unknown])).unwrap();
        assert_eq!(read, Directory { header: GOOD, entries: [ring, unknown].into() });
    }

    #[test]
    fn a_wrong_page_is_refused_with_its_reason() {
        let cases = [
            (Header { magic: 1, ..GOOD }, DirectoryError::Magic(1)),
            (Header { version: 2, ..GOOD }, DirectoryError::Version(2)),
            (Header { count: 128, ..GOOD }, DirectoryError::Count(128)),
        ];
        for (header, expected) in cases {
            assert_eq!(Directory::parse(&page(header, &[])), Err(expected));
        }
    }
}
