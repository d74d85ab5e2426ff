//! `taskvisor agent`.

use std::path::PathBuf;

use clap::Args;
use vcpu_sched::delegation::policies::named::Spec;

use super::attach::{AttachError, Attached};
use super::{Figures, thread};
use crate::sandbox::{self, Kind, SandboxError};

/// Flags of `agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The socket that was given to taskvisor run --delegate external:SOCKET
    #[arg(long, value_name = "SOCKET")]
    pub attach: PathBuf,
    /// The host CPU that it has; it spins there. Without, it sleeps when there is nothing to do
    #[arg(long, value_name = "CPU")]
    pub cpu: Option<u32>,
    /// At the end, print what it did to stderr
    #[arg(long)]
    pub stats: bool,
    /// What becomes of a system call that it has no business with (docs/security.md)
    #[arg(long, value_name = "MODE", value_enum, default_value = "on")]
    pub seccomp: sandbox::Mode,
    /// Who decides: fifo, percpu, shinjuku[:MICROSECONDS], edf, cores[:BITS], steal or remote[:POLICY]
    #[arg(value_name = "POLICY[:OPTION]")]
    pub policy: Spec,
}

/// Why it ended before the guest did.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The enclave.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// It can't be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Decides until the guest ends; what it did is in `figures` at any time.
///
/// # Errors
/// [`AgentError`].
pub fn run(args: &AgentArgs, figures: &Figures) -> Result<(), AgentError> {
    let attached = Attached::connect(&args.attach)?;
    if let Some(cpu) = args.cpu {
        thread::seat(cpu);
    }
    sandbox::arm(args.seccomp, [])?;
    sandbox::enter(Kind::Attached)?;
    Ok(attached.decide(|region| args.policy.make(region), args.cpu.is_none(), figures)?)
}
