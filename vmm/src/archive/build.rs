//! Builds archives: entries, parent directories, page alignment, concatenation.
//!
//! Alignment uses what `newc` allows: a name may be followed by more than one NUL, all of them counted in the name's
//! length (dracut-cpio does the same). Readers take the name up to its first NUL. Linux refuses names above PATH_MAX,
//! so where more than that were needed an entry for the root directory goes before.

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cpio::newc::{self, ModeFileType};

use super::{ALIGN, Archive, ArchiveError, Piece};

/// Length of a header before its name (newc).
const HEADER_LEN: u64 = 110;
/// Linux' limit for `c_namesize` (init/initramfs.c: PATH_MAX).
const NAME_MAX: u64 = 4096;
/// Permissions of directories that nobody described.
const DIRECTORY_MODE: u32 = 0o755;

/// Builds an archive entry by entry.
#[derive(Debug, Default)]
pub struct Builder {
    archive: Archive,
    inode: u32,
    directories: HashSet<String>,
}

impl Builder {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an existing archive in front; later entries replace its files of the same name.
    pub fn concatenate(&mut self, path: &Path, file: File) -> Result<(), ArchiveError> {
        let prefix = Archive::raw(path.to_owned(), file)?;
        for piece in prefix.pieces {
            self.archive.push(piece);
        }
        // Readers skip zeroes between archives.
        self.archive.pad_to(ALIGN);
        Ok(())
    }

    /// Adds a generated file.
    pub fn bytes(&mut self, guest: &str, mode: u32, content: Vec<u8>) -> Result<(), ArchiveError> {
        let name = self.enter(guest);
        self.header(&name, ModeFileType::Regular, mode, 0, content.len() as u64, Path::new(guest))?;
        self.archive.push(Piece::Bytes(content));
        self.archive.pad_to(4);
        Ok(())
    }

    /// Adds a host file, directory (with all that is in it) or symbolic link.
    pub fn host(&mut self, host: &Path, guest: &str) -> Result<(), ArchiveError> {
        let read = |source| ArchiveError::Read { path: host.to_owned(), source };
        // What the user names himself may be a link to what he means.
        let meta = fs::metadata(host).map_err(read)?;
        self.host_with(host, guest, &meta)
    }

    /// Adds an open host file.
    pub fn open_file(&mut self, host: &Path, file: File, guest: &str, mode: u32) -> Result<(), ArchiveError> {
        let meta = file.metadata().map_err(|source| ArchiveError::Read { path: host.to_owned(), source })?;
        let name = self.enter(guest);
        self.header(&name, ModeFileType::Regular, mode, meta.mtime() as u32, meta.len(), host)?;
        if meta.len() > 0 {
            self.archive.push(Piece::File { path: host.to_owned(), file, len: meta.len() });
        }
        self.archive.pad_to(4);
        Ok(())
    }

    fn host_with(&mut self, host: &Path, guest: &str, meta: &Metadata) -> Result<(), ArchiveError> {
        let read = |source| ArchiveError::Read { path: host.to_owned(), source };
        let kind = meta.file_type();
        let mode = meta.permissions().mode() & 0o7777;
        if kind.is_file() {
            return self.open_file(host, File::open(host).map_err(read)?, guest, mode);
        }
        if kind.is_symlink() {
            let target = fs::read_link(host).map_err(read)?;
            let target = utf8(target)?.into_bytes();
            let name = self.enter(guest);
            self.header(&name, ModeFileType::Symlink, 0o777, meta.mtime() as u32, target.len() as u64, host)?;
            self.archive.push(Piece::Bytes(target));
            self.archive.pad_to(4);
            return Ok(());
        }
        if !kind.is_dir() {
            return Err(ArchiveError::Special { path: host.to_owned() });
        }
        let mut entries: Vec<PathBuf> =
            fs::read_dir(host).map_err(read)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().map_err(read)?;
        // The same directory gives the same archive.
        entries.sort();
        self.directory(&clean(guest), mode)?;
        for entry in entries {
            let name =
                entry.file_name().map(PathBuf::from).ok_or_else(|| ArchiveError::Name { path: entry.clone() })?;
            let meta =
                fs::symlink_metadata(&entry).map_err(|source| ArchiveError::Read { path: entry.clone(), source })?;
            self.host_with(&entry, &format!("{guest}/{}", utf8(name)?), &meta)?;
        }
        Ok(())
    }

    /// Adds the trailer.
    pub fn finish(mut self) -> Result<Archive, ArchiveError> {
        let trailer = newc::trailer(Vec::new()).map_err(ArchiveError::Write)?;
        self.archive.push(Piece::Bytes(trailer));
        self.archive.pad_to(4);
        Ok(self.archive)
    }

    /// Makes sure that the parents of a guest path exist; returns the path as entries spell it: without a slash in front.
    fn enter(&mut self, guest: &str) -> String {
        let name = clean(guest);
        let parents: Vec<_> = name.match_indices('/').map(|(at, _)| name[..at].to_owned()).collect();
        for parent in parents {
            // Only `Write` errors are possible, and a Vec doesn't give any.
            let _ = self.directory(&parent, DIRECTORY_MODE);
        }
        name
    }

    fn directory(&mut self, name: &str, mode: u32) -> Result<(), ArchiveError> {
        if name.is_empty() || !self.directories.insert(name.to_owned()) {
            return Ok(());
        }
        let name = self.enter(name);
        self.header(&name, ModeFileType::Directory, mode, 0, 0, Path::new(&name))
    }

    /// One header with its name, padded so that a file of at least a page starts at a page boundary.
    fn header(
        &mut self,
        name: &str,
        kind: ModeFileType,
        mode: u32,
        mtime: u32,
        size: u64,
        host: &Path,
    ) -> Result<(), ArchiveError> {
        let size32 = u32::try_from(size).map_err(|_| ArchiveError::TooLarge { path: host.to_owned(), size })?;
        let mut padded = name.to_owned();
        if size >= ALIGN {
            if name_len_for_alignment(self.archive.len, name) > NAME_MAX {
                self.raw_header(".", ModeFileType::Directory, DIRECTORY_MODE, 0, 0)?;
            }
            let with_nul = name_len_for_alignment(self.archive.len, name);
            padded.extend(std::iter::repeat_n('\0', (with_nul - 1) as usize - name.len()));
        }
        self.raw_header(&padded, kind, mode, mtime, size32)
    }

    fn raw_header(
        &mut self,
        name: &str,
        kind: ModeFileType,
        mode: u32,
        mtime: u32,
        size: u32,
    ) -> Result<(), ArchiveError> {
        self.inode += 1;
        let links = if matches!(kind, ModeFileType::Directory) { 2 } else { 1 };
        let bytes = newc::Builder::new(name)
            .ino(self.inode)
            .nlink(links)
            .mode(mode)
            .set_mode_file_type(kind)
            .mtime(mtime)
            .write(Vec::new(), size)
            .finish()
            .map_err(ArchiveError::Write)?;
        self.archive.push(Piece::Bytes(bytes));
        Ok(())
    }
}

/// The length that a name, NULs included, must have so that the data behind it starts at a page boundary.
fn name_len_for_alignment(offset: u64, name: &str) -> u64 {
    let shortest = offset + HEADER_LEN + name.len() as u64 + 1;
    shortest.next_multiple_of(ALIGN) - offset - HEADER_LEN
}

/// A path as archives spell it: relative, without empty, `.` and `..` parts.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A path as text.
pub fn utf8(path: PathBuf) -> Result<String, ArchiveError> {
    path.into_os_string().into_string().map_err(|path| ArchiveError::Name { path: path.into() })
}
