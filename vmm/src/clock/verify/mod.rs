//! `taskvisor tsc verify`: what was asked of a guest's clocks, what KVM reports, and what a program in the guest measures.
//!
//! The guest is an ordinary one, started by this very binary with the same flags, whose program (resources/programs/clocks.c)
//! answers on its standard streams. Rates are measured against the host's monotonic clock over a window, offsets between vCPUs
//! by two threads that answer each other. Invariant: a figure comes with its uncertainty, and only what lies outside of that is held
//! against the guest.

mod guest;
mod report;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kvm_ioctls::{Kvm, VcpuFd};

use self::guest::Measured;
pub use self::report::{Report, Row};
use super::plan::{GuestKind, Plan, PlanError};
use crate::config::Config;
use crate::config::flags::{FlagsError, GuestFlags, MachineFlags};
use crate::config::units::parse_duration;
use crate::topology::{self, TopologyError};

/// Flags of `tsc verify`: those of `run` that are about the machine, and how it is measured.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The machine, as for run.
    #[command(flatten)]
    pub machine: MachineFlags,
    /// Boot this kernel instead of the built-in one
    #[arg(long, value_name = "ELF")]
    pub kernel: Option<PathBuf>,
    /// How long rates are measured
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2s")]
    pub window: Duration,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The flags.
    #[error(transparent)]
    Flags(#[from] FlagsError),
    /// The arrangement of vCPUs.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// KVM.
    #[error("{call} failed: {error}")]
    Kvm {
        /// Which call.
        call: &'static str,
        /// The host's answer.
        error: kvm_ioctls::Error,
    },
    /// The host can't do what was asked for.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No program.
    #[error("this taskvisor has no measuring program: no C compiler was there when it was built (make setup)")]
    NoProgram,
    /// The guest can't be started.
    #[error("the measuring guest can't be started: {0}")]
    Start(#[source] io::Error),
    /// Its flags as a file.
    #[error("the measuring guest's configuration can't be written: {0}")]
    Config(#[from] toml::ser::Error),
    /// It said something else.
    #[error("the measuring guest ended or doesn't answer (it said {0:?})")]
    Answer(String),
}

/// Exit code when a figure is off.
pub const EXIT_OFF: u8 = 1;

/// Boots the guest and measures.
///
/// # Errors
/// [`VerifyError`]: there is no result.
pub fn verify(args: VerifyArgs) -> Result<Report, VerifyError> {
    let guest = GuestFlags { kernel: args.kernel.clone(), ..GuestFlags::default() };
    let config = Config::new(args.machine.clone(), guest)?;
    let topology = topology::resolve(config.vcpus, config.topology, &config.numa, config.memory)?;
    let plan = plan(&config, topology.vcpus())?;
    let measured = Measured::take(&args.machine, args.kernel.as_deref(), args.window)?;
    Ok(Report::new(plan.facts(), config.clock.rate, plan.offsets(), &measured))
}

/// What the guest will be told, and what KVM reports: by vCPUs of our own that never run.
fn plan(config: &Config, vcpus: u32) -> Result<Plan, VerifyError> {
    let failed = |call| move |error| VerifyError::Kvm { call, error };
    let kvm = Kvm::new().map_err(failed("opening /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    let vcpus: Vec<VcpuFd> = (0..u64::from(vcpus))
        .map(|id| vm.create_vcpu(id).map_err(failed("KVM_CREATE_VCPU")))
        .collect::<Result<_, _>>()?;
    Ok(Plan::make(&kvm, &config.clock, &vcpus, GuestKind { ours: true, chaos_time: false })?)
}
