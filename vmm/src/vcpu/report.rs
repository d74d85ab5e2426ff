//! The report of an exit that the VMM did not expect.
//!
//! The vCPU's thread takes a [`Snapshot`] before it ends; the event loop formats it with [`render`], which looks
//! symbols up in the kernel file. Everything shown comes from a possibly broken guest and is only printed.

use std::fmt::Write;

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::exit::Fatal;
use super::run_loop::Failure;
use crate::boot::kernel::Kernel;
use crate::guestview::{GuestViewError, Snapshot as Guest, Task};
use crate::memory::Ram;

/// The longest x86 instruction (Intel SDM vol. 2A, 2.3.11).
const MAX_INSTRUCTION: usize = 15;
/// Return addresses printed at most.
const MAX_FRAMES: usize = 16;

/// A vCPU at the moment of its end, as far as KVM told.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// General registers.
    pub regs: Option<kvm_regs>,
    /// Control and segment registers.
    pub sregs: Option<kvm_sregs>,
    /// Bytes at RIP.
    pub code: Vec<u8>,
    /// Return addresses found by following frame pointers.
    pub frames: Vec<u64>,
}

impl Snapshot {
    /// Asks KVM. Nothing here can fail: what isn't known is left out.
    pub fn take(fd: &mut VcpuFd, ram: &Ram) -> Self {
        let regs = fd.get_regs().ok();
        let sregs = fd.get_sregs().ok();
        let (mut code, mut frames) = (Vec::new(), Vec::new());
        if let (Some(regs), Some(sregs)) = (&regs, &sregs) {
            code = read_virtual(fd, ram, sregs.cs.base.wrapping_add(regs.rip), MAX_INSTRUCTION);
            if sregs.efer & (1 << 10) != 0 {
                frames = follow_frames(regs.rbp, |address| {
                    let bytes = read_virtual(fd, ram, address, 16);
                    Some((u64_at(&bytes, 0)?, u64_at(&bytes, 8)?))
                });
            }
        }
        Self { regs, sregs, code, frames }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// Reads guest-virtual memory through the vCPU's own page tables; shorter where a page is missing.
fn read_virtual(fd: &VcpuFd, ram: &Ram, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = address.wrapping_add(bytes.len() as u64);
        let Ok(translation) = fd.translate_gva(at) else { break };
        if translation.valid == 0 {
            break;
        }
        let mut chunk = vec![0; (len - bytes.len()).min(0x1000 - (at & 0xfff) as usize)];
        if ram.read_slice(&mut chunk, GuestAddress(translation.physical_address)).is_err() {
            break;
        }
        bytes.extend(chunk);
    }
    bytes
}

/// Follows saved frame pointers; `read` gives (saved RBP, return address). Stacks grow down, so frames must rise.
fn follow_frames(rbp: u64, read: impl Fn(u64) -> Option<(u64, u64)>) -> Vec<u64> {
    let (mut frames, mut frame) = (Vec::new(), rbp);
    while frames.len() < MAX_FRAMES && frame != 0 && frame % 8 == 0 {
        let Some((next, ret)) = read(frame) else { break };
        if ret == 0 {
            break;
        }
        frames.push(ret);
        if next <= frame {
            break;
        }
        frame = next;
    }
    frames
}

/// What the guest's memory told of its tasks when the vCPUs had stopped.
#[derive(Debug)]
pub struct Tasks {
    /// All of them, or why there are none.
    pub snapshot: Result<Guest, GuestViewError>,
    /// The failed vCPU, as the guest knows it.
    pub apic_id: u32,
}

impl Tasks {
    /// The line about the task that the vCPU ran.
    fn line(&self, cpl: Option<u8>) -> String {
        let mode = match cpl {
            Some(3) => ", in user mode",
            Some(_) => ", in the kernel",
            None => "",
        };
        let task = self
            .snapshot
            .as_ref()
            .map(|s| s.cpus.iter().find(|cpu| cpu.apic_id == self.apic_id).and_then(|cpu| s.current(cpu.index)));
        match task {
            Ok(Some(task)) => format!("{}{mode}", name(task)),
            Ok(None) => "none is known for this vCPU".to_owned(),
            Err(why) => format!("not known: {why}"),
        }
    }
}

/// A task in a few words.
fn name(task: &Task) -> String {
    let process = task.process.map_or_else(String::new, |process| format!(" of process {process}"));
    format!("{} \"{}\" ({} task{process}, {})", task.id, task.name, task.kind, task.state.name())
}

/// What each CPU of a guest that was stopped from outside was running, a line each.
pub fn running(snapshot: &Guest) -> String {
    let mut out = String::from("at the end the guest's CPUs ran:\n");
    for cpu in &snapshot.cpus {
        let task = snapshot.current(cpu.index).map_or_else(|| "not known".to_owned(), name);
        // Writing to a String can't fail, here and below, so the results are dropped.
        let _ = writeln!(out, "  CPU {}: task {task}", cpu.index);
    }
    out
}

/// The report as text, several lines.
pub fn render(failure: &Failure, kernel: Option<&Kernel>, tasks: &Tasks) -> String {
    let mut out = String::new();
    let _ = write_report(&mut out, failure, tasks, |address| kernel.and_then(|kernel| kernel.symbol(address)));
    out
}

fn write_report(
    out: &mut String,
    failure: &Failure,
    tasks: &Tasks,
    symbol: impl Fn(u64) -> Option<(String, u64)>,
) -> std::fmt::Result {
    let Failure { vcpu, reason, snapshot } = failure;
    let place = |address: u64| match symbol(address) {
        Some((name, offset)) => format!("{address:#018x} {name}+{offset:#x}"),
        None => format!("{address:#018x}"),
    };
    writeln!(out, "vCPU {vcpu} stopped: {reason}")?;
    if let Some(regs) = &snapshot.regs {
        writeln!(out, "  at RIP {}", place(regs.rip))?;
    }
    // The privilege level is that of SS (Intel SDM vol. 3A, 5.5).
    writeln!(out, "  task: {}", tasks.line(snapshot.sregs.as_ref().map(|sregs| sregs.ss.dpl)))?;
    let bytes = match reason {
        Fatal::Emulation { bytes } if !bytes.is_empty() => bytes,
        _ => &snapshot.code,
    };
    if bytes.is_empty() {
        writeln!(out, "  instruction bytes: not readable")?;
    } else {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(out, "  instruction bytes: {}", hex.join(" "))?;
    }
    if let Fatal::Emulation { .. } = reason {
        writeln!(
            out,
            "  ring 0 is interpreted on this host, or the instruction works on device memory; KVM's interpreter \
             doesn't know the instruction above (see: taskvisor doctor)"
        )?;
    }
    if let Some(regs) = &snapshot.regs {
        write_regs(out, regs)?;
    }
    if let Some(sregs) = &snapshot.sregs {
        write_sregs(out, sregs)?;
    }
    if !snapshot.frames.is_empty() {
        writeln!(out, "  called from:")?;
        for frame in &snapshot.frames {
            writeln!(out, "    {}", place(*frame))?;
        }
    }
    Ok(())
}

fn write_regs(out: &mut String, r: &kvm_regs) -> std::fmt::Result {
    let rows = [
        [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
        [("rsi", r.rsi), ("rdi", r.rdi), ("rbp", r.rbp), ("rsp", r.rsp)],
        [("r8 ", r.r8), ("r9 ", r.r9), ("r10", r.r10), ("r11", r.r11)],
        [("r12", r.r12), ("r13", r.r13), ("r14", r.r14), ("r15", r.r15)],
    ];
    for row in rows {
        for (name, value) in row {
            write!(out, "  {name} {value:016x}")?;
        }
        writeln!(out)?;
    }
    writeln!(out, "  rip {:016x}  rflags {:08x}", r.rip, r.rflags)
}

fn write_sregs(out: &mut String, s: &kvm_sregs) -> std::fmt::Result {
    writeln!(
        out,
        "  cr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  cr8 {:x}  efer {:x}",
        s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer
    )?;
    let segments = [
        ("cs", &s.cs),
        ("ds", &s.ds),
        ("es", &s.es),
        ("fs", &s.fs),
        ("gs", &s.gs),
        ("ss", &s.ss),
        ("tr", &s.tr),
        ("ldt", &s.ldt),
    ];
    for (name, segment) in segments {
        write_segment(out, name, segment)?;
    }
    let table = |t: &kvm_dtable| format!("{:016x} limit {:04x}", t.base, t.limit);
    writeln!(out, "  gdt {}  idt {}", table(&s.gdt), table(&s.idt))
}

fn write_segment(out: &mut String, name: &str, s: &kvm_segment) -> std::fmt::Result {
    let width = match (s.l, s.db) {
        (1, _) => "64",
        (_, 1) => "32",
        _ => "16",
    };
    writeln!(
        out,
        "  {name:3} {:04x}  base {:016x}  limit {:08x}  type {:x} dpl {} {}{width}-bit",
        s.selector,
        s.base,
        s.limit,
        s.type_,
        s.dpl,
        if s.present == 1 { "" } else { "not present " },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(reason: Fatal) -> Failure {
        let regs = kvm_regs { rip: 0xffff_ffff_8010_0042, rax: 0xabc, ..Default::default() };
        Failure {
            vcpu: 3,
            reason,
            snapshot: Snapshot {
                regs: Some(regs),
                sregs: Some(kvm_sregs { cr2: 0x1234, ..Default::default() }),
                code: vec![0x0f, 0x0b],
                frames: vec![0xffff_ffff_8010_0100],
            },
        }
    }

    fn nobody() -> Tasks {
        Tasks { snapshot: Err(GuestViewError::NoDirectory), apic_id: 0 }
    }

    /// Task 7 runs on the CPU with APIC id 6.
    fn sleeper() -> Tasks {
        let task = serde_json::json!({
            "id": 7, "name": "sleep", "kind": "user", "process": 5, "state": "running", "on_cpu": true, "cpu": 3, "run_ns": 0,
            "voluntary_switches": 0, "involuntary_switches": 0, "migrations": 0, "faults": 0,
            "address": "0x0", "page_table": "0x0", "saved_rsp": "0x0", "fs_base": "0x0",
        });
        let cpu = serde_json::json!({
            "index": 3, "apic_id": 6, "current": 7, "nr_running": 1, "switches": 0, "syscalls": 0, "faults": 0,
            "timer_interrupts": 0, "reschedule_ipis": 0,
        });
        let guest = serde_json::json!({ "cpus": [cpu], "tasks": [task], "torn": false, "left_out": 0 });
        Tasks { snapshot: Ok(serde_json::from_value(guest).unwrap()), apic_id: 6 }
    }

    #[test]
    fn a_timeout_names_what_ran() {
        let text = running(sleeper().snapshot.as_ref().unwrap());
        assert!(text.contains("CPU 3: task 7 \"sleep\""), "{text}");
    }

    #[test]
    fn a_report_names_everything() {
        let mut out = String::new();
        write_report(&mut out, &failure(Fatal::TripleFault), &sleeper(), |address| {
            (address == 0xffff_ffff_8010_0042).then(|| ("kernel::main".to_owned(), 0x42))
        })
        .unwrap();
        for part in [
            "vCPU 3",
            "triple fault",
            "kernel::main+0x42",
            "0f 0b",
            "rax 0000000000000abc",
            "cr2 0000000000001234",
            "task: 7 \"sleep\" (user task of process 5, running), in the kernel",
        ] {
            assert!(out.contains(part), "{part} is missing in:\n{out}");
        }
        assert!(out.contains("called from:\n    0xffffffff80100100"));
    }

    #[test]
    fn kvms_own_bytes_are_preferred_and_doctor_is_named() {
        let report = render(&failure(Fatal::Emulation { bytes: vec![0xf3, 0x0f, 0xb8] }), None, &nobody());
        assert!(report.contains("f3 0f b8") && report.contains("taskvisor doctor"), "{report}");
    }

    #[test]
    fn nothing_known_still_prints() {
        let failure = Failure { vcpu: 0, reason: Fatal::Unknown(99), snapshot: Snapshot::default() };
        let report = render(&failure, None, &nobody());
        assert!(report.contains("not readable") && report.contains("task: not known"), "{report}");
    }

    #[test]
    fn frames_end_at_loops_and_unreadable_memory() {
        assert_eq!(follow_frames(0x1000, |f| Some((f, 7))), [7]);
        assert_eq!(follow_frames(0x1000, |f| (f < 0x1020).then_some((f + 0x10, f))), [0x1000, 0x1010]);
        assert!(follow_frames(0x1001, |_| None).is_empty());
        assert_eq!(follow_frames(0x1000, |f| Some((f + 8, 1))).len(), MAX_FRAMES);
    }
}
