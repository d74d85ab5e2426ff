//! What this CPU can do, read once on the boot CPU, and what the VMM's probe says it can't (quirks on the command line).
//!
//! Written during single-CPU boot, read-only afterwards.

use core::sync::atomic::{AtomicU32, Ordering};

use super::instr::{cpuid, read_cr4, write_cr4};

bitflags::bitflags! {
    /// CPU features and host quirks that change what the kernel does.
    #[derive(Clone, Copy, Debug)]
    pub struct Features: u32 {
        /// CR4.SMEP (CPUID 7.0 EBX bit 7).
        const SMEP = 1 << 0;
        /// CR4.SMAP (CPUID 7.0 EBX bit 20), used only where `stac` and `clac` run.
        const SMAP = 1 << 1;
        /// CR4.UMIP (CPUID 7.0 ECX bit 2).
        const UMIP = 1 << 2;
        /// x2APIC (CPUID 1 ECX bit 21).
        const X2APIC = 1 << 3;
        /// TSC-deadline timer (CPUID 1 ECX bit 24).
        const TSC_DEADLINE = 1 << 4;
        /// XSAVE (CPUID 1 ECX bit 26).
        const XSAVE = 1 << 5;
        /// XSAVEOPT (CPUID 0xd.1 EAX bit 0).
        const XSAVEOPT = 1 << 6;
        /// 1 GiB pages (CPUID 0x80000001 EDX bit 26).
        const GIB_PAGES = 1 << 7;
        /// Quirk: SYSCALL from ring 3 arrives as a page fault at LSTAR.
        const PF_SYSCALL = 1 << 16;
        /// Quirk: XSAVE and XRSTOR are refused in ring 0.
        const USER_XSAVE = 1 << 17;
        /// Quirk: ring 0 is interpreted; bulk copies belong in ring 3.
        const SLOW_RING0 = 1 << 18;
    }
}

static FEATURES: AtomicU32 = AtomicU32::new(0);

/// The features found by [`detect`].
#[inline(always)]
pub fn features() -> Features {
    // Relaxed: written before any other CPU starts.
    Features::from_bits_retain(FEATURES.load(Ordering::Relaxed))
}

/// Whether one feature or quirk is there.
#[inline(always)]
pub fn has(f: Features) -> bool {
    features().contains(f)
}

/// Reads CPUID and adds the quirks named on the command line. Boot CPU only, before the others start.
pub fn detect(quirks: &str) {
    let mut f = Features::empty();
    let (max, ..) = cpuid(0, 0);
    let (_, _, c1, _) = cpuid(1, 0);
    f.set(Features::X2APIC, c1 & 1 << 21 != 0);
    f.set(Features::TSC_DEADLINE, c1 & 1 << 24 != 0);
    f.set(Features::XSAVE, c1 & 1 << 26 != 0);
    if max >= 7 {
        let (_, b7, c7, _) = cpuid(7, 0);
        f.set(Features::SMEP, b7 & 1 << 7 != 0);
        f.set(Features::SMAP, b7 & 1 << 20 != 0);
        f.set(Features::UMIP, c7 & 1 << 2 != 0);
    }
    if max >= 0xd && f.contains(Features::XSAVE) {
        f.set(Features::XSAVEOPT, cpuid(0xd, 1).0 & 1 != 0);
    }
    if cpuid(0x8000_0000, 0).0 >= 0x8000_0001 {
        f.set(Features::GIB_PAGES, cpuid(0x8000_0001, 0).3 & 1 << 26 != 0);
    }
    for q in quirks.split(',').filter(|q| !q.is_empty()) {
        match q {
            "pf_syscall" => f |= Features::PF_SYSCALL,
            "user_xsave" => f |= Features::USER_XSAVE,
            "slow_ring0" => f |= Features::SLOW_RING0,
            other => crate::warn!("unknown quirk `{other}` on the command line, ignored"),
        }
    }
    if f.contains(Features::SLOW_RING0) {
        // The interpreter refuses stac and clac, and 1 GiB pages save nothing there.
        f -= Features::SMAP;
    }
    FEATURES.store(f.bits(), Ordering::Relaxed);
}

/// CR4 bits. Intel SDM vol. 3A 2.5.
const CR4_UMIP: u64 = 1 << 11;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;

/// Turns on in CR4 what [`detect`] found. On every CPU.
pub fn enable_on_this_cpu() {
    let f = features();
    let mut cr4 = read_cr4();
    for (feature, bit) in [
        (Features::SMEP, CR4_SMEP),
        (Features::SMAP, CR4_SMAP),
        (Features::UMIP, CR4_UMIP),
        (Features::XSAVE, CR4_OSXSAVE),
    ] {
        // Where XSAVE is refused in ring 0, the host's own setting holds in ring 3.
        if f.contains(feature) && !(bit == CR4_OSXSAVE && f.contains(Features::USER_XSAVE)) {
            cr4 |= bit;
        }
    }
    // SAFETY: CPUID reports each bit that is set; user memory is touched only by `user_copy`, which lifts SMAP.
    unsafe { write_cr4(cr4) };
}
