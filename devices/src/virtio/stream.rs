//! The host files behind the console's ports, used without ever blocking and without changing them for others.
//!
//! Stdin, stdout and stderr are *inherited*: their open file descriptions are shared with the shell and with whoever
//! else has them, so O_NONBLOCK must not be set on them; and a blocking write to a pipe that polls writable may block
//! all the same (POLLOUT promises PIPE_BUF bytes on a pipe, one byte on a terminal, and nothing when somebody else
//! writes to it as well). A blocked event loop would stop Ctrl-A x, `--timeout` and shutdown. So:
//! - pipes and terminals are *reopened* through /proc/self/fd, which gives an open file description of our own with
//!   O_NONBLOCK in it; reads and writes go there, while polling stays on the inherited description;
//! - sockets can't be reopened: they take MSG_DONTWAIT on every call;
//! - where reopening is refused (no /proc, a terminal of another user after `su`), poll comes before every write, and a
//!   write is at most PIPE_BUF bytes to a pipe and one byte to a terminal;
//! - what epoll refuses (regular files, /dev/null) counts as always ready, and is written by blocking writes of at most
//!   1 MiB: a disk may take its time, but it does take them.
//!
//! Called by the event loop only. SIGPIPE must be ignored in the process (Rust's start-up code does it).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use libc::iovec;

/// Most bytes in one call: keeps the loop's turns short.
const MAX_IO: usize = 1 << 20;

/// What the event loop should do for a stream. It asks again after every call into the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Nothing: take the fd out of the poll set (an empty mask isn't enough: POLLHUP and POLLERR are always reported).
    Idle,
    /// Poll this fd (POLLIN for input, POLLOUT for output), level-triggered.
    Poll(RawFd),
    /// The file is always ready: call at once, once per turn of the loop.
    Ready,
}

/// How a file takes non-blocking access.
#[derive(Debug)]
enum Access {
    /// A description of our own with O_NONBLOCK.
    Reopened(File),
    /// MSG_DONTWAIT.
    Socket,
    /// Always ready.
    Plain,
    /// Poll first, then write at most this much.
    Careful(usize),
}

#[derive(Debug)]
struct Endpoint {
    file: File,
    access: Access,
    pollable: bool,
}

/// Whether epoll takes the file: found by asking.
fn epoll_takes(fd: RawFd) -> bool {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: plain system calls; `event` outlives them, and the epoll fd is closed here.
    unsafe {
        let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        if epoll < 0 {
            return true;
        }
        let refused = libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) < 0
            && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM);
        libc::close(epoll);
        !refused
    }
}

impl Endpoint {
    fn new(fd: BorrowedFd<'_>, write: bool) -> io::Result<Endpoint> {
        let file = File::from(fd.try_clone_to_owned()?);
        let kind = file.metadata()?.file_type();
        let pollable = epoll_takes(file.as_raw_fd());
        let access = if kind.is_socket() {
            Access::Socket
        } else if !pollable {
            Access::Plain
        } else {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
            // A write-only FIFO without a reader gives ENXIO; the careful way then meets EPIPE as it should.
            match OpenOptions::new().read(!write).write(write).custom_flags(flags).open(path) {
                Ok(own) => Access::Reopened(own),
                Err(_) => Access::Careful(if kind.is_fifo() { libc::PIPE_BUF } else { 1 }),
            }
        };
        Ok(Endpoint { file, access, pollable })
    }

    fn interest(&self) -> Interest {
        if self.pollable { Interest::Poll(self.file.as_raw_fd()) } else { Interest::Ready }
    }

    /// Most bytes for the next call.
    fn limit(&self) -> usize {
        match self.access {
            Access::Careful(limit) => limit,
            _ => MAX_IO,
        }
    }

    /// One call, repeated only when a signal cut it off before it did anything. `None`: it would block.
    fn transfer(&self, iovecs: &[iovec], write: bool) -> io::Result<Option<usize>> {
        let count = iovecs.len().min(libc::UIO_MAXIOV as usize);
        if let Access::Careful(_) = self.access
            && !poll_now(self.file.as_raw_fd(), if write { libc::POLLOUT } else { libc::POLLIN })?
        {
            return Ok(None);
        }
        let fd = match &self.access {
            Access::Reopened(own) => own.as_raw_fd(),
            _ => self.file.as_raw_fd(),
        };
        loop {
            // SAFETY: the caller's iovecs describe memory that stays mapped during the call (guest RAM or its own
            // buffer); the kernel checks the addresses, and bytes may change under it: nothing depends on them.
            let result = unsafe {
                match (&self.access, write) {
                    (Access::Socket, _) => {
                        let mut message: libc::msghdr = std::mem::zeroed();
                        message.msg_iov = iovecs.as_ptr().cast_mut();
                        message.msg_iovlen = count;
                        if write {
                            libc::sendmsg(fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                        } else {
                            libc::recvmsg(fd, &mut message, libc::MSG_DONTWAIT)
                        }
                    }
                    (_, true) => libc::writev(fd, iovecs.as_ptr(), count as libc::c_int),
                    (_, false) => libc::readv(fd, iovecs.as_ptr(), count as libc::c_int),
                }
            };
            if let Ok(moved) = usize::try_from(result) {
                return Ok(Some(moved));
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(None),
                _ => return Err(error),
            }
        }
    }
}

/// Whether `fd` is ready for `events`, or in a state that the next call will report.
fn poll_now(fd: RawFd, events: i16) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one valid pollfd, no waiting.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    if ready < 0 { Err(io::Error::last_os_error()) } else { Ok(ready > 0) }
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// So many bytes went out, at least one.
    Bytes(usize),
    /// Later: wait for POLLOUT.
    WouldBlock,
    /// The file takes no more, ever: discard.
    Closed,
}

/// Stdout or stderr.
#[derive(Debug)]
pub struct OutputStream {
    endpoint: Endpoint,
    error: Option<io::Error>,
}

impl OutputStream {
    /// Duplicates `fd`; the caller's own stays as it is.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<OutputStream> {
        Ok(OutputStream { endpoint: Endpoint::new(fd, true)?, error: None })
    }

    /// The error that closed it (EPIPE, a full disk, a terminal that hung up), after which everything is discarded.
    pub fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    pub(super) fn interest(&self) -> Interest {
        self.endpoint.interest()
    }

    pub(super) fn limit(&self) -> usize {
        self.endpoint.limit()
    }

    pub(super) fn write(&mut self, iovecs: &[iovec]) -> Written {
        if self.error.is_some() {
            return Written::Closed;
        }
        let error = match self.endpoint.transfer(iovecs, true) {
            Ok(Some(0)) => io::ErrorKind::WriteZero.into(),
            Ok(Some(bytes)) => return Written::Bytes(bytes),
            Ok(None) => return Written::WouldBlock,
            Err(error) => error,
        };
        log::info!("console output: {error}; what the guest writes from now on is discarded");
        self.error = Some(error);
        Written::Closed
    }
}

/// What a read did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// So many bytes came in, at least one.
    Bytes(usize),
    /// Nothing there now.
    WouldBlock,
    /// No more, ever.
    End,
}

/// Stdin.
#[derive(Debug)]
pub enum InputStream {
    /// At its end from the start.
    Empty,
    /// A file, read by the device straight into the guest's buffers.
    File(FileInput),
    /// Bytes that the loop hands over, because it has to look at them (a terminal with an escape key).
    Injected(Injected),
}

/// A file as input.
#[derive(Debug)]
pub struct FileInput(Endpoint);

/// Injected bytes that the guest has no buffers for yet.
#[derive(Debug, Default)]
pub struct Injected {
    bytes: std::collections::VecDeque<u8>,
    closed: bool,
}

/// How much injected input is kept for a guest that doesn't read: a person's typing, or a pasted page.
const MAX_INJECTED: usize = 64 << 10;

impl InputStream {
    /// Duplicates `fd`; the caller's own stays as it is.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<InputStream> {
        Ok(InputStream::File(FileInput(Endpoint::new(fd, false)?)))
    }

    /// Input comes by [`super::console::ConsoleDevice::push_input`].
    pub fn injected() -> InputStream {
        InputStream::Injected(Injected::default())
    }

    pub(super) fn interest(&self) -> Interest {
        match self {
            InputStream::File(FileInput(endpoint)) => endpoint.interest(),
            InputStream::Empty => Interest::Ready,
            InputStream::Injected(Injected { bytes, closed: false }) if bytes.is_empty() => Interest::Idle,
            InputStream::Injected(_) => Interest::Ready,
        }
    }

    /// Takes as many bytes as fit; how many.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let InputStream::Injected(Injected { bytes: kept, closed: false }) = self else {
            return 0;
        };
        let taken = bytes.len().min(MAX_INJECTED - kept.len());
        kept.extend(&bytes[..taken]);
        taken
    }

    pub(super) fn close(&mut self) {
        match self {
            InputStream::Injected(injected) => injected.closed = true,
            _ => *self = InputStream::Empty,
        }
    }

    pub(super) fn read(&mut self, iovecs: &[iovec]) -> ReadOutcome {
        match self {
            InputStream::Empty => ReadOutcome::End,
            InputStream::File(FileInput(endpoint)) => match endpoint.transfer(iovecs, false) {
                Ok(Some(0)) => ReadOutcome::End,
                Ok(Some(bytes)) => ReadOutcome::Bytes(bytes),
                Ok(None) => ReadOutcome::WouldBlock,
                Err(error) => {
                    // EIO from a terminal that hung up, ECONNRESET: for the guest that is the end of input.
                    log::info!("console input: {error}; the guest sees its end");
                    ReadOutcome::End
                }
            },
            InputStream::Injected(injected) if injected.bytes.is_empty() => {
                if injected.closed {
                    ReadOutcome::End
                } else {
                    ReadOutcome::WouldBlock
                }
            }
            InputStream::Injected(injected) => {
                let mut copied = 0;
                for buffer in iovecs {
                    let count = buffer.iov_len.min(injected.bytes.len());
                    let (first, second) = injected.bytes.as_slices();
                    let from_first = count.min(first.len());
                    let to: *mut u8 = buffer.iov_base.cast();
                    // SAFETY: the caller's iovec is `iov_len` writable bytes of guest RAM, which no Rust reference
                    // covers; the two source slices hold `from_first` and `count - from_first` bytes.
                    unsafe {
                        to.copy_from_nonoverlapping(first.as_ptr(), from_first);
                        to.add(from_first).copy_from_nonoverlapping(second.as_ptr(), count - from_first);
                    }
                    injected.bytes.drain(..count);
                    copied += count;
                }
                ReadOutcome::Bytes(copied)
            }
        }
    }
}

/// Waits until one of `fds` is ready for its events or `timeout` (ms, -1 for ever) passes; which are.
pub(super) fn wait(fds: &mut [libc::pollfd], timeout: i32) -> io::Result<()> {
    // SAFETY: a valid slice of pollfds.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        fds.iter_mut().for_each(|fd| fd.revents = 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, PipeWriter, Read};
    use std::os::fd::AsFd;

    /// A pipe whose write end can't be reopened.
    fn careful() -> (PipeReader, OutputStream) {
        let (reader, writer): (PipeReader, PipeWriter) = io::pipe().unwrap();
        let mut stream = OutputStream::new(writer.as_fd()).unwrap();
        assert!(matches!(stream.endpoint.access, Access::Reopened(_)));
        stream.endpoint.access = Access::Careful(libc::PIPE_BUF);
        (reader, stream)
    }

    fn iovec_of(bytes: &[u8]) -> iovec {
        iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
    }

    #[test]
    fn without_reopening_a_pipe_takes_pipe_buf_at_a_time_and_never_blocks() {
        let (mut reader, mut stream) = careful();
        let block = [1; libc::PIPE_BUF];
        assert_eq!(stream.limit(), block.len());
        let mut total = 0;
        while let Written::Bytes(count) = stream.write(&[iovec_of(&block)]) {
            total += count;
        }
        assert_eq!(total, 65536);
        assert_eq!(stream.write(&[iovec_of(&block)]), Written::WouldBlock);
        reader.read_exact(&mut [0; libc::PIPE_BUF]).unwrap();
        assert_eq!(stream.write(&[iovec_of(&block)]), Written::Bytes(block.len()));
        drop(reader);
        assert_eq!(stream.write(&[iovec_of(&block)]), Written::Closed);
        assert_eq!(stream.error().unwrap().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_epoll_refuses_is_always_ready() {
        let null = File::create("/dev/null").unwrap();
        let stream = OutputStream::new(null.as_fd()).unwrap();
        assert_eq!(stream.interest(), Interest::Ready);
        let (_reader, writer) = io::pipe().unwrap();
        let stream = OutputStream::new(writer.as_fd()).unwrap();
        assert!(matches!(stream.interest(), Interest::Poll(fd) if fd != writer.as_raw_fd()));
    }
}
