//! The programs' standard streams: virtio console where there is one, else the log UART.
//!
//! The Linux layer builds descriptors and terminals on [`Output`] and [`Input`]; it doesn't know what carries them.

mod serial;
mod virtio;

use crate::boot::cmdline;
use crate::mm::user::{self, Fault};
use crate::sync::{Interrupted, WaitQueue};

/// Which stream of the first program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why a transfer failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsoleError {
    /// A signal came before the first byte.
    Interrupted,
    /// Nothing can be transferred now, and the caller doesn't want to wait.
    WouldBlock,
    /// The user address is bad, and nothing was transferred.
    Fault,
    /// The host's side of the stream is closed (EPIPE).
    Closed,
}

impl From<Interrupted> for ConsoleError {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}

/// Finds the console devices. Boot CPU, tasks may run.
pub fn init() {
    virtio::init();
    if virtio::get().is_none() {
        serial::init();
    }
}

/// A device pin has interrupted. Interrupts off.
pub fn device_interrupt(gsi: u8) {
    virtio::interrupt(gsi);
    serial::interrupt(gsi);
}

/// Whether stream 0, 1 or 2 is a terminal on the host (`tty=` on the command line).
pub fn is_terminal(stream: u8) -> bool {
    cmdline::get("tty").is_some_and(|t| t.as_bytes().contains(&(b'0' + stream)))
}

/// Terminal size as (columns, rows); the VMM changes it when the host's window changes.
pub fn window_size() -> (u16, u16) {
    if let Some(size) = virtio::get().and_then(|c| c.size()) {
        return size;
    }
    cmdline::get("winsize")
        .and_then(|s| s.split_once('x'))
        .and_then(|(c, r)| Some((c.parse().ok()?, r.parse().ok()?)))
        .unwrap_or((80, 24))
}

/// Writes user memory to a stream; returns how many bytes (all of them unless interrupted, or non-blocking). May sleep.
///
/// # Errors
/// [`ConsoleError`] if nothing was written.
pub fn write_user(stream: Stream, addr: u64, len: usize, nonblock: bool) -> Result<usize, ConsoleError> {
    match virtio::get() {
        Some(c) => c.write_user(stream, addr, len, nonblock),
        None => serial::write_user(addr, len),
    }
}

/// Writes kernel bytes to a stream (echo of a terminal, messages). May sleep.
pub fn write_kernel(stream: Stream, bytes: &[u8]) {
    match virtio::get() {
        Some(c) => c.write_kernel(stream, bytes),
        None => serial::write(bytes),
    }
}

/// Whether a write would make progress at once, for poll.
pub fn writable(stream: Stream) -> bool {
    virtio::get().is_none_or(|c| c.writable(stream))
}

/// Woken when `writable` may have become true.
pub fn write_queue(stream: Stream) -> &'static WaitQueue {
    virtio::get().map_or(serial::queue(), |c| c.write_queue(stream))
}

/// Takes bytes that have arrived on stdin, without waiting; 0 if there are none now. May sleep only for memory.
pub fn read_available(buf: &mut [u8]) -> usize {
    match virtio::get() {
        Some(c) => c.input().read_available(c.registers(), buf),
        None => serial::read_available(buf),
    }
}

/// As [`read_available`], into user memory, copied once.
///
/// # Errors
/// [`Fault`] if nothing could be copied.
pub fn read_user(addr: u64, len: usize) -> Result<usize, Fault> {
    if let Some(c) = virtio::get() {
        return c.input().read_user(c.registers(), addr, len);
    }
    let mut buf = [0; 256];
    let n = serial::read_available(&mut buf[..len.min(256)]);
    user::write_bytes(addr, &buf[..n]).map(|()| n)
}

/// Whether `read_available` would give something.
pub fn readable() -> bool {
    virtio::get().map_or_else(serial::readable, |c| c.input().readable(c.registers()))
}

/// Whether stdin has ended: what is buffered can still be read, nothing more will come.
pub fn at_eof() -> bool {
    virtio::get().is_some_and(|c| c.input().at_eof())
}

/// Woken when bytes arrive on stdin, when it ends, and when the window size changes.
pub fn read_queue() -> &'static WaitQueue {
    virtio::get().map_or(serial::queue(), |c| c.input().queue())
}

/// Waits until everything that was written has left the guest. Before the machine ends.
pub fn drain() {
    if let Some(c) = virtio::get() {
        c.drain();
    }
}
