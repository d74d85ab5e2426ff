//! open and its variants, pipes, memory files, directories' entries.

use alloc::sync::Arc;

use super::at;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::inode::{Inode, New, mode};
use crate::linux::fs::io::IoCursor;
use crate::linux::fs::memfs::Node;
use crate::linux::fs::open_file::File;
use crate::linux::fs::open_file::{FileRef, Flags, OpenFile};
use crate::linux::fs::path::{lookup_at, parent_at, read_path};
use crate::linux::fs::pipe::Pipe;
use crate::linux::process::Process;
use crate::mm::user;

/// MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC.
const MFD_CLOEXEC: u64 = 1;
const MFD_KNOWN: u64 = 0x1 | 0x2 | 0x8 | 0x10;
/// A memfd's longest name.
const MFD_NAME_MAX: usize = 249;

/// open(2), openat(2).
pub fn open(process: &Process, dirfd: i32, path: u64, flags: u64, permissions: u64) -> SysResult {
    let path = read_path(path)?;
    let flags = Flags::from_bits_truncate(flags as u32);
    let file = open_path(process, dirfd, &path, flags, permissions as u32 & !process.fs.umask())?;
    process.fs.install(file, flags.contains(Flags::CLOEXEC))
}

/// openat2(2): struct open_how { flags, mode, resolve }. Of the resolve flags none is known.
pub fn openat2(process: &Process, dirfd: i32, path: u64, how: u64, size: u64) -> SysResult {
    if size < 24 {
        return Err(Errno::EINVAL);
    }
    let [flags, permissions, resolve]: [u64; 3] = user::read(how)?;
    if resolve != 0 || flags >> 32 != 0 || permissions & !0o7777 != 0 {
        return Err(Errno::EINVAL);
    }
    open(process, dirfd, path, flags, permissions)
}

fn open_path(process: &Process, dirfd: i32, path: &[u8], flags: Flags, permissions: u32) -> Result<FileRef, Errno> {
    if flags.contains(Flags::TMPFILE) {
        return open_unnamed(process, dirfd, path, flags, permissions);
    }
    let follow = !flags.contains(Flags::NOFOLLOW) && !flags.contains(Flags::CREAT | Flags::EXCL);
    let inode = match lookup_at(process, dirfd, path, follow) {
        Ok(inode) => {
            if flags.contains(Flags::CREAT | Flags::EXCL) {
                return Err(Errno::EEXIST);
            }
            inode
        }
        Err(Errno::ENOENT) if flags.contains(Flags::CREAT) => return create(process, dirfd, path, flags, permissions),
        Err(e) => return Err(e),
    };
    open_inode(process, inode, flags)
}

/// The name wasn't there: makes it. A dangling link is followed.
fn create(process: &Process, dirfd: i32, path: &[u8], flags: Flags, permissions: u32) -> Result<FileRef, Errno> {
    let mut place = parent_at(process, dirfd, path)?;
    let caller = crate::linux::fs::inode::Caller(Some(process));
    let mut links = 0;
    loop {
        if place.must_be_dir {
            return Err(Errno::EISDIR);
        }
        match place.dir.create(&place.name, New::File, permissions & 0o7777) {
            Ok(inode) => return inode.open(flags, process),
            Err(Errno::EEXIST) if !flags.contains(Flags::EXCL) => {
                let there = place.dir.lookup(&place.name, caller)?;
                if there.mode() & mode::TYPE != mode::LINK {
                    return open_inode(process, there, flags); // another program was quicker
                }
                links += 1;
                if flags.contains(Flags::NOFOLLOW) || links > 40 {
                    return Err(Errno::ELOOP);
                }
                let target = there.read_link(caller)?;
                place = crate::linux::fs::path::walk_parent(&place.dir, &target, caller)?;
            }
            Err(e) => return Err(e),
        }
    }
}

fn open_inode(process: &Process, inode: Arc<dyn Inode>, flags: Flags) -> Result<FileRef, Errno> {
    let kind = inode.mode() & mode::TYPE;
    if flags.contains(Flags::DIRECTORY) && kind != mode::DIR {
        return Err(Errno::ENOTDIR);
    }
    if flags.contains(Flags::PATH) {
        let kept = Flags::PATH | flags & (Flags::DIRECTORY | Flags::NOFOLLOW | Flags::CLOEXEC);
        return Ok(OpenFile::new(PathFile(inode), kept));
    }
    if kind == mode::LINK {
        return Err(Errno::ELOOP);
    }
    if kind == mode::DIR && (flags.writable() || flags.contains(Flags::CREAT)) {
        return Err(Errno::EISDIR);
    }
    let file = inode.clone().open(flags, process)?;
    if flags.contains(Flags::TRUNC) && kind == mode::FILE {
        inode.truncate(0)?;
    }
    Ok(file)
}

/// O_TMPFILE: a file in a directory's file system, without a name.
fn open_unnamed(process: &Process, dirfd: i32, path: &[u8], flags: Flags, permissions: u32) -> Result<FileRef, Errno> {
    let dir = lookup_at(process, dirfd, path, true)?;
    if !dir.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if !flags.writable() {
        return Err(Errno::EINVAL);
    }
    match crate::linux::fs::memfs::node_of(&*dir) {
        Some(node) if !node.read_only() => Node::unnamed_file(permissions & 0o7777).open(flags, process),
        Some(_) => Err(Errno::EROFS),
        None => Err(Errno::EOPNOTSUPP),
    }
}

/// O_PATH: only a handle to a place in the tree.
struct PathFile(Arc<dyn Inode>);

impl File for PathFile {
    fn read(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EBADF)
    }

    fn write(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EBADF)
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        Some(self.0.clone())
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }
}

/// memfd_create(2).
pub fn memfd_create(process: &Process, name: u64, flags: u64) -> SysResult {
    super::only(flags, MFD_KNOWN)?;
    let name = user::read_cstr(name, MFD_NAME_MAX + 1).map_err(|e| e.map_or(Errno::EINVAL, Errno::from))?;
    let node = Node::unnamed_file(0o777);
    node.set_label(&[b"memfd:", name.as_slice()].concat());
    let file = node.open(Flags::RDWR | Flags::LARGEFILE, process)?;
    process.fs.install(file, flags & MFD_CLOEXEC != 0)
}

/// pipe2(2); pipe(2) without flags.
pub fn pipe(process: &Process, fds: u64, flags: u64) -> SysResult {
    let flags = Flags::from_bits_retain(flags as u32);
    if !(Flags::CLOEXEC | Flags::NONBLOCK | Flags::DIRECT).contains(flags) {
        return Err(Errno::EINVAL);
    }
    let (read, write) = Pipe::pair(flags & Flags::NONBLOCK);
    give_pair(process, read, write, flags.contains(Flags::CLOEXEC), fds)
}

/// Gives two files descriptors and writes these to the program's array.
pub fn give_pair(process: &Process, first: FileRef, second: FileRef, close_on_exec: bool, array: u64) -> SysResult {
    let a = process.fs.install(first, close_on_exec)?;
    let b = process.fs.install(second, close_on_exec).inspect_err(|_| {
        let _ = process.fs.close(a as i32);
    })?;
    if user::write(array, &[a as u32, b as u32]).is_err() {
        let _ = process.fs.close(a as i32);
        let _ = process.fs.close(b as i32);
        return Err(Errno::EFAULT);
    }
    Ok(0)
}

/// DT_* from `st_mode`.
fn entry_type(st_mode: u32) -> u8 {
    ((st_mode & mode::TYPE) >> 12) as u8
}

/// getdents64(2); getdents(2) has the type behind the name.
pub fn getdents(process: &Process, fd: u64, buf: u64, len: u64, old_format: bool) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    let len = len as u32 as usize;
    let mut out = alloc::vec::Vec::new();
    let mut too_small = false;
    file.file.read_dir(&mut |entry, next| {
        let head = if old_format { 18 } else { 19 };
        let size = (head + entry.name.len() + 1 + usize::from(old_format)).next_multiple_of(8);
        if out.len() + size > len.min(1 << 16) {
            too_small = out.is_empty();
            return false;
        }
        let start = out.len();
        out.extend_from_slice(&entry.ino.to_ne_bytes());
        out.extend_from_slice(&next.to_ne_bytes());
        out.extend_from_slice(&(size as u16).to_ne_bytes());
        if !old_format {
            out.push(entry_type(entry.mode));
        }
        out.extend_from_slice(&entry.name);
        out.resize(start + size, 0);
        if old_format {
            out[start + size - 1] = entry_type(entry.mode);
        }
        true
    })?;
    if too_small {
        return Err(Errno::EINVAL);
    }
    user::write_bytes(buf, &out)?;
    Ok(out.len() as u64)
}

/// statx, fstatat and the like: the object that a descriptor and a path name, the path possibly empty.
pub fn target(process: &Process, dirfd: i32, path: &[u8], flags: u64) -> Result<Arc<dyn Inode>, Errno> {
    if path.is_empty() {
        if flags & at::EMPTY_PATH == 0 {
            return Err(Errno::ENOENT);
        }
        if dirfd == crate::linux::fs::path::AT_FDCWD {
            return Ok(process.fs.cwd());
        }
        return process.fs.file(dirfd)?.file.inode().ok_or(Errno::EINVAL);
    }
    lookup_at(process, dirfd, path, flags & at::SYMLINK_NOFOLLOW == 0)
}
