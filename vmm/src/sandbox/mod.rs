//! What the VMM's own threads may ask of the host: a seccomp filter for each kind of thread, and no new privileges.
//!
//! A guest that took over the VMM would still be in here. [`crate::vm`] calls [`arm`] once, on the main thread and before it makes
//! others; each thread calls [`enter`] when it has opened all it needs and before it touches what a guest, a client or a debugger
//! controls. A filter can't be left again: the process is confined until it ends, so that a library's user who wants to go on after a run leaves
//! [`Mode::Off`]. Threads that a confined thread starts are confined with it.
//!
//! A call that isn't allowed isn't made: the thread waits, and the main thread puts the terminal back, removes the sockets'
//! files, tells who wanted what, and ends the process with [`EXIT_FORBIDDEN`] ([`last_words`]).

pub mod calls;
mod filter;
mod last_words;
#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use schemars::JsonSchema;
use seccompiler::BpfProgram;
use serde::{Deserialize, Serialize};

/// A thread made a system call that its filter forbids.
pub const EXIT_FORBIDDEN: u8 = 122;

/// What becomes of a call that a thread has no business with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It ends the guest, with exit code 122
    On,
    /// Nothing: there are no filters
    #[default]
    Off,
    /// It is made, and told in the host's audit log
    Log,
}

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The event loop.
    Main,
    /// A vCPU.
    Vcpu,
    /// The control socket, and who waits or writes in its name.
    Control,
    /// The debugger's server.
    Gdb,
    /// The writer of `--trace`.
    Trace,
    /// `--chaos`.
    Chaos,
    /// `--delegate POLICY`.
    Agent,
    /// `--delegate external:SOCKET`.
    Door,
    /// `taskvisor agent`, a process.
    Attached,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Main,
        Kind::Vcpu,
        Kind::Control,
        Kind::Gdb,
        Kind::Trace,
        Kind::Chaos,
        Kind::Agent,
        Kind::Door,
        Kind::Attached,
    ];

    const fn name(self) -> &'static str {
        match self {
            Kind::Main => "main",
            Kind::Vcpu => "vCPU",
            Kind::Control => "control",
            Kind::Gdb => "gdb",
            Kind::Trace => "trace",
            Kind::Chaos => "chaos",
            Kind::Agent => "agent",
            Kind::Door => "door",
            Kind::Attached => "attached agent",
        }
    }
}

/// Why a thread can't be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel has no seccomp, or something around us forbids it.
    #[error("--seccomp: this host can't filter system calls ({0}); give --seccomp off to run without")]
    Refused(#[from] seccompiler::Error),
    /// The table is wrong.
    #[error("--seccomp: {0}")]
    Table(#[from] seccompiler::BackendError),
    /// The handler or the privileges.
    #[error("--seccomp: {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Set once in a process: filters belong to it until it ends.
static ARMED: OnceLock<Armed> = OnceLock::new();

#[derive(Debug)]
struct Armed {
    /// In the order of [`Kind::ALL`].
    programs: Vec<BpfProgram>,
    /// Who tells and ends.
    main: i32,
    /// Files that must not outlive the process.
    leftovers: Vec<CString>,
}

/// Makes the filters, and takes the chance to get new privileges from this thread and those that it will make.
/// `leftovers`: sockets' files, which are removed if a forbidden call ends the process. A second call in one process changes nothing.
///
/// # Errors
/// [`SandboxError`]: the host.
pub fn arm<'a>(mode: Mode, leftovers: impl IntoIterator<Item = &'a Path>) -> Result<(), SandboxError> {
    if mode == Mode::Off || ARMED.get().is_some() {
        return Ok(());
    }
    let programs = Kind::ALL.map(|kind| filter::program(kind, mode)).into_iter().collect::<Result<_, _>>()?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| SandboxError::System { what: "can't give up new privileges", source: error.into() })?;
    one_heap();
    last_words::install().map_err(|source| SandboxError::System { what: "can't handle SIGSYS", source })?;
    let leftovers = leftovers.into_iter().filter_map(|path| CString::new(path.as_os_str().as_bytes()).ok()).collect();
    let main = rustix::thread::gettid().as_raw_nonzero().get();
    // Somebody else of this process may have been faster: his is as good.
    let _ = ARMED.set(Armed { programs, main, leftovers });
    Ok(())
}

/// glibc opens a file of /proc before it gives back a part of a thread's own heap (malloc/arena.c, `check_may_shrink_heap`); a
/// confined thread may not. With one heap for all there is none of a thread's own.
fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt sets a number of the allocator's, under its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Confines the calling thread for the rest of its life; nothing if [`arm`] wasn't called, or with [`Mode::Off`].
///
/// # Errors
/// [`SandboxError::Refused`]: the thread isn't confined and must not go on.
pub fn enter(kind: Kind) -> Result<(), SandboxError> {
    let Some(armed) = ARMED.get() else { return Ok(()) };
    last_words::introduce(kind);
    // One for each kind, in this order: see `arm`.
    let Some(program) = armed.programs.get(kind as usize) else { return Ok(()) };
    Ok(seccompiler::apply_filter(program)?)
}
