//! The standard streams when they are not terminals: plain bytes through the console.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::inode::{Inode, Metadata, device, mode};
use super::io::IoCursor;
use super::open_file::{Events, File, FileRef, Flags, OpenFile};
use crate::console::{self, ConsoleError, Stream};
use crate::linux::errno::Errno;
use crate::linux::process::Process;
use crate::sync::WaitQueue;

/// Writes of several pieces up to this size go out as one.
const GATHER: usize = 512;

/// One of the three streams, as an object that /proc/self/fd leads to.
pub struct StreamNode(pub u8);

impl StreamNode {
    /// Opens it; the access mode is the stream's own.
    pub fn file(self: Arc<Self>, flags: Flags) -> FileRef {
        let access = if self.0 == 0 { Flags::empty() } else { Flags::WRONLY };
        let flags = flags.difference(Flags::WRONLY | Flags::RDWR) | access;
        OpenFile::new(StreamFile { node: self }, flags)
    }
}

impl Inode for StreamNode {
    fn metadata(&self) -> Metadata {
        Metadata {
            dev: device::PIPE,
            ino: u64::MAX - u64::from(self.0),
            mode: mode::FIFO | 0o600,
            nlink: 1,
            ..Metadata::default()
        }
    }

    fn path(&self) -> Vec<u8> {
        alloc::format!("pipe:[{}]", self.metadata().ino).into_bytes()
    }

    fn open(self: Arc<Self>, flags: Flags, _caller: &Process) -> Result<FileRef, Errno> {
        let fits = if self.0 == 0 { flags.readable() } else { flags.writable() };
        if fits { Ok(self.file(flags)) } else { Err(Errno::EACCES) }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A standard stream, open.
pub struct StreamFile {
    node: Arc<StreamNode>,
}

impl StreamFile {
    fn output(&self) -> Stream {
        if self.node.0 == 2 { Stream::Stderr } else { Stream::Stdout }
    }
}

fn error(e: ConsoleError) -> Errno {
    match e {
        ConsoleError::Interrupted => Errno::ERESTARTSYS,
        ConsoleError::WouldBlock => Errno::EAGAIN,
        ConsoleError::Fault => Errno::EFAULT,
        ConsoleError::Closed => Errno::EPIPE,
    }
}

/// Writes to a stream; large pieces are handed over as the pages they are in.
pub fn write(stream: Stream, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
    let Some((addr, len)) = io.chunk() else { return Ok(0) };
    if io.is_user() && len == io.left() {
        return console::write_user(stream, addr, len, flags.nonblock()).map_err(error);
    }
    let mut done = 0;
    while let Some((addr, len)) = io.chunk() {
        let result = if io.is_user() && len > GATHER {
            console::write_user(stream, addr, len, flags.nonblock()).map_err(error).inspect(|n| io.advance(*n))
        } else if flags.nonblock() && !console::writable(stream) {
            Err(Errno::EAGAIN)
        } else {
            let mut bytes = [0; GATHER];
            io.take(&mut bytes).inspect(|n| console::write_kernel(stream, &bytes[..*n]))
        };
        match result {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

impl File for StreamFile {
    fn read(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        loop {
            // First whether it has ended, then whether something is left: the end comes after the last byte.
            let ended = console::at_eof();
            let Some((addr, len)) = io.chunk() else { return Ok(0) };
            let n = if io.is_user() {
                console::read_user(addr, len).map_err(|_| Errno::EFAULT)?
            } else {
                let mut bytes = [0; GATHER];
                let n = console::read_available(&mut bytes[..len.min(GATHER)]);
                io.put(&bytes[..n])?;
                n
            };
            if n > 0 || ended {
                return Ok(n);
            }
            if flags.nonblock() {
                return Err(Errno::EAGAIN);
            }
            let ready = || (console::readable() || console::at_eof()).then_some(());
            console::read_queue().wait_interruptible(None, ready).map_err(|_| Errno::ERESTARTSYS)?;
        }
    }

    fn write(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        write(self.output(), io, flags)
    }

    fn poll(&self) -> Events {
        if self.node.0 != 0 {
            return if console::writable(self.output()) { Events::WRITE } else { Events::empty() };
        }
        let ended = console::at_eof();
        match (console::readable(), ended) {
            (true, false) => Events::READ,
            (true, true) => Events::READ | Events::HUP,
            (false, true) => Events::HUP,
            (false, false) => Events::empty(),
        }
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn queues(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        match self.node.0 {
            0 => visit(console::read_queue()),
            _ => visit(console::write_queue(self.output())),
        }
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        Some(self.node.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
