//! Where the guest's serial output goes: a stream of this process, a file, or nowhere.
//!
//! vCPU threads write here, and may block in it (back-pressure); a kick plus [`StopFlag`] gets them out again.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set when the VM ends: a write that is interrupted then gives up instead of trying again.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// From now on interrupted writes fail.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A file or stream that is written without buffering.
#[derive(Debug)]
pub struct Output {
    file: File,
    stop: StopFlag,
}

/// Why an output can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A stream can't be duplicated.
    #[error("can't use {name}: {source}")]
    Stream {
        /// `stdout` or `stderr`.
        name: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A file can't be created.
    #[error("can't create the log file {path}: {source}")]
    Create {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Output {
    /// This process's stdout.
    pub fn stdout(stop: &StopFlag) -> Result<Self, OutputError> {
        Self::stream("stdout", io::stdout().as_fd(), stop)
    }

    /// This process's stderr.
    pub fn stderr(stop: &StopFlag) -> Result<Self, OutputError> {
        Self::stream("stderr", io::stderr().as_fd(), stop)
    }

    fn stream(name: &'static str, fd: std::os::fd::BorrowedFd<'_>, stop: &StopFlag) -> Result<Self, OutputError> {
        let fd = fd.try_clone_to_owned().map_err(|source| OutputError::Stream { name, source })?;
        Ok(Self { file: fd.into(), stop: stop.clone() })
    }

    /// A new, empty file.
    pub fn create(path: &Path, stop: &StopFlag) -> Result<Self, OutputError> {
        let file = File::create(path).map_err(|source| OutputError::Create { path: path.to_owned(), source })?;
        Ok(Self { file, stop: stop.clone() })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.write(bytes) {
            // `write_all` would try again for ever.
            Err(error) if error.kind() == io::ErrorKind::Interrupted && self.stop.is_set() => {
                Err(io::Error::new(io::ErrorKind::BrokenPipe, "the VM ends"))
            }
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
