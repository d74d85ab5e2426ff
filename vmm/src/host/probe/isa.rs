//! How instructions behave: speed of either ring, SYSCALL, XSAVE, which instructions ring 0 refuses, CPUID in ring 3.

use std::time::Duration;

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;

use super::ProbeError;
use super::code::{Snippet, slot};
use super::fast::{self, Findings, INTERPRETED_CYCLES_PER_TURN, SyscallFinding, XsaveFinding};
use super::guest::{Config, Ring, Stop, TinyGuest};
use crate::host::report::{Line, Status, name};

const LIMIT: Duration = Duration::from_millis(500);
/// Loop turns for the speed of ring 3: a tenth of a millisecond natively.
const USER_TURNS: u64 = 200_000;
/// Loop turns for ring 0: some milliseconds when interpreted.
const KERNEL_TURNS: u64 = 2_000;

/// Instructions that a kernel would like to use in ring 0. r8 and rcx are 0, rax is 0, rdi points at a zeroed page.
/// The CPUID bit is (leaf, register a..d as 0..3, bit).
const INSTRUCTIONS: [Instruction; 20] = [
    ("fxsave", &[0x48, 0x0f, 0xae, 0x07], Some((1, 3, 24))),
    ("xsave", &[0x48, 0x0f, 0xae, 0x27], Some((1, 2, 26))),
    ("xrstor", &[0x48, 0x0f, 0xae, 0x2f], Some((1, 2, 26))),
    ("xgetbv", &[0x0f, 0x01, 0xd0], Some((1, 2, 26))),
    ("stac", &[0x0f, 0x01, 0xcb], Some((7, 1, 20))),
    ("clac", &[0x0f, 0x01, 0xca], Some((7, 1, 20))),
    // The type 2 in rax: all contexts.
    ("invpcid", &[0x6a, 0x02, 0x58, 0x66, 0x0f, 0x38, 0x82, 0x07], Some((7, 1, 10))),
    ("invlpg", &[0x0f, 0x01, 0x3f], None),
    ("swapgs", &[0x0f, 0x01, 0xf8], None),
    ("rdtscp", &[0x0f, 0x01, 0xf9], Some((0x8000_0001, 3, 27))),
    ("rdrand", &[0x48, 0x0f, 0xc7, 0xf0], Some((1, 2, 30))),
    ("popcnt", &[0xf3, 0x48, 0x0f, 0xb8, 0xc0], Some((1, 2, 23))),
    ("crc32", &[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc0], Some((1, 2, 20))),
    ("andn", &[0xc4, 0xe2, 0xf8, 0xf2, 0xc0], Some((7, 1, 3))),
    ("cmpxchg16b", &[0x48, 0x0f, 0xc7, 0x0f], Some((1, 2, 13))),
    ("SSE", &[0x0f, 0x57, 0xc0], Some((1, 3, 25))),
    ("mfence", &[0x0f, 0xae, 0xf0], Some((1, 3, 26))),
    ("clflush", &[0x0f, 0xae, 0x3f], Some((1, 3, 19))),
    ("int n", &[0xcd, 0x80], None),
    ("int3", &[0xcc], None),
];

/// The lines of this group.
pub fn examine(kvm: &Kvm) -> Vec<Line> {
    let findings = fast::examine(kvm);
    let mut lines = vec![Line::of(name::RING0_SPEED, speed(kvm))];
    match findings {
        Ok(findings) => lines.extend([syscall(&findings), xsave(&findings)]),
        Err(error) => {
            let unknown = |name| Line::new(name, Status::Unknown, error.to_string());
            lines.extend([unknown(name::SYSCALL), unknown(name::RING0_XSAVE)]);
        }
    }
    lines.push(Line::of("ring 0 instructions", instructions(kvm)));
    lines.push(Line::of("CPUID in ring 3", cpuid(kvm)));
    lines
}

/// Cycles per turn of a loop of two instructions, the best of three.
fn cycles_per_turn(guest: &mut TinyGuest, ring: Ring, turns: u64) -> Result<f64, ProbeError> {
    let mut best = u64::MAX;
    for _ in 0..3 {
        guest.complete("speed", Snippet::Loop, ring, turns, LIMIT)?;
        best = best.min(guest.result(slot::OUT));
    }
    Ok(best as f64 / turns as f64)
}

fn speed(kvm: &Kvm) -> Result<Line, ProbeError> {
    let mut guest = TinyGuest::new(kvm, Config::default())?;
    let kernel = cycles_per_turn(&mut guest, Ring::Kernel, KERNEL_TURNS)?;
    let user = cycles_per_turn(&mut guest, Ring::User, USER_TURNS)?;
    let per_instruction = kernel / 2.0;
    let khz = guest.vcpu().get_tsc_khz().unwrap_or(0);
    Ok(if kernel > INTERPRETED_CYCLES_PER_TURN as f64 {
        let rate = f64::from(khz) * 1e3 / per_instruction / 1e6;
        let detail = format!(
            "interpreted: {per_instruction:.0} cycles an instruction ({rate:.1} million a second); ring 3 {:.1}",
            user / 2.0
        );
        Line::new(name::RING0_SPEED, Status::Quirk, detail)
    } else {
        let detail = format!("native: {per_instruction:.1} cycles an instruction; ring 3 {:.1}", user / 2.0);
        Line::new(name::RING0_SPEED, Status::Ok, detail)
    })
}

fn syscall(findings: &Findings) -> Line {
    match findings.syscall {
        SyscallFinding::Works => Line::new(name::SYSCALL, Status::Ok, "SYSCALL in ring 3 enters ring 0 at LSTAR"),
        SyscallFinding::FaultsAtEntry => Line::new(
            name::SYSCALL,
            Status::Quirk,
            "SYSCALL goes to LSTAR but stays in ring 3: #PF there, which the kernel takes for the call",
        ),
        SyscallFinding::Raises(vector) => {
            Line::new(name::SYSCALL, Status::No, format!("SYSCALL in ring 3 raises exception {vector}"))
        }
    }
}

fn xsave(findings: &Findings) -> Line {
    let refusal = match findings.xsave {
        XsaveFinding::Works => return Line::new(name::RING0_XSAVE, Status::Ok, "works"),
        XsaveFinding::Refused => "refused by the emulator".to_string(),
        XsaveFinding::Raises(vector) => format!("raises exception {vector}"),
    };
    if findings.user_has_extended_state() {
        let detail = format!(
            "{refusal}, while ring 3 has AVX state (XCR0 {:#x}): the kernel saves it in a ring-3 page",
            findings.user_xcr0
        );
        Line::new(name::RING0_XSAVE, Status::Quirk, detail)
    } else {
        Line::new(name::RING0_XSAVE, Status::No, format!("{refusal}; FXSAVE covers all that ring 3 can have"))
    }
}

/// An instruction: name, code, CPUID feature (leaf, register a..d as 0..3, bit) if it has one.
type Instruction = (&'static str, &'static [u8], Option<(u32, usize, u32)>);

fn offers(cpuid: &CpuId, needs: Option<(u32, usize, u32)>) -> bool {
    needs.is_none_or(|(leaf, register, bit)| {
        let mut entries = cpuid.as_slice().iter().filter(|entry| entry.function == leaf && entry.index == 0);
        entries.any(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx][register] & 1 << bit != 0)
    })
}

fn instructions(kvm: &Kvm) -> Result<Line, ProbeError> {
    let (mut works, mut refused, mut raises, mut absent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, code, needs) in INSTRUCTIONS {
        // One machine each: a refused instruction may leave the emulator with work to do.
        let mut offered = true;
        let mut guest = TinyGuest::with_cpuid(kvm, Config::default(), |cpuid| offered = offers(cpuid, needs))?;
        let at = guest.write_instruction(code);
        guest.start_at(at, Ring::Kernel, 0, 0, 0)?;
        let expected = match name {
            "int n" => Some(0x80),
            "int3" => Some(3),
            _ => None,
        };
        match guest.run(LIMIT)? {
            Stop::Done if guest.vector() == expected => works.push(name.to_string()),
            Stop::Done if !offered => absent.push(name.to_string()),
            Stop::Done => raises.push(format!("{name} (exception {})", guest.vector().unwrap_or(0xff))),
            Stop::Refused { .. } => refused.push(name.to_string()),
            stop => return Err(guest.unexpected("instructions", stop)),
        }
    }
    let status = if refused.is_empty() && raises.is_empty() { Status::Ok } else { Status::Quirk };
    let lists = [("refused", refused), ("raising", raises), ("not offered", absent), ("working", works)];
    let detail: Vec<_> = lists
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(word, list)| format!("{word}: {}", list.join(" ")))
        .collect();
    Ok(Line::new("ring 0 instructions", status, detail.join("; ")))
}

/// Sets a leaf that no host has, and looks whether ring 0 and ring 3 see it.
pub fn rings_that_see_our_cpuid(kvm: &Kvm) -> Result<[bool; 2], ProbeError> {
    const LEAF: u32 = 0x4000_0000;
    const SIGNATURE: u32 = 0x1234_5678;
    let mut guest = TinyGuest::with_cpuid(kvm, Config::default(), |cpuid| {
        for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == LEAF) {
            (entry.eax, entry.ebx) = (LEAF, SIGNATURE);
        }
    })?;
    let mut sees = [false; 2];
    for (ring, sees) in Ring::ALL.into_iter().zip(&mut sees) {
        guest.complete("cpuid", Snippet::Cpuid, ring, u64::from(LEAF), LIMIT)?;
        *sees = guest.result(slot::OUT + 1) as u32 == SIGNATURE;
    }
    Ok(sees)
}

fn cpuid(kvm: &Kvm) -> Result<Line, ProbeError> {
    let (status, detail) = match rings_that_see_our_cpuid(kvm)? {
        [true, true] => (Status::Ok, "what the VMM sets"),
        [true, false] => (
            Status::Quirk,
            "the host's own; ring 0 sees what the VMM sets: programs find --topology in /proc and /sys, --cpu hides nothing",
        ),
        [false, _] => (Status::No, "ring 0 doesn't see what the VMM sets"),
    };
    Ok(Line::new("CPUID in ring 3", status, detail))
}
