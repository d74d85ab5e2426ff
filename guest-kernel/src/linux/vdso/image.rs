//! The shared object that programs see, laid out by the assembler: one page of the kernel's read-only data.
//!
//! It is written as a whole here, headers and code, because its code must depend on nothing but its own address, and the kernel's
//! build then needs no second one. One segment at address 0; functions of version LINUX_2.6, as Linux has them, and one of our
//! own; leaf functions that leave the stack as it is, so that one frame description serves all.
//!
//! How a clock is read: [`ClockPage`](vcpu_sched::clock::ClockPage). `lfence` keeps the counter from being read before the sequence. If some CPU's clock
//! is ahead, the number of the CPU is read before and after: both the same, and the skew belongs to a CPU on which the
//! thread was in between.
//! Sources: System V ABI (ELF: dynamic section, hash table), Linux Standard Base 5.0 10.7 (symbol versions), DWARF 5 6.4 (frames),
//! Linux arch/x86/entry/vdso/vdso.lds.S (names and versions).

use core::arch::global_asm;

use vcpu_sched::clock::page::{BYTES, MAX_SKEWED, SKEWED, offsets};

use crate::cpu::{MAX_CPUS, shown};
use crate::mm::PhysAddr;
use crate::mm::layout::PAGE_SIZE;

/// Clocks that are read here, by their numbers: the wall clock's (real time, its coarse reading, TAI) ...
const WALL_CLOCKS: u32 = 1 << 0 | 1 << 5 | 1 << 11;
/// ... and the monotonic one's (itself, raw, coarse, boot time). All others are left to the system call.
const CLOCKS: u32 = WALL_CLOCKS | 1 << 1 | 1 << 4 | 1 << 6 | 1 << 7;
/// System calls: Linux arch/x86/entry/syscalls/syscall_64.tbl.
const CLOCK_GETTIME: u32 = 228;
const CLOCK_GETRES: u32 = 229;

const _: () = assert!(MAX_CPUS <= MAX_SKEWED, "each CPU has its place in the clock page");

/// The hash of a version's name (System V ABI, "Hash Table").
const fn elf_hash(name: &[u8]) -> u32 {
    let (mut h, mut i) = (0u32, 0);
    while i < name.len() {
        h = (h << 4).wrapping_add(name[i] as u32);
        h = (h ^ (h & 0xf000_0000) >> 24) & 0x0fff_ffff;
        i += 1;
    }
    h
}

unsafe extern "C" {
    static vdso_image: u8;
}

/// The page's frame.
pub fn frame() -> PhysAddr {
    PhysAddr::from_image(&raw const vdso_image as u64)
}

/// RAX = the clock of this CPU in nanoseconds, R8 = the clock page. Changes RCX, RDX, R9, R10, R11.
macro_rules! read_clock {
    () => {
        r#"
    lea r8, [rip + vdso_image - {clock_size}]
2:
    mov r9, [r8 + {sequence}]
    test r9b, 1
    jnz 4f
    xor r10d, r10d
    test qword ptr [r8 + {flags}], {skewed}
    jz 3f
    movabs rcx, {cpu_page}
    mov r11d, [rcx]
    mov r10, [r8 + r11 * 8 + {skew}]
3:
    lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    // A tick from before the base counts as the base.
    xor edx, edx
    sub rax, [r8 + {base_ticks}]
    cmovb rax, rdx
    // 64 bits times 64 bits, shifted right by up to 127.
    mov rcx, [r8 + {shift}]
    mul qword ptr [r8 + {mult}]
    shrd rax, rdx, cl
    shr rdx, cl
    test cl, 64
    cmovnz rax, rdx
    add rax, [r8 + {base_ns}]
    test qword ptr [r8 + {flags}], {skewed}
    jz 5f
    movabs rcx, {cpu_page}
    cmp r11d, [rcx]
    jne 2b
    // Nothing is before 0.
    xor edx, edx
    add rax, r10
    cmovs rax, rdx
    jmp 5f
4:
    pause
    jmp 2b
5:
    cmp r9, [r8 + {sequence}]
    jne 2b
        "#
    };
}

/// RAX = RAX / RCX, RDX = the rest, with RCX = 10^9.
macro_rules! seconds {
    () => {
        r#"
    mov ecx, 1000000000
    xor edx, edx
    div rcx
        "#
    };
}

global_asm!(
    r#"
    .macro vdso_symbol name, function
    .long \name - vdso_strings
    .byte 0x12, 0           // global function
    .short 8                // section .text
    .quad \function - vdso_image
    .quad \function\()_end - \function
    .endm

    .macro vdso_section name, kind, flags, start, end, link, info, align, entry
    .long \name - vdso_section_names, \kind
    .quad \flags
    .quad \start - vdso_image   // address
    .quad \start - vdso_image   // offset
    .quad \end - \start
    .long \link, \info
    .quad \align, \entry
    .endm

    .macro vdso_segment kind, flags, start, end, align
    .long \kind, \flags
    .quad \start - vdso_image, \start - vdso_image, \start - vdso_image
    .quad \end - \start, \end - \start
    .quad \align
    .endm

    .macro vdso_dynamic tag, at
    .quad \tag, \at - vdso_image
    .endm

    .section .rodata.vdso, "a", @progbits
    .balign {page_size}
vdso_image:
    // ELF header: 64 bits, little-endian, System V, shared object, x86-64
    .byte 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .short 3, 62
    .long 1
    .quad 0
    .quad vdso_segments - vdso_image
    .quad vdso_sections - vdso_image
    .long 0
    .short 64, 56, 4, 64, 10, 9

vdso_segments:
    vdso_segment 1, 5, vdso_image, vdso_end, {page_size}
    vdso_segment 2, 4, vdso_dynamic_table, vdso_dynamic_end, 8
    vdso_segment 0x6474e550, 4, vdso_frame_header, vdso_frame_header_end, 4
    vdso_segment 0x6474e551, 6, vdso_image, vdso_image, 16

    // Hash table with one chain for all: 6 symbols after the empty one.
    .balign 8
vdso_hash:
    .long 1, 7, 1, 0, 2, 3, 4, 5, 6, 0
vdso_hash_end:

    .balign 8
vdso_symbols:
    .zero 24
    vdso_symbol vdso_name_gettime, vdso_clock_gettime
    vdso_symbol vdso_name_timeofday, vdso_gettimeofday
    vdso_symbol vdso_name_time, vdso_time
    vdso_symbol vdso_name_getres, vdso_clock_getres
    vdso_symbol vdso_name_getcpu, vdso_getcpu
    vdso_symbol vdso_name_tsc, vdso_tsc
vdso_symbols_end:

vdso_strings:
    .byte 0
vdso_name_gettime: .asciz "__vdso_clock_gettime"
vdso_name_timeofday: .asciz "__vdso_gettimeofday"
vdso_name_time: .asciz "__vdso_time"
vdso_name_getres: .asciz "__vdso_clock_getres"
vdso_name_getcpu: .asciz "__vdso_getcpu"
vdso_name_tsc: .asciz "__vdso_taskvisor_tsc"
vdso_name_object: .asciz "linux-vdso.so.1"
vdso_name_linux: .asciz "LINUX_2.6"
vdso_strings_end:

    // Each symbol's version: an index into what follows.
    .balign 2
vdso_versions:
    .short 0, 2, 2, 2, 2, 2, 2
vdso_versions_end:
    .balign 8
vdso_version_names:
    // version 1, flags, index, names, hash, first name, next
    .short 1, 1, 1, 1
    .long {object_hash}, 20, 28
    .long vdso_name_object - vdso_strings, 0
    .short 1, 0, 2, 1
    .long {linux_hash}, 20, 0
    .long vdso_name_linux - vdso_strings, 0
vdso_version_names_end:

    .balign 4
vdso_frame_header:
    // version 1; pointer, count, table encoded as: relative 4 bytes, 4 bytes, relative to here 4 bytes
    .byte 1, 0x1b, 0x03, 0x3b
    .long vdso_frames - .
    .long 1
    .long vdso_text - vdso_frame_header, vdso_frame - vdso_frame_header
vdso_frame_header_end:
    .balign 8
vdso_frames:
    // Common part: version 1, "zR", code 1, data -8, return address in register 16, pointers relative; CFA = RSP + 8, return
    // address below it.
    .long 20, 0
    .byte 1
    .asciz "zR"
    .byte 1, 0x78, 16, 1, 0x1b
    .byte 0x0c, 7, 8, 0x90, 1, 0, 0
vdso_frame:
    // All functions.
    .long 20, vdso_frame + 4 - vdso_frames
    .long vdso_text - .
    .long vdso_text_end - vdso_text
    .byte 0, 0, 0, 0, 0, 0, 0, 0
    .long 0
vdso_frames_end:

    .balign 8
vdso_dynamic_table:
    .quad 14, vdso_name_object - vdso_strings
    vdso_dynamic 4, vdso_hash
    vdso_dynamic 5, vdso_strings
    vdso_dynamic 6, vdso_symbols
    .quad 10, vdso_strings_end - vdso_strings
    .quad 11, 24
    vdso_dynamic 0x6ffffffc, vdso_version_names
    .quad 0x6ffffffd, 2
    vdso_dynamic 0x6ffffff0, vdso_versions
    .quad 0, 0
vdso_dynamic_end:

    .balign 16
vdso_text:
vdso_clock_gettime:
    cmp edi, 31
    ja 6f
    mov eax, {clocks}
    bt eax, edi
    jnc 6f
    "#,
    read_clock!(),
    r#"
    mov ecx, {wall_clocks}
    bt ecx, edi
    jnc 7f
    add rax, [r8 + {wall}]
7:
    "#,
    seconds!(),
    r#"
    mov [rsi], rax
    mov [rsi + 8], rdx
    xor eax, eax
    ret
6:
    mov eax, {sys_clock_gettime}
    syscall
    ret
vdso_clock_gettime_end:

    .balign 16
vdso_gettimeofday:
    test rdi, rdi
    jz 6f
    "#,
    read_clock!(),
    r#"
    add rax, [r8 + {wall}]
    "#,
    seconds!(),
    r#"
    mov [rdi], rax
    mov eax, edx
    xor edx, edx
    mov ecx, 1000
    div ecx
    mov [rdi + 8], rax
6:
    test rsi, rsi
    jz 7f
    // The time zone: none.
    mov qword ptr [rsi], 0
7:
    xor eax, eax
    ret
vdso_gettimeofday_end:

    .balign 16
vdso_time:
    "#,
    read_clock!(),
    r#"
    add rax, [r8 + {wall}]
    "#,
    seconds!(),
    r#"
    test rdi, rdi
    jz 6f
    mov [rdi], rax
6:
    ret
vdso_time_end:

    .balign 16
vdso_clock_getres:
    cmp edi, 31
    ja 6f
    mov eax, {clocks}
    bt eax, edi
    jnc 6f
    test rsi, rsi
    jz 7f
    mov qword ptr [rsi], 0
    mov qword ptr [rsi + 8], 1
7:
    xor eax, eax
    ret
6:
    mov eax, {sys_clock_getres}
    syscall
    ret
vdso_clock_getres_end:

    .balign 16
vdso_getcpu:
    movabs rcx, {cpu_page}
    // Both numbers of one CPU.
    mov rax, [rcx]
    test rdi, rdi
    jz 6f
    mov [rdi], eax
6:
    test rsi, rsi
    jz 7f
    shr rax, 32
    mov [rsi], eax
7:
    xor eax, eax
    ret
vdso_getcpu_end:

    // The virtual counter: RDTSC as it would be at the frequency that this machine is told to have.
    .balign 16
vdso_tsc:
    "#,
    read_clock!(),
    r#"
    mov rcx, [r8 + {told_shift}]
    mul qword ptr [r8 + {told_mult}]
    shrd rax, rdx, cl
    shr rdx, cl
    test cl, 64
    cmovnz rax, rdx
    ret
vdso_tsc_end:
vdso_text_end:

vdso_section_names:
    .byte 0
vdso_section_hash: .asciz ".hash"
vdso_section_dynsym: .asciz ".dynsym"
vdso_section_dynstr: .asciz ".dynstr"
vdso_section_versym: .asciz ".gnu.version"
vdso_section_verdef: .asciz ".gnu.version_d"
vdso_section_frames: .asciz ".eh_frame"
vdso_section_dynamic: .asciz ".dynamic"
vdso_section_text: .asciz ".text"
vdso_section_shstrtab: .asciz ".shstrtab"
vdso_section_names_end:

    .balign 8
vdso_sections:
    .zero 64
    vdso_section vdso_section_hash, 5, 2, vdso_hash, vdso_hash_end, 2, 0, 8, 4
    vdso_section vdso_section_dynsym, 11, 2, vdso_symbols, vdso_symbols_end, 3, 1, 8, 24
    vdso_section vdso_section_dynstr, 3, 2, vdso_strings, vdso_strings_end, 0, 0, 1, 0
    vdso_section vdso_section_versym, 0x6fffffff, 2, vdso_versions, vdso_versions_end, 2, 0, 2, 2
    vdso_section vdso_section_verdef, 0x6ffffffd, 2, vdso_version_names, vdso_version_names_end, 3, 2, 8, 0
    vdso_section vdso_section_frames, 1, 2, vdso_frames, vdso_frames_end, 0, 0, 8, 0
    vdso_section vdso_section_dynamic, 6, 2, vdso_dynamic_table, vdso_dynamic_end, 3, 0, 8, 16
    vdso_section vdso_section_text, 1, 6, vdso_text, vdso_text_end, 0, 0, 16, 0
    vdso_section vdso_section_shstrtab, 3, 0, vdso_section_names, vdso_section_names_end, 0, 0, 1, 0
vdso_end:
    .org vdso_image + {page_size}
    "#,
    page_size = const PAGE_SIZE,
    clock_size = const BYTES,
    cpu_page = const shown::ADDRESS,
    object_hash = const elf_hash(b"linux-vdso.so.1"),
    linux_hash = const elf_hash(b"LINUX_2.6"),
    clocks = const CLOCKS,
    wall_clocks = const WALL_CLOCKS,
    sys_clock_gettime = const CLOCK_GETTIME,
    sys_clock_getres = const CLOCK_GETRES,
    sequence = const offsets::SEQUENCE,
    flags = const offsets::FLAGS,
    skewed = const SKEWED,
    base_ticks = const offsets::BASE_TICKS,
    base_ns = const offsets::BASE_NS,
    mult = const offsets::MULT,
    shift = const offsets::SHIFT,
    told_mult = const offsets::TOLD_MULT,
    told_shift = const offsets::TOLD_SHIFT,
    wall = const offsets::WALL,
    skew = const offsets::SKEW,
);
