//! Where the bytes of a read or write go to or come from.
//!
//! An [`IoCursor`] walks over a program's buffers, so that each file moves data once, straight between its own pages and the
//! program's. For transfers between two files it walks over a kernel buffer instead. Invariant: `left` is the sum of what the
//! segments still hold, and never overflows a signed 64-bit number.

use alloc::vec::Vec;

use crate::linux::errno::Errno;
use crate::mm::user::{self, Plain};

/// `struct iovec`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct IoVec {
    /// Address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
}

// SAFETY: two integers, no padding.
unsafe impl Plain for IoVec {}

/// Most segments of one call (UIO_MAXIOV).
const MAX_SEGMENTS: usize = 1024;
/// Most bytes of one call (MAX_RW_COUNT).
const MAX_BYTES: u64 = 0x7fff_f000;

/// The buffers of one call.
pub struct IoCursor<'a> {
    segments: &'a [IoVec],
    /// Bytes of the first segment that are done.
    at: u64,
    left: usize,
    in_kernel: bool,
}

impl<'a> IoCursor<'a> {
    /// Over a program's buffers.
    ///
    /// # Errors
    /// EINVAL: the lengths overflow.
    pub fn user(segments: &'a [IoVec]) -> Result<Self, Errno> {
        let mut left = 0u64;
        for s in segments {
            if s.len > i64::MAX as u64 {
                return Err(Errno::EINVAL);
            }
            left = left.checked_add(s.len).filter(|l| *l <= i64::MAX as u64).ok_or(Errno::EINVAL)?;
        }
        Ok(Self { segments, at: 0, left: left.min(MAX_BYTES) as usize, in_kernel: false })
    }

    /// Over one buffer of a program, as read(2) and write(2) have it: a length beyond the limit is cut.
    #[inline]
    pub fn one(segment: &'a IoVec) -> Self {
        let left = segment.len.min(MAX_BYTES) as usize;
        Self { segments: core::slice::from_ref(segment), at: 0, left, in_kernel: false }
    }

    /// Over kernel memory.
    ///
    /// # Safety
    /// The segment is memory that may be read (as a source) or written (as a destination) for `'a`, and nobody else touches.
    pub unsafe fn kernel(segment: &'a IoVec) -> Self {
        Self { segments: core::slice::from_ref(segment), at: 0, left: segment.len as usize, in_kernel: true }
    }

    /// Bytes still to go.
    #[inline(always)]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Whether the buffers are the program's: then [`IoCursor::chunk`] gives user addresses.
    pub fn is_user(&self) -> bool {
        !self.in_kernel
    }

    /// The next connected piece: address and length.
    #[inline]
    pub fn chunk(&mut self) -> Option<(u64, usize)> {
        if self.left == 0 {
            return None;
        }
        loop {
            let first = self.segments.first()?;
            if self.at < first.len {
                return Some((first.base.wrapping_add(self.at), ((first.len - self.at) as usize).min(self.left)));
            }
            self.segments = &self.segments[1..];
            self.at = 0;
        }
    }

    /// Notes that `n` bytes of the present piece are done.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        self.at += n as u64;
        self.left -= n.min(self.left);
    }

    /// Forgets all but the first `n` bytes.
    pub fn limit(&mut self, n: usize) {
        self.left = self.left.min(n);
    }

    /// Copies bytes to the buffers (a read). At most `left` are taken; returns how many.
    ///
    /// # Errors
    /// EFAULT, if the first piece can't be written; later faults make it short.
    pub fn put(&mut self, mut bytes: &[u8]) -> Result<usize, Errno> {
        let mut done = 0;
        while !bytes.is_empty() {
            let Some((addr, room)) = self.chunk() else { break };
            let n = room.min(bytes.len());
            if self.in_kernel {
                // SAFETY: `kernel`'s promise; `chunk` stays inside the segment.
                unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), addr as *mut u8, n) };
            } else if user::write_bytes(addr, &bytes[..n]).is_err() {
                return if done > 0 { Ok(done) } else { Err(Errno::EFAULT) };
            }
            self.advance(n);
            bytes = &bytes[n..];
            done += n;
        }
        Ok(done)
    }

    /// Fills `bytes` from the buffers (a write), at most `left`; returns how many.
    ///
    /// # Errors
    /// EFAULT, if the first piece can't be read; later faults make it short.
    pub fn take(&mut self, mut bytes: &mut [u8]) -> Result<usize, Errno> {
        let mut done = 0;
        while !bytes.is_empty() {
            let Some((addr, room)) = self.chunk() else { break };
            let n = room.min(bytes.len());
            if self.in_kernel {
                // SAFETY: as in `put`.
                unsafe { core::ptr::copy_nonoverlapping(addr as *const u8, bytes.as_mut_ptr(), n) };
            } else if user::read_bytes(&mut bytes[..n], addr).is_err() {
                return if done > 0 { Ok(done) } else { Err(Errno::EFAULT) };
            }
            self.advance(n);
            bytes = &mut bytes[n..];
            done += n;
        }
        Ok(done)
    }

    /// Writes `n` zeroes (a read of a hole); returns how many.
    ///
    /// # Errors
    /// As [`IoCursor::put`].
    pub fn put_zeroes(&mut self, n: usize) -> Result<usize, Errno> {
        static ZEROES: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < n && self.left > 0 {
            match self.put(&ZEROES[..(n - done).min(ZEROES.len())]) {
                Ok(0) => break,
                Ok(k) => done += k,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

/// Reads the segments of a vectored call.
///
/// # Errors
/// EINVAL: too many, or a bad length; EFAULT.
pub fn read_segments(addr: u64, count: u64) -> Result<Vec<IoVec>, Errno> {
    let count = i32::try_from(count as i64).ok().and_then(|c| usize::try_from(c).ok()).ok_or(Errno::EINVAL)?;
    if count > MAX_SEGMENTS {
        return Err(Errno::EINVAL);
    }
    Ok(user::read_array(addr, count)?)
}
