//! Notices that a client has gone, for answers that may take as long as a program runs.
//!
//! The connection itself doesn't tell: a client may say that it has sent all and wait on, and nothing is written to it meanwhile.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// One connection's other side. Without one, as in tests of a handler alone, nobody hangs up.
#[derive(Debug, Clone, Default)]
pub struct Hangup(Option<Arc<AsyncFd<OwnedFd>>>);

impl Hangup {
    /// Of this connection. In the runtime that serves it.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let fd = stream.as_fd().try_clone_to_owned()?;
        // Priority: a socket of this kind has none, so what comes is the hang-up, which epoll always tells.
        // SAFETY: an owned descriptor is open, and the same one, as long as it is registered.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::PRIORITY) }?;
        Ok(Self(Some(Arc::new(fd))))
    }

    /// Until the client has closed its side for both directions, or died.
    pub async fn wait(&self) {
        match &self.0 {
            // An error is the end of the runtime's interest, too.
            Some(fd) => drop(fd.ready(Interest::PRIORITY).await),
            None => std::future::pending().await,
        }
    }
}
