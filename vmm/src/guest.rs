//! What runs inside: kernel, command line and archive, checked before any of KVM is touched.
//!
//! `taskvisor run` and `taskvisor image` share it. Invariant: a [`Guest`] that exists can be loaded, given enough memory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{GuestAddress, GuestMemoryBackend, ReadVolatile};

use crate::boot::kernel::Kernel;
use crate::memory::Ram;

/// Why an archive can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file of it can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A kernel with everything that it is given.
#[derive(Debug)]
pub struct Guest {
    /// The kernel.
    pub kernel: Kernel,
    /// Its command line.
    pub cmdline: String,
    /// The archive.
    pub archive: Option<Archive>,
}

impl Guest {
    /// Whether the kernel is Taskvisor's own.
    pub fn is_ours(&self) -> bool {
        self.kernel.is_ours()
    }
}

/// An archive.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Archive {
    /// Opens an archive.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        let error = |source| ArchiveError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(error)?;
        let len = file.metadata().map_err(error)?.len();
        Ok(Self { path: path.to_owned(), file, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads it into guest memory.
    pub fn load(&self, ram: &Ram, address: GuestAddress) -> Result<(), ArchiveError> {
        let error = |source| ArchiveError::Read { path: self.path.clone(), source };
        let mut file = self.file.try_clone().map_err(error)?;
        let mut slice = ram.get_slice(address, self.len as usize).map_err(|e| error(io::Error::other(e)))?;
        file.read_exact_volatile(&mut slice).map_err(|e| error(io::Error::other(e)))
    }
}
