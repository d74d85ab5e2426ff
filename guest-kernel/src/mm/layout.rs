//! The kernel's virtual address space, slot by slot of the top-level table (512 GiB each).
//!
//! | slot | what | shared by |
//! | --- | --- | --- |
//! | 0..=254 | user half | the threads of one process |
//! | 255 | what this CPU shows programs of itself | whatever runs on the CPU, as 509 |
//! | 256..=383 | direct map of all guest RAM, no execute | all |
//! | 509 | this CPU's stacks | whatever runs on the CPU: written into the task's table at switch-in |
//! | 510 | this task's kernel stack | nobody |
//! | 511 | kernel image at -2 GiB | all |

/// Page size in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;

/// First address above what programs can map. It is far below the canonical hole, so a SYSCALL at its very end can't return
/// to a non-canonical address.
pub const USER_END: u64 = (USER_CPU_SLOT as u64) << 39;
/// Start of the direct map: virtual = physical + this.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Guest-physical addresses that the direct map can hold (128 slots).
pub const DIRECT_MAP_SIZE: u64 = 128 << 39;
/// Kernel image: virtual = physical + this.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

/// Top-level index of the slot by which ring 3 reaches the one page of the per-CPU slot that is open to it.
pub const USER_CPU_SLOT: usize = 255;
/// Top-level index of the direct map's first slot.
pub const DIRECT_SLOT: usize = 256;
/// Top-level index of the per-CPU slot.
pub const CPU_SLOT: usize = 509;
/// Top-level index of the per-task slot.
pub const TASK_SLOT: usize = 510;
/// Top-level index of the kernel image.
pub const KERNEL_SLOT: usize = 511;

/// Stacks of one CPU. Each has an unmapped guard page below it.
pub mod cpu_slot {
    /// Start of the slot.
    pub const BASE: u64 = 0xffff_fe80_0000_0000;
    /// Two pages at page index 1.
    pub const DOUBLE_FAULT_STACK_TOP: u64 = BASE + 0x3000;
    /// One page at page index 4.
    pub const NMI_STACK_TOP: u64 = BASE + 0x5000;
    /// One page at page index 6.
    pub const MACHINE_CHECK_STACK_TOP: u64 = BASE + 0x7000;
    /// One page at page index 8: on it a CPU stands between two tasks.
    pub const NEUTRAL_STACK_TOP: u64 = BASE + 0x9000;
    /// Page index 10: what programs see of the CPU.
    pub const SHOWN_PAGE: u64 = BASE + 0xa000;
}

/// Kernel stack of one task: guard page, then the stack.
pub mod task_slot {
    /// Start of the slot; this page is the guard.
    pub const BASE: u64 = 0xffff_ff00_0000_0000;
    /// Pages of stack above the guard.
    pub const STACK_PAGES: usize = 4;
    /// Lowest stack address.
    pub const STACK_BOTTOM: u64 = BASE + super::PAGE_SIZE;
    /// First address above the stack.
    pub const STACK_TOP: u64 = STACK_BOTTOM + STACK_PAGES as u64 * super::PAGE_SIZE;
}
