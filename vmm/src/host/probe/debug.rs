//! Which debugging events reach the VMM, and which the guest, in either ring.
//!
//! The debugger (`vmm/src/gdb`) plans with these; what only the guest sees goes through the guest kernel's own handlers.

use std::time::Duration;

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
};
use kvm_ioctls::Kvm;

use super::ProbeError;
use super::code::{Snippet, layout, slot};
use super::guest::{Config, RFLAGS_TF, Ring, Stop, TinyGuest};
use crate::host::report::{Line, Status};

const LIMIT: Duration = Duration::from_millis(200);

/// DR7: bit 10 is always set, LE and GE (8, 9) as QEMU sets them (SDM vol. 3B, 18.2.4).
const DR7_BASE: u64 = 0x700;
/// DR7 for slot 0: enabled, break on execution (length 1).
const DR7_EXECUTE: u64 = DR7_BASE | 1 << 1;
/// DR7 for slot 0: enabled, break on writes of 8 bytes.
const DR7_WRITE_8: u64 = DR7_BASE | 1 << 1 | 0b01 << 16 | 0b10 << 18;

/// What became of a debugging event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// KVM_EXIT_DEBUG at the expected place.
    Reported,
    /// The same, and again when the guest goes on with the breakpoint in place.
    ReportedAgain,
    /// The guest got it as this exception.
    InGuest(u8),
    /// KVM_EXIT_INTERNAL_ERROR on the instruction: it can be told apart, and taken for the event.
    EmulationError,
    /// Nothing: the guest ran on.
    Nothing,
    /// Something else.
    Odd(Stop),
}

impl Outcome {
    fn describe(self) -> String {
        match self {
            Outcome::Reported => "yes".into(),
            Outcome::ReportedAgain => "yes (fires again unless dropped for the step)".into(),
            Outcome::InGuest(vector) => format!("no, exception {vector} in the guest"),
            Outcome::EmulationError => "as an emulation error".into(),
            Outcome::Nothing => "no".into(),
            Outcome::Odd(stop) => format!("no, {stop}"),
        }
    }
}

/// A kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    SoftwareBreakpoint,
    HardwareBreakpoint,
    Step,
    Watchpoint,
}

impl Event {
    const ALL: [(Event, &'static str); 4] = [
        (Event::SoftwareBreakpoint, "software breakpoints"),
        (Event::HardwareBreakpoint, "hardware breakpoints"),
        (Event::Step, "single-step"),
        (Event::Watchpoint, "watchpoints"),
    ];
}

/// The lines of this group.
pub fn examine(kvm: &Kvm) -> Vec<Line> {
    let mut lines: Vec<_> = Event::ALL.iter().map(|(event, name)| Line::of(name, line(kvm, *event, name))).collect();
    lines.push(Line::of("guest's own #BP, #DB", own_traps(kvm)));
    lines
}

fn line(kvm: &Kvm, event: Event, name: &str) -> Result<Line, ProbeError> {
    let kernel = outcome(kvm, event, Ring::Kernel)?;
    let user = outcome(kvm, event, Ring::User)?;
    let reported = |outcome| matches!(outcome, Outcome::Reported | Outcome::ReportedAgain);
    let usable = |outcome| reported(outcome) || matches!(outcome, Outcome::InGuest(_) | Outcome::EmulationError);
    let status = match (reported(kernel) && reported(user), usable(kernel) || usable(user)) {
        (true, _) => Status::Ok,
        (false, true) => Status::Quirk,
        (false, false) => Status::No,
    };
    let (kernel, user) = (kernel.describe(), user.describe());
    let detail = if kernel == user { kernel } else { format!("ring 0: {kernel}; ring 3: {user}") };
    Ok(Line::new(name, status, detail))
}

fn outcome(kvm: &Kvm, event: Event, ring: Ring) -> Result<Outcome, ProbeError> {
    let mut guest = TinyGuest::new(kvm, Config::default())?;
    let at = |snippet: Snippet| ring.code() + snippet.offset();
    let (flag, snippet, expected) = match event {
        Event::SoftwareBreakpoint => (KVM_GUESTDBG_USE_SW_BP, Snippet::Int3, at(Snippet::Int3)),
        Event::HardwareBreakpoint => (KVM_GUESTDBG_USE_HW_BP, Snippet::Debug, at(Snippet::DebugBreak)),
        Event::Step => (KVM_GUESTDBG_SINGLESTEP, Snippet::Debug, at(Snippet::DebugBreak)),
        Event::Watchpoint => (KVM_GUESTDBG_USE_HW_BP, Snippet::Debug, at(Snippet::DebugWritten)),
    };
    let mut debug = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | flag, ..Default::default() };
    match event {
        Event::HardwareBreakpoint => {
            (debug.arch.debugreg[0], debug.arch.debugreg[7]) = (expected, DR7_EXECUTE);
        }
        Event::Watchpoint => {
            let watched = layout::RESULTS + 8 * slot::OUT as u64;
            (debug.arch.debugreg[0], debug.arch.debugreg[7]) = (watched, DR7_WRITE_8);
        }
        Event::SoftwareBreakpoint | Event::Step => {}
    }
    guest.start(snippet, ring, 1)?;
    guest.vcpu().set_guest_debug(&debug).map_err(ProbeError::kvm("KVM_SET_GUEST_DEBUG"))?;
    let stop = guest.run(LIMIT)?;
    Ok(match stop {
        Stop::Debug { pc, .. } if pc == expected => {
            let again = event == Event::HardwareBreakpoint
                && matches!(guest.run(LIMIT)?, Stop::Debug { pc, .. } if pc == expected);
            if again { Outcome::ReportedAgain } else { Outcome::Reported }
        }
        // A step that is reported inside of an entry stub: the exception went to the guest, and its handler was stepped.
        Stop::Debug { pc, .. } if (layout::STUBS..layout::STUBS + 0x1000).contains(&pc) => {
            Outcome::InGuest(((pc - layout::STUBS) / 16) as u8)
        }
        Stop::Refused { rip } if rip == expected => Outcome::EmulationError,
        stop if guest.finished(stop, ring) => Outcome::Nothing,
        Stop::Done => guest.vector().map_or(Outcome::Odd(stop), Outcome::InGuest),
        stop => Outcome::Odd(stop),
    })
}

/// Without guest debugging: do int3 and RFLAGS.TF in ring 3 arrive in the guest's own handlers?
fn own_traps(kvm: &Kvm) -> Result<Line, ProbeError> {
    let mut guest = TinyGuest::new(kvm, Config::default())?;
    guest.start(Snippet::Int3, Ring::User, 0)?;
    let stop = guest.run(LIMIT)?;
    let breakpoint = stop == Stop::Done && guest.vector() == Some(3);
    guest.start_at(layout::UCODE + Snippet::Debug.offset(), Ring::User, 0, RFLAGS_TF, 0)?;
    let stop = guest.run(LIMIT)?;
    let step = stop == Stop::Done
        && guest.vector() == Some(1)
        && guest.result(slot::RIP) == layout::UCODE + Snippet::DebugBreak.offset();
    let word = |works| if works { "arrives" } else { "does not arrive" };
    let detail = format!("from ring 3: int3 {}, a step by RFLAGS.TF {}", word(breakpoint), word(step));
    let status = if breakpoint && step { Status::Ok } else { Status::No };
    Ok(Line::new("guest's own #BP, #DB", status, detail))
}
