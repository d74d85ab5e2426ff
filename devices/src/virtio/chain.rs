//! Descriptor chains, checked whole before a byte of them is used.
//!
//! virtio-queue's iterator ends silently where a chain is malformed; a device that must answer with
//! DEVICE_NEEDS_RESET has to know. Invariant: [`walk`] reads at most `queue size` descriptors, and every segment it
//! yields lies in guest RAM. (RAM is never unplugged, so that stays true while the chain is in flight.)

use std::collections::VecDeque;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

/// Bytes of one descriptor (virtio 1.2, 2.7.5).
const DESCRIPTOR_LEN: u64 = 16;

/// Who uses a chain's buffers. We accept no mixed chains: no queue of ours has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Transmit: the device reads.
    ToDevice,
    /// Receive: the device writes.
    ToDriver,
}

/// What is wrong with a chain or a ring.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// An index that the table doesn't have.
    #[error("descriptor index {index} in a queue of {size}")]
    Index {
        /// The index.
        index: u16,
        /// The queue's size.
        size: u16,
    },
    /// More descriptors than the queue has: a loop.
    #[error("a chain of more than {0} descriptors (a loop)")]
    Loop(u16),
    /// VIRTQ_DESC_F_INDIRECT without the feature.
    #[error("an indirect descriptor, which was not negotiated")]
    Indirect,
    /// A device-readable buffer in a receive queue or the reverse.
    #[error("a buffer of the wrong direction")]
    Direction,
    /// A buffer outside of guest RAM.
    #[error("a buffer at {addr:#x}+{len:#x}, which is not RAM")]
    NotRam {
        /// Guest-physical address.
        addr: u64,
        /// Length.
        len: u32,
    },
    /// Virtio 1.2, 2.7.5.2: at most 2^32 bytes.
    #[error("a chain of more than 4 GiB")]
    TooLong,
    /// A receive chain without room for a byte.
    #[error("a receive buffer of length 0")]
    Empty,
    /// A message that the device can't read or place.
    #[error("a control buffer of {0} bytes")]
    ControlSize(usize),
    /// The ring itself: bad index jump, or memory that can't be accessed.
    #[error("ring: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// Guest memory access.
    #[error("guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A contiguous guest-physical buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: GuestAddress,
    /// Bytes, at most 2^32 - 1.
    pub len: usize,
    /// Set on the last segment of a chain: the chain's head, to be returned when this segment is done.
    pub ends: Option<u16>,
}

/// Appends the chain that starts at `head` to `out` and returns its length in bytes. On an error `out` may hold a
/// part of the chain; the device has failed then, and drops it.
pub fn walk<M: GuestMemoryBackend>(
    mem: &M,
    queue: &Queue,
    head: u16,
    direction: Direction,
    out: &mut VecDeque<Segment>,
) -> Result<u64, ChainError> {
    let size = queue.size();
    let mut index = head;
    let mut total = 0_u64;
    for _ in 0..size {
        if index >= size {
            return Err(ChainError::Index { index, size });
        }
        let at = GuestAddress(queue.desc_table())
            .checked_add(u64::from(index) * DESCRIPTOR_LEN)
            .ok_or(ChainError::Index { index, size })?;
        let descriptor: Descriptor = mem.read_obj(at)?;
        if descriptor.refers_to_indirect_table() {
            return Err(ChainError::Indirect);
        }
        if descriptor.is_write_only() != (direction == Direction::ToDriver) {
            return Err(ChainError::Direction);
        }
        let (addr, len) = (descriptor.addr(), descriptor.len());
        if addr.checked_add(u64::from(len)).is_none() || !GuestMemoryBackend::check_range(mem, addr, len as usize) {
            return Err(ChainError::NotRam { addr: addr.raw_value(), len });
        }
        total += u64::from(len);
        if total > 1 << 32 {
            return Err(ChainError::TooLong);
        }
        let ends = (!descriptor.has_next()).then_some(head);
        if len > 0 || ends.is_some() {
            out.push_back(Segment { addr, len: len as usize, ends });
        }
        if ends.is_some() {
            return Ok(total);
        }
        index = descriptor.next();
    }
    Err(ChainError::Loop(size))
}
