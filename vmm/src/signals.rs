//! The signals that the VMM handles, as a file descriptor.
//!
//! [`SignalFd::new`] must be called before any thread is spawned, so that all threads inherit the mask and the event
//! loop gets every signal. SIGCHLD and the kick signal are left alone.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};

/// SIGWINCH tells of a new terminal size, the others end the VM.
const SIGNALS: [libc::c_int; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGWINCH];

/// Reads blocked signals; unblocks them when dropped.
#[derive(Debug)]
pub struct SignalFd {
    file: File,
    previous: libc::sigset_t,
}

impl SignalFd {
    /// Blocks the signals in this thread and all that it will spawn.
    pub fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        let mut previous = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set that sigaddset then changes; the signal numbers are constants.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in SIGNALS {
                if !ignored(signal) {
                    libc::sigaddset(set.as_mut_ptr(), signal);
                }
            }
            set.assume_init()
        };
        // SAFETY: `set` is initialised, `previous` is valid for a sigset_t, which the call fills.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, previous.as_mut_ptr()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: `set` is initialised.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is new and owned by nobody else; `previous` was filled by the successful call above.
        unsafe { Ok(Self { file: File::from_raw_fd(fd), previous: previous.assume_init() }) }
    }

    /// The next signal that waits.
    pub fn take(&mut self) -> Option<libc::c_int> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match self.file.read(&mut info) {
            // ssi_signo is the first field (signalfd(2)).
            Ok(n) if n == info.len() => info.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b)),
            _ => None,
        }
    }
}

impl Drop for SignalFd {
    fn drop(&mut self) {
        // SAFETY: `previous` is a set that pthread_sigmask returned.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.previous, std::ptr::null_mut()) };
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether our parent wants this signal to be ignored (nohup, a shell's background jobs).
fn ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null new action only asks; `action` is valid for the answer, which is read only on success.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
