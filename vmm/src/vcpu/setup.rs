//! Brings a fresh vCPU into the state in which its guest expects it: CPUID, MSRs, local APIC, registers.
//!
//! [`crate::vm`] calls [`configure`] for every vCPU before its thread starts. Application processors are left as KVM
//! made them: waiting for INIT and SIPI.

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, Msrs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::boot::cpuid::{CpuidError, Template};
use crate::boot::kernel::Entry;
use crate::boot::regs;

/// IA32_MISC_ENABLE (Intel SDM vol. 4), bit 0: fast strings.
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// IA32_MTRR_DEF_TYPE (Intel SDM vol. 3A, 12.11.2.1): bit 11 MTRRs on, type 6 write-back.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;
/// Local APIC register offsets (Intel SDM vol. 3A, table 11-1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery modes in LVT bits [10:8]: NMI and ExtINT (Intel SDM vol. 3A, 11.5.1).
const MODE_NMI: u32 = 4 << 8;
const MODE_EXTINT: u32 = 7 << 8;
/// x87 control word after FINIT, MXCSR after reset (Intel SDM vol. 1, 8.1.5 and 10.2.3).
const FCW: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// Why a vCPU can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A KVM call failed.
    #[error("vCPU {vcpu}: {call} failed: {source}")]
    Kvm {
        /// Which vCPU.
        vcpu: u32,
        /// Which call.
        call: &'static str,
        /// The host's answer.
        source: kvm_ioctls::Error,
    },
    /// No CPUID.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
}

/// How the first vCPU enters the guest.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The kernel's entry.
    pub entry: &'a Entry,
    /// Address of the boot protocol's data.
    pub boot_data: u64,
}

/// Sets up vCPU `vcpu`; `start` is given for the first one only.
pub fn configure(fd: &VcpuFd, vcpu: u32, cpuid: &Template, start: Option<Start<'_>>) -> Result<(), SetupError> {
    let failed = |call| move |source| SetupError::Kvm { vcpu, call, source };

    fd.set_cpuid2(&cpuid.for_vcpu(vcpu)?).map_err(failed("KVM_SET_CPUID2"))?;
    set_msr(fd, vcpu, MSR_MISC_ENABLE, 1);
    set_msr(fd, vcpu, MSR_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK);
    fd.set_fpu(&kvm_fpu { fcw: FCW, mxcsr: MXCSR, ..Default::default() }).map_err(failed("KVM_SET_FPU"))?;

    let mut lapic = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    set_lapic_register(&mut lapic, LVT_LINT0, MODE_EXTINT);
    set_lapic_register(&mut lapic, LVT_LINT1, MODE_NMI);
    fd.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))?;

    if let Some(start) = start {
        let sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let (regs, sregs) = regs::entry(start.entry, start.boot_data, sregs);
        fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
        fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).map_err(failed("KVM_SET_MP_STATE"))?;
    }
    Ok(())
}

/// Sets an MSR that guests can do without: a host that refuses it is only logged.
fn set_msr(fd: &VcpuFd, vcpu: u32, index: u32, data: u64) {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    let done = Msrs::from_entries(&[entry]).ok().and_then(|msrs| fd.set_msrs(&msrs).ok());
    if done != Some(1) {
        log::debug!("vCPU {vcpu}: the host refuses MSR {index:#x}");
    }
}

fn set_lapic_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
        *register = byte as _;
    }
}
