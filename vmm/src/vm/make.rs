//! KVM's part of a machine: the VM with its memory, interrupt controllers and vCPUs, after a look at what this host's
//! KVM can. Called by [`super::Vm::build`] alone. Invariant: nothing here runs an instruction of the guest; the probes
//! run guests of their own.

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_X2APIC_API, KVM_PIT_SPEAKER_DUMMY, KVMIO, kvm_enable_cap, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::ioctl::ioctl_with_val;

use super::Options;
use super::error::{VmError, host, kvm_call};
use crate::boot::cpuid::model::{Model, Native};
use crate::boot::{BootError, layout};
use crate::delegate::memory::{self as enclave, Memory};
use crate::guest::Guest;
use crate::host::Quirks;
use crate::host::probe::isa::rings_that_see_our_cpuid;
use crate::memory::{self, Ram};
use crate::topology::Topology;

/// The last id of an 8-bit APIC; 255 is the broadcast (Intel SDM vol. 3A, 11.6.1).
const MAX_XAPIC_ID: u32 = 254;

/// VM, memory with that of an enclave if one is wanted, irqchip, vCPUs. Memory comes first: a slot that is added once vCPUs or an irqchip exist waits for a
/// grace period of the kernel's SRCU, some 6 ms, instead of 0.1 ms.
pub(super) fn machine(
    kvm: &Kvm,
    guest: &Guest,
    options: &Options,
    address_bits: u32,
) -> Result<(VmFd, Ram, Option<Memory>, Vec<VcpuFd>), VmError> {
    let ram = memory::allocate(options.memory, address_bits)?;
    let (enclave, ram) = if options.delegate.is_some() && guest.is_ours() {
        let (enclave, ram) = enclave::make(options.vcpus, &ram).map_err(host("can't make the enclave's memory"))?;
        (Some(enclave), ram)
    } else {
        (None, ram)
    };
    let fd = kvm.create_vm().map_err(kvm_call("KVM_CREATE_VM"))?;
    register_memory(&fd, &ram)?;
    allow_shadow_pages(&fd, options);
    create_irqchip(&fd, &options.topology, guest.is_ours())?;
    let vcpus = (0..options.vcpus)
        .map(|id| fd.create_vcpu(options.topology.apic_id(id).into()).map_err(kvm_call("KVM_CREATE_VCPU")))
        .collect::<Result<_, _>>()?;
    Ok((fd, ram, enclave, vcpus))
}

/// What this host's KVM does differently, found by trying.
pub(super) fn probe(kvm: &Kvm) -> Quirks {
    Quirks::probe_fast(kvm).unwrap_or_else(|error| {
        log::warn!("can't find out how this host's KVM differs, taken as ordinary: {error}");
        Quirks::default()
    })
}

pub(super) fn open_kvm() -> Result<Kvm, VmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => VmError::NoKvm,
        libc::EACCES | libc::EPERM => VmError::KvmDenied,
        _ => VmError::Kvm { call: "opening /dev/kvm", source: error },
    })?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => Ok(kvm),
        version => Err(VmError::NotKvm(version)),
    }
}

/// APIC ids are KVM's vCPU ids, and those have a bound of their own: a tree with gaps may exceed it.
pub(super) fn check_ids(kvm: &Kvm, topology: &Topology) -> Result<(), VmError> {
    let (id, limit) = (topology.max_apic_id(), kvm.get_max_vcpu_id() as u32);
    if id < limit { Ok(()) } else { Err(VmError::ApicIds { id, limit }) }
}

/// What programs see of the host's own CPUID, which matters only to a CPU model other than the host's.
pub(super) fn native(kvm: &Kvm, model: &Model) -> Option<Native> {
    if *model == Model::default() {
        return None;
    }
    match rings_that_see_our_cpuid(kvm) {
        Ok([_, ring3]) => (!ring3).then(Native::read),
        Err(error) => {
            log::warn!("can't find out whether programs see the CPUID that is set, taken as yes: {error}");
            None
        }
    }
}

pub(super) fn check_vcpus(kvm: &Kvm, have: u32) -> Result<(), VmError> {
    let max = kvm.get_max_vcpus() as u32;
    if (1..=max).contains(&have) { Ok(()) } else { Err(VmError::Vcpus { have, max }) }
}

/// PIC, IOAPIC and local APICs in the kernel; a PIT only for foreign kernels, which may calibrate with it.
fn create_irqchip(fd: &VmFd, topology: &Topology, ours: bool) -> Result<(), VmError> {
    fd.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm_call("KVM_SET_IDENTITY_MAP_ADDR"))?;
    fd.set_tss_address(layout::KVM_TSS).map_err(kvm_call("KVM_SET_TSS_ADDR"))?;
    fd.create_irq_chip().map_err(kvm_call("KVM_CREATE_IRQCHIP"))?;
    if !ours {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(config).map_err(kvm_call("KVM_CREATE_PIT2"))?;
    }
    if topology.max_apic_id() > MAX_XAPIC_ID {
        // 32-bit ids in MSIs and IPIs, no broadcast at 255 (Linux, Documentation/virt/kvm/api.rst, 7.8).
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
        cap.args[0] = 0b11;
        fd.enable_cap(&cap).map_err(kvm_call("KVM_CAP_X2APIC_API"))?;
    }
    Ok(())
}

/// Pages that KVM may shadow the guest's page tables with, where it does that: it takes a fiftieth of the guest's memory (Linux,
/// arch/x86/include/asm/kvm_host.h: KVM_PERMILLE_MMU_PAGES), of which many vCPUs with little memory each hold too much, and KVM_RUN fails
/// with ENOSPC.
const DEFAULT_SHADOW_PERMILLE: u64 = 20;
/// What one vCPU holds at a time: four levels of tables for what it runs, and as much again for its kernel, its stacks and the image.
const SHADOW_PAGES_PER_VCPU: u64 = 16;
/// KVM_MIN_ALLOC_MMU_PAGES, of the same file.
const MIN_SHADOW_PAGES: u64 = 64;

vmm_sys_util::ioctl_io_nr!(KVM_SET_NR_MMU_PAGES, KVMIO, 0x44);

/// Raises that limit where the default is too low for so many vCPUs.
fn allow_shadow_pages(fd: &VmFd, options: &Options) {
    let default = options.memory / memory::PAGE_SIZE * DEFAULT_SHADOW_PERMILLE / 1000;
    let wanted = MIN_SHADOW_PAGES + SHADOW_PAGES_PER_VCPU * u64::from(options.vcpus);
    if wanted <= default {
        return;
    }
    // SAFETY: a number is passed, no pointer.
    if unsafe { ioctl_with_val(fd, KVM_SET_NR_MMU_PAGES(), wanted) } != 0 {
        // A KVM without it has no such limit, or says at KVM_RUN that it is too low.
        log::debug!("KVM_SET_NR_MMU_PAGES {wanted}: {}", std::io::Error::last_os_error());
    }
}

fn register_memory(fd: &VmFd, ram: &Ram) -> Result<(), VmError> {
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let address = region.get_host_address(MemoryRegionAddress(0)).map_err(BootError::from)?;
        let memory = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: address as u64,
        };
        // SAFETY: the range is a live mapping of exactly this length, kept by `ram`, of which the machine and each
        // vCPU hold a reference; slots don't overlap.
        unsafe { fd.set_user_memory_region(memory) }.map_err(kvm_call("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}
