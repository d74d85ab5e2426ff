//! From paths to inodes.
//!
//! No component is copied and nothing is allocated unless a symbolic link is met. All programs run as root: there are no
//! permission checks but "read-only file system" and "not executable".

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::inode::{Caller, Inode, mode};
use crate::linux::errno::Errno;
use crate::linux::process::Process;
use crate::mm::user;

/// "Start at the working directory" for the `*at` calls.
pub const AT_FDCWD: i32 = -100;
/// Longest path with its zero (PATH_MAX), longest component.
pub const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;
/// Most symbolic links on the way (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// Reads a path argument.
///
/// # Errors
/// EFAULT, ENAMETOOLONG.
pub fn read_path(addr: u64) -> Result<Vec<u8>, Errno> {
    user::read_cstr(addr, PATH_MAX).map_err(|e| e.map_or(Errno::ENAMETOOLONG, Errno::from))
}

/// A name in a directory, which may not exist yet.
pub struct Place {
    /// The directory.
    pub dir: Arc<dyn Inode>,
    /// The last component.
    pub name: Vec<u8>,
    /// The path ended in a slash: it must be a directory.
    pub must_be_dir: bool,
}

enum Found {
    Inode(Arc<dyn Inode>),
    Place(Place),
}

/// Resolves a path. `follow`: also a link in the last component.
///
/// # Errors
/// ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG.
pub fn walk(start: &Arc<dyn Inode>, path: &[u8], follow: bool, caller: Caller<'_>) -> Result<Arc<dyn Inode>, Errno> {
    match resolve(start.clone(), path, follow, false, caller)? {
        Found::Inode(i) => Ok(i),
        Found::Place(_) => Err(Errno::ENOENT),
    }
}

/// Resolves all but the last component.
///
/// # Errors
/// As [`walk`]; EEXIST for "/", "." and "..", which are no names (callers turn it into what their call says).
pub fn walk_parent(start: &Arc<dyn Inode>, path: &[u8], caller: Caller<'_>) -> Result<Place, Errno> {
    match resolve(start.clone(), path, false, true, caller)? {
        Found::Place(p) => Ok(p),
        Found::Inode(_) => Err(Errno::EEXIST),
    }
}

/// Resolves the path of a `*at` call.
///
/// # Errors
/// As [`walk`]; EBADF.
pub fn lookup_at(process: &Process, dirfd: i32, path: &[u8], follow: bool) -> Result<Arc<dyn Inode>, Errno> {
    walk(&process.fs.start(dirfd, path)?, path, follow, Caller(Some(process)))
}

/// As [`lookup_at`], for a name that may not exist.
///
/// # Errors
/// As [`walk_parent`].
pub fn parent_at(process: &Process, dirfd: i32, path: &[u8]) -> Result<Place, Errno> {
    walk_parent(&process.fs.start(dirfd, path)?, path, Caller(Some(process)))
}

fn resolve(start: Arc<dyn Inode>, path: &[u8], follow: bool, parent: bool, caller: Caller<'_>) -> Result<Found, Errno> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let mut at = start;
    // What is left to do; owned once a link has been met.
    let mut owned: Vec<u8>;
    let mut rest = path;
    let mut links = 0;
    if rest[0] == b'/' {
        at = super::root();
    }
    loop {
        let begin = rest.iter().position(|b| *b != b'/').unwrap_or(rest.len());
        rest = &rest[begin..];
        if rest.is_empty() {
            return Ok(Found::Inode(at));
        }
        let end = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let last = after.iter().all(|b| *b == b'/');
        let slash = !after.is_empty();
        match name {
            b"." => {
                if !at.is_dir() {
                    return Err(Errno::ENOTDIR);
                }
                rest = after;
                continue;
            }
            b".." => {
                at = at.parent()?;
                rest = after;
                continue;
            }
            _ => {}
        }
        if last && parent {
            if !at.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            return Ok(Found::Place(Place { dir: at, name: name.to_vec(), must_be_dir: slash }));
        }
        let next = at.lookup(name, caller)?;
        let kind = next.kind();
        if kind == mode::LINK && (!last || follow || slash) {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP);
            }
            if let Some(target) = next.jump() {
                at = target?;
                rest = after;
                continue;
            }
            let mut target = next.read_link(caller)?;
            if target.is_empty() {
                return Err(Errno::ENOENT);
            }
            if target[0] == b'/' {
                at = super::root();
            }
            target.extend_from_slice(after);
            if target.len() > 2 * PATH_MAX {
                return Err(Errno::ENAMETOOLONG);
            }
            owned = target;
            rest = &owned;
            continue;
        }
        if (!last || slash) && kind != mode::DIR {
            return Err(Errno::ENOTDIR);
        }
        at = next;
        rest = after;
    }
}
