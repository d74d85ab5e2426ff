//! `ctl spawn --attach` and `ctl attach`: a program in the guest with the streams of this process, and its exit code.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};

use super::SpawnArgs;
use crate::control::api::{Program, SignalRequest, SpawnRequest, Spawned, Stored, StreamsChoice};
use crate::control::client::{Client, ClientError};
use crate::signals::SignalFd;

impl SpawnArgs {
    /// What is asked of the interface; a program of the host is put into the guest first.
    pub(super) fn wanted(self, client: &mut Client) -> Result<SpawnRequest, ClientError> {
        let Self { path, args, env, cwd, streams, attach, host } = self;
        let path = if host { put(client, Path::new(&path))? } else { path };
        let streams = if attach { StreamsChoice::Attached } else { streams };
        Ok(SpawnRequest { path, args, env, cwd, streams })
    }
}

/// Puts a file of the host into the guest; its path there.
fn put(client: &mut Client, path: &Path) -> Result<String, ClientError> {
    let unusable = |source| ClientError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(unusable)?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| unusable(io::Error::other("a file for the guest needs a name that is UTF-8")))?;
    Ok(client.upload::<Stored>(&format!("/v1/files/{}", in_a_path(name)), file)?.path)
}

/// One part of a URI's path (RFC 3986, 2.1 and 2.3).
fn in_a_path(name: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    name.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Starts a program, and stays with it to its end; its exit code.
pub fn spawn(socket: &Path, mut client: Client, args: SpawnArgs) -> Result<u8, ClientError> {
    // Before any thread is made: they inherit the mask.
    let signals = SignalFd::new().map_err(ClientError::Start)?;
    let request = args.wanted(&mut client)?;
    let spawned: Spawned = client.send("/v1/tasks", &request)?;
    stay(socket, client, spawned.process, signals)
}

/// Stays with a program that was spawned before.
pub fn attach(socket: &Path, client: Client, process: u32) -> Result<u8, ClientError> {
    let signals = SignalFd::new().map_err(ClientError::Start)?;
    stay(socket, client, process, signals)
}

/// Each stream has a connection and a thread of its own, so that none waits for another.
fn stay(socket: &Path, mut client: Client, process: u32, signals: SignalFd) -> Result<u8, ClientError> {
    let at = format!("/v1/programs/{process}");
    client.get::<Program>(&at)?;
    let start = |name: &str| thread::Builder::new().name(name.to_owned());
    let copy = |name: &'static str, out: fn() -> Box<dyn io::Write>| {
        let (socket, path) = (socket.to_owned(), format!("{at}/{name}"));
        start(name).spawn(move || Client::connect(&socket)?.stream(&path, &mut *out(), Path::new(name), None))
    };
    let outputs = [
        copy("stdout", || Box::new(io::stdout())).map_err(ClientError::Start)?,
        copy("stderr", || Box::new(io::stderr())).map_err(ClientError::Start)?,
    ];
    let (from, to) = (socket.to_owned(), format!("{at}/stdin"));
    // A program that doesn't read to the end is no failure; and nobody waits for what is typed when it has ended.
    let stdin = start("stdin").spawn(move || Client::connect(&from)?.upload::<()>(&to, io::stdin()));
    stdin.map_err(ClientError::Start)?;
    let from = socket.to_owned();
    start("signals").spawn(move || pass_on(&from, process, signals)).map_err(ClientError::Start)?;
    for output in outputs {
        // A panic was told by its hook.
        output.join().unwrap_or(Ok(()))?;
    }
    // Anew: a connection on which nothing is asked for a while is closed.
    let mut client = Client::connect(socket)?;
    let ended: Program = client.wait_for(&format!("{at}/wait"))?;
    client.delete(&at)?;
    Ok(ended.exit_code().unwrap_or(u8::MAX))
}

/// Signals to this process are the program's.
fn pass_on(socket: &Path, process: u32, mut signals: SignalFd) {
    loop {
        let mut ready = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        // Interrupted or not, the next line finds what there is.
        let _ = poll(&mut ready, None);
        let Some(signal) = signals.take().filter(|signal| *signal != libc::SIGWINCH) else { continue };
        let request = SignalRequest { signal: signal.to_string(), thread: false };
        let sent = Client::connect(socket)
            .and_then(|mut client| client.send::<()>(&format!("/v1/tasks/{process}/signal"), &request));
        if let Err(error) = sent {
            eprintln!("taskvisor: signal {signal} can't be passed on: {error}");
        }
    }
}
