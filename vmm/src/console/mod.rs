//! The guest's console on the host: the user's terminal, the Ctrl-A escape, and the device that carries the streams.
//!
//! [`crate::vm`] makes a [`Console`], [`crate::event_loop`] drives it: after every event it asks for [`Console::watches`]
//! again, waits for those, and hands back the token of what became ready. Invariant: no call blocks.

pub mod escape;
pub mod input;
pub mod output;
pub mod serial;
pub mod terminal;
pub mod virtio;

use std::os::fd::RawFd;

use event_manager::EventSet;

use self::serial::SerialConsole;
use self::virtio::VirtioConsole;

/// A file descriptor that the console waits for, level-triggered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// What to poll.
    pub fd: RawFd,
    /// Readable or writable.
    pub events: EventSet,
    /// What [`Console::on_ready`] gets.
    pub token: u32,
}

/// What the user wants, as far as the console learns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Go on.
    Continue,
    /// Ctrl-A x.
    Quit,
}

/// Where the programs' streams go.
#[derive(Debug)]
pub enum Console {
    /// COM1 is stdin and stdout.
    Serial(SerialConsole),
    /// The virtio console, streams kept apart.
    Virtio(VirtioConsole),
}

impl Console {
    /// Everything to wait for now.
    pub fn watches(&self, out: &mut Vec<Watch>) {
        match self {
            Console::Serial(console) => console.watches(out),
            Console::Virtio(console) => console.watches(out),
        }
    }

    /// The descriptor with this token is ready.
    pub fn on_ready(&mut self, token: u32) -> Wish {
        match self {
            Console::Serial(console) => console.on_ready(token),
            Console::Virtio(console) => console.on_ready(token),
        }
    }

    /// The terminal has a new size.
    pub fn on_resize(&mut self) {
        if let Console::Virtio(console) = self {
            console.on_resize();
        }
    }
}
