//! The archive: a `newc` cpio image in RAM, turned into a tree at boot. Nothing is copied: names and data stay where they are.
//!
//! Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst. Several archives may follow each other, with zeroes
//! between them. What is cut short is left out, with a log line; what is whole is kept.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::inode::{Inode, make_device, mode};
use super::memfs::{ArchiveData, Body, Data, DirBody, Name, Node, node_of, place};
use crate::mm::PhysAddr;

const HEADER: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
const NANOS: u64 = 1_000_000_000;

/// Fields of a header, in order: eight hexadecimal digits each, after a magic of six.
mod field {
    pub const INO: usize = 0;
    pub const MODE: usize = 1;
    pub const UID: usize = 2;
    pub const GID: usize = 3;
    pub const NLINK: usize = 4;
    pub const MTIME: usize = 5;
    pub const FILESIZE: usize = 6;
    pub const DEVMAJOR: usize = 7;
    pub const DEVMINOR: usize = 8;
    pub const RDEVMAJOR: usize = 9;
    pub const RDEVMINOR: usize = 10;
    pub const NAMESIZE: usize = 11;
}

/// Directories that programs may write in.
const WRITABLE: [&[u8]; 4] = [b"tmp", b"var/tmp", b"run", b"dev/shm"];

/// An entry of the archive.
struct Entry {
    header: &'static [u8],
    name: &'static [u8],
    data: &'static [u8],
}

impl Entry {
    fn field(&self, i: usize) -> u32 {
        hex(&self.header[6 + i * 8..14 + i * 8]).unwrap_or(0)
    }

    fn time(&self) -> u64 {
        u64::from(self.field(field::MTIME)) * NANOS
    }
}

fn hex(digits: &[u8]) -> Option<u32> {
    let mut v = 0;
    for &d in digits {
        let n = match d {
            b'0'..=b'9' => d - b'0',
            b'a'..=b'f' => d - b'a' + 10,
            b'A'..=b'F' => d - b'A' + 10,
            _ => return None,
        };
        v = v << 4 | u32::from(n);
    }
    Some(v)
}

/// Why reading stopped before the end.
enum Damage {
    /// No header where one should be.
    NoHeader,
    /// The image ends inside an entry.
    Cut,
}

/// Takes the next entry; `None` at the end.
fn next(image: &'static [u8], at: &mut usize) -> Result<Option<Entry>, Damage> {
    // Zeroes between archives and behind the last one come in fours.
    while image.get(*at..*at + 4).is_some_and(|w| w == [0; 4]) {
        *at += 4;
    }
    let Some(header) = image.get(*at..*at + HEADER) else {
        let rest = &image[(*at).min(image.len())..];
        return if rest.iter().all(|b| *b == 0) { Ok(None) } else { Err(Damage::Cut) };
    };
    if &header[..6] != b"070701" && &header[..6] != b"070702" {
        return Err(Damage::NoHeader);
    }
    let number = |i: usize| hex(&header[6 + i * 8..14 + i * 8]).map(|v| v as usize).ok_or(Damage::NoHeader);
    let (name_size, file_size) = (number(field::NAMESIZE)?, number(field::FILESIZE)?);
    let name_start = *at + HEADER;
    let data_start = (name_start + name_size).next_multiple_of(4);
    let name = image.get(name_start..name_start + name_size).ok_or(Damage::Cut)?;
    let data = image.get(data_start..data_start + file_size).ok_or(Damage::Cut)?;
    *at = (data_start + file_size).next_multiple_of(4);
    // The name may be padded with zeroes, so that the data is page aligned.
    let name = &name[..name.iter().position(|b| *b == 0).unwrap_or(name.len())];
    Ok(Some(Entry { header, name, data }))
}

/// The names of one file. All but one entry of such a file may come without its data, before or after.
struct Links {
    node: Option<Arc<Node>>,
    waiting: Vec<(Arc<Node>, &'static [u8])>,
}

/// What `load` keeps in mind.
struct Loader<'a> {
    root: &'a Arc<Node>,
    /// By inode number and device; those of the present archive only.
    links: BTreeMap<[u32; 3], Links>,
}

/// Builds the tree. Entries of equal name: the last one holds.
pub fn load(base: PhysAddr, len: u64, root: &Arc<Node>) {
    // SAFETY: boot has reserved this RAM; nobody writes it.
    let image: &'static [u8] = unsafe { core::slice::from_raw_parts(base.as_ptr::<u8>(), len as usize) };
    let mut loader = Loader { root, links: BTreeMap::new() };
    let (mut at, mut count) = (0, 0u32);
    loop {
        match next(image, &mut at) {
            Ok(None) => break,
            Ok(Some(entry)) if entry.name == TRAILER => loader.finish(),
            Ok(Some(entry)) => {
                loader.add(&entry);
                count += 1;
            }
            Err(Damage::Cut) => {
                crate::error!(
                    "archive: cut short in entry {} at byte {at} of {len}; what is before it is used",
                    count + 1
                );
                break;
            }
            Err(Damage::NoHeader) => {
                crate::error!(
                    "archive: no newc header at byte {at} of {len}, after {count} entries; the rest is ignored"
                );
                break;
            }
        }
    }
    loader.finish();
    crate::debug!("archive: {count} entries, {len} bytes");
}

impl Loader<'_> {
    fn add(&mut self, e: &Entry) {
        let Some((dir, name)) = parent_of(self.root, e.name) else { return };
        let kind = e.field(field::MODE) & mode::TYPE;
        if kind == mode::DIR {
            let node = child_dir(&dir, name);
            return node.set_attributes(e.field(field::MODE), e.field(field::UID), e.field(field::GID), e.time());
        }
        if kind != mode::FILE || e.field(field::NLINK) <= 1 {
            return place(&dir, name, make(&dir, e));
        }
        let key = [field::INO, field::DEVMAJOR, field::DEVMINOR].map(|f| e.field(f));
        let links = self.links.entry(key).or_insert_with(|| Links { node: None, waiting: Vec::new() });
        links.waiting.push((dir.clone(), name));
        if links.node.is_none() && !e.data.is_empty() {
            links.node = Some(make(&dir, e));
        }
        if let Some(node) = &links.node {
            settle(node, &mut links.waiting);
        } else {
            // Perhaps it is just empty: then this stays.
            place(&dir, name, make(&dir, e));
        }
    }

    /// The end of one archive: numbers start afresh.
    fn finish(&mut self) {
        self.links.clear();
    }
}

fn settle(node: &Arc<Node>, names: &mut Vec<(Arc<Node>, &'static [u8])>) {
    for (dir, name) in names.drain(..) {
        node.add_name();
        place(&dir, name, node.clone());
    }
}

/// The directory of a path's last component, made if need be, and that component.
fn parent_of(root: &Arc<Node>, path: &'static [u8]) -> Option<(Arc<Node>, &'static [u8])> {
    let mut dir = root.clone();
    let mut parts = path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").peekable();
    let mut last = parts.next()?;
    loop {
        if last == b".." {
            return None;
        }
        if parts.peek().is_none() {
            return Some((dir, last));
        }
        dir = child_dir(&dir, last);
        last = parts.next()?;
    }
}

/// A directory in a directory; made, or put in the place of something else, if need be.
pub fn child_dir(dir: &Arc<Node>, name: &'static [u8]) -> Arc<Node> {
    if let Some(node) = child(dir, name)
        && node.is_dir()
    {
        return node;
    }
    let node = Node::new(Body::Dir(DirBody::new()), 0o755, dir.read_only(), 0);
    place(dir, name, node.clone());
    node
}

fn child(dir: &Arc<Node>, name: &[u8]) -> Option<Arc<Node>> {
    let found = dir.lookup(name, super::inode::Caller(None)).ok()?;
    node_of(&*found).and_then(Node::handle)
}

fn make(dir: &Arc<Node>, e: &Entry) -> Arc<Node> {
    let full_mode = e.field(field::MODE);
    let body = match full_mode & mode::TYPE {
        mode::LINK => Body::Link(Name::Static(e.data)),
        mode::FIFO => Body::Fifo(super::pipe::Pipe::new()),
        mode::CHAR => Body::Device(make_device(e.field(field::RDEVMAJOR), e.field(field::RDEVMINOR))),
        _ => {
            let data = ArchiveData::new(PhysAddr::from_direct(e.data.as_ptr() as u64), e.data.len() as u64);
            if dir.read_only() { Body::Archive(data) } else { Body::File(Data::over(Some(data))) }
        }
    };
    let node = Node::new(body, full_mode, dir.read_only(), e.time());
    node.set_attributes(full_mode, e.field(field::UID), e.field(field::GID), e.time());
    node
}

/// The root and the directories that are always there, before the archive is read.
pub fn skeleton(time: u64) -> Arc<Node> {
    let root = Node::new(Body::Dir(DirBody::new()), 0o755, true, time);
    for path in WRITABLE {
        if let Some((dir, name)) = parent_of(&root, path) {
            let node = Node::new(Body::Dir(DirBody::new()), 0o1777, false, time);
            place(&dir, name, node);
        }
    }
    root
}
