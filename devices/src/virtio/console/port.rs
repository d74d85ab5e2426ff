//! The data queues of the console: an output (transmit queue to file) and the input (file to receive queue).
//!
//! Invariant: what a ring has given and not got back is in `flight`, with the exact position of the next byte; so a
//! short write, a full pipe or a small read loses and repeats nothing.

use std::io;

use vm_memory::GuestMemoryBackend;

use super::super::chain::ChainError;
use super::super::ring::{InFlight, Ring};
use super::super::stream::{InputStream, Interest, OutputStream, ReadOutcome, Written};
use super::TURN_BUDGET;

/// What looking at one descriptor costs of a turn's budget, in bytes; it bounds a flood of empty buffers.
const SEGMENT_COST: usize = 64;

/// A transmit queue and its file.
#[derive(Debug)]
pub struct Output {
    stream: OutputStream,
    ring: Option<Ring>,
    flight: InFlight,
    /// The file would have blocked.
    blocked: bool,
}

/// What a turn of transmitting asks for.
#[derive(Debug, Default)]
pub struct Turn {
    /// Interrupt the driver.
    pub signal: bool,
    /// The budget ran out before the work did.
    pub more: bool,
}

impl Output {
    pub fn new(stream: OutputStream) -> Output {
        Output { stream, ring: None, flight: InFlight::default(), blocked: false }
    }

    /// Activation, stop or reset: what was in flight belongs to rings that are no more.
    pub fn set_ring(&mut self, ring: Option<Ring>) {
        self.ring = ring;
        self.flight.clear();
        self.blocked = false;
    }

    pub fn interest(&self) -> Interest {
        if self.blocked { self.stream.interest() } else { Interest::Idle }
    }

    pub fn error(&self) -> Option<&io::Error> {
        self.stream.error()
    }

    pub fn bytes_left(&self) -> u64 {
        self.flight.bytes()
    }

    /// Whether anything is queued. An unreadable ring has nothing to give.
    pub fn has_work<M: GuestMemoryBackend>(&self, mem: &M) -> bool {
        !self.flight.is_empty() || self.ring.as_ref().is_some_and(|ring| ring.has_available(mem).unwrap_or(false))
    }

    /// Writes what is there: all available chains in one writev, as often as the budget allows.
    pub fn transmit<M: GuestMemoryBackend>(&mut self, mem: &M) -> Result<Turn, ChainError> {
        let Some(ring) = self.ring.as_mut() else {
            return Ok(Turn::default());
        };
        let mut turn = Turn::default();
        let mut budget = TURN_BUDGET;
        self.blocked = false;
        ring.suppress_kicks(mem)?;
        loop {
            if budget == 0 {
                turn.more = true;
                break;
            }
            let before = self.flight.segments.len();
            while self.flight.has_room() && ring.pop(mem, &mut self.flight.segments)?.is_some() {}
            let new = self.flight.segments.len() - before;
            // The constant bounds a driver that flips its index under our eyes.
            budget = budget.saturating_sub((new + 1) * SEGMENT_COST);
            if self.flight.is_empty() {
                if ring.allow_kicks(mem)? {
                    ring.suppress_kicks(mem)?;
                    continue;
                }
                break;
            }
            let limit = self.stream.limit();
            let written = self.flight.with_iovecs(mem, limit, |iovecs| self.stream.write(iovecs))?;
            let count = match written {
                Some(Written::Bytes(count)) => {
                    budget = budget.saturating_sub(count);
                    count
                }
                Some(Written::WouldBlock) => {
                    self.blocked = true;
                    break;
                }
                Some(Written::Closed) => usize::MAX,
                None => 0,
            };
            // docs/abi.md: a used length of 1 tells our driver that the bytes went nowhere. Others ignore it, since
            // nothing is written into a transmit chain.
            let discarded = u32::from(self.stream.error().is_some());
            self.flight.advance(count, |head, _| ring.complete(mem, head, discarded))?;
        }
        turn.signal = ring.take_signal(mem)?;
        Ok(turn)
    }
}

/// Stdin and its receive queue.
#[derive(Debug)]
pub struct Input {
    stream: InputStream,
    ring: Option<Ring>,
    flight: InFlight,
    has_buffers: bool,
    ended: bool,
}

impl Input {
    pub fn new(stream: InputStream) -> Input {
        Input { stream, ring: None, flight: InFlight::default(), has_buffers: false, ended: false }
    }

    pub fn set_ring(&mut self, ring: Option<Ring>) {
        self.ring = ring;
        self.flight.clear();
        self.has_buffers = false;
    }

    pub fn stream(&mut self) -> &mut InputStream {
        &mut self.stream
    }

    /// The end of the file was read.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Nothing is wanted of the file while the guest has nowhere to put it.
    pub fn interest(&self) -> Interest {
        if self.has_buffers && !self.ended { self.stream.interest() } else { Interest::Idle }
    }

    /// Looks whether the guest has given buffers, and asks for a kick if not.
    pub fn refresh<M: GuestMemoryBackend>(&mut self, mem: &M) -> Result<(), ChainError> {
        let Some(ring) = self.ring.as_mut() else {
            return Ok(());
        };
        self.has_buffers = !self.flight.is_empty() || ring.has_available(mem)?;
        if self.has_buffers {
            ring.suppress_kicks(mem)?;
        } else {
            self.has_buffers = ring.allow_kicks(mem)?;
        }
        Ok(())
    }

    /// One read into the available buffers. True if the driver wants an interrupt.
    pub fn receive<M: GuestMemoryBackend>(&mut self, mem: &M) -> Result<bool, ChainError> {
        if self.ended {
            return Ok(false);
        }
        let Some(ring) = self.ring.as_mut() else {
            return Ok(false);
        };
        while self.flight.has_room() {
            match ring.pop(mem, &mut self.flight.segments)? {
                None => break,
                Some(0) => return Err(ChainError::Empty),
                Some(_) => {}
            }
        }
        match self.flight.with_iovecs(mem, TURN_BUDGET, |iovecs| self.stream.read(iovecs))? {
            Some(ReadOutcome::Bytes(count)) => {
                self.flight.mark_dirty(mem, count)?;
                // Chains in the order of the ring; the last one goes back as full as it is.
                self.flight.advance(count, |head, len| ring.complete(mem, head, len))?;
                self.flight.cut_front(|head, len| ring.complete(mem, head, len))?;
            }
            Some(ReadOutcome::End) => self.ended = true,
            Some(ReadOutcome::WouldBlock) | None => {}
        }
        let signal = ring.take_signal(mem)?;
        self.refresh(mem)?;
        Ok(signal)
    }
}
