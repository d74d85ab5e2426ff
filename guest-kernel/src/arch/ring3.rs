//! The ring-3 engine: trusted stubs that the kernel runs in ring 3 with interrupts off, for what a host refuses or makes slow
//! in ring 0 (XSAVE; moving bulk data where ring 0 is interpreted).
//!
//! An excursion stands on the CPU's neutral stack and a root of its own (kernel half, this CPU's slot, all RAM at its
//! physical address for ring 3), and ends at the stub's `int3`. No program ever runs on that root, so nothing is
//! exposed by it. Callers: `fpu`, `mm::frame`, `mm::user`. Invariant: interrupts stay off from entry to exit, so the
//! CPU's excursion slot is used by one excursion at a time.

use core::arch::global_asm;
use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;

use super::descriptors::{USER_CS, USER_SS};
use super::features::{Features, has};
use crate::cpu::{self, OFFSET_EXCURSION_CR3, OFFSET_EXCURSION_RSP};
use crate::mm::PhysAddr;
use crate::mm::layout::cpu_slot::NEUTRAL_STACK_TOP;
use crate::mm::layout::{PAGE_SIZE, task_slot};
use crate::sync::IrqGuard;

/// One piece of bulk work: copy, or clear if `src` is 0. Physical addresses.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Transfer {
    /// Destination.
    pub dst: u64,
    /// Source, 0 to clear.
    pub src: u64,
    /// Bytes.
    pub len: u64,
}

/// Transfers of one excursion: what fits in the CPU's list frame.
pub const MAX_TRANSFERS: usize = PAGE_SIZE as usize / size_of::<Transfer>();

#[repr(C)]
struct Arguments {
    rdi: u64,
    rsi: u64,
    r9: u64,
    rax: u64,
    rdx: u64,
}

global_asm!(
    r#"
    .section .text.ring3, "ax", @progbits
    .balign 4096
    // rdi: save area or 0, rsi: restore area or 0, edx:eax: state components
    .global ring3_fpu
ring3_fpu:
    test rdi, rdi
    jz 1f
    xsave64 [rdi]
1:  test rsi, rsi
    jz 2f
    xrstor64 [rsi]
2:  int3
    // rdx: list of transfers, r9: how many
    .global ring3_move
ring3_move:
1:  mov rdi, [rdx]
    mov rsi, [rdx + 8]
    mov rcx, [rdx + 16]
    test rsi, rsi
    jz 2f
    rep movsb
    jmp 3f
2:  xor eax, eax
    rep stosb
3:  add rdx, 24
    dec r9
    jnz 1b
    int3
    // rdx: room for u64 XCR0, u32 size of the enabled components, u32 size of all
    .global ring3_xstate
ring3_xstate:
    mov r8, rdx
    xor ecx, ecx
    xgetbv
    mov [r8], eax
    mov [r8 + 4], edx
    mov eax, 0xd
    xor ecx, ecx
    cpuid
    mov [r8 + 8], ebx
    mov [r8 + 12], ecx
    int3
    .balign 4096

    .section .text, "ax", @progbits
    // ring3_enter(rdi root, rsi stub's physical address, rdx *Arguments)
ring3_enter:
    "#,
    push_callee_saved!(),
    r#"
    mov rax, cr3
    mov gs:[{excursion_cr3}], rax
    mov gs:[{excursion_rsp}], rsp
    mov r10, rdi
    mov r11, rsi
    mov rdi, [rdx]
    mov rsi, [rdx + 8]
    mov r9, [rdx + 16]
    mov rax, [rdx + 24]
    mov rdx, [rdx + 32]
    movabs rsp, {neutral}
    mov cr3, r10
    push {user_ss}
    push 0
    push 2
    push {user_cs}
    push r11
    swapgs
    iretq
    // from `trap_int3`, GS already the kernel's
    .global ring3_excursion_end
ring3_excursion_end:
    mov rax, gs:[{excursion_cr3}]
    mov cr3, rax
    mov rsp, gs:[{excursion_rsp}]
    mov qword ptr gs:[{excursion_rsp}], 0
    cld
    "#,
    pop_callee_saved!(),
    r#"
    ret
    "#,
    excursion_cr3 = const OFFSET_EXCURSION_CR3,
    excursion_rsp = const OFFSET_EXCURSION_RSP,
    neutral = const NEUTRAL_STACK_TOP,
    user_ss = const USER_SS as u64,
    user_cs = const USER_CS as u64,
);

unsafe extern "C" {
    fn ring3_enter(root: u64, stub: u64, args: *const Arguments);
    fn ring3_fpu();
    fn ring3_move();
    fn ring3_xstate();
}

/// Whether bulk work is quicker in ring 3 here, and this CPU is ready for it.
#[inline(always)]
pub fn available() -> bool {
    // Relaxed: set once at this CPU's start.
    has(Features::SLOW_RING0) && cpu::this().ring3_root.load(Ordering::Relaxed) != 0
}

fn excursion(stub: unsafe extern "C" fn(), args: &Arguments) {
    let _irq = IrqGuard::new();
    let me = cpu::this();
    let root = me.ring3_root.load(Ordering::Relaxed);
    assert!(root != 0, "ring-3 engine used before its root exists");
    let stub = PhysAddr::from_image(stub as *const () as u64);
    me.stats.excursions.fetch_add(1, Ordering::Relaxed);
    // SAFETY: interrupts are off; the root maps the kernel half, this CPU's slot and the stub; RSP0 points to the neutral
    // stack, which that root maps, until we are back.
    unsafe {
        me.set_rsp0(NEUTRAL_STACK_TOP);
        ring3_enter(root, stub.0, args);
        me.set_rsp0(task_slot::STACK_TOP);
    }
}

/// Saves the FPU state to one area and loads it from another, either may be absent.
pub fn swap_fpu(save: Option<PhysAddr>, restore: Option<PhysAddr>, components: u64) {
    let address = |p: Option<PhysAddr>| p.map_or(0, |p| p.0);
    let args = Arguments {
        rdi: address(save),
        rsi: address(restore),
        r9: 0,
        rax: components & 0xffff_ffff,
        rdx: components >> 32,
    };
    excursion(ring3_fpu, &args);
}

/// What ring 3 sees of the extended state: XCR0 and the size of an area in standard format. Where ring 0's CPUID is made up
/// and XSAVE is refused there, only this is true.
pub fn extended_state() -> (u64, u32) {
    let _irq = IrqGuard::new();
    let out = PhysAddr(cpu::this().ring3_list.load(Ordering::Relaxed));
    excursion(ring3_xstate, &Arguments { rdi: 0, rsi: 0, r9: 0, rax: 0, rdx: out.0 });
    // SAFETY: this CPU's frame, just written by the stub; interrupts are off.
    unsafe { (out.as_ptr::<u64>().read_volatile(), out.as_ptr::<u32>().add(2).read_volatile()) }
}

/// Carries out transfers.
///
/// # Safety
/// All ranges are RAM that the caller may read or write, and stay so (interrupts should be off or references held).
pub unsafe fn transfer(list: &[Transfer]) {
    let _irq = IrqGuard::new();
    let frame = PhysAddr(cpu::this().ring3_list.load(Ordering::Relaxed));
    for chunk in list.chunks(MAX_TRANSFERS) {
        // SAFETY: the list frame belongs to this CPU, interrupts are off, and a chunk fits.
        unsafe { core::ptr::copy_nonoverlapping(chunk.as_ptr(), frame.as_ptr::<Transfer>(), chunk.len()) };
        excursion(ring3_move, &Arguments { rdi: 0, rsi: 0, r9: chunk.len() as u64, rax: 0, rdx: frame.0 });
    }
}

/// Clears whole frames.
pub fn clear_frames(frames: &[PhysAddr]) {
    for chunk in frames.chunks(32) {
        let list: ArrayVec<Transfer, 32> =
            chunk.iter().map(|f| Transfer { dst: f.0, src: 0, len: PAGE_SIZE }).collect();
        // SAFETY: the callers own the frames.
        unsafe { transfer(&list) };
    }
}
