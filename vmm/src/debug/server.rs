//! The thread that serves debuggers: one client at a time, packets in and out, and what vCPUs report in between.
//!
//! [`crate::vm`] makes a [`Server`] when the vCPUs exist and ends it when the guest has ended. Invariants: a client that goes away, in
//! whatever way, leaves a guest that runs without a breakpoint; one that doesn't read is given up after [`PATIENCE`]; nothing here
//! blocks the event loop or a vCPU.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::address::{Client, Listener};
use super::command::parse;
use super::hub;
use super::packet::{Decoder, Input, encode};
use super::session::{self, Reply, Session};
use super::stop::{Stop, Why, signal};
use super::target::{Machine, TargetError};
use crate::sandbox::{self, Kind};
use crate::vm::run_control::Paused;

/// How long a client may not read.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is read at once.
const CHUNK: usize = 16 << 10;

/// The running server; ends when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<EventFd>,
    code: Arc<AtomicU8>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers debuggers from now on. `held`: the guest waits until the first one lets it go.
    pub fn start(listener: Listener, machine: Machine, held: Option<Paused>) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (stopped, code) = (stop.clone(), Arc::new(AtomicU8::new(0)));
        let last = code.clone();
        let thread = thread::Builder::new().name("gdb".into()).spawn(move || {
            if let Err(error) = sandbox::enter(Kind::Gdb) {
                return log::error!("debuggers aren't served: {error}");
            }
            let mut serving = Serving { listener, machine, held, stopped, code: last };
            while let Some(client) = serving.wait() {
                let ended = serving.serve(client);
                if let Err(error) = &ended {
                    log::info!("a debugger has gone: {error}");
                }
                if matches!(ended, Ok(Done::Stopped)) {
                    return;
                }
            }
        })?;
        Ok(Self { stop, code, thread: Some(thread) })
    }

    /// The guest has ended with this exit code, which an attached client is told.
    pub fn end(self, code: u8) {
        // Relaxed: the thread's end is waited for below, by `drop`.
        self.code.store(code, Ordering::Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic there was told by the hook.
            let _ = thread.join();
        }
    }
}

struct Serving {
    listener: Listener,
    machine: Machine,
    held: Option<Paused>,
    stopped: Arc<EventFd>,
    code: Arc<AtomicU8>,
}

/// Why a session is over.
enum Done {
    /// The client has left.
    Left,
    /// The guest has ended.
    Stopped,
}

/// A client with its stream.
struct Connection {
    client: Client,
    decoder: Decoder,
    acks: bool,
    /// The last packet, in case it is wanted again.
    last: Vec<u8>,
    out: Vec<u8>,
}

impl Connection {
    fn new(client: Client) -> io::Result<Self> {
        client.set_patience(PATIENCE)?;
        Ok(Self { client, decoder: Decoder::default(), acks: true, last: Vec::new(), out: Vec::new() })
    }

    fn send(&mut self, data: &[u8]) {
        self.last.clear();
        encode(data, &mut self.last);
        self.out.extend_from_slice(&self.last);
    }

    /// One write for all that has come together.
    fn flush(&mut self) -> io::Result<()> {
        let result = self.client.write_all(&self.out);
        self.out.clear();
        result
    }
}

impl Serving {
    /// The next client; `None`: the guest has ended.
    fn wait(&self) -> Option<Client> {
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(self.listener.fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(hub::fd(&self.stopped), PollFlags::IN),
            ];
            let ready = poll(&mut fds, None);
            if ready.is_ok() && !fds[1].revents().is_empty() {
                return None;
            }
            match self.listener.accept() {
                Ok(client) => return Some(client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!("a debugger can't connect: {error}");
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// One client from its first packet to its last.
    fn serve(&mut self, client: Client) -> io::Result<Done> {
        let mut connection = Connection::new(client)?;
        let mut session = match session::begin(&self.machine, self.held.take()) {
            Ok(session) => session,
            Err(error) => {
                connection.send(format!("E.{error}").as_bytes());
                connection.flush()?;
                return Ok(Done::Left);
            }
        };
        log::info!("a debugger is attached");
        let result = self.converse(&mut connection, &mut session);
        if !matches!(result, Ok(Done::Stopped))
            && let Err(error) = session.target.let_go()
        {
            log::warn!("after the debugger: {error}");
        }
        result
    }

    fn converse(&self, connection: &mut Connection, session: &mut Session) -> io::Result<Done> {
        let mut bytes = vec![0; CHUNK];
        loop {
            let timeout = session.target.deadline().map(|at| {
                let left = at.saturating_duration_since(Instant::now());
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
            });
            let mut fds = [
                PollFd::from_borrowed_fd(connection.client.fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.machine.hub.evt(), PollFlags::IN),
                PollFd::from_borrowed_fd(hub::fd(&self.stopped), PollFlags::IN),
                PollFd::from_borrowed_fd(self.listener.fd(), PollFlags::IN),
            ];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [client, hub, stopped, listener] = fds.map(|fd| !fd.revents().is_empty());
            if stopped {
                if session.running {
                    connection.send(format!("W{:02x}", self.code.load(Ordering::Relaxed)).as_bytes());
                    connection.flush()?;
                }
                return Ok(Done::Stopped);
            }
            if session.running && (hub || session.target.deadline().is_some()) {
                let looked = session.target.look();
                self.tell(connection, session, looked)?;
            }
            // What the first one has sent comes first: it may be its end.
            if listener && !client {
                self.refuse();
            }
            if client {
                let read = connection.client.read(&mut bytes)?;
                if read == 0 {
                    return Ok(Done::Left);
                }
                for byte in &bytes[..read] {
                    if let Some(input) = connection.decoder.push(*byte)
                        && let Some(done) = self.input(connection, session, input)?
                    {
                        return Ok(done);
                    }
                }
                connection.flush()?;
            }
        }
    }

    fn tell(
        &self,
        connection: &mut Connection,
        session: &mut Session,
        stop: Result<Option<Stop>, TargetError>,
    ) -> io::Result<()> {
        match stop {
            Ok(None) => return Ok(()),
            Ok(Some(stop)) => {
                let reply = session.stopped(stop);
                connection.send(&reply);
            }
            // The guest is ending, or a vCPU waits for its output to be read: the client is told by a stop.
            Err(error) => {
                log::warn!("the debugger can't stop the guest: {error}");
                let stop = Stop { thread: 1, signal: signal::INT, why: Why::Signal };
                let reply = session.stopped(stop);
                connection.send(&reply);
            }
        }
        connection.flush()
    }

    fn input(&self, connection: &mut Connection, session: &mut Session, input: Input) -> io::Result<Option<Done>> {
        match input {
            Input::Ack => {}
            Input::Nack => {
                let again = connection.last.clone();
                connection.out.extend_from_slice(&again);
            }
            Input::Damaged if connection.acks => connection.out.push(b'-'),
            Input::Damaged => {}
            Input::Interrupt if session.running => {
                let stop = session.target.interrupt(signal::INT).map(Some);
                self.tell(connection, session, stop)?;
            }
            Input::Interrupt => {}
            Input::Packet(data) => {
                if connection.acks {
                    connection.out.push(b'+');
                }
                log::trace!("gdb: {}", data.escape_ascii());
                match session.handle(parse(&data)) {
                    Reply::Data(answer) => connection.send(&answer),
                    Reply::Running => {}
                    Reply::NoAck => {
                        connection.send(b"OK");
                        connection.acks = false;
                    }
                    Reply::Detach => {
                        connection.send(b"OK");
                        connection.flush()?;
                        return Ok(Some(Done::Left));
                    }
                    Reply::Kill => {
                        connection.send(b"OK");
                        connection.flush()?;
                        log::info!("the debugger ends the guest");
                        // The event loop ends the machine in order, as for any other who asks so.
                        if let Err(error) =
                            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
                        {
                            log::error!("can't end the guest: {error}");
                        }
                        return Ok(Some(Done::Left));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Somebody else has connected.
    fn refuse(&self) {
        let Ok(client) = self.listener.accept() else { return };
        let refused = Connection::new(client).and_then(|mut connection| {
            connection.send(b"E.another debugger is attached");
            connection.flush()
        });
        if let Err(error) = refused {
            log::debug!("a second debugger: {error}");
        }
    }
}
