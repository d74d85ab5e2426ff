//! The user's terminal: raw mode while a guest runs, restored on every way out.
//!
//! [`crate::vm`] makes one [`RawMode`]. Restoring is idempotent and can be done from anywhere: dropping the guard, the
//! panic hook, or [`restore`] before the process ends itself by a signal.
//! Invariant: the saved settings are those from before the first change.

use std::io::{self, IsTerminal, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, Once, PoisonError};

/// What to restore: the terminal's descriptor and its settings.
static SAVED: Mutex<Option<(RawFd, libc::termios)>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// While this lives, the terminal hands over every key at once, without echo and without making signals of Ctrl-C.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Switches `terminal` to raw mode. `None` if it is no terminal, or we are in the background, where changing it
    /// would stop us (SIGTTOU).
    pub fn enter(terminal: BorrowedFd<'static>) -> io::Result<Option<Self>> {
        if !terminal.is_terminal() || !in_foreground(terminal) {
            return Ok(None);
        }
        let fd = terminal.as_raw_fd();
        let mut settings = get(fd)?;
        HOOK.call_once(restore_in_panics);
        SAVED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((fd, settings));
        // SAFETY: `settings` is a valid termios.
        unsafe { libc::cfmakeraw(&mut settings) };
        set(fd, &settings)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Our own messages on the user's terminal: a newline returns the carriage too while raw mode is on. (The guest's bytes go out as
/// they are: its own terminal has processed them.)
#[derive(Debug)]
pub struct Lines<W>(pub W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if SAVED.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return self.0.write(bytes);
        }
        let mut out = Vec::with_capacity(bytes.len() + 8);
        for &byte in bytes {
            if byte == b'\n' {
                out.push(b'\r');
            }
            out.push(byte);
        }
        self.0.write_all(&out)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Puts the terminal back, if it was changed. Safe to call at any time, any number of times.
pub fn restore() {
    if let Some((fd, settings)) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Nothing can be done about a failure: the terminal has gone.
        let _ = set(fd, &settings);
    }
}

/// As [`restore`], in a signal handler: if somebody is changing the settings at this moment, nothing is done.
pub fn restore_in_handler() {
    if let Ok(saved) = SAVED.try_lock()
        && let Some((fd, settings)) = &*saved
    {
        let _ = set(*fd, settings);
    }
}

fn restore_in_panics() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        previous(info);
    }));
}

fn get(fd: RawFd) -> io::Result<libc::termios> {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: the pointer is valid for a termios, which the call fills when it returns 0.
    if unsafe { libc::tcgetattr(fd, settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled by the successful call above.
    Ok(unsafe { settings.assume_init() })
}

fn set(fd: RawFd, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: `settings` is a valid termios.
    match unsafe { libc::tcsetattr(fd, libc::TCSANOW, settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn in_foreground(terminal: BorrowedFd<'_>) -> bool {
    // SAFETY: both calls take and return plain numbers.
    unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) == libc::getpgrp() }
}

/// Columns and rows of a terminal; `None` if it is none or doesn't know.
pub fn size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: TIOCGWINSZ fills the winsize that the pointer is valid for.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) };
    // SAFETY: all-zero is a valid winsize, and a successful call has filled it.
    let size = unsafe { size.assume_init() };
    (result == 0 && size.ws_col != 0 && size.ws_row != 0).then_some((size.ws_col, size.ws_row))
}

/// The streams among stdin, stdout and stderr that are terminals, as the kernel's `tty=` wants them: `012`.
pub fn tty_digits() -> String {
    let streams =
        [('0', io::stdin().is_terminal()), ('1', io::stdout().is_terminal()), ('2', io::stderr().is_terminal())];
    streams.iter().filter(|(_, tty)| *tty).map(|(digit, _)| digit).collect()
}
