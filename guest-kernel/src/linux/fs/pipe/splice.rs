//! splice(2), tee(2), vmsplice(2): bytes between a pipe and something else that no program needs to look at. They are copied, once,
//! between the ring's frames and the other side; programs can't tell.
//!
//! Sockets count as pipes where they are one side of two. Two rings are locked in order of their addresses. A pipe's ring may
//! be held while a file is written to, its position included; nobody who holds a file's position takes a ring.

use alloc::sync::Arc;

use super::ring::Ring;
use super::{End, Pipe, restart};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::calls::transfer::{Side, copy};
use crate::linux::fs::io::{IoCursor, IoVec, read_segments};
use crate::linux::fs::open_file::{FileRef, Flags};
use crate::linux::fs::socket_pair::SocketEnd;
use crate::linux::process::{Process, signal};
use crate::sync::MutexGuard;
use core::sync::atomic::Ordering;

/// SPLICE_F_NONBLOCK; the other flags are advice: MOVE, MORE, GIFT.
const NONBLOCK: u64 = 2;
const KNOWN: u64 = 15;
/// Most bytes of one call (MAX_RW_COUNT).
const MAX_BYTES: u64 = 0x7fff_f000;

/// The pipe that a file reads from.
fn source(file: &FileRef) -> Option<Arc<Pipe>> {
    let any = file.file.as_any();
    let end = any.downcast_ref::<End>().or_else(|| any.downcast_ref::<SocketEnd>().map(|s| s.input()))?;
    Some(end.pipe.clone())
}

/// The pipe that a file writes to.
fn sink(file: &FileRef) -> Option<Arc<Pipe>> {
    let any = file.file.as_any();
    let end = any.downcast_ref::<End>().or_else(|| any.downcast_ref::<SocketEnd>().map(|s| s.output()))?;
    Some(end.pipe.clone())
}

fn is_pipe(file: &FileRef) -> bool {
    file.file.as_any().is::<End>()
}

/// splice(2).
pub fn splice(process: &Process, a: &[u64; 6]) -> SysResult {
    let [input, in_offset, output, out_offset, len, flags] = *a;
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let len = len.min(MAX_BYTES);
    let (from, to) = (process.fs.file(input as i32)?, process.fs.file(output as i32)?);
    if !from.flags().readable() || !to.flags().writable() {
        return Err(Errno::EBADF);
    }
    if (is_pipe(&from) && in_offset != 0) || (is_pipe(&to) && out_offset != 0) {
        return Err(Errno::ESPIPE);
    }
    let nonblock = flags & NONBLOCK != 0 || (is_pipe(&from) && from.flags().nonblock()) || to.flags().nonblock();
    match (source(&from), sink(&to)) {
        _ if !is_pipe(&from) && !is_pipe(&to) => Err(Errno::EINVAL),
        (Some(a), Some(b)) => between(&a, &b, len as usize, nonblock, true),
        (None, Some(pipe)) => {
            let side = Side::new(process, input, in_offset)?;
            let room = pipe.wait_for_room(nonblock)? as u64;
            copy(side, Side::new(process, output, 0)?, len.min(room))
        }
        (Some(pipe), None) => {
            if to.flags().contains(Flags::APPEND) {
                return Err(Errno::EINVAL);
            }
            let mut side = Side::new(process, output, out_offset)?;
            if !pipe.wait_for_bytes(nonblock)? {
                return Ok(0);
            }
            let n = pipe.feed(len as usize, |io| side.write(io))?;
            side.finish()?;
            Ok(n as u64)
        }
        (None, None) => Err(Errno::EINVAL),
    }
}

/// tee(2): as splice between pipes, but the bytes stay in the first.
pub fn tee(process: &Process, input: u64, output: u64, len: u64, flags: u64) -> SysResult {
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let (from, to) = (process.fs.file(input as i32)?, process.fs.file(output as i32)?);
    if !from.flags().readable() || !to.flags().writable() {
        return Err(Errno::EBADF);
    }
    match (source(&from), sink(&to)) {
        (Some(a), Some(b)) if is_pipe(&from) && is_pipe(&to) => {
            let nonblock = flags & NONBLOCK != 0 || from.flags().nonblock() || to.flags().nonblock();
            between(&a, &b, len.min(MAX_BYTES) as usize, nonblock, false)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// vmsplice(2): a program's pages are copied, so that what becomes of them later doesn't matter.
pub fn vmsplice(process: &Process, fd: u64, vector: u64, count: u64, flags: u64) -> SysResult {
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let file = process.fs.file(fd as i32)?;
    if !is_pipe(&file) {
        return Err(Errno::EBADF);
    }
    let segments = read_segments(vector, count)?;
    let mut io = IoCursor::user(&segments)?;
    let mut how = file.flags();
    how.set(Flags::NONBLOCK, how.nonblock() || flags & NONBLOCK != 0);
    let result = if how.writable() { file.file.write(&mut io, how) } else { file.file.read(&mut io, how) };
    tell(result.map(|n| n as u64))
}

/// EPIPE brings SIGPIPE.
fn tell(result: SysResult) -> SysResult {
    if result == Err(Errno::EPIPE) {
        signal::send_to_current_thread(signal::SIGPIPE);
    }
    result
}

/// Moves or copies bytes from one pipe to another: what is there and fits, at least one.
fn between(from: &Arc<Pipe>, to: &Arc<Pipe>, len: usize, nonblock: bool, take: bool) -> SysResult {
    if Arc::ptr_eq(from, to) {
        return Err(Errno::EINVAL);
    }
    loop {
        if !from.wait_for_bytes(nonblock)? {
            return Ok(0);
        }
        tell(to.wait_for_room(nonblock).map(|n| n as u64))?;
        let (mut source, mut sink) = lock_two(from, to);
        let (before, there) = (source.len, sink.len);
        let moved = source.copy_to(&mut sink, len);
        if take && let Ok(n) = moved {
            source.consume(n);
        }
        to.filled(sink, there);
        from.drained(source, before);
        match moved? {
            0 => {} // another reader or writer was quicker
            n => return Ok(n as u64),
        }
    }
}

fn lock_two<'a>(a: &'a Arc<Pipe>, b: &'a Arc<Pipe>) -> (MutexGuard<'a, Ring>, MutexGuard<'a, Ring>) {
    if Arc::as_ptr(a) < Arc::as_ptr(b) {
        let first = a.ring.lock();
        (first, b.ring.lock())
    } else {
        let first = b.ring.lock();
        (a.ring.lock(), first)
    }
}

impl Pipe {
    /// Waits until something can be read. Returns false at the end.
    fn wait_for_bytes(&self, nonblock: bool) -> Result<bool, Errno> {
        let look = || match (self.len.load(Ordering::SeqCst), self.writers.load(Ordering::SeqCst)) {
            // A last write before the last close has priority.
            (0, 0) => (self.len.load(Ordering::SeqCst) == 0).then_some(false),
            (0, _) => None,
            _ => Some(true),
        };
        match look() {
            Some(some) => Ok(some),
            None if nonblock => Err(Errno::EAGAIN),
            None => self.readable.wait_interruptible(None, look).map_err(restart),
        }
    }

    /// Waits until something can be written. Returns how many bytes.
    fn wait_for_room(&self, nonblock: bool) -> Result<usize, Errno> {
        let look = || match (self.readers.load(Ordering::SeqCst), self.room()) {
            (0, _) => Some(Err(Errno::EPIPE)),
            (_, 0) => None,
            (_, n) => Some(Ok(n)),
        };
        match look() {
            Some(result) => result,
            None if nonblock => Err(Errno::EAGAIN),
            None => self.writable.wait_interruptible(None, look).map_err(restart)?,
        }
    }

    /// Gives bytes to `write`, piece by piece, as long as it takes whole pieces.
    fn feed(
        &self,
        len: usize,
        mut write: impl FnMut(&mut IoCursor<'_>) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let mut ring = self.ring.lock();
        let (before, mut done) = (ring.len, 0);
        let mut result = Ok(());
        while done < len && ring.len > 0 && result.is_ok() {
            let (head, left) = (ring.head, ring.len.min(len - done));
            let written = ring.piece(head).and_then(|piece| {
                let segment = IoVec { base: piece.as_mut_ptr() as u64, len: piece.len().min(left) as u64 };
                // SAFETY: a piece of the ring, which is locked.
                write(&mut unsafe { IoCursor::kernel(&segment) }).map(|n| (n, segment.len as usize))
            });
            match written {
                Ok((n, whole)) => {
                    ring.consume(n);
                    done += n;
                    if n < whole {
                        break;
                    }
                }
                Err(e) => result = Err(e),
            }
        }
        self.drained(ring, before);
        if done > 0 { Ok(done) } else { result.map(|()| 0) }
    }
}

impl Ring {
    /// Forgets the first `n` bytes.
    fn consume(&mut self, n: usize) {
        self.len -= n;
        self.head = if self.len == 0 { 0 } else { (self.head + n) & (self.capacity() - 1) };
    }

    /// Copies its first bytes, at most `len`, to another ring, as far as they fit.
    fn copy_to(&mut self, other: &mut Ring, len: usize) -> Result<usize, Errno> {
        let len = len.min(self.len);
        let mut done = 0;
        while done < len {
            let piece = self.piece(self.head + done)?;
            let segment = IoVec { base: piece.as_mut_ptr() as u64, len: piece.len().min(len - done) as u64 };
            // SAFETY: a piece of this ring, which is locked; the other ring is another.
            match other.fill(&mut unsafe { IoCursor::kernel(&segment) }) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}
