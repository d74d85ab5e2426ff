//! Console input: from this process's stdin to the guest's device.
//!
//! The event loop calls it when stdin is readable or the device has room again. Invariant: stdin is read only while
//! the device wants input, so what the guest doesn't take stays in the pipe (back-pressure).

use std::io::{self, IsTerminal, Read};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::{Arc, Mutex};

use taskvisor_devices::bus::lock;
use taskvisor_devices::uart::Uart;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::escape::EscapeFilter;

/// How much is read at once.
const CHUNK: usize = 4096;

/// What happened to the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputSource {
    /// More may come.
    Open,
    /// End of file.
    Ended,
    /// The user typed Ctrl-A x.
    Quit,
}

/// Stdin and the device that it feeds.
#[derive(Debug)]
pub struct Input {
    stdin: ManuallyDrop<std::fs::File>,
    /// epoll refuses files that are always readable; this stands in for them.
    always_ready: Option<EventFd>,
    escape: Option<EscapeFilter>,
    ended: bool,
    uart: SharedUart,
    room: EventFd,
}

/// A UART with a name for `Debug`.
#[derive(Clone)]
pub struct SharedUart(pub Arc<Mutex<Uart>>);

impl std::fmt::Debug for SharedUart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Uart")
    }
}

impl Input {
    /// Stdin feeds a serial port.
    pub fn serial(uart: Arc<Mutex<Uart>>) -> io::Result<Self> {
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
        let room = lock(&uart).room_evt().try_clone()?;
        Ok(Self {
            stdin: file,
            always_ready,
            escape: stdin.is_terminal().then(EscapeFilter::default),
            ended: false,
            uart: SharedUart(uart),
            room,
        })
    }

    /// Becomes readable when the device has room again.
    pub fn room_fd(&self) -> RawFd {
        self.room.as_raw_fd()
    }

    /// What to wait for, if anything: nothing after the end, and nothing while the device is full.
    pub fn wanted_fd(&self) -> Option<RawFd> {
        if self.ended || !lock(&self.uart.0).wants_input() {
            return None;
        }
        Some(self.always_ready.as_ref().map_or(self.stdin.as_raw_fd(), |evt| evt.as_raw_fd()))
    }

    /// Reads once and hands over what came.
    pub fn on_readable(&mut self) -> InputSource {
        let mut buffer = [0; CHUNK];
        let read = match self.stdin.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                return InputSource::Open;
            }
            Err(error) => {
                log::debug!("stdin: {error}; taken as its end");
                0
            }
        };
        if read == 0 {
            self.ended = true;
            return InputSource::Ended;
        }
        let Some(escape) = &mut self.escape else {
            lock(&self.uart.0).enqueue(&buffer[..read]);
            return InputSource::Open;
        };
        let mut keys = Vec::with_capacity(read);
        let quit = escape.filter(&buffer[..read], &mut keys);
        lock(&self.uart.0).enqueue(&keys);
        if quit { InputSource::Quit } else { InputSource::Open }
    }

    /// The device has room again.
    pub fn on_room(&mut self) {
        let _ = self.room.read();
    }

    /// The terminal has a new size; a serial port can't tell its guest.
    pub fn on_resize(&mut self) {}
}

/// Whether epoll can wait for `fd`. It refuses files that never block: regular ones, /dev/null.
fn epoll_takes(fd: RawFd) -> io::Result<bool> {
    match Epoll::new()?.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(error) => Err(error),
    }
}
