//! Time: what the clock page says of the TSC, the wall clock, and timers.
//!
//! The clock page (`vcpu_sched::clock`) turns the counter into nanoseconds. The kernel fills it at boot; the VMM may change it while the
//! CPUs are out of the guest, and sends each of them its timer interrupt then. Everything reads the page but the scheduler, which
//! reads its CPU's own copy ([`FastClock`](vcpu_sched::clock::FastClock)): [`sync`] keeps that up to date. Between a change and that interrupt a
//! CPU's scheduler goes by the old copy, which is slightly wrong and nothing else.
//!
//! The counter's frequency comes from CPUID (0x15, 0x40000010), else from the command line, else from a bounded comparison with the
//! local APIC timer; never from a loop that can hang. With `chaos` on one CPU, virtual time takes the TSC's place ([`tsc`]).

pub mod shown;
pub mod timer;
pub mod wall;

use core::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::clock::{ClockLine, ClockPage, Rate};
use vcpu_sched::directory::{Entry, EntryKind};
use vcpu_sched::ids::{Khz, Nanos};

use crate::arch::features::{Features, has};
use crate::arch::instr::{cpuid, rdtsc};
use crate::boot::cmdline;
use crate::chaos;
use crate::cpu::{self, Cpu};
use crate::directory;
use crate::mm::PhysAddr;
use crate::sched;

/// The clock in force. Written by the boot CPU until the directory is published, then by the VMM.
static PAGE: ClockPage = ClockPage::new();
/// See [`least_turn`].
static LEAST_TURN: AtomicU64 = AtomicU64::new(0);
/// Some times what a switch and a timer interrupt take, in microseconds of real time.
const LEAST_TURN_US: u64 = 20;
/// The same where ring 0 is interpreted.
const LEAST_TURN_SLOW_US: u64 = 1000;
/// Frequency of the local APIC timer.
static APIC_KHZ: AtomicU64 = AtomicU64::new(0);
/// What every hypervisor that this kernel meets gives its APIC timer when it doesn't say: 1 GHz (KVM: APIC_BUS_CYCLE_NS = 1;
/// QEMU hw/i386: the same).
const DEFAULT_APIC_KHZ: u64 = 1_000_000;

/// Finds the frequencies and starts the clock. Boot CPU, with its local APIC on.
pub fn init() {
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
    let number = |key| cmdline::get(key).and_then(|v| v.parse::<u32>().ok());
    let source = if chaos::clock::on() {
        tsc_khz = u64::from(chaos::clock::KHZ);
        "chaos, virtual"
    } else if tsc_khz != 0 {
        "CPUID"
    } else if let Some(khz) = number("tsc_khz") {
        tsc_khz = u64::from(khz);
        "the command line"
    } else {
        tsc_khz = crate::arch::apic::measure_tsc_khz(apic_khz);
        "a comparison with the APIC timer"
    };
    APIC_KHZ.store(apic_khz, Ordering::Relaxed);
    let told = Khz(tsc_khz.clamp(1, u64::from(u32::MAX)) as u32);
    // A VMM that tells another frequency than the counter's says so.
    let counter = number("tsc_counter_khz").filter(|_| !chaos::clock::on()).map_or(told, Khz);
    match ClockLine::new(counter, told, tsc(), Nanos::ZERO) {
        Ok(line) => PAGE.set_line(&line),
        Err(e) => crate::error!("time stands still: {e}"),
    }
    start_this_cpu(cpu::this());
    crate::info!("TSC {} kHz by {source}, counts {} kHz, APIC timer {apic_khz} kHz", told.0, counter.0);
}

/// Lists the page in the directory. Boot CPU, before it is published; not under virtual time, which nobody else may steer.
pub fn show() {
    if chaos::clock::on() {
        return;
    }
    let (address, len) = (page_frame().0, size_of::<ClockPage>() as u64);
    directory::add(Entry { kind: EntryKind::Clock as u32, index: 0, address, len, extra: 0 });
}

/// The page's first frame; the others follow. Programs have them mapped.
pub fn page_frame() -> PhysAddr {
    PhysAddr::from_image(core::ptr::from_ref(&PAGE) as u64)
}

/// Fills this CPU's copy of the clock for the first time. On that CPU, interrupts off.
pub fn start_this_cpu(me: &Cpu) {
    if let Some((line, sequence)) = PAGE.line() {
        me.clock.fill(&line, sequence, tsc());
        let micros = if has(Features::SLOW_RING0) { LEAST_TURN_SLOW_US } else { LEAST_TURN_US };
        let least = if line.rate > Rate::REAL { u64::from(line.counter.0) * micros / 1000 } else { 0 };
        // Relaxed: a figure by itself, and the same from every CPU.
        LEAST_TURN.store(least, Ordering::Relaxed);
    }
}

/// Ticks that a task has its CPU at least before the timer takes it away; 0 unless virtual time is faster than real time. A
/// slice can then be shorter than the switch that begins it, and nobody would ever get anything done.
#[inline]
pub fn least_turn() -> u64 {
    LEAST_TURN.load(Ordering::Relaxed)
}

/// Takes over what the page says, if that is something new. Own CPU, interrupts off, no lock held.
#[inline]
pub fn sync(me: &Cpu) {
    if me.clock.is_stale(PAGE.sequence(), tsc()) {
        take_over(me);
    }
}

#[cold]
fn take_over(me: &Cpu) {
    start_this_cpu(me);
    // What was noted in ticks by the old line: the beginning of the slice, and what the timer is armed for.
    let picked = Nanos(me.picked_time.load(Ordering::Relaxed));
    me.picked_at.store(me.clock.tick_of(picked), Ordering::Relaxed);
    me.timers.forget_programmed();
    sched::rearm(me);
}

/// What the kernel's time is counted in: the TSC, or virtual time (see [`chaos::clock`]).
#[inline(always)]
pub fn tsc() -> u64 {
    if chaos::clock::on() { chaos::clock::now() } else { rdtsc() }
}

/// Monotonic time since boot.
#[inline]
pub fn now() -> Nanos {
    PAGE.now(tsc)
}

/// Monotonic time at a TSC reading of just now, for the scheduler. Interrupts off.
#[inline(always)]
pub fn at_tsc(tsc: u64) -> Nanos {
    cpu::this().clock.at(tsc)
}

/// Monotonic time at any TSC reading; from before the clock's last change only about right.
pub fn around(tsc: u64) -> Nanos {
    PAGE.line().map_or(Nanos::ZERO, |(line, _)| line.around(tsc))
}

/// TSC reading at which the monotonic clock shows `at`, as things are now.
#[inline]
pub fn tsc_at(at: Nanos) -> u64 {
    PAGE.ticks_at(at)
}

/// A duration in TSC ticks, as things are now.
#[inline]
pub fn ticks(d: Nanos) -> u64 {
    PAGE.scale().to_ticks(d)
}

/// The frequency that this machine is told to have.
pub fn tsc_khz() -> Khz {
    PAGE.told()
}

/// The frequency that its counter has.
pub fn counter_khz() -> Khz {
    PAGE.counter()
}

/// The APIC timer's frequency.
pub fn apic_khz() -> u64 {
    APIC_KHZ.load(Ordering::Relaxed)
}
