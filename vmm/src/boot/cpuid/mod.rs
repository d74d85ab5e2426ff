//! The CPUID that each vCPU answers: the host's supported set, cut to the CPU model, with topology, hypervisor and TSC leaves
//! of ours.
//!
//! [`crate::vm`] builds one [`Template`] a VM, and every vCPU gets its own copy of it.
//! Sources: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst.

pub mod features;
pub mod levels;
pub mod model;

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use self::levels::Cache;
use self::model::{Model, ModelError, Native};
use crate::topology::Topology;

/// Leaf 1 ECX bit 21: x2APIC.
const X2APIC: u32 = 1 << 21;
/// Leaf 1 ECX bit 24: TSC-deadline timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX bit 31: running under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Hypervisor signature "KVMKVMKVM\0\0\0" (cpuid.rst).
const SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// Timing leaf, a convention of several hypervisors: EAX TSC kHz, EBX APIC bus kHz.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// KVM's local APIC timer counts nanoseconds (Linux, arch/x86/kvm/lapic.h: APIC_BUS_CYCLE_NS_DEFAULT = 1).
pub const APIC_BUS_KHZ: u32 = 1_000_000;

/// Leaf 1 ECX bit 13: CMPXCHG16B.
const CMPXCHG16B: u32 = 1 << 13;

/// Why no CPUID can be built.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM doesn't tell.
    #[error("KVM_GET_SUPPORTED_CPUID failed: {0}")]
    Supported(kvm_ioctls::Error),
    /// Too many leaves.
    #[error("the CPUID table has more than {KVM_MAX_CPUID_ENTRIES} entries")]
    TooMany,
    /// `--cpu`.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Leaves of the brand string (Intel SDM vol. 2A, CPUID, "Processor Brand String").
const BRAND: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;

/// Some KVMs leave the brand string empty; then it is the host's.
fn name(entries: &mut [kvm_cpuid_entry2]) {
    if __cpuid(0x8000_0000).eax < *BRAND.end() {
        return;
    }
    for entry in entries.iter_mut().filter(|e| BRAND.contains(&e.function)) {
        if [entry.eax, entry.ebx, entry.ecx, entry.edx] == [0; 4] {
            let host = __cpuid(entry.function);
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (host.eax, host.ebx, host.ecx, host.edx);
        }
    }
}

/// The CPUID of every vCPU but for its APIC id.
#[derive(Debug, Clone)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    topology: Topology,
}

impl Template {
    /// Asks KVM what it supports and adapts that. `native` is what programs can use beside, on hosts where they see the
    /// host's own CPUID.
    pub fn new(kvm: &Kvm, topology: &Topology, model: &Model, native: Option<&Native>) -> Result<Self, CpuidError> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(CpuidError::Supported)?;
        let mut entries = supported.as_slice().to_vec();
        model.apply(&mut entries, native)?;
        name(&mut entries);
        Ok(Self::adapt(entries, topology, kvm.check_extension(Cap::TscDeadlineTimer)))
    }

    /// The pure part of [`Template::new`].
    fn adapt(mut entries: Vec<kvm_cpuid_entry2>, topology: &Topology, deadline: bool) -> Self {
        // The hypervisor's signature may have been left out by KVM.
        entries.retain(|e| !matches!(e.function, HYPERVISOR_BASE | HYPERVISOR_TIMING));
        for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx |= HYPERVISOR | X2APIC;
            entry.ecx = if deadline { entry.ecx | TSC_DEADLINE } else { entry.ecx & !TSC_DEADLINE };
        }
        levels::write(&mut entries, topology);
        let [ebx, ecx, edx] = SIGNATURE;
        entries.push(kvm_cpuid_entry2 {
            function: HYPERVISOR_BASE,
            eax: HYPERVISOR_TIMING,
            ebx,
            ecx,
            edx,
            ..Default::default()
        });
        Self { entries, topology: topology.clone() }
    }

    /// Adds the timing leaf; the frequency is known once a vCPU exists.
    pub fn set_tsc_khz(&mut self, khz: u32) {
        self.entries.push(kvm_cpuid_entry2 {
            function: HYPERVISOR_TIMING,
            eax: khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }

    /// Hides CMPXCHG16B, for foreign kernels on a host that interprets ring 0 and refuses it there (`taskvisor doctor`):
    /// Linux' allocator uses it as soon as CPUID offers it. It is the only such instruction that KVM lists as supported;
    /// of the others, ring 0 sees the host's own bits there, whatever is set.
    pub fn hide_cmpxchg16b(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx &= !CMPXCHG16B;
        }
    }

    /// The table for one vCPU.
    pub fn for_vcpu(&self, vcpu: u32) -> Result<CpuId, CpuidError> {
        let mut entries = self.entries.clone();
        levels::personalise(&mut entries, &self.topology, vcpu);
        CpuId::from_entries(&entries).map_err(|_| CpuidError::TooMany)
    }

    /// The caches of this CPU, for the PPTT.
    pub fn caches(&self) -> Vec<Cache> {
        levels::caches(&self.entries)
    }

    /// Width of guest-physical addresses, leaf 0x80000008 EAX[7:0]; 36 when the CPU doesn't tell.
    pub fn address_bits(&self) -> u32 {
        self.entries.iter().find(|e| e.function == 0x8000_0008).map_or(36, |e| e.eax & 0xff)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::topology::Shape;

    fn leaf(function: u32, index: u32, table: &CpuId) -> kvm_cpuid_entry2 {
        *table.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    /// A table with caches in both vendors' leaves, as no real CPU has it.
    pub fn template(topology: &Topology, deadline: bool) -> Template {
        let entry = |function, index, eax| kvm_cpuid_entry2 { function, index, eax, ..Default::default() };
        let mut entries = vec![
            entry(0, 0, 0x1c),
            entry(1, 0, 0),
            entry(0xb, 0, 7),
            entry(0x8000_0000, 0, 0x8000_0021),
            entry(0x8000_0008, 0, 46),
            entry(0x8000_001e, 0, 0),
        ];
        for function in [4, 0x8000_001d] {
            // L1d, L1i, L2 of 1 MiB, L3 of 32 MiB; end.
            for (index, eax, sets) in [(0, 0x121, 63), (1, 0x122, 63), (2, 0x143, 2047), (3, 0x163, 32767), (4, 0, 0)] {
                let ebx = if index == 3 { 15 << 22 | 63 } else { 7 << 22 | 63 };
                entries.push(kvm_cpuid_entry2 { ebx, ecx: sets, ..entry(function, index, eax) });
            }
        }
        let mut template = Template::adapt(entries, topology, deadline);
        template.set_tsc_khz(2_596_122);
        template
    }

    fn flat(vcpus: u32) -> Topology {
        Topology::new(Shape::flat(vcpus)).unwrap()
    }

    #[test]
    fn hypervisor_and_timing_leaves() {
        let table = template(&flat(1), true).for_vcpu(0).unwrap();
        assert_eq!(leaf(HYPERVISOR_BASE, 0, &table).ebx.to_le_bytes(), *b"KVMK");
        let timing = leaf(HYPERVISOR_TIMING, 0, &table);
        assert_eq!((timing.eax, timing.ebx), (2_596_122, APIC_BUS_KHZ));
        let features = leaf(1, 0, &table).ecx;
        assert_eq!(features & (HYPERVISOR | X2APIC | TSC_DEADLINE), HYPERVISOR | X2APIC | TSC_DEADLINE);
        assert_eq!(template(&flat(1), false).for_vcpu(0).map(|t| leaf(1, 0, &t).ecx & TSC_DEADLINE).unwrap(), 0);
    }

    #[test]
    fn leaf_b_is_left_out_where_the_cpu_lacks_it() {
        let entries = vec![kvm_cpuid_entry2 { function: 0, eax: 0xa, ..Default::default() }];
        let table = Template::adapt(entries, &flat(2), false).for_vcpu(1).unwrap();
        assert!(table.as_slice().iter().all(|e| !matches!(e.function, 0xb | 0x1f | HYPERVISOR_TIMING)));
    }

    #[test]
    fn a_brand_that_kvm_gives_is_kept_and_a_missing_one_is_the_host_s() {
        let leaf = |function, eax| kvm_cpuid_entry2 { function, eax, ..Default::default() };
        let mut entries = [leaf(0x8000_0002, 0), leaf(0x8000_0003, 7), leaf(1, 0)];
        name(&mut entries);
        assert_eq!((entries[0].eax, entries[1].eax, entries[2].eax), (__cpuid(0x8000_0002).eax, 7, 0));
    }

    #[test]
    fn address_width_comes_from_the_cpu() {
        assert_eq!(template(&flat(1), false).address_bits(), 46);
    }
}
