//! Pipes, named and not. (`socket_pair` makes sockets of two of them.)
//!
//! Bytes lie in a ring of frames and move straight between those and user memory. The ring is guarded by a sleeping lock, since
//! user memory may fault; its fill level is repeated in an atomic, on which waiting readers and writers look. Invariants:
//! - A write of at most `PIPE_BUF` bytes goes in as a whole or not at all.
//! - A waiting reader is woken when the ring stops being empty, a waiting writer when `PIPE_BUF` bytes of room appear; each
//!   passes the wake-up on if something is left. Once somebody polls, every transfer wakes (edge-triggered epoll needs it).

mod ring;
mod splice;

pub use splice::{splice, tee, vmsplice};

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use vcpu_sched::events::WaitReason;

use self::ring::{PAGE, Ring};
use super::inode::{Inode, Metadata, device, mode};
use super::io::IoCursor;
use super::open_file::{Events, File, FileRef, Flags, OpenFile};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::Process;
use crate::mm::user;
use crate::sync::{Interrupted, Mutex, MutexGuard, WaitQueue};
use crate::time;

/// Bytes that go in at once (PIPE_BUF).
const PIPE_BUF: usize = 4096;
/// Capacity of a new pipe.
const DEFAULT_CAPACITY: usize = 64 << 10;
/// Largest capacity (/proc/sys/fs/pipe-max-size).
const MAX_CAPACITY: usize = 1 << 20;
/// Bytes that can be read now. Linux include/uapi/asm-generic/ioctls.h.
const FIONREAD: u32 = 0x541b;

/// A pipe.
pub struct Pipe {
    ring: Mutex<Ring>,
    /// Bytes in the ring; changed with it locked.
    len: AtomicUsize,
    capacity: AtomicUsize,
    readers: AtomicU32,
    writers: AtomicU32,
    /// Ends ever opened, for the opening of named pipes.
    readers_ever: AtomicU32,
    writers_ever: AtomicU32,
    /// Somebody polls: wake at every transfer.
    polled: AtomicBool,
    /// Readers wait here, and those who wait to open for writing.
    pub(super) readable: WaitQueue,
    /// Writers wait here, and those who wait to open for reading.
    pub(super) writable: WaitQueue,
    pub(super) ino: u64,
    born: u64,
}

impl Pipe {
    /// A pipe without ends.
    pub fn new() -> Arc<Self> {
        static INO: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            ring: Mutex::new(Ring::new(DEFAULT_CAPACITY)),
            len: AtomicUsize::new(0),
            capacity: AtomicUsize::new(DEFAULT_CAPACITY),
            readers: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            readers_ever: AtomicU32::new(0),
            writers_ever: AtomicU32::new(0),
            polled: AtomicBool::new(false),
            readable: WaitQueue::of(WaitReason::Io),
            writable: WaitQueue::of(WaitReason::Io),
            ino: INO.fetch_add(1, Ordering::Relaxed),
            born: time::wall::now().0,
        })
    }

    /// The two ends of a new pipe: to read from, to write to.
    pub fn pair(flags: Flags) -> (FileRef, FileRef) {
        let pipe = Self::new();
        let read: FileRef = OpenFile::new(End::new(&pipe, None, true, false), flags);
        let write: FileRef = OpenFile::new(End::new(&pipe, None, false, true), flags | Flags::WRONLY);
        (read, write)
    }

    /// Opens a named pipe: waits for the other side, unless it is opened for both.
    pub fn open_named(self: Arc<Self>, name: Arc<dyn Inode>, flags: Flags) -> Result<FileRef, Errno> {
        let (read, write) = (flags.readable(), flags.writable());
        if write && !read && flags.nonblock() && self.readers.load(Ordering::SeqCst) == 0 {
            return Err(Errno::ENXIO);
        }
        let (queue, now, ever) = if read {
            (&self.writable, &self.writers, &self.writers_ever)
        } else {
            (&self.readable, &self.readers, &self.readers_ever)
        };
        // Looked at before the other side can see us: it may wait for us, and from then on write, close and be gone before we
        // look again. Or come and go in between, so openings are counted too. In this order, since an end that is not yet counted
        // among all of them changes that number later.
        let before = ever.load(Ordering::SeqCst);
        let there = now.load(Ordering::SeqCst) > 0;
        let file: FileRef = OpenFile::new(End::new(&self, Some(name), read, write), flags);
        if read != write && !there && !flags.nonblock() {
            queue
                .wait_interruptible(None, || {
                    (now.load(Ordering::SeqCst) > 0 || ever.load(Ordering::SeqCst) != before).then_some(())
                })
                .map_err(|_| Errno::ERESTARTSYS)?;
        }
        Ok(file)
    }

    pub(super) fn read(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        if io.left() == 0 {
            return Ok(0);
        }
        let mut slept = false;
        loop {
            if self.len.load(Ordering::Acquire) > 0 {
                let mut ring = self.ring.lock();
                let before = ring.len;
                let result = ring.drain(io);
                let after = ring.len;
                self.drained(ring, before);
                if slept && after > 0 {
                    self.readable.wake_one();
                }
                match result {
                    Ok(0) => {} // another reader was quicker
                    r => return r,
                }
            } else if self.writers.load(Ordering::SeqCst) == 0 {
                // A last write before the last close has priority.
                if self.len.load(Ordering::SeqCst) == 0 {
                    return Ok(0);
                }
            } else if flags.nonblock() {
                return Err(Errno::EAGAIN);
            } else {
                slept = true;
                let ready =
                    || (self.len.load(Ordering::Acquire) > 0 || self.writers.load(Ordering::SeqCst) == 0).then_some(());
                self.readable.wait_interruptible(None, ready).map_err(restart)?;
            }
        }
    }

    pub(super) fn write(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        if io.left() == 0 {
            return Ok(0);
        }
        let mut done = 0;
        let mut slept = false;
        loop {
            if self.readers.load(Ordering::SeqCst) == 0 {
                return if done > 0 { Ok(done) } else { Err(Errno::EPIPE) };
            }
            // What must fit at once: small writes are atomic, large ones go on by pages.
            let need = if done == 0 && io.left() <= PIPE_BUF { io.left() } else { PIPE_BUF.min(io.left()) };
            if self.room() >= need {
                let mut ring = self.ring.lock();
                let before = ring.len;
                if ring.capacity() - before < need {
                    continue; // another writer was quicker
                }
                let result = ring.fill(io);
                self.filled(ring, before);
                match result {
                    Ok(n) => done += n,
                    Err(_) if done > 0 => return Ok(done),
                    Err(e) => return Err(e),
                }
                if io.left() == 0 {
                    if slept && self.room() >= PIPE_BUF {
                        self.writable.wake_one();
                    }
                    return Ok(done);
                }
                if matches!(result, Ok(0)) {
                    return if done > 0 { Ok(done) } else { Err(Errno::EFAULT) };
                }
            } else if flags.nonblock() {
                return if done > 0 { Ok(done) } else { Err(Errno::EAGAIN) };
            } else {
                slept = true;
                let ready = || (self.room() >= need || self.readers.load(Ordering::SeqCst) == 0).then_some(());
                match self.writable.wait_interruptible(None, ready) {
                    Ok(()) => {}
                    Err(_) if done > 0 => return Ok(done),
                    Err(e) => return Err(restart(e)),
                }
            }
        }
    }

    /// Bytes were taken out of the ring, which held `before`: unlocks it and wakes a writer that has room now.
    #[inline]
    fn drained(&self, ring: MutexGuard<'_, Ring>, before: usize) {
        let (after, capacity) = (ring.len, ring.capacity());
        self.len.store(after, Ordering::Release);
        drop(ring);
        let had_room = capacity - before >= PIPE_BUF;
        let polled = before != after && self.polled.load(Ordering::Relaxed);
        if !had_room && capacity - after >= PIPE_BUF || polled {
            self.writable.wake_one();
        }
    }

    /// Bytes were put into the ring, which held `before`: unlocks it and wakes a reader.
    #[inline]
    fn filled(&self, ring: MutexGuard<'_, Ring>, before: usize) {
        let after = ring.len;
        self.len.store(after, Ordering::Release);
        drop(ring);
        let polled = before != after && self.polled.load(Ordering::Relaxed);
        if before == 0 && after > 0 || polled {
            self.readable.wake_one();
        }
    }

    fn room(&self) -> usize {
        self.capacity.load(Ordering::Acquire).saturating_sub(self.len.load(Ordering::Acquire))
    }

    pub(super) fn poll_read(&self) -> Events {
        self.polled.store(true, Ordering::SeqCst);
        let mut e = Events::empty();
        if self.len.load(Ordering::SeqCst) > 0 {
            e |= Events::READ;
        }
        if self.writers.load(Ordering::SeqCst) == 0 && self.writers_ever.load(Ordering::SeqCst) > 0 {
            e |= Events::HUP;
        }
        e
    }

    pub(super) fn poll_write(&self) -> Events {
        self.polled.store(true, Ordering::SeqCst);
        let mut e = Events::empty();
        if self.room() >= PIPE_BUF {
            e |= Events::WRITE;
        }
        if self.readers.load(Ordering::SeqCst) == 0 {
            e |= Events::ERR;
        }
        e
    }

    fn set_capacity(&self, want: u64) -> SysResult {
        let want = usize::try_from(want).ok().filter(|w| *w <= MAX_CAPACITY).ok_or(Errno::EPERM)?;
        let capacity = want.max(PAGE).next_power_of_two();
        let mut ring = self.ring.lock();
        ring.resize(capacity)?;
        self.capacity.store(capacity, Ordering::Release);
        drop(ring);
        self.writable.wake_all();
        Ok(capacity as u64)
    }

    pub(super) fn open_end(&self, read: bool, write: bool) {
        if read {
            self.readers.fetch_add(1, Ordering::SeqCst);
            self.readers_ever.fetch_add(1, Ordering::SeqCst);
            self.readable.wake_all();
        }
        if write {
            self.writers.fetch_add(1, Ordering::SeqCst);
            self.writers_ever.fetch_add(1, Ordering::SeqCst);
            self.writable.wake_all();
        }
    }

    pub(super) fn close_end(&self, read: bool, write: bool) {
        let last_reader = read && self.readers.fetch_sub(1, Ordering::SeqCst) == 1;
        let last_writer = write && self.writers.fetch_sub(1, Ordering::SeqCst) == 1;
        if last_reader {
            self.writable.wake_all();
        }
        if last_writer {
            self.readable.wake_all();
        }
        if last_reader || last_writer {
            // A named pipe that nobody has open holds nothing. Looked at with the ring locked: who opens it after that look can't
            // write before it is empty, and what somebody wrote before keeps one of the numbers up.
            let mut ring = self.ring.lock();
            if self.readers.load(Ordering::SeqCst) == 0 && self.writers.load(Ordering::SeqCst) == 0 {
                (ring.head, ring.len) = (0, 0);
                self.len.store(0, Ordering::Release);
            }
        }
    }
}

fn restart(_: Interrupted) -> Errno {
    Errno::ERESTARTSYS
}

/// A pipe without a name is an object of its own: /proc/self/fd leads to it.
impl Inode for Pipe {
    fn metadata(&self) -> Metadata {
        Metadata {
            dev: device::PIPE,
            ino: self.ino,
            mode: mode::FIFO | 0o600,
            nlink: 1,
            atime: self.born,
            mtime: self.born,
            ctime: self.born,
            ..Metadata::default()
        }
    }

    fn path(&self) -> Vec<u8> {
        alloc::format!("pipe:[{}]", self.ino).into_bytes()
    }

    fn open(self: Arc<Self>, flags: Flags, _caller: &Process) -> Result<FileRef, Errno> {
        // Nobody waits here for the other side, even if it is gone (Linux fs/pipe.c, fifo_open: `is_pipe`).
        Ok(OpenFile::new(End::new(&self, None, flags.readable(), flags.writable()), flags))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// One open end (a named pipe can be opened for both).
pub(super) struct End {
    pub(super) pipe: Arc<Pipe>,
    /// The name's inode, for a named pipe.
    name: Option<Arc<dyn Inode>>,
    read: bool,
    write: bool,
}

impl End {
    pub(super) fn new(pipe: &Arc<Pipe>, name: Option<Arc<dyn Inode>>, read: bool, write: bool) -> Self {
        pipe.open_end(read, write);
        Self { pipe: pipe.clone(), name, read, write }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.pipe.close_end(self.read, self.write);
    }
}

impl File for End {
    fn read(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        self.pipe.read(io, flags)
    }

    fn write(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        self.pipe.write(io, flags)
    }

    fn poll(&self) -> Events {
        let mut e = Events::empty();
        if self.read {
            e |= self.pipe.poll_read();
        }
        if self.write {
            e |= self.pipe.poll_write();
        }
        e
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn queues(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        if self.read {
            visit(&self.pipe.readable);
        }
        if self.write {
            visit(&self.pipe.writable);
        }
    }

    fn ioctl(&self, _process: &Arc<Process>, command: u32, argument: u64) -> SysResult {
        if command != FIONREAD {
            return Err(Errno::ENOTTY);
        }
        user::write(argument, &(self.pipe.len.load(Ordering::Relaxed) as i32))?;
        Ok(0)
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        Some(self.name.clone().unwrap_or_else(|| self.pipe.clone()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// fcntl(F_GETPIPE_SZ).
///
/// # Errors
/// EBADF: not a pipe.
pub fn capacity(file: &FileRef) -> SysResult {
    let end: &End = file.file.as_any().downcast_ref().ok_or(Errno::EBADF)?;
    Ok(end.pipe.capacity.load(Ordering::Relaxed) as u64)
}

/// fcntl(F_SETPIPE_SZ).
///
/// # Errors
/// EBADF: not a pipe; EBUSY: it holds more; EPERM: too large.
pub fn set_capacity(file: &FileRef, want: u64) -> SysResult {
    let end: &End = file.file.as_any().downcast_ref().ok_or(Errno::EBADF)?;
    end.pipe.set_capacity(want)
}
