//! This process's stdin as the event loop reads it: only when it is ready, never blocking, with the escape key taken
//! out when it is a terminal.
//!
//! Used by both consoles. Invariant: reads nothing unless told to, so that what nobody takes stays in the pipe.

use std::io::{self, IsTerminal, Read};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::escape::EscapeFilter;

/// How much is read at once.
const CHUNK: usize = 4096;

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    /// Bytes for the guest, perhaps none.
    Bytes(Vec<u8>),
    /// No more will come.
    End,
    /// The user typed Ctrl-A x, after these bytes.
    Quit(Vec<u8>),
}

/// Stdin.
#[derive(Debug)]
pub struct Stdin {
    file: ManuallyDrop<std::fs::File>,
    /// epoll refuses files that are always readable; this stands in for them.
    always_ready: Option<EventFd>,
    escape: Option<EscapeFilter>,
}

impl Stdin {
    /// Wraps descriptor 0, which stays open.
    pub fn new() -> io::Result<Self> {
        let stdin = io::stdin();
        let fd = stdin.as_raw_fd();
        // SAFETY: descriptor 0 stays open for the life of the process: ManuallyDrop never closes it.
        let file = ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
        let always_ready = if epoll_takes(fd)? {
            None
        } else {
            let evt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            evt.write(1)?;
            Some(evt)
        };
        Ok(Self { file, always_ready, escape: stdin.is_terminal().then(EscapeFilter::default) })
    }

    /// What to poll for input.
    pub fn fd(&self) -> RawFd {
        self.always_ready.as_ref().map_or(self.file.as_raw_fd(), |evt| evt.as_raw_fd())
    }

    /// One read, after the descriptor was ready.
    pub fn read(&mut self) -> Got {
        let mut buffer = [0; CHUNK];
        let read = match self.file.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                return Got::Bytes(Vec::new());
            }
            Err(error) => {
                log::debug!("stdin: {error}; taken as its end");
                0
            }
        };
        let bytes = &buffer[..read];
        match &mut self.escape {
            _ if read == 0 => Got::End,
            None => Got::Bytes(bytes.to_vec()),
            Some(escape) => {
                let mut keys = Vec::with_capacity(read + 1);
                if escape.filter(bytes, &mut keys) { Got::Quit(keys) } else { Got::Bytes(keys) }
            }
        }
    }
}

/// Whether epoll can wait for `fd`. It refuses files that never block: regular ones, /dev/null.
fn epoll_takes(fd: RawFd) -> io::Result<bool> {
    match Epoll::new()?.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(error) => Err(error),
    }
}
