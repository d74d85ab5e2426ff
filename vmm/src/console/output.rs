//! Where the guest's serial output goes: a stream of this process, a file, or nowhere.
//!
//! vCPU threads write here, and wait when nobody reads (back-pressure). Invariant: once [`StopFlag`] is set no write
//! waits any more than [`GRACE`], so a reader that doesn't read can't keep a VM from ending.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How long a write may still wait when the VM ends.
const GRACE: i32 = 20;
/// What a pipe takes without waiting once it polls writable (POSIX: PIPE_BUF).
const CHUNK: usize = 4096;

/// Set when the VM ends in a hurry: writes then give up instead of waiting.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// From now on writes don't wait.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Writes wait again, for the drain after an ordinary end.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
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
        // SAFETY: Rust's start-up code makes sure that descriptors 0 to 2 are open; nothing closes them.
        Self::stream("stdout", unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) }, stop)
    }

    /// This process's stderr.
    pub fn stderr(stop: &StopFlag) -> Result<Self, OutputError> {
        // SAFETY: as in `stdout`.
        Self::stream("stderr", unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) }, stop)
    }

    fn stream(name: &'static str, fd: BorrowedFd<'_>, stop: &StopFlag) -> Result<Self, OutputError> {
        let fd = fd.try_clone_to_owned().map_err(|source| OutputError::Stream { name, source })?;
        Ok(Self { file: fd.into(), stop: stop.clone() })
    }

    /// A new, empty file; appended to, as the VMM's own log may go there too.
    pub fn create(path: &Path, stop: &StopFlag) -> Result<Self, OutputError> {
        let create = || {
            File::create(path)?;
            OpenOptions::new().append(true).open(path)
        };
        let file = create().map_err(|source| OutputError::Create { path: path.to_owned(), source })?;
        Ok(Self { file, stop: stop.clone() })
    }

    /// Waits until a write of [`CHUNK`] bytes won't wait, or the VM ends.
    fn wait(&self) -> io::Result<()> {
        let mut grace = GRACE;
        loop {
            let stop = self.stop.is_set();
            let mut poll = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
            // SAFETY: one valid pollfd.
            match unsafe { libc::poll(&mut poll, 1, if stop { grace } else { -1 }) } {
                0 => return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads, and the VM ends")),
                // A kick: look at the flag again. Kicks go on until the thread ends, so they must not renew the wait.
                n if n < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {
                    grace = if stop { 0 } else { GRACE };
                }
                // Ready, or in a state that the write will report.
                _ => return Ok(()),
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait()?;
        self.file.write(&bytes[..bytes.len().min(CHUNK)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pipe_does_not_hold_up_the_end() {
        let (_reader, writer) = io::pipe().unwrap();
        let stop = StopFlag::default();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let mut output = Output { file, stop: stop.clone() };
        stop.set();
        let error = output.write_all(&[b'x'; 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
