//! Single instructions as functions. Anyone may call the safe ones; nothing here keeps state.

use core::arch::asm;

/// Reads the interrupt flag (RFLAGS bit 9).
#[inline(always)]
pub fn interrupts_enabled() -> bool {
    let flags: u64;
    // SAFETY: reads flags only; the push and pop balance (no red zone in this target).
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & 0x200 != 0
}

/// Interrupts off.
#[inline(always)]
pub fn cli() {
    // SAFETY: masking interrupts breaks no memory invariant. Not `nomem`: it is a compiler barrier for per-CPU data.
    unsafe { asm!("cli", options(nostack)) };
}

/// Interrupts on.
#[inline(always)]
pub fn sti() {
    // SAFETY: handlers run on valid stacks from the moment the IDT is loaded, and nobody enables interrupts before that.
    unsafe { asm!("sti", options(nostack)) };
}

/// Turns interrupts on and halts, without a window between the two (the interrupt shadow of `sti`, SDM vol. 2B).
#[inline(always)]
pub fn sti_hlt() {
    // SAFETY: as `sti`; an interrupt ends the halt.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}

/// Stops this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: nothing runs after it.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Page-fault address.
#[inline(always)]
pub fn read_cr2() -> u64 {
    let v: u64;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

/// Physical address of the loaded top-level page table.
#[inline(always)]
pub fn read_cr3() -> u64 {
    let v: u64;
    // SAFETY: reading CR3 has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

/// Loads a top-level page table and so drops all non-global translations.
///
/// # Safety
/// `root` maps the kernel half, this CPU's slot and the running stack.
#[inline(always)]
pub unsafe fn write_cr3(root: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Reads CR4.
pub fn read_cr4() -> u64 {
    let v: u64;
    // SAFETY: reading CR4 has no effect.
    unsafe { asm!("mov {}, cr4", out(reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

/// Writes CR4.
///
/// # Safety
/// Only bits that the CPU has, and that the running code is ready for.
pub unsafe fn write_cr4(v: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr4, {}", in(reg) v, options(nostack, preserves_flags)) };
}

/// Drops the translation of one page on this CPU.
#[inline(always)]
pub fn invlpg(addr: u64) {
    // SAFETY: forgetting a translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) addr, options(nostack, preserves_flags)) };
}

/// Reads a model-specific register.
///
/// # Safety
/// The register exists.
#[inline(always)]
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") lo, out("edx") hi, options(nomem, nostack, preserves_flags)) };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists and the value keeps the kernel's invariants.
#[inline(always)]
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller's promise. Not `nomem`: some registers (x2APIC ICR) publish memory to other CPUs.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// The time stamp counter. Not serialised: neighbours may be reordered by some cycles.
#[inline(always)]
pub fn rdtsc() -> u64 {
    let (lo, hi): (u64, u64);
    // SAFETY: reads a counter. It clears the upper halves of both registers.
    unsafe { asm!("rdtsc", out("rax") lo, out("rdx") hi, options(nomem, nostack, preserves_flags)) };
    hi << 32 | lo
}

/// CPUID leaf and subleaf as (eax, ebx, ecx, edx).
pub fn cpuid(leaf: u32, subleaf: u32) -> (u32, u32, u32, u32) {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    (r.eax, r.ebx, r.ecx, r.edx)
}

/// Writes a byte to an I/O port.
///
/// # Safety
/// The device behind the port takes this write at this time.
#[inline(always)]
pub unsafe fn outb(port: u16, v: u8) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, al", in("dx") port, in("al") v, options(nostack, preserves_flags)) };
}

/// Writes four bytes to an I/O port.
///
/// # Safety
/// As [`outb`].
#[inline(always)]
pub unsafe fn outl(port: u16, v: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") v, options(nostack, preserves_flags)) };
}

/// Reads a byte from an I/O port.
///
/// # Safety
/// As [`outb`].
#[inline(always)]
pub unsafe fn inb(port: u16) -> u8 {
    let v: u8;
    // SAFETY: the caller's promise.
    unsafe { asm!("in al, dx", in("dx") port, out("al") v, options(nostack, preserves_flags)) };
    v
}

/// The frame pointer of the caller, for backtraces.
#[inline(always)]
pub fn frame_pointer() -> u64 {
    let v: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

/// Fills `quads` 8-byte words with zero.
///
/// # Safety
/// `dst` is valid for that many aligned words, and nobody else uses them.
#[inline(always)]
pub unsafe fn zero_quads(dst: *mut u64, quads: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosq", inout("rcx") quads => _, inout("rdi") dst => _, in("rax") 0u64, options(nostack, preserves_flags))
    };
}

/// Copies `quads` 8-byte words.
///
/// # Safety
/// Both ranges are valid and don't overlap.
#[inline(always)]
pub unsafe fn copy_quads(dst: *mut u64, src: *const u64, quads: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsq", inout("rcx") quads => _, inout("rdi") dst => _, inout("rsi") src => _, options(nostack, preserves_flags));
    }
}
