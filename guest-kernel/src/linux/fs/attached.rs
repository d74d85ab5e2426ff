//! Attached programs: those whose standard streams the VMM holds, through the mailbox.
//!
//! A program's streams are ordinary pipes; the kernel keeps their other ends in a list, for `crate::requests` to read and write without
//! waiting. So a pipe's capacity bounds what lies in the guest, and a VMM that doesn't take it makes the program wait, as any
//! reader would. Whatever can change what the VMM was told last rings the doorbell, once until it asks again.
//!
//! Invariant: at most [`MAX`] programs are listed. One that has ended stays until it is forgotten, or until another needs its place, so
//! a VMM that loses interest costs that much and no more.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vcpu_sched::requests::DOORBELL;
use vcpu_sched::requests::message::{END, Outcome, Output, READY, Refusal, Streaming};

use super::inode::{Caller, Inode, New};
use super::io::{IoCursor, IoVec};
use super::memfs::{Body, node_of};
use super::open_file::{FileRef, Flags, OpenFile};
use super::path;
use super::pipe::{End, Pipe};
use crate::arch::instr;
use crate::linux::errno::Errno;
use crate::linux::requests::refusal;
use crate::sync::{SpinLock, Waiter, WakeTarget};

/// Programs that are listed at a time.
const MAX: usize = 16;

/// One program's other ends.
pub struct Attached {
    /// None: the VMM has nothing more to write, or nobody reads. Guards the handle only.
    stdin: SpinLock<Option<FileRef>>,
    stdout: FileRef,
    stderr: FileRef,
}

struct Listed {
    process: u32,
    /// 0: it has not ended; else [`END`] and its status.
    status: AtomicU64,
    ends: Attached,
}

/// The oldest first. Guards the list only; handles are dropped without it.
static LIST: SpinLock<Vec<Arc<Listed>>> = SpinLock::new(Vec::new());
/// Listed programs that have not ended: who ends looks here first.
static RUNNING: AtomicU32 = AtomicU32::new(0);
/// The VMM was told that something can't be done yet.
static WAITED_FOR: AtomicBool = AtomicBool::new(false);

/// Rings when a pipe changes.
struct Ringer;

impl WakeTarget for Ringer {
    fn woken(&self) {
        ring();
    }
}

fn ring() {
    // AcqRel: what has changed was changed before; who sets it looks afterwards.
    if WAITED_FOR.swap(false, Ordering::AcqRel) {
        // SAFETY: the doorbell port (docs/abi.md); without such a device the write goes nowhere.
        unsafe { instr::outl(DOORBELL, READY) };
    }
}

/// Called before a look that may find nothing. A read-modify-write, which no later load passes: either the look sees a change, or who
/// made it sees the flag.
fn about_to_look() {
    WAITED_FOR.swap(true, Ordering::AcqRel);
}

/// Streams for a program that is about to be made, 0 to 2, and their other ends.
///
/// # Errors
/// [`Refusal::TooManyAttached`].
pub fn make() -> Result<([FileRef; 3], Attached), Refusal> {
    make_room()?;
    let [input, output, error] = [Pipe::new(), Pipe::new(), Pipe::new()];
    let reading = |pipe: &Arc<Pipe>, flags| -> FileRef { OpenFile::new(End::new(pipe, None, true, false), flags) };
    let writing = |pipe: &Arc<Pipe>, flags| -> FileRef {
        OpenFile::new(End::new(pipe, None, false, true), flags | Flags::WRONLY)
    };
    let (theirs, ours) = (Flags::empty(), Flags::NONBLOCK);
    let streams = [reading(&input, theirs), writing(&output, theirs), writing(&error, theirs)];
    let attached = Attached {
        stdin: SpinLock::new(Some(writing(&input, ours))),
        stdout: reading(&output, ours),
        stderr: reading(&error, ours),
    };
    for pipe in [&input, &output, &error] {
        let queue = if Arc::ptr_eq(pipe, &input) { &pipe.writable } else { &pipe.readable };
        // Stays there as long as the pipe.
        queue.add(Waiter::Target(Arc::new(Ringer)), 0);
    }
    Ok((streams, attached))
}

/// If the list is full, the program that ended longest ago is forgotten.
fn make_room() -> Result<(), Refusal> {
    let oldest = {
        let mut list = LIST.lock();
        if list.len() < MAX {
            return Ok(());
        }
        let ended = |l: &Arc<Listed>| l.status.load(Ordering::Relaxed) != 0;
        let at = list.iter().position(ended).ok_or(Refusal::TooManyAttached)?;
        list.remove(at)
    };
    drop(oldest); // without the lock
    Ok(())
}

/// The program has a number. Before it runs.
pub fn list(process: u32, ends: Attached) {
    RUNNING.fetch_add(1, Ordering::Relaxed);
    LIST.lock().push(Arc::new(Listed { process, status: AtomicU64::new(0), ends }));
}

/// A process has ended, attached or not, with a status as wait(2) gives it. Its descriptors are closed.
pub fn ended(process: u32, status: u32) {
    // Relaxed: an attached program was listed before its first instruction.
    if RUNNING.load(Ordering::Relaxed) == 0 {
        return;
    }
    let runs = |l: &&Arc<Listed>| l.process == process && l.status.load(Ordering::Relaxed) == 0;
    {
        let list = LIST.lock();
        let Some(listed) = list.iter().find(runs) else { return };
        // Under the lock: `forget` finds it running and counts it, or ended.
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        listed.status.store(END | u64::from(status), Ordering::Release);
    }
    ring();
}

/// The program could not be started, or nobody wants to know of it.
pub fn forget(process: u32) -> Outcome {
    let gone = {
        let mut list = LIST.lock();
        let at = list.iter().rposition(|l| l.process == process).ok_or(Refusal::NotAttached)?;
        let gone = list.remove(at);
        if gone.status.load(Ordering::Relaxed) == 0 {
            RUNNING.fetch_sub(1, Ordering::Relaxed);
        }
        gone
    };
    drop(gone); // without the lock
    Ok(0)
}

/// Does what the VMM asks. Bytes that it gets go to the front of `body`; the second number is how many.
pub fn act(process: u32, what: &Streaming, body: &mut [u8]) -> Result<(u64, usize), Refusal> {
    match what {
        Streaming::Forget => return forget(process).map(|value| (value, 0)),
        Streaming::File { path, mode, offset, bytes } => {
            return write_file(path, *mode, *offset, bytes).map(|()| (0, 0)).map_err(|error| match error {
                Errno::ENOMEM | Errno::ENOSPC => Refusal::NoMemory,
                Errno::ENOENT | Errno::ENOTDIR => Refusal::NotFound,
                _ => Refusal::NotWritable,
            });
        }
        Streaming::Read { .. } | Streaming::Write { .. } | Streaming::Status => {}
    }
    let listed = LIST.lock().iter().rfind(|l| l.process == process).cloned().ok_or(Refusal::NotAttached)?;
    about_to_look();
    match what {
        Streaming::Read { from, max } => {
            let max = body.len().min(*max as usize);
            read(&listed.ends, *from, &mut body[..max])
        }
        Streaming::Write { bytes, end } => write(&listed.ends, bytes, *end).map(|taken| (taken as u64, 0)),
        _ => Ok((listed.status.load(Ordering::Acquire), 0)),
    }
}

fn read(ends: &Attached, from: Output, into: &mut [u8]) -> Result<(u64, usize), Refusal> {
    let file = match from {
        Output::Stdout => &ends.stdout,
        Output::Stderr => &ends.stderr,
    };
    if into.is_empty() {
        return Ok((0, 0));
    }
    let segment = IoVec { base: into.as_mut_ptr() as u64, len: into.len() as u64 };
    // SAFETY: the segment is `into`, which is borrowed for writing.
    match file.read(&mut unsafe { IoCursor::kernel(&segment) }) {
        Ok(0) => Ok((END, 0)),
        Ok(n) => Ok((0, n)),
        Err(Errno::EAGAIN) => Ok((0, 0)),
        Err(error) => Err(refusal(error)),
    }
}

fn write(ends: &Attached, bytes: &[u8], end: bool) -> Result<usize, Refusal> {
    let Some(file) = ends.stdin.lock().clone() else { return Err(Refusal::InputClosed) };
    let segment = IoVec { base: bytes.as_ptr() as u64, len: bytes.len() as u64 };
    // SAFETY: the segment is `bytes`, which is only read.
    let written = match file.write(&mut unsafe { IoCursor::kernel(&segment) }) {
        Ok(n) => Ok(n),
        Err(Errno::EAGAIN) => Ok(0),
        Err(Errno::EPIPE) => Err(Refusal::InputClosed),
        Err(error) => Err(refusal(error)),
    };
    if written.is_err() || end && written == Ok(bytes.len()) {
        // The handles drop after the lock, this one last.
        let closed = ends.stdin.lock().take();
        drop(closed);
    }
    written
}

/// Writes a part of a file. The first part makes it anew: a program that runs keeps the file that it was started from.
fn write_file(at: &[u8], permissions: u32, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    let root = super::root();
    let nobody = Caller(None);
    let inode: Arc<dyn Inode> = if offset == 0 {
        let place = path::walk_parent(&root, at, nobody)?;
        match place.dir.unlink(&place.name, false) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        place.dir.create(&place.name, New::File, permissions & 0o7777)?
    } else {
        path::walk(&root, at, false, nobody)?
    };
    let Some(Body::File(data)) = node_of(&*inode).map(|node| node.body()) else { return Err(Errno::EROFS) };
    let segment = IoVec { base: bytes.as_ptr() as u64, len: bytes.len() as u64 };
    // SAFETY: the segment is `bytes`, which is only read.
    let (written, _) = data.write(&mut unsafe { IoCursor::kernel(&segment) }, Some(offset))?;
    if written == bytes.len() { Ok(()) } else { Err(Errno::ENOSPC) }
}
