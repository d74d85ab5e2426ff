//! Timers and interrupts: the local APIC's one-shot and TSC-deadline timer, irqfd and ioeventfd, by their effect.

use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::ProbeError;
use super::code::{IRQ_VECTOR, PORT_EVENT, Snippet};
use super::guest::{Config, Ring, Stop, TinyGuest};
use crate::host::report::{Line, Status};

const LIMIT: Duration = Duration::from_millis(200);
/// The interrupt line that irqfd is tried on (docs/abi.md: virtio's first).
const GSI: u32 = 5;
/// What the timers are armed for. Firing earlier is as wrong as not at all.
const ARMED: Duration = Duration::from_millis(2);
/// KVM's local APIC counts nanoseconds (Linux, arch/x86/kvm/lapic.h: APIC_BUS_CYCLE_NS_DEFAULT).
const ONE_SHOT_TICKS: u64 = ARMED.as_nanos() as u64;
/// CPUID.1:ECX[24] TSC-deadline, [21] x2APIC.
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_X2APIC: u32 = 1 << 21;

/// The lines of this group.
pub fn examine(kvm: &Kvm) -> Vec<Line> {
    vec![
        Line::of("LAPIC timer", one_shot(kvm)).needed(),
        Line::of("TSC-deadline timer", deadline(kvm)),
        Line::of("ioeventfd", ioeventfd(kvm)).needed(),
        Line::of("irqfd", irqfd(kvm)).needed(),
    ]
}

/// A machine with interrupt controllers and these bits in CPUID.1:ECX.
fn machine(kvm: &Kvm, ecx: u32) -> Result<TinyGuest, ProbeError> {
    let add = |cpuid: &mut CpuId| {
        for leaf in cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= ecx;
        }
    };
    TinyGuest::with_cpuid(kvm, Config { irqchip: true }, add)
}

fn one_shot(kvm: &Kvm) -> Result<Line, ProbeError> {
    let mut guest = machine(kvm, ECX_X2APIC)?;
    guest.start(Snippet::Oneshot, Ring::Kernel, ONE_SHOT_TICKS)?;
    let start = Instant::now();
    let stop = guest.run(LIMIT)?;
    let took = start.elapsed();
    Ok(match (stop, guest.vector()) {
        (Stop::Done, Some(IRQ_VECTOR)) => {
            let (status, detail) = fired(took);
            Line::new("LAPIC timer", status, format!("one-shot in x2APIC mode: {detail}"))
        }
        (stop, _) => Line::new("LAPIC timer", Status::No, guest.unexpected("one-shot timer", stop).to_string()),
    })
}

/// Whether a timer that fired did so in time: not before, and what else a busy host does isn't its fault.
fn fired(took: Duration) -> (Status, String) {
    let status = if took >= ARMED { Status::Ok } else { Status::No };
    (status, format!("armed for {} ms, fired after {:.1}", ARMED.as_millis(), took.as_secs_f64() * 1e3))
}

fn deadline(kvm: &Kvm) -> Result<Line, ProbeError> {
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(ProbeError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let in_cpuid = supported.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & ECX_TSC_DEADLINE != 0);
    let announced = in_cpuid || kvm.check_extension(Cap::TscDeadlineTimer);
    let announced_word = match (in_cpuid, announced) {
        (true, _) => "in the supported CPUID",
        (false, true) => "announced by the capability, not in the supported CPUID",
        (false, false) => "neither in the supported CPUID nor announced by the capability",
    };
    let mut guest = machine(kvm, ECX_X2APIC | ECX_TSC_DEADLINE)?;
    let khz = guest.vcpu().get_tsc_khz().map_err(ProbeError::kvm("KVM_GET_TSC_KHZ"))?;
    guest.start(Snippet::Deadline, Ring::Kernel, u64::from(khz) * ARMED.as_millis() as u64)?;
    let start = Instant::now();
    let stop = guest.run(LIMIT)?;
    let took = start.elapsed();
    let (status, what) = match (stop, guest.vector()) {
        (Stop::Done, Some(IRQ_VECTOR)) => match fired(took) {
            (Status::Ok, what) if !announced => (Status::Quirk, what),
            verdict => verdict,
        },
        (Stop::Done, Some(vector)) => (Status::No, format!("arming it raises exception {vector}")),
        (stop, _) => (Status::No, format!("armed, it ended with {stop}")),
    };
    Ok(Line::new("TSC-deadline timer", status, format!("{what}; {announced_word}")))
}

fn eventfd() -> Result<EventFd, ProbeError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|error| ProbeError::Host { call: "eventfd", error })
}

fn ioeventfd(kvm: &Kvm) -> Result<Line, ProbeError> {
    let mut guest = TinyGuest::new(kvm, Config::default())?;
    let evt = eventfd()?;
    guest
        .vm()
        .register_ioevent(&evt, &IoEventAddress::Pio(u64::from(PORT_EVENT)), NoDatamatch)
        .map_err(ProbeError::kvm("KVM_IOEVENTFD"))?;
    guest.start(Snippet::Event, Ring::Kernel, 0)?;
    let stop = guest.run(LIMIT)?;
    Ok(if guest.finished(stop, Ring::Kernel) && evt.read().is_ok_and(|count| count == 1) {
        Line::new("ioeventfd", Status::Ok, "a port write signals it without an exit")
    } else {
        Line::new("ioeventfd", Status::No, format!("a port write ended with {stop}, and did not signal it"))
    })
}

fn irqfd(kvm: &Kvm) -> Result<Line, ProbeError> {
    let mut guest = machine(kvm, ECX_X2APIC)?;
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    guest.vm().get_irqchip(&mut chip).map_err(ProbeError::kvm("KVM_GET_IRQCHIP"))?;
    // SAFETY: KVM_IRQCHIP_IOAPIC was asked for, so that is the union's field.
    unsafe { chip.chip.ioapic.redirtbl[GSI as usize].bits = u64::from(IRQ_VECTOR) };
    guest.vm().set_irqchip(&chip).map_err(ProbeError::kvm("KVM_SET_IRQCHIP"))?;
    // The old controllers would take the line as well, and deliver it at their own vector.
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        guest.vm().get_irqchip(&mut chip).map_err(ProbeError::kvm("KVM_GET_IRQCHIP"))?;
        chip.chip.pic.imr = 0xff;
        guest.vm().set_irqchip(&chip).map_err(ProbeError::kvm("KVM_SET_IRQCHIP"))?;
    }
    let evt = eventfd()?;
    guest.vm().register_irqfd(&evt, GSI).map_err(ProbeError::kvm("KVM_IRQFD"))?;
    guest.start(Snippet::Irq, Ring::Kernel, 0)?;
    let mut stop = guest.run(LIMIT)?;
    if stop == Stop::Ready {
        evt.write(1).map_err(|error| ProbeError::Host { call: "write to an eventfd", error })?;
        stop = guest.run(LIMIT)?;
    }
    Ok(match (stop, guest.vector()) {
        (Stop::Done, Some(IRQ_VECTOR)) => Line::new("irqfd", Status::Ok, "interrupts the guest through the IOAPIC"),
        (stop, _) => Line::new("irqfd", Status::No, guest.unexpected("irqfd", stop).to_string()),
    })
}
