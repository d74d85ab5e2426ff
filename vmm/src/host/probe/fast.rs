//! The three facts that `run` needs before it starts a guest (docs/abi.md, `quirks=`), found in one run of one tiny
//! guest: is ring 0 interpreted, does SYSCALL raise the privilege level, is XSAVE allowed in ring 0.

use std::time::Duration;

use kvm_ioctls::Kvm;

use super::ProbeError;
use super::code::{FAST_ROUNDS, FAST_TURNS, Snippet, layout, slot};
use super::guest::{Config, Ring, Stop, TinyGuest};
use crate::host::Quirks;

/// Above so many cycles a loop turn (two instructions), ring 0 is interpreted. Native hardware needs 1 to 2, with a
/// trapped RDTSC spread over the turns some 50; an interpreter needs thousands.
pub const INTERPRETED_CYCLES_PER_TURN: u64 = 200;

/// Long enough for a machine under load; a healthy probe takes a millisecond.
const LIMIT: Duration = Duration::from_millis(500);

/// XCR0: x87 and SSE, which FXSAVE covers (SDM vol. 1, 13.3).
const XCR0_FXSAVE: u32 = 0b11;

/// #PF error code of an instruction fetch in user mode from a page that is present (SDM vol. 3A, 4.7): P and U/S; I/D is
/// set as well where NX is on.
const PF_PRESENT_USER: u64 = 0b101;
const PF_FETCH: u64 = 1 << 4;

/// What the run found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Findings {
    /// Cycles of one turn of a loop of two instructions in ring 0, the best of three.
    pub cycles_per_turn: u64,
    /// What SYSCALL in ring 3 did.
    pub syscall: SyscallFinding,
    /// What XSAVE in ring 0 did.
    pub xsave: XsaveFinding,
    /// XCR0 (low half) as ring 3 reads it: the state that its programs can have; 0 if it sees no XSAVE.
    pub user_xcr0: u32,
}

impl Findings {
    /// Programs can have more state than FXSAVE saves.
    pub fn user_has_extended_state(&self) -> bool {
        self.user_xcr0 & !XCR0_FXSAVE != 0
    }
}

/// What XSAVE in ring 0 did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XsaveFinding {
    /// It saved.
    Works,
    /// The instruction emulator refuses it.
    Refused,
    /// An exception: not offered.
    Raises(u8),
}

/// What SYSCALL in ring 3 did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyscallFinding {
    /// LSTAR ran in ring 0.
    Works,
    /// LSTAR was reached, but still in ring 3: its fetch raised #PF.
    FaultsAtEntry,
    /// Another exception: no system calls by this instruction.
    Raises(u8),
}

/// Asks all three questions.
pub fn examine(kvm: &Kvm) -> Result<Findings, ProbeError> {
    let mut guest = TinyGuest::new(kvm, Config::default())?;
    let lstar = layout::KCODE + Snippet::FastLstar.offset();
    guest.set_syscall_entry(lstar)?;
    guest.start(Snippet::Fast, Ring::Kernel, 0)?;
    let stop = guest.run(LIMIT)?;
    let stage = guest.result(slot::STAGE);
    let xsave_at = layout::KCODE + Snippet::FastXsaveAt.offset();
    let xsave = match (stop, stage, guest.vector()) {
        (Stop::Done, 3, _) => XsaveFinding::Works,
        (Stop::Refused { rip }, 2, _) if rip == xsave_at => XsaveFinding::Refused,
        (Stop::Done, 2, Some(vector)) if guest.result(slot::RIP) == xsave_at => XsaveFinding::Raises(vector),
        _ => return Err(guest.unexpected("launch probe", stop)),
    };
    // The guest kept these before it tried XSAVE: vector, error code, RIP.
    let [vector, error, rip] = [4, 5, 6].map(|at| guest.result(slot::OUT + at));
    let syscall = match u8::try_from(vector) {
        Err(_) => SyscallFinding::Works,
        Ok(14) if rip == lstar && error & !PF_FETCH == PF_PRESENT_USER => SyscallFinding::FaultsAtEntry,
        Ok(vector) => SyscallFinding::Raises(vector),
    };
    let best = (0..FAST_ROUNDS).map(|round| guest.result(slot::OUT + round)).min().unwrap_or(0);
    let user_xcr0 = guest.result(slot::OUT + 7) as u32;
    Ok(Findings { cycles_per_turn: best / FAST_TURNS, syscall, xsave, user_xcr0 })
}

impl From<Findings> for Quirks {
    fn from(findings: Findings) -> Quirks {
        Quirks {
            pf_syscall: findings.syscall == SyscallFinding::FaultsAtEntry,
            user_xsave: findings.xsave != XsaveFinding::Works && findings.user_has_extended_state(),
            slow_ring0: findings.cycles_per_turn > INTERPRETED_CYCLES_PER_TURN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ordinary hardware answers.
    const NATIVE: Findings =
        Findings { cycles_per_turn: 1, syscall: SyscallFinding::Works, xsave: XsaveFinding::Works, user_xcr0: 0x3 };

    #[test]
    fn ordinary_hardware_has_no_quirks() {
        assert_eq!(Quirks::from(NATIVE), Quirks::default());
        // RDTSC that traps, as in some nested guests.
        assert_eq!(Quirks::from(Findings { cycles_per_turn: 80, ..NATIVE }), Quirks::default());
    }

    #[test]
    fn each_quirk_comes_from_its_own_finding() {
        let none = Quirks::default();
        for (findings, quirks) in [
            (Findings { cycles_per_turn: 3_500, ..NATIVE }, Quirks { slow_ring0: true, ..none }),
            (Findings { syscall: SyscallFinding::FaultsAtEntry, ..NATIVE }, Quirks { pf_syscall: true, ..none }),
            (Findings { syscall: SyscallFinding::Raises(6), ..NATIVE }, none),
            (Findings { xsave: XsaveFinding::Refused, user_xcr0: 0xe7, ..NATIVE }, Quirks { user_xsave: true, ..none }),
            (
                Findings { xsave: XsaveFinding::Raises(6), user_xcr0: 0x7, ..NATIVE },
                Quirks { user_xsave: true, ..none },
            ),
            // FXSAVE is enough where ring 3 has no more than that.
            (Findings { xsave: XsaveFinding::Raises(6), user_xcr0: 0, ..NATIVE }, none),
        ] {
            assert_eq!(Quirks::from(findings), quirks, "{findings:?}");
        }
    }
}
