//! Open files and directories of the tree.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::{Body, Node};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::inode::{Caller, DirEntry, Inode};
use crate::linux::fs::io::IoCursor;
use crate::linux::fs::open_file::{File, Flags};
use crate::linux::process::resource::{INFINITY, check_file_size};
use crate::linux::process::{self, Process};
use crate::mm::user;
use crate::sync::Mutex;

/// lseek(2).
const SEEK_SET: u32 = 0;
const SEEK_CUR: u32 = 1;
const SEEK_END: u32 = 2;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
/// Bytes that can be read now. Linux include/uapi/asm-generic/ioctls.h.
const FIONREAD: u32 = 0x541b;

/// Where lseek(2) leads to.
///
/// # Errors
/// EINVAL, ENXIO, EOVERFLOW.
fn seek_target(position: u64, size: u64, offset: i64, whence: u32) -> Result<u64, Errno> {
    let base = match whence {
        SEEK_SET => 0,
        SEEK_CUR => position,
        SEEK_END => size,
        SEEK_DATA | SEEK_HOLE => {
            let at = u64::try_from(offset).ok().filter(|o| *o < size).ok_or(Errno::ENXIO)?;
            return Ok(if whence == SEEK_DATA { at } else { size });
        }
        _ => return Err(Errno::EINVAL),
    };
    let base = i64::try_from(base).map_err(|_| Errno::EOVERFLOW)?;
    let target = base.checked_add(offset).ok_or(Errno::EOVERFLOW)?;
    u64::try_from(target).map_err(|_| Errno::EINVAL)
}

/// An open regular file.
pub struct NodeFile {
    node: Arc<Node>,
    /// The position; held while a read or write moves it.
    position: Mutex<u64>,
}

impl NodeFile {
    /// At the start.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, position: Mutex::new(0) }
    }

    fn read_from(&self, io: &mut IoCursor<'_>, offset: u64) -> Result<usize, Errno> {
        match &self.node.body {
            Body::Archive(d) => {
                let bytes = d.bytes_from(offset);
                let n = bytes.len().min(io.left());
                // In pieces, so that a bad address late in a large buffer makes the call short, not void.
                let mut done = 0;
                while done < n {
                    let k = (n - done).min(64 << 10);
                    match io.put(&bytes[done..done + k]) {
                        Ok(k) => done += k,
                        Err(_) if done > 0 => break,
                        Err(e) => return Err(e),
                    }
                }
                Ok(done)
            }
            Body::File(d) => d.read(io, offset),
            _ => Err(Errno::EINVAL),
        }
    }

    fn write_to(&self, io: &mut IoCursor<'_>, offset: Option<u64>) -> Result<(usize, u64), Errno> {
        let Some(d) = self.node.data() else { return Err(Errno::EROFS) };
        let limit = process::current().limits.lock().file_size();
        if limit != INFINITY && io.left() > 0 {
            let start = offset.unwrap_or_else(|| d.size());
            check_file_size(start.saturating_add(1))?;
            io.limit(usize::try_from(limit - start).unwrap_or(usize::MAX));
        }
        let r = d.write(io, offset)?;
        self.node.touch_modified();
        Ok(r)
    }
}

impl File for NodeFile {
    fn read(&self, io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        let mut position = self.position.lock();
        let n = self.read_from(io, *position)?;
        *position += n as u64;
        Ok(n)
    }

    fn write(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        let mut position = self.position.lock();
        let (n, end) = self.write_to(io, (!flags.contains(Flags::APPEND)).then_some(*position))?;
        if n > 0 {
            *position = end;
        }
        Ok(n)
    }

    fn read_at(&self, io: &mut IoCursor<'_>, offset: u64) -> Result<usize, Errno> {
        self.read_from(io, offset)
    }

    fn write_at(&self, io: &mut IoCursor<'_>, offset: u64, flags: Flags) -> Result<usize, Errno> {
        self.write_to(io, (!flags.contains(Flags::APPEND)).then_some(offset)).map(|r| r.0)
    }

    fn seek(&self, offset: i64, whence: u32) -> SysResult {
        let mut position = self.position.lock();
        *position = seek_target(*position, self.node.size(), offset, whence)?;
        Ok(*position)
    }

    fn ioctl(&self, _process: &Arc<Process>, command: u32, argument: u64) -> SysResult {
        if command != FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let left = self.node.size().saturating_sub(*self.position.lock());
        user::write(argument, &(left.min(i32::MAX as u64) as i32))?;
        Ok(0)
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        Some(self.node.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An open directory, of any file system.
pub struct DirFile {
    inode: Arc<dyn Inode>,
    listing: Mutex<Listing>,
}

/// The entries as they were when the reading began, so that removing files while reading loses none.
struct Listing {
    entries: Option<Vec<DirEntry>>,
    at: usize,
}

impl DirFile {
    /// At the start.
    pub fn new(inode: Arc<dyn Inode>) -> Self {
        Self { inode, listing: Mutex::new(Listing { entries: None, at: 0 }) }
    }

    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        let me = process::current();
        let own = self.inode.metadata();
        let up = self.inode.parent().map_or(own.ino, |p| p.metadata().ino);
        let mut all = self.inode.entries(Caller(Some(&me)))?;
        let dot = |name: &[u8], ino| DirEntry { name: name.to_vec(), ino, mode: own.mode };
        all.splice(0..0, [dot(b".", own.ino), dot(b"..", up)]);
        Ok(all)
    }
}

impl File for DirFile {
    fn read(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EISDIR)
    }

    fn write(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EBADF)
    }

    fn seek(&self, offset: i64, whence: u32) -> SysResult {
        let mut listing = self.listing.lock();
        let size = listing.entries.as_ref().map_or(0, Vec::len) as u64;
        let target = seek_target(listing.at as u64, size, offset, whence)?;
        if target == 0 {
            listing.entries = None;
        }
        listing.at = usize::try_from(target).map_err(|_| Errno::EINVAL)?;
        Ok(target)
    }

    fn read_dir(&self, emit: &mut dyn FnMut(&DirEntry, u64) -> bool) -> Result<(), Errno> {
        let mut guard = self.listing.lock();
        let listing = &mut *guard;
        let entries = match &mut listing.entries {
            Some(e) => e,
            none => none.insert(self.list()?),
        };
        while let Some(entry) = entries.get(listing.at) {
            if !emit(entry, listing.at as u64 + 1) {
                break;
            }
            listing.at += 1;
        }
        Ok(())
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        Some(self.inode.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
