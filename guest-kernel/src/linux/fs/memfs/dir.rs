//! Changes of directories. The callers are the inode's operations and the system calls rename and link.

use alloc::sync::Arc;

use super::{Body, Data, DirBody, Entries, Name, Node, RENAME, node_of};
use crate::linux::errno::Errno;
use crate::linux::fs::inode::{Inode, New, mode};
use crate::linux::fs::pipe::Pipe;
use crate::time;

/// Longest name (NAME_MAX).
const NAME_MAX: usize = 255;

/// Makes something and names it.
pub fn create(dir: &Node, name: &[u8], what: New<'_>, permissions: u32) -> Result<Arc<Node>, Errno> {
    let Body::Dir(body) = &dir.body else { return Err(Errno::ENOTDIR) };
    check_new(dir, body, name)?;
    Node::check_room()?;
    let now = time::wall::now().0;
    let body_of_new = match what {
        New::File => Body::File(Data::new()),
        New::Dir => Body::Dir(DirBody::new()),
        New::Link(target) => Body::Link(target.into()),
        New::Fifo => Body::Fifo(Pipe::new()),
        New::Device(d) => Body::Device(d),
    };
    let node = Node::new(body_of_new, permissions, false, now);
    insert(dir, body, name.into(), node.clone(), &node)?;
    Ok(node)
}

/// One more name for a file (link).
pub fn link(dir: &Node, name: &[u8], node: &Arc<Node>) -> Result<(), Errno> {
    let Body::Dir(body) = &dir.body else { return Err(Errno::ENOTDIR) };
    if node.is_dir() {
        return Err(Errno::EPERM);
    }
    check_new(dir, body, name)?;
    if node.read_only {
        return Err(Errno::EXDEV);
    }
    insert(dir, body, name.into(), node.clone(), node)?;
    node.attributes.lock().nlink += 1;
    Ok(())
}

/// Puts a node of the archive in its place at start-up: `read_only` doesn't matter, an older entry is replaced.
pub fn place(dir: &Node, name: &'static [u8], inode: Arc<dyn Inode>) {
    let Body::Dir(body) = &dir.body else { return };
    if let Some(node) = node_of(&*inode) {
        settle(dir, Name::Static(name), node);
    }
    if inode.is_dir() {
        dir.attributes.lock().nlink += 1;
    }
    let old = body.0.lock().map.insert(Name::Static(name), inode);
    drop(old); // after the lock
}

fn settle(dir: &Node, name: Name, node: &Node) {
    let mut place = node.place.lock();
    place.parent = dir.this.clone();
    place.name = name;
}

fn check_new(dir: &Node, body: &DirBody, name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if body.0.lock().map.contains_key(name) {
        return Err(Errno::EEXIST);
    }
    if dir.read_only { Err(Errno::EROFS) } else { Ok(()) }
}

fn insert(dir: &Node, body: &DirBody, name: Name, inode: Arc<dyn Inode>, node: &Node) -> Result<(), Errno> {
    {
        let mut entries = body.0.lock();
        if entries.dead {
            return Err(Errno::ENOENT);
        }
        if entries.map.contains_key(name.bytes()) {
            return Err(Errno::EEXIST);
        }
        entries.map.insert(name.clone(), inode);
    }
    settle(dir, name, node);
    if node.is_dir() {
        dir.attributes.lock().nlink += 1;
    }
    dir.touch_modified();
    Ok(())
}

/// Removes a name.
pub fn unlink(dir: &Node, name: &[u8], want_dir: bool) -> Result<(), Errno> {
    let Body::Dir(body) = &dir.body else { return Err(Errno::ENOTDIR) };
    let _one = want_dir.then(|| RENAME.lock());
    let gone = {
        let mut entries = body.0.lock();
        let inode = entries.map.get(name).ok_or(Errno::ENOENT)?;
        removable(&**inode, want_dir)?;
        if dir.read_only {
            return Err(Errno::EROFS);
        }
        if let (true, Some(node)) = (want_dir, node_of(&**inode)) {
            bury(node)?;
        }
        entries.map.remove(name)
    };
    if let Some(inode) = gone {
        forget(dir, &*inode);
    }
    dir.touch_modified();
    Ok(())
}

/// Whether an entry is of the kind that the call removes, and not a mount point.
fn removable(inode: &dyn Inode, want_dir: bool) -> Result<(), Errno> {
    match (want_dir, inode.is_dir()) {
        (true, false) => Err(Errno::ENOTDIR),
        (false, true) => Err(Errno::EISDIR),
        _ if node_of(inode).is_none() => Err(Errno::EBUSY),
        _ => Ok(()),
    }
}

/// Marks an empty directory as removed. Its parent's lock is held, and [`RENAME`].
fn bury(node: &Node) -> Result<(), Errno> {
    let Body::Dir(body) = &node.body else { return Err(Errno::ENOTDIR) };
    let mut entries = body.0.lock();
    if !entries.map.is_empty() {
        return Err(Errno::ENOTEMPTY);
    }
    entries.dead = true;
    Ok(())
}

/// Books that a name of `inode` has gone from `dir`.
fn forget(dir: &Node, inode: &dyn Inode) {
    let Some(node) = node_of(inode) else { return };
    let mut a = node.attributes.lock();
    a.ctime = time::wall::now().0;
    if a.mode & mode::TYPE == mode::DIR {
        a.nlink = 0;
        drop(a);
        dir.attributes.lock().nlink -= 1;
    } else {
        a.nlink = a.nlink.saturating_sub(1);
    }
}

/// Moves a name (rename, renameat2). `replace`: an older entry may be there; `exchange`: it must be, and they swap places.
///
/// # Errors
/// As rename(2).
pub fn rename(
    from: &dyn Inode,
    old: &[u8],
    to: &dyn Inode,
    new: &[u8],
    replace: bool,
    exchange: bool,
) -> Result<(), Errno> {
    let (Some(from), Some(to)) = (node_of(from), node_of(to)) else {
        // A directory of another file system; an older name there would be a matter of that system, and they are all fixed.
        return Err(if from.as_any().type_id() == to.as_any().type_id() { Errno::EROFS } else { Errno::EXDEV });
    };
    let (Body::Dir(from_body), Body::Dir(to_body)) = (&from.body, &to.body) else { return Err(Errno::ENOTDIR) };
    if new.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let _one = RENAME.lock();
    let moved = from_body.0.lock().map.get(old).cloned().ok_or(Errno::ENOENT)?;
    if from.read_only || to.read_only {
        return Err(Errno::EROFS);
    }
    let Some(moved_node) = node_of(&*moved) else { return Err(Errno::EBUSY) };
    let moved_dir = moved_node.is_dir();
    if moved_dir && is_inside(to, moved_node) {
        return Err(Errno::EINVAL);
    }
    let replaced = if core::ptr::eq(from, to) {
        let mut entries = from_body.0.lock();
        check_source(&entries, old, &moved)?;
        let replaced = check_target(&entries, new, moved_node, replace, exchange, from)?;
        if same(replaced.as_ref(), &moved) {
            return Ok(()); // two names of one file: POSIX says that nothing happens
        }
        match &replaced {
            Some(other) if exchange => entries.map.insert(old.into(), other.clone()),
            _ => entries.map.remove(old),
        };
        entries.map.insert(new.into(), moved.clone());
        replaced
    } else {
        let mut source = from_body.0.lock();
        let mut target = to_body.0.lock();
        check_source(&source, old, &moved)?;
        if target.dead {
            return Err(Errno::ENOENT);
        }
        let replaced = check_target(&target, new, moved_node, replace, exchange, from)?;
        if same(replaced.as_ref(), &moved) {
            return Ok(());
        }
        match &replaced {
            Some(other) if exchange => source.map.insert(old.into(), other.clone()),
            _ => source.map.remove(old),
        };
        target.map.insert(new.into(), moved.clone());
        replaced
    };
    settle(to, new.into(), moved_node);
    if moved_dir {
        from.attributes.lock().nlink -= 1;
        to.attributes.lock().nlink += 1;
    }
    if let Some(other) = replaced {
        match node_of(&*other) {
            Some(n) if exchange => {
                settle(from, old.into(), n);
                if n.is_dir() {
                    to.attributes.lock().nlink -= 1;
                    from.attributes.lock().nlink += 1;
                }
            }
            _ => forget(to, &*other),
        }
    }
    from.touch_modified();
    to.touch_modified();
    Ok(())
}

/// The name must still be what was found: another program may have been quicker.
fn check_source(source: &Entries, name: &[u8], moved: &Arc<dyn Inode>) -> Result<(), Errno> {
    if same(source.map.get(name), moved) { Ok(()) } else { Err(Errno::ENOENT) }
}

fn same(a: Option<&Arc<dyn Inode>>, b: &Arc<dyn Inode>) -> bool {
    a.is_some_and(|a| core::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b)))
}

/// Whether the target's entry may be replaced; marks a replaced directory as removed.
fn check_target(
    target: &Entries,
    name: &[u8],
    moved: &Node,
    replace: bool,
    exchange: bool,
    from: &Node,
) -> Result<Option<Arc<dyn Inode>>, Errno> {
    let Some(old) = target.map.get(name) else { return if exchange { Err(Errno::ENOENT) } else { Ok(None) } };
    if !replace && !exchange {
        return Err(Errno::EEXIST);
    }
    let Some(old_node) = node_of(&**old) else { return Err(Errno::EBUSY) };
    if core::ptr::eq(old_node, moved) {
        return Ok(Some(old.clone()));
    }
    if exchange {
        if old_node.is_dir() && is_inside(from, old_node) {
            return Err(Errno::EINVAL);
        }
        return Ok(Some(old.clone()));
    }
    match (moved.is_dir(), old_node.is_dir()) {
        (true, false) => return Err(Errno::ENOTDIR),
        (false, true) => return Err(Errno::EISDIR),
        (true, true) if core::ptr::eq(old_node, from) => return Err(Errno::ENOTEMPTY),
        (true, true) => bury(old_node)?,
        (false, false) => {}
    }
    Ok(Some(old.clone()))
}

/// Whether `dir` is `ancestor` or below it. Under [`RENAME`], so that the way up holds still.
fn is_inside(dir: &Node, ancestor: &Node) -> bool {
    let mut at = dir.this.upgrade();
    while let Some(node) = at {
        if core::ptr::eq(&*node, ancestor) {
            return true;
        }
        let up = node.place.lock().parent.upgrade();
        at = up;
    }
    false
}
