//! The wall clock: an offset to the monotonic clock, found once at boot and kept in the clock page.
//!
//! Under KVM from the wall-clock MSR (KVM API, "MSR_KVM_WALL_CLOCK_NEW"), else from the CMOS clock.

use vcpu_sched::clock::ClockLine;
use vcpu_sched::ids::Nanos;

use super::PAGE;
use crate::arch::instr::{cpuid, inb, outb, wrmsr};
use crate::chaos::clock;
use crate::cpu;
use crate::mm::frame;

/// KVM feature bit "clocksource 2" (CPUID 0x40000001 EAX) and its wall-clock MSR. Linux Documentation/virt/kvm/x86/{cpuid,msr}.rst.
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;

/// Finds the offset. Boot CPU.
pub fn init() {
    let offset = if clock::on() {
        Nanos(clock::WALL_OFFSET)
    } else {
        let now = super::now();
        Nanos(kvm_boot_time().or_else(cmos_time).unwrap_or(0)) - now
    };
    if let Some((line, _)) = PAGE.line() {
        PAGE.set_line(&ClockLine { wall: offset, ..line });
    }
    super::start_this_cpu(cpu::this());
}

/// Time since 1970.
pub fn now() -> Nanos {
    super::now() + offset()
}

/// The wall clock's value at monotonic time 0.
pub fn offset() -> Nanos {
    PAGE.wall()
}

/// Wall time at which this VM was started (some milliseconds ago), as KVM writes it: { u32 version; u32 sec; u32 nsec }.
fn kvm_boot_time() -> Option<u64> {
    let (_, b, c, d) = cpuid(0x4000_0000, 0);
    if (b, c, d) != (0x4b4d_564b, 0x564b_4d56, 0x4d) || cpuid(0x4000_0001, 0).0 & KVM_FEATURE_CLOCKSOURCE2 == 0 {
        return None;
    }
    let page = frame::alloc_zeroed().ok()?;
    // SAFETY: the feature bit says that the MSR exists; KVM writes 12 bytes to the frame, which is ours.
    let (sec, nsec) = unsafe {
        wrmsr(MSR_KVM_WALL_CLOCK_NEW, page.0);
        let p: *const u32 = page.as_ptr();
        (p.add(1).read_volatile(), p.add(2).read_volatile())
    };
    frame::put(page);
    (sec != 0).then_some(u64::from(sec) * 1_000_000_000 + u64::from(nsec))
}

/// CMOS clock (MC146818: registers 0, 2, 4, 7, 8, 9; status A bit 7: update under way; status B bit 2: binary).
fn cmos_time() -> Option<u64> {
    // SAFETY: reading CMOS registers selects an index and reads it, nothing else.
    let read = |r: u8| unsafe {
        outb(0x70, r);
        inb(0x71)
    };
    let mut spins = 0;
    while read(0x0a) & 0x80 != 0 {
        spins += 1;
        if spins > 10_000 {
            return None;
        }
    }
    let binary = read(0x0b) & 4 != 0;
    let value = |v: u8| u64::from(if binary { v } else { (v >> 4) * 10 + (v & 15) });
    let [s, mi, h, d, mo, y] = [0, 2, 4, 7, 8, 9].map(|r| value(read(r)));
    if !(1..=12).contains(&mo) || !(1..=31).contains(&d) || s > 59 || mi > 59 || h > 23 {
        return None;
    }
    Some((days_from_civil(2000 + y, mo, d) * 86_400 + h * 3600 + mi * 60 + s) * 1_000_000_000)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March, so that the leap day is the last one.
    let y = if month <= 2 { year - 1 } else { year };
    let m = (month + 9) % 12;
    365 * y + y / 4 - y / 100 + y / 400 + (m * 306 + 5) / 10 + day - 1 - 719_468
}
