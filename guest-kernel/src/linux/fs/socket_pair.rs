//! Pairs of connected local sockets: a pipe in each direction.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, Ordering};

use super::inode::{Inode, Metadata, mode};
use super::io::IoCursor;
use super::open_file::{Events, File, FileRef, Flags, OpenFile};
use super::pipe::{End, Pipe};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::Process;
use crate::sync::WaitQueue;

/// One end of a socket pair (AF_UNIX, SOCK_STREAM): a pipe in each direction.
pub struct SocketEnd {
    input: End,
    output: End,
    /// shutdown(2): the two directions.
    closed: [AtomicBool; 2],
}

impl SocketEnd {
    /// Two connected sockets.
    pub fn pair(flags: Flags) -> (FileRef, FileRef) {
        let (there, back) = (Pipe::new(), Pipe::new());
        let make = |input: &Arc<Pipe>, output: &Arc<Pipe>| -> FileRef {
            let (input, output) = (End::new(input, None, true, false), End::new(output, None, false, true));
            OpenFile::new(Self { input, output, closed: [const { AtomicBool::new(false) }; 2] }, flags | Flags::RDWR)
        };
        (make(&back, &there), make(&there, &back))
    }

    /// What it reads from.
    pub fn input(&self) -> &End {
        &self.input
    }

    /// What it writes to.
    pub fn output(&self) -> &End {
        &self.output
    }

    /// shutdown(2): 0 reading, 1 writing, 2 both.
    ///
    /// # Errors
    /// EINVAL.
    pub fn shut_down(&self, how: u64) -> SysResult {
        if how > 2 {
            return Err(Errno::EINVAL);
        }
        if how != 1 && !self.closed[0].swap(true, Ordering::SeqCst) {
            self.input.pipe.readable.wake_all();
            self.input.pipe.close_end(true, false);
        }
        if how != 0 && !self.closed[1].swap(true, Ordering::SeqCst) {
            self.output.pipe.close_end(false, true);
        }
        Ok(0)
    }
}

impl Drop for SocketEnd {
    fn drop(&mut self) {
        // The ends' own drops take back one opening each: what shutdown has taken is put back first.
        if *self.closed[0].get_mut() {
            self.input.pipe.open_end(true, false);
        }
        if *self.closed[1].get_mut() {
            self.output.pipe.open_end(false, true);
        }
    }
}

impl File for SocketEnd {
    fn read(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        if self.closed[0].load(Ordering::SeqCst) {
            return Ok(0);
        }
        self.input.pipe.read(io, flags)
    }

    fn write(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        if self.closed[1].load(Ordering::SeqCst) {
            return Err(Errno::EPIPE);
        }
        self.output.pipe.write(io, flags)
    }

    fn poll(&self) -> Events {
        let mut e = Events::empty();
        let input = self.input.pipe.poll_read();
        if input.intersects(Events::READ | Events::HUP) || self.closed[0].load(Ordering::SeqCst) {
            e |= Events::READ;
        }
        if input.contains(Events::HUP) {
            e |= Events::RDHUP;
        }
        let output = self.output.pipe.poll_write();
        e |= output & Events::WRITE;
        if output.contains(Events::ERR) && input.contains(Events::HUP) {
            e |= Events::HUP | Events::WRITE;
        }
        e
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn queues(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.input.pipe.readable);
        visit(&self.output.pipe.writable);
    }

    fn ioctl(&self, process: &Arc<Process>, command: u32, argument: u64) -> SysResult {
        self.input.ioctl(process, command, argument)
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        None
    }

    fn metadata(&self) -> Metadata {
        Metadata { mode: mode::SOCKET | 0o777, ..self.input.pipe.metadata() }
    }

    fn path(&self) -> Vec<u8> {
        alloc::format!("socket:[{}]", self.input.pipe.ino).into_bytes()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
