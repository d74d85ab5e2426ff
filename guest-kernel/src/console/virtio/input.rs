//! The receive queue: standard input.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use vcpu_sched::events::WaitReason;

use super::QUEUE_STDIN;
use super::mmio::{DeviceError, Registers};
use super::queue::{Piece, Queue};
use crate::mm::PhysAddr;
use crate::mm::frame;
use crate::mm::user::{self, Fault};
use crate::sync::{Mutex, SpinLock, WaitQueue};

/// Buffers given to the device, 16 KiB each: a pipe's worth at once.
const BUFFERS: usize = 4;
const ORDER: usize = 2;
const BUFFER_SIZE: u32 = 16 << 10;

/// A buffer with received bytes.
struct Received {
    base: PhysAddr,
    start: u32,
    end: u32,
}

struct State {
    queue: Queue,
    /// Base of the buffer by descriptor.
    posted: Vec<PhysAddr>,
    received: VecDeque<Received>,
    buffers: usize,
}

/// Standard input.
pub struct Input {
    /// Guards the queue and the received buffers.
    state: SpinLock<State>,
    /// One reader at a time takes bytes, so that each gets a connected piece.
    order: Mutex<()>,
    waiters: WaitQueue,
    wanted: AtomicBool,
    ended: AtomicBool,
}

impl Input {
    /// An idle stream.
    pub fn new(queue: Queue) -> Self {
        Self {
            state: SpinLock::new(State {
                queue,
                posted: vec![PhysAddr(0); usize::from(super::queue::SIZE)],
                received: VecDeque::with_capacity(BUFFERS),
                buffers: 0,
            }),
            order: Mutex::new(()),
            waiters: WaitQueue::of(WaitReason::Io),
            wanted: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    /// Registers the queue with the device.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn set_up(&self, registers: &Registers, index: u16) -> Result<(), DeviceError> {
        let mut s = self.state.lock();
        s.queue.want_interrupt(true);
        registers.set_up_queue(index, &s.queue)
    }

    /// Gives the device buffers, once somebody wants input.
    fn want(&self, registers: &Registers) {
        if self.wanted.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut s = self.state.lock();
        while s.buffers < BUFFERS {
            let Ok(base) = frame::alloc_block(ORDER, false) else { break };
            s.buffers += 1;
            s.post(base);
        }
        if s.buffers == 0 {
            // Out of memory: try again at the next read.
            self.wanted.store(false, Ordering::Relaxed);
        }
        if s.queue.must_notify() {
            registers.notify(QUEUE_STDIN);
        }
    }

    /// The device has interrupted.
    pub fn interrupt(&self) {
        let mut s = self.state.lock();
        if !s.queue.has_used() {
            return;
        }
        loop {
            s.collect();
            s.queue.want_interrupt(true);
            if !s.queue.has_used() {
                break;
            }
        }
        drop(s);
        self.waiters.wake_all();
    }

    /// The host's side is closed; what has arrived stays.
    pub fn end(&self) {
        // Its last bytes were placed before the message.
        self.state.lock().collect();
        self.ended.store(true, Ordering::Release);
    }

    /// Moves received bytes by `put(kernel bytes, position) -> done?`.
    fn take(
        &self,
        registers: &Registers,
        max: usize,
        mut put: impl FnMut(&[u8], usize) -> Result<(), Fault>,
    ) -> Result<usize, Fault> {
        self.want(registers);
        let _order = self.order.lock();
        let mut done = 0;
        while done < max {
            let Some(mut r) = self.state.lock().received.pop_front() else { break };
            let n = (max - done).min((r.end - r.start) as usize);
            // SAFETY: the buffer is ours while it is off the list; start and end are inside it.
            let bytes =
                unsafe { core::slice::from_raw_parts(PhysAddr(r.base.0 + u64::from(r.start)).as_ptr::<u8>(), n) };
            let result = put(bytes, done);
            if result.is_ok() {
                r.start += n as u32;
                done += n;
            }
            let mut s = self.state.lock();
            if r.start < r.end {
                s.received.push_front(r);
            } else {
                s.post(r.base);
                if s.queue.must_notify() {
                    registers.notify(QUEUE_STDIN);
                }
            }
            drop(s);
            match result {
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
                Ok(()) => {}
            }
        }
        Ok(done)
    }

    /// See `console::read_available`.
    pub fn read_available(&self, registers: &Registers, buf: &mut [u8]) -> usize {
        let max = buf.len();
        self.take(registers, max, |bytes, at| {
            buf[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
        .unwrap_or(0)
    }

    /// See `console::read_user`.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn read_user(&self, registers: &Registers, addr: u64, len: usize) -> Result<usize, Fault> {
        self.take(registers, len, |bytes, at| user::write_bytes(addr + at as u64, bytes))
    }

    /// Whether bytes are there; asks the device for some.
    pub fn readable(&self, registers: &Registers) -> bool {
        self.want(registers);
        !self.state.lock().received.is_empty()
    }

    /// Whether nothing more will come.
    pub fn at_eof(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Woken by arrival and end.
    pub fn queue(&self) -> &WaitQueue {
        &self.waiters
    }
}

impl State {
    fn post(&mut self, base: PhysAddr) {
        if let Some(head) = self.queue.offer(&[Piece { addr: base.0, len: BUFFER_SIZE }], true) {
            self.posted[usize::from(head)] = base;
        }
    }

    fn collect(&mut self) {
        while let Some((head, len)) = self.queue.take_used() {
            let base = self.posted[usize::from(head)];
            // The device's word on the length is not trusted beyond the buffer.
            let end = len.min(BUFFER_SIZE);
            if end == 0 {
                self.post(base);
            } else {
                self.received.push_back(Received { base, start: 0, end });
            }
        }
    }
}
