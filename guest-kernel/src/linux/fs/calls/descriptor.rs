//! Descriptors themselves: dup, fcntl, close, ioctl.

use alloc::sync::Arc;

use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::locks::{self, Command};
use crate::linux::fs::open_file::Flags;
use crate::linux::fs::pipe;
use crate::linux::process::Process;
use crate::mm::user;

// fcntl(2). Linux include/uapi/asm-generic/fcntl.h, include/uapi/linux/fcntl.h.
const DUPFD: u64 = 0;
const GETFD: u64 = 1;
const SETFD: u64 = 2;
const GETFL: u64 = 3;
const SETFL: u64 = 4;
const GETLK: u64 = 5;
const SETLK: u64 = 6;
const SETLKW: u64 = 7;
const SETOWN: u64 = 8;
const GETOWN: u64 = 9;
const OFD_GETLK: u64 = 36;
const OFD_SETLK: u64 = 37;
const OFD_SETLKW: u64 = 38;
const GETLEASE: u64 = 1025;
const DUPFD_CLOEXEC: u64 = 1030;
const SETPIPE_SZ: u64 = 1031;
const GETPIPE_SZ: u64 = 1032;
const FD_CLOEXEC: u64 = 1;
const F_UNLCK: u64 = 2;

// Every file knows these. Linux include/uapi/asm-generic/ioctls.h.
const FIONBIO: u32 = 0x5421;
const FIONCLEX: u32 = 0x5450;
const FIOCLEX: u32 = 0x5451;
const FIOASYNC: u32 = 0x5452;

/// CLOSE_RANGE_UNSHARE (threads share their table here, so it changes nothing), CLOSE_RANGE_CLOEXEC.
const RANGE_KNOWN: u64 = 2 | 4;
const RANGE_CLOEXEC: u64 = 4;

/// dup(2).
pub fn dup(process: &Process, fd: u64) -> SysResult {
    process.fs.install(process.fs.file(fd as i32)?, false)
}

/// dup2(2).
pub fn dup2(process: &Process, old: u64, new: u64) -> SysResult {
    let file = process.fs.file(old as i32)?;
    if old as u32 == new as u32 {
        return Ok(u64::from(new as u32));
    }
    process.fs.install_at(file, new as u32 as usize, false)
}

/// dup3(2).
pub fn dup3(process: &Process, old: u64, new: u64, flags: u64) -> SysResult {
    let flags = Flags::from_bits_retain(flags as u32);
    if !Flags::CLOEXEC.contains(flags) || old as u32 == new as u32 {
        return Err(Errno::EINVAL);
    }
    let file = process.fs.file(old as i32)?;
    process.fs.install_at(file, new as u32 as usize, flags.contains(Flags::CLOEXEC))
}

/// close_range(2).
pub fn close_range(process: &Process, first: u64, last: u64, flags: u64) -> SysResult {
    let (first, last) = (first as u32 as usize, last as u32 as usize);
    if first > last || flags & !RANGE_KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    process.fs.close_range(first, last, flags & RANGE_CLOEXEC != 0);
    Ok(0)
}

/// fcntl(2).
pub fn fcntl(process: &Process, fd: u64, command: u64, argument: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    match command {
        DUPFD | DUPFD_CLOEXEC => process.fs.install_from(file, argument as u32 as usize, command == DUPFD_CLOEXEC),
        GETFD => process.fs.close_on_exec_of(fd as i32).map(u64::from),
        SETFD => process.fs.set_close_on_exec(fd as i32, argument & FD_CLOEXEC != 0),
        GETFL => Ok(u64::from(file.flags().bits())),
        SETFL => {
            file.set_flags(Flags::from_bits_retain(argument as u32));
            Ok(0)
        }
        GETLK | OFD_GETLK => locks::control(process, &file, Command::Get, command == OFD_GETLK, argument),
        SETLK | OFD_SETLK => locks::control(process, &file, Command::Set, command == OFD_SETLK, argument),
        SETLKW | OFD_SETLKW => locks::control(process, &file, Command::Wait, command == OFD_SETLKW, argument),
        GETOWN | SETOWN => Ok(0),
        GETLEASE => Ok(F_UNLCK),
        GETPIPE_SZ => pipe::capacity(&file),
        SETPIPE_SZ => pipe::set_capacity(&file, u64::from(argument as u32)),
        _ => Err(Errno::EINVAL),
    }
}

/// ioctl(2).
pub fn ioctl(process: &Arc<Process>, fd: u64, command: u64, argument: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    if file.flags().contains(Flags::PATH) {
        return Err(Errno::EBADF);
    }
    match command as u32 {
        FIONBIO => {
            let on: i32 = user::read(argument)?;
            let others = file.flags().difference(Flags::NONBLOCK);
            file.set_flags(if on != 0 { others | Flags::NONBLOCK } else { others });
            Ok(0)
        }
        FIOCLEX => process.fs.set_close_on_exec(fd as i32, true),
        FIONCLEX => process.fs.set_close_on_exec(fd as i32, false),
        FIOASYNC => Ok(0),
        c => file.file.ioctl(process, c, argument),
    }
}
