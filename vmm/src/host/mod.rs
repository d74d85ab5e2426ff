//! What this host's KVM can do, found by tiny guests and ioctls, never by name.
//!
//! `taskvisor doctor` calls [`examine`] and prints the [`HostReport`]; `taskvisor run` calls [`Quirks::probe_fast`] before
//! each launch and passes the answer to the guest kernel (docs/abi.md, `quirks=`). Nothing is cached on disk: a probe is
//! cheaper than being wrong after a reboot.
//! Invariant: no probe can hang (each run of a test guest has a deadline) and none leaves a trace on the process.

pub mod device;
pub mod probe;
pub mod report;

use std::fmt;

use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

pub use probe::ProbeError;
pub use report::{HostReport, Line, Status, quirks};

/// What the guest kernel must know about its host (docs/abi.md, "Command line", `quirks`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quirks {
    /// SYSCALL from ring 3 does not raise the privilege level.
    pub pf_syscall: bool,
    /// XSAVE is refused in ring 0.
    pub user_xsave: bool,
    /// Ring 0 is interpreted.
    pub slow_ring0: bool,
}

impl Quirks {
    /// Finds the quirks by one tiny guest, in a few milliseconds.
    pub fn probe_fast(kvm: &Kvm) -> Result<Quirks, ProbeError> {
        probe::fast::examine(kvm).map(Quirks::from)
    }

    /// The words for `quirks=`; none on ordinary hosts.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        [(self.pf_syscall, "pf_syscall"), (self.user_xsave, "user_xsave"), (self.slow_ring0, "slow_ring0")]
            .into_iter()
            .filter_map(|(set, word)| set.then_some(word))
    }
}

/// The value of `quirks=`: a comma list, empty if there are none.
impl fmt::Display for Quirks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.words().enumerate() {
            write!(f, "{}{word}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Finds out everything. Takes some hundred milliseconds; never fails: what can't be found out is a line that says so.
pub fn examine() -> HostReport {
    let (mut lines, kvm) = device::examine();
    if let Some(kvm) = kvm {
        lines.extend(probe::isa::examine(&kvm));
        lines.extend(probe::debug::examine(&kvm));
        lines.extend(probe::clock::examine(&kvm));
        lines.extend(probe::timer::examine(&kvm));
    }
    HostReport { lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quirks_are_written_as_the_abi_says() {
        let all = Quirks { pf_syscall: true, user_xsave: true, slow_ring0: true };
        assert_eq!(all.to_string(), "pf_syscall,user_xsave,slow_ring0");
        assert_eq!(Quirks::default().to_string(), "");
    }
}
