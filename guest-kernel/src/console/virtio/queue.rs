//! A split virtqueue, driver side. Source: VIRTIO 1.2, 2.7.
//!
//! One frame holds all three parts. What the device writes is checked: an index or id out of range is ignored and logged,
//! never followed. The caller locks.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, Ordering, fence};

use crate::mm::PhysAddr;
use crate::mm::frame::{self, OutOfMemory};

/// Entries. 64 make all three parts fit one frame: 1024 + 134 + 518 bytes.
pub const SIZE: u16 = 64;
const DRIVER_OFFSET: u64 = 1024;
const DEVICE_OFFSET: u64 = 2048;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// One piece of a buffer.
#[derive(Clone, Copy)]
pub struct Piece {
    /// Physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// A queue.
pub struct Queue {
    frame: PhysAddr,
    event_idx: bool,
    free: Vec<u16>,
    /// Length of the chain that starts at each descriptor.
    chain: Vec<u8>,
    avail: u16,
    notified: u16,
    used: u16,
}

impl Queue {
    /// An empty queue.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(event_idx: bool) -> Result<Self, OutOfMemory> {
        Ok(Self {
            frame: frame::alloc_zeroed()?,
            event_idx,
            free: (0..SIZE).rev().collect(),
            chain: vec![0; usize::from(SIZE)],
            avail: 0,
            notified: 0,
            used: 0,
        })
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        SIZE
    }

    /// Descriptor, driver and device area.
    pub fn addresses(&self) -> (PhysAddr, PhysAddr, PhysAddr) {
        (self.frame, PhysAddr(self.frame.0 + DRIVER_OFFSET), PhysAddr(self.frame.0 + DEVICE_OFFSET))
    }

    fn word(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: inside our frame, aligned to 2; shared with the device, hence atomic.
        unsafe { &*PhysAddr(self.frame.0 + offset).as_ptr::<AtomicU16>() }
    }

    /// Descriptors that are free.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Offers a chain of pieces, all of them for the device to write or all to read. Returns its head, or `None` if there are
    /// too few descriptors.
    pub fn offer(&mut self, pieces: &[Piece], device_writes: bool) -> Option<u16> {
        if pieces.is_empty() || pieces.len() > self.free.len() {
            return None;
        }
        let table: *mut Descriptor = self.frame.as_ptr();
        let mut next = 0;
        let mut flags = if device_writes { F_WRITE } else { 0 };
        for p in pieces.iter().rev() {
            let i = self.free.pop()?;
            // SAFETY: `i` < SIZE; the descriptor is free, so the device doesn't read it.
            unsafe { table.add(usize::from(i)).write_volatile(Descriptor { addr: p.addr, len: p.len, flags, next }) };
            next = i;
            flags |= F_NEXT;
        }
        self.chain[usize::from(next)] = pieces.len() as u8;
        self.word(DRIVER_OFFSET + 4 + 2 * u64::from(self.avail % SIZE)).store(next, Ordering::Relaxed);
        self.avail = self.avail.wrapping_add(1);
        // Release: descriptors and ring entry are there before the index says so.
        self.word(DRIVER_OFFSET + 2).store(self.avail, Ordering::Release);
        Some(next)
    }

    /// Whether the device wants to be told of what was offered since the last call.
    pub fn must_notify(&mut self) -> bool {
        // The index store must be visible before the device's wish is read, or both could miss each other.
        fence(Ordering::SeqCst);
        let (old, new) = (self.notified, self.avail);
        self.notified = new;
        if old == new {
            return false;
        }
        if self.event_idx {
            let event = self.word(DEVICE_OFFSET + 4 + 8 * u64::from(SIZE)).load(Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.word(DEVICE_OFFSET).load(Ordering::Relaxed) & 1 == 0
        }
    }

    /// A chain that the device has finished with: its head and how many bytes it wrote.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        // Acquire: what the device wrote before it moved the index is visible.
        let index = self.word(DEVICE_OFFSET + 2).load(Ordering::Acquire);
        if index == self.used {
            return None;
        }
        let at = DEVICE_OFFSET + 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        // SAFETY: inside our frame, aligned to 4.
        let (id, len) = unsafe {
            let p: *const u32 = PhysAddr(self.frame.0 + at).as_ptr();
            (p.read_volatile(), p.add(1).read_volatile())
        };
        let Some(count) = self.chain.get(id as usize).copied().filter(|n| *n > 0) else {
            crate::error!("virtio: the device returned chain {id}, which it was not given");
            return self.take_used();
        };
        self.chain[id as usize] = 0;
        let table: *const Descriptor = self.frame.as_ptr();
        let mut i = id as u16;
        for _ in 0..count {
            self.free.push(i);
            // SAFETY: descriptors of a chain that we laid out; the device may not write the table, and if it did, the
            // modulo keeps the walk inside.
            i = unsafe { (*table.add(usize::from(i))).next } % SIZE;
        }
        Some((id as u16, len))
    }

    /// Whether the device has finished with some chain.
    pub fn has_used(&self) -> bool {
        self.word(DEVICE_OFFSET + 2).load(Ordering::Acquire) != self.used
    }

    /// Asks for an interrupt at the next used chain, or for none. Look again with [`Queue::take_used`] afterwards.
    pub fn want_interrupt(&mut self, want: bool) {
        if self.event_idx {
            let event = if want { self.used } else { self.used.wrapping_sub(1) };
            self.word(DRIVER_OFFSET + 4 + 2 * u64::from(SIZE)).store(event, Ordering::Relaxed);
        } else {
            self.word(DRIVER_OFFSET).store(u16::from(!want), Ordering::Relaxed);
        }
        // The wish must be visible before the caller looks at the used index again.
        fence(Ordering::SeqCst);
    }
}
