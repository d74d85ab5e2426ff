//! Files and everything with a file descriptor.
//!
//! From the outside in: `dispatch` takes system calls and hands them to `calls`; `context` holds a process's descriptors, `open_file`
//! what they refer to (`locks` their locks), `inode` and `path` what has a name. File systems: `memfs` (the archive and tmpfs, one tree),
//! `proc`, with `sys` for what /sys says of CPUs and nodes. Other files: `pipe`, `socket_pair`, `eventfd`, `signalfd`, `pidfd`,
//! `epoll`, `tty`, `console_file`, `dev`. What the VMM does to pipes and files: `attached`.
//!
//! Lock order in this folder (left to right): a file's position -> tree (`memfs::RENAME`) -> a file's `order` or a pipe's ring ->
//! user memory (which may fault) -> spin locks, which are leaves but for the order given in `epoll`. And by splice: a pipe's ring -> a
//! file's position.

mod archive;
pub mod attached;
mod calls;
mod console_file;
mod context;
mod dev;
mod dispatch;
mod epoll;
mod eventfd;
mod inode;
mod io;
mod locks;
mod memfs;
mod open_file;
mod path;
pub mod pidfd;
mod pipe;
mod poll;
mod proc;
mod signalfd;
mod socket_pair;
mod sys;
mod tty;

use alloc::sync::Arc;
use alloc::vec::Vec;

pub use self::context::{FsContext, Share};
pub use self::dispatch::dispatch;
use self::inode::Caller;
pub use self::inode::Inode;
use self::memfs::{Body, DirBody, Name, Node};
pub use self::open_file::Flags as FileFlags;
use crate::linux::errno::Errno;
use crate::linux::process::Process;
use crate::mm::PhysAddr;
use crate::mm::vma::PageSource;
use crate::sync::BootCell;
use crate::time;

static ROOT: BootCell<Arc<Node>> = BootCell::new();

/// The root directory.
fn root() -> Arc<dyn Inode> {
    match ROOT.get() {
        Some(r) => r.clone(),
        // Before `init` there is only an empty directory.
        None => Node::new(Body::Dir(DirBody::new()), 0o755, true, 0),
    }
}

/// Builds the tree from the archive. Boot CPU, once.
pub fn init(archive: (PhysAddr, u64)) {
    let now = time::wall::now().0;
    let root = archive::skeleton(now);
    if archive.1 > 0 {
        archive::load(archive.0, archive.1, &root);
    }
    let devices: [(&[u8], u64); 7] = [
        (b"null", dev::NULL),
        (b"zero", dev::ZERO),
        (b"full", dev::FULL),
        (b"random", dev::RANDOM),
        (b"urandom", dev::URANDOM),
        (b"tty", dev::TTY),
        (b"console", dev::CONSOLE),
    ];
    let links: [(&[u8], &[u8]); 4] = [
        (b"fd", b"/proc/self/fd"),
        (b"stdin", b"/proc/self/fd/0"),
        (b"stdout", b"/proc/self/fd/1"),
        (b"stderr", b"/proc/self/fd/2"),
    ];
    let dev = archive::child_dir(&root, b"dev");
    for (name, number) in devices {
        memfs::place(&dev, name, Node::new(Body::Device(number), 0o666, true, now));
    }
    for (name, target) in links {
        memfs::place(&dev, name, Node::new(Body::Link(Name::Static(target)), 0o777, true, now));
    }
    memfs::place(&root, b"proc", proc::proc_root());
    memfs::place(&root, b"sys", proc::sys_root());
    ROOT.set(root);
}

/// Finds a file. `dirfd` as the `*at` calls take it (AT_FDCWD = -100).
///
/// # Errors
/// As open(2).
pub fn lookup(process: &Process, dirfd: i32, path: &[u8], follow: bool) -> Result<Arc<dyn Inode>, Errno> {
    path::lookup_at(process, dirfd, path, follow)
}

/// The pages of an open file for mmap, with (writable, readable).
///
/// # Errors
/// EBADF; ENODEV: can't be mapped.
pub fn file_page_source(process: &Process, fd: i32) -> Result<(Arc<dyn PageSource>, bool, bool), Errno> {
    let file = process.fs.file(fd)?;
    let flags = file.flags();
    if flags.contains(open_file::Flags::PATH) {
        return Err(Errno::EBADF);
    }
    let source = file.file.page_source().ok_or(Errno::ENODEV)?;
    Ok((source, flags.writable(), flags.readable()))
}

/// The inode behind a descriptor (fexecve, execveat with AT_EMPTY_PATH).
///
/// # Errors
/// EBADF, EACCES.
pub fn inode_of_fd(process: &Process, fd: i32) -> Result<Arc<dyn Inode>, Errno> {
    process.fs.file(fd)?.file.inode().ok_or(Errno::EACCES)
}

/// Reads a whole file by its absolute path.
pub fn read_whole(path: &[u8]) -> Option<Vec<u8>> {
    let inode = path::walk(&root(), path, true, Caller(None)).ok()?;
    let size = usize::try_from(inode.size()).ok()?;
    let mut bytes = alloc::vec![0; size];
    let n = inode.read_at(0, &mut bytes).ok()?;
    bytes.truncate(n);
    Some(bytes)
}
