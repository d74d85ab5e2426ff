//! Memory: frames, kernel heap, page tables, address spaces, TLB shootdown, access to user memory.
//!
//! Bottom up: [`frame`] hands out physical pages, [`heap`] cuts them for `alloc`, [`page_table`] edits tables,
//! [`address_space`] holds what a process has mapped and resolves its faults, [`shootdown`] makes sure that a frame is
//! reused only when no CPU can still reach it.

pub mod address_space;
pub mod fault;
pub mod frame;
pub mod heap;
pub mod kernel_map;
pub mod layout;
pub mod page_table;
pub mod shootdown;
pub mod task_block;
pub mod user;
pub mod vma;

use core::fmt;

/// A guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// The same byte in the direct map.
    #[inline(always)]
    pub const fn to_virt(self) -> u64 {
        self.0 + layout::DIRECT_MAP
    }

    /// Direct-map pointer to the byte.
    #[inline(always)]
    pub const fn as_ptr<T>(self) -> *mut T {
        self.to_virt() as *mut T
    }

    /// Physical address of a direct-map address.
    #[inline(always)]
    pub const fn from_direct(virt: u64) -> Self {
        Self(virt - layout::DIRECT_MAP)
    }

    /// Physical address of something in the kernel image.
    #[inline(always)]
    pub const fn from_image(virt: u64) -> Self {
        Self(virt - layout::KERNEL_BASE)
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phys {:#x}", self.0)
    }
}

/// Rounds up to a page boundary; `None` on overflow.
pub const fn page_up(v: u64) -> Option<u64> {
    match v.checked_add(layout::PAGE_SIZE - 1) {
        Some(v) => Some(v & !(layout::PAGE_SIZE - 1)),
        None => None,
    }
}

/// Rounds down to a page boundary.
pub const fn page_down(v: u64) -> u64 {
    v & !(layout::PAGE_SIZE - 1)
}
