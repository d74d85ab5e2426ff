//! Character devices.

use alloc::sync::Arc;
use core::any::Any;

use super::console_file::{self, StreamNode};
use super::inode::{Inode, make_device};
use super::io::IoCursor;
use super::memfs::Node;
use super::open_file::{File, FileRef, Flags, OpenFile};
use super::tty::{self, TtyFile};
use crate::console::{self, Stream};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::Process;
use crate::linux::random;
use crate::mm::layout::USER_END;
use crate::mm::vma::PageSource;

/// Device numbers. Linux Documentation/admin-guide/devices.txt.
pub const NULL: u64 = make_device(1, 3);
/// See `NULL`.
pub const ZERO: u64 = make_device(1, 5);
/// See `NULL`.
pub const FULL: u64 = make_device(1, 7);
/// See `NULL`.
pub const RANDOM: u64 = make_device(1, 8);
/// See `NULL`.
pub const URANDOM: u64 = make_device(1, 9);
/// See `NULL`.
pub const TTY: u64 = make_device(5, 0);
/// See `NULL`.
pub const CONSOLE: u64 = make_device(5, 1);

/// Opens a device node.
///
/// # Errors
/// ENXIO: no such device.
pub fn open(number: u64, node: Arc<dyn Inode>, flags: Flags, caller: &Process) -> Result<FileRef, Errno> {
    let kind = match number {
        NULL => Kind::Null,
        ZERO => Kind::Zero,
        FULL => Kind::Full,
        RANDOM | URANDOM => Kind::Random,
        TTY => {
            tty::check_controlling(caller)?;
            return Ok(OpenFile::new(TtyFile::new(node), flags));
        }
        CONSOLE if tty::exists() => return Ok(OpenFile::new(TtyFile::new(node), flags)),
        CONSOLE => Kind::Console,
        _ => return Err(Errno::ENXIO),
    };
    Ok(OpenFile::new(Device { kind, node }, flags))
}

enum Kind {
    Null,
    Zero,
    Full,
    Random,
    Console,
}

struct Device {
    kind: Kind,
    node: Arc<dyn Inode>,
}

impl Device {
    fn random(io: &mut IoCursor<'_>) -> Result<usize, Errno> {
        let mut bytes = [0; 256];
        let mut done = 0;
        while io.left() > 0 {
            let n = io.left().min(bytes.len());
            random::fill(&mut bytes[..n]);
            match io.put(&bytes[..n]) {
                Ok(k) => done += k,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

/// Takes everything, keeps nothing.
fn discard(io: &mut IoCursor<'_>) -> usize {
    let n = io.left();
    io.limit(0);
    n
}

impl File for Device {
    fn read(&self, io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        match self.kind {
            Kind::Null | Kind::Console => Ok(0),
            Kind::Zero | Kind::Full => io.put_zeroes(io.left()),
            Kind::Random => Self::random(io),
        }
    }

    fn write(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        match self.kind {
            Kind::Full => Err(Errno::ENOSPC),
            Kind::Console => console_file::write(Stream::Stdout, io, flags),
            Kind::Null | Kind::Zero | Kind::Random => Ok(discard(io)),
        }
    }

    fn read_at(&self, io: &mut IoCursor<'_>, _offset: u64) -> Result<usize, Errno> {
        self.read(io, Flags::empty())
    }

    fn write_at(&self, io: &mut IoCursor<'_>, _offset: u64, flags: Flags) -> Result<usize, Errno> {
        self.write(io, flags)
    }

    fn seek(&self, _offset: i64, _whence: u32) -> SysResult {
        if matches!(self.kind, Kind::Console) { Err(Errno::ESPIPE) } else { Ok(0) }
    }

    fn page_source(&self) -> Option<Arc<dyn PageSource>> {
        // Each mapping of /dev/zero is an object of its own.
        let Kind::Zero = self.kind else { return None };
        let node = Node::unnamed_file(0o600);
        node.set_label(b"dev/zero");
        node.truncate(USER_END).ok()?;
        node.page_source()
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        Some(self.node.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The null device, open for both.
pub fn null(node: Arc<dyn Inode>) -> FileRef {
    OpenFile::new(Device { kind: Kind::Null, node }, Flags::RDWR | Flags::LARGEFILE)
}

/// Descriptor 0, 1 or 2 of the first program.
pub fn standard_stream(n: u8, console_node: Option<Arc<dyn Inode>>) -> FileRef {
    match console_node {
        Some(node) if console::is_terminal(n) => OpenFile::new(TtyFile::new(node), Flags::RDWR | Flags::LARGEFILE),
        _ => Arc::new(StreamNode(n)).file(Flags::LARGEFILE),
    }
}
