//! COM1 as the console: for foreign kernels, and on request (`--console serial`).
//!
//! Output goes from the vCPU's thread straight to stdout; this is the input side, driven by the event loop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use event_manager::EventSet;
use taskvisor_devices::bus::lock;
use taskvisor_devices::uart::Uart;
use vmm_sys_util::eventfd::EventFd;

use super::input::{Got, Stdin};
use super::{Watch, Wish};

const INPUT: u32 = 0;
const ROOM: u32 = 1;

/// Stdin to COM1.
pub struct SerialConsole {
    uart: Arc<Mutex<Uart>>,
    room: EventFd,
    /// Kept after its end: epoll may still have it.
    stdin: Stdin,
    ended: bool,
}

impl std::fmt::Debug for SerialConsole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialConsole").field("stdin", &self.stdin).finish_non_exhaustive()
    }
}

impl SerialConsole {
    /// Feeds `uart` from stdin.
    pub fn new(uart: Arc<Mutex<Uart>>) -> io::Result<Self> {
        let room = lock(&uart).room_evt().try_clone()?;
        Ok(Self { uart, room, stdin: Stdin::new()?, ended: false })
    }

    pub(super) fn watches(&self, out: &mut Vec<Watch>) {
        out.push(Watch { fd: self.room.as_raw_fd(), events: EventSet::IN, token: ROOM });
        // While the guest is behind, what it doesn't take stays in the pipe.
        if !self.ended && lock(&self.uart).wants_input() {
            out.push(Watch { fd: self.stdin.fd(), events: EventSet::IN, token: INPUT });
        }
    }

    pub(super) fn on_ready(&mut self, token: u32) -> Wish {
        if token == ROOM {
            let _ = self.room.read();
            return Wish::Continue;
        }
        match self.stdin.read() {
            // A serial line has no end of file.
            Got::End => self.ended = true,
            Got::Bytes(bytes) => lock(&self.uart).enqueue(&bytes),
            Got::Quit(_) => return Wish::Quit,
        }
        Wish::Continue
    }
}
