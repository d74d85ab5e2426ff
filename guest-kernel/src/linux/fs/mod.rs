//! Files and everything with a file descriptor.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::Process;
use crate::mm::PhysAddr;
use crate::mm::vma::PageSource;

/// What a process knows of the file system: descriptors, working directory, umask.
pub struct FsContext;

impl FsContext {
    /// For the first program: descriptors 0, 1, 2 on the console streams, working directory `/`.
    pub fn new_initial() -> Self {
        Self
    }

    /// A copy for a new process: the table is copied, the open files are shared.
    pub fn fork(&self) -> Self {
        Self
    }

    /// Closes what is marked close-on-exec.
    pub fn close_on_exec(&self) {}

    /// Closes everything (the last thread has ended).
    pub fn close_all(&self) {}

    /// Sets the working directory.
    ///
    /// # Errors
    /// As chdir(2).
    pub fn set_cwd(&self, _path: &[u8]) -> Result<(), Errno> {
        Err(Errno::ENOENT)
    }
}

/// A file-system object.
pub trait Inode: Send + Sync {
    /// Reads a part into kernel memory; short only at the end.
    ///
    /// # Errors
    /// EISDIR, EINVAL: it has no bytes.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Errno>;
    /// Size in bytes.
    fn size(&self) -> u64;
    /// File type and permission bits, as `st_mode`.
    fn mode(&self) -> u32;
    /// Its pages, if it can be mapped.
    fn page_source(&self) -> Option<Arc<dyn PageSource>>;
    /// Absolute path, for /proc and reports.
    fn path(&self) -> Vec<u8>;
}

/// Parses the archive. Boot CPU, once.
pub fn init(_archive: (PhysAddr, u64)) {}

/// Carries out a file system call. `None`: the number isn't one.
pub fn dispatch(_process: &Arc<Process>, _nr: u64, _args: &[u64; 6]) -> Option<SysResult> {
    None
}

/// Finds a file. `dirfd` as the `*at` calls take it (AT_FDCWD = -100).
///
/// # Errors
/// As open(2).
pub fn lookup(_process: &Process, _dirfd: i32, _path: &[u8], _follow: bool) -> Result<Arc<dyn Inode>, Errno> {
    Err(Errno::ENOENT)
}

/// The pages of an open file for mmap, with (writable, readable).
///
/// # Errors
/// EBADF; ENODEV: can't be mapped.
pub fn file_page_source(_process: &Process, _fd: i32) -> Result<(Arc<dyn PageSource>, bool, bool), Errno> {
    Err(Errno::EBADF)
}

/// The inode behind a descriptor (fexecve, execveat with AT_EMPTY_PATH).
///
/// # Errors
/// EBADF, EACCES.
pub fn inode_of_fd(_process: &Process, _fd: i32) -> Result<Arc<dyn Inode>, Errno> {
    Err(Errno::EBADF)
}

/// Reads a whole file of the archive by its absolute path.
pub fn read_whole(_path: &[u8]) -> Option<Vec<u8>> {
    None
}
