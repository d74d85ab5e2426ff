//! A program on a terminal of its own, with the test at the keyboard.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A terminal and the program that runs on it.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    /// Kept open, so that its modes can be read after the program's end.
    screen: OwnedFd,
    child: Child,
    modes_before: [u8; size_of::<libc::termios>()],
    seen: String,
}

impl Terminal {
    /// Starts `command` with a new terminal as its controlling terminal and standard streams.
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        let (mut master, mut slave) = (-1, -1);
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: both descriptors are valid to write to, name and termios may be null, size lives through the call.
        let made = unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), &size) };
        assert_eq!(made, 0, "openpty: {}", std::io::Error::last_os_error());
        // SAFETY: openpty just made both, and nobody else has them.
        let (keyboard, screen) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let stream = || screen.try_clone().expect("descriptors are not that scarce");
        command.stdin(stream()).stdout(stream()).stderr(stream());
        // SAFETY: setsid and ioctl are async-signal-safe, and the closure touches nothing else.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let modes_before = modes(&screen);
        let child = command.spawn().expect("the program starts");
        // SAFETY: the descriptor is ours; the read loop depends on it not blocking.
        unsafe { libc::fcntl(keyboard.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        Self { keyboard, screen, child, modes_before, seen: String::new() }
    }

    /// Types.
    pub fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("the terminal is open");
    }

    /// Waits until the screen has shown `text`, from the start on.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.seen.contains(text) {
            assert!(Instant::now() < deadline, "'{text}' did not come; on the screen:\n{}", self.seen);
            self.look();
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the program's end; returns its exit code as a shell tells it and everything it showed.
    #[track_caller]
    pub fn end(mut self) -> (i32, String) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            self.look();
            if let Some(status) = self.child.try_wait().expect("our own child") {
                break status;
            }
            assert!(Instant::now() < deadline, "the program did not end; on the screen:\n{}", self.seen);
            std::thread::sleep(Duration::from_millis(2));
        };
        self.look();
        assert_eq!(modes(&self.screen), self.modes_before, "the terminal's modes should be as before");
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        (code, std::mem::take(&mut self.seen))
    }

    fn look(&mut self) {
        let mut bytes = [0u8; 4096];
        while let Ok(size @ 1..) = self.keyboard.read(&mut bytes) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..size]));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // After a failed expectation; after `end` it is no longer there to be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All modes, as bytes to compare.
fn modes(terminal: &OwnedFd) -> [u8; size_of::<libc::termios>()] {
    let mut modes = [0u8; size_of::<libc::termios>()];
    // SAFETY: termios is plain integers without padding that matters, and the buffer has its size; tcgetattr only writes there.
    let got = unsafe {
        let mut termios = std::mem::MaybeUninit::<libc::termios>::zeroed();
        let got = libc::tcgetattr(terminal.as_raw_fd(), termios.as_mut_ptr());
        std::ptr::copy_nonoverlapping(termios.as_ptr().cast(), modes.as_mut_ptr(), modes.len());
        got
    };
    assert_eq!(got, 0, "tcgetattr: {}", std::io::Error::last_os_error());
    modes
}
