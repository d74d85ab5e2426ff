//! KVM's own means, TSC scaling and offsets, and whether they have any effect on this host.
//!
//! A host may accept both and do nothing. So nothing here is relied on before a guest of a few dozen bytes has read its counter with it in
//! both rings (`host::probe::clock`).

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::{Kvm, VcpuFd};

use super::settings::{ClockSettings, TscMode};
use crate::host::probe::clock::{offset_effect, scaling_effect};

/// _IOW(KVMIO, 0xe1 and 0xe2, struct kvm_device_attr) (linux/kvm.h); on a vCPU, kvm-ioctls has them for arm64 only.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;

/// Why the CPU can't make the counter what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// `--tsc-khz`.
    #[error(
        "--tsc-mode native: this host can't run a guest's TSC at {khz} kHz, measured from inside a guest: {found}; use --tsc-mode virtual"
    )]
    Scaling {
        /// What was asked for.
        khz: u32,
        /// What was seen.
        found: String,
    },
    /// `--tsc-offset`.
    #[error(
        "--tsc-mode native: this host can't offset a guest's TSC, measured from inside a guest: {found}; use --tsc-mode virtual"
    )]
    Offset {
        /// What was seen.
        found: String,
    },
    /// `--tsc-khz` or `--tsc-offset` with a kernel that takes nothing from a clock page.
    #[error("{flag} needs the CPU's help with a kernel that isn't Taskvisor's own, and this host's has none: {found}")]
    ForeignKernel {
        /// Which flag.
        flag: &'static str,
        /// What was seen.
        found: String,
    },
    /// KVM refuses what worked in the measurement.
    #[error("vCPU {vcpu}: {call} failed: {error}")]
    Kvm {
        /// Which vCPU.
        vcpu: usize,
        /// Which call.
        call: &'static str,
        /// The host's answer.
        error: std::io::Error,
    },
}

/// Reads or writes the vCPU's TSC offset, according to `request`.
fn attribute(vcpu: &VcpuFd, request: libc::c_ulong, offset: &mut u64) -> std::io::Result<()> {
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: &raw mut *offset as u64,
    };
    // SAFETY: both requests take a `kvm_device_attr`, and access 8 bytes at its `addr`, which is `offset`.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), request, &raw const attribute) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The offset of the vCPU's counter to the host's that KVM claims.
pub fn offset(vcpu: &VcpuFd) -> std::io::Result<u64> {
    let mut offset = 0;
    attribute(vcpu, KVM_GET_DEVICE_ATTR, &mut offset).map(|()| offset)
}

/// Sets it.
pub fn set_offset(vcpu: &VcpuFd, mut offset: u64) -> std::io::Result<()> {
    attribute(vcpu, KVM_SET_DEVICE_ATTR, &mut offset)
}

/// Whether the CPU shall do what was asked for, after a measurement where there is something to measure. `offsets`: some vCPU's
/// isn't 0. `ours`: the kernel takes its clocks from the clock page.
///
/// # Errors
/// [`NativeError`]: it must and can't.
pub fn decide(kvm: &Kvm, settings: &ClockSettings, offsets: bool, ours: bool) -> Result<bool, NativeError> {
    if settings.mode == TscMode::Virtual && ours {
        return Ok(false);
    }
    if let Some(khz) = settings.tsc_khz
        && let Err(found) = scaling_effect(kvm, khz)
    {
        return match (settings.mode, ours) {
            (TscMode::Native, _) => Err(NativeError::Scaling { khz, found }),
            (_, true) => Ok(false),
            (_, false) => Err(NativeError::ForeignKernel { flag: "--tsc-khz", found }),
        };
    }
    if offsets && let Err(found) = offset_effect(kvm) {
        return match (settings.mode, ours) {
            (TscMode::Native, _) => Err(NativeError::Offset { found }),
            (_, true) => Ok(false),
            (_, false) => Err(NativeError::ForeignKernel { flag: "--tsc-offset", found }),
        };
    }
    Ok(settings.mode == TscMode::Native || settings.tsc_khz.is_some() || offsets)
}

/// Has KVM do it: the same frequency for all vCPUs, and their counters apart by their offsets. No vCPU has run yet.
///
/// # Errors
/// [`NativeError::Kvm`].
pub fn apply(vcpus: &[VcpuFd], khz: Option<u32>, offsets: &[i64]) -> Result<(), NativeError> {
    let failed = |vcpu, call| move |error| NativeError::Kvm { vcpu, call, error };
    if let Some(khz) = khz {
        for (index, vcpu) in vcpus.iter().enumerate() {
            vcpu.set_tsc_khz(khz).map_err(|error| failed(index, "KVM_SET_TSC_KHZ")(error.into()))?;
        }
    }
    let Some(first) = vcpus.first().filter(|_| offsets.iter().any(|nanos| *nanos != 0)) else { return Ok(()) };
    let base = offset(first).map_err(failed(0, "KVM_VCPU_TSC_OFFSET"))?;
    for (index, (vcpu, nanos)) in vcpus.iter().zip(offsets).enumerate() {
        let khz = vcpu.get_tsc_khz().map_err(|error| failed(index, "KVM_GET_TSC_KHZ")(error.into()))?;
        let ticks = i128::from(*nanos) * i128::from(khz) / 1_000_000;
        set_offset(vcpu, base.wrapping_add(ticks as u64)).map_err(failed(index, "KVM_VCPU_TSC_OFFSET"))?;
    }
    Ok(())
}

/// All vCPUs' counters the same, as far as KVM claims: those made more than a second after the first may not be. Returns the
/// first one's offset.
pub fn equalise(vcpus: &[VcpuFd]) -> Option<u64> {
    let base = offset(vcpus.first()?).ok()?;
    for (index, vcpu) in vcpus.iter().enumerate() {
        if offset(vcpu).is_ok_and(|offset| offset != base)
            && let Err(error) = set_offset(vcpu, base)
        {
            log::warn!("vCPU {index}: its TSC can't be made the same as vCPU 0's: {error}");
        }
    }
    Some(base)
}
