//! PVH entry of the boot CPU and real-mode entry of the application processors, up to the first Rust instruction.
//!
//! Only `boot` uses it. Invariant: both paths reach 64-bit mode with the same static boot page tables (no instruction is
//! spent on filling them), NX enabled, interrupts off, and RSP on a stack that nobody else uses.
//!
//! Sources: Xen PVH direct boot ABI (`XEN_ELFNOTE_PHYS32_ENTRY`: 32-bit protected mode, paging off, EBX = start info);
//! Intel SDM vol. 3A 10.8.5 (entry into 64-bit mode), 9.4 (INIT-SIPI-SIPI: CS = vector << 8, IP = 0).

use core::arch::global_asm;

/// Guest-physical page to which the AP trampoline is copied; the SIPI vector is this address >> 12.
/// Below 1 MiB as SIPI demands, and outside everything docs/abi.md places there.
pub const TRAMPOLINE_PHYS: u64 = 0x8000;

global_asm!(
    r#"
    .set KBASE, 0xffffffff80000000

    // XEN_ELFNOTE_PHYS32_ENTRY (18), value 8 bytes wide.
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad _start
    // Tells the VMM that this kernel follows docs/abi.md (name "Taskvisor", type 1, value: ABI version).
    .balign 4
    .long 10, 4, 1
    .asciz "Taskvisor"
    .balign 4
    .long 1
    // How many CPUs this kernel brings up (name "Taskvisor", type 2), so that the VMM refuses more before it starts.
    .balign 4
    .long 10, 4, 2
    .asciz "Taskvisor"
    .balign 4
    .long {max_cpus}

    .section .boot.text, "awx", @progbits
    .code32
    .global _start
_start:
    cld
    movb $1, %al
    outb %al, $0x80
    movl $(boot_stack_top - KBASE), %esp
    movl %ebx, %edi
    lgdt (boot_gdt_ptr - KBASE)
    call enable_long_mode
    ljmp $0x08, $(1f)
    .code64
1:  movabs $2f, %rax
    jmp *%rax

    // Turns on PAE, long mode, NX, paging and write protection. Keeps EDI.
    .code32
enable_long_mode:
    movl $(boot_pml4 - KBASE), %eax
    movl %eax, %cr3
    movl $0x620, %eax            // CR4: PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx       // EFER: SCE, LME, NXE
    movl $0x901, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80010033, %eax       // CR0: PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ret

    .section .text.entry, "ax", @progbits
    .code64
2:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movabs $boot_stack_top, %rsp
    movl %edi, %edi
    xorl %ebp, %ebp
    pushq $0
    jmp kernel_main

    // ---- application processors: copied to TRAMPOLINE_PHYS, entered in real mode ----
    .section .rodata.trampoline, "a", @progbits
    .global ap_trampoline
    .global ap_trampoline_end
    .code16
ap_trampoline:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl {tramp} + (ap_gdt_ptr - ap_trampoline)
    movl $0x33, %eax
    movl %eax, %cr0
    ljmpl $0x18, ${tramp} + (ap_32 - ap_trampoline)
    .code32
ap_32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $(boot_pml4 - KBASE), %eax
    movl %eax, %cr3
    movl $0x620, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    movl $0x901, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80010033, %eax
    movl %eax, %cr0
    ljmpl $0x08, ${tramp} + (ap_64 - ap_trampoline)
    .code64
ap_64:
    movabs $ap_start, %rax
    jmp *%rax
    .balign 8
ap_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
ap_gdt_ptr:
    .word 31
    .long {tramp} + (ap_gdt - ap_trampoline)
ap_trampoline_end:

    .section .text.entry, "ax", @progbits
    .code64
ap_start:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    // Take a number; it selects the stack that the boot CPU prepared. Fails (halts) past the end.
    movl $1, %edi
    lock xaddl %edi, ap_ticket(%rip)
    cmpl ap_stack_count(%rip), %edi
    jae 3f
    movq ap_stacks(%rip), %rax
    movq (%rax,%rdi,8), %rsp
    xorl %ebp, %ebp
    pushq $0
    jmp ap_main
3:  cli
    hlt
    jmp 3b

    .section .data.boot, "aw", @progbits
    .balign 8
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
boot_gdt_ptr:
    .word 31
    .long boot_gdt - KBASE
    .long 0

    .balign 8
    .global ap_ticket
    .global ap_stack_count
    .global ap_stacks
ap_ticket: .long 0
ap_stack_count: .long 0
ap_stacks: .quad 0

    // Static boot page tables. Slot 0: identity of the first GiB (removed once all CPUs are up), slot 256: direct map of
    // the first 4 GiB, slot 511: the kernel image at -2 GiB.
    .balign 4096
    .global boot_pml4
boot_pml4:
    .quad boot_pdpt_low - KBASE + 0x3
    .fill 255, 8, 0
    .quad boot_pdpt_direct - KBASE + 0x3
    .fill 254, 8, 0
    .quad boot_pdpt_kernel - KBASE + 0x3
    .global boot_pdpt_direct
boot_pdpt_direct:
    .quad boot_pd_direct - KBASE + 0x3
    .quad boot_pd_direct + 0x1000 - KBASE + 0x3
    .quad boot_pd_direct + 0x2000 - KBASE + 0x3
    .quad boot_pd_direct + 0x3000 - KBASE + 0x3
    .fill 508, 8, 0
    .global boot_pdpt_kernel
boot_pdpt_kernel:
    .fill 510, 8, 0
    .quad boot_pd_kernel - KBASE + 0x3
    .quad 0
boot_pdpt_low:
    .quad boot_pd_kernel - KBASE + 0x3
    .fill 511, 8, 0
    // Executable alias of the first GiB, for the image and the identity map. `mm::kernel_map` makes it W^X.
    .global boot_pd_kernel
boot_pd_kernel:
    .set i, 0
    .rept 512
    .quad (i << 21) | 0x83
    .set i, i + 1
    .endr
boot_pd_direct:
    .set i, 0
    .rept 2048
    .quad (i << 21) | 0x8000000000000083
    .set i, i + 1
    .endr

    .section .bss.stack, "aw", @nobits
    .balign 4096
    .fill 16384, 1, 0
boot_stack_top:
    "#,
    tramp = const TRAMPOLINE_PHYS,
    max_cpus = const crate::cpu::MAX_CPUS,
    options(att_syntax)
);
