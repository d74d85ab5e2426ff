//! Sockets: there is no network, only pairs of connected local ones (socketpair).

use super::open::give_pair;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::io::{IoCursor, IoVec, read_segments};
use crate::linux::fs::open_file::{FileRef, Flags};
use crate::linux::fs::socket_pair::SocketEnd;
use crate::linux::process::{Process, signal};
use crate::mm::user;

/// Not a socket (Linux include/uapi/asm-generic/errno.h).
const ENOTSOCK: Errno = Errno(88);
const AF_UNIX: u64 = 1;
const SOCK_STREAM: u64 = 1;
const TYPE_MASK: u64 = 0xf;
const MSG_DONTWAIT: u64 = 0x40;
const MSG_NOSIGNAL: u64 = 0x4000;
/// Flags that change nothing here: NOSIGNAL is obeyed; CMSG_CLOEXEC has no descriptors to mark.
const MSG_KNOWN: u64 = MSG_DONTWAIT | MSG_NOSIGNAL | 0x4000_0000;

/// socket(2): no protocol family is there.
pub fn socket() -> SysResult {
    Err(Errno::EAFNOSUPPORT)
}

/// socketpair(2).
pub fn socketpair(process: &Process, family: u64, kind: u64, fds: u64) -> SysResult {
    if family != AF_UNIX {
        return Err(Errno::EAFNOSUPPORT);
    }
    let flags = Flags::from_bits_retain((kind & !TYPE_MASK) as u32);
    if !(Flags::CLOEXEC | Flags::NONBLOCK).contains(flags) {
        return Err(Errno::EINVAL);
    }
    if kind & TYPE_MASK != SOCK_STREAM {
        return Err(Errno::EOPNOTSUPP);
    }
    let (a, b) = SocketEnd::pair(flags & Flags::NONBLOCK);
    give_pair(process, a, b, flags.contains(Flags::CLOEXEC), fds)
}

fn end(file: &FileRef) -> Result<&SocketEnd, Errno> {
    file.file.as_any().downcast_ref().ok_or(ENOTSOCK)
}

fn transfer(file: &FileRef, io: &mut IoCursor<'_>, flags: u64, send: bool) -> SysResult {
    end(file)?;
    if flags & !MSG_KNOWN != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let mut how = file.flags();
    if flags & MSG_DONTWAIT != 0 {
        how |= Flags::NONBLOCK;
    }
    let result = if send { file.file.write(io, how) } else { file.file.read(io, how) };
    if send && flags & MSG_NOSIGNAL == 0 && result == Err(Errno::EPIPE) {
        signal::send_to_current_thread(signal::SIGPIPE);
    }
    result.map(|n| n as u64)
}

/// sendto(2) and recvfrom(2), without an address.
pub fn send_or_receive(process: &Process, a: &[u64; 6], send: bool) -> SysResult {
    let file = process.fs.file(a[0] as i32)?;
    let segment = IoVec { base: a[1], len: a[2] };
    if !send && a[5] != 0 {
        user::write(a[5], &0u32)?;
    }
    transfer(&file, &mut IoCursor::one(&segment), a[3], send)
}

/// sendmsg(2) and recvmsg(2), without ancillary data: struct msghdr { name, namelen, iov, iovlen, control, controllen, flags }.
pub fn message(process: &Process, fd: u64, header: u64, flags: u64, send: bool) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    end(&file)?;
    let words: [u64; 7] = user::read(header)?;
    if send && words[5] != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let segments = read_segments(words[2], words[3])?;
    let n = transfer(&file, &mut IoCursor::user(&segments)?, flags, send)?;
    if !send {
        user::write(header + 8, &0u32)?;
        user::write(header + 40, &[0u64; 2])?;
    }
    Ok(n)
}

/// shutdown(2).
pub fn shutdown(process: &Process, fd: u64, how: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    end(&file)?.shut_down(how)
}

/// Calls that only a socket of a network could obey.
pub fn not_here(process: &Process, fd: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    end(&file)?;
    Err(Errno::EOPNOTSUPP)
}

/// setsockopt(2): accepted on a pair, without effect.
pub fn set_option(process: &Process, fd: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    end(&file).map(|_| 0)
}
