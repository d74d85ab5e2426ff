//! read, write and their variants; positions; sizes.

use alloc::sync::Arc;

use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::inode::Inode;
use crate::linux::fs::io::{IoCursor, IoVec, read_segments};
use crate::linux::fs::memfs::{Body, node_of};
use crate::linux::fs::open_file::{FileRef, Flags};
use crate::linux::fs::path::{AT_FDCWD, lookup_at, read_path};
use crate::linux::process::resource::check_file_size;
use crate::linux::process::{Process, signal};
use crate::mm::frame;
use crate::mm::layout::PAGE_SIZE;
use crate::mm::user;

/// RWF_* flags that change nothing here: HIPRI, DSYNC, SYNC, NOWAIT.
const RWF_HARMLESS: u64 = 0x1 | 0x2 | 0x4 | 0x8;
/// RWF_APPEND.
const RWF_APPEND: u64 = 0x10;
/// FALLOC_FL_KEEP_SIZE.
const FALLOC_KEEP_SIZE: u64 = 1;

/// A write's result; EPIPE brings SIGPIPE.
#[inline]
fn written(result: Result<usize, Errno>) -> SysResult {
    if result == Err(Errno::EPIPE) {
        signal::send_to_current_thread(signal::SIGPIPE);
    }
    result.map(|n| n as u64)
}

/// read(2).
#[inline]
pub fn read(process: &Process, fd: u64, buf: u64, len: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    let segment = IoVec { base: buf, len };
    file.read(&mut IoCursor::one(&segment)).map(|n| n as u64)
}

/// write(2).
#[inline]
pub fn write(process: &Process, fd: u64, buf: u64, len: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    let segment = IoVec { base: buf, len };
    written(file.write(&mut IoCursor::one(&segment)))
}

/// readv(2).
pub fn readv(process: &Process, fd: u64, vector: u64, count: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    let segments = read_segments(vector, count)?;
    file.read(&mut IoCursor::user(&segments)?).map(|n| n as u64)
}

/// writev(2).
pub fn writev(process: &Process, fd: u64, vector: u64, count: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    let segments = read_segments(vector, count)?;
    written(file.write(&mut IoCursor::user(&segments)?))
}

fn positioned(process: &Process, fd: u64, offset: u64) -> Result<FileRef, Errno> {
    if (offset as i64) < 0 {
        return Err(Errno::EINVAL);
    }
    process.fs.file(fd as i32)
}

fn read_positioned(file: &FileRef, io: &mut IoCursor<'_>, offset: u64) -> SysResult {
    if !file.flags().readable() {
        return Err(Errno::EBADF);
    }
    file.file.read_at(io, offset).map(|n| n as u64)
}

fn write_positioned(file: &FileRef, io: &mut IoCursor<'_>, offset: u64, also: Flags) -> SysResult {
    let flags = file.flags() | also;
    if !flags.writable() {
        return Err(Errno::EBADF);
    }
    written(file.file.write_at(io, offset, flags))
}

/// pread64(2).
pub fn pread(process: &Process, fd: u64, buf: u64, len: u64, offset: u64) -> SysResult {
    let file = positioned(process, fd, offset)?;
    let segment = IoVec { base: buf, len };
    read_positioned(&file, &mut IoCursor::one(&segment), offset)
}

/// pwrite64(2).
pub fn pwrite(process: &Process, fd: u64, buf: u64, len: u64, offset: u64) -> SysResult {
    let file = positioned(process, fd, offset)?;
    let segment = IoVec { base: buf, len };
    write_positioned(&file, &mut IoCursor::one(&segment), offset, Flags::empty())
}

/// preadv2(2); preadv(2) without flags. An offset of -1 means the position.
pub fn preadv(process: &Process, fd: u64, vector: u64, count: u64, offset: u64, flags: u64) -> SysResult {
    if flags & !RWF_HARMLESS != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if offset == u64::MAX {
        return readv(process, fd, vector, count);
    }
    let file = positioned(process, fd, offset)?;
    let segments = read_segments(vector, count)?;
    read_positioned(&file, &mut IoCursor::user(&segments)?, offset)
}

/// pwritev2(2); pwritev(2) without flags.
pub fn pwritev(process: &Process, fd: u64, vector: u64, count: u64, offset: u64, flags: u64) -> SysResult {
    if flags & !(RWF_HARMLESS | RWF_APPEND) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if offset == u64::MAX {
        return writev(process, fd, vector, count);
    }
    let also = if flags & RWF_APPEND != 0 { Flags::APPEND } else { Flags::empty() };
    let file = positioned(process, fd, offset)?;
    let segments = read_segments(vector, count)?;
    write_positioned(&file, &mut IoCursor::user(&segments)?, offset, also)
}

/// lseek(2).
pub fn lseek(process: &Process, fd: u64, offset: u64, whence: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    if file.flags().contains(Flags::PATH) {
        return Err(Errno::EBADF);
    }
    file.file.seek(offset as i64, whence as u32)
}

/// truncate(2).
pub fn truncate(process: &Process, path: u64, size: u64) -> SysResult {
    if (size as i64) < 0 {
        return Err(Errno::EINVAL);
    }
    cut(&*lookup_at(process, AT_FDCWD, &read_path(path)?, true)?, size)
}

/// ftruncate(2).
pub fn ftruncate(process: &Process, fd: u64, size: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    if (size as i64) < 0 || !file.flags().writable() {
        return Err(Errno::EINVAL);
    }
    cut(&*file.file.inode().ok_or(Errno::EINVAL)?, size)
}

fn cut(inode: &dyn Inode, size: u64) -> SysResult {
    if size > inode.size() {
        check_file_size(size)?;
    }
    inode.truncate(size)?;
    Ok(0)
}

/// fallocate(2), without holes.
pub fn fallocate(process: &Process, fd: u64, mode: u64, offset: u64, len: u64) -> SysResult {
    let file = process.fs.file(fd as i32)?;
    if !file.flags().writable() {
        return Err(Errno::EBADF);
    }
    if (offset as i64) < 0 || (len as i64) <= 0 {
        return Err(Errno::EINVAL);
    }
    if mode & !FALLOC_KEEP_SIZE != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let inode = file.file.inode().ok_or(Errno::ENODEV)?;
    match node_of(&*inode).map(|n| n.body()) {
        Some(Body::File(data)) => check_file_size(offset + len)
            .and_then(|()| data.allocate(offset, len, mode & FALLOC_KEEP_SIZE != 0))
            .map(|()| 0),
        Some(Body::Fifo(_)) => Err(Errno::ESPIPE),
        _ => Err(Errno::ENODEV),
    }
}

/// A page of the kernel's that data goes through between two files.
struct Bounce(crate::mm::PhysAddr);

impl Bounce {
    fn new() -> Result<Self, Errno> {
        Ok(Self(frame::alloc()?))
    }

    fn segment(&self, len: usize) -> IoVec {
        IoVec { base: self.0.to_virt(), len: len as u64 }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        frame::put(self.0);
    }
}

/// Where one side of a transfer between files stands: at an offset of the caller's, or at the file's position.
pub struct Side {
    file: FileRef,
    /// Address of the offset, and the offset.
    at: Option<(u64, u64)>,
}

impl Side {
    /// The file of a descriptor; `offset` is the address of an offset, or 0.
    ///
    /// # Errors
    /// EBADF, EFAULT, EINVAL.
    pub fn new(process: &Process, fd: u64, offset: u64) -> Result<Self, Errno> {
        let file = process.fs.file(fd as i32)?;
        let at = if offset == 0 { None } else { Some((offset, user::read::<u64>(offset)?)) };
        if at.is_some_and(|(_, o)| o > i64::MAX as u64) {
            return Err(Errno::EINVAL);
        }
        Ok(Self { file, at })
    }

    fn read(&mut self, io: &mut IoCursor<'_>) -> Result<usize, Errno> {
        if !self.file.flags().readable() {
            return Err(Errno::EBADF);
        }
        match &mut self.at {
            None => self.file.read(io),
            Some((_, o)) => self.file.file.read_at(io, *o).inspect(|n| *o += *n as u64),
        }
    }

    /// Writes, and goes on.
    ///
    /// # Errors
    /// As write(2).
    pub fn write(&mut self, io: &mut IoCursor<'_>) -> Result<usize, Errno> {
        if !self.file.flags().writable() {
            return Err(Errno::EBADF);
        }
        match &mut self.at {
            None => self.file.write(io),
            Some((_, o)) => self.file.file.write_at(io, *o, self.file.flags()).inspect(|n| *o += *n as u64),
        }
    }

    /// Takes back what was read and could not be written.
    fn unread(&mut self, n: usize) {
        match &mut self.at {
            None => {
                // Else it has gone to nobody, as with a program that reads and can't write.
                let _ = self.file.file.seek(-(n as i64), 1);
            }
            Some((_, o)) => *o -= n as u64,
        }
    }

    /// Tells the caller its offset.
    ///
    /// # Errors
    /// EFAULT.
    pub fn finish(&self) -> Result<(), Errno> {
        if let Some((address, offset)) = self.at {
            user::write(address, &offset)?;
        }
        Ok(())
    }
}

/// Moves bytes from one file to another. What could not be written is taken back, if the first has positions.
///
/// # Errors
/// As read(2) and write(2), if nothing was moved.
pub fn copy(mut from: Side, mut to: Side, len: u64) -> SysResult {
    let bounce = Bounce::new()?;
    let mut done = 0u64;
    let mut result = Ok(());
    while done < len {
        let want = (len - done).min(PAGE_SIZE) as usize;
        let segment = bounce.segment(want);
        // SAFETY: the page is ours alone.
        let read = match from.read(&mut unsafe { IoCursor::kernel(&segment) }) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) => {
                result = Err(e);
                break;
            }
        };
        let segment = bounce.segment(read);
        // SAFETY: as above.
        let mut io = unsafe { IoCursor::kernel(&segment) };
        match to.write(&mut io) {
            Ok(n) => {
                done += n as u64;
                if n < read {
                    from.unread(read - n);
                    break;
                }
            }
            Err(e) => {
                from.unread(read);
                result = Err(e);
                break;
            }
        }
    }
    from.finish()?;
    to.finish()?;
    match result {
        Err(e) if done == 0 => written(Err(e)),
        _ => Ok(done),
    }
}

/// sendfile(2). From files only; for others it says EINVAL, as Linux does, and programs fall back to read and write.
pub fn sendfile(process: &Process, out: u64, input: u64, offset: u64, len: u64) -> SysResult {
    let from = Side::new(process, input, offset)?;
    let to = Side::new(process, out, 0)?;
    if to.file.flags().contains(Flags::APPEND) || from.file.file.page_source().is_none() {
        return Err(Errno::EINVAL);
    }
    // A console takes a program's pages as they are, which is cheaper than going through a kernel page.
    if to.file.file.as_any().is::<crate::linux::fs::console_file::StreamFile>() {
        return Err(Errno::EINVAL);
    }
    copy(from, to, len.min(0x7fff_f000))
}

/// copy_file_range(2).
pub fn copy_file_range(process: &Process, a: &[u64; 6]) -> SysResult {
    let [input, in_offset, out, out_offset, len, flags] = *a;
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let (from, to) = (Side::new(process, input, in_offset)?, Side::new(process, out, out_offset)?);
    for side in [&from, &to] {
        let inode = side.file.file.inode().ok_or(Errno::EINVAL)?;
        if inode.is_dir() {
            return Err(Errno::EISDIR);
        }
        if side.file.file.page_source().is_none() {
            return Err(Errno::EINVAL);
        }
    }
    if to.file.flags().contains(Flags::APPEND) {
        return Err(Errno::EBADF);
    }
    if Arc::ptr_eq(&from.file, &to.file) && from.at.is_none() {
        return Err(Errno::EINVAL);
    }
    copy(from, to, len.min(0x7fff_f000))
}
