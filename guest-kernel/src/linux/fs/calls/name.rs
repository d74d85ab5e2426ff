//! Names: directories, links, renaming, the working directory.

use alloc::sync::Arc;

use super::open::target;
use super::{at, only};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::inode::{Caller, Inode, New, mode};
use crate::linux::fs::memfs::{self, node_of};
use crate::linux::fs::path::{Place, lookup_at, parent_at, read_path};
use crate::linux::process::Process;
use crate::mm::user;

/// RENAME_NOREPLACE, RENAME_EXCHANGE.
const NOREPLACE: u64 = 1;
const EXCHANGE: u64 = 2;

fn new_place(process: &Process, dirfd: i32, path: u64) -> Result<Place, Errno> {
    parent_at(process, dirfd, &read_path(path)?)
}

/// mkdir(2).
pub fn mkdir(process: &Process, dirfd: i32, path: u64, permissions: u64) -> SysResult {
    let place = new_place(process, dirfd, path)?;
    let permissions = permissions as u32 & 0o1777 & !process.fs.umask();
    place.dir.create(&place.name, New::Dir, permissions)?;
    Ok(0)
}

/// mknod(2).
pub fn mknod(process: &Process, dirfd: i32, path: u64, full_mode: u64, device: u64) -> SysResult {
    let place = new_place(process, dirfd, path)?;
    let what = match full_mode as u32 & mode::TYPE {
        0 | mode::FILE => New::File,
        mode::FIFO => New::Fifo,
        mode::CHAR => New::Device(device),
        mode::BLOCK | mode::SOCKET => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    };
    if place.must_be_dir {
        return Err(Errno::ENOENT);
    }
    place.dir.create(&place.name, what, full_mode as u32 & 0o7777 & !process.fs.umask())?;
    Ok(0)
}

/// unlink(2), rmdir(2), unlinkat(2).
pub fn unlink(process: &Process, dirfd: i32, path: u64, flags: u64) -> SysResult {
    only(flags, at::REMOVEDIR)?;
    let dir = flags & at::REMOVEDIR != 0;
    let path = read_path(path)?;
    let place = parent_at(process, dirfd, &path).map_err(|e| match e {
        // "/", "." and "..".
        Errno::EEXIST if !dir => Errno::EISDIR,
        Errno::EEXIST if path.ends_with(b"..") => Errno::ENOTEMPTY,
        Errno::EEXIST if path.ends_with(b".") => Errno::EINVAL,
        Errno::EEXIST => Errno::EBUSY,
        e => e,
    })?;
    if place.must_be_dir && !dir {
        let there = place.dir.lookup(&place.name, Caller(Some(process)))?;
        return Err(if there.is_dir() { Errno::EISDIR } else { Errno::ENOTDIR });
    }
    place.dir.unlink(&place.name, dir)?;
    Ok(0)
}

/// symlink(2).
pub fn symlink(process: &Process, text: u64, dirfd: i32, path: u64) -> SysResult {
    let text = read_path(text)?;
    if text.is_empty() {
        return Err(Errno::ENOENT);
    }
    let place = new_place(process, dirfd, path)?;
    if place.must_be_dir {
        return Err(Errno::ENOENT);
    }
    place.dir.create(&place.name, New::Link(&text), 0o777)?;
    Ok(0)
}

/// link(2), linkat(2).
pub fn link(process: &Process, old_dir: i32, old: u64, new_dir: i32, new: u64, flags: u64) -> SysResult {
    only(flags, at::SYMLINK_FOLLOW | at::EMPTY_PATH)?;
    let path = read_path(old)?;
    let found = if path.is_empty() {
        target(process, old_dir, &path, flags)?
    } else {
        lookup_at(process, old_dir, &path, flags & at::SYMLINK_FOLLOW != 0)?
    };
    let place = new_place(process, new_dir, new)?;
    if found.is_dir() {
        return Err(Errno::EPERM);
    }
    match (node_of(&*found).and_then(memfs::Node::handle), node_of(&*place.dir)) {
        (Some(node), Some(dir)) => memfs::link(dir, &place.name, &node).map(|()| 0),
        _ => Err(Errno::EXDEV),
    }
}

/// rename(2), renameat2(2).
pub fn rename(process: &Process, old_dir: i32, old: u64, new_dir: i32, new: u64, flags: u64) -> SysResult {
    if flags & !(NOREPLACE | EXCHANGE) != 0 || flags == NOREPLACE | EXCHANGE {
        return Err(Errno::EINVAL);
    }
    let busy = |e| if e == Errno::EEXIST { Errno::EBUSY } else { e };
    let from = new_place(process, old_dir, old).map_err(busy)?;
    let to = new_place(process, new_dir, new).map_err(busy)?;
    let caller = Caller(Some(process));
    let moved = from.dir.lookup(&from.name, caller)?;
    if (from.must_be_dir || to.must_be_dir) && !moved.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    memfs::rename(&*from.dir, &from.name, &*to.dir, &to.name, flags & NOREPLACE == 0, flags & EXCHANGE != 0)?;
    Ok(0)
}

/// readlink(2); with an empty path the descriptor must be a link (O_PATH).
pub fn readlink(process: &Process, dirfd: i32, path: u64, buf: u64, len: u64) -> SysResult {
    if (len as i32) <= 0 {
        return Err(Errno::EINVAL);
    }
    let path = read_path(path)?;
    let inode: Arc<dyn Inode> = if path.is_empty() {
        target(process, dirfd, &path, at::EMPTY_PATH)?
    } else {
        lookup_at(process, dirfd, &path, false)?
    };
    let text = inode.read_link(Caller(Some(process)))?;
    let n = text.len().min(len as u32 as usize);
    user::write_bytes(buf, &text[..n])?;
    Ok(n as u64)
}

/// getcwd(2).
pub fn getcwd(process: &Process, buf: u64, len: u64) -> SysResult {
    let mut path = process.fs.cwd().path();
    path.push(0);
    if path.len() as u64 > len {
        return Err(Errno::ERANGE);
    }
    user::write_bytes(buf, &path)?;
    Ok(path.len() as u64)
}

/// chdir(2).
pub fn chdir(process: &Process, path: u64) -> SysResult {
    let dir = lookup_at(process, crate::linux::fs::path::AT_FDCWD, &read_path(path)?, true)?;
    process.fs.enter(dir).map(|()| 0)
}

/// fchdir(2).
pub fn fchdir(process: &Process, fd: u64) -> SysResult {
    let dir = process.fs.file(fd as i32)?.file.inode().ok_or(Errno::ENOTDIR)?;
    process.fs.enter(dir).map(|()| 0)
}
