//! The kernel's own end: panic, unexpected exception, stack overflow; and the orderly one, debug exit.
//!
//! Invariant: nothing here waits for a lock or allocates.

use core::panic::PanicInfo;
use core::sync::atomic::Ordering;

use crate::arch::trap::STOPPING;
use crate::arch::trap_entry::TrapFrame;
use crate::arch::{apic, debug_port, descriptors::vector, instr};
use crate::cpu;
use crate::log;
use crate::mm::kernel_map;
use crate::mm::layout::{cpu_slot, task_slot};
use crate::trace;

/// Port and kinds of docs/abi.md, "Debug exit value".
const DEBUG_EXIT_PORT: u16 = 0xf4;
const RESET_PORT: u16 = 0x64;

/// How the guest ends.
#[derive(Debug, Clone, Copy)]
pub enum Exit {
    /// The first program exited with this code.
    Code(u8),
    /// The first program died of this signal.
    Signal(u8),
    /// The kernel panicked.
    Panic,
    /// In-guest tests finished with this many failures.
    #[cfg(feature = "selftest")]
    Tests(u8),
    /// The first program could not be started: 126 or 127.
    NotStarted(u8),
}

/// Ends the virtual machine.
pub fn debug_exit(how: Exit) -> ! {
    let value = match how {
        Exit::Code(c) => u32::from(c),
        Exit::Signal(s) => 1 << 8 | u32::from(s),
        Exit::Panic => 2 << 8 | 1,
        #[cfg(feature = "selftest")]
        Exit::Tests(n) => 3 << 8 | u32::from(n),
        Exit::NotStarted(c) => 4 << 8 | u32::from(c),
    };
    // SAFETY: the debug-exit device, and where there is none, the keyboard controller's reset line.
    unsafe {
        instr::outl(DEBUG_EXIT_PORT, value);
        instr::outb(RESET_PORT, 0xfe);
    }
    instr::halt_forever()
}

/// Keeps the first crash report whole: the other CPUs stop.
fn begin() {
    instr::cli();
    if STOPPING.swap(true, Ordering::AcqRel) {
        instr::halt_forever(); // somebody else is reporting
    }
    let me = cpu::this();
    for c in cpu::all().filter(|c| c.id != me.id) {
        apic::send_ipi(c.apic_id(), vector::IPI_STOP);
    }
}

fn who() {
    let me = cpu::this();
    let task = cpu::current_task();
    if task.is_null() {
        log::emergency(format_args!("  on CPU {} before its first task", me.id.0));
        return;
    }
    // SAFETY: the running task is alive.
    let task = unsafe { &*task };
    log::emergency(format_args!("  on CPU {}, task {} \"{}\"", me.id.0, task.id.0, task.name()));
}

/// Prints return addresses along the frame pointers; only addresses in kernel stacks are followed.
fn backtrace(mut rbp: u64) {
    let on_stack = |a: u64| {
        (task_slot::STACK_BOTTOM..task_slot::STACK_TOP - 8).contains(&a)
            || (cpu_slot::BASE..cpu_slot::NEUTRAL_STACK_TOP - 8).contains(&a)
            || (crate::mm::layout::KERNEL_BASE..u64::MAX - 16).contains(&a)
    };
    for _ in 0..32 {
        if !rbp.is_multiple_of(8) || !on_stack(rbp) {
            return;
        }
        // SAFETY: inside a mapped stack, or in the image where the boot stack is.
        let (next, ret) = unsafe { (*(rbp as *const u64), *((rbp + 8) as *const u64)) };
        if !kernel_map::is_text(ret) {
            return;
        }
        frame_line(ret);
        if next <= rbp {
            return;
        }
        rbp = next;
    }
}

/// Tasks without a stack, as many as a report has room for. A list that somebody had locked is left out.
fn futures() {
    let mut left = 16;
    crate::runtime::try_for_each(|task| {
        if left > 0 {
            left -= 1;
            let (state, waits) = (task.state, task.waits);
            log::emergency(format_args!(
                "  future {state:?} ({waits:?}) on CPU {}, spawned at {}",
                task.cpu, task.location
            ));
        }
    });
}

fn frame_line(addr: u64) {
    match crate::symbols::lookup(addr) {
        Some((name, offset)) => {
            log::emergency(format_args!("  {addr:#018x} {:#}+{offset:#x}", rustc_demangle::demangle(name)))
        }
        None => log::emergency(format_args!("  {addr:#018x}")),
    }
}

fn registers(f: &TrapFrame, cr2: u64) {
    log::emergency(format_args!(
        "  rip {:#018x} cs {:#x} rflags {:#x} rsp {:#018x} ss {:#x}",
        f.rip, f.cs, f.rflags, f.rsp, f.ss
    ));
    log::emergency(format_args!("  rax {:#018x} rbx {:#018x} rcx {:#018x} rdx {:#018x}", f.rax, f.rbx, f.rcx, f.rdx));
    log::emergency(format_args!("  rsi {:#018x} rdi {:#018x} rbp {:#018x} r8  {:#018x}", f.rsi, f.rdi, f.rbp, f.r8));
    log::emergency(format_args!("  r9  {:#018x} r10 {:#018x} r11 {:#018x} r12 {:#018x}", f.r9, f.r10, f.r11, f.r12));
    log::emergency(format_args!(
        "  r13 {:#018x} r14 {:#018x} r15 {:#018x} cr2 {cr2:#018x} cr3 {:#x}",
        f.r13,
        f.r14,
        f.r15,
        instr::read_cr3()
    ));
}

/// Names of the exceptions. Intel SDM vol. 3A table 6-1.
const EXCEPTIONS: [&str; 22] = [
    "divide error",
    "debug",
    "NMI",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid opcode",
    "no FPU",
    "double fault",
    "coprocessor overrun",
    "invalid TSS",
    "segment not present",
    "stack segment fault",
    "general protection",
    "page fault",
    "reserved",
    "x87 error",
    "alignment check",
    "machine check",
    "SIMD error",
    "virtualization",
    "control protection",
];

/// What kind of access a page fault's error code tells of. Intel SDM vol. 3A 4.7.
fn access(error: u64) -> &'static str {
    match error {
        e if e & 16 != 0 => "execution",
        e if e & 2 != 0 => "write",
        _ => "read",
    }
}

/// An exception in ring 0 that has no fixup.
pub fn kernel_exception(frame: &TrapFrame, cr2: u64) -> ! {
    debug_port::panic(core::ptr::from_ref(frame).cast_mut());
    begin();
    let name = EXCEPTIONS.get(frame.vector as usize).copied().unwrap_or("unknown exception");
    match frame.vector {
        14 if (task_slot::BASE..task_slot::STACK_BOTTOM).contains(&cr2) => {
            log::emergency(format_args!(
                "kernel panic: {} of the kernel stack's guard page at {cr2:#x}",
                access(frame.error)
            ));
        }
        14 => {
            log::emergency(format_args!("kernel panic: page fault in ring 0: {} of {cr2:#x}", access(frame.error)));
        }
        v => {
            let error = frame.error;
            log::emergency(format_args!("kernel panic: {name} (vector {v}) in ring 0, error code {error:#x}"));
        }
    }
    who();
    registers(frame, cr2);
    frame_line(frame.rip);
    backtrace(frame.rbp);
    futures();
    trace::print_last(cpu::this());
    debug_exit(Exit::Panic)
}

/// The kernel stack's guard page was hit.
pub fn stack_overflow(frame: &TrapFrame, cr2: u64) -> ! {
    debug_port::panic(core::ptr::from_ref(frame).cast_mut());
    begin();
    log::emergency(format_args!("kernel panic: kernel stack overflow, guard page hit at {cr2:#x}"));
    who();
    registers(frame, cr2);
    frame_line(frame.rip);
    backtrace(frame.rbp);
    trace::print_last(cpu::this());
    debug_exit(Exit::Panic)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    debug_port::panic(core::ptr::null_mut());
    begin();
    match info.location() {
        Some(l) => log::emergency(format_args!("kernel panic: {} ({}:{})", info.message(), l.file(), l.line())),
        None => log::emergency(format_args!("kernel panic: {}", info.message())),
    }
    who();
    backtrace(instr::frame_pointer());
    futures();
    trace::print_last(cpu::this());
    debug_exit(Exit::Panic)
}
