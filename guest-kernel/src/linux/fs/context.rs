//! What a process knows of the file system: descriptors, working directory, umask.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use vcpu_sched::requests::message::Streams;

use super::inode::{Caller, Inode};
use super::open_file::FileRef;
use super::{dev, locks, path, tty};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::{self, Process};
use crate::sync::SpinLock;

/// Most descriptors of a process, whatever its limit says (Linux's fs.nr_open is larger): the table is one piece of memory.
pub const MAX_DESCRIPTORS: usize = 4096;

#[derive(Clone)]
struct Slot {
    file: FileRef,
    close_on_exec: bool,
}

impl Slot {
    /// The descriptor is closed: the process's locks on the file go with it. Without the table's lock.
    #[inline]
    fn released(&self) {
        if self.file.is_locked()
            && let Some(p) = current_process()
        {
            locks::descriptor_closed(p.pid, &self.file);
        }
    }
}

#[derive(Clone)]
struct Table {
    slots: Vec<Option<Slot>>,
    /// No descriptor below is free.
    first_free: usize,
}

impl Table {
    /// The lowest free descriptor from `from` on; the slot is there.
    fn free_from(&mut self, from: usize, limit: usize) -> Result<usize, Errno> {
        let mut fd = from.max(self.first_free);
        while self.slots.get(fd).is_some_and(Option::is_some) {
            fd += 1;
        }
        if fd >= limit {
            return Err(Errno::EMFILE);
        }
        self.reach(fd)?;
        if from <= self.first_free {
            self.first_free = fd + 1;
        }
        Ok(fd)
    }

    /// Makes sure that the slot is there.
    fn reach(&mut self, fd: usize) -> Result<(), Errno> {
        if fd >= self.slots.len() {
            self.slots.try_reserve(fd + 1 - self.slots.len()).map_err(|_| Errno::ENOMEM)?;
            self.slots.resize(fd + 1, None);
        }
        Ok(())
    }

    fn take(&mut self, fd: usize) -> Option<Slot> {
        let slot = self.slots.get_mut(fd)?.take()?;
        self.first_free = self.first_free.min(fd);
        Some(slot)
    }
}

/// See the module's text.
pub struct FsContext {
    /// Guards the table only: it is held for a look-up, never while a file is used or dropped.
    table: SpinLock<Table>,
    /// Guards the handle only.
    cwd: SpinLock<Arc<dyn Inode>>,
    umask: AtomicU32,
}

impl FsContext {
    /// For the first program: descriptors 0, 1, 2 on the console streams, working directory `/`.
    pub fn new_initial() -> Self {
        let root = super::root();
        let console = path::walk(&root, b"/dev/console", true, Caller(None)).ok();
        if tty::exists() {
            tty::set_session(1, 1);
        }
        Self::with_streams(root, |n| dev::standard_stream(n, console.clone()))
    }

    /// For a program that is started from outside. What it writes may go to the console; what is typed there belongs to the
    /// first program.
    pub fn new_spawned(streams: Streams) -> Self {
        let root = super::root();
        let node = |path: &[u8]| path::walk(&root, path, true, Caller(None)).ok();
        let (console, null) = (node(b"/dev/console"), node(b"/dev/null"));
        Self::with_streams(root, |n| match (streams, null.clone()) {
            (Streams::Null, Some(null)) => dev::null(null),
            (Streams::Console, Some(null)) if n == 0 => dev::null(null),
            _ => dev::standard_stream(n, console.clone()),
        })
    }

    fn with_streams(root: Arc<dyn Inode>, stream: impl Fn(u8) -> FileRef) -> Self {
        let slots = (0..3).map(|n| Some(Slot { file: stream(n), close_on_exec: false })).collect();
        Self {
            table: SpinLock::new(Table { slots, first_free: 3 }),
            cwd: SpinLock::new(root),
            umask: AtomicU32::new(0o022),
        }
    }

    /// A copy for a new process: the table is copied, the open files are shared.
    pub fn fork(&self) -> Self {
        Self {
            table: SpinLock::new(self.table.lock().clone()),
            cwd: SpinLock::new(self.cwd()),
            umask: AtomicU32::new(self.umask.load(Ordering::Relaxed)),
        }
    }

    /// Closes what is marked close-on-exec.
    pub fn close_on_exec(&self) {
        self.close_where(|_, s| s.close_on_exec);
    }

    /// Closes everything (the last thread has ended).
    pub fn close_all(&self) {
        self.close_where(|_, _| true);
    }

    /// Closes what `select` accepts.
    fn close_where(&self, select: impl Fn(usize, &Slot) -> bool) {
        let mut at = 0;
        loop {
            // A few at a time: the lock is short, and files are dropped after it.
            let mut gone = arrayvec::ArrayVec::<Slot, 16>::new();
            let end = {
                let mut t = self.table.lock();
                while at < t.slots.len() && !gone.is_full() {
                    if t.slots[at].as_ref().is_some_and(|s| select(at, s)) {
                        gone.extend(t.take(at));
                    }
                    at += 1;
                }
                at >= t.slots.len()
            };
            gone.iter().for_each(Slot::released);
            drop(gone);
            if end {
                return;
            }
        }
    }

    /// The file behind a descriptor.
    ///
    /// # Errors
    /// EBADF.
    #[inline]
    pub fn file(&self, fd: i32) -> Result<FileRef, Errno> {
        let table = self.table.lock();
        match table.slots.get(fd as u32 as usize) {
            Some(Some(slot)) => Ok(slot.file.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Gives a file the lowest free descriptor.
    ///
    /// # Errors
    /// EMFILE.
    pub fn install(&self, file: FileRef, close_on_exec: bool) -> SysResult {
        self.install_from(file, 0, close_on_exec)
    }

    /// As [`FsContext::install`], not below `from` (F_DUPFD).
    ///
    /// # Errors
    /// EMFILE, EINVAL.
    pub fn install_from(&self, file: FileRef, from: usize, close_on_exec: bool) -> SysResult {
        let limit = descriptor_limit();
        if from >= limit {
            return Err(Errno::EINVAL);
        }
        let slot = Slot { file, close_on_exec };
        let mut table = self.table.lock();
        match table.free_from(from, limit) {
            Ok(fd) => {
                table.slots[fd] = Some(slot);
                Ok(fd as u64)
            }
            Err(e) => {
                drop(table);
                drop(slot); // after the lock
                Err(e)
            }
        }
    }

    /// Gives a file a certain descriptor; what was there is closed (dup2).
    ///
    /// # Errors
    /// EBADF: out of range.
    pub fn install_at(&self, file: FileRef, fd: usize, close_on_exec: bool) -> SysResult {
        if fd >= descriptor_limit() {
            return Err(Errno::EBADF);
        }
        let old = {
            let mut table = self.table.lock();
            table.reach(fd)?;
            table.slots[fd].replace(Slot { file, close_on_exec })
        };
        if let Some(old) = old {
            old.released();
        }
        Ok(fd as u64)
    }

    /// Closes a descriptor.
    ///
    /// # Errors
    /// EBADF.
    pub fn close(&self, fd: i32) -> SysResult {
        let slot = self.table.lock().take(fd as u32 as usize);
        slot.map(|s| s.released()).map(|()| 0).ok_or(Errno::EBADF)
    }

    /// close_range(2): closes, or marks close-on-exec.
    pub fn close_range(&self, first: usize, last: usize, mark_only: bool) {
        if mark_only {
            let mut table = self.table.lock();
            let end = last.saturating_add(1).min(table.slots.len());
            table.slots[first.min(end)..end].iter_mut().flatten().for_each(|s| s.close_on_exec = true);
        } else {
            self.close_where(|fd, _| (first..=last).contains(&fd));
        }
    }

    /// The close-on-exec mark.
    ///
    /// # Errors
    /// EBADF.
    pub fn close_on_exec_of(&self, fd: i32) -> Result<bool, Errno> {
        let table = self.table.lock();
        table.slots.get(fd as u32 as usize).and_then(Option::as_ref).map(|s| s.close_on_exec).ok_or(Errno::EBADF)
    }

    /// Sets the close-on-exec mark.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_close_on_exec(&self, fd: i32, on: bool) -> SysResult {
        let mut table = self.table.lock();
        let slot = table.slots.get_mut(fd as u32 as usize).and_then(Option::as_mut).ok_or(Errno::EBADF)?;
        slot.close_on_exec = on;
        Ok(0)
    }

    /// All open descriptors, for /proc.
    pub fn descriptors(&self) -> Vec<usize> {
        let table = self.table.lock();
        table.slots.iter().enumerate().filter(|(_, s)| s.is_some()).map(|(i, _)| i).collect()
    }

    /// Working directory.
    pub fn cwd(&self) -> Arc<dyn Inode> {
        self.cwd.lock().clone()
    }

    /// Sets the working directory by its path.
    ///
    /// # Errors
    /// As chdir(2).
    pub fn set_cwd(&self, path: &[u8]) -> Result<(), Errno> {
        let dir = path::walk(&self.cwd(), path, true, Caller(None))?;
        self.enter(dir)
    }

    /// Sets the working directory.
    ///
    /// # Errors
    /// ENOTDIR.
    pub fn enter(&self, dir: Arc<dyn Inode>) -> Result<(), Errno> {
        if !dir.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let old = core::mem::replace(&mut *self.cwd.lock(), dir);
        drop(old); // after the lock
        Ok(())
    }

    /// The permission bits that new files don't get.
    pub fn umask(&self) -> u32 {
        self.umask.load(Ordering::Relaxed)
    }

    /// Sets the umask; returns the old one.
    pub fn set_umask(&self, mask: u32) -> u32 {
        self.umask.swap(mask & 0o777, Ordering::Relaxed)
    }

    /// Where a `*at` call starts: the working directory for AT_FDCWD, else an open directory.
    ///
    /// # Errors
    /// EBADF, ENOTDIR.
    pub fn start(&self, dirfd: i32, path: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        if path.first() == Some(&b'/') {
            return Ok(super::root());
        }
        if dirfd == path::AT_FDCWD {
            return Ok(self.cwd());
        }
        self.file(dirfd)?.file.inode().ok_or(Errno::ENOTDIR)
    }
}

/// RLIMIT_NOFILE of the caller.
pub fn descriptor_limit() -> usize {
    let limit = current_process().map_or(1024, |p| p.limits.lock().files());
    usize::try_from(limit).unwrap_or(MAX_DESCRIPTORS).min(MAX_DESCRIPTORS)
}

fn current_process() -> Option<Arc<Process>> {
    process::thread_of(&crate::task::current()).map(|t| t.process.clone())
}
