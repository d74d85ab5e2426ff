//! Trap entry and exit in assembly: one stub a vector, one frame for every way into the kernel.
//!
//! Only `arch::trap` is called from here. Invariant: in ring 0 GS always holds this CPU's `Cpu`; `swapgs` happens exactly on
//! the edges to and from ring 3 (decided by the saved CS), and on IST vectors, which can hit between an edge and its
//! `swapgs`, GS_BASE itself decides.
//!
//! Sources: Intel SDM vol. 3A 6.14 (64-bit interrupt frames), vol. 2B SYSCALL/SYSRET.

use core::arch::global_asm;

use super::descriptors::{USER_CS, USER_SS};
use crate::cpu::{OFFSET_EXCURSION_RSP, OFFSET_USER_RSP};
use crate::mm::layout::task_slot::STACK_TOP;

/// Registers of interrupted code, as every entry path lays them out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// Vector number, or [`VECTOR_SYSCALL`].
    pub vector: u64,
    /// Hardware error code; for a system call its number, kept for restarts.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// [`TrapFrame::vector`] of a system call.
pub const VECTOR_SYSCALL: u64 = 0x100;

unsafe extern "C" {
    static trap_stubs: u8;
    fn syscall_entry();
    fn lstar_page();
}

/// Bytes between two stubs.
const STUB_SIZE: u64 = 16;

/// Address of a vector's stub.
pub fn stub_address(vector: u8) -> u64 {
    // Only the address is taken.
    &raw const trap_stubs as u64 + u64::from(vector) * STUB_SIZE
}

/// LSTAR where SYSCALL works.
pub fn syscall_address() -> u64 {
    syscall_entry as *const () as u64
}

/// LSTAR where SYSCALL stays in ring 3: a supervisor page, so that the fetch faults.
pub fn lstar_page_address() -> u64 {
    lstar_page as *const () as u64
}

global_asm!(
    r#"
    .section .text.entry, "ax", @progbits
    .balign 4096
    .global trap_stubs
trap_stubs:
    .set v, 0
    .rept 256
    .balign 16
    .if v != 8 && v != 10 && v != 11 && v != 12 && v != 13 && v != 14 && v != 17 && v != 21
    push 0
    .endif
    push v
    .if v == 2 || v == 8 || v == 18
    jmp trap_ist
    .elseif v == 3
    jmp trap_int3
    .else
    jmp trap_common
    .endif
    .set v, v + 1
    .endr

    .macro SAVE_REGS
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    .endm
    // Between UNWIND_FRAME and UNWIND_END debuggers find the interrupted code's registers in the TrapFrame at RSP: a backtrace
    // goes on there, in the program too. Written by hand, since only a signal frame (augmentation S), which the assembler doesn't
    // put into .debug_frame, may lead to another stack. DWARF 4, 6.4; register numbers: System V ABI, AMD64, figure 3.36.
    .pushsection .debug_frame, "", @progbits
    .balign 8
unwind_common:
    .long unwind_common_end - unwind_common_start
unwind_common_start:
    .long 0xffffffff            // a common entry
    .byte 1                     // version
    .asciz "S"
    .uleb128 1                  // code alignment
    .sleb128 -8                 // data alignment
    .byte 16                    // the return address
    .byte 0x0c, 7               // DW_CFA_def_cfa rsp + 176
    .uleb128 176
    // DW_CFA_offset: the register, and how many words below the frame's end it lies.
    .byte 0x80 + 15, 22, 0x80 + 14, 21, 0x80 + 13, 20, 0x80 + 12, 19, 0x80 + 11, 18, 0x80 + 10, 17
    .byte 0x80 + 9, 16, 0x80 + 8, 15, 0x80 + 6, 14, 0x80 + 5, 13, 0x80 + 4, 12
    .byte 0x80 + 1, 11, 0x80 + 2, 10, 0x80 + 3, 9, 0x80 + 0, 8, 0x80 + 16, 5, 0x80 + 7, 2
    .balign 8
unwind_common_end:
    .popsection
    .macro UNWIND_FRAME name
unwind_\name:
    .endm
    .macro UNWIND_END name
unwind_\name\()_end:
    .pushsection .debug_frame, "", @progbits
    .long 28                    // the length of what follows
    .long unwind_common
    .quad unwind_\name
    .quad unwind_\name\()_end - unwind_\name
    .quad 0                     // DW_CFA_nop
    .popsection
    .endm
    .macro RESTORE_REGS
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    .endm

    .balign 16
    .global trap_common
trap_common:
    test byte ptr [rsp + 24], 3
    jz 1f
    swapgs
    SAVE_REGS
    UNWIND_FRAME user
    cld
    mov rdi, rsp
    xor ebp, ebp
    call trap_from_user
    .global return_to_user
return_to_user:
    RESTORE_REGS
    add rsp, 16
    swapgs
    iretq
    UNWIND_END user
1:  SAVE_REGS
    UNWIND_FRAME kernel
    cld
    mov rdi, rsp
    lea rbp, [rsp + 8*8]        // the frame's rbp slot: the backtrace goes on in the interrupted code
    call trap_from_kernel
    RESTORE_REGS
    add rsp, 16
    iretq
    UNWIND_END kernel

    // int3 ends an excursion into the ring-3 engine, if one is under way on this CPU.
trap_int3:
    test byte ptr [rsp + 24], 3
    jz trap_common
    swapgs
    cmp qword ptr gs:[{excursion}], 0
    jne ring3_excursion_end
    swapgs
    jmp trap_common

    // NMI, double fault, machine check: on their own stack, from anywhere. GS_BASE's sign tells whose it is.
trap_ist:
    SAVE_REGS
    cld
    mov ecx, 0xc0000101
    rdmsr
    xor ebx, ebx
    test edx, edx
    js 2f
    swapgs
    inc ebx
2:  mov rdi, rsp
    lea rbp, [rsp + 8*8]
    call trap_on_ist
    test ebx, ebx
    jz 3f
    swapgs
3:  RESTORE_REGS
    add rsp, 16
    iretq

    // SYSCALL: RCX = return address, R11 = flags; interrupts are off (SFMASK).
    .balign 16
    .global syscall_entry
syscall_entry:
    swapgs
    mov gs:[{user_rsp}], rsp
    movabs rsp, {stack_top}
    push {user_ss}
    push gs:[{user_rsp}]
    push r11
    push {user_cs}
    push rcx
    push rax
    push {vector_syscall}
    SAVE_REGS
    UNWIND_FRAME syscall
    cld
    mov rdi, rsp
    xor ebp, ebp
    call syscall_from_user
    // al: whether SYSRET may be used (RCX = RIP, R11 = RFLAGS, RIP canonical and in the user half)
    test al, al
    jz return_to_user
    RESTORE_REGS
    mov rsp, [rsp + 40]
    swapgs
    sysretq
    UNWIND_END syscall

    // A page of its own that ring 3 can't fetch from. Never executed.
    .balign 4096
    .global lstar_page
lstar_page:
    ud2
    .balign 4096
    "#,
    excursion = const OFFSET_EXCURSION_RSP,
    user_rsp = const OFFSET_USER_RSP,
    stack_top = const STACK_TOP,
    user_ss = const USER_SS as u64,
    user_cs = const USER_CS as u64,
    vector_syscall = const VECTOR_SYSCALL,
);
