//! The thread that serves the control socket.
//!
//! One thread, many connections: hyper parses, [`super::routes`] answers. A client that hangs loses its connection after
//! [`PATIENCE`], and [`MAX_CONNECTIONS`] bounds how many there are: one more ends the one that has been silent longest ([`super::places`]).
//! Invariant: a request that was taken is answered, also when the machine ends meanwhile (its own `shutdown` is such a request), unless
//! the client doesn't read its answer within [`LAST_WORDS`].

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};

use super::hangup::Hangup;
use super::machine::Machine;
use super::places::{Place, Places};
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
/// How long the end of a connection or of the machine waits for clients to read the answers to what they have asked. Who reads at all,
/// does so sooner.
const LAST_WORDS: Duration = Duration::from_secs(2);
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
        self.serve_routes(routes::router(Arc::new(machine)))
    }

    fn serve_routes(self, router: Router) -> io::Result<Server> {
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
                let connections = Connections::new(router);
                match UnixListener::from_std(listener) {
                    Ok(listener) => tokio::select! {
                        () = connections.accept(listener) => {}
                        _ = stopped => {}
                    },
                    Err(error) => log::error!("the control socket can't be served: {error}"),
                }
                connections.end().await;
            });
            // Connections that are still open end here, with the runtime.
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

/// The connections of one server.
struct Connections {
    router: Router,
    places: Arc<Places>,
    /// Tells them that the machine ends.
    ending: watch::Sender<bool>,
}

impl Connections {
    fn new(router: Router) -> Self {
        Self { router, places: Places::new(MAX_CONNECTIONS, LAST_WORDS), ending: watch::Sender::new(false) }
    }

    async fn accept(&self, listener: UnixListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) if allowed(&stream) => stream,
                Ok(_) => continue,
                Err(error) => {
                    log::warn!("the control socket can't accept: {error}");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            };
            let Some(place) = self.places.take().await else { return };
            let (router, ending) = (self.router.clone(), self.ending.subscribe());
            tokio::spawn(async move {
                if let Err(error) = serve(stream, router, ending, &place).await {
                    log::debug!("a control connection ended: {error}");
                }
            });
        }
    }

    /// Takes no more requests, and waits until those that were taken are answered.
    async fn end(&self) {
        self.ending.send_replace(true);
        // All places are free: no connection is left.
        let all = self.places.all_free(MAX_CONNECTIONS as u32);
        if tokio::time::timeout(LAST_WORDS, all).await.is_err() {
            log::warn!("a control client doesn't read its answer, and the machine ends without it");
        }
    }
}

/// One connection, until its client goes, another needs its place, or the machine ends.
async fn serve(
    stream: UnixStream,
    router: Router,
    mut ending: watch::Receiver<bool>,
    place: &Arc<Place>,
) -> hyper::Result<()> {
    let hangup = Hangup::of(&stream).unwrap_or_else(|error| {
        log::debug!("a control client's end can't be noticed: {error}");
        Hangup::default()
    });
    let service = TowerToHyperService::new(router.layer(Extension(hangup)));
    // Relaxed, both: the runtime has one thread, and nothing else is told by it.
    let asked = AtomicBool::new(false);
    let service = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        let (answer, unanswered) = (service.call(request), place.asked());
        async { answer.await.map(|answer| answer.map(|body| unanswered.until_sent(body))) }
    });
    let mut http = http1::Builder::new();
    // A client may say that it has sent all (`nc -N`) and still waits for its answer.
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(MAX_HEAD).half_close(true);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        result = connection.as_mut() => return result,
        // An error: the server has gone, which is an end as well.
        _ = ending.wait_for(|ending| *ending) => {}
        () = place.is_needed() => {}
    }
    // hyper would wait for a first request's head.
    if asked.load(Ordering::Relaxed) {
        connection.as_mut().graceful_shutdown();
        connection.await?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use axum::routing::get;
    use tempfile::TempDir;

    use super::*;

    /// A server whose one path tells that it was asked, and answers when it is told to.
    fn slow() -> (TempDir, std::path::PathBuf, Server, mpsc::Receiver<()>, oneshot::Sender<()>) {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("control");
        let (asked, was_asked) = mpsc::channel();
        let (answer, may_answer) = oneshot::channel();
        let may_answer = Arc::new(tokio::sync::Mutex::new(Some(may_answer)));
        let handler = move || async move {
            asked.send(()).expect("the test waits for it");
            let may_answer = may_answer.lock().await.take().expect("one request");
            may_answer.await.expect("the test says so");
            "an answer"
        };
        let router = Router::new().route("/slow", get(handler));
        let server = Listening::bind(&path).expect("a free path").serve_routes(router).expect("a thread");
        (dir, path, server, was_asked, answer)
    }

    #[test]
    fn what_was_asked_is_answered_when_the_machine_ends_meanwhile() {
        let (_dir, path, server, was_asked, answer) = slow();
        // One that never asks, and one that stops in the middle: they don't hold up the end.
        let mut silent = UnixStream::connect(&path).expect("it listens");
        let mut cut = UnixStream::connect(&path).expect("it listens");
        cut.write_all(b"GET /sl").expect("there is room");
        let mut client = UnixStream::connect(&path).expect("it listens");
        client.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").expect("there is room");
        was_asked.recv().expect("it is asked");
        let ends = std::thread::spawn(move || drop(server));
        assert_eq!(silent.read(&mut [0]).expect("it is closed in order"), 0, "by the end");
        answer.send(()).expect("the handler waits");
        let mut text = String::new();
        client.read_to_string(&mut text).expect("the connection ends in order");
        assert!(text.ends_with("an answer"), "{text}");
        ends.join().expect("the server ends");
    }

    fn ask(client: &mut UnixStream, path: &str) {
        write!(client, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("there is room");
    }

    /// What answers within a time in which those who are only silent would still be waited for.
    fn answer(client: &mut UnixStream) -> String {
        client.set_read_timeout(Some(PATIENCE / 2)).expect("a time that is possible");
        let mut text = [0; 1024];
        let n = client.read(&mut text).expect("an answer in time");
        String::from_utf8_lossy(&text[..n]).into_owned()
    }

    #[test]
    fn the_silent_make_room_and_those_who_wait_for_an_answer_do_not() {
        let (_dir, path, _server, was_asked, may_answer) = slow();
        let mut waits = UnixStream::connect(&path).expect("it listens");
        ask(&mut waits, "/slow");
        was_asked.recv().expect("it is asked");
        // All other places: silent from the beginning, after an answer, and in the middle of a request.
        let mut others: Vec<_> =
            (1..MAX_CONNECTIONS).map(|_| UnixStream::connect(&path).expect("it listens")).collect();
        for (n, other) in others.iter_mut().enumerate() {
            match n % 3 {
                0 => {}
                1 => {
                    ask(other, "/nothing");
                    assert!(answer(other).starts_with("HTTP/1.1 404 "));
                }
                _ => other.write_all(b"GET /no").expect("there is room"),
            }
        }
        for _ in 0..2 * MAX_CONNECTIONS {
            let mut another = UnixStream::connect(&path).expect("it listens");
            ask(&mut another, "/nothing");
            assert!(answer(&mut another).starts_with("HTTP/1.1 404 "));
            others.push(another);
        }
        may_answer.send(()).expect("the handler waits");
        assert!(answer(&mut waits).ends_with("an answer"));
    }
}
