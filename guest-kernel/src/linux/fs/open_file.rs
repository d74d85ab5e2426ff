//! Open file descriptions: what descriptors refer to.
//!
//! An [`OpenFile`] is shared by all descriptors that were duplicated or inherited from one open(2). It holds the status flags
//! and a [`File`], which does the work. A closed descriptor's file lives on while a call still uses it.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::epoll::Watch;
use super::inode::{DirEntry, Inode, Metadata};
use super::io::IoCursor;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::Process;
use crate::mm::vma::PageSource;
use crate::sync::{SpinLock, WaitQueue};

bitflags::bitflags! {
    /// `O_*` flags. Linux include/uapi/asm-generic/fcntl.h, x86-64 values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Write only; with neither this nor `RDWR`: read only.
        const WRONLY = 0o1;
        /// Read and write.
        const RDWR = 0o2;
        /// Make the file if it isn't there.
        const CREAT = 0o100;
        /// With `CREAT`: it must not be there.
        const EXCL = 0o200;
        /// Don't make it the controlling terminal.
        const NOCTTY = 0o400;
        /// Cut to nothing.
        const TRUNC = 0o1000;
        /// Write at the end.
        const APPEND = 0o2000;
        /// Don't wait.
        const NONBLOCK = 0o4000;
        /// Accepted, without effect.
        const DSYNC = 0o10000;
        /// Accepted, without effect.
        const ASYNC = 0o20000;
        /// Accepted, without effect.
        const DIRECT = 0o40000;
        /// Accepted, without effect.
        const LARGEFILE = 0o100000;
        /// Must be a directory.
        const DIRECTORY = 0o200000;
        /// The last component must not be a symbolic link.
        const NOFOLLOW = 0o400000;
        /// Accepted, without effect.
        const NOATIME = 0o1000000;
        /// Close at exec.
        const CLOEXEC = 0o2000000;
        /// Accepted, without effect.
        const SYNC = 0o4000000;
        /// Only a handle.
        const PATH = 0o10000000;
        /// A file without a name.
        const TMPFILE = 0o20000000;
    }
}

impl Flags {
    /// The bits that open(2) obeys only once, and that fcntl(F_GETFL) doesn't show.
    const ONCE: Self = Self::CREAT
        .union(Self::EXCL)
        .union(Self::NOCTTY)
        .union(Self::TRUNC)
        .union(Self::CLOEXEC)
        .union(Self::DIRECTORY);

    /// The bits that fcntl(F_SETFL) may change.
    pub const SETTABLE: Self =
        Self::APPEND.union(Self::NONBLOCK).union(Self::ASYNC).union(Self::DIRECT).union(Self::NOATIME);

    /// Opened for reading.
    #[inline(always)]
    pub fn readable(self) -> bool {
        !self.intersects(Self::WRONLY | Self::PATH)
    }

    /// Opened for writing.
    #[inline(always)]
    pub fn writable(self) -> bool {
        self.intersects(Self::WRONLY | Self::RDWR) && !self.contains(Self::PATH)
    }

    /// Calls must not wait.
    #[inline(always)]
    pub fn nonblock(self) -> bool {
        self.contains(Self::NONBLOCK)
    }
}

bitflags::bitflags! {
    /// `POLL*` and `EPOLL*` event bits (equal on x86-64).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Events: u32 {
        /// Can be read.
        const IN = 0x1;
        /// Urgent data.
        const PRI = 0x2;
        /// Can be written.
        const OUT = 0x4;
        /// Error; always reported.
        const ERR = 0x8;
        /// Hung up; always reported.
        const HUP = 0x10;
        /// Bad descriptor; always reported, by poll only.
        const NVAL = 0x20;
        /// Can be read.
        const RDNORM = 0x40;
        /// Can be written.
        const WRNORM = 0x100;
        /// The peer writes no more.
        const RDHUP = 0x2000;
    }
}

impl Events {
    /// Readable, in both spellings.
    pub const READ: Self = Self::IN.union(Self::RDNORM);
    /// Writable, in both spellings.
    pub const WRITE: Self = Self::OUT.union(Self::WRNORM);
    /// Reported whether asked for or not.
    pub const ALWAYS: Self = Self::ERR.union(Self::HUP);
}

/// What one kind of file does. Calls come in task context and may sleep, `queues` excepted.
pub trait File: Send + Sync {
    /// Reads at the file's position.
    ///
    /// # Errors
    /// As read(2).
    fn read(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno>;

    /// Writes at the file's position.
    ///
    /// # Errors
    /// As write(2). EPIPE makes the caller send SIGPIPE.
    fn write(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno>;

    /// Reads at an offset.
    ///
    /// # Errors
    /// ESPIPE: the file has no positions.
    fn read_at(&self, _io: &mut IoCursor<'_>, _offset: u64) -> Result<usize, Errno> {
        Err(Errno::ESPIPE)
    }

    /// Writes at an offset (at the end with `APPEND`, as Linux does).
    ///
    /// # Errors
    /// ESPIPE: the file has no positions.
    fn write_at(&self, _io: &mut IoCursor<'_>, _offset: u64, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::ESPIPE)
    }

    /// Moves the position; returns the new one.
    ///
    /// # Errors
    /// ESPIPE: the file has no positions.
    fn seek(&self, _offset: i64, _whence: u32) -> SysResult {
        Err(Errno::ESPIPE)
    }

    /// What could be done now without waiting.
    fn poll(&self) -> Events {
        Events::READ | Events::WRITE
    }

    /// Whether epoll may watch it: files that are always ready can't be.
    fn can_wait(&self) -> bool {
        false
    }

    /// Visits the queues that are woken when what `poll` says may have become more.
    fn queues(&self, _visit: &mut dyn FnMut(&WaitQueue)) {}

    /// Device control.
    ///
    /// # Errors
    /// ENOTTY: not known here.
    fn ioctl(&self, _process: &Arc<Process>, _command: u32, _argument: u64) -> SysResult {
        Err(Errno::ENOTTY)
    }

    /// What a directory holds.
    ///
    /// # Errors
    /// ENOTDIR.
    fn read_dir(&self, _emit: &mut dyn FnMut(&DirEntry, u64) -> bool) -> Result<(), Errno> {
        Err(Errno::ENOTDIR)
    }

    /// The object behind it: for stat, for /proc/self/fd, for the `*at` calls.
    fn inode(&self) -> Option<Arc<dyn Inode>>;

    /// What fstat(2) shows.
    fn metadata(&self) -> Metadata {
        self.inode().map_or_else(|| Metadata::anonymous(0o600), |i| i.metadata())
    }

    /// What /proc/self/fd shows.
    fn path(&self) -> Vec<u8> {
        self.inode().map_or_else(Vec::new, |i| i.path())
    }

    /// Its pages, if it can be mapped.
    fn page_source(&self) -> Option<Arc<dyn PageSource>> {
        self.inode().and_then(|i| i.page_source())
    }

    /// For calls that are for one kind of file only.
    fn as_any(&self) -> &dyn Any;
}

/// An open file description.
pub struct OpenFile<F: File + ?Sized = dyn File> {
    flags: AtomicU32,
    /// Somebody has locked it, or a part of it, through this description.
    locked: AtomicBool,
    /// Guards the list of epoll registrations only.
    watches: SpinLock<Vec<Weak<Watch>>>,
    /// What does the work.
    pub file: F,
}

/// A counted handle, as descriptor tables hold it.
pub type FileRef = Arc<OpenFile>;

impl<F: File + 'static> OpenFile<F> {
    /// A new description.
    pub fn new(file: F, flags: Flags) -> Arc<Self> {
        let flags = AtomicU32::new(flags.difference(Flags::ONCE).bits());
        Arc::new(Self { flags, locked: AtomicBool::new(false), watches: SpinLock::new(Vec::new()), file })
    }
}

impl<F: File + ?Sized> OpenFile<F> {
    /// The status flags and access mode.
    #[inline(always)]
    pub fn flags(&self) -> Flags {
        // Relaxed: a flag orders nothing.
        Flags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// Replaces the flags that fcntl(2) may change.
    pub fn set_flags(&self, new: Flags) {
        let keep = self.flags().difference(Flags::SETTABLE);
        self.flags.store((keep | new.intersection(Flags::SETTABLE)).bits(), Ordering::Relaxed);
    }

    /// Reads at the position.
    ///
    /// # Errors
    /// EBADF: not open for reading; else the file's.
    #[inline]
    pub fn read(&self, io: &mut IoCursor<'_>) -> Result<usize, Errno> {
        let flags = self.flags();
        if !flags.readable() {
            return Err(Errno::EBADF);
        }
        self.file.read(io, flags)
    }

    /// Writes at the position.
    ///
    /// # Errors
    /// EBADF: not open for writing; else the file's.
    #[inline]
    pub fn write(&self, io: &mut IoCursor<'_>) -> Result<usize, Errno> {
        let flags = self.flags();
        if !flags.writable() {
            return Err(Errno::EBADF);
        }
        self.file.write(io, flags)
    }

    /// Remembers an epoll registration, to be ended when the file goes.
    pub fn add_watch(&self, watch: Weak<Watch>) {
        let mut list = self.watches.lock();
        // Ended ones are dropped on the way, so that the list can't grow without bound.
        list.retain(|w| w.strong_count() > 0);
        list.push(watch);
    }

    /// A lock was taken through it (see `locks`).
    pub fn note_locked(&self) {
        self.locked.store(true, Ordering::SeqCst);
    }

    /// Whether a lock was ever taken through it.
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::SeqCst)
    }

    /// Whether an epoll instance watches it.
    pub fn is_watched(&self) -> bool {
        let list: Vec<_> = self.watches.lock().iter().filter_map(Weak::upgrade).collect();
        list.iter().any(|w| !w.is_dead())
    }
}

impl<F: File + ?Sized> Drop for OpenFile<F> {
    fn drop(&mut self) {
        if self.is_locked() {
            super::locks::file_gone(core::ptr::from_ref(self).cast::<u8>() as usize);
        }
        let watches = core::mem::take(&mut *self.watches.lock());
        for watch in watches.iter().filter_map(Weak::upgrade) {
            watch.file_closed(&self.file);
        }
    }
}
