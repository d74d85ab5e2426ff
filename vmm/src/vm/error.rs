//! Why a machine can't be built or run, each cause a variant of its own. Raised all over [`super`], printed by `main`.

use std::io;

use kvm_bindings::KVM_API_VERSION;
use taskvisor_devices::bus::BusError;

use super::run_control::RunControlError;
use super::threads::StartError;
use crate::affinity::AffinityError;
use crate::archive::ArchiveError;
use crate::boot::BootError;
use crate::boot::cpuid::CpuidError;
use crate::clock::plan::PlanError;
use crate::console::output::OutputError;
use crate::control::socket::SocketError;
use crate::debug::address::ListenError;
use crate::delegate::DelegationError;
use crate::event_loop::LoopError;
use crate::memory::MemoryError;
use crate::sandbox::SandboxError;
use crate::trace::TraceError;
use crate::vcpu::setup::SetupError;

/// Why a machine can't be built or run.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Filters of system calls.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The clock.
    #[error(transparent)]
    Clock(#[from] PlanError),
    /// No /dev/kvm.
    #[error(
        "there is no /dev/kvm: load its module (modprobe kvm_intel or kvm_amd), switch virtualisation on in the \
         firmware, or pass the device into this container or virtual machine; see: taskvisor doctor"
    )]
    NoKvm,
    /// Not allowed.
    #[error(
        "no permission to open /dev/kvm: join its group (sudo usermod -aG kvm $USER, log in again); see: taskvisor doctor"
    )]
    KvmDenied,
    /// Something else under that name, or a KVM of 2007.
    #[error("/dev/kvm doesn't answer as KVM does (API version {0}, expected {KVM_API_VERSION})")]
    NotKvm(i32),
    /// A KVM call failed.
    #[error("{call} failed: {source}")]
    Kvm {
        /// Which.
        call: &'static str,
        /// The host's answer.
        source: kvm_ioctls::Error,
    },
    /// Too few or too many vCPUs.
    #[error("--vcpus {have}: this host's KVM runs 1 to {max} vCPUs")]
    Vcpus {
        /// What was asked for.
        have: u32,
        /// The most.
        max: u32,
    },
    /// The kernel can't use so many.
    #[error(
        "--vcpus {have}: the guest kernel brings up {max} at most; give --vcpus {max} or less, or another kernel \
         (--kernel)"
    )]
    KernelVcpus {
        /// What was asked for.
        have: u32,
        /// The most.
        max: u32,
    },
    /// Gaps in the numbering of a tree.
    #[error(
        "--topology needs APIC id {id}: this host's KVM takes ids below {limit}; use counts that are powers of two"
    )]
    ApicIds {
        /// The largest id.
        id: u32,
        /// KVM's bound.
        limit: u32,
    },
    /// Where the threads run.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// The vCPU threads.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The control socket.
    #[error("--control {0}")]
    Control(#[from] SocketError),
    /// Who decides for delegated tasks.
    #[error(transparent)]
    Delegation(#[from] DelegationError),
    /// Where debuggers connect.
    #[error(transparent)]
    Gdb(#[from] ListenError),
    /// The vCPUs can't be held.
    #[error(transparent)]
    RunControl(#[from] RunControlError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// CPUID.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// Kernel or boot data.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The archive can't be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// vCPU set-up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The trace's file.
    #[error("can't record a trace: {0}")]
    Trace(#[from] TraceError),
    /// Devices don't fit together; a defect of ours.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The log or a stream.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The event loop.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// Threads, descriptors.
    #[error("{what}: {source}")]
    Host {
        /// What failed.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

pub(super) fn host(what: &'static str) -> impl Fn(io::Error) -> VmError {
    move |source| VmError::Host { what, source }
}

pub(super) fn kvm_call(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { call, source }
}
