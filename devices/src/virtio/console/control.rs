//! The console's control queues (virtio 1.2, 5.3.6.2): which ports exist, which are open, how large the terminal is.
//!
//! Invariant: the messages that wait for a buffer are bounded, however often the driver asks for them: a message that
//! waits already isn't queued twice, and a newer size replaces an older one.

use std::collections::VecDeque;

use vm_memory::{Bytes, GuestMemoryBackend};

use super::super::chain::{ChainError, Segment};
use super::super::ring::Ring;
use super::port::Turn;
use super::{PORTS, WinSize};

/// Virtio 1.2, 5.3.6.2, `virtio_console_control.event`.
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const PORT_OPEN: u16 = 6;
}

/// Bytes of `struct virtio_console_control`: le32 id, le16 event, le16 value.
const HEADER: usize = 8;

/// A message, with the payload that only RESIZE has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    port: u32,
    event: u16,
    value: u16,
    size: Option<WinSize>,
}

impl Message {
    fn new(port: u32, event: u16, value: u16) -> Message {
        Message { port, event, value, size: None }
    }

    /// The bytes and how many of them count.
    fn bytes(&self) -> ([u8; HEADER + 4], usize) {
        let mut bytes = [0; HEADER + 4];
        bytes[0..4].copy_from_slice(&self.port.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.event.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.value.to_le_bytes());
        let Some(size) = self.size else {
            return (bytes, HEADER);
        };
        // Virtio 1.2, 5.3.6.2: `struct virtio_console_resize { le16 cols; le16 rows; }`.
        bytes[8..10].copy_from_slice(&size.cols.to_le_bytes());
        bytes[10..12].copy_from_slice(&size.rows.to_le_bytes());
        (bytes, HEADER + 4)
    }
}

/// State of the control queues.
#[derive(Debug, Default)]
pub struct Control {
    to_driver: Option<Ring>,
    from_driver: Option<Ring>,
    waiting: VecDeque<Message>,
    /// The driver began the hand-shake.
    device_ready: bool,
    /// It knows port 0.
    stdio_ready: bool,
    input_ended: bool,
}

impl Control {
    pub fn set_rings(&mut self, to_driver: Option<Ring>, from_driver: Option<Ring>) {
        self.to_driver = to_driver;
        self.from_driver = from_driver;
    }

    pub fn stop_sending(&mut self) {
        self.to_driver = None;
    }

    pub fn stop_receiving(&mut self) {
        self.from_driver = None;
    }

    /// The last byte of stdin is in the receive queue: port 0 closes on our side. A driver that is in the middle of its
    /// hand-shake doesn't know the port yet, and hears of it when it does.
    pub fn input_ended(&mut self) {
        self.input_ended = true;
        if self.stdio_ready || !self.device_ready {
            self.queue(Message::new(0, event::PORT_OPEN, 0));
        }
    }

    pub fn resized(&mut self, size: WinSize) {
        if self.stdio_ready {
            self.waiting.retain(|message| message.event != event::RESIZE);
            self.queue(Message { size: Some(size), ..Message::new(0, event::RESIZE, 0) });
        }
    }

    /// The newest place counts: a port that was closed, opened and closed again must end up closed.
    fn queue(&mut self, message: Message) {
        self.waiting.retain(|waiting| *waiting != message);
        self.waiting.push_back(message);
    }

    /// Obeys the driver's messages: at most a ring full.
    pub fn receive<M: GuestMemoryBackend>(&mut self, mem: &M, size: Option<WinSize>) -> Result<Turn, ChainError> {
        let Some(mut ring) = self.from_driver.take() else {
            return Ok(Turn::default());
        };
        let result = self.receive_from(&mut ring, mem, size);
        self.from_driver = Some(ring);
        result
    }

    fn receive_from<M: GuestMemoryBackend>(
        &mut self,
        ring: &mut Ring,
        mem: &M,
        size: Option<WinSize>,
    ) -> Result<Turn, ChainError> {
        let mut segments = VecDeque::new();
        let mut more = true;
        for _ in 0..ring.size() {
            if ring.pop(mem, &mut segments)?.is_none() {
                more = ring.allow_kicks(mem)?;
                break;
            }
            let (header, head) = read_header(mem, &mut segments)?;
            self.obey(header, size);
            if let Some(head) = head {
                ring.complete(mem, head, 0)?;
            }
        }
        Ok(Turn { signal: ring.take_signal(mem)?, more })
    }

    fn obey(&mut self, [id0, id1, id2, id3, event0, event1, value0, value1]: [u8; HEADER], size: Option<WinSize>) {
        let port = u32::from_le_bytes([id0, id1, id2, id3]);
        let value = u16::from_le_bytes([value0, value1]);
        match (u16::from_le_bytes([event0, event1]), port, value) {
            (event::DEVICE_READY, _, 1) => {
                self.device_ready = true;
                (0..PORTS).for_each(|port| self.queue(Message::new(port, event::PORT_ADD, 1)));
            }
            (event::PORT_READY, 0, 1) => {
                self.stdio_ready = true;
                self.queue(Message::new(0, event::CONSOLE_PORT, 1));
                self.queue(Message::new(0, event::PORT_OPEN, 1));
                if let Some(size) = size {
                    self.resized(size);
                }
                if self.input_ended {
                    self.queue(Message::new(0, event::PORT_OPEN, 0));
                }
            }
            (event::PORT_READY, 1, 1) => self.queue(Message::new(1, event::PORT_OPEN, 1)),
            (event::PORT_READY | event::DEVICE_READY, ..) => {
                log::warn!("virtio-console: the driver could not set up the device or its port {port}");
            }
            // The driver opening and closing its side needs no answer: its buffers say when it wants data.
            _ => {}
        }
    }

    /// Places waiting messages in the driver's buffers.
    pub fn send<M: GuestMemoryBackend>(&mut self, mem: &M) -> Result<Turn, ChainError> {
        let Some(ring) = self.to_driver.as_mut() else {
            return Ok(Turn::default());
        };
        let mut more = false;
        let mut segments = VecDeque::new();
        while let Some(message) = self.waiting.front() {
            if ring.pop(mem, &mut segments)?.is_none() {
                more = ring.allow_kicks(mem)?;
                break;
            }
            let (bytes, len) = message.bytes();
            let head = write_message(mem, &mut segments, &bytes[..len])?;
            self.waiting.pop_front();
            ring.complete(mem, head, len as u32)?;
        }
        Ok(Turn { signal: ring.take_signal(mem)?, more })
    }
}

/// Reads a message's header from one chain, and empties `segments`. The head is that of the chain.
fn read_header<M: GuestMemoryBackend>(
    mem: &M,
    segments: &mut VecDeque<Segment>,
) -> Result<([u8; HEADER], Option<u16>), ChainError> {
    let mut header = [0; HEADER];
    let mut filled = 0;
    let mut head = None;
    for segment in segments.drain(..) {
        let count = segment.len.min(HEADER - filled);
        mem.read_slice(&mut header[filled..filled + count], segment.addr)?;
        filled += count;
        head = head.or(segment.ends);
    }
    if filled < HEADER { Err(ChainError::ControlSize(filled)) } else { Ok((header, head)) }
}

/// Writes a message into one chain, and empties `segments`; the chain's head.
fn write_message<M: GuestMemoryBackend>(
    mem: &M,
    segments: &mut VecDeque<Segment>,
    bytes: &[u8],
) -> Result<u16, ChainError> {
    let room = segments.iter().map(|segment| segment.len).sum();
    let mut written = 0;
    let mut head = None;
    for segment in segments.drain(..) {
        let count = segment.len.min(bytes.len() - written);
        mem.write_slice(&bytes[written..written + count], segment.addr)?;
        written += count;
        head = head.or(segment.ends);
    }
    head.filter(|_| written == bytes.len()).ok_or(ChainError::ControlSize(room))
}
