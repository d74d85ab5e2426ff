//! `taskvisor top`: a running guest's vCPUs and tasks, live.
//!
//! A client of the control socket and nothing more. [`model`] turns two looks into rates and keeps what the user chose, [`view`]
//! draws it, [`run`] moves keys and time between them. Invariant: whatever way it ends, the terminal is as it was.

mod model;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use self::model::{Look, Model, Then};
use crate::control::client::{Client, ClientError};

/// How long `--once` looks: busy shares and rates need two looks.
const ONCE: Duration = Duration::from_millis(250);
/// The shortest time between two looks; a guest with many tasks is not to be read without a pause.
const SHORTEST: Duration = Duration::from_millis(50);
/// How long a signal that asks for the end may wait to be noticed.
const NOTICE: Duration = Duration::from_millis(100);

/// Why `top` ended.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// The guest's VMM.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No terminal.
    #[error("top needs a terminal: use --once for a snapshot as plain text")]
    NoTerminal,
    /// The terminal.
    #[error("the terminal can't be used: {0}")]
    Terminal(#[from] io::Error),
}

/// Shows the guest behind `socket` until the user has seen enough; with `once`, prints one snapshot.
pub fn run(socket: &Path, interval: Duration, once: bool) -> Result<(), TopError> {
    let mut client = Client::connect(socket)?;
    let mut model = Model::new(look(&mut client)?);
    if once {
        thread::sleep(ONCE);
        model.update(look(&mut client)?);
        // A closed pipe behind it is no error.
        let _ = io::stdout().write_all(view::plain(&model).as_bytes());
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(TopError::NoTerminal);
    }
    let stopped = on_signals()?;
    // Also sets a panic hook that puts the terminal back.
    let mut terminal = ratatui::try_init()?;
    let result = watch(&mut terminal, &mut client, &mut model, interval.max(SHORTEST), &stopped);
    ratatui::try_restore()?;
    result
}

/// One look at the guest.
fn look(client: &mut Client) -> Result<Look, ClientError> {
    Ok(Look { vcpus: client.get("/v1/vcpus")?, tasks: client.get("/v1/tasks")? })
}

/// Draws, and waits for a key, the next look or a signal, until one of them ends it.
fn watch(
    terminal: &mut DefaultTerminal,
    client: &mut Client,
    model: &mut Model,
    interval: Duration,
    stopped: &AtomicBool,
) -> Result<(), TopError> {
    let mut next = Instant::now() + interval;
    // The first rates soon, not after a long interval.
    let mut first = Some(Instant::now() + ONCE.min(interval));
    loop {
        terminal.draw(|frame| view::draw(frame, model))?;
        let due = first.unwrap_or(next);
        let wait = due.saturating_duration_since(Instant::now()).min(NOTICE);
        if event::poll(wait)?
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && model.on_key(key) == Then::Leave
        {
            return Ok(());
        }
        // Relaxed: a flag alone.
        if stopped.load(Ordering::Relaxed) {
            return Ok(());
        }
        if Instant::now() >= due {
            first = None;
            next = Instant::now() + interval;
            if !model.paused() {
                model.update(look(client)?);
            }
        }
    }
}

/// Signals that would end the process become a flag, so that the terminal is put back.
fn on_signals() -> io::Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, stopped.clone())?;
    }
    Ok(stopped)
}
