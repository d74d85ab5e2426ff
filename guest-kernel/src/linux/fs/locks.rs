//! Advisory locks: flock(2), and ranges by fcntl(2), of processes (POSIX) and of open files (OFD).
//!
//! One table for all files: a flag in the open file spares the others the look. Two families don't see each other: flock's and the
//! ranges. Waiting is not checked for circles (no EDEADLK).

use alloc::vec::Vec;

use super::open_file::FileRef;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::Process;
use crate::mm::user::{self, Plain};
use crate::sync::{SpinLock, WaitQueue};

// flock(2). Linux include/uapi/asm-generic/fcntl.h.
const LOCK_SH: u64 = 1;
const LOCK_EX: u64 = 2;
const LOCK_NB: u64 = 4;
const LOCK_UN: u64 = 8;
// fcntl(2): l_type.
const F_RDLCK: u16 = 0;
const F_WRLCK: u16 = 1;
const F_UNLCK: u16 = 2;
/// No room for another lock (ENOLCK).
const NO_LOCKS: Errno = Errno(37);
/// Most locks of all programs together.
const MAX_LOCKS: usize = 4096;

/// Who holds a lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Process(u32),
    /// Address of the open file.
    File(usize),
}

#[derive(Clone, Copy)]
struct Lock {
    /// File system and number of the file.
    object: (u64, u64),
    /// flock's family, or that of ranges.
    whole: bool,
    owner: Owner,
    start: u64,
    /// First byte behind it; `u64::MAX`: to the end, however far.
    end: u64,
    exclusive: bool,
}

impl Lock {
    fn meets(&self, other: &Lock) -> bool {
        self.object == other.object && self.whole == other.whole && self.start < other.end && other.start < self.end
    }

    fn conflicts(&self, other: &Lock) -> bool {
        self.meets(other) && self.owner != other.owner && (self.exclusive || other.exclusive)
    }
}

/// Guards the list only.
static TABLE: SpinLock<Vec<Lock>> = SpinLock::new(Vec::new());
static QUEUE: WaitQueue = WaitQueue::new();

/// Takes the owner's own locks out of a range; what sticks out of it stays.
fn clear(table: &mut Vec<Lock>, range: &Lock) -> bool {
    let mut rest = Vec::new();
    let before = table.len();
    table.retain(|l| {
        if l.owner != range.owner || !l.meets(range) {
            return true;
        }
        if l.start < range.start {
            rest.push(Lock { end: range.start, ..*l });
        }
        if l.end > range.end {
            rest.push(Lock { start: range.end, ..*l });
        }
        false
    });
    let changed = table.len() != before;
    table.append(&mut rest);
    changed
}

fn unlock(range: &Lock) {
    let changed = clear(&mut TABLE.lock(), range);
    if changed {
        QUEUE.wake_all();
    }
}

fn lock(wanted: Lock, wait: bool) -> Result<(), Errno> {
    if TABLE.lock().len() >= MAX_LOCKS {
        return Err(NO_LOCKS);
    }
    let attempt = || {
        let mut table = TABLE.lock();
        if table.iter().any(|l| l.conflicts(&wanted)) {
            return None;
        }
        let changed = clear(&mut table, &wanted);
        table.push(wanted);
        Some(changed)
    };
    let changed = match attempt() {
        Some(c) => c,
        None if !wait => return Err(Errno::EAGAIN),
        None => QUEUE.wait_interruptible(None, attempt).map_err(|_| Errno::ERESTARTSYS)?,
    };
    if changed {
        // A lock was made weaker: others may get theirs.
        QUEUE.wake_all();
    }
    Ok(())
}

fn object_of(file: &FileRef) -> (u64, u64) {
    let m = file.file.metadata();
    (m.dev, m.ino)
}

fn file_owner(file: &FileRef) -> Owner {
    Owner::File(core::ptr::from_ref(&**file).cast::<u8>() as usize)
}

/// flock(2).
///
/// # Errors
/// EBADF, EINVAL, EAGAIN, EINTR.
pub fn flock(process: &Process, fd: u64, operation: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    let mut range = Lock {
        object: object_of(&file),
        whole: true,
        owner: file_owner(&file),
        start: 0,
        end: u64::MAX,
        exclusive: operation & LOCK_EX != 0,
    };
    match operation & !LOCK_NB {
        LOCK_UN => unlock(&range),
        LOCK_SH | LOCK_EX => {
            file.note_locked();
            // Linux gives up the old lock before it takes the new one.
            let held = TABLE
                .lock()
                .iter()
                .any(|l| l.owner == range.owner && l.meets(&range) && l.exclusive == range.exclusive);
            if !held {
                unlock(&range);
                range.exclusive = operation & LOCK_EX != 0;
                lock(range, operation & LOCK_NB == 0)?;
            }
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// `struct flock`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Request {
    kind: u16,
    whence: u16,
    pad0: u32,
    start: i64,
    len: i64,
    pid: i32,
    pad1: u32,
}

// SAFETY: integers, padding spelled out.
unsafe impl Plain for Request {}

/// What an fcntl(2) lock command wants.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// F_GETLK: is there a lock in the way?
    Get,
    /// F_SETLK: now or never.
    Set,
    /// F_SETLKW: wait for it.
    Wait,
}

/// The lock commands of fcntl(2); `of_file`: the OFD ones.
///
/// # Errors
/// EAGAIN, EBADF, EFAULT, EINTR, EINVAL, EOVERFLOW.
pub fn control(process: &Process, file: &FileRef, command: Command, of_file: bool, argument: u64) -> SysResult {
    let mut r: Request = user::read(argument)?;
    if of_file && r.pid != 0 {
        return Err(Errno::EINVAL);
    }
    let base = match r.whence {
        0 => 0,
        1 => file.file.seek(0, 1)?,
        2 => file.file.metadata().size,
        _ => return Err(Errno::EINVAL),
    };
    let base = i64::try_from(base).map_err(|_| Errno::EOVERFLOW)?;
    let at = base.checked_add(r.start).ok_or(Errno::EOVERFLOW)?;
    // A negative length is the range before the start; 0 is everything behind it.
    let (start, end) = match r.len {
        0 => (at, i64::MAX),
        n if n > 0 => (at, at.checked_add(n).ok_or(Errno::EOVERFLOW)?),
        n => (at.checked_add(n).ok_or(Errno::EINVAL)?, at),
    };
    let start = u64::try_from(start).map_err(|_| Errno::EINVAL)?;
    let end = if r.len == 0 { u64::MAX } else { end as u64 };
    let owner = if of_file { file_owner(file) } else { Owner::Process(process.pid) };
    let range = Lock { object: object_of(file), whole: false, owner, start, end, exclusive: r.kind == F_WRLCK };
    let flags = file.flags();
    match (command, r.kind) {
        (Command::Get, F_RDLCK | F_WRLCK) => {
            let other = TABLE.lock().iter().find(|l| l.conflicts(&range)).copied();
            match other {
                None => r.kind = F_UNLCK,
                Some(l) => {
                    r.kind = if l.exclusive { F_WRLCK } else { F_RDLCK };
                    (r.whence, r.start) = (0, l.start as i64);
                    r.len = if l.end == u64::MAX { 0 } else { (l.end - l.start) as i64 };
                    r.pid = if let Owner::Process(pid) = l.owner { pid as i32 } else { -1 };
                }
            }
            user::write(argument, &r)?;
        }
        (Command::Set | Command::Wait, F_UNLCK) => unlock(&range),
        (Command::Set | Command::Wait, F_RDLCK | F_WRLCK) => {
            if r.kind == F_WRLCK && !flags.writable() || r.kind == F_RDLCK && !flags.readable() {
                return Err(Errno::EBADF);
            }
            file.note_locked();
            lock(range, command == Command::Wait)?;
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// A process has closed one of its descriptors of a file: its POSIX locks there are gone.
pub fn descriptor_closed(pid: u32, file: &FileRef) {
    let owner = Owner::Process(pid);
    unlock(&Lock { object: object_of(file), whole: false, owner, start: 0, end: u64::MAX, exclusive: false });
}

/// An open file is going away: its own locks are gone. `address` is that of the open file.
pub fn file_gone(address: usize) {
    let changed = {
        let mut table = TABLE.lock();
        let before = table.len();
        table.retain(|l| l.owner != Owner::File(address));
        table.len() != before
    };
    if changed {
        QUEUE.wake_all();
    }
}
