//! Tiny guests that find out what a KVM does, instead of asking what it is.
//!
//! [`guest::TinyGuest`] is a one-vCPU machine of 256 KiB that starts in long mode on a few instructions of
//! [`code`]; each run has a deadline ([`deadline`]). The modules beside them each answer one group of questions.
//! Called by `taskvisor doctor` (all of it) and by `run` ([`fast`] only). Invariant: nothing here looks at a name: no
//! module, no CPU vendor, no kernel version; only effects count, since a host may accept a request and do nothing.

pub mod clock;
pub mod code;
pub mod deadline;
pub mod debug;
pub mod fast;
pub mod guest;
pub mod isa;
pub mod timer;

#[cfg(test)]
mod tests;

/// Why a probe gave no answer. "The host can't do it" is an answer, not an error.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// KVM refused a call that every probe needs.
    #[error("{call}: {error}")]
    Kvm {
        /// The call, as the KVM API names it.
        call: &'static str,
        /// What it returned.
        error: kvm_ioctls::Error,
    },
    /// The host refused memory or a timer.
    #[error("{call}: {error}")]
    Host {
        /// The call.
        call: &'static str,
        /// What it returned.
        error: std::io::Error,
    },
    /// The tiny guest ended in a way that the probe doesn't know.
    #[error("{probe}: the test guest ended with {stop} {state}")]
    Unexpected {
        /// Which probe.
        probe: &'static str,
        /// How it ended.
        stop: guest::Stop,
        /// What it had reached.
        state: String,
    },
}

impl ProbeError {
    /// For `map_err` on kvm-ioctls calls.
    pub(super) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ProbeError {
        move |error| ProbeError::Kvm { call, error }
    }
}
