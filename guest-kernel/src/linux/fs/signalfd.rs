//! signalfd: blocked signals read like a file.
//!
//! A read takes the reader's signals, as on Linux. Who waits in poll or epoll is woken by signals to the process that made the
//! descriptor, which is the same unless a child inherited it.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};

use super::inode::Inode;
use super::io::IoCursor;
use super::open_file::{Events, File, Flags, OpenFile};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::signal::{SigInfo, SigSet, UNBLOCKABLE, code};
use crate::linux::process::timers;
use crate::linux::process::{self, Process};
use crate::mm::user;
use crate::sync::WaitQueue;
use crate::task;

/// `struct signalfd_siginfo`.
const RECORD: usize = 128;

struct SignalFile {
    wanted: AtomicU64,
    /// Whose signals make it readable. Weak: the process holds the file.
    owner: Weak<Process>,
}

impl SignalFile {
    fn wanted(&self) -> SigSet {
        // Relaxed: a read beside a change may see either set.
        self.wanted.load(Ordering::Relaxed)
    }

    /// Takes a signal of the running thread or its process.
    fn take(&self) -> Option<SigInfo> {
        let task = task::current();
        let thread = process::thread_of(&task)?;
        let mut shared = thread.process.signals.lock();
        let own = thread.pending.lock().take(self.wanted());
        own.or_else(|| shared.shared.take(self.wanted()))
    }
}

/// As Linux fs/signalfd.c fills it, by the kind of signal.
fn record(info: &SigInfo) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &info.signo.to_ne_bytes());
    put(4, &info.errno.to_ne_bytes());
    put(8, &info.code.to_ne_bytes());
    let [first, second, third, _] = info.fields;
    if info.code == code::SI_TIMER {
        put(24, &(first as u32).to_ne_bytes()); // ssi_tid
        put(32, &((first >> 32) as u32).to_ne_bytes()); // ssi_overrun
        put(44, &(second as u32).to_ne_bytes()); // ssi_int
        put(48, &second.to_ne_bytes()); // ssi_ptr
        return bytes;
    }
    put(12, &(first as u32).to_ne_bytes()); // ssi_pid
    put(16, &((first >> 32) as u32).to_ne_bytes()); // ssi_uid
    match info.code {
        code::CLD_EXITED | code::CLD_KILLED | code::CLD_STOPPED | code::CLD_CONTINUED => {
            put(40, &(second as u32).to_ne_bytes()); // ssi_status
            put(56, &third.to_ne_bytes()); // ssi_utime
        }
        queued if queued < 0 => {
            put(44, &(second as u32).to_ne_bytes());
            put(48, &second.to_ne_bytes());
        }
        _ => {}
    }
    bytes
}

impl File for SignalFile {
    fn read(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        if io.left() < RECORD {
            return Err(Errno::EINVAL);
        }
        let first = match self.take() {
            Some(info) => info,
            None if flags.nonblock() => return Err(Errno::EAGAIN),
            None => process::current()
                .signal_files
                .wait_interruptible(None, || self.take())
                .map_err(|_| Errno::ERESTARTSYS)?,
        };
        let process = process::current();
        timers::taken(&process, &first);
        let mut done = io.put(&record(&first))?;
        while io.left() >= RECORD
            && let Some(info) = self.take()
        {
            timers::taken(&process, &info);
            done += io.put(&record(&info))?;
        }
        Ok(done)
    }

    fn write(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn poll(&self) -> Events {
        let Some(owner) = self.owner.upgrade() else { return Events::empty() };
        let mut pending = owner.signals.lock().shared.set;
        if let Some(thread) = process::thread_of(&task::current()).filter(|t| Arc::ptr_eq(&t.process, &owner)) {
            pending |= thread.pending.lock().set;
        }
        if pending & self.wanted() != 0 { Events::READ } else { Events::empty() }
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn queues(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        if let Some(owner) = self.owner.upgrade() {
            visit(&owner.signal_files);
        }
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        None
    }

    fn path(&self) -> Vec<u8> {
        b"anon_inode:[signalfd]".to_vec()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// signalfd4(2): a new one, or another set for one that is there.
///
/// # Errors
/// EINVAL, EBADF, EFAULT, EMFILE.
pub fn signalfd(process: &Arc<Process>, fd: u64, set: u64, size: u64, flags: u64) -> SysResult {
    let given = Flags::from_bits_retain(flags as u32);
    if size != size_of::<SigSet>() as u64 || !(Flags::CLOEXEC | Flags::NONBLOCK).contains(given) {
        return Err(Errno::EINVAL);
    }
    let wanted = user::read::<SigSet>(set)? & !UNBLOCKABLE;
    if fd as i32 == -1 {
        let file = SignalFile { wanted: AtomicU64::new(wanted), owner: Arc::downgrade(process) };
        return process.fs.install(OpenFile::new(file, given | Flags::RDWR), given.contains(Flags::CLOEXEC));
    }
    let file = process.fs.file(fd as i32)?;
    let there: &SignalFile = file.file.as_any().downcast_ref().ok_or(Errno::EINVAL)?;
    there.wanted.store(wanted, Ordering::Relaxed);
    process.signal_files.wake_all();
    Ok(u64::from(fd as u32))
}
