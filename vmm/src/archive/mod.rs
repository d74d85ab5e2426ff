//! The `newc` archive that a guest gets: built from host files, written into guest memory or a file, and read back.
//!
//! [`crate::guest`] builds one. Invariants: no file's content is held in memory here, it goes from the file to its
//! place; and every packed file of a page or more starts at a page boundary of the archive, so that a guest can map
//! its pages as they are (the archive itself is loaded page aligned, docs/abi.md).

pub mod build;
pub mod parse;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile};

use crate::memory::{PAGE_SIZE, Ram};

/// Why an archive can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file got shorter while it was being read.
    #[error("{path} has changed while it was read")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The format has 32-bit sizes.
    #[error("{path} is too large for a cpio archive: {size} bytes, at most 4 GiB fit")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// Not something that an archive of ours holds.
    #[error("{path} is neither a file, a directory nor a symbolic link")]
    Special {
        /// The file.
        path: PathBuf,
    },
    /// Names are text.
    #[error("the name of {path:?} is not valid UTF-8")]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// The given archive is no `newc` archive, or is damaged.
    #[error("the archive {path} is damaged or cut short at byte {offset}: {detail}")]
    Damaged {
        /// The archive.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// The given archive is something else.
    #[error("{path} is no newc archive: it {what}; make one with: find . | cpio -o -H newc")]
    NotNewc {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        what: &'static str,
    },
    /// Writing it out failed.
    #[error("can't write the archive: {0}")]
    Write(io::Error),
    /// Guest memory refuses it.
    #[error("can't copy the archive into guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A part of an archive, in order.
#[derive(Debug)]
enum Piece {
    /// Headers and generated files.
    Bytes(Vec<u8>),
    /// The content of a host file.
    File { path: PathBuf, file: File, len: u64 },
    /// Padding.
    Zeros(u64),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::File { len, .. } | Piece::Zeros(len) => *len,
        }
    }
}

/// An archive that is laid out but not yet written anywhere.
#[derive(Debug, Default)]
pub struct Archive {
    pieces: Vec<Piece>,
    len: u64,
}

impl Archive {
    /// A file handed over as it is: compressed archives for foreign kernels.
    pub fn raw(path: PathBuf, file: File) -> Result<Self, ArchiveError> {
        let mut archive = Self::default();
        let len = file.metadata().map_err(|source| ArchiveError::Read { path: path.clone(), source })?.len();
        archive.push(Piece::File { path, file, len });
        Ok(archive)
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it, not even a trailer.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push(&mut self, piece: Piece) {
        self.len += piece.len();
        self.pieces.push(piece);
    }

    fn pad_to(&mut self, align: u64) {
        let padding = self.len.next_multiple_of(align) - self.len;
        if padding != 0 {
            self.push(Piece::Zeros(padding));
        }
    }

    /// Reads everything into guest memory, files without a copy in between. Padding is left alone: fresh RAM is zero.
    pub fn load(&self, ram: &Ram, address: GuestAddress) -> Result<(), ArchiveError> {
        let mut at = address.0;
        for piece in &self.pieces {
            match piece {
                Piece::Bytes(bytes) => ram.write_slice(bytes, GuestAddress(at))?,
                Piece::Zeros(_) => {}
                Piece::File { path, file, len } => {
                    let mut reader = rewound(path, file)?;
                    let mut slice = ram.get_slice(GuestAddress(at), *len as usize)?;
                    reader.read_exact_volatile(&mut slice).map_err(|_| ArchiveError::Changed { path: path.clone() })?;
                }
            }
            at += piece.len();
        }
        Ok(())
    }

    /// Writes everything to a file.
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), ArchiveError> {
        for piece in &self.pieces {
            match piece {
                Piece::Bytes(bytes) => out.write_all(bytes).map_err(ArchiveError::Write)?,
                Piece::Zeros(len) => {
                    io::copy(&mut io::Read::take(io::repeat(0), *len), out).map_err(ArchiveError::Write)?;
                }
                Piece::File { path, file, len } => {
                    let reader = rewound(path, file)?;
                    let copied = io::copy(&mut io::Read::take(reader, *len), out).map_err(ArchiveError::Write)?;
                    if copied != *len {
                        return Err(ArchiveError::Changed { path: path.clone() });
                    }
                }
            }
        }
        Ok(())
    }
}

fn rewound<'a>(path: &std::path::Path, mut file: &'a File) -> Result<&'a File, ArchiveError> {
    file.seek(SeekFrom::Start(0)).map_err(|source| ArchiveError::Read { path: path.to_owned(), source })?;
    Ok(file)
}

/// The boundary at which packed files start.
const ALIGN: u64 = PAGE_SIZE;
