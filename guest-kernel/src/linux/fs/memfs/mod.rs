//! The one writable-or-not tree: what the archive holds, and the tmpfs parts (/tmp and others).
//!
//! A [`Node`] is a file, directory, link, pipe or device. Directories hold `Arc<dyn Inode>`, so that other file systems hang in
//! the tree as entries. Invariants:
//! - A directory's entries change under its own lock. Whoever takes two of these locks (rename, rmdir) holds [`RENAME`], so that
//!   their order doesn't matter, and no rename can make a loop.
//! - `read_only` nodes never change: that is everything outside the tmpfs parts.

mod data;
mod dir;
mod file;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::borrow::Borrow;
use core::ops::Bound;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;

pub use self::data::{ArchiveData, Data, usage};
pub use self::dir::{link, place, rename};
pub use self::file::DirFile;
use super::dev;
use super::inode::{Caller, Change, DirEntry, Inode, Metadata, New, device, mode};
use super::open_file::{FileRef, Flags, OpenFile};
use super::pipe::Pipe;
use crate::linux::errno::Errno;
use crate::linux::process::Process;
use crate::mm::vma::PageSource;
use crate::sync::{Mutex, SpinLock};
use crate::time;

/// Held by whoever changes the shape of the tree.
static RENAME: Mutex<()> = Mutex::new(());

/// A name: most of the archive's stay where they are.
#[derive(Clone)]
pub enum Name {
    /// In the archive.
    Static(&'static [u8]),
    /// Made by a program.
    Owned(Box<[u8]>),
}

impl Name {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Static(s) => s,
            Self::Owned(b) => b,
        }
    }
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        Self::Owned(bytes.into())
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        self.bytes()
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.bytes().cmp(other.bytes())
    }
}

/// Attributes that can change.
#[derive(Clone, Copy)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    atime: u64,
    mtime: u64,
    ctime: u64,
}

/// Where a node was linked last.
struct Place {
    parent: Weak<Node>,
    name: Name,
}

/// A directory's content.
struct Entries {
    map: BTreeMap<Name, Arc<dyn Inode>>,
    /// Removed: nothing may be made in it.
    dead: bool,
}

/// What a node is.
pub enum Body {
    /// A directory.
    Dir(DirBody),
    /// A file of the archive.
    Archive(ArchiveData),
    /// A file in memory.
    File(Data),
    /// A symbolic link.
    Link(Name),
    /// A named pipe.
    Fifo(Arc<Pipe>),
    /// A character device.
    Device(u64),
}

impl Body {
    const fn kind(&self) -> u32 {
        match self {
            Self::Dir(_) => mode::DIR,
            Self::Archive(_) | Self::File(_) => mode::FILE,
            Self::Link(_) => mode::LINK,
            Self::Fifo(_) => mode::FIFO,
            Self::Device(_) => mode::CHAR,
        }
    }
}

/// See [`Body::Dir`]. Guards the entries only.
pub struct DirBody(SpinLock<Entries>);

impl DirBody {
    /// Empty.
    pub fn new() -> Self {
        Self(SpinLock::new(Entries { map: BTreeMap::new(), dead: false }))
    }
}

/// A file-system object of this tree.
pub struct Node {
    this: Weak<Node>,
    ino: u64,
    read_only: bool,
    /// Guards itself only.
    attributes: SpinLock<Attributes>,
    /// Guards itself only.
    place: SpinLock<Place>,
    body: Body,
}

/// Nodes that there are. Programs may make as many as the machine has frames.
static NODES: AtomicU64 = AtomicU64::new(0);

impl Drop for Node {
    fn drop(&mut self) {
        NODES.fetch_sub(1, Ordering::Relaxed);
    }
}

fn next_ino() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Node {
    /// A node that is in no directory yet.
    pub fn new(body: Body, permissions: u32, read_only: bool, time: u64) -> Arc<Self> {
        let kind = body.kind();
        let nlink = if kind == mode::DIR { 2 } else { 1 };
        let attributes = Attributes {
            mode: kind | permissions & 0o7777,
            uid: 0,
            gid: 0,
            nlink,
            atime: time,
            mtime: time,
            ctime: time,
        };
        NODES.fetch_add(1, Ordering::Relaxed);
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            ino: next_ino(),
            read_only,
            attributes: SpinLock::new(attributes),
            place: SpinLock::new(Place { parent: Weak::new(), name: Name::Static(b"") }),
            body,
        })
    }

    /// Sets what an archive's header says.
    pub fn set_attributes(&self, permissions: u32, uid: u32, gid: u32, time: u64) {
        let mut a = self.attributes.lock();
        a.mode = a.mode & mode::TYPE | permissions & 0o7777;
        (a.uid, a.gid, a.atime, a.mtime, a.ctime) = (uid, gid, time, time, time);
    }

    /// One more name in the archive; the first is counted from the start.
    pub fn add_name(&self) {
        let mut a = self.attributes.lock();
        a.nlink += u32::from(!self.place.lock().name.bytes().is_empty());
    }

    /// A counted handle.
    pub fn handle(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    /// A file without a name (memfd_create, O_TMPFILE).
    pub fn unnamed_file(permissions: u32) -> Arc<Self> {
        let node = Self::new(Body::File(Data::new()), permissions, false, time::wall::now().0);
        node.attributes.lock().nlink = 0;
        node
    }

    /// Names it for /proc although it is in no directory.
    pub fn set_label(&self, label: &[u8]) {
        self.place.lock().name = label.into();
    }

    /// Whether it is in the part that can't be changed.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a program may make one more node.
    fn check_room() -> Result<(), Errno> {
        let limit = u64::from(crate::mm::frame::usage().1);
        if NODES.load(Ordering::Relaxed) < limit { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    /// What it is.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Its bytes, if it is a file in memory.
    fn data(&self) -> Option<&Data> {
        match &self.body {
            Body::File(d) => Some(d),
            _ => None,
        }
    }

    /// The bytes were changed.
    fn touch_modified(&self) {
        let now = time::wall::now().0;
        let mut a = self.attributes.lock();
        (a.mtime, a.ctime) = (now, now);
    }
}

/// The node behind an inode, if it is of this tree.
pub fn node_of(inode: &dyn Inode) -> Option<&Node> {
    inode.as_any().downcast_ref()
}

impl Inode for Node {
    fn metadata(&self) -> Metadata {
        let a = *self.attributes.lock();
        let (size, blocks) = match &self.body {
            Body::Archive(d) => (d.len(), d.len().div_ceil(512)),
            Body::File(d) => (d.size(), d.blocks()),
            Body::Link(t) => (t.bytes().len() as u64, 0),
            Body::Dir(_) | Body::Fifo(_) | Body::Device(_) => (0, 0),
        };
        Metadata {
            dev: device::ROOT,
            ino: self.ino,
            mode: a.mode,
            nlink: a.nlink,
            uid: a.uid,
            gid: a.gid,
            rdev: if let Body::Device(d) = self.body { d } else { 0 },
            size,
            blocks,
            atime: a.atime,
            mtime: a.mtime,
            ctime: a.ctime,
        }
    }

    fn mode(&self) -> u32 {
        self.attributes.lock().mode
    }

    fn kind(&self) -> u32 {
        self.body.kind()
    }

    fn size(&self) -> u64 {
        match &self.body {
            Body::Archive(d) => d.len(),
            Body::File(d) => d.size(),
            _ => 0,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        match &self.body {
            Body::Archive(d) => {
                let bytes = d.bytes_from(offset);
                let n = bytes.len().min(buf.len());
                buf[..n].copy_from_slice(&bytes[..n]);
                Ok(n)
            }
            Body::File(d) => {
                let segment = super::io::IoVec { base: buf.as_mut_ptr() as u64, len: buf.len() as u64 };
                // SAFETY: the buffer is borrowed mutably for as long as the cursor lives.
                d.read(&mut unsafe { super::io::IoCursor::kernel(&segment) }, offset)
            }
            Body::Dir(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn page_source(&self) -> Option<Arc<dyn PageSource>> {
        match &self.body {
            Body::File(d) => d.note_mapped(),
            Body::Archive(_) => {}
            _ => return None,
        }
        self.this.upgrade().map(|n| n as Arc<dyn PageSource>)
    }

    fn path(&self) -> Vec<u8> {
        let (mut parent, name) = {
            let p = self.place.lock();
            (p.parent.upgrade(), p.name.clone())
        };
        let mut parts = Vec::new();
        if !name.bytes().is_empty() {
            parts.push(name);
        }
        while let Some(node) = parent {
            let p = node.place.lock();
            if !p.name.bytes().is_empty() {
                parts.push(p.name.clone());
            }
            let up = p.parent.upgrade();
            drop(p);
            parent = up;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part.bytes());
        }
        if path.is_empty() {
            path.push(b'/');
        }
        if self.attributes.lock().nlink == 0 {
            path.extend_from_slice(b" (deleted)");
        }
        path
    }

    fn open(self: Arc<Self>, flags: Flags, caller: &Process) -> Result<FileRef, Errno> {
        match &self.body {
            Body::Dir(_) => {
                if flags.writable() {
                    return Err(Errno::EISDIR);
                }
                Ok(OpenFile::new(DirFile::new(self), flags))
            }
            Body::Archive(_) | Body::File(_) => {
                if flags.writable() && self.read_only {
                    return Err(Errno::EROFS);
                }
                Ok(OpenFile::new(file::NodeFile::new(self), flags))
            }
            Body::Link(_) => Err(Errno::ELOOP),
            Body::Fifo(p) => p.clone().open_named(self.clone(), flags),
            Body::Device(d) => dev::open(*d, self.clone(), flags, caller),
        }
    }

    fn lookup(&self, name: &[u8], _caller: Caller<'_>) -> Result<Arc<dyn Inode>, Errno> {
        let Body::Dir(dir) = &self.body else { return Err(Errno::ENOTDIR) };
        dir.0.lock().map.get(name).cloned().ok_or(Errno::ENOENT)
    }

    fn parent(&self) -> Result<Arc<dyn Inode>, Errno> {
        let place = self.place.lock();
        if place.name.bytes().is_empty() {
            return Ok(self.handle().ok_or(Errno::ENOENT)?); // the root is its own
        }
        Ok(place.parent.upgrade().ok_or(Errno::ENOENT)?)
    }

    fn entries(&self, _caller: Caller<'_>) -> Result<Vec<DirEntry>, Errno> {
        let Body::Dir(dir) = &self.body else { return Err(Errno::ENOTDIR) };
        let count = dir.0.lock().map.len();
        let mut entries = Vec::new();
        // Two more: the caller adds "." and "..".
        entries.try_reserve_exact(count + 2).map_err(|_| Errno::ENOMEM)?;
        let mut last: Option<Name> = None;
        loop {
            // A few at a time, so that the lock is short. Each goes on behind the last one's name.
            let mut some = ArrayVec::<(Name, Arc<dyn Inode>), 16>::new();
            {
                let from = last.as_ref().map_or(Bound::Unbounded, |n| Bound::Excluded(n.bytes()));
                let guard = dir.0.lock();
                some.extend(
                    guard.map.range::<[u8], _>((from, Bound::Unbounded)).take(16).map(|(n, i)| (n.clone(), i.clone())),
                );
            }
            for (name, inode) in &some {
                let m = match node_of(&**inode) {
                    Some(n) => (n.ino, n.kind()),
                    None => (inode.metadata().ino, inode.mode()),
                };
                entries.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                entries.push(DirEntry { name: name.bytes().to_vec(), ino: m.0, mode: m.1 });
            }
            match some.pop() {
                Some((name, _)) => last = Some(name),
                None => return Ok(entries),
            }
        }
    }

    fn read_link(&self, _caller: Caller<'_>) -> Result<Vec<u8>, Errno> {
        match &self.body {
            Body::Link(t) => Ok(t.bytes().to_vec()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn create(&self, name: &[u8], what: New<'_>, permissions: u32) -> Result<Arc<dyn Inode>, Errno> {
        Ok(dir::create(self, name, what, permissions)?)
    }

    fn unlink(&self, name: &[u8], dir: bool) -> Result<(), Errno> {
        dir::unlink(self, name, dir)
    }

    fn change(&self, change: Change) -> Result<(), Errno> {
        if self.read_only {
            return Err(Errno::EROFS);
        }
        let now = time::wall::now().0;
        let mut a = self.attributes.lock();
        if let Some(m) = change.mode {
            a.mode = a.mode & mode::TYPE | m & 0o7777;
        }
        a.uid = change.uid.unwrap_or(a.uid);
        a.gid = change.gid.unwrap_or(a.gid);
        a.atime = change.atime.unwrap_or(a.atime);
        a.mtime = change.mtime.unwrap_or(a.mtime);
        a.ctime = now;
        Ok(())
    }

    fn truncate(&self, size: u64) -> Result<(), Errno> {
        match &self.body {
            Body::Dir(_) => Err(Errno::EISDIR),
            Body::File(d) if !self.read_only => {
                d.truncate(size)?;
                self.touch_modified();
                Ok(())
            }
            Body::File(_) | Body::Archive(_) => Err(Errno::EROFS),
            _ => Err(Errno::EINVAL),
        }
    }

    fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
