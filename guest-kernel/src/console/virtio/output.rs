//! A transmit queue: standard output or standard error.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;

use vcpu_sched::events::WaitReason;

use super::mmio::{DeviceError, Registers};
use super::queue::{Piece, Queue, SIZE};
use crate::chaos::clock;
use crate::console::ConsoleError;
use crate::mm::address_space::Access;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::PAGE_SIZE;
use crate::mm::{PhysAddr, user};
use crate::sync::{IrqGuard, Mutex, SpinLock, WaitQueue};

/// Writes up to this size are copied and don't wait for the device.
const COPY_MAX: usize = 512;
/// Copy slots, in two frames.
const SLOTS: usize = 16;
/// Pieces of one request: 31 pages and a bit.
const PIECES: usize = 32;

/// What the device is working on, by head descriptor.
enum Request {
    /// Pages of a program, given back at the end.
    Pages(Vec<PhysAddr>, Arc<AtomicBool>),
    /// A copy slot.
    Slot(u8),
}

struct State {
    queue: Queue,
    requests: Vec<Option<Request>>,
    free_slots: ArrayVec<u8, SLOTS>,
    slots: PhysAddr,
    /// The host takes no more.
    closed: bool,
}

/// One output stream.
pub struct Output {
    /// Guards the queue and the requests.
    state: SpinLock<State>,
    /// Keeps the parts of one write together when several tasks write.
    order: Mutex<()>,
    waiters: WaitQueue,
}

impl Output {
    /// An idle stream.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(queue: Queue) -> Result<Self, OutOfMemory> {
        Ok(Self {
            state: SpinLock::new(State {
                queue,
                requests: (0..SIZE).map(|_| None).collect(),
                free_slots: (0..SLOTS as u8).collect(),
                slots: frame::alloc_block(1, false)?,
                closed: false,
            }),
            order: Mutex::new(()),
            waiters: WaitQueue::of(WaitReason::Io),
        })
    }

    /// Registers the queue with the device.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn set_up(&self, registers: &Registers, index: u16) -> Result<(), DeviceError> {
        let mut s = self.state.lock();
        s.queue.want_interrupt(false);
        registers.set_up_queue(index, &s.queue)
    }

    /// See `console::write_user`.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn write_user(
        &self,
        registers: &Registers,
        index: u16,
        addr: u64,
        len: usize,
        nonblock: bool,
    ) -> Result<usize, ConsoleError> {
        if self.is_closed() {
            return Err(ConsoleError::Closed);
        }
        if len <= COPY_MAX {
            let mut bytes = [0; COPY_MAX];
            user::read_bytes(&mut bytes[..len], addr).map_err(|_| ConsoleError::Fault)?;
            return self.write_copy(registers, index, &bytes[..len], nonblock).map(|()| len);
        }
        let _order = self.order.lock();
        let mut done = 0;
        while done < len {
            match self.write_pages(registers, index, addr + done as u64, len - done, nonblock) {
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Hands over as many pages as one request takes, and waits for them.
    fn write_pages(
        &self,
        registers: &Registers,
        index: u16,
        addr: u64,
        len: usize,
        nonblock: bool,
    ) -> Result<usize, ConsoleError> {
        let mut pieces = ArrayVec::<Piece, PIECES>::new();
        let mut frames = Vec::with_capacity(PIECES);
        let mut taken = 0;
        while taken < len && !pieces.is_full() {
            let at = addr + taken as u64;
            let offset = at & (PAGE_SIZE - 1);
            let n = ((PAGE_SIZE - offset) as usize).min(len - taken);
            match user::pin(at, Access::Read) {
                Ok(f) => {
                    pieces.push(Piece { addr: f.0 + offset, len: n as u32 });
                    frames.push(f);
                    taken += n;
                }
                Err(_) if taken > 0 => break,
                Err(_) => return Err(ConsoleError::Fault),
            }
        }
        let done = Arc::new(AtomicBool::new(false));
        let mut request = Some(Request::Pages(frames, done.clone()));
        let submitted = self.submit(registers, index, nonblock, |s| {
            s.reap();
            let head = s.queue.offer(&pieces, false)?;
            s.requests[usize::from(head)] = request.take();
            Some(())
        });
        if let Err(e) = submitted {
            release(request);
            return Err(e);
        }
        // The pages stay pinned until the device is done; the program must not change them before. A signal ends the wait,
        // not the transfer.
        let _ = self.waiters.wait_interruptible(None, || {
            if done.load(Ordering::Acquire) {
                return Some(());
            }
            let mut s = self.state.lock();
            s.queue.want_interrupt(true);
            s.reap();
            done.load(Ordering::Acquire).then_some(())
        });
        if self.state.lock().closed { Err(ConsoleError::Closed) } else { Ok(taken) }
    }

    /// Writes kernel bytes; waits for room.
    pub fn write_kernel(&self, registers: &Registers, index: u16, bytes: &[u8]) {
        for chunk in bytes.chunks(COPY_MAX) {
            let _ = self.write_copy(registers, index, chunk, false);
        }
    }

    fn write_copy(&self, registers: &Registers, index: u16, bytes: &[u8], nonblock: bool) -> Result<(), ConsoleError> {
        self.submit(registers, index, nonblock, |s| {
            if s.free_slots.is_empty() || s.queue.room() == 0 {
                s.reap();
            }
            let slot = s.free_slots.pop()?;
            let addr = s.slots.0 + u64::from(slot) * COPY_MAX as u64;
            // SAFETY: the slot is free and in our frames.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), PhysAddr(addr).as_ptr(), bytes.len()) };
            let Some(head) = s.queue.offer(&[Piece { addr, len: bytes.len() as u32 }], false) else {
                s.free_slots.push(slot);
                return None;
            };
            s.requests[usize::from(head)] = Some(Request::Slot(slot));
            Some(())
        })
    }

    /// Puts a request into the queue, which `offer` does if there is room; else waits for room. Tells the device if it must know.
    fn submit(
        &self,
        registers: &Registers,
        index: u16,
        nonblock: bool,
        mut offer: impl FnMut(&mut State) -> Option<()>,
    ) -> Result<(), ConsoleError> {
        let mut attempt = || {
            let mut s = self.state.lock();
            let offered = offer(&mut s);
            if offered.is_none() {
                s.queue.want_interrupt(true);
            }
            offered.map(|()| s.queue.must_notify())
        };
        let notify = match attempt() {
            Some(notify) => notify,
            None if nonblock => return Err(ConsoleError::WouldBlock),
            None => self.waiters.wait_interruptible(None, attempt)?,
        };
        if notify {
            registers.notify(index);
        }
        if clock::on() {
            self.settle();
        }
        Ok(())
    }

    /// Waits on the spot until the device has everything, so that nothing depends on when that is.
    fn settle(&self) {
        // All the while: else each look would be a point of chaos, and their number is the host's doing.
        let _irq = IrqGuard::new();
        loop {
            let mut s = self.state.lock();
            s.reap();
            if s.queue.room() == usize::from(SIZE) {
                return;
            }
            drop(s);
            core::hint::spin_loop();
        }
    }

    /// The device has interrupted: somebody waits.
    pub fn interrupt(&self) {
        let mut s = self.state.lock();
        if !s.queue.has_used() {
            return;
        }
        s.reap();
        s.queue.want_interrupt(false);
        drop(s);
        self.waiters.wake_all();
    }

    /// Whether the host takes no more; learned from what has come back so far.
    fn is_closed(&self) -> bool {
        let mut s = self.state.lock();
        s.reap();
        s.closed
    }

    /// Whether a small write would find room.
    pub fn writable(&self) -> bool {
        let mut s = self.state.lock();
        s.reap();
        let room = s.closed || (!s.free_slots.is_empty() && s.queue.room() > 0);
        if !room {
            s.queue.want_interrupt(true);
        }
        room
    }

    /// Woken when the device has given something back.
    pub fn queue(&self) -> &WaitQueue {
        &self.waiters
    }

    /// Waits until the device has everything.
    pub fn drain(&self) {
        self.waiters.wait_until(|| {
            let mut s = self.state.lock();
            s.queue.want_interrupt(true);
            s.reap();
            (s.queue.room() == usize::from(SIZE)).then_some(())
        });
    }
}

fn release(request: Option<Request>) {
    if let Some(Request::Pages(frames, _)) = request {
        frames.into_iter().for_each(frame::put);
    }
}

impl State {
    /// Takes back what the device is done with.
    fn reap(&mut self) {
        while let Some((head, len)) = self.queue.take_used() {
            // docs/abi.md: nothing is ever written into a transmit chain; a length says that the host's side is closed.
            self.closed |= len != 0;
            match self.requests[usize::from(head)].take() {
                Some(Request::Pages(frames, done)) => {
                    frames.into_iter().for_each(frame::put);
                    done.store(true, Ordering::Release);
                }
                Some(Request::Slot(slot)) => self.free_slots.push(slot),
                None => {}
            }
        }
    }
}
