//! /proc and /sys: text made when it is read.
//!
//! Nodes are made by look-ups and hold no state but their name: a directory is described by a static table, or by a process's
//! number. Opening a file makes nothing; reading it from the start makes its text anew.

mod cpuinfo;
mod process;
mod sched;
mod stack;
mod system;

use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;

use super::inode::{Caller, DirEntry, Inode, Metadata, device, mode};
use super::io::IoCursor;
use super::memfs::DirFile;
use super::open_file::{File, FileRef, Flags, OpenFile};
use super::sys;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::{Process, find, for_each};
use crate::sync::Mutex;
use crate::time;

/// Where a text goes.
struct Out(Vec<u8>);

impl Out {
    fn push_str(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Bytes that need not be text.
    fn bytes(&mut self, bytes: &[u8]) {
        // Where memory is short the text ends early: better than the kernel's end.
        if self.0.try_reserve(bytes.len()).is_ok() {
            self.0.extend_from_slice(bytes);
        }
    }
}

impl fmt::Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_str(text);
        Ok(())
    }
}

/// An entry of a fixed directory.
struct Item {
    name: &'static str,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Dir(&'static [Item]),
    /// Text about the machine.
    Text(fn(&mut Out)),
    /// A link with a fixed text.
    Link(&'static str),
    /// CPUs and nodes.
    Sys(sys::Entry),
}

/// What a node is.
#[derive(Clone, Copy)]
enum Kind {
    /// A fixed directory; that of /proc also holds the processes.
    Fixed(What),
    ProcRoot,
    /// /proc/self and /proc/thread-self.
    SelfLink(bool),
    /// A process's directory.
    Process(u32),
    /// One of its threads' (pid, tid).
    Thread(u32, u32),
    /// The threads of a process.
    Threads(u32),
    /// Its descriptors.
    Descriptors(u32),
    /// One of them.
    Descriptor(u32, i32),
    /// exe, cwd, root.
    Jump(u32, process::Target),
    /// Text about a process (pid, tid).
    Text(u32, u32, process::Maker),
}

struct Node {
    this: Weak<Node>,
    parent: Option<Arc<dyn Inode>>,
    name: Vec<u8>,
    kind: Kind,
}

impl Node {
    fn new(parent: Option<Arc<dyn Inode>>, name: &[u8], kind: Kind) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { this: this.clone(), parent, name: name.to_vec(), kind })
    }

    fn child(&self, name: &[u8], kind: Kind) -> Result<Arc<dyn Inode>, Errno> {
        let me = self.this.upgrade().ok_or(Errno::ENOENT)?;
        Ok(Self::new(Some(me), name, kind))
    }

    fn st_mode(&self) -> u32 {
        match self.kind {
            Kind::Fixed(What::Dir(_) | What::Sys(sys::Entry::Dir(_)))
            | Kind::ProcRoot
            | Kind::Process(_)
            | Kind::Thread(..)
            | Kind::Threads(_) => mode::DIR | 0o555,
            Kind::Descriptors(_) => mode::DIR | 0o500,
            Kind::Fixed(What::Link(_) | What::Sys(sys::Entry::ToNode(_) | sys::Entry::ToCpu(_)))
            | Kind::SelfLink(_)
            | Kind::Descriptor(..)
            | Kind::Jump(..) => mode::LINK | 0o777,
            Kind::Fixed(_) | Kind::Text(..) => mode::FILE | 0o444,
        }
    }

    /// The text, for those who are files.
    fn text(&self) -> Result<Vec<u8>, Errno> {
        let mut out = Out(Vec::new());
        match self.kind {
            Kind::Fixed(What::Text(make)) => make(&mut out),
            // Writing to memory can't fail.
            Kind::Fixed(What::Sys(entry)) => drop(sys::text(entry, &mut out)),
            Kind::Text(pid, tid, make) => {
                let p = find(pid).ok_or(Errno::ESRCH)?;
                make(&p, tid, &mut out);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(out.0)
    }

    /// The numbers of a directory whose entries are numbers.
    fn numbers(&self) -> Result<Vec<u64>, Errno> {
        Ok(match self.kind {
            Kind::ProcRoot => {
                let mut pids = Vec::new();
                for_each(|p| pids.push(u64::from(p.pid)));
                pids
            }
            Kind::Threads(pid) => process::tids(&*find(pid).ok_or(Errno::ENOENT)?).into_iter().map(u64::from).collect(),
            Kind::Descriptors(pid) => {
                find(pid).ok_or(Errno::ENOENT)?.fs.descriptors().into_iter().map(|d| d as u64).collect()
            }
            _ => Vec::new(),
        })
    }

    fn number_kind(&self, n: u64) -> Option<Kind> {
        let id = u32::try_from(n).ok()?;
        match self.kind {
            Kind::ProcRoot => find(id).map(|_| Kind::Process(id)),
            Kind::Threads(pid) => process::tids(&*find(pid)?).contains(&id).then_some(Kind::Thread(pid, id)),
            Kind::Descriptors(pid) => {
                let fd = i32::try_from(n).ok()?;
                find(pid)?.fs.file(fd).ok().map(|_| Kind::Descriptor(pid, fd))
            }
            _ => None,
        }
    }

    /// The named entries.
    fn named(&self) -> Vec<(&'static str, Kind)> {
        let fixed = |items: &'static [Item]| items.iter().map(|i| (i.name, Kind::Fixed(i.what)));
        match self.kind {
            Kind::Fixed(What::Dir(items)) => fixed(items).collect(),
            Kind::ProcRoot => {
                let own = [("self", Kind::SelfLink(false)), ("thread-self", Kind::SelfLink(true))];
                own.into_iter().chain(fixed(system::PROC)).collect()
            }
            Kind::Process(pid) => process::entries(pid, None),
            Kind::Thread(pid, tid) => process::entries(pid, Some(tid)),
            _ => Vec::new(),
        }
    }
}

fn parse_number(name: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(name).ok()?;
    let canonical = !text.starts_with('+') && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| canonical)
}

impl Inode for Node {
    fn metadata(&self) -> Metadata {
        // FNV-1a over the path: a number that stays the same from look-up to look-up.
        let ino =
            self.path().iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
        let now = time::wall::now().0;
        let st_mode = self.st_mode();
        let nlink = if st_mode & mode::TYPE == mode::DIR { 2 } else { 1 };
        Metadata {
            dev: device::PROC,
            ino,
            mode: st_mode,
            nlink,
            atime: now,
            mtime: now,
            ctime: now,
            ..Metadata::default()
        }
    }

    fn mode(&self) -> u32 {
        self.st_mode()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        if self.is_dir() {
            return Err(Errno::EISDIR);
        }
        let text = self.text()?;
        let rest = usize::try_from(offset).ok().and_then(|o| text.get(o..)).unwrap_or(&[]);
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn path(&self) -> Vec<u8> {
        let mut path = match &self.parent {
            Some(p) => p.path(),
            None => Vec::new(),
        };
        path.push(b'/');
        path.extend_from_slice(&self.name);
        path
    }

    fn open(self: Arc<Self>, flags: Flags, _caller: &Process) -> Result<FileRef, Errno> {
        if flags.writable() {
            return Err(Errno::EACCES);
        }
        if self.is_dir() {
            return Ok(OpenFile::new(DirFile::new(self), flags));
        }
        Ok(OpenFile::new(TextFile { node: self, state: Mutex::new(State { text: None, at: 0 }) }, flags))
    }

    fn lookup(&self, name: &[u8], _caller: Caller<'_>) -> Result<Arc<dyn Inode>, Errno> {
        if !self.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let kind = match (self.kind, parse_number(name)) {
            (Kind::Fixed(What::Sys(sys::Entry::Dir(dir))), _) => {
                let found = core::str::from_utf8(name).ok().and_then(|name| sys::find(dir, name));
                found.map(|entry| Kind::Fixed(What::Sys(entry)))
            }
            (_, Some(n)) => self.number_kind(n),
            (_, None) => self.named().into_iter().find(|(n, _)| n.as_bytes() == name).map(|(_, k)| k),
        };
        self.child(name, kind.ok_or(Errno::ENOENT)?)
    }

    fn parent(&self) -> Result<Arc<dyn Inode>, Errno> {
        if !self.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        Ok(self.parent.clone().unwrap_or_else(super::root))
    }

    fn entries(&self, _caller: Caller<'_>) -> Result<Vec<DirEntry>, Errno> {
        if !self.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let mut all = Vec::new();
        let mut add = |name: &[u8], kind| {
            let m = Self::new(self.this.upgrade().map(|n| n as Arc<dyn Inode>), name, kind).metadata();
            all.push(DirEntry { name: name.to_vec(), ino: m.ino, mode: m.mode });
        };
        for n in self.numbers()? {
            if let Some(kind) = self.number_kind(n) {
                add(alloc::format!("{n}").as_bytes(), kind);
            }
        }
        self.named().into_iter().for_each(|(name, kind)| add(name.as_bytes(), kind));
        if let Kind::Fixed(What::Sys(sys::Entry::Dir(dir))) = self.kind {
            sys::list(dir).into_iter().for_each(|(name, entry)| add(name.as_bytes(), Kind::Fixed(What::Sys(entry))));
        }
        Ok(all)
    }

    fn read_link(&self, caller: Caller<'_>) -> Result<Vec<u8>, Errno> {
        match self.kind {
            Kind::Fixed(What::Link(text)) => Ok(text.as_bytes().to_vec()),
            Kind::Fixed(What::Sys(entry)) => sys::target(entry).map(String::into_bytes).ok_or(Errno::EINVAL),
            Kind::SelfLink(thread) => {
                let pid = caller.0.map(|p| p.pid).ok_or(Errno::ENOENT)?;
                let tid = process::own_tid().unwrap_or(pid);
                Ok(if thread { alloc::format!("{pid}/task/{tid}") } else { alloc::format!("{pid}") }.into_bytes())
            }
            Kind::Descriptor(pid, fd) => Ok(find(pid).ok_or(Errno::ENOENT)?.fs.file(fd)?.file.path()),
            Kind::Jump(pid, target) => process::target_path(&*find(pid).ok_or(Errno::ENOENT)?, target),
            _ => Err(Errno::EINVAL),
        }
    }

    fn jump(&self) -> Option<Result<Arc<dyn Inode>, Errno>> {
        match self.kind {
            Kind::Descriptor(pid, fd) => Some(
                find(pid)
                    .ok_or(Errno::ENOENT)
                    .and_then(|p| p.fs.file(fd))
                    .and_then(|f| f.file.inode().ok_or(Errno::ENXIO)),
            ),
            Kind::Jump(pid, target) => {
                Some(find(pid).ok_or(Errno::ENOENT).and_then(|p| process::target_inode(&p, target)))
            }
            _ => None,
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct State {
    text: Option<Vec<u8>>,
    at: usize,
}

/// An open text.
struct TextFile {
    node: Arc<Node>,
    state: Mutex<State>,
}

impl TextFile {
    fn read_from(&self, state: &mut State, io: &mut IoCursor<'_>, at: usize) -> Result<usize, Errno> {
        if at == 0 || state.text.is_none() {
            state.text = Some(self.node.text()?);
        }
        let rest = state.text.as_ref().and_then(|t| t.get(at..)).unwrap_or(&[]);
        io.put(rest)
    }
}

impl File for TextFile {
    fn read(&self, io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        let mut state = self.state.lock();
        let at = state.at;
        let n = self.read_from(&mut state, io, at)?;
        state.at += n;
        Ok(n)
    }

    fn write(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EBADF)
    }

    fn read_at(&self, io: &mut IoCursor<'_>, offset: u64) -> Result<usize, Errno> {
        let mut state = self.state.lock();
        self.read_from(&mut state, io, usize::try_from(offset).map_err(|_| Errno::EINVAL)?)
    }

    fn seek(&self, offset: i64, whence: u32) -> SysResult {
        let mut state = self.state.lock();
        let base = match whence {
            0 => 0,
            1 => state.at as i64,
            _ => return Err(Errno::EINVAL),
        };
        let target = base.checked_add(offset).and_then(|t| usize::try_from(t).ok()).ok_or(Errno::EINVAL)?;
        state.at = target;
        Ok(target as u64)
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        Some(self.node.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The directory /proc.
pub fn proc_root() -> Arc<dyn Inode> {
    Node::new(None, b"proc", Kind::ProcRoot)
}

/// The directory /sys.
pub fn sys_root() -> Arc<dyn Inode> {
    Node::new(None, b"sys", Kind::Fixed(What::Dir(system::SYS)))
}
