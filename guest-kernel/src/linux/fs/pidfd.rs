//! pidfd: a descriptor that names a process for good, whatever becomes of its number.
//!
//! `calls` of processes reach it through [`process_of`] (waitid with P_PIDFD). Readable once the process has ended.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::Ordering;

use super::inode::Inode;
use super::io::IoCursor;
use super::open_file::{Events, File, Flags, OpenFile};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::signal::{self, SigInfo, code};
use crate::linux::process::{self, Process};
use crate::mm::user;
use crate::sync::WaitQueue;

struct PidFile(Arc<Process>);

impl File for PidFile {
    fn read(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn write(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn poll(&self) -> Events {
        // Acquire: what the process did before it ended is visible to who polls.
        if self.0.zombie.load(Ordering::Acquire) { Events::READ } else { Events::empty() }
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn queues(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.0.thread_gone);
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        None
    }

    fn path(&self) -> Vec<u8> {
        b"anon_inode:[pidfd]".to_vec()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// pidfd_open(2).
///
/// # Errors
/// EINVAL, ESRCH, EMFILE.
pub fn open(process: &Process, pid: u64, flags: u64) -> SysResult {
    let given = Flags::from_bits_retain(flags as u32);
    if !Flags::NONBLOCK.contains(given) || pid as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let target = process::find(pid as u32).ok_or(Errno::ESRCH)?;
    install(process, &target, given)
}

/// A new descriptor of `process` that names `target` (clone with CLONE_PIDFD).
///
/// # Errors
/// EMFILE.
pub fn install(process: &Process, target: &Arc<Process>, flags: Flags) -> SysResult {
    process.fs.install(OpenFile::new(PidFile(target.clone()), flags | Flags::RDWR), true)
}

/// The process behind a descriptor, and whether waiting for it may not block.
///
/// # Errors
/// EBADF.
pub fn process_of(process: &Process, fd: u64) -> Result<(Arc<Process>, bool), Errno> {
    let file = process.fs.file(fd as i32)?;
    let PidFile(target) = file.file.as_any().downcast_ref().ok_or(Errno::EBADF)?;
    Ok((target.clone(), file.flags().nonblock()))
}

/// pidfd_send_signal(2).
///
/// # Errors
/// EBADF, EINVAL, EPERM, ESRCH, EAGAIN, EFAULT.
pub fn send_signal(process: &Process, fd: u64, sig: u64, info: u64, flags: u64) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let (target, _) = process_of(process, fd)?;
    let sent = if info == 0 {
        SigInfo::user(sig as u32, code::SI_USER, process.pid)
    } else {
        let info = SigInfo::from_words(user::read(info)?);
        if u64::from(info.signo) != sig {
            return Err(Errno::EINVAL);
        }
        if target.pid != process.pid && (info.code >= 0 || info.code == code::SI_TKILL) {
            return Err(Errno::EPERM);
        }
        info
    };
    if sig > u64::from(signal::MAX_SIGNAL) {
        return Err(Errno::EINVAL);
    }
    // Reaped: its number may be another's by now.
    if !process::find(target.pid).is_some_and(|p| Arc::ptr_eq(&p, &target)) {
        return Err(Errno::ESRCH);
    }
    if sig != 0 && !signal::send_info(&target, sent) { Err(Errno::EAGAIN) } else { Ok(0) }
}
