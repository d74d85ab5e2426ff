//! Time: the TSC as nanoseconds since boot, the wall clock, and timers.
//!
//! The TSC frequency comes from CPUID (0x15, 0x40000010), else from the command line, else from a bounded comparison with the
//! local APIC timer; never from a loop that can hang. With `chaos` on one CPU, virtual time takes the TSC's place ([`tsc`]).

pub mod timer;
pub mod wall;

use core::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::clock::TscScale;
use vcpu_sched::ids::{Khz, Nanos};

use crate::arch::instr::{cpuid, rdtsc};
use crate::chaos;
use crate::sync::BootCell;

struct Clock {
    scale: TscScale,
    khz: Khz,
    boot_tsc: u64,
}

/// The scheduler's clock: see [`at_tsc`]. Apart from [`CLOCK`], so that reading it is three loads and a multiplication.
static BOOT_TSC: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds per tick times `2^FAST_SHIFT`; 0 before the clock is there, so that time stands still.
static FAST_FACTOR: AtomicU64 = AtomicU64::new(0);
/// Factors below 2^4 ns a tick (62.5 MHz and more) fit 64 bits, and 2^60 ticks (8 years at 4 GHz) fit before the multiplication.
const FAST_SHIFT: u32 = 60;
/// Ticks per nanosecond times `2^INVERSE_SHIFT`: up to 64 GHz, and 9 years before the multiplication.
static INVERSE_FACTOR: AtomicU64 = AtomicU64::new(0);
const INVERSE_SHIFT: u32 = 58;

static CLOCK: BootCell<Clock> = BootCell::new();
/// Frequency of the local APIC timer.
static APIC_KHZ: AtomicU64 = AtomicU64::new(0);
/// What every hypervisor that this kernel meets gives its APIC timer when it doesn't say: 1 GHz (KVM: APIC_BUS_CYCLE_NS = 1;
/// QEMU hw/i386: the same).
const DEFAULT_APIC_KHZ: u64 = 1_000_000;

/// Finds the frequencies. Boot CPU, with its local APIC on.
pub fn init(cmdline_tsc_khz: Option<u32>) {
    let (mut tsc_khz, mut apic_khz) = (0u64, DEFAULT_APIC_KHZ);
    let (_, b, c, d) = cpuid(0x4000_0000, 0);
    let hypervisor = cpuid(1, 0).2 & 1 << 31 != 0;
    if hypervisor && cpuid(0x4000_0000, 0).0 >= 0x4000_0010 && (b, c, d) != (0, 0, 0) {
        let (eax, ebx, ..) = cpuid(0x4000_0010, 0);
        tsc_khz = u64::from(eax);
        if ebx != 0 {
            apic_khz = u64::from(ebx);
        }
    }
    if tsc_khz == 0 && cpuid(0, 0).0 >= 0x15 {
        // Intel SDM vol. 3A 18.7.3: TSC = crystal (ECX, Hz) * EBX / EAX.
        let (den, num, crystal, _) = cpuid(0x15, 0);
        if den != 0 && crystal != 0 {
            tsc_khz = u64::from(crystal) * u64::from(num) / u64::from(den) / 1000;
        }
    }
    let source = if chaos::clock::on() {
        tsc_khz = u64::from(chaos::clock::KHZ);
        "chaos, virtual"
    } else if tsc_khz != 0 {
        "CPUID"
    } else if let Some(khz) = cmdline_tsc_khz {
        tsc_khz = u64::from(khz);
        "the command line"
    } else {
        tsc_khz = crate::arch::apic::measure_tsc_khz(apic_khz);
        "a comparison with the APIC timer"
    };
    APIC_KHZ.store(apic_khz, Ordering::Relaxed);
    let khz = Khz(tsc_khz.clamp(1, u64::from(u32::MAX)) as u32);
    if let Some(scale) = TscScale::from_khz(khz) {
        let boot_tsc = tsc();
        CLOCK.set(Clock { scale, khz, boot_tsc });
        let factor = (1_000_000_u128 << FAST_SHIFT) / u128::from(khz.0);
        // Relaxed: the boot CPU alone; others start later.
        FAST_FACTOR.store(u64::try_from(factor).unwrap_or(u64::MAX), Ordering::Relaxed);
        let inverse = (u128::from(khz.0) << INVERSE_SHIFT) / 1_000_000;
        INVERSE_FACTOR.store(u64::try_from(inverse).unwrap_or(u64::MAX), Ordering::Relaxed);
        BOOT_TSC.store(boot_tsc, Ordering::Relaxed);
    }
    crate::info!("TSC {} kHz by {source}, APIC timer {apic_khz} kHz", khz.0);
}

/// What the kernel's time is counted in: the TSC, or virtual time (see [`chaos::clock`]).
#[inline(always)]
pub fn tsc() -> u64 {
    if chaos::clock::on() { chaos::clock::now() } else { rdtsc() }
}

/// Monotonic time since boot.
#[inline]
pub fn now() -> Nanos {
    CLOCK.get().map_or(Nanos(0), |c| c.scale.to_ns(tsc().wrapping_sub(c.boot_tsc)))
}

/// Monotonic time at a TSC reading of this machine, for the scheduler: never more than two nanoseconds from what [`now`] would
/// have said, in five instructions.
#[inline(always)]
pub fn at_tsc(tsc: u64) -> Nanos {
    let ticks = tsc.wrapping_sub(BOOT_TSC.load(Ordering::Relaxed)) << (64 - FAST_SHIFT);
    Nanos(((u128::from(ticks) * u128::from(FAST_FACTOR.load(Ordering::Relaxed))) >> 64) as u64)
}

/// A slice in TSC ticks, as cheap as [`at_tsc`]. Rounded up by enough that [`at_tsc`] finds the slice over when they have passed.
#[inline(always)]
pub fn slice_ticks(slice: Nanos) -> u64 {
    /// What rounding down can have taken away, here and in `at_tsc`, for TSCs of up to 16 GHz.
    const ROUNDING: u64 = 32;
    let wide = u128::from(slice.0 << (64 - INVERSE_SHIFT)) * u128::from(INVERSE_FACTOR.load(Ordering::Relaxed));
    ((wide >> 64) as u64).saturating_add(ROUNDING)
}

/// TSC reading at which the monotonic clock shows `at`.
#[inline]
pub fn tsc_at(at: Nanos) -> u64 {
    CLOCK.get().map_or(0, |c| c.boot_tsc.saturating_add(c.scale.to_ticks(at)))
}

/// A duration in TSC ticks.
#[inline]
pub fn ticks(d: Nanos) -> u64 {
    CLOCK.get().map_or(0, |c| c.scale.to_ticks(d))
}

/// TSC ticks as a duration.
#[inline]
pub fn ticks_to_nanos(t: u64) -> Nanos {
    CLOCK.get().map_or(Nanos(0), |c| c.scale.to_ns(t))
}

/// The TSC's frequency.
pub fn tsc_khz() -> Khz {
    CLOCK.get().map_or(Khz(0), |c| c.khz)
}

/// The APIC timer's frequency.
pub fn apic_khz() -> u64 {
    APIC_KHZ.load(Ordering::Relaxed)
}
