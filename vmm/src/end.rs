//! How a VM ended, and the exit code that the process gets for it (docs/abi.md, design.md "Exit code").
//!
//! Made by [`crate::event_loop`], turned into a message and an exit code by the binary.

use std::time::Duration;

use taskvisor_devices::debug_exit::GuestExit;
use taskvisor_devices::reset::ResetSource;

use crate::vcpu::run_loop::Failure;

/// An error of the VMM itself, or an end that says nothing about the program.
pub const EXIT_VMM: u8 = 125;
/// The program was found but can't be run.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
pub const EXIT_NOT_FOUND: u8 = 127;
/// `--timeout` was over.
pub const EXIT_TIMEOUT: u8 = 124;
/// The guest kernel panicked.
pub const EXIT_PANIC: u8 = 123;

/// Why the VM ended.
#[derive(Debug)]
pub enum End {
    /// The guest said so through the debug-exit port.
    Guest(GuestExit),
    /// The guest reset itself; the ordinary way out of a foreign kernel.
    Reset {
        /// Through which port.
        source: ResetSource,
        /// Our own kernel never resets.
        ours: bool,
    },
    /// `--timeout`.
    Timeout(Duration),
    /// A signal to the VMM.
    Signal(i32),
    /// Ctrl-A x.
    UserQuit,
    /// A vCPU can't go on.
    Failed(Box<Failure>),
    /// Every vCPU thread ended without a reason; a defect of ours.
    VcpusGone,
}

impl End {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            End::Guest(exit) => exit.process_exit_code(),
            End::Reset { ours: false, .. } => 0,
            End::Timeout(_) => EXIT_TIMEOUT,
            // Signal numbers are below 65, so this doesn't wrap.
            End::Signal(signal) => 128 + *signal as u8,
            End::Reset { ours: true, .. } | End::UserQuit | End::Failed(_) | End::VcpusGone => EXIT_VMM,
        }
    }

    /// One line for the user, where the exit code alone would puzzle. [`End::Failed`] has a report of its own.
    pub fn message(&self) -> Option<String> {
        match self {
            End::Guest(GuestExit::Panicked(_)) => {
                Some("the guest kernel panicked (its log says why; see --log)".into())
            }
            End::Guest(GuestExit::Unknown(value)) => {
                Some(format!("the guest ended with {value:#x}, which docs/abi.md doesn't define"))
            }
            End::Guest(_) | End::Reset { ours: false, .. } | End::Signal(_) | End::Failed(_) => None,
            End::Reset { source, ours: true } => Some(format!("the guest kernel reset itself ({source:?})")),
            End::Timeout(limit) => Some(format!("the guest didn't end within {limit:?} (--timeout)")),
            End::UserQuit => Some("ended by Ctrl-A x".into()),
            End::VcpusGone => Some("all vCPU threads have ended unexpectedly".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_design() {
        for (end, code) in [
            (End::Guest(GuestExit::Exited(3)), 3),
            (End::Guest(GuestExit::Signalled(11)), 139),
            (End::Guest(GuestExit::Panicked(0)), EXIT_PANIC),
            (End::Guest(GuestExit::NotStarted(127)), EXIT_NOT_FOUND),
            (End::Reset { source: ResetSource::I8042, ours: false }, 0),
            (End::Reset { source: ResetSource::I8042, ours: true }, EXIT_VMM),
            (End::Timeout(Duration::from_secs(1)), EXIT_TIMEOUT),
            (End::Signal(libc::SIGTERM), 143),
            (End::UserQuit, EXIT_VMM),
        ] {
            assert_eq!(end.exit_code(), code, "{end:?}");
        }
    }
}
