//! The reading side of a guest's trace ring (`vcpu_sched::directory::RingHeader`).
//!
//! The VMM opens the rings that a directory lists and drains them from vCPU threads. Invariants: everything in the ring is the
//! guest's word: the place is checked once against the guest's RAM, capacity and TAIL are kept on this side, and a HEAD that
//! can't be is an error. One call reads at most `capacity` records, so it ends however the guest writes meanwhile; what it reads
//! of a lying guest is nonsense, and only nonsense.

use std::sync::atomic::Ordering;

use vcpu_sched::directory::{Entry, RingHeader};
use vcpu_sched::events::{RECORD_BYTES, Record};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

/// What is wrong with a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Not the magic number.
    #[error("no ring at {address:#x}: magic number {found:#018x}")]
    Magic {
        /// Where.
        address: u64,
        /// What is there.
        found: u64,
    },
    /// Not a power of two, or out of range.
    #[error("a capacity of {0} records, not a power of two from 64 to 2^20")]
    Capacity(u32),
    /// Not aligned, or not wholly in RAM, or larger than its entry says.
    #[error("{len} bytes at {address:#x} are not an aligned piece of guest RAM that the directory lists")]
    Place {
        /// Where.
        address: u64,
        /// How much the capacity needs.
        len: u64,
    },
    /// More records than fit.
    #[error("HEAD {head} is {ahead} records ahead of TAIL, the capacity is {capacity}")]
    Head {
        /// What the guest wrote.
        head: u64,
        /// The difference.
        ahead: u64,
        /// The most.
        capacity: u32,
    },
    /// Guest memory can't be reached.
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
}

/// A ring that passed the checks.
#[derive(Debug)]
pub struct TraceRing {
    base: u64,
    capacity: u32,
    overwrites: bool,
    tail: u64,
    lost: u64,
}

/// What one [`TraceRing::drain`] found beside the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Records that were lost after the ones that were read, since the drain before.
    pub lost: u64,
}

impl TraceRing {
    /// Checks the ring that a directory entry tells of.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn open<M: GuestMemoryBackend>(mem: &M, entry: &Entry) -> Result<Self, RingError> {
        let address = entry.address;
        let place = |len| RingError::Place { address, len };
        let inside = |len: u64| {
            let fits = address.checked_add(len).is_some() && len <= entry.len && address.is_multiple_of(8);
            fits && usize::try_from(len).is_ok_and(|len| mem.check_range(GuestAddress(address), len))
        };
        if !inside(RingHeader::BYTES as u64) {
            return Err(place(RingHeader::BYTES as u64));
        }
        let found = load_u64(mem, address, RingHeader::MAGIC_AT)?;
        if found != RingHeader::MAGIC {
            return Err(RingError::Magic { address, found });
        }
        let capacity: u32 = mem.load(at(address, RingHeader::CAPACITY), Ordering::Relaxed)?;
        if !capacity.is_power_of_two() || !RingHeader::CAPACITIES.contains(&capacity) {
            return Err(RingError::Capacity(capacity));
        }
        let len = RingHeader::BYTES as u64 + u64::from(capacity) * RECORD_BYTES as u64;
        if !inside(len) {
            return Err(place(len));
        }
        let flags: u32 = mem.load(at(address, RingHeader::FLAGS), Ordering::Relaxed)?;
        let overwrites = flags & RingHeader::OVERWRITES != 0;
        let mut ring = Self { base: address, capacity, overwrites, tail: 0, lost: 0 };
        if !overwrites {
            ring.tail = load_u64(mem, address, RingHeader::TAIL)?;
            mem.store(flags | RingHeader::DRAINED, at(address, RingHeader::FLAGS), Ordering::Relaxed)?;
        }
        Ok(ring)
    }

    /// Whether the guest overwrites the oldest records: such a ring is read once, by [`TraceRing::last`].
    pub fn overwrites(&self) -> bool {
        self.overwrites
    }

    /// Appends the records that have come since the last call to `out`, and makes room for as many.
    ///
    /// # Errors
    /// [`RingError::Head`]: the guest broke the ring; it is to be read no more.
    pub fn drain<M: GuestMemoryBackend>(&mut self, mem: &M, out: &mut Vec<Record>) -> Result<Drained, RingError> {
        if self.overwrites {
            return Ok(Drained::default());
        }
        // Acquire: the records before HEAD are there.
        let head: u64 = mem.load(at(self.base, RingHeader::HEAD), Ordering::Acquire)?;
        let lost = load_u64(mem, self.base, RingHeader::LOST)?;
        let ahead = head.wrapping_sub(self.tail);
        if ahead > u64::from(self.capacity) {
            return Err(RingError::Head { head, ahead, capacity: self.capacity });
        }
        self.copy(mem, self.tail, ahead as u32, out)?;
        self.tail = head;
        // Release: the records are read before their places are given back.
        mem.store(head, at(self.base, RingHeader::TAIL), Ordering::Release)?;
        let since = lost.wrapping_sub(self.lost);
        self.lost = lost;
        Ok(Drained { lost: since })
    }

    /// The last records of a ring that overwrites, up to its capacity. Its CPU has stopped.
    ///
    /// # Errors
    /// [`RingError::Memory`].
    pub fn last<M: GuestMemoryBackend>(&self, mem: &M, out: &mut Vec<Record>) -> Result<Drained, RingError> {
        let head: u64 = mem.load(at(self.base, RingHeader::HEAD), Ordering::Acquire)?;
        let count = head.min(u64::from(self.capacity)) as u32;
        self.copy(mem, head - u64::from(count), count, out)?;
        Ok(Drained::default())
    }

    /// Copies `count` records, at most `capacity`, from number `first` on.
    fn copy<M: GuestMemoryBackend>(
        &self,
        mem: &M,
        first: u64,
        count: u32,
        out: &mut Vec<Record>,
    ) -> Result<(), RingError> {
        let start = first as u32 & (self.capacity - 1);
        let before_end = count.min(self.capacity - start);
        for (start, count) in [(start, before_end), (0, count - before_end)] {
            let mut bytes = vec![0; count as usize * RECORD_BYTES];
            let offset = RingHeader::BYTES + start as usize * RECORD_BYTES;
            mem.read_slice(&mut bytes, at(self.base, offset))?;
            let (records, _) = bytes.as_chunks::<RECORD_BYTES>();
            out.extend(records.iter().map(Record::from_bytes));
        }
        Ok(())
    }
}

/// An address in a ring whose range has been checked, so that this can't wrap.
fn at(base: u64, offset: usize) -> GuestAddress {
    GuestAddress(base.wrapping_add(offset as u64))
}

fn load_u64<M: GuestMemoryBackend>(mem: &M, base: u64, offset: usize) -> Result<u64, GuestMemoryError> {
    mem.load(at(base, offset), Ordering::Relaxed)
}
