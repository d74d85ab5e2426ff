//! The local APIC: end of interrupt, IPIs, the one-shot timer.
//!
//! In x2APIC mode where the CPU has it: registers are MSRs, addresses have 32 bits, an IPI is one write. Else by memory
//! (QEMU's TCG before 9.0). Source: Intel SDM vol. 3A 11.12 (table 11-6 for register numbers; the memory offset is the low
//! byte times 16), 11.4.1, 11.5.4 (timer), 11.6.1 (ICR).

use super::descriptors::vector;
use super::features::{Features, has};
use super::instr::{cpuid, rdmsr, rdtsc, wrmsr};
use crate::mm::PhysAddr;
use crate::sync::IrqGuard;
use crate::time;

const IA32_APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const ICR: u32 = 0x830;
const LVT_TIMER: u32 = 0x832;
const LVT_LINT0: u32 = 0x835;
const LVT_LINT1: u32 = 0x836;
const LVT_ERROR: u32 = 0x837;
const TIMER_INITIAL: u32 = 0x838;
const TIMER_CURRENT: u32 = 0x839;
const TIMER_DIVIDE: u32 = 0x83e;
const LVT_MASKED: u64 = 1 << 16;
const LVT_TSC_DEADLINE: u64 = 2 << 17;
/// Table 11-10: divide by 1.
const DIVIDE_BY_1: u64 = 0xb;

/// Where the registers are in memory (SDM vol. 3A 11.4.1). Below 4 GiB, so the boot direct map reaches it.
const MEMORY_BASE: u64 = 0xfee0_0000;
/// Memory offset of the destination half of the ICR.
const ICR_HIGH_OFFSET: u64 = 0x310;

fn register(msr: u32) -> *mut u32 {
    PhysAddr(MEMORY_BASE + u64::from(msr & 0xff) * 16).as_ptr()
}

#[inline(always)]
fn write(msr: u32, value: u64) {
    // SAFETY: registers of this CPU's APIC, in the mode that `init_this_cpu` chose.
    unsafe {
        if has(Features::X2APIC) {
            wrmsr(msr, value);
        } else {
            register(msr).write_volatile(value as u32);
        }
    }
}

fn read(msr: u32) -> u64 {
    // SAFETY: as `write`.
    unsafe { if has(Features::X2APIC) { rdmsr(msr) } else { u64::from(register(msr).read_volatile()) } }
}

#[inline(always)]
fn write_icr(apic_id: u32, command: u64) {
    if has(Features::X2APIC) {
        return write(ICR, u64::from(apic_id) << 32 | command);
    }
    // The two halves belong together.
    let _irq = IrqGuard::new();
    // SAFETY: as `write`.
    unsafe { PhysAddr(MEMORY_BASE + ICR_HIGH_OFFSET).as_ptr::<u32>().write_volatile(apic_id << 24) };
    write(ICR, command);
}

/// Turns this CPU's local APIC on. Interrupts are off.
pub fn init_this_cpu() {
    // SAFETY: the architecture's register; the mode bit only where CPUID has it. Enabled first: disabled to x2APIC is
    // no allowed step (SDM vol. 3A 11.12.5).
    unsafe {
        let base = rdmsr(IA32_APIC_BASE) | APIC_BASE_ENABLE;
        wrmsr(IA32_APIC_BASE, base);
        if has(Features::X2APIC) {
            wrmsr(IA32_APIC_BASE, base | APIC_BASE_X2APIC);
        }
    }
    write(SPURIOUS, 0x100 | u64::from(vector::SPURIOUS));
    write(LVT_LINT0, LVT_MASKED);
    write(LVT_LINT1, LVT_MASKED);
    write(LVT_ERROR, LVT_MASKED);
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    let mode = if has(Features::TSC_DEADLINE) { LVT_TSC_DEADLINE } else { 0 };
    write(LVT_TIMER, u64::from(vector::TIMER) | mode);
}

/// This CPU's APIC id, before its APIC is on: CPUID 0xb EDX where it exists, else 1 EBX. SDM vol. 2A, CPUID.
pub fn initial_id() -> u32 {
    if cpuid(0, 0).0 >= 0xb && cpuid(0xb, 0).1 != 0 { cpuid(0xb, 0).3 } else { cpuid(1, 0).1 >> 24 }
}

/// Ends the interrupt in service.
#[inline(always)]
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Sends a fixed interrupt, edge triggered, to one CPU.
///
/// In x2APIC mode the write is not serialising (SDM vol. 3A 11.12.3); the locked operations before every call order the
/// stores that it announces.
#[inline]
pub fn send_ipi(apic_id: u32, vector: u8) {
    write_icr(apic_id, 1 << 14 | u64::from(vector));
}

/// INIT, for CPU bring-up (SDM vol. 3A 9.4.4).
pub fn send_init(apic_id: u32) {
    write_icr(apic_id, 1 << 14 | 5 << 8);
}

/// STARTUP with the page of the first instruction.
pub fn send_startup(apic_id: u32, page: u8) {
    write_icr(apic_id, 1 << 14 | 6 << 8 | u64::from(page));
}

/// Arms the timer for a TSC value; in the past: at once.
#[inline]
pub fn arm_timer(tsc: u64) {
    if has(Features::TSC_DEADLINE) {
        // SAFETY: the timer is in deadline mode. 0 would disarm.
        unsafe { wrmsr(IA32_TSC_DEADLINE, tsc.max(1)) };
        return;
    }
    let ticks = tsc.saturating_sub(rdtsc());
    // Far deadlines fire early and are armed again: the count has 32 bits.
    let count = (u128::from(ticks) * u128::from(time::apic_khz()) / u128::from(time::counter_khz().0.max(1)))
        .clamp(1, 0xffff_ffff);
    write(TIMER_INITIAL, count as u64);
}

/// Arms the timer for about a second from now, whatever the kernel's time is counted in. Nothing depends on how long it is.
pub fn arm_in_a_while() {
    /// A second of a 3 GHz TSC.
    const TICKS: u64 = 3_000_000_000;
    if has(Features::TSC_DEADLINE) {
        // SAFETY: as in `arm_timer`.
        unsafe { wrmsr(IA32_TSC_DEADLINE, rdtsc().saturating_add(TICKS)) };
    } else {
        write(TIMER_INITIAL, time::apic_khz().saturating_mul(1000).clamp(1, 0xffff_ffff));
    }
}

/// TSC frequency by the APIC timer's, for hosts that tell neither: 2 ms, and bounded in steps should the timer stand still.
pub fn measure_tsc_khz(apic_khz: u64) -> u64 {
    let target = apic_khz * 2;
    write(LVT_TIMER, LVT_MASKED);
    write(TIMER_INITIAL, 0xffff_ffff);
    let (start, mut elapsed) = (rdtsc(), 0);
    for _ in 0..1_000_000 {
        elapsed = 0xffff_ffff - read(TIMER_CURRENT);
        if elapsed >= target {
            break;
        }
    }
    let ticks = rdtsc().wrapping_sub(start);
    write(TIMER_INITIAL, 0);
    init_this_cpu();
    if elapsed == 0 { apic_khz } else { (u128::from(ticks) * u128::from(apic_khz) / u128::from(elapsed)) as u64 }
}
