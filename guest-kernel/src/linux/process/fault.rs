//! Exceptions in ring 3 that the kernel doesn't resolve: they become signals to the thread that caused them.

use crate::arch::fpu;
use crate::arch::trap_entry::TrapFrame;
use crate::linux::process::Thread;
use crate::linux::process::signal::code::{
    BUS_ADRALN, BUS_ADRERR, FPE_INTDIV, ILL_ILLOPN, SEGV_ACCERR, SEGV_MAPERR, SI_KERNEL, TRAP_TRACE,
};
use crate::linux::process::signal::{
    self, SIGBUS, SIGFPE, SIGILL, SIGKILL, SIGSEGV, SIGTRAP, SigInfo, force, start_group_exit,
};
use crate::linux::process::thread::LastFault;
use crate::mm::address_space::FaultError;
use crate::task::{UserFault, current};

/// Exception vectors. Intel SDM vol. 3A table 6-1.
mod vector {
    pub const DIVIDE: u64 = 0;
    pub const DEBUG: u64 = 1;
    pub const BREAKPOINT: u64 = 3;
    pub const OVERFLOW: u64 = 4;
    pub const INVALID_OPCODE: u64 = 6;
    pub const PAGE_FAULT: u64 = 14;
    pub const X87: u64 = 16;
    pub const ALIGNMENT: u64 = 17;
    pub const SIMD: u64 = 19;
}

/// Posts the signal for an exception of the running thread.
pub fn exception(thread: &Thread, frame: &TrapFrame, fault: UserFault) {
    let (vector, address) = match fault {
        UserFault::Page(addr, ..) => (vector::PAGE_FAULT, addr),
        UserFault::Exception(v) => (v, 0),
    };
    *thread.last_fault.lock() = LastFault { vector, error: frame.error, address };
    let info = match fault {
        UserFault::Page(_, FaultError::OutOfMemory, _) => {
            // Either we were chosen to make room, and end anyway, or there is nobody left to choose.
            if start_group_exit(&thread.process, SIGKILL) {
                crate::warn!("out of memory: {} (process {}) ends", current().name(), thread.process.pid);
            }
            return;
        }
        UserFault::Page(addr, FaultError::NotMapped, _) => SigInfo::fault(SIGSEGV, SEGV_MAPERR, addr),
        UserFault::Page(addr, FaultError::Denied, _) => SigInfo::fault(SIGSEGV, SEGV_ACCERR, addr),
        UserFault::Page(addr, FaultError::BeyondEnd, _) => SigInfo::fault(SIGBUS, BUS_ADRERR, addr),
        UserFault::Exception(v) => match v {
            vector::DIVIDE => SigInfo::fault(SIGFPE, FPE_INTDIV, frame.rip),
            vector::DEBUG => SigInfo::fault(SIGTRAP, TRAP_TRACE, frame.rip),
            vector::BREAKPOINT => SigInfo::kernel(SIGTRAP),
            vector::OVERFLOW => SigInfo::kernel(SIGSEGV),
            vector::INVALID_OPCODE => SigInfo::fault(SIGILL, ILL_ILLOPN, frame.rip),
            vector::ALIGNMENT => SigInfo::fault(SIGBUS, BUS_ADRALN, 0),
            vector::X87 | vector::SIMD => SigInfo::fault(SIGFPE, float_code(v == vector::SIMD), frame.rip),
            _ => SigInfo { code: SI_KERNEL, ..SigInfo::kernel(SIGSEGV) },
        },
    };
    force(thread, info);
}

/// Which floating-point exception it was, from the unmasked status bits. Linux: `fpu__exception_code`.
fn float_code(simd: bool) -> i32 {
    /// FPE_FLTUNK: Linux include/uapi/asm-generic/siginfo.h, as the codes below.
    const UNKNOWN: i32 = 14;
    let me = current();
    let Some(area) = &me.fpu else { return UNKNOWN };
    fpu::save_current_to(area);
    let b = area.bytes();
    let word = |at: usize| u32::from(b[at]) | u32::from(b[at + 1]) << 8;
    // MXCSR: status bits 0..5, masks 7..12. x87: control word at 0, status word at 2.
    let raised = if simd { word(24) & !(word(24) >> 7) } else { word(2) & !word(0) };
    match raised {
        r if r & 1 != 0 => 7,  // FPE_FLTINV
        r if r & 4 != 0 => 3,  // FPE_FLTDIV
        r if r & 8 != 0 => 4,  // FPE_FLTOVF
        r if r & 18 != 0 => 5, // FPE_FLTUND, denormal operand too
        r if r & 32 != 0 => 6, // FPE_FLTRES
        _ => UNKNOWN,
    }
}

/// Words for what happened, for reports.
pub fn describe(f: &mut dyn core::fmt::Write, info: &SigInfo, fault: &LastFault) -> core::fmt::Result {
    /// Page-fault error code bits. Intel SDM vol. 3A 4.7.
    const WRITE: u64 = 2;
    const FETCH: u64 = 16;
    let kind = match fault.error {
        e if e & FETCH != 0 => "instruction fetch from",
        e if e & WRITE != 0 => "write to",
        _ => "read of",
    };
    match (info.signo, info.code) {
        (SIGSEGV, SEGV_MAPERR) => write!(f, "segmentation fault: {kind} {:#x}, nothing mapped there", info.fields[0]),
        (SIGSEGV, SEGV_ACCERR) => {
            write!(f, "segmentation fault: {kind} {:#x}, mapped without that right", info.fields[0])
        }
        (SIGSEGV, SI_KERNEL) if fault.vector == 13 => {
            f.write_str("segmentation fault: general protection (a privileged instruction, or an address out of range)")
        }
        (SIGSEGV, _) => f.write_str("segmentation fault"),
        (SIGBUS, BUS_ADRERR) => write!(f, "bus error: {kind} {:#x}, beyond the end of the mapped file", info.fields[0]),
        (SIGFPE, FPE_INTDIV) => f.write_str("integer division by zero or overflow"),
        (SIGFPE, _) => f.write_str("floating-point exception"),
        (SIGILL, _) => f.write_str("illegal instruction"),
        (SIGTRAP, _) => f.write_str("trace or breakpoint trap"),
        (signal::SIGABRT, _) => f.write_str("aborted"),
        (s, _) => f.write_str(signal::name(s)),
    }
}
