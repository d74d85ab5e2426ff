//! The tiny guests' code. Position-independent, AT&T syntax; loaded twice: at `KCODE` for ring 0, at `UCODE` for ring 3.
//!
//! Conventions: r8 is a snippet's argument; results go to the page at `RESULTS`; a snippet ends with an `out` to
//! [`PORT_DONE`], which in ring 3 raises #GP, whose handler does the same `out`. So every snippet runs in either ring.
//! Every vector enters `trap`, which stores the frame and ends the run, or goes on at the address in slot `RESUME`.

use std::arch::global_asm;

/// Guest-physical = guest-virtual layout. The page tables map the first 2 MiB with 4 KiB pages.
pub mod layout {
    /// Bytes of guest RAM.
    pub const RAM: usize = 0x4_0000;
    /// Four levels of page tables, one page each.
    pub const PML4: u64 = 0x1000;
    /// Descriptor table, with the task state segment behind it.
    pub const GDT: u64 = 0x5000;
    /// Task state segment.
    pub const TSS: u64 = 0x5800;
    /// 256 gates.
    pub const IDT: u64 = 0x6000;
    /// Where snippets leave what they found; every ring may write it.
    pub const RESULTS: u64 = 0x7000;
    /// Top of the ring-0 stack.
    pub const KSTACK_TOP: u64 = 0xa000;
    /// Top of the ring-3 stack (page 0xb000).
    pub const USTACK_TOP: u64 = 0xc000;
    /// Entry stubs of the 256 vectors, 16 bytes each.
    pub const STUBS: u64 = 0xc000;
    /// The code, for ring 0 only.
    pub const KCODE: u64 = 0x1_0000;
    /// The same code, for ring 3.
    pub const UCODE: u64 = 0x2_0000;
    /// A zeroed page for xsave and the like.
    pub const SCRATCH: u64 = 0x3_0000;
}

/// Slots of the results page, in units of 8 bytes.
pub mod slot {
    /// The vector that ended the run, all-ones if none did.
    pub const VECTOR: usize = 0;
    /// Its error code, or 0.
    pub const ERROR: usize = 1;
    /// RIP of the frame.
    pub const RIP: usize = 2;
    /// CS of the frame.
    pub const CS: usize = 3;
    /// CR2 at that time.
    pub const CR2: usize = 4;
    /// Where a trap goes on (0: it ends the run).
    pub const RESUME: usize = 5;
    /// How far a snippet got.
    pub const STAGE: usize = 6;
    /// First of the snippet's own.
    pub const OUT: usize = 8;
}

/// The run is over.
pub const PORT_DONE: u16 = 0xf4;
/// The snippet waits for the host to do something.
pub const PORT_READY: u16 = 0xf5;
/// Where `ioeventfd` is probed.
pub const PORT_EVENT: u16 = 0x5f0;
/// Vector of the timer and interrupt probes.
pub const IRQ_VECTOR: u8 = 0x31;
/// Loop turns of [`fast`](super::fast)'s timed loop, and how often it is timed.
pub const FAST_TURNS: u64 = 32;
/// See [`FAST_TURNS`].
pub const FAST_ROUNDS: usize = 3;

macro_rules! code {
    ($($asm:literal,)*) => {
        global_asm!(
            $($asm,)*
            kcode = const layout::KCODE,
            ucode = const layout::UCODE,
            ustack = const layout::USTACK_TOP,
            scratch = const layout::SCRATCH,
            vector = const layout::RESULTS + 8 * slot::VECTOR as u64,
            error = const layout::RESULTS + 8 * slot::ERROR as u64,
            rip = const layout::RESULTS + 8 * slot::RIP as u64,
            cs = const layout::RESULTS + 8 * slot::CS as u64,
            cr2 = const layout::RESULTS + 8 * slot::CR2 as u64,
            resume = const layout::RESULTS + 8 * slot::RESUME as u64,
            stage = const layout::RESULTS + 8 * slot::STAGE as u64,
            out = const layout::RESULTS + 8 * slot::OUT as u64,
            done = const PORT_DONE,
            ready = const PORT_READY,
            event = const PORT_EVENT,
            irq = const IRQ_VECTOR,
            turns = const FAST_TURNS,
            rounds = const FAST_ROUNDS,
            user_cs = const super::guest::USER_CS,
            user_ss = const super::guest::USER_SS,
            options(att_syntax)
        );
    };
}

code! {
    ".pushsection .rodata.taskvisor_probe, \"a\", @progbits",
    ".balign 16",
    ".globl taskvisor_probe_start",
    "taskvisor_probe_start:",

    // Every vector: the stub has pushed the vector, above an error code (real or 0).
    ".globl taskvisor_probe_trap",
    "taskvisor_probe_trap:",
    "pop %rax",
    "mov %rax, {vector}",
    "pop %rax",
    "mov %rax, {error}",
    "pop %rax",
    "mov %rax, {rip}",
    "pop %rax",
    "mov %rax, {cs}",
    "mov %cr2, %rax",
    "mov %rax, {cr2}",
    "mov {resume}, %rax",
    "test %rax, %rax",
    "jz 9f",
    "movq $0, {resume}",
    "jmp *%rax",

    // Ends a run in any ring.
    ".globl taskvisor_probe_done",
    "taskvisor_probe_done:",
    "9: out %al, ${done}",
    "8: hlt",
    "jmp 8b",

    // The three questions of a launch, in one run. Stage 1: the loop was timed; 2: SYSCALL was tried; 3: XSAVE worked.
    ".globl taskvisor_probe_fast",
    "taskvisor_probe_fast:",
    "lea {out}, %rdi",
    "mov ${rounds}, %ebx",
    "1: mov ${turns}, %ecx",
    "rdtsc",
    "mov %eax, %esi",
    "2: dec %ecx",
    "jnz 2b",
    "rdtsc",
    "sub %esi, %eax",
    "mov %rax, (%rdi)",
    "add $8, %rdi",
    "dec %ebx",
    "jnz 1b",
    "movq $1, {stage}",
    "movq $({kcode} + taskvisor_probe_fast_xsave - taskvisor_probe_start), {resume}",
    "pushq ${user_ss}",
    "pushq ${ustack}",
    "pushq $2",
    "pushq ${user_cs}",
    "pushq $({ucode} + taskvisor_probe_fast_user - taskvisor_probe_start)",
    "iretq",
    "taskvisor_probe_fast_user:",
    // CPUID.1:ECX[27] OSXSAVE as ring 3 sees it; if so, XCR0: which state its programs can have.
    "mov $1, %eax",
    "cpuid",
    "bt $27, %ecx",
    "jnc 7f",
    "xor %ecx, %ecx",
    "xgetbv",
    "mov %eax, {out} + 56",
    "7: syscall",
    "ud2",
    // LSTAR. Reached in ring 0 if SYSCALL does what it should; the page can't be fetched from in ring 3.
    ".globl taskvisor_probe_fast_lstar",
    "taskvisor_probe_fast_lstar:",
    "movq $0, {resume}",
    "taskvisor_probe_fast_xsave:",
    // What SYSCALL left (all-ones: nothing), before XSAVE may raise something of its own.
    "mov {vector}, %rax",
    "mov %rax, {out} + 32",
    "mov {error}, %rax",
    "mov %rax, {out} + 40",
    "mov {rip}, %rax",
    "mov %rax, {out} + 48",
    "movq $2, {stage}",
    "mov $3, %eax",
    "xor %edx, %edx",
    ".globl taskvisor_probe_fast_xsave_at",
    "taskvisor_probe_fast_xsave_at:",
    "xsave64 {scratch}",
    "movq $3, {stage}",
    "jmp 9b",

    // Cycles of r8 loop turns.
    ".globl taskvisor_probe_loop",
    "taskvisor_probe_loop:",
    "rdtsc",
    "shl $32, %rdx",
    "lea (%rdx, %rax), %rsi",
    "1: dec %r8",
    "jnz 1b",
    "rdtsc",
    "shl $32, %rdx",
    "add %rdx, %rax",
    "sub %rsi, %rax",
    "mov %rax, {out}",
    "jmp 9b",

    ".globl taskvisor_probe_rdtsc",
    "taskvisor_probe_rdtsc:",
    "rdtsc",
    "shl $32, %rdx",
    "add %rdx, %rax",
    "mov %rax, {out}",
    "jmp 9b",

    // CPUID leaf r8.
    ".globl taskvisor_probe_cpuid",
    "taskvisor_probe_cpuid:",
    "mov %r8d, %eax",
    "xor %ecx, %ecx",
    "cpuid",
    "mov %eax, {out}",
    "mov %ebx, {out} + 8",
    "mov %ecx, {out} + 16",
    "mov %edx, {out} + 24",
    "jmp 9b",

    // A breakpoint's, a step's and a watchpoint's target.
    ".globl taskvisor_probe_debug",
    "taskvisor_probe_debug:",
    "nop",
    ".globl taskvisor_probe_debug_break",
    "taskvisor_probe_debug_break:",
    "nop",
    "mov %r8, {out}",
    ".globl taskvisor_probe_debug_written",
    "taskvisor_probe_debug_written:",
    "nop",
    "jmp 9b",

    ".globl taskvisor_probe_int3",
    "taskvisor_probe_int3:",
    "int3",
    "nop",
    "jmp 9b",

    // x2APIC: software enable (SDM vol. 3A, 11.9, 11.12.1.2: MSR 0x80f).
    "3: mov $0x80f, %ecx",
    "mov $0x1ff, %eax",
    "xor %edx, %edx",
    "wrmsr",
    "ret",

    // TSC-deadline timer (SDM vol. 3A, 11.5.4.1): LVT timer mode 2, then MSR 0x6e0 = now + r8.
    ".globl taskvisor_probe_deadline",
    "taskvisor_probe_deadline:",
    "call 3b",
    "mov $0x832, %ecx",
    "mov $(0x40000 + {irq}), %eax",
    "xor %edx, %edx",
    "wrmsr",
    "rdtsc",
    "shl $32, %rdx",
    "add %rdx, %rax",
    "add %r8, %rax",
    "mov %rax, %rdx",
    "shr $32, %rdx",
    "mov $0x6e0, %ecx",
    "wrmsr",
    "sti",
    "4: hlt",
    "jmp 4b",

    // One-shot timer: divide by 1 (MSR 0x83e = 0xb), initial count r8 (MSR 0x838).
    ".globl taskvisor_probe_oneshot",
    "taskvisor_probe_oneshot:",
    "call 3b",
    "mov $0x832, %ecx",
    "mov ${irq}, %eax",
    "xor %edx, %edx",
    "wrmsr",
    "mov $0x83e, %ecx",
    "mov $0xb, %eax",
    "wrmsr",
    "mov $0x838, %ecx",
    "mov %r8d, %eax",
    "wrmsr",
    "sti",
    "5: hlt",
    "jmp 5b",

    // Waits for an interrupt from outside, after telling the host that it does.
    ".globl taskvisor_probe_irq",
    "taskvisor_probe_irq:",
    "call 3b",
    "out %al, ${ready}",
    "sti",
    "6: hlt",
    "jmp 6b",

    ".globl taskvisor_probe_endless",
    "taskvisor_probe_endless:",
    "jmp taskvisor_probe_endless",

    ".globl taskvisor_probe_event",
    "taskvisor_probe_event:",
    "mov ${event}, %edx",
    "out %al, %dx",
    "jmp 9b",

    ".globl taskvisor_probe_end",
    "taskvisor_probe_end:",
    ".popsection",
}

macro_rules! snippets {
    ($($(#[$doc:meta])* $name:ident = $symbol:ident,)*) => {
        unsafe extern "C" {
            static taskvisor_probe_start: u8;
            static taskvisor_probe_end: u8;
            $(static $symbol: u8;)*
        }

        /// An address in the code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Snippet { $($(#[$doc])* $name,)* }

        impl Snippet {
            /// Offset from the start of the code.
            pub fn offset(self) -> u64 {
                let at: *const u8 = match self { $(Snippet::$name => &raw const $symbol,)* };
                at as u64 - (&raw const taskvisor_probe_start) as u64
            }
        }
    };
}

snippets! {
    /// Where every vector goes.
    Trap = taskvisor_probe_trap,
    /// Ends the run.
    Done = taskvisor_probe_done,
    /// The launch's three questions.
    Fast = taskvisor_probe_fast,
    /// Its system call entry.
    FastLstar = taskvisor_probe_fast_lstar,
    /// Its XSAVE.
    FastXsaveAt = taskvisor_probe_fast_xsave_at,
    /// Times a loop.
    Loop = taskvisor_probe_loop,
    /// Reads the TSC.
    Rdtsc = taskvisor_probe_rdtsc,
    /// Reads a CPUID leaf.
    Cpuid = taskvisor_probe_cpuid,
    /// Start of the debug target.
    Debug = taskvisor_probe_debug,
    /// Its second instruction.
    DebugBreak = taskvisor_probe_debug_break,
    /// The instruction after its store.
    DebugWritten = taskvisor_probe_debug_written,
    /// An int3.
    Int3 = taskvisor_probe_int3,
    /// Arms the TSC-deadline timer.
    Deadline = taskvisor_probe_deadline,
    /// Arms the one-shot timer.
    Oneshot = taskvisor_probe_oneshot,
    /// Waits for an interrupt.
    Irq = taskvisor_probe_irq,
    /// Never ends: what deadlines are for.
    Endless = taskvisor_probe_endless,
    /// Writes the ioeventfd port.
    Event = taskvisor_probe_event,
}

/// All of the code.
pub fn bytes() -> &'static [u8] {
    // SAFETY: both symbols delimit one object in read-only data, written by the assembler above.
    unsafe {
        let start = &raw const taskvisor_probe_start;
        std::slice::from_raw_parts(start, (&raw const taskvisor_probe_end).offset_from_unsigned(start))
    }
}
