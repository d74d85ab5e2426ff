//! The time-stamp counter, measured from inside: its rate, and whether scaling, offsets and CR4.TSD have any effect.
//!
//! A return code of 0 proves nothing here (KVM_SET_TSC_KHZ above the host's rate succeeds on hosts that can't scale);
//! each line compares what a guest reads in ring 0 and in ring 3 with what was asked for.

use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;

use super::ProbeError;
use super::code::{Snippet, layout, slot};
use super::guest::{CR4_TSD, Config, Ring, Stop, TinyGuest};
use crate::clock::native;
use crate::host::report::{Line, Status};

const LIMIT: Duration = Duration::from_millis(200);
/// How long a rate is measured: an exit's 10 us of uncertainty is 0.05% of it.
const WINDOW: Duration = Duration::from_millis(20);
/// Runs for one reading.
const READS: u32 = 5;
/// Rates that agree to 1% are the same: the cases to tell apart differ by 25%.
const TOLERANCE: f64 = 0.01;
/// A jump that no run of a probe takes by itself (2^44 cycles are an hour and more).
const JUMP: u64 = 1 << 44;
const MSR_IA32_TSC: u32 = 0x10;

/// The lines of this group.
pub fn examine(kvm: &Kvm) -> Vec<Line> {
    vec![
        Line::of("TSC rate", rate(kvm)),
        Line::of("TSC scaling", scaling(kvm)),
        Line::of("TSC offset", offset(kvm)),
        Line::of("TSC disable (CR4.TSD)", disable(kvm)),
    ]
}

/// The TSC, and when it was read: the sharpest of a few runs, since any of them may be preempted on a busy host.
fn read(guest: &mut TinyGuest, ring: Ring) -> Result<(u64, Instant), ProbeError> {
    let mut sharpest = None;
    for _ in 0..READS {
        let before = Instant::now();
        guest.complete("rdtsc", Snippet::Rdtsc, ring, 0, LIMIT)?;
        let took = before.elapsed();
        if sharpest.is_none_or(|(best, _, _)| took < best) {
            sharpest = Some((took, guest.result(slot::OUT), before + took / 2));
        }
    }
    let (_, tsc, at) = sharpest.unwrap_or((Duration::ZERO, 0, Instant::now()));
    Ok((tsc, at))
}

/// kHz as `ring` sees them.
fn measure(guest: &mut TinyGuest, ring: Ring) -> Result<f64, ProbeError> {
    let (tsc0, time0) = read(guest, ring)?;
    std::thread::sleep(WINDOW);
    let (tsc1, time1) = read(guest, ring)?;
    Ok(tsc1.wrapping_sub(tsc0) as f64 / (time1 - time0).as_secs_f64() / 1e3)
}

fn close(measured: f64, expected: f64) -> bool {
    (measured / expected - 1.0).abs() < TOLERANCE
}

fn rate(kvm: &Kvm) -> Result<Line, ProbeError> {
    let mut guest = TinyGuest::new(kvm, Config::default())?;
    let told = guest.vcpu().get_tsc_khz().map_err(ProbeError::kvm("KVM_GET_TSC_KHZ"))?;
    let kernel = measure(&mut guest, Ring::Kernel)?;
    let user = measure(&mut guest, Ring::User)?;
    let right = close(kernel, f64::from(told)) && close(user, f64::from(told));
    let status = if right { Status::Ok } else { Status::No };
    let detail = format!("KVM says {told} kHz; measured {kernel:.0} in ring 0, {user:.0} in ring 3");
    Ok(Line::new("TSC rate", status, detail))
}

fn scaling(kvm: &Kvm) -> Result<Line, ProbeError> {
    let mut parts = Vec::new();
    let mut effective = 0;
    for (word, numerator) in [("slower", 3), ("faster", 5)] {
        let mut guest = TinyGuest::new(kvm, Config::default())?;
        let host = guest.vcpu().get_tsc_khz().map_err(ProbeError::kvm("KVM_GET_TSC_KHZ"))?;
        let wanted = host / 4 * numerator;
        if let Err(error) = guest.vcpu().set_tsc_khz(wanted) {
            parts.push(format!("{word} is refused ({error})"));
            continue;
        }
        let rings = [measure(&mut guest, Ring::Kernel)?, measure(&mut guest, Ring::User)?];
        let seen = rings.map(|khz| close(khz, f64::from(wanted)));
        effective += u32::from(seen == [true; 2]);
        parts.push(match seen {
            [true, true] => format!("{word} works"),
            [true, false] => format!("{word} works in ring 0 only"),
            [false, true] => format!("{word} works in ring 3 only"),
            [false, false] => format!("{word} is accepted without effect"),
        });
    }
    let status = if effective == 2 { Status::Ok } else { Status::No };
    Ok(Line::new("TSC scaling", status, parts.join("; ")))
}

/// Which rings' TSC jumps when `set` is told to move it ahead by [`JUMP`].
fn jumps(kvm: &Kvm, set: impl Fn(&TinyGuest, u64) -> Result<(), ProbeError>) -> Result<[bool; 2], ProbeError> {
    let mut seen = [false; 2];
    for (ring, seen) in Ring::ALL.into_iter().zip(&mut seen) {
        let mut guest = TinyGuest::new(kvm, Config::default())?;
        let (before, _) = read(&mut guest, ring)?;
        set(&guest, before)?;
        let (after, _) = read(&mut guest, ring)?;
        *seen = after.wrapping_sub(before) > JUMP / 2;
    }
    Ok(seen)
}

fn describe_jump(result: &Result<[bool; 2], ProbeError>) -> String {
    match result {
        Ok([true, true]) => "works".into(),
        Ok([true, false]) => "works in ring 0 only".into(),
        Ok([false, true]) => "works in ring 3 only".into(),
        Ok([false, false]) => "is accepted without effect".into(),
        Err(error) => format!("is refused ({error})"),
    }
}

/// Moves a guest's counter ahead by the attribute.
fn ahead(guest: &TinyGuest, _: u64) -> Result<(), ProbeError> {
    let host = |error| ProbeError::Host { call: "KVM_VCPU_TSC_OFFSET", error };
    let offset = native::offset(guest.vcpu()).map_err(host)?;
    native::set_offset(guest.vcpu(), offset.wrapping_add(JUMP)).map_err(host)
}

/// Whether a guest's counter runs at `khz` in both rings when KVM is told so; else what was seen instead.
pub fn scaling_effect(kvm: &Kvm, khz: u32) -> Result<(), String> {
    let tried = || -> Result<Result<(), String>, ProbeError> {
        let mut guest = TinyGuest::new(kvm, Config::default())?;
        if let Err(error) = guest.vcpu().set_tsc_khz(khz) {
            return Ok(Err(format!("KVM_SET_TSC_KHZ is refused ({error})")));
        }
        let rings = [measure(&mut guest, Ring::Kernel)?, measure(&mut guest, Ring::User)?];
        Ok(match rings.map(|seen| close(seen, f64::from(khz))) {
            [true, true] => Ok(()),
            _ => Err(format!(
                "KVM_SET_TSC_KHZ is accepted, and RDTSC counts {:.0} kHz in ring 0, {:.0} kHz in ring 3",
                rings[0], rings[1]
            )),
        })
    };
    tried().unwrap_or_else(|error| Err(error.to_string()))
}

/// Whether an offset moves a guest's counter in both rings; else what was seen instead.
pub fn offset_effect(kvm: &Kvm) -> Result<(), String> {
    let seen = jumps(kvm, ahead);
    if let Ok([true, true]) = seen { Ok(()) } else { Err(format!("the offset {}", describe_jump(&seen))) }
}

fn offset(kvm: &Kvm) -> Result<Line, ProbeError> {
    let by_attribute = jumps(kvm, ahead);
    let by_msr = jumps(kvm, |guest, now| guest.set_msrs(&[(MSR_IA32_TSC, now + JUMP)]));
    let works = |result: &Result<[bool; 2], ProbeError>| matches!(result, Ok([true, true]));
    let status = if works(&by_attribute) { Status::Ok } else { Status::No };
    let (attribute, msr) = (describe_jump(&by_attribute), describe_jump(&by_msr));
    Ok(Line::new("TSC offset", status, format!("the attribute {attribute}; writing IA32_TSC {msr}")))
}

fn disable(kvm: &Kvm) -> Result<Line, ProbeError> {
    let mut guest = TinyGuest::new(kvm, Config::default())?;
    let at = layout::UCODE + Snippet::Rdtsc.offset();
    guest.start_at(at, Ring::User, 0, 0, CR4_TSD)?;
    let stop = guest.run(LIMIT)?;
    let (status, detail) = match stop {
        Stop::Done if guest.vector() == Some(13) && guest.result(slot::RIP) == at => {
            (Status::Ok, "RDTSC in ring 3 traps")
        }
        stop if guest.finished(stop, Ring::User) => (Status::No, "ignored: RDTSC in ring 3 reads on"),
        stop => return Err(guest.unexpected("CR4.TSD", stop)),
    };
    Ok(Line::new("TSC disable (CR4.TSD)", status, detail))
}
