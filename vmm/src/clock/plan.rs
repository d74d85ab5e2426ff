//! From what a user asks to a clock: before the machine runs.
//!
//! [`crate::vm`] makes a [`Plan`] once the vCPUs exist, tells the guest what it says, and makes the [`Clock`] of it.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vcpu_sched::clock::StepError;
use vcpu_sched::clock::line::scale;
use vcpu_sched::ids::Khz;

use super::interrupt::Interrupts;
use super::native::{self, NativeError};
use super::settings::{ClockSettings, OffsetError};
use super::{Clock, Facts, Rate};
use crate::memory::Ram;
use crate::topology::Topology;
use crate::vm::run_control::RunControl;

/// Why a guest can't have such a clock.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// `--tsc-offset`.
    #[error(transparent)]
    Offset(#[from] OffsetError),
    /// The CPU must do it and can't.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// `--clock-rate`.
    #[error("--clock-rate: {0}")]
    Rate(#[from] StepError),
    /// `--clock-rate` with another kernel.
    #[error("--clock-rate needs Taskvisor's own kernel: others take no time from its clock page")]
    ForeignKernel,
    /// `--clock-rate` and its kin with virtual time of another kind.
    #[error("{flag} and --chaos on one vCPU don't go together: time is the chaos's there")]
    Chaos {
        /// Which flag.
        flag: &'static str,
    },
    /// `--tsc-khz` where KVM doesn't say what the counter's own frequency is.
    #[error("--tsc-khz: this host's KVM doesn't tell the frequency of its TSC (KVM_GET_TSC_KHZ)")]
    Unknown,
}

/// See the module's text.
#[derive(Debug)]
pub struct Plan {
    facts: Facts,
    rate: Rate,
    offsets: Vec<i64>,
}

/// What the kernel is like, as far as clocks go.
#[derive(Debug, Clone, Copy)]
pub struct GuestKind {
    /// Taskvisor's own.
    pub ours: bool,
    /// Its time is made by `--chaos`.
    pub chaos_time: bool,
}

impl Plan {
    /// Measures what must be measured, and has KVM do what is KVM's to do. No vCPU has run yet.
    ///
    /// # Errors
    /// [`PlanError`]: the guest would not get what was asked for.
    pub fn make(
        kvm: &Kvm,
        settings: &ClockSettings,
        vcpus: &[VcpuFd],
        GuestKind { ours, chaos_time }: GuestKind,
    ) -> Result<Self, PlanError> {
        let offsets = settings.offsets.by_vcpu(vcpus.len() as u32)?;
        let skewed = offsets.iter().any(|nanos| *nanos != 0);
        let asked = [
            (settings.tsc_khz.is_some(), "--tsc-khz"),
            (skewed, "--tsc-offset"),
            (settings.rate != Rate::REAL, "--clock-rate"),
        ];
        if let Some((_, flag)) = asked.into_iter().find(|(asked, _)| *asked && chaos_time) {
            return Err(PlanError::Chaos { flag });
        }
        if settings.rate != Rate::REAL && !ours {
            return Err(PlanError::ForeignKernel);
        }
        let reported = || vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()).unwrap_or(0);
        let host_khz = reported();
        let native = native::decide(kvm, settings, skewed, ours)?;
        let mut claimed_offset = native::equalise(vcpus);
        if native {
            native::apply(vcpus, settings.tsc_khz, &offsets)?;
            claimed_offset = vcpus.first().and_then(|vcpu| native::offset(vcpu).ok());
        }
        let counter_khz = reported();
        if counter_khz == 0 && settings.tsc_khz.is_some() {
            return Err(PlanError::Unknown);
        }
        if counter_khz != 0 {
            scale(Khz(counter_khz), settings.rate)?;
        }
        let facts = Facts {
            native,
            asked_khz: settings.tsc_khz,
            told_khz: settings.tsc_khz.unwrap_or(counter_khz),
            counter_khz,
            host_khz,
            claimed_offset,
            on_pause: settings.on_pause,
        };
        Ok(Self { facts, rate: settings.rate, offsets })
    }

    /// What it comes to.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// By how many nanoseconds each vCPU's clock shall be ahead.
    pub fn offsets(&self) -> &[i64] {
        &self.offsets
    }

    /// The frequency that the guest is told, for CPUID; 0: unknown.
    pub fn told_khz(&self) -> u32 {
        self.facts.told_khz
    }

    /// The frequency of the guest's counter; 0: unknown.
    pub fn counter_khz(&self) -> u32 {
        self.facts.counter_khz
    }

    /// What our kernel must know before it shows its clock page, for its command line (docs/abi.md).
    pub fn kernel_key(&self) -> Option<String> {
        let Facts { told_khz, counter_khz, .. } = self.facts;
        (told_khz != counter_khz && counter_khz != 0).then(|| format!("tsc_counter_khz={counter_khz}"))
    }

    /// The clock of a machine.
    pub fn start(self, ram: Ram, run: &RunControl, vm: Arc<VmFd>, topology: &Topology) -> Clock {
        let apic_ids = (0..self.offsets.len() as u32).map(|vcpu| topology.apic_id(vcpu)).collect();
        let clock =
            Clock::new(self.facts, self.rate, self.offsets, ram, run.clone(), Interrupts::through(vm, apic_ids));
        run.listen(Box::new(clock.clone()));
        clock
    }
}
