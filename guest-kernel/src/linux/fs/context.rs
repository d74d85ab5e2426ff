//! What a process knows of the file system: descriptors, working directory, umask.
//!
//! Threads share all of it. Processes may share the descriptors (CLONE_FILES) or the other two (CLONE_FS) until one of them
//! unshares them or runs a program.

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

/// Whose the descriptors are. A process's own are in place, so that a look-up takes one lock; the lock of shared ones is taken
/// with the process's own held, and is a leaf.
enum Files {
    Own(Table),
    Shared(Arc<SpinLock<Table>>),
}

/// Working directory and umask.
struct Place {
    /// Guards the handle only.
    cwd: SpinLock<Arc<dyn Inode>>,
    umask: AtomicU32,
}

/// What a new process shares with its parent; of the rest it gets a copy.
#[derive(Clone, Copy, Default)]
pub struct Share {
    /// Descriptors (CLONE_FILES).
    pub files: bool,
    /// Working directory and umask (CLONE_FS).
    pub place: bool,
}

impl Table {
    const EMPTY: Self = Self { slots: Vec::new(), first_free: 0 };

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
    files: SpinLock<Files>,
    /// Guards the handle only.
    place: SpinLock<Arc<Place>>,
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

    /// For a program whose streams are there already, 0 to 2.
    pub fn new_attached(streams: &[FileRef; 3]) -> Self {
        Self::with_streams(super::root(), |n| streams[usize::from(n)].clone())
    }

    fn with_streams(root: Arc<dyn Inode>, stream: impl Fn(u8) -> FileRef) -> Self {
        let slots = (0..3).map(|n| Some(Slot { file: stream(n), close_on_exec: false })).collect();
        Self {
            files: SpinLock::new(Files::Own(Table { slots, first_free: 3 })),
            place: SpinLock::new(Arc::new(Place { cwd: SpinLock::new(root), umask: AtomicU32::new(0o022) })),
        }
    }

    /// For a new process. Of a copied table the open files are shared all the same.
    pub fn fork(&self, share: Share) -> Self {
        let files =
            if share.files { Files::Shared(self.share_table()) } else { Files::Own(self.with_table(|t| t.clone())) };
        let place = if share.place { self.place() } else { self.copy_place() };
        Self { files: SpinLock::new(files), place: SpinLock::new(place) }
    }

    /// Ends what is shared with other processes (unshare(2), and exec for the descriptors).
    pub fn unshare(&self, what: Share) {
        if what.files {
            let mut files = self.files.lock();
            let copy = match &*files {
                Files::Own(_) => None,
                Files::Shared(table) => Some(table.lock().clone()),
            };
            let old = copy.map(|table| core::mem::replace(&mut *files, Files::Own(table)));
            drop(files);
            drop(old); // after the lock: the last handle closes files
        }
        if what.place {
            let copy = self.copy_place();
            let old = core::mem::replace(&mut *self.place.lock(), copy);
            drop(old); // after the lock
        }
    }

    #[inline]
    fn with_table<R>(&self, f: impl FnOnce(&mut Table) -> R) -> R {
        match &mut *self.files.lock() {
            Files::Own(table) => f(table),
            Files::Shared(table) => f(&mut table.lock()),
        }
    }

    /// A handle to the table, which others may have from now on.
    fn share_table(&self) -> Arc<SpinLock<Table>> {
        let mut files = self.files.lock();
        if let Files::Own(table) = &mut *files {
            let table = core::mem::replace(table, Table::EMPTY);
            *files = Files::Shared(Arc::new(SpinLock::new(table)));
        }
        match &*files {
            Files::Shared(table) => table.clone(),
            Files::Own(_) => unreachable!("just replaced"),
        }
    }

    fn place(&self) -> Arc<Place> {
        self.place.lock().clone()
    }

    fn copy_place(&self) -> Arc<Place> {
        Arc::new(Place { cwd: SpinLock::new(self.cwd()), umask: AtomicU32::new(self.umask()) })
    }

    /// Closes what is marked close-on-exec.
    pub fn close_on_exec(&self) {
        self.close_where(|_, s| s.close_on_exec);
    }

    /// Lets go of all descriptors (the last thread has ended): closes those that no other process shares.
    pub fn close_all(&self) {
        let left = core::mem::replace(&mut *self.files.lock(), Files::Own(Table::EMPTY));
        let slots = match left {
            Files::Own(table) => table.slots,
            // Locks go with the process, whoever else has the descriptors.
            Files::Shared(table) => table.lock().slots.iter().filter(|s| s.is_some()).cloned().collect(),
        };
        slots.iter().flatten().for_each(Slot::released);
    }

    /// Closes what `select` accepts.
    fn close_where(&self, select: impl Fn(usize, &Slot) -> bool) {
        let mut at = 0;
        loop {
            // A few at a time: the lock is short, and files are dropped after it.
            let mut gone = arrayvec::ArrayVec::<Slot, 16>::new();
            let end = self.with_table(|t| {
                while at < t.slots.len() && !gone.is_full() {
                    if t.slots[at].as_ref().is_some_and(|s| select(at, s)) {
                        gone.extend(t.take(at));
                    }
                    at += 1;
                }
                at >= t.slots.len()
            });
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
        self.with_table(|table| match table.slots.get(fd as u32 as usize) {
            Some(Some(slot)) => Ok(slot.file.clone()),
            _ => Err(Errno::EBADF),
        })
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
        let result = self.with_table(|table| match table.free_from(from, limit) {
            Ok(fd) => {
                table.slots[fd] = Some(slot);
                Ok(fd as u64)
            }
            Err(e) => Err((e, slot)),
        });
        result.map_err(|(e, _slot)| e) // which drops after the lock
    }

    /// Gives a file a certain descriptor; what was there is closed (dup2).
    ///
    /// # Errors
    /// EBADF: out of range.
    pub fn install_at(&self, file: FileRef, fd: usize, close_on_exec: bool) -> SysResult {
        if fd >= descriptor_limit() {
            return Err(Errno::EBADF);
        }
        let slot = Slot { file, close_on_exec };
        let old = self.with_table(|table| match table.reach(fd) {
            Ok(()) => Ok(table.slots[fd].replace(slot)),
            Err(e) => Err((e, slot)),
        });
        if let Some(old) = old.map_err(|(e, _slot)| e)? {
            old.released();
        }
        Ok(fd as u64)
    }

    /// Closes a descriptor.
    ///
    /// # Errors
    /// EBADF.
    pub fn close(&self, fd: i32) -> SysResult {
        let slot = self.with_table(|table| table.take(fd as u32 as usize));
        slot.map(|s| s.released()).map(|()| 0).ok_or(Errno::EBADF)
    }

    /// close_range(2): closes, or marks close-on-exec.
    pub fn close_range(&self, first: usize, last: usize, mark_only: bool) {
        if mark_only {
            self.with_table(|table| {
                let end = last.saturating_add(1).min(table.slots.len());
                table.slots[first.min(end)..end].iter_mut().flatten().for_each(|s| s.close_on_exec = true);
            });
        } else {
            self.close_where(|fd, _| (first..=last).contains(&fd));
        }
    }

    /// The close-on-exec mark.
    ///
    /// # Errors
    /// EBADF.
    pub fn close_on_exec_of(&self, fd: i32) -> Result<bool, Errno> {
        let at = fd as u32 as usize;
        self.with_table(|t| t.slots.get(at).and_then(Option::as_ref).map(|s| s.close_on_exec)).ok_or(Errno::EBADF)
    }

    /// Sets the close-on-exec mark.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_close_on_exec(&self, fd: i32, on: bool) -> SysResult {
        self.with_table(|table| {
            let slot = table.slots.get_mut(fd as u32 as usize).and_then(Option::as_mut).ok_or(Errno::EBADF)?;
            slot.close_on_exec = on;
            Ok(0)
        })
    }

    /// All open descriptors, for /proc.
    pub fn descriptors(&self) -> Vec<usize> {
        self.with_table(|t| t.slots.iter().enumerate().filter(|(_, s)| s.is_some()).map(|(i, _)| i).collect())
    }

    /// Working directory.
    pub fn cwd(&self) -> Arc<dyn Inode> {
        self.place().cwd.lock().clone()
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
        let old = core::mem::replace(&mut *self.place().cwd.lock(), dir);
        drop(old); // after the lock
        Ok(())
    }

    /// The permission bits that new files don't get.
    pub fn umask(&self) -> u32 {
        self.place().umask.load(Ordering::Relaxed)
    }

    /// Sets the umask; returns the old one.
    pub fn set_umask(&self, mask: u32) -> u32 {
        self.place().umask.swap(mask & 0o777, Ordering::Relaxed)
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
