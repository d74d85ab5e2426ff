//! A pipe's bytes: a ring of frames.

use alloc::boxed::Box;

use crate::linux::errno::Errno;
use crate::linux::fs::io::IoCursor;
use crate::mm::PhysAddr;
use crate::mm::frame;
use crate::mm::layout::PAGE_SIZE;

/// Bytes of a frame.
pub const PAGE: usize = PAGE_SIZE as usize;

/// The bytes in a pipe.
pub struct Ring {
    /// Frames by position, made when they are first needed; their number is a power of two.
    frames: Box<[Option<PhysAddr>]>,
    /// Position of the first byte.
    pub head: usize,
    /// Bytes in it.
    pub len: usize,
}

impl Ring {
    /// An empty one.
    pub fn new(capacity: usize) -> Self {
        Self { frames: alloc::vec![None; capacity / PAGE].into(), head: 0, len: 0 }
    }

    /// Bytes that fit.
    pub fn capacity(&self) -> usize {
        self.frames.len() * PAGE
    }

    /// The connected piece at a position: bytes from there to the end of its frame.
    pub fn piece(&mut self, position: usize) -> Result<&'static mut [u8], Errno> {
        // The capacity is a power of two.
        let at = position & (self.capacity() - 1);
        let slot = &mut self.frames[at / PAGE];
        let f = match *slot {
            Some(f) => f,
            None => *slot.insert(frame::alloc()?),
        };
        // SAFETY: the frame is the ring's until it drops, and the ring is locked while the piece is used.
        Ok(unsafe { core::slice::from_raw_parts_mut(f.as_ptr::<u8>().add(at % PAGE), PAGE - at % PAGE) })
    }

    /// Moves as many bytes as there are to the buffers.
    pub fn drain(&mut self, io: &mut IoCursor<'_>) -> Result<usize, Errno> {
        let mut done = 0;
        while self.len > 0 && io.left() > 0 {
            let (head, len) = (self.head, self.len);
            let piece = self.piece(head)?;
            let n = piece.len().min(len).min(io.left());
            match io.put(&piece[..n]) {
                Ok(k) => {
                    self.head += k;
                    self.len -= k;
                    done += k;
                    if k < n {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        if self.len == 0 {
            self.head = 0; // the first frame again: it is warm
        }
        self.head &= self.capacity() - 1;
        Ok(done)
    }

    /// Moves as many bytes as fit from the buffers.
    pub fn fill(&mut self, io: &mut IoCursor<'_>) -> Result<usize, Errno> {
        let mut done = 0;
        while self.len < self.capacity() && io.left() > 0 {
            let room = self.capacity() - self.len;
            let at = self.head + self.len;
            let piece = match self.piece(at) {
                Ok(p) => p,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            };
            let n = piece.len().min(room).min(io.left());
            match io.take(&mut piece[..n]) {
                Ok(k) => {
                    self.len += k;
                    done += k;
                    if k < n {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Changes the capacity; what is in it is kept.
    pub fn resize(&mut self, capacity: usize) -> Result<(), Errno> {
        if capacity < self.len {
            return Err(Errno::EBUSY);
        }
        let mut new = Ring::new(capacity);
        while self.len > 0 {
            let (head, len) = (self.head, self.len);
            let from = self.piece(head)?;
            let to = new.piece(new.len)?;
            let n = from.len().min(len).min(to.len());
            to[..n].copy_from_slice(&from[..n]);
            new.len += n;
            self.head = (self.head + n) & (self.capacity() - 1);
            self.len -= n;
        }
        *self = new;
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.frames.iter_mut().filter_map(Option::take).for_each(frame::put);
    }
}
