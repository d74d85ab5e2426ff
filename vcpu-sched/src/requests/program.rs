//! Programs that the VMM starts: how, and what goes through the streams of those that it holds. Part of [`super::message`], which
//! numbers the requests.

use alloc::vec::Vec;

use super::cursor::{Reader, Short, Writer};

/// A program to start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spawn {
    /// Path in the guest.
    pub path: Vec<u8>,
    /// Arguments, the first one included.
    pub args: Vec<Vec<u8>>,
    /// Environment.
    pub env: Vec<Vec<u8>>,
    /// Working directory; empty: the root.
    pub cwd: Vec<u8>,
    /// Standard streams.
    pub streams: Streams,
}

/// Where the standard streams of a program go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum Streams {
    /// To the console, shared with the first program.
    #[default]
    Console = 0,
    /// To /dev/null.
    Null = 1,
    /// Through pipes, of which the kernel keeps the other ends for the VMM ([`Streaming`]).
    Attached = 2,
}

impl Streams {
    const ALL: [Self; 3] = [Self::Console, Self::Null, Self::Attached];
}

/// One of the streams that a program writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Output {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// What is done to the streams of an attached program, and to files that programs are made of. Nothing here waits: what can't be
/// done yet is answered with nothing done, and the kernel writes [`READY`] to the doorbell when that may have changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Streaming {
    /// Take what it has written, so many bytes at most. They are the answer's body; the value is 0, or [`END`] if no more will come.
    Read {
        /// Which stream.
        from: Output,
        /// How many at most.
        max: u32,
    },
    /// Put bytes into its standard input. The value is how many went in.
    Write {
        /// The bytes.
        bytes: Vec<u8>,
        /// After the last of them there are no more. Holds only if all of them went in.
        end: bool,
    },
    /// How it ended. The value is 0 if it hasn't, else [`END`] and the status as wait(2) gives it.
    Status,
    /// Nobody is interested any more: its streams are closed, its end isn't remembered.
    Forget,
    /// Write a part of a file, which is made with the part at offset 0. The value is 0.
    File {
        /// Absolute path.
        path: Vec<u8>,
        /// Permissions.
        mode: u32,
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
}

/// See [`Streaming`].
pub const END: u64 = 1 << 63;
/// Written to the doorbell instead of a slot's number: some attached program has something to read, room for more, or ended.
pub const READY: u32 = u32::MAX;

/// The acts of [`Streaming`], by number.
mod act {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const STATUS: u32 = 2;
    pub const FORGET: u32 = 3;
    pub const FILE: u32 = 4;
}

pub(super) fn write_spawn(out: &mut Writer, spawn: &Spawn) {
    out.u32(spawn.streams as u32);
    out.bytes(&spawn.path);
    out.bytes(&spawn.cwd);
    out.list(&spawn.args);
    out.list(&spawn.env);
}

pub(super) fn read_spawn(from: &mut Reader<'_>) -> Result<Spawn, Short> {
    let streams = from.u32()?;
    let streams = Streams::ALL.into_iter().find(|s| *s as u32 == streams).ok_or(Short)?;
    let (path, cwd) = (from.bytes()?.to_vec(), from.bytes()?.to_vec());
    let (args, env) = (from.list()?, from.list()?);
    let strings = [&path, &cwd].into_iter().chain(&args).chain(&env);
    // They become C strings.
    if path.is_empty() || strings.into_iter().any(|string| string.contains(&0)) {
        return Err(Short);
    }
    Ok(Spawn { path, args, env, cwd, streams })
}

pub(super) fn write_streaming(out: &mut Writer, what: &Streaming) {
    match what {
        Streaming::Read { from, max } => {
            out.u32(act::READ);
            out.u32(*from as u32);
            out.u32(*max);
        }
        Streaming::Write { bytes, end } => {
            out.u32(act::WRITE);
            out.u32((*end).into());
            out.bytes(bytes);
        }
        Streaming::Status => out.u32(act::STATUS),
        Streaming::Forget => out.u32(act::FORGET),
        Streaming::File { path, mode, offset, bytes } => {
            out.u32(act::FILE);
            out.u32(*mode);
            out.u64(*offset);
            out.bytes(path);
            out.bytes(bytes);
        }
    }
}

pub(super) fn read_streaming(from: &mut Reader<'_>) -> Result<Streaming, Short> {
    Ok(match from.u32()? {
        act::READ => Streaming::Read {
            from: match from.u32()? {
                n if n == Output::Stdout as u32 => Output::Stdout,
                n if n == Output::Stderr as u32 => Output::Stderr,
                _ => return Err(Short),
            },
            max: from.u32()?,
        },
        act::WRITE => Streaming::Write { end: from.u32()? != 0, bytes: from.bytes()?.to_vec() },
        act::STATUS => Streaming::Status,
        act::FORGET => Streaming::Forget,
        act::FILE => {
            let (mode, offset) = (from.u32()?, from.u64()?);
            Streaming::File { mode, offset, path: from.bytes()?.to_vec(), bytes: from.bytes()?.to_vec() }
        }
        _ => return Err(Short),
    })
}
