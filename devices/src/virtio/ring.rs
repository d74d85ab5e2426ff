//! One split ring as the data plane uses it, and the buffers that are in flight between a ring and a file.
//!
//! virtio-queue does the ring arithmetic; this adds what it leaves out: checked chains, VIRTQ_AVAIL_F_NO_INTERRUPT, and
//! positions inside of a chain that survive a short read or write. Called by the event loop with the device's lock held.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use libc::iovec;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::chain::{ChainError, Direction, Segment, walk};

/// Buffers handed to one readv/writev: half of UIO_MAXIOV (linux/uio.h), since a buffer that crosses two memory regions
/// takes two entries.
const MAX_IOVECS: usize = 512;

/// An active queue.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    direction: Direction,
    unsignalled: bool,
}

impl Ring {
    /// Takes over a queue that the transport has validated.
    pub fn new(queue: Queue, direction: Direction) -> Ring {
        Ring { queue, direction, unsignalled: false }
    }

    /// The queue's size, which bounds the chains in it.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Moves the next available chain into `out`; its length in bytes, or `None` if there is none.
    pub fn pop<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        out: &mut VecDeque<Segment>,
    ) -> Result<Option<u64>, ChainError> {
        let Some(head) = self.queue.iter(mem)?.next().map(|chain| chain.head_index()) else {
            return Ok(None);
        };
        walk(mem, &self.queue, head, self.direction, out).map(Some)
    }

    /// Returns a chain to the driver; [`Ring::take_signal`] tells later whether it wants to hear of it.
    pub fn complete<M: GuestMemoryBackend>(&mut self, mem: &M, head: u16, len: u32) -> Result<(), ChainError> {
        self.queue.add_used(mem, head, len)?;
        self.unsignalled = true;
        Ok(())
    }

    /// True once per batch of completions, if the driver wants an interrupt for it.
    pub fn take_signal<M: GuestMemoryBackend>(&mut self, mem: &M) -> Result<bool, ChainError> {
        if !std::mem::take(&mut self.unsignalled) {
            return Ok(false);
        }
        if self.queue.event_idx_enabled() {
            return Ok(self.queue.needs_notification(mem)?);
        }
        // The used index must be visible before we read what the driver asks for (virtio 1.2, 2.7.7.2).
        fence(Ordering::SeqCst);
        let flags: u16 = mem.load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// We are looking at the ring: kicks are wasted on us.
    pub fn suppress_kicks<M: GuestMemoryBackend>(&mut self, mem: &M) -> Result<(), ChainError> {
        Ok(self.queue.disable_notification(mem)?)
    }

    /// We stop looking. True if something arrived meanwhile, so that the caller must look again.
    pub fn allow_kicks<M: GuestMemoryBackend>(&mut self, mem: &M) -> Result<bool, ChainError> {
        Ok(self.queue.enable_notification(mem)?)
    }

    /// Whether a chain is available.
    pub fn has_available<M: GuestMemoryBackend>(&self, mem: &M) -> Result<bool, ChainError> {
        Ok(self.queue.avail_idx(mem, Ordering::Acquire)?.0 != self.queue.next_avail())
    }
}

/// Chains taken from a ring and not yet returned: a queue of buffers with a position in the first.
#[derive(Debug, Default)]
pub struct InFlight {
    /// The buffers, in ring order.
    pub segments: VecDeque<Segment>,
    /// Bytes of the first chain that are done (its used length, in a receive queue).
    done: u32,
}

impl InFlight {
    /// Nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Room for another chain in one batch.
    pub fn has_room(&self) -> bool {
        self.segments.len() < MAX_IOVECS / 2
    }

    /// Bytes still to be moved.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len as u64).sum()
    }

    /// Gives up everything, after a reset.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.done = 0;
    }

    /// Runs `io` with the first buffers, at most `max` bytes in all, as host memory. The pointers are valid during the call only.
    /// `io` isn't called, and `None` is returned, when there isn't a single byte.
    pub fn with_iovecs<M: GuestMemoryBackend, R>(
        &self,
        mem: &M,
        max: usize,
        io: impl FnOnce(&[iovec]) -> R,
    ) -> Result<Option<R>, ChainError> {
        let mut left = max;
        let mut guards = Vec::with_capacity(self.segments.len().min(MAX_IOVECS));
        'fill: for segment in &self.segments {
            for slice in GuestMemoryBackend::get_slices(mem, segment.addr, segment.len.min(left)) {
                let slice: VolatileSlice<'_, _> = slice?;
                if guards.len() == MAX_IOVECS {
                    break 'fill;
                }
                left -= slice.len();
                guards.push(slice.ptr_guard_mut());
            }
            if left == 0 {
                break;
            }
        }
        if guards.is_empty() {
            return Ok(None);
        }
        let iovecs: Vec<iovec> =
            guards.iter().map(|guard| iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
        Ok(Some(io(&iovecs)))
    }

    /// `count` bytes were moved; `finish(head, length of the chain)` is called for every chain that is done by it.
    /// Chains without a byte at the front are done by any call.
    pub fn advance(
        &mut self,
        mut count: usize,
        mut finish: impl FnMut(u16, u32) -> Result<(), ChainError>,
    ) -> Result<(), ChainError> {
        while let Some(front) = self.segments.front_mut() {
            let step = front.len.min(count);
            count -= step;
            front.len -= step;
            front.addr = GuestAddress(front.addr.0 + step as u64);
            self.done = self.done.wrapping_add(step as u32);
            if front.len > 0 {
                break;
            }
            let ends = front.ends;
            self.segments.pop_front();
            if let Some(head) = ends {
                finish(head, std::mem::take(&mut self.done))?;
            }
        }
        Ok(())
    }

    /// Ends the first chain early if a byte of it is done: a receive buffer that is not full goes back all the same.
    pub fn cut_front(&mut self, mut finish: impl FnMut(u16, u32) -> Result<(), ChainError>) -> Result<(), ChainError> {
        if self.done == 0 {
            return Ok(());
        }
        while let Some(segment) = self.segments.pop_front() {
            if let Some(head) = segment.ends {
                return finish(head, std::mem::take(&mut self.done));
            }
        }
        Ok(())
    }

    /// Tells dirty tracking that the first `count` bytes were written behind its back.
    pub fn mark_dirty<M: GuestMemoryBackend>(&self, mem: &M, count: usize) -> Result<(), ChainError> {
        let mut left = count;
        for segment in &self.segments {
            for slice in GuestMemoryBackend::get_slices(mem, segment.addr, segment.len.min(left)) {
                let slice = slice?;
                slice.bitmap().mark_dirty(0, slice.len());
                left -= slice.len();
            }
            if left == 0 {
                break;
            }
        }
        Ok(())
    }
}
