//! The virtio console as the event loop drives it (the device itself: [`taskvisor_devices::virtio::console`]).
//!
//! Pipes and files are read by the device straight into guest memory; a terminal is read here, because of its escape
//! key, and handed over. The lock is shared with the vCPU threads, which hold it only while they touch a register.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::EventSet;
use taskvisor_devices::bus::lock;
use taskvisor_devices::virtio::console::{ConsoleDevice, ConsoleIo, Drained, Stream, WinSize};
use taskvisor_devices::virtio::link::Link;
use taskvisor_devices::virtio::stream::{InputStream, Interest, OutputStream};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::input::{Got, Stdin};
use super::{Watch, Wish, terminal};
use crate::memory::Ram;

/// The device type that the VMM uses.
pub type Device = ConsoleDevice<Ram>;

const TERMINAL: u32 = 0;
const STDIN: u32 = 1;
const STDOUT: u32 = 2;
const STDERR: u32 = 3;
/// Something can be done without waiting.
const TURN: u32 = 4;
/// Queue n has token QUEUE + n.
const QUEUE: u32 = 8;

/// The device and the terminal in front of it.
#[derive(Debug)]
pub struct VirtioConsole {
    device: Arc<Mutex<Device>>,
    link: Arc<Link>,
    terminal: Option<Stdin>,
    /// The terminal has hung up; it is kept, as epoll may still have it.
    ended: bool,
    /// Always readable: stands in for files that epoll refuses because they never block.
    ready: EventFd,
}

/// Makes the device over this process's own streams.
pub fn device(ram: &Ram) -> io::Result<Device> {
    let stdin = io::stdin();
    let io = ConsoleIo {
        stdin: if stdin.is_terminal() { InputStream::injected() } else { InputStream::new(stdin.as_fd())? },
        stdout: OutputStream::new(io::stdout().as_fd())?,
        stderr: OutputStream::new(io::stderr().as_fd())?,
    };
    ConsoleDevice::new(Arc::new(ram.clone()), io, window_size())
}

/// The size of the first of our streams that is a terminal.
pub fn window_size() -> Option<WinSize> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    [stdout.as_fd(), stdin.as_fd(), stderr.as_fd()]
        .into_iter()
        .find_map(terminal::size)
        .map(|(cols, rows)| WinSize { cols, rows })
}

impl VirtioConsole {
    /// Drives `device`.
    pub fn new(device: Arc<Mutex<Device>>) -> io::Result<Self> {
        let link = lock(&device).shared_link();
        let terminal = io::stdin().is_terminal().then(Stdin::new).transpose()?;
        let ready = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        ready.write(1)?;
        Ok(Self { device, link, terminal, ended: false, ready })
    }

    pub(super) fn watches(&self, out: &mut Vec<Watch>) {
        for index in 0..self.link.queue_count() {
            if let Some(evt) = self.link.queue_evt(index) {
                out.push(Watch { fd: evt.as_raw_fd(), events: EventSet::IN, token: QUEUE + index as u32 });
            }
        }
        if let Some(terminal) = self.terminal.as_ref().filter(|_| !self.ended) {
            out.push(Watch { fd: terminal.fd(), events: EventSet::IN, token: TERMINAL });
        }
        let device = lock(&self.device);
        let mut turn = false;
        for (interest, events, token) in [
            (device.stdin_interest(), EventSet::IN, STDIN),
            (device.output_interest(Stream::Stdout), EventSet::OUT, STDOUT),
            (device.output_interest(Stream::Stderr), EventSet::OUT, STDERR),
        ] {
            match interest {
                Interest::Poll(fd) => out.push(Watch { fd, events, token }),
                Interest::Ready => turn = true,
                Interest::Idle => {}
            }
        }
        if turn {
            out.push(Watch { fd: self.ready.as_raw_fd(), events: EventSet::IN, token: TURN });
        }
    }

    /// Moves what can be moved without waiting, a bounded amount.
    fn turn(&mut self) {
        let mut device = lock(&self.device);
        if device.stdin_interest() == Interest::Ready {
            device.stdin_ready();
        }
        for stream in Stream::ALL {
            if device.output_interest(stream) == Interest::Ready {
                device.output_ready(stream);
            }
        }
    }

    pub(super) fn on_ready(&mut self, token: u32) -> Wish {
        match token {
            TERMINAL => return self.on_terminal(),
            TURN => self.turn(),
            STDIN => lock(&self.device).stdin_ready(),
            STDOUT => lock(&self.device).output_ready(Stream::Stdout),
            STDERR => lock(&self.device).output_ready(Stream::Stderr),
            queue => lock(&self.device).process_queue(queue.saturating_sub(QUEUE) as usize),
        }
        Wish::Continue
    }

    fn on_terminal(&mut self) -> Wish {
        let got = self.terminal.as_mut().map_or(Got::End, Stdin::read);
        match got {
            Got::Bytes(keys) => {
                // What a guest that doesn't read can't take is lost, as in a terminal's own full input queue; reading
                // on is what keeps Ctrl-A x working.
                lock(&self.device).push_input(&keys);
            }
            Got::End => {
                self.ended = true;
                lock(&self.device).close_input();
            }
            Got::Quit(_) => return Wish::Quit,
        }
        Wish::Continue
    }

    pub(super) fn on_resize(&mut self) {
        if let Some(size) = window_size() {
            lock(&self.device).resize(size);
        }
    }
}

/// Writes out what the guest has left in the queues, after its vCPUs have stopped.
pub fn drain(device: &Mutex<Device>, deadline: Option<Instant>, cancel: BorrowedFd<'_>) -> Drained {
    lock(device).drain(deadline, Some(cancel))
}
