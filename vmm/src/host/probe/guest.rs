//! The smallest machine that can answer a question: one vCPU in long mode, 256 KiB, a handler for every vector.
//!
//! Invariant: [`TinyGuest::start`] puts everything (registers, system registers, results) back, so runs don't influence
//! each other; what a run may leave behind in KVM (guest debugging, TSC settings) is its probe's to undo, or the guest
//! is dropped.

use std::fmt;
use std::time::Duration;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
    kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::ProbeError;
use super::code::{self, Snippet, layout, slot};
use super::deadline::Deadline;

/// GDT: null, kernel code, kernel data, (32-bit user code, unused), user data, user code, TSS (two entries).
/// The order is what SYSCALL and SYSRET ask for (SDM vol. 3A, 5.8.8).
pub const KERNEL_CS: u16 = 0x08;
const KERNEL_SS: u16 = 0x10;
const SYSRET_BASE: u16 = 0x18;
/// User data, RPL 3.
pub const USER_SS: u16 = 0x23;
/// User code, RPL 3.
pub const USER_CS: u16 = 0x2b;
const TSS_SELECTOR: u16 = 0x30;

const PAGE: u64 = 0x1000;
/// Page table bits: present, writable, user.
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;

/// CR0: PE, MP, NE, WP, PG. EFER: SCE, LME, LMA. CR4: PAE, OSFXSR, OSXMMEXCPT.
const CR0: u64 = 1 | 1 << 1 | 1 << 5 | 1 << 16 | 1 << 31;
const EFER: u64 = 1 | 1 << 8 | 1 << 10;
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4.TSD: RDTSC only in ring 0.
pub const CR4_TSD: u64 = 1 << 2;
/// RFLAGS: the bit that is always set.
const RFLAGS: u64 = 1 << 1;
/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = 1 << 8;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
/// RFLAGS that SYSCALL clears: TF, IF, DF, AC.
const SYSCALL_CLEARS: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 18;

/// Privilege level of a run's first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// Ring 0.
    Kernel,
    /// Ring 3.
    User,
}

impl Ring {
    /// Both.
    pub const ALL: [Ring; 2] = [Ring::Kernel, Ring::User];

    /// Where the code is for this ring.
    pub fn code(self) -> u64 {
        match self {
            Ring::Kernel => layout::KCODE,
            Ring::User => layout::UCODE,
        }
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ring::Kernel => "ring 0",
            Ring::User => "ring 3",
        })
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The snippet ended, or a trap ended it: look at the results.
    Done,
    /// The snippet waits for the host.
    Ready,
    /// KVM_EXIT_DEBUG.
    Debug {
        /// Which exception stands behind it.
        exception: u32,
        /// Where.
        pc: u64,
        /// DR6.
        dr6: u64,
    },
    /// KVM_EXIT_INTERNAL_ERROR, suberror 1: the instruction emulator refuses.
    Refused {
        /// The refused instruction.
        rip: u64,
    },
    /// Triple fault.
    Shutdown,
    /// The time was up.
    TimedOut,
    /// Any other exit reason (linux/kvm.h, KVM_EXIT_*).
    Other(u32),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Done => f.write_str("its end"),
            Stop::Ready => f.write_str("a wait for the host"),
            Stop::Debug { exception, pc, .. } => write!(f, "a debug exit (exception {exception}) at {pc:#x}"),
            Stop::Refused { rip } => write!(f, "an emulation error at {rip:#x}"),
            Stop::Shutdown => f.write_str("a triple fault"),
            Stop::TimedOut => f.write_str("a time-out"),
            Stop::Other(reason) => write!(f, "exit reason {reason}"),
        }
    }
}

/// What a machine has beside its CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// The in-kernel interrupt controllers, with x2APIC on.
    pub irqchip: bool,
}

/// Guest RAM: private anonymous memory, unmapped on drop.
struct Ram(*mut u8);

impl Ram {
    fn new() -> Result<Ram, ProbeError> {
        // SAFETY: a fresh private mapping of constant size.
        let at = unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), layout::RAM, prot, flags, -1, 0)
        };
        if at == libc::MAP_FAILED {
            return Err(ProbeError::Host { call: "mmap", error: std::io::Error::last_os_error() });
        }
        Ok(Ram(at.cast()))
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= layout::RAM, "probe layout");
        // SAFETY: in bounds (checked); the vCPU isn't running while the host writes, and no reference covers guest RAM.
        unsafe { self.0.add(at as usize).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    fn write_u64(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    fn read_u64(&self, at: u64) -> u64 {
        assert!(at as usize + 8 <= layout::RAM, "probe layout");
        // SAFETY: in bounds (checked); the vCPU isn't running while the host reads.
        unsafe { self.0.add(at as usize).cast::<u64>().read_unaligned() }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; the VM that used it is gone (field order in `TinyGuest`).
        unsafe { libc::munmap(self.0.cast(), layout::RAM) };
    }
}

/// See the module's description.
pub struct TinyGuest {
    vcpu: VcpuFd,
    vm: VmFd,
    ram: Ram,
    base: kvm_sregs,
    has_xsave: bool,
    config: Config,
}

impl TinyGuest {
    /// A machine whose CPUID is what KVM supports.
    pub fn new(kvm: &Kvm, config: Config) -> Result<TinyGuest, ProbeError> {
        TinyGuest::with_cpuid(kvm, config, |_| {})
    }

    /// A machine whose CPUID `change` may alter.
    pub fn with_cpuid(kvm: &Kvm, config: Config, change: impl FnOnce(&mut CpuId)) -> Result<TinyGuest, ProbeError> {
        let ram = Ram::new()?;
        let vm = kvm.create_vm().map_err(ProbeError::kvm("KVM_CREATE_VM"))?;
        if config.irqchip {
            vm.create_irq_chip().map_err(ProbeError::kvm("KVM_CREATE_IRQCHIP"))?;
        }
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: layout::RAM as u64,
            userspace_addr: ram.0 as u64,
        };
        // SAFETY: the mapping is `RAM` bytes and outlives the VM (field order: `ram` is dropped after `vm`).
        unsafe { vm.set_user_memory_region(region) }.map_err(ProbeError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        let vcpu = vm.create_vcpu(0).map_err(ProbeError::kvm("KVM_CREATE_VCPU"))?;
        let mut cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(ProbeError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        change(&mut cpuid);
        vcpu.set_cpuid2(&cpuid).map_err(ProbeError::kvm("KVM_SET_CPUID2"))?;
        // CPUID.1:ECX[26] XSAVE.
        let has_xsave = cpuid.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & 1 << 26 != 0);
        let base = vcpu.get_sregs().map_err(ProbeError::kvm("KVM_GET_SREGS"))?;
        let guest = TinyGuest { vcpu, vm, ram, base, has_xsave, config };
        guest.load();
        if has_xsave {
            guest.set_xcr0()?;
        }
        Ok(guest)
    }

    /// The machine's VM, for probes that attach something to it.
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// The machine's vCPU, for probes that set something on it.
    pub fn vcpu(&self) -> &VcpuFd {
        &self.vcpu
    }

    /// CPUID says that XSAVE exists.
    pub fn has_xsave(&self) -> bool {
        self.has_xsave
    }

    /// Page tables, descriptor tables, stubs and code.
    fn load(&self) {
        let ram = &self.ram;
        let table = PRESENT | WRITABLE | USER;
        for level in 0..3 {
            ram.write_u64(layout::PML4 + level * PAGE, (layout::PML4 + (level + 1) * PAGE) | table);
        }
        for page in 0..layout::RAM as u64 / PAGE {
            let at = page * PAGE;
            let user = at == layout::RESULTS || at == layout::USTACK_TOP - PAGE || at >= layout::UCODE;
            let bits = PRESENT | WRITABLE | if user { USER } else { 0 };
            ram.write_u64(layout::PML4 + 3 * PAGE + 8 * page, at | bits);
        }
        // Flat segments; the base and limit don't matter in 64-bit mode (SDM vol. 3A, 3.4.5).
        for (selector, descriptor) in [
            (KERNEL_CS, 0x00af_9b00_0000_ffff),
            (KERNEL_SS, 0x00cf_9300_0000_ffff),
            (USER_SS & !3, 0x00cf_f300_0000_ffff),
            (USER_CS & !3, 0x00af_fb00_0000_ffff),
            (TSS_SELECTOR, 0x0000_8b00_0000_0067 | layout::TSS << 16),
        ] {
            ram.write_u64(layout::GDT + u64::from(selector), descriptor);
        }
        ram.write_u64(layout::TSS + 4, layout::KSTACK_TOP);
        // The I/O permission bitmap lies past the limit: no port in ring 3 (SDM vol. 1, 19.5.2).
        ram.write(layout::TSS + 102, &0x68_u16.to_le_bytes());
        let trap = layout::KCODE + Snippet::Trap.offset();
        for vector in 0..256_u64 {
            let stub = layout::STUBS + 16 * vector;
            // Interrupt gate, present, reachable from ring 3 (SDM vol. 3A, 6.14.1).
            let gate = stub & 0xffff | u64::from(KERNEL_CS) << 16 | 0xee00 << 32 | (stub & 0xffff_0000) << 32;
            ram.write_u64(layout::IDT + 16 * vector, gate);
            // push 0 (nop; nop where the CPU has pushed an error code); push vector; jmp trap.
            let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
            let mut code = if has_error { vec![0x90, 0x90] } else { vec![0x6a, 0x00] };
            code.push(0x68);
            code.extend((vector as u32).to_le_bytes());
            code.push(0xe9);
            let next = stub + code.len() as u64 + 4;
            code.extend((trap.wrapping_sub(next) as u32).to_le_bytes());
            ram.write(stub, &code);
        }
        ram.write(layout::KCODE, code::bytes());
        ram.write(layout::UCODE, code::bytes());
    }

    /// x87 and SSE state under XSAVE's control.
    fn set_xcr0(&self) -> Result<(), ProbeError> {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
        xcrs.xcrs[0].value = 3;
        self.vcpu.set_xcrs(&xcrs).map_err(ProbeError::kvm("KVM_SET_XCRS"))
    }

    /// Sets the MSRs that SYSCALL uses.
    pub fn set_syscall_entry(&self, entry: u64) -> Result<(), ProbeError> {
        let star = u64::from(KERNEL_CS) << 32 | u64::from(SYSRET_BASE) << 48;
        self.set_msrs(&[(MSR_STAR, star), (MSR_LSTAR, entry), (MSR_SFMASK, SYSCALL_CLEARS)])
    }

    /// Sets MSRs, all of which KVM must take.
    pub fn set_msrs(&self, msrs: &[(u32, u64)]) -> Result<(), ProbeError> {
        let entries: Vec<_> = msrs
            .iter()
            .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
            .collect();
        let call = "KVM_SET_MSRS";
        let invalid = || ProbeError::Kvm { call, error: kvm_ioctls::Error::new(libc::EINVAL) };
        let list = Msrs::from_entries(&entries).map_err(|_| invalid())?;
        let set = self.vcpu.set_msrs(&list).map_err(ProbeError::kvm(call))?;
        if set == entries.len() { Ok(()) } else { Err(invalid()) }
    }

    /// Puts an instruction (and the end of the run behind it) where [`TinyGuest::start_at`] can start it in ring 0.
    pub fn write_instruction(&self, bytes: &[u8]) -> u64 {
        let at = layout::KCODE + PAGE;
        let mut code = bytes.to_vec();
        let next = at + code.len() as u64 + 5;
        code.push(0xe9);
        code.extend((layout::KCODE + Snippet::Done.offset()).wrapping_sub(next).to_le_bytes()[..4].iter());
        self.ram.write(at, &code);
        at
    }

    /// Prepares a run of `snippet`.
    pub fn start(&self, snippet: Snippet, ring: Ring, argument: u64) -> Result<(), ProbeError> {
        self.start_at(ring.code() + snippet.offset(), ring, argument, RFLAGS, 0)
    }

    /// Prepares a run at any address, with more flags and CR4 bits.
    pub fn start_at(&self, rip: u64, ring: Ring, argument: u64, rflags: u64, cr4: u64) -> Result<(), ProbeError> {
        let segment = |selector: u16, type_: u8, l: u8| kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            type_,
            present: 1,
            dpl: (selector & 3) as u8,
            db: 1 - l,
            s: 1,
            l,
            g: 1,
            ..Default::default()
        };
        let (cs, ss, stack) = match ring {
            Ring::Kernel => (KERNEL_CS, KERNEL_SS, layout::KSTACK_TOP),
            Ring::User => (USER_CS, USER_SS, layout::USTACK_TOP),
        };
        let mut sregs = self.base;
        sregs.cs = segment(cs, 11, 1);
        sregs.ss = segment(ss, 3, 0);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (sregs.ss, sregs.ss, sregs.ss, sregs.ss);
        sregs.tr = kvm_segment { base: layout::TSS, limit: 0x67, s: 0, g: 0, db: 0, ..segment(TSS_SELECTOR, 11, 0) };
        (sregs.gdt.base, sregs.gdt.limit) = (layout::GDT, 0x3f);
        (sregs.idt.base, sregs.idt.limit) = (layout::IDT, 0xfff);
        (sregs.cr0, sregs.cr3, sregs.efer) = (CR0, layout::PML4, EFER);
        sregs.cr4 = CR4 | cr4 | if self.has_xsave { CR4_OSXSAVE } else { 0 };
        if self.config.irqchip {
            // IA32_APIC_BASE: enable and x2APIC (SDM vol. 3A, 11.12.1).
            sregs.apic_base |= 1 << 11 | 1 << 10;
        }
        self.vcpu.set_sregs(&sregs).map_err(ProbeError::kvm("KVM_SET_SREGS"))?;
        let regs = kvm_regs {
            rip,
            rsp: stack,
            rflags: RFLAGS | rflags,
            rdi: layout::SCRATCH,
            r8: argument,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).map_err(ProbeError::kvm("KVM_SET_REGS"))?;
        self.ram.write(layout::RESULTS, &[0; 256]);
        self.ram.write_u64(layout::RESULTS + 8 * slot::VECTOR as u64, u64::MAX);
        self.ram.write(layout::SCRATCH, &[0; PAGE as usize]);
        Ok(())
    }

    /// Runs until something happens, at most for `limit`.
    pub fn run(&mut self, limit: Duration) -> Result<Stop, ProbeError> {
        let deadline = Deadline::arm(&self.vcpu, limit)?;
        loop {
            let stop = match self.vcpu.run() {
                Ok(VcpuExit::IoOut(code::PORT_DONE, _)) => Stop::Done,
                Ok(VcpuExit::IoOut(code::PORT_READY, _)) => Stop::Ready,
                // Without interrupt controllers there's nothing that could end a hlt.
                Ok(VcpuExit::Hlt) => Stop::Done,
                Ok(VcpuExit::Debug(debug)) => Stop::Debug { exception: debug.exception, pc: debug.pc, dr6: debug.dr6 },
                Ok(VcpuExit::Shutdown) => Stop::Shutdown,
                Ok(VcpuExit::InternalError) => Stop::Refused { rip: 0 },
                Ok(_) => Stop::Other(self.vcpu.get_kvm_run().exit_reason),
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                    if !deadline.passed() {
                        continue;
                    }
                    Stop::TimedOut
                }
                Err(error) => return Err(ProbeError::Kvm { call: "KVM_RUN", error }),
            };
            if stop == (Stop::Refused { rip: 0 }) {
                let regs = self.vcpu.get_regs().map_err(ProbeError::kvm("KVM_GET_REGS"))?;
                return Ok(Stop::Refused { rip: regs.rip });
            }
            return Ok(stop);
        }
    }

    /// A slot of the results page.
    pub fn result(&self, slot: usize) -> u64 {
        self.ram.read_u64(layout::RESULTS + 8 * slot as u64)
    }

    /// The vector of the trap that ended the run, if one did.
    pub fn vector(&self) -> Option<u8> {
        u8::try_from(self.result(slot::VECTOR)).ok()
    }

    /// The run reached its own end: without a trap, or in ring 3 by the #GP on the final `out`.
    pub fn finished(&self, stop: Stop, ring: Ring) -> bool {
        let end = layout::UCODE + Snippet::Done.offset();
        stop == Stop::Done
            && match ring {
                Ring::Kernel => self.vector().is_none(),
                Ring::User => self.vector() == Some(13) && self.result(slot::RIP) == end,
            }
    }

    /// Runs `snippet` to its own end, else an error that names `probe`.
    pub fn complete(
        &mut self,
        probe: &'static str,
        snippet: Snippet,
        ring: Ring,
        argument: u64,
        limit: Duration,
    ) -> Result<(), ProbeError> {
        self.start(snippet, ring, argument)?;
        let stop = self.run(limit)?;
        if self.finished(stop, ring) { Ok(()) } else { Err(self.unexpected(probe, stop)) }
    }

    /// An error that tells where the run was.
    pub fn unexpected(&self, probe: &'static str, stop: Stop) -> ProbeError {
        let state = match self.vector() {
            Some(vector) => format!(
                "(exception {vector}, error code {:#x}, rip {:#x}, cr2 {:#x}, stage {})",
                self.result(slot::ERROR),
                self.result(slot::RIP),
                self.result(slot::CR2),
                self.result(slot::STAGE)
            ),
            None => format!("(no exception, stage {})", self.result(slot::STAGE)),
        };
        ProbeError::Unexpected { probe, stop, state }
    }
}
