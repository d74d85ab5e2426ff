//! Attached programs: their streams and their ends, as clients get them. Waits for the guest without holding a thread, so that
//! programs may be silent for as long as they like.
//!
//! What a client takes is what is taken out of the guest: with one that doesn't read, the program waits, as for any pipe. Invariants: a
//! stream has one client at a time; a client that is gone is noticed, and its place given to the next.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use tokio::sync::watch;
use vcpu_sched::requests::message::{END, Output, Request, Streaming};

use super::api::{Program, ProgramState};
use super::hangup::Hangup;
use super::machine::Machine;
use super::pieces::{Pieces, Sender, pieces};
use super::problem::Fault;
use super::routes::waiting;
use crate::requests::RequestError;

/// Bytes of one request to the guest, which has room for a little more.
const PIECE: usize = 12 << 10;
/// Streams that have a client, at a time; fewer than the server's connections, so that there are some for other questions.
const MAX_STREAMS: usize = 24;
/// Where files from clients go in the guest.
const FILES: &str = "/tmp/";
/// Their permissions: they are programs, as a rule.
const FILE_MODE: u32 = 0o755;

/// Which stream of which process.
type Key = (u32, Stream);

/// A stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// What the program reads.
    Stdin,
    /// What it writes.
    Written(Output),
    /// Its end.
    End,
}

/// The streams that have a client.
#[derive(Debug, Clone, Default)]
pub struct Streams(Arc<Mutex<Vec<Key>>>);

/// A stream is somebody's until this is dropped.
struct Claim {
    all: Streams,
    key: Key,
}

impl Streams {
    fn claim(&self, key: Key) -> Result<Claim, Fault> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.len() >= MAX_STREAMS {
            let detail = format!("{MAX_STREAMS} streams have clients already");
            return Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, detail, "try again when another client is done"));
        }
        // Many may wait for an end.
        if key.1 != Stream::End && taken.contains(&key) {
            let detail = "that stream has a client already";
            return Err(Fault::new(StatusCode::CONFLICT, detail, "try again when that client is done"));
        }
        taken.push(key);
        Ok(Claim { all: self.clone(), key })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut taken = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = taken.iter().position(|key| *key == self.key) {
            taken.swap_remove(at);
        }
    }
}

/// Asks the guest's kernel about a program.
async fn ask(machine: &Arc<Machine>, process: u32, what: Streaming) -> Result<(u64, Vec<u8>), Fault> {
    let request = Request::Streaming { process, what };
    loop {
        machine.run.until_running().await;
        let (machine, request) = (machine.clone(), request.clone());
        let answer = waiting(machine, move |machine| Ok(machine.mailbox.ask_for_bytes(&request))).await?;
        match answer {
            // It was not carried out: whoever stopped the vCPUs meanwhile may take his time.
            Err(RequestError::Unseen(_) | RequestError::Busy(_)) => {}
            answer => return Ok(answer?),
        }
    }
}

/// Waits until something may have become possible. False: the client, or the machine, has gone.
async fn news(ready: &mut watch::Receiver<()>, hangup: &Hangup) -> bool {
    tokio::select! {
        changed = ready.changed() => changed.is_ok(),
        () = hangup.wait() => false,
    }
}

fn gone() -> Fault {
    Fault::new(StatusCode::GONE, "the client has gone", "ask again")
}

fn program(process: u32, status: u64) -> Program {
    let (code, signal) = (u8::try_from(status >> 8 & 0xff).ok(), (status & 0x7f) as u32);
    match (status & END, signal) {
        (0, _) => Program { process, state: ProgramState::Running, code: None, signal: None },
        (_, 0) => Program { process, state: ProgramState::Exited, code, signal: None },
        (_, signal) => Program { process, state: ProgramState::Killed, code: None, signal: Some(signal) },
    }
}

/// Whether it runs, and else how it ended.
pub async fn show(machine: &Arc<Machine>, process: u32) -> Result<Program, Fault> {
    machine.check_runs()?;
    Ok(program(process, ask(machine, process, Streaming::Status).await?.0))
}

/// The same, when it has ended.
pub async fn wait(machine: &Arc<Machine>, process: u32, hangup: &Hangup) -> Result<Program, Fault> {
    let _claim = machine.streams.claim((process, Stream::End))?;
    let mut ready = machine.mailbox.ready();
    loop {
        ready.mark_unchanged();
        let (status, _) = ask(machine, process, Streaming::Status).await?;
        if status & END != 0 {
            return Ok(program(process, status));
        }
        if !news(&mut ready, hangup).await {
            return Err(gone());
        }
    }
}

/// Closes its streams.
pub async fn forget(machine: &Arc<Machine>, process: u32) -> Result<(), Fault> {
    machine.check_runs()?;
    ask(machine, process, Streaming::Forget).await.map(drop)
}

/// What it writes from now on, to its end, as a body.
pub async fn read(machine: Arc<Machine>, process: u32, from: Output, hangup: Hangup) -> Result<Pieces, Fault> {
    let claim = machine.streams.claim((process, Stream::Written(from)))?;
    // Says so if there is no such program, which a body that has begun can't.
    ask(&machine, process, Streaming::Status).await?;
    let (sender, body) = pieces();
    tokio::spawn(async move {
        let claim = claim;
        pump(&machine, process, from, &sender, &hangup).await;
        drop(claim);
    });
    Ok(body)
}

async fn pump(machine: &Arc<Machine>, process: u32, from: Output, to: &Sender, hangup: &Hangup) {
    let mut ready = machine.mailbox.ready();
    loop {
        // Taken out of the guest only when there is somebody to take it.
        let Ok(place) = to.reserve().await else { return };
        ready.mark_unchanged();
        match ask(machine, process, Streaming::Read { from, max: PIECE as u32 }).await {
            Ok((_, bytes)) if !bytes.is_empty() => place.send(Ok(bytes.into())),
            Ok((value, _)) if value & END != 0 => return,
            Ok(_) => {
                drop(place);
                if !news(&mut ready, hangup).await {
                    return;
                }
            }
            Err(fault) => return place.send(Err(io::Error::other(fault.detail))),
        }
    }
}

/// Puts a body into its standard input, which ends with it. One that breaks off leaves the rest to another client.
pub async fn write(machine: &Arc<Machine>, process: u32, mut body: Body, hangup: &Hangup) -> Result<(), Fault> {
    let _claim = machine.streams.claim((process, Stream::Stdin))?;
    while let Some(piece) = next(&mut body, hangup).await? {
        put(machine, process, &piece, false, hangup).await?;
    }
    put(machine, process, &[], true, hangup).await
}

async fn put(machine: &Arc<Machine>, process: u32, bytes: &[u8], end: bool, hangup: &Hangup) -> Result<(), Fault> {
    let mut ready = machine.mailbox.ready();
    let mut left = bytes;
    loop {
        ready.mark_unchanged();
        let piece = left.get(..PIECE).unwrap_or(left);
        let (taken, _) = ask(machine, process, Streaming::Write { bytes: piece.to_vec(), end }).await?;
        let taken = usize::try_from(taken).unwrap_or(usize::MAX);
        left = left.get(taken..).ok_or_else(broken)?;
        if left.is_empty() {
            return Ok(());
        }
        if taken == 0 && !news(&mut ready, hangup).await {
            return Err(gone());
        }
    }
}

fn broken() -> Fault {
    Fault::new(StatusCode::BAD_GATEWAY, "the guest has taken more than there was", "see docs/abi.md")
}

/// The next bytes of a body; none at its end.
async fn next(body: &mut Body, hangup: &Hangup) -> Result<Option<Bytes>, Fault> {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = hangup.wait() => return Err(gone()),
        };
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|error| Fault::bad(format!("the body broke off: {error}"), "send it again"))?;
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
}

/// Writes a body into a file of the guest; its path there.
pub async fn store(machine: &Arc<Machine>, name: &str, mut body: Body, hangup: &Hangup) -> Result<String, Fault> {
    machine.check_runs()?;
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(Fault::bad(format!("{name:?} is no file's name"), "send one part of a path"));
    }
    let path = format!("{FILES}{name}");
    let part = |offset, bytes: &[u8]| Streaming::File {
        path: path.clone().into_bytes(),
        mode: FILE_MODE,
        offset,
        bytes: bytes.to_vec(),
    };
    // Empty at first: a body may be.
    ask(machine, 0, part(0, &[])).await?;
    let mut at = 0;
    while let Some(bytes) = next(&mut body, hangup).await? {
        for piece in bytes.chunks(PIECE) {
            ask(machine, 0, part(at, piece)).await?;
            at += piece.len() as u64;
        }
    }
    Ok(path)
}
