//! stat and its variants, access, attributes, file systems.

use alloc::sync::Arc;

use super::open::target;
use super::{at, only};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::inode::{Change, Inode, Metadata, Stat, Statx, mode};
use crate::linux::fs::memfs::{self, node_of};
use crate::linux::fs::path::{AT_FDCWD, lookup_at, read_path};
use crate::linux::process::Process;
use crate::mm::layout::PAGE_SIZE;
use crate::mm::user::{self, Plain};
use crate::time::wall;

const NANOS: u64 = 1_000_000_000;
/// utimensat(2): now, and leave as it is.
const UTIME_NOW: u64 = (1 << 30) - 1;
const UTIME_OMIT: u64 = (1 << 30) - 2;
/// access(2).
const W_OK: u64 = 2;
const X_OK: u64 = 1;

/// stat(2), lstat(2).
pub fn stat(process: &Process, path: u64, out: u64, follow: bool) -> SysResult {
    let inode = lookup_at(process, AT_FDCWD, &read_path(path)?, follow)?;
    put(out, inode.metadata())
}

/// fstat(2).
pub fn fstat(process: &Process, fd: u64, out: u64) -> SysResult {
    put(out, process.fs.file(fd as i32)?.file.metadata())
}

/// newfstatat(2).
pub fn fstatat(process: &Process, dirfd: i32, path: u64, out: u64, flags: u64) -> SysResult {
    only(flags, at::SYMLINK_NOFOLLOW | at::NO_AUTOMOUNT | at::EMPTY_PATH)?;
    put(out, metadata(process, dirfd, path, flags)?)
}

/// statx(2). The mask is a wish; what there is comes anyway.
pub fn statx(process: &Process, dirfd: i32, path: u64, flags: u64, out: u64) -> SysResult {
    only(flags, at::SYMLINK_NOFOLLOW | at::NO_AUTOMOUNT | at::EMPTY_PATH | at::STATX_SYNC_TYPE)?;
    user::write(out, &Statx::from(metadata(process, dirfd, path, flags)?))?;
    Ok(0)
}

fn put(out: u64, m: Metadata) -> SysResult {
    user::write(out, &Stat::from(m))?;
    Ok(0)
}

fn metadata(process: &Process, dirfd: i32, path: u64, flags: u64) -> Result<Metadata, Errno> {
    // A null path is allowed with AT_EMPTY_PATH since Linux 6.11.
    let path = if path == 0 && flags & at::EMPTY_PATH != 0 { alloc::vec::Vec::new() } else { read_path(path)? };
    if path.is_empty() && flags & at::EMPTY_PATH != 0 && dirfd != AT_FDCWD {
        return Ok(process.fs.file(dirfd)?.file.metadata());
    }
    Ok(target(process, dirfd, &path, flags)?.metadata())
}

/// access(2), faccessat2(2). Everybody is root: what can be wrong is a read-only file system, and a file that nobody may execute.
pub fn access(process: &Process, dirfd: i32, path: u64, wanted: u64, flags: u64) -> SysResult {
    only(flags, at::SYMLINK_NOFOLLOW | at::REMOVEDIR | at::EMPTY_PATH)?;
    if wanted as u32 > 7 {
        return Err(Errno::EINVAL);
    }
    let inode = target(process, dirfd, &read_path(path)?, flags)?;
    let m = inode.mode();
    if wanted & W_OK != 0 && matches!(m & mode::TYPE, mode::FILE | mode::DIR | mode::LINK) {
        check_writable(&*inode)?;
    }
    if wanted & X_OK != 0 && m & mode::TYPE != mode::DIR && m & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(0)
}

fn check_writable(inode: &dyn Inode) -> Result<(), Errno> {
    match node_of(inode) {
        Some(n) if !n.read_only() => Ok(()),
        _ => Err(Errno::EROFS),
    }
}

/// chmod(2), fchmodat(2).
pub fn chmod(process: &Process, dirfd: i32, path: u64, permissions: u64, flags: u64) -> SysResult {
    only(flags, at::SYMLINK_NOFOLLOW | at::EMPTY_PATH)?;
    let inode = target(process, dirfd, &read_path(path)?, flags)?;
    change_mode(&inode, permissions)
}

/// fchmod(2).
pub fn fchmod(process: &Process, fd: u64, permissions: u64) -> SysResult {
    change_mode(&of_fd(process, fd)?, permissions)
}

fn change_mode(inode: &Arc<dyn Inode>, permissions: u64) -> SysResult {
    if inode.mode() & mode::TYPE == mode::LINK {
        return Err(Errno::EOPNOTSUPP);
    }
    inode.change(Change { mode: Some(permissions as u32), ..Change::default() })?;
    Ok(0)
}

fn of_fd(process: &Process, fd: u64) -> Result<Arc<dyn Inode>, Errno> {
    process.fs.file(fd as i32)?.file.inode().ok_or(Errno::EINVAL)
}

/// chown(2), lchown(2), fchownat(2).
pub fn chown(process: &Process, dirfd: i32, path: u64, uid: u64, gid: u64, flags: u64) -> SysResult {
    only(flags, at::SYMLINK_NOFOLLOW | at::EMPTY_PATH)?;
    let inode = target(process, dirfd, &read_path(path)?, flags)?;
    change_owner(&inode, uid, gid)
}

/// fchown(2).
pub fn fchown(process: &Process, fd: u64, uid: u64, gid: u64) -> SysResult {
    change_owner(&of_fd(process, fd)?, uid, gid)
}

fn change_owner(inode: &Arc<dyn Inode>, uid: u64, gid: u64) -> SysResult {
    // -1 leaves it as it is.
    let id = |v: u64| Some(v as u32).filter(|v| *v != u32::MAX);
    inode.change(Change { uid: id(uid), gid: id(gid), ..Change::default() })?;
    Ok(0)
}

/// utimensat(2); a null path means the descriptor itself.
pub fn utimensat(process: &Process, dirfd: i32, path: u64, times: u64, flags: u64) -> SysResult {
    only(flags, at::SYMLINK_NOFOLLOW | at::EMPTY_PATH)?;
    let now = wall::now().0;
    let [a_sec, a_nsec, m_sec, m_nsec] = if times == 0 { [0, UTIME_NOW, 0, UTIME_NOW] } else { user::read(times)? };
    let time = |sec: u64, nsec: u64| match nsec {
        UTIME_NOW => Ok(Some(now)),
        UTIME_OMIT => Ok(None),
        n if n < NANOS => Ok(Some(sec.saturating_mul(NANOS).saturating_add(n))),
        _ => Err(Errno::EINVAL),
    };
    let change = Change { atime: time(a_sec, a_nsec)?, mtime: time(m_sec, m_nsec)?, ..Change::default() };
    let inode =
        if path == 0 { of_fd(process, dirfd as u64)? } else { target(process, dirfd, &read_path(path)?, flags)? };
    if change.atime.is_none() && change.mtime.is_none() {
        return Ok(0);
    }
    inode.change(change)?;
    Ok(0)
}

/// utimes(2), futimesat(2) (struct timeval[2]) and utime(2) (struct utimbuf: two seconds).
pub fn utimes(process: &Process, dirfd: i32, path: u64, times: u64, seconds_only: bool) -> SysResult {
    let now = wall::now().0;
    let (atime, mtime) = if times == 0 {
        (now, now)
    } else if seconds_only {
        let [a, m]: [u64; 2] = user::read(times)?;
        (a.saturating_mul(NANOS), m.saturating_mul(NANOS))
    } else {
        let [a, a_micros, m, m_micros]: [u64; 4] = user::read(times)?;
        if a_micros >= 1_000_000 || m_micros >= 1_000_000 {
            return Err(Errno::EINVAL);
        }
        let time = |s: u64, u: u64| s.saturating_mul(NANOS).saturating_add(u * 1000);
        (time(a, a_micros), time(m, m_micros))
    };
    let inode = lookup_at(process, dirfd, &read_path(path)?, true)?;
    inode.change(Change { atime: Some(atime), mtime: Some(mtime), ..Change::default() })?;
    Ok(0)
}

/// `struct statfs`.
#[derive(Clone, Copy)]
#[repr(C)]
struct StatFs {
    kind: u64,
    bsize: u64,
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    fsid: [u32; 2],
    namelen: u64,
    frsize: u64,
    flags: u64,
    spare: [u64; 4],
}

const _: () = assert!(size_of::<StatFs>() == 120);
// SAFETY: integers without padding.
unsafe impl Plain for StatFs {}

/// statfs(2).
pub fn statfs(process: &Process, path: u64, out: u64) -> SysResult {
    let inode = lookup_at(process, AT_FDCWD, &read_path(path)?, true)?;
    put_statfs(&*inode, out)
}

/// fstatfs(2).
pub fn fstatfs(process: &Process, fd: u64, out: u64) -> SysResult {
    put_statfs(&*of_fd(process, fd)?, out)
}

fn put_statfs(inode: &dyn Inode, out: u64) -> SysResult {
    // Linux include/uapi/linux/magic.h; ST_RDONLY, ST_VALID.
    const TMPFS: u64 = 0x0102_1994;
    const PROC: u64 = 0x9fa0;
    let node = node_of(inode);
    let (used, limit) = if node.is_some() { memfs::usage() } else { (0, 0) };
    let free = limit.saturating_sub(used);
    let read_only = node.is_none_or(|n| n.read_only());
    let fs = StatFs {
        kind: if node.is_some() { TMPFS } else { PROC },
        bsize: PAGE_SIZE,
        blocks: limit,
        bfree: free,
        bavail: free,
        files: 0,
        ffree: 0,
        fsid: [0; 2],
        namelen: 255,
        frsize: PAGE_SIZE,
        flags: 0x20 | u64::from(read_only),
        spare: [0; 4],
    };
    user::write(out, &fs)?;
    Ok(0)
}
