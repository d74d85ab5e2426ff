//! The thread that serves the control socket.
//!
//! One thread, many connections: hyper parses, [`super::routes`] answers. A client that hangs loses its connection after
//! [`PATIENCE`], and [`MAX_CONNECTIONS`] bounds how many there are; the rest waits in the socket's backlog.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use super::hangup::Hangup;
use super::machine::Machine;
use super::routes;
use super::socket::{Socket, SocketError};
use crate::sandbox::{self, Kind};

/// Connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// Requests that wait for the guest at a time; others wait for those. As many as the mailbox has slots, and one for what needs none.
const MAX_WAITING: usize = 5;
/// How long a client may take for a request's head, and how long it may be silent between two requests.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a request's head at most.
const MAX_HEAD: usize = 16 << 10;
/// Wait after a failed accept (too many open files), so that the thread doesn't spin.
const BREATH: Duration = Duration::from_millis(50);

/// A bound socket that doesn't answer yet: made before the guest is, so that a bad path is an error at once.
#[derive(Debug)]
pub struct Listening(Socket);

impl Listening {
    /// Makes the socket file.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Socket::bind(path).map(Self)
    }

    /// Answers from now on, until the result is dropped.
    pub fn serve(self, machine: Machine) -> io::Result<Server> {
        let listener = self.0.listener()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_WAITING)
            .thread_name("control-wait")
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("control".to_owned()).spawn(move || {
            // Threads that the runtime starts are confined with this one.
            if let Err(error) = sandbox::enter(Kind::Control) {
                return log::error!("the control socket isn't served: {error}");
            }
            runtime.block_on(async {
                match UnixListener::from_std(listener) {
                    Ok(listener) => tokio::select! {
                        () = accept(listener, machine) => {}
                        _ = stopped => {}
                    },
                    Err(error) => log::error!("the control socket can't be served: {error}"),
                }
            });
            // Connections that are open end here, with the runtime.
        })?;
        Ok(Server { stop: Some(stop), thread: Some(thread), _socket: self.0 })
    }
}

/// A served socket; dropping it ends the thread and removes the file.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _socket: Socket,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The thread may have ended by itself; then nobody receives, and that is fine.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the control thread has panicked");
        }
    }
}

async fn accept(listener: UnixListener, machine: Machine) {
    let router = routes::router(Arc::new(machine));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) if allowed(&stream) => stream,
            Ok(_) => continue,
            Err(error) => {
                log::warn!("the control socket can't accept: {error}");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let hangup = Hangup::of(&stream).unwrap_or_else(|error| {
            log::debug!("a control client's end can't be noticed: {error}");
            Hangup::default()
        });
        let service = TowerToHyperService::new(router.clone().layer(Extension(hangup)));
        tokio::spawn(async move {
            let mut http = http1::Builder::new();
            // A client may say that it has sent all (`nc -N`) and still waits for its answer.
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(MAX_HEAD).half_close(true);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                log::debug!("a control connection ended: {error}");
            }
            drop(place);
        });
    }
}

/// Whether the client is this user or root; the file's mode says the same, this holds if somebody has changed that.
fn allowed(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == ours || peer.uid() == 0 => true,
        Ok(peer) => {
            log::warn!("user {} was refused at the control socket, which is user {ours}'s", peer.uid());
            false
        }
        Err(error) => {
            log::warn!("a control client doesn't say who it is: {error}");
            false
        }
    }
}
