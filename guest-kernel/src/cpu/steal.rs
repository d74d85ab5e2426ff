//! Time that the host took from a CPU: it had something to do, and the host ran something else in its place. Shown in /proc/stat
//! and by `--stats`. Whoever waits for a lock asks whether its holder's CPU is away just now (`sync::SpinLock`).
//!
//! KVM adds it up in a record of the guest's whenever it lets a vCPU run again (Linux, Documentation/virt/kvm/x86/msr.rst,
//! MSR_KVM_STEAL_TIME). Where that isn't offered, nothing is known of it and it reads as zero. Invariant: from the moment a record
//! is named to the host, the host alone writes it.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use vcpu_sched::ids::Nanos;

use super::{Cpu, physical};
use crate::arch::instr::{cpuid, wrmsr};

/// KVM's signature, CPUID 0x40000000 EBX, ECX, EDX. Linux, Documentation/virt/kvm/x86/cpuid.rst.
const SIGNATURE: (u32, u32, u32) = (0x4b4d_564b, 0x564b_4d56, 0x0000_004d);
const SIGNATURE_LEAF: u32 = 0x4000_0000;
const FEATURES_LEAF: u32 = 0x4000_0001;
/// KVM_FEATURE_STEAL_TIME: bit 5 of the features' EAX.
const FEATURE: u32 = 1 << 5;
/// MSR_KVM_STEAL_TIME: guest-physical address of the record; bit 0 turns it on.
const MSR: u32 = 0x4b56_4d03;

/// KVM's `struct kvm_steal_time`, which must not lie across a 64-byte boundary.
#[repr(C, align(64))]
pub struct StealRecord {
    nanos: AtomicU64,
    /// Version and flags: of no use here, since the nanoseconds are stored as one word.
    _version: [u32; 2],
    /// [`PREEMPTED`] while the vCPU wants to run and doesn't.
    preempted: AtomicU8,
    _rest: [u8; 47],
}

/// KVM_VCPU_PREEMPTED.
const PREEMPTED: u8 = 1;

const _: () = assert!(size_of::<StealRecord>() == 64);

impl StealRecord {
    /// Nothing was taken yet.
    pub const fn new() -> Self {
        Self { nanos: AtomicU64::new(0), _version: [0; 2], preempted: AtomicU8::new(0), _rest: [0; 47] }
    }

    /// What was taken since the CPU came up.
    pub fn stolen(&self) -> Nanos {
        // Relaxed: a figure.
        Nanos(self.nanos.load(Ordering::Relaxed))
    }

    /// Whether the host runs something else in the CPU's place just now.
    pub fn is_preempted(&self) -> bool {
        // Relaxed: may change the moment after.
        self.preempted.load(Ordering::Relaxed) & PREEMPTED != 0
    }
}

fn offered() -> bool {
    let (most, ebx, ecx, edx) = cpuid(SIGNATURE_LEAF, 0);
    (ebx, ecx, edx) == SIGNATURE && most >= FEATURES_LEAF && cpuid(FEATURES_LEAF, 0).0 & FEATURE != 0
}

/// Names this CPU's record to the host, if that is a KVM that fills it.
pub fn start_this_cpu(cpu: &'static Cpu) {
    if offered() {
        let record = physical(core::ptr::from_ref(&cpu.steal) as u64);
        // SAFETY: the register is there, as CPUID says; the record is 64-byte aligned, lives for ever, and nobody but the host
        // writes it.
        unsafe { wrmsr(MSR, record.0 | 1) };
    }
}
