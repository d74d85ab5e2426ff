//! The client's side of the control socket, for `ctl` and `top`: one request after another over one connection.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::api::Problem;

/// An answer that takes longer doesn't come.
const PATIENCE: Duration = Duration::from_secs(10);
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
    sender: SendRequest<Full<Bytes>>,
}

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

    /// `GET path`, whatever its size, written to `out` as it comes. `to`: what to call that when it fails.
    pub fn download(&mut self, path: &str, out: &mut dyn Write, to: &Path) -> Result<(), ClientError> {
        let Self { path: socket, runtime, sender } = self;
        runtime.block_on(async {
            let lost = |detail: String| broken(socket, &detail);
            let mut response = begin(sender, Method::GET, path, Bytes::new()).await.map_err(lost)?;
            if !response.status().is_success() {
                let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
                let body = body.map_err(|e| broken(socket, &e.to_string()))?.to_bytes();
                let answer =
                    |e: serde_json::Error| ClientError::Answer { what: path.to_owned(), detail: e.to_string() };
                return Err(ClientError::Refused(serde_json::from_slice(&body).map_err(answer)?));
            }
            loop {
                let frame = match tokio::time::timeout(PATIENCE, response.body_mut().frame()).await {
                    Err(_) => return Err(ClientError::Silent { path: socket.clone() }),
                    Ok(None) => return Ok(()),
                    Ok(Some(frame)) => frame.map_err(|e| broken(socket, &e.to_string()))?,
                };
                if let Some(data) = frame.data_ref() {
                    out.write_all(data).map_err(|source| ClientError::File { path: to.to_owned(), source })?;
                }
            }
        })
    }

    fn ask<T: DeserializeOwned>(&mut self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        let body = self.exchange(method, path, body)?;
        // Nothing to say is `null`.
        let text: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(text).map_err(|e| ClientError::Answer { what: path.to_owned(), detail: e.to_string() })
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
        let answer = |e: serde_json::Error| ClientError::Answer { what: path.to_owned(), detail: e.to_string() };
        if !status.is_success() {
            return Err(ClientError::Refused(serde_json::from_slice(&body).map_err(answer)?));
        }
        Ok(body)
    }
}

fn broken(path: &Path, detail: &str) -> ClientError {
    ClientError::Broken { path: path.to_owned(), detail: detail.to_owned() }
}

async fn request(
    sender: &mut SendRequest<Full<Bytes>>,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(hyper::StatusCode, Bytes), String> {
    let response = begin(sender, method, path, body).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
    Ok((status, body.to_bytes()))
}

/// Sends a request; the head of its answer.
async fn begin(
    sender: &mut SendRequest<Full<Bytes>>,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Response<Incoming>, String> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "taskvisor");
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
    sender.ready().await.map_err(|e| e.to_string())?;
    sender.send_request(request).await.map_err(|e| e.to_string())
}
