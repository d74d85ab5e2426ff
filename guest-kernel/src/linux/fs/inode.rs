//! File-system objects, and what stat(2) tells of them.
//!
//! All file systems are in memory, so a directory knows its parent and its name; paths are made from that when asked for.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::open_file::{FileRef, Flags};
use crate::linux::errno::Errno;
use crate::linux::process::Process;
use crate::mm::user::Plain;
use crate::mm::vma::PageSource;

/// File types and special bits of `st_mode` (S_IF*).
pub mod mode {
    /// Mask of the type.
    pub const TYPE: u32 = 0o170000;
    /// Socket.
    pub const SOCKET: u32 = 0o140000;
    /// Symbolic link.
    pub const LINK: u32 = 0o120000;
    /// Regular file.
    pub const FILE: u32 = 0o100000;
    /// Block device.
    pub const BLOCK: u32 = 0o060000;
    /// Directory.
    pub const DIR: u32 = 0o040000;
    /// Character device.
    pub const CHAR: u32 = 0o020000;
    /// Pipe.
    pub const FIFO: u32 = 0o010000;
}

/// What stat(2) and statx(2) are made from. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Default)]
pub struct Metadata {
    /// File system.
    pub dev: u64,
    /// Number in it.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for devices.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Last access.
    pub atime: u64,
    /// Last change of the bytes.
    pub mtime: u64,
    /// Last change of anything.
    pub ctime: u64,
}

impl Metadata {
    /// Of something that has no name and no bytes.
    pub fn anonymous(mode: u32) -> Self {
        Self { dev: device::ANONYMOUS, ino: 1, mode, nlink: 1, ..Self::default() }
    }
}

/// Numbers of the file systems (`st_dev`).
pub mod device {
    /// Archive and tmpfs.
    pub const ROOT: u64 = 1;
    /// /proc.
    pub const PROC: u64 = 4;
    /// Pipes.
    pub const PIPE: u64 = 11;
    /// eventfd, epoll and the like.
    pub const ANONYMOUS: u64 = 13;
}

/// An entry of a directory.
#[derive(Clone)]
pub struct DirEntry {
    /// Name.
    pub name: Vec<u8>,
    /// Number of what it names.
    pub ino: u64,
    /// Its `st_mode` (the type is enough).
    pub mode: u32,
}

/// What to make in a directory.
pub enum New<'a> {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link to a path.
    Link(&'a [u8]),
    /// A named pipe.
    Fifo,
    /// A character device.
    Device(u64),
}

/// What setattr changes.
#[derive(Clone, Copy, Default)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<u64>,
    /// Last change.
    pub mtime: Option<u64>,
}

/// Who a path is resolved for: /proc/self depends on it.
#[derive(Clone, Copy)]
pub struct Caller<'a>(pub Option<&'a Process>);

/// A file-system object. May sleep, but never for another program.
pub trait Inode: Send + Sync {
    /// What stat(2) shows.
    fn metadata(&self) -> Metadata;

    /// File type and permission bits, as `st_mode`.
    fn mode(&self) -> u32 {
        self.metadata().mode
    }

    /// File type only, as `st_mode` has it.
    fn kind(&self) -> u32 {
        self.mode() & mode::TYPE
    }

    /// Size in bytes.
    fn size(&self) -> u64 {
        self.metadata().size
    }

    /// Reads a part into kernel memory; short only at the end.
    ///
    /// # Errors
    /// EISDIR, EINVAL: it has no bytes.
    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<usize, Errno> {
        Err(if self.is_dir() { Errno::EISDIR } else { Errno::EINVAL })
    }

    /// Its pages, if it can be mapped.
    fn page_source(&self) -> Option<Arc<dyn PageSource>> {
        None
    }

    /// Absolute path, for /proc and reports.
    fn path(&self) -> Vec<u8>;

    /// Opens it.
    ///
    /// # Errors
    /// As open(2).
    fn open(self: Arc<Self>, flags: Flags, caller: &Process) -> Result<FileRef, Errno>;

    /// Finds a name in a directory.
    ///
    /// # Errors
    /// ENOTDIR, ENOENT.
    fn lookup(&self, _name: &[u8], _caller: Caller<'_>) -> Result<Arc<dyn Inode>, Errno> {
        Err(Errno::ENOTDIR)
    }

    /// A directory's parent.
    ///
    /// # Errors
    /// ENOTDIR; ENOENT: it was removed.
    fn parent(&self) -> Result<Arc<dyn Inode>, Errno> {
        Err(Errno::ENOTDIR)
    }

    /// All entries of a directory, `.` and `..` left out.
    ///
    /// # Errors
    /// ENOTDIR.
    fn entries(&self, _caller: Caller<'_>) -> Result<Vec<DirEntry>, Errno> {
        Err(Errno::ENOTDIR)
    }

    /// Where a symbolic link points.
    ///
    /// # Errors
    /// EINVAL: not a link.
    fn read_link(&self, _caller: Caller<'_>) -> Result<Vec<u8>, Errno> {
        Err(Errno::EINVAL)
    }

    /// What a link of /proc leads to, whatever its text says.
    fn jump(&self) -> Option<Result<Arc<dyn Inode>, Errno>> {
        None
    }

    /// Makes something in a directory.
    ///
    /// # Errors
    /// EROFS, EEXIST, ENOSPC.
    fn create(&self, _name: &[u8], _what: New<'_>, _permissions: u32) -> Result<Arc<dyn Inode>, Errno> {
        Err(if self.is_dir() { Errno::EROFS } else { Errno::ENOTDIR })
    }

    /// Removes a name; with `dir` that of an empty directory.
    ///
    /// # Errors
    /// EROFS, ENOENT, EISDIR, ENOTDIR, ENOTEMPTY.
    fn unlink(&self, _name: &[u8], _dir: bool) -> Result<(), Errno> {
        Err(if self.is_dir() { Errno::EROFS } else { Errno::ENOTDIR })
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// EROFS.
    fn change(&self, _change: Change) -> Result<(), Errno> {
        Err(Errno::EROFS)
    }

    /// Sets the size.
    ///
    /// # Errors
    /// EROFS, EISDIR, EINVAL.
    fn truncate(&self, _size: u64) -> Result<(), Errno> {
        Err(if self.is_dir() { Errno::EISDIR } else { Errno::EINVAL })
    }

    /// Whether it is a directory.
    fn is_dir(&self) -> bool {
        self.kind() == mode::DIR
    }

    /// For calls between objects of one file system.
    fn as_any(&self) -> &dyn Any;
}

/// `struct stat`. Linux arch/x86/include/uapi/asm/stat.h.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Stat {
    dev: u64,
    ino: u64,
    nlink: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad0: u32,
    rdev: u64,
    size: u64,
    blksize: u64,
    blocks: u64,
    atime: u64,
    atime_nsec: u64,
    mtime: u64,
    mtime_nsec: u64,
    ctime: u64,
    ctime_nsec: u64,
    unused: [u64; 3],
}

const _: () = assert!(size_of::<Stat>() == 144);
// SAFETY: integers, padding spelled out.
unsafe impl Plain for Stat {}

const NANOS: u64 = 1_000_000_000;
/// Preferred size of transfers.
const BLOCK_SIZE: u32 = 4096;

impl From<Metadata> for Stat {
    fn from(m: Metadata) -> Self {
        Self {
            dev: m.dev,
            ino: m.ino,
            nlink: u64::from(m.nlink),
            mode: m.mode,
            uid: m.uid,
            gid: m.gid,
            pad0: 0,
            rdev: m.rdev,
            size: m.size,
            blksize: u64::from(BLOCK_SIZE),
            blocks: m.blocks,
            atime: m.atime / NANOS,
            atime_nsec: m.atime % NANOS,
            mtime: m.mtime / NANOS,
            mtime_nsec: m.mtime % NANOS,
            ctime: m.ctime / NANOS,
            ctime_nsec: m.ctime % NANOS,
            unused: [0; 3],
        }
    }
}

/// `struct statx_timestamp`.
#[derive(Clone, Copy)]
#[repr(C)]
struct StatxTime {
    sec: u64,
    nsec: u32,
    pad: u32,
}

/// `struct statx`. Linux include/uapi/linux/stat.h.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    pad0: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: StatxTime,
    btime: StatxTime,
    ctime: StatxTime,
    mtime: StatxTime,
    rdev_major: u32,
    rdev_minor: u32,
    dev_major: u32,
    dev_minor: u32,
    mnt_id: u64,
    spare: [u64; 13],
}

const _: () = assert!(size_of::<Statx>() == 256);
// SAFETY: integers, padding spelled out.
unsafe impl Plain for Statx {}

impl From<Metadata> for Statx {
    fn from(m: Metadata) -> Self {
        let time = |t: u64| StatxTime { sec: t / NANOS, nsec: (t % NANOS) as u32, pad: 0 };
        Self {
            // STATX_BASIC_STATS
            mask: 0x7ff,
            blksize: BLOCK_SIZE,
            attributes: 0,
            nlink: m.nlink,
            uid: m.uid,
            gid: m.gid,
            mode: m.mode as u16,
            pad0: 0,
            ino: m.ino,
            size: m.size,
            blocks: m.blocks,
            attributes_mask: 0,
            atime: time(m.atime),
            btime: time(0),
            ctime: time(m.ctime),
            mtime: time(m.mtime),
            rdev_major: major(m.rdev),
            rdev_minor: minor(m.rdev),
            dev_major: major(m.dev),
            dev_minor: minor(m.dev),
            mnt_id: 0,
            spare: [0; 13],
        }
    }
}

/// Device number from its parts (glibc's gnu_dev_makedev; the kernel's new_encode_dev agrees for these sizes).
pub const fn make_device(major: u32, minor: u32) -> u64 {
    (minor as u64 & 0xff) | (major as u64 & 0xfff) << 8 | (minor as u64 & !0xff) << 12
}

/// Major part of a device number.
pub const fn major(dev: u64) -> u32 {
    (dev >> 8 & 0xfff) as u32
}

/// Minor part of a device number.
pub const fn minor(dev: u64) -> u32 {
    (dev & 0xff | dev >> 12 & 0xfff00) as u32
}
