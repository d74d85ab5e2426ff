//! The client's side of the control socket, for `ctl` and `top`: one request after another over one connection.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::api::Problem;
use super::pieces::{Pieces, Sender, pieces};

/// An answer that takes longer doesn't come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are read at once to be sent.
const PIECE: usize = 12 << 10;
/// Bytes of an answer at most: some 600 for each of `guestview::MAX_TASKS`.
const MAX_ANSWER: usize = 128 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "can't connect to {path}: {source}; is it the socket of a taskvisor run --control, and does that still run?"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the guest at {path} has ended, or its control socket broke: {detail}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What hyper says.
        detail: String,
    },
    /// No answer came.
    #[error("the control socket {path} doesn't answer within {PATIENCE:?}")]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The other side refused.
    #[error("{}: {} ({})", .0.title, .0.detail, .0.hint)]
    Refused(Problem),
    /// The answer isn't what this version understands.
    #[error("the answer to {what} can't be understood, it may be of another version of taskvisor: {detail}")]
    Answer {
        /// The path asked for.
        what: String,
        /// What is wrong.
        detail: String,
    },
    /// What was got can't be kept.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Where it should go.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The runtime.
    #[error("can't start: {0}")]
    Start(io::Error),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    runtime: Runtime,
    sender: SendRequest<Content>,
}

/// What a request carries.
type Content = Either<Full<Bytes>, Pieces>;

impl Client {
    /// Connects.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Start)?;
        let connect = |source| ClientError::Connect { path: path.to_owned(), source };
        let sender = runtime.block_on(async {
            let stream = UnixStream::connect(path).await.map_err(connect)?;
            let (sender, connection) =
                handshake(TokioIo::new(stream)).await.map_err(|e| broken(path, &e.to_string()))?;
            // Driven while a request is under way; its error comes out there.
            tokio::spawn(connection);
            Ok::<_, ClientError>(sender)
        })?;
        Ok(Self { path: path.to_owned(), runtime, sender })
    }

    /// `GET path`, parsed.
    pub fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Bytes::new())
    }

    /// `PUT path` with a resource; the answer, parsed.
    pub fn put<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        // Resources are plain data, of which no writer to memory fails.
        self.ask(Method::PUT, path, serde_json::to_vec(body).unwrap_or_default().into())
    }

    /// `POST path` without a body; the answer, parsed.
    pub fn post<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::POST, path, Bytes::new())
    }

    /// `POST path` with a resource; the answer, parsed.
    pub fn send<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.ask(Method::POST, path, serde_json::to_vec(body).unwrap_or_default().into())
    }

    /// `PATCH path` with a resource; the answer, parsed.
    pub fn patch<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.ask(Method::PATCH, path, serde_json::to_vec(body).unwrap_or_default().into())
    }

    /// `GET path`, as text.
    pub fn text(&mut self, path: &str) -> Result<String, ClientError> {
        let body = self.exchange(Method::GET, path, Bytes::new())?;
        let answer =
            |e: std::string::FromUtf8Error| ClientError::Answer { what: path.to_owned(), detail: e.to_string() };
        String::from_utf8(body.into()).map_err(answer)
    }

    /// `DELETE path`.
    pub fn delete(&mut self, path: &str) -> Result<(), ClientError> {
        self.exchange(Method::DELETE, path, Bytes::new()).map(drop)
    }

    /// `GET path`, however long its answer takes.
    pub fn wait_for<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        let mut body = Vec::new();
        self.stream(path, &mut body, Path::new("memory"), None)?;
        serde_json::from_slice(&body).map_err(|e| ClientError::Answer { what: path.to_owned(), detail: e.to_string() })
    }

    /// `PUT path` with all that can be read from `from`, however long that takes; the answer, parsed.
    pub fn upload<T: DeserializeOwned>(
        &mut self,
        path: &str,
        from: impl Read + Send + 'static,
    ) -> Result<T, ClientError> {
        let Self { path: socket, runtime, sender } = self;
        let (pieces, body) = pieces();
        // It ends with its source, or when nobody takes its pieces any more.
        thread::Builder::new().name("upload".to_owned()).spawn(|| feed(from, pieces)).map_err(ClientError::Start)?;
        let (status, body) = runtime.block_on(async {
            let answer = collect(begin(sender, Method::PUT, path, Either::Right(body)).await).await;
            answer.map_err(|detail| broken(socket, &detail))
        })?;
        parse(path, &accepted(path, status, body)?)
    }

    /// `GET path`, whatever its size, written to `out` as it comes. `to`: what to call that when it fails.
    pub fn download(&mut self, path: &str, out: &mut dyn Write, to: &Path) -> Result<(), ClientError> {
        self.stream(path, out, to, Some(PATIENCE))
    }

    /// As [`Client::download`], with as much patience between two pieces; none: any.
    pub fn stream(
        &mut self,
        path: &str,
        out: &mut dyn Write,
        to: &Path,
        patience: Option<Duration>,
    ) -> Result<(), ClientError> {
        let Self { path: socket, runtime, sender } = self;
        runtime.block_on(async {
            let lost = |detail: String| broken(socket, &detail);
            let mut response = begin(sender, Method::GET, path, Either::Left(Full::default())).await.map_err(lost)?;
            if !response.status().is_success() {
                let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
                let body = body.map_err(|e| broken(socket, &e.to_string()))?.to_bytes();
                let answer =
                    |e: serde_json::Error| ClientError::Answer { what: path.to_owned(), detail: e.to_string() };
                return Err(ClientError::Refused(serde_json::from_slice(&body).map_err(answer)?));
            }
            loop {
                let frame = response.body_mut().frame();
                let frame = match patience {
                    Some(patience) => match tokio::time::timeout(patience, frame).await {
                        Err(_) => return Err(ClientError::Silent { path: socket.clone() }),
                        Ok(frame) => frame,
                    },
                    None => frame.await,
                };
                let Some(frame) = frame else { return Ok(()) };
                if let Some(data) = frame.map_err(|e| broken(socket, &e.to_string()))?.data_ref() {
                    let written = out.write_all(data).and_then(|()| out.flush());
                    written.map_err(|source| ClientError::File { path: to.to_owned(), source })?;
                }
            }
        })
    }

    fn ask<T: DeserializeOwned>(&mut self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        parse(path, &self.exchange(method, path, body)?)
    }

    /// One request; the body of its answer if that is no error.
    fn exchange(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let (status, body) = {
            let Self { path: socket, runtime, sender } = self;
            runtime.block_on(async {
                match tokio::time::timeout(PATIENCE, request(sender, method, path, body)).await {
                    Ok(answer) => answer.map_err(|detail| broken(socket, &detail)),
                    Err(_) => Err(ClientError::Silent { path: socket.clone() }),
                }
            })?
        };
        accepted(path, status, body)
    }
}

/// The body of an answer that is no error.
fn accepted(path: &str, status: StatusCode, body: Bytes) -> Result<Bytes, ClientError> {
    if status.is_success() { Ok(body) } else { Err(ClientError::Refused(parse(path, &body)?)) }
}

fn parse<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, ClientError> {
    // Nothing to say is `null`.
    let text = if body.is_empty() { b"null" } else { body };
    serde_json::from_slice(text).map_err(|e| ClientError::Answer { what: path.to_owned(), detail: e.to_string() })
}

/// Reads pieces until there are no more, or nobody wants them.
fn feed(mut from: impl Read, to: Sender) {
    let mut buffer = vec![0; PIECE];
    loop {
        let piece = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => Ok(Bytes::copy_from_slice(buffer.get(..n).unwrap_or(&buffer))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let last = piece.is_err();
        if to.blocking_send(piece).is_err() || last {
            return;
        }
    }
}

fn broken(path: &Path, detail: &str) -> ClientError {
    ClientError::Broken { path: path.to_owned(), detail: detail.to_owned() }
}

async fn request(
    sender: &mut SendRequest<Content>,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), String> {
    collect(begin(sender, method, path, Either::Left(Full::new(body))).await).await
}

async fn collect(response: Result<Response<Incoming>, String>) -> Result<(StatusCode, Bytes), String> {
    let response = response?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
    Ok((status, body.to_bytes()))
}

/// Sends a request; the head of its answer.
async fn begin(
    sender: &mut SendRequest<Content>,
    method: Method,
    path: &str,
    body: Content,
) -> Result<Response<Incoming>, String> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "taskvisor");
    request = match &body {
        Either::Left(whole) if whole.size_hint().exact() == Some(0) => request,
        Either::Left(_) => request.header(header::CONTENT_TYPE, "application/json"),
        Either::Right(_) => request.header(header::CONTENT_TYPE, "application/octet-stream"),
    };
    let request = request.body(body).map_err(|e| e.to_string())?;
    sender.ready().await.map_err(|e| e.to_string())?;
    sender.send_request(request).await.map_err(|e| e.to_string())
}
