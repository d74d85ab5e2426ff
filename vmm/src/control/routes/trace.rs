//! Recordings of what the guest does.

use std::fs::File;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body as Content, Bytes, HttpBody};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use hyper::body::{Frame, SizeHint};

use super::{Answer, Body, Shared, json, waiting};
use crate::control::problem::Fault;
use crate::trace::Format;
use crate::trace::live::Wanted;

const WANTED: &str = "send {} or {\"ring_records\": 4096, \"limit_bytes\": 268435456} as application/json";
/// Bytes of a file that are in memory for one client.
const PIECE: usize = 64 << 10;

pub async fn show(State(machine): State<Shared>) -> Answer {
    // A recording that is being started or stopped is waited for.
    json(waiting(machine, |machine| Ok(machine.tracing()?.status())).await?)
}

pub async fn start(State(machine): State<Shared>, body: Body<Wanted>) -> Answer {
    let Json(wanted) = body.map_err(|e| Fault::body(&e, WANTED))?;
    json(waiting(machine, move |machine| machine.start_trace(&wanted)).await?)
}

pub async fn stop(State(machine): State<Shared>) -> Answer {
    json(waiting(machine, |machine| machine.stop_trace()).await?)
}

pub async fn pftrace(State(machine): State<Shared>) -> Answer {
    fetch(machine, Format::Pftrace, "application/octet-stream").await
}

pub async fn jsonl(State(machine): State<Shared>) -> Answer {
    fetch(machine, Format::Jsonl, "application/jsonl").await
}

async fn fetch(machine: Shared, format: Format, content_type: &'static str) -> Answer {
    // The other format is made of the stored one first.
    let file = waiting(machine, move |machine| Ok(machine.tracing()?.fetch(format)?)).await?;
    Ok(stream(file, content_type))
}

fn stream(file: File, content_type: &'static str) -> Response {
    let left = file.metadata().map_or(0, |data| data.len());
    ([(CONTENT_TYPE, content_type)], Content::new(FileBody { file, left })).into_response()
}

/// A file as a body: read piece by piece as the client takes it. The pieces come from the page cache, where they were just written.
struct FileBody {
    file: File,
    left: u64,
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; PIECE.min(usize::try_from(self.left).unwrap_or(PIECE))];
        Poll::Ready(Some(self.file.read(&mut piece).and_then(|len| {
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            piece.truncate(len);
            self.left = self.left.saturating_sub(len as u64);
            Ok(Frame::data(piece.into()))
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
