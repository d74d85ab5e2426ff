//! Reads archives that users bring: checks them from end to end and finds files in them.
//!
//! [`crate::guest`] calls [`scan`] before the guest starts, so that an archive that is cut short is an error on the
//! host and not a puzzle in the guest. Input is hostile; sizes are only believed after the file has been seen to hold them.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use cpio::newc;

use super::ArchiveError;
use super::build::clean;

/// File type bits of a mode (POSIX: S_IFMT), and those of what is told apart here.
const TYPE_MASK: u32 = 0o170_000;
const TYPE_REGULAR: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Cleaned name: no slash in front.
    pub name: String,
    /// Type and permissions.
    pub mode: u32,
    /// Offset of its data in the archive.
    pub offset: u64,
    /// Length of its data.
    pub size: u64,
}

impl Entry {
    /// A regular file.
    pub fn is_file(&self) -> bool {
        self.mode & TYPE_MASK == TYPE_REGULAR
    }

    /// A symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode & TYPE_MASK == TYPE_SYMLINK
    }
}

/// All entries of the archive, or of several one after the other with zeroes between.
pub fn scan(path: &Path, file: &File) -> Result<Vec<Entry>, ArchiveError> {
    let error = |source| ArchiveError::Read { path: path.to_owned(), source };
    let len = file.metadata().map_err(error)?.len();
    let mut reader = BufReader::with_capacity(512, file);
    reader.rewind().map_err(error)?;
    check_magic(path, &mut reader)?;

    let mut entries = Vec::new();
    let mut at = 0;
    let mut after_trailer = false;
    loop {
        if after_trailer {
            at = skip_zeroes(&mut reader, at).map_err(error)?;
            if at == len {
                return Ok(entries);
            }
        }
        let damaged = |detail: String| ArchiveError::Damaged { path: path.to_owned(), offset: at, detail };
        reader.seek(SeekFrom::Start(at)).map_err(error)?;
        let header = newc::Reader::new(&mut reader).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => damaged("it ends before its trailer".into()),
            _ => damaged(e.to_string()),
        })?;
        let entry = header.entry();
        let (name, mode, size) = (clean(entry.name()), entry.mode(), u64::from(entry.file_size()));
        after_trailer = entry.is_trailer();
        let offset = reader.stream_position().map_err(error)?;
        if size > len.saturating_sub(offset) {
            return Err(damaged(format!("{name} has {size} bytes, the archive ends {} bytes later", len - offset)));
        }
        at = (offset + size).next_multiple_of(4).min(len);
        if !after_trailer {
            entries.push(Entry { name, mode, offset, size });
        }
    }
}

/// Says what a file is that is no archive.
fn check_magic(path: &Path, reader: &mut BufReader<&File>) -> Result<(), ArchiveError> {
    let mut magic = [0; 6];
    let what = match reader.read_exact(&mut magic) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => "is shorter than one header",
        Err(source) => return Err(ArchiveError::Read { path: path.to_owned(), source }),
        Ok(()) => match magic {
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2'] => return Ok(()),
            [b'0', b'7', b'0', b'7', b'0', b'7'] => "is a cpio archive of the old (odc) format",
            [0x1f, 0x8b, ..] => "is compressed with gzip, unpack it first",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "is compressed with zstd, unpack it first",
            [0xfd, b'7', b'z', b'X', b'Z', ..] => "is compressed with xz, unpack it first",
            _ => "doesn't start with 070701",
        },
    };
    Err(ArchiveError::NotNewc { path: path.to_owned(), what })
}

/// The offset of the first byte at or after `at` that isn't zero.
fn skip_zeroes(reader: &mut BufReader<&File>, mut at: u64) -> io::Result<u64> {
    reader.seek(SeekFrom::Start(at))?;
    let mut buffer = [0; 4096];
    loop {
        let read = reader.read(&mut buffer)?;
        match buffer[..read].iter().position(|byte| *byte != 0) {
            Some(zeroes) => return Ok(at + zeroes as u64),
            None if read == 0 => return Ok(at),
            None => at += read as u64,
        }
    }
}

/// The last entry with this name: later ones replace earlier ones.
pub fn find<'a>(entries: &'a [Entry], path: &str) -> Option<&'a Entry> {
    let name = clean(path);
    entries.iter().rev().find(|entry| entry.name == name)
}
