//! What happens when a thread makes a call that its filter forbids: SIGSYS in that thread.
//!
//! Everything here runs in a signal handler, in a thread that may hold any lock: no allocation, no lock that is waited for, and only
//! calls that the filters allow. The thread notes what it did, passes the signal on to the main thread and never runs again; the main
//! thread, wherever it is, cleans up and ends the process.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{ARMED, EXIT_FORBIDDEN, Kind};
use crate::console::terminal;

/// Linux, include/uapi/asm-generic/siginfo.h: a filter raised this.
const SYS_SECCOMP: libc::c_int = 1;
/// siginfo.h: si_syscall, behind three numbers, their padding, and an address.
const SI_SYSCALL: usize = 24;

thread_local! {
    /// What this thread is. Constant initial value, no destructor: safe in a handler. Only the control socket's threads start others
    /// once they are confined.
    static KIND: Cell<Kind> = const { Cell::new(Kind::Control) };
}

/// The first forbidden call: its number, and the kind of thread above it; or [`NONE`].
static FORBIDDEN: AtomicU64 = AtomicU64::new(NONE);
const NONE: u64 = u64::MAX;

/// This thread is of this kind.
pub fn introduce(kind: Kind) {
    KIND.set(kind);
}

/// Installs the handler.
pub fn install() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all-zero is a valid sigaction, whose fields are then set; `on_forbidden` has the signature that SA_SIGINFO asks for
    // and does only what a handler may.
    let result = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = on_forbidden as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSYS, action, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_forbidden(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo_t to a handler with SA_SIGINFO; the field lies inside of it.
    let (code, number) = unsafe { ((*info).si_code, info.byte_add(SI_SYSCALL).cast::<u32>().read()) };
    if code == SYS_SECCOMP {
        let fact = (KIND.get() as u64) << 32 | u64::from(number);
        // Relaxed: the word is all there is to know. The first one is told.
        let _ = FORBIDDEN.compare_exchange(NONE, fact, Ordering::Relaxed, Ordering::Relaxed);
    }
    let main = ARMED.get().map(|armed| armed.main);
    // SAFETY: plain numbers.
    if main.is_none_or(|main| main == unsafe { libc::gettid() }) {
        end();
    }
    loop {
        // SAFETY: plain numbers; a thread of ours, and a call that returns at a signal only.
        unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), main.unwrap_or_default(), libc::SIGSYS);
            libc::pause();
        }
    }
}

/// In the main thread: leaves nothing behind, tells, ends.
fn end() -> ! {
    terminal::restore_in_handler();
    for path in ARMED.get().map(|armed| armed.leftovers.as_slice()).unwrap_or_default() {
        // SAFETY: a string with its end, which lives as long as the process.
        unsafe { libc::unlink(path.as_ptr()) };
    }
    // Relaxed: see above.
    let fact = FORBIDDEN.load(Ordering::Relaxed);
    let mut code = 128 + libc::SIGSYS;
    if fact != NONE {
        code = EXIT_FORBIDDEN.into();
        let mut line = Line::default();
        // A line that is too long is cut.
        let _ = tell(&mut line, fact);
        // SAFETY: the bytes are those of the line. Nothing can be done if nobody reads it.
        unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len) };
    }
    // SAFETY: ends the process; no destructor could run in here.
    unsafe { libc::_exit(code) }
}

fn tell(line: &mut Line, fact: u64) -> fmt::Result {
    let number = fact as u32;
    let kind = Kind::ALL.get((fact >> 32) as usize).map_or("", |kind| kind.name());
    let name = syscalls::Sysno::new(number as usize).map_or("unknown", |call| call.name());
    writeln!(
        line,
        "taskvisor: a {kind} thread was stopped at the system call {name} ({number}), which --seccomp forbids it: an error of \
         taskvisor, or somebody got into it; the guest was ended"
    )
}

/// A line of bounded length, made without memory from anywhere.
struct Line {
    bytes: [u8; 320],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 320], len: 0 }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let taken = room.len().min(text.len());
        for (to, from) in room.iter_mut().zip(text.as_bytes()) {
            *to = *from;
        }
        self.len += taken;
        if taken == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
