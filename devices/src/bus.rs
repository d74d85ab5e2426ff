//! Port and memory-mapped I/O buses: address ranges to devices.
//!
//! Who calls it: the VMM fills a [`Bus`] while it builds the machine (`insert` needs `&mut`), then shares it read-only
//! with the vCPU threads, whose look-ups take no lock but the device's own.
//! Invariant: ranges never overlap and are sorted, so one binary search decides. An access that no device claims
//! reads all-ones (what a floating bus gives), drops writes, and is counted.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A register file on a bus. `offset` is relative to the start of the range that the device was inserted at;
/// `data` never reaches past the end of that range, and is never empty.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset`; every byte of `data` must be set.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// How a device is held by a bus: shared between vCPU threads and the event loop.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Locks a device, whether or not an earlier holder panicked: a register file has no state that a half-done access
/// could make unsound, and one broken vCPU thread must not take the VMM's shutdown path with it.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which address space a bus decodes; only names it in errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusKind {
    /// `in`/`out` ports, 16 bits of address.
    Pio,
    /// Guest-physical addresses outside of RAM.
    Mmio,
}

impl fmt::Display for BusKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BusKind::Pio => "port",
            BusKind::Mmio => "MMIO",
        })
    }
}

/// Why a device can't be inserted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Two devices claim the same address.
    #[error("{kind} range {start:#x}+{len:#x} of {name} overlaps {other_start:#x}+{other_len:#x} of {other}")]
    Overlap {
        /// The bus.
        kind: BusKind,
        /// The device that was to be inserted.
        name: &'static str,
        /// Its first address.
        start: u64,
        /// Its length.
        len: u64,
        /// The device that is there already.
        other: &'static str,
        /// The other's first address.
        other_start: u64,
        /// The other's length.
        other_len: u64,
    },
    /// A range that is empty or ends past the address space.
    #[error("{kind} range {start:#x}+{len:#x} of {name} is empty or passes the end of the address space")]
    BadRange {
        /// The bus.
        kind: BusKind,
        /// The device that was to be inserted.
        name: &'static str,
        /// Its first address.
        start: u64,
        /// Its length.
        len: u64,
    },
}

struct Slot {
    start: u64,
    len: u64,
    name: &'static str,
    device: SharedDevice,
}

/// Accesses that no device claimed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnclaimedCounts {
    /// Reads, answered with all-ones.
    pub reads: u64,
    /// Writes, dropped.
    pub writes: u64,
}

/// One address space's decoder.
pub struct Bus {
    kind: BusKind,
    slots: Vec<Slot>,
    unclaimed_reads: AtomicU64,
    unclaimed_writes: AtomicU64,
}

impl Bus {
    /// An empty bus.
    pub fn new(kind: BusKind) -> Bus {
        Bus { kind, slots: Vec::new(), unclaimed_reads: AtomicU64::new(0), unclaimed_writes: AtomicU64::new(0) }
    }

    /// Gives `start .. start + len` to `device`. `name` appears in errors and in [`Bus::ranges`].
    pub fn insert(&mut self, name: &'static str, start: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let kind = self.kind;
        let space_end: u64 = match kind {
            BusKind::Pio => 0x1_0000,
            BusKind::Mmio => u64::MAX,
        };
        let end = start.checked_add(len).filter(|end| len > 0 && *end <= space_end);
        let Some(end) = end else {
            return Err(BusError::BadRange { kind, name, start, len });
        };
        let at = self.slots.partition_point(|slot| slot.start < start);
        let before = at.checked_sub(1).and_then(|i| self.slots.get(i)).filter(|s| s.start + s.len > start);
        let after = self.slots.get(at).filter(|s| s.start < end);
        if let Some(other) = before.or(after) {
            return Err(BusError::Overlap {
                kind,
                name,
                start,
                len,
                other: other.name,
                other_start: other.start,
                other_len: other.len,
            });
        }
        self.slots.insert(at, Slot { start, len, name, device });
        Ok(())
    }

    /// Every claimed range in order of address: name, start, length.
    pub fn ranges(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        self.slots.iter().map(|slot| (slot.name, slot.start, slot.len))
    }

    /// The device at `addr`, and the bytes from `addr` to the end of its range.
    fn find(&self, addr: u64) -> Option<(&Slot, u64)> {
        let at = self.slots.partition_point(|slot| slot.start <= addr).checked_sub(1)?;
        let slot = self.slots.get(at)?;
        let left = (slot.start + slot.len).checked_sub(addr).filter(|left| *left > 0)?;
        Some((slot, left))
    }

    /// A guest read. Bytes past the end of the device's range read all-ones. True if a device answered.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        if data.is_empty() {
            return false;
        }
        let Some((slot, left)) = self.find(addr) else {
            self.unclaimed_reads.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let len = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        lock(&slot.device).read(addr - slot.start, &mut data[..len]);
        true
    }

    /// A guest write. Bytes past the end of the device's range are dropped. True if a device took it.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        if data.is_empty() {
            return false;
        }
        let Some((slot, left)) = self.find(addr) else {
            self.unclaimed_writes.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let len = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        lock(&slot.device).write(addr - slot.start, &data[..len]);
        true
    }

    /// How many accesses no device claimed so far.
    pub fn unclaimed(&self) -> UnclaimedCounts {
        UnclaimedCounts {
            reads: self.unclaimed_reads.load(Ordering::Relaxed),
            writes: self.unclaimed_writes.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("kind", &self.kind).field("ranges", &self.ranges().collect::<Vec<_>>()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Ram([u8; 8]);

    impl BusDevice for Ram {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            let at = offset as usize;
            data.copy_from_slice(&self.0[at..at + data.len()]);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            let at = offset as usize;
            self.0[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn ram() -> SharedDevice {
        Arc::new(Mutex::new(Ram::default()))
    }

    #[test]
    fn finds_the_device_by_address_and_clips_at_its_end() {
        let mut bus = Bus::new(BusKind::Mmio);
        bus.insert("b", 0x100, 8, ram()).unwrap();
        bus.insert("a", 0x10, 8, ram()).unwrap();
        assert!(bus.write(0x106, &[1, 2, 3, 4]));
        let mut data = [0; 4];
        assert!(bus.read(0x106, &mut data));
        assert_eq!(data, [1, 2, 0xff, 0xff]);
        assert_eq!(bus.ranges().map(|r| r.0).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn unknown_addresses_read_all_ones_and_are_counted() {
        let mut bus = Bus::new(BusKind::Pio);
        bus.insert("a", 0x10, 8, ram()).unwrap();
        for addr in [0, 0xf, 0x18, 0xffff, u64::MAX] {
            let mut data = [0; 4];
            assert!(!bus.read(addr, &mut data));
            assert_eq!(data, [0xff; 4]);
            assert!(!bus.write(addr, &data));
        }
        assert_eq!(bus.unclaimed(), UnclaimedCounts { reads: 5, writes: 5 });
        assert!(!bus.read(0x10, &mut []));
    }

    #[test]
    fn overlaps_are_refused_from_either_side() {
        let mut bus = Bus::new(BusKind::Pio);
        bus.insert("mid", 0x10, 8, ram()).unwrap();
        for (start, len) in [(0x10, 8), (0xf, 2), (0x17, 1), (0x8, 0x20), (0x12, 1)] {
            let err = bus.insert("new", start, len, ram()).unwrap_err();
            assert!(matches!(err, BusError::Overlap { other: "mid", .. }), "{err}");
        }
        bus.insert("below", 0x8, 8, ram()).unwrap();
        bus.insert("above", 0x18, 8, ram()).unwrap();
    }

    #[test]
    fn bad_ranges_are_refused() {
        let mut pio = Bus::new(BusKind::Pio);
        assert!(matches!(pio.insert("x", 0x10, 0, ram()), Err(BusError::BadRange { .. })));
        assert!(matches!(pio.insert("x", 0xfff9, 8, ram()), Err(BusError::BadRange { .. })));
        pio.insert("x", 0xfff8, 8, ram()).unwrap();
        let mut mmio = Bus::new(BusKind::Mmio);
        assert!(matches!(mmio.insert("x", u64::MAX - 3, 8, ram()), Err(BusError::BadRange { .. })));
    }
}
