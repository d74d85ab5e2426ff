//! The CPUID that each vCPU answers: the host's supported set, with topology, hypervisor and TSC leaves of ours.
//!
//! [`crate::vm`] builds one [`Template`] a VM, and every vCPU thread asks it for its own copy.
//! Sources: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// Leaf 1 ECX bit 21: x2APIC.
const X2APIC: u32 = 1 << 21;
/// Leaf 1 ECX bit 24: TSC-deadline timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX bit 31: running under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX bit 28: the package may hold more than one logical CPU, EBX[23:16] is valid.
const HTT: u32 = 1 << 28;
/// Hypervisor signature "KVMKVMKVM\0\0\0" (cpuid.rst).
const SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// Timing leaf, a convention of several hypervisors: EAX TSC kHz, EBX APIC bus kHz.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// KVM's local APIC timer counts nanoseconds (Linux, arch/x86/kvm/lapic.h: APIC_BUS_CYCLE_NS_DEFAULT = 1).
pub const APIC_BUS_KHZ: u32 = 1_000_000;

/// Leaf 1 ECX bit 13: CMPXCHG16B.
const CMPXCHG16B: u32 = 1 << 13;

/// Leaf 0xB level types (Intel SDM vol. 2A, table 3-8).
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Why no CPUID can be built.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM doesn't tell.
    #[error("KVM_GET_SUPPORTED_CPUID failed: {0}")]
    Supported(kvm_ioctls::Error),
    /// Too many leaves.
    #[error("the CPUID table has more than {KVM_MAX_CPUID_ENTRIES} entries")]
    TooMany,
}

/// How the vCPUs are arranged: one socket of single-threaded cores, until topologies arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Number of vCPUs.
    pub vcpus: u32,
}

impl Topology {
    /// The APIC id of a vCPU; KVM's vCPU id too.
    pub fn apic_id(self, vcpu: u32) -> u32 {
        vcpu
    }

    /// Bits of the APIC id that tell cores of one package apart.
    fn core_bits(self) -> u32 {
        self.vcpus.max(1).next_power_of_two().trailing_zeros()
    }
}

/// The CPUID of every vCPU but for its APIC id.
#[derive(Debug, Clone)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    topology: Topology,
}

impl Template {
    /// Asks KVM what it supports and adapts that.
    pub fn new(kvm: &Kvm, topology: Topology) -> Result<Self, CpuidError> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(CpuidError::Supported)?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self::adapt(supported.as_slice().to_vec(), topology, tsc_deadline))
    }

    /// The pure part of [`Template::new`].
    fn adapt(mut entries: Vec<kvm_cpuid_entry2>, topology: Topology, deadline: bool) -> Self {
        let max_leaf = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
        // Topology leaves are ours alone; the hypervisor's signature may have been left out by KVM.
        entries.retain(|e| !matches!(e.function, 0xb | 0x1f | HYPERVISOR_BASE | HYPERVISOR_TIMING));
        for entry in &mut entries {
            adapt_entry(entry, topology, deadline);
        }
        for function in [0xb, 0x1f].into_iter().filter(|f| *f <= max_leaf) {
            entries.extend(topology_leaf(function, topology));
        }
        let [ebx, ecx, edx] = SIGNATURE;
        entries.push(kvm_cpuid_entry2 {
            function: HYPERVISOR_BASE,
            eax: HYPERVISOR_TIMING,
            ebx,
            ecx,
            edx,
            ..Default::default()
        });
        Self { entries, topology }
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
        let id = self.topology.apic_id(vcpu);
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
                0xb | 0x1f => entry.edx = id,
                // AMD: extended APIC id, and the core id within the package.
                0x8000_001e => {
                    entry.eax = id;
                    entry.ebx = entry.ebx & !0xff | id & 0xff;
                }
                _ => {}
            }
        }
        CpuId::from_entries(&entries).map_err(|_| CpuidError::TooMany)
    }

    /// Width of guest-physical addresses, leaf 0x80000008 EAX[7:0]; 36 when the CPU doesn't tell.
    pub fn address_bits(&self) -> u32 {
        self.entries.iter().find(|e| e.function == 0x8000_0008).map_or(36, |e| e.eax & 0xff)
    }
}

fn adapt_entry(entry: &mut kvm_cpuid_entry2, topology: Topology, deadline: bool) {
    let vcpus = topology.vcpus;
    match entry.function {
        1 => {
            entry.ecx |= HYPERVISOR | X2APIC;
            entry.ecx = if deadline { entry.ecx | TSC_DEADLINE } else { entry.ecx & !TSC_DEADLINE };
            entry.ebx = entry.ebx & !0x00ff_0000 | vcpus.min(255) << 16;
            entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Deterministic caches, while EAX[4:0] names one: cores per package minus one in [31:26], CPUs that share the
        // cache minus one in [25:14]. Levels 1 and 2 belong to a core, level 3 to the package.
        4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { (1 << topology.core_bits()) - 1 } else { 0 };
            let cores = ((1u32 << topology.core_bits()) - 1).min(0x3f);
            entry.eax = entry.eax & 0x3fff | sharing.min(0xfff) << 14 | cores << 26;
        }
        // AMD: ECX[7:0] CPUs per package minus one, [15:12] APIC id bits of a package.
        0x8000_0008 => {
            entry.ecx = entry.ecx & !0xf0ff | (vcpus - 1).min(0xff) | topology.core_bits().min(0xf) << 12;
        }
        _ => {}
    }
}

/// Leaves 0xB and 0x1F: SMT level of one thread, core level, end.
fn topology_leaf(function: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, count, kind| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_SMT), level(1, topology.core_bits(), topology.vcpus, LEVEL_CORE), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, table: &CpuId) -> kvm_cpuid_entry2 {
        *table.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    fn template(vcpus: u32, deadline: bool) -> Template {
        let entry = |function, eax| kvm_cpuid_entry2 { function, eax, ..Default::default() };
        let entries = vec![entry(0, 0x1f), entry(1, 0), entry(4, 0x163), entry(0xb, 7), entry(0x8000_0008, 46)];
        let mut template = Template::adapt(entries, Topology { vcpus }, deadline);
        template.set_tsc_khz(2_596_122);
        template
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id() {
        let template = template(6, false);
        for vcpu in 0..6 {
            let table = template.for_vcpu(vcpu).unwrap();
            assert_eq!(leaf(1, 0, &table).ebx >> 24, vcpu);
            assert_eq!(leaf(1, 0, &table).ebx >> 16 & 0xff, 6);
            for function in [0xb, 0x1f] {
                let core = leaf(function, 1, &table);
                assert_eq!((core.eax, core.ebx, core.ecx >> 8, core.edx), (3, 6, LEVEL_CORE, vcpu));
                assert_eq!(leaf(function, 2, &table).ecx >> 8, 0);
            }
        }
    }

    #[test]
    fn hypervisor_and_timing_leaves() {
        let table = template(1, true).for_vcpu(0).unwrap();
        assert_eq!(leaf(HYPERVISOR_BASE, 0, &table).ebx.to_le_bytes(), *b"KVMK");
        let timing = leaf(HYPERVISOR_TIMING, 0, &table);
        assert_eq!((timing.eax, timing.ebx), (2_596_122, APIC_BUS_KHZ));
        let features = leaf(1, 0, &table).ecx;
        assert_eq!(features & (HYPERVISOR | X2APIC | TSC_DEADLINE), HYPERVISOR | X2APIC | TSC_DEADLINE);
        assert_eq!(template(1, false).for_vcpu(0).map(|t| leaf(1, 0, &t).ecx & TSC_DEADLINE).unwrap(), 0);
    }

    #[test]
    fn leaf_b_is_left_out_where_the_cpu_lacks_it() {
        let entries = vec![kvm_cpuid_entry2 { function: 0, eax: 0xa, ..Default::default() }];
        let table = Template::adapt(entries, Topology { vcpus: 2 }, false).for_vcpu(1).unwrap();
        assert!(table.as_slice().iter().all(|e| !matches!(e.function, 0xb | 0x1f | HYPERVISOR_TIMING)));
    }

    #[test]
    fn address_width_comes_from_the_cpu() {
        assert_eq!(template(1, false).address_bits(), 46);
    }
}
