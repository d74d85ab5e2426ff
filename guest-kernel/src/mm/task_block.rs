//! The frames that make a task: its top-level page table, the tables of its own slot, and its kernel stack with a guard page.
//!
//! One block of eight frames: `[pml4, pdpt, pd, pt, stack x 4]`. `task` makes one a task; blocks of ended tasks are kept wired and
//! used again, so that making a task writes a handful of entries instead of four tables.
//!
//! Invariant: the slot's tables map exactly the four stack pages, so the page below the stack always faults.

use alloc::vec::Vec;

use super::PhysAddr;
use super::frame::{self, OutOfMemory};
use super::kernel_map;
use super::layout::{PAGE_SIZE, TASK_SLOT, task_slot};
use super::page_table::{Entry, Flags, Table, index};
use crate::sync::SpinLock;

const ORDER: usize = 3;
const STACK_OFFSET: u64 = 4 * PAGE_SIZE;

/// Blocks of ended tasks. Guards: the list only.
static SPARE: SpinLock<Vec<PhysAddr>> = SpinLock::new(Vec::new());

/// An owned block.
pub struct TaskBlock {
    base: PhysAddr,
}

impl TaskBlock {
    /// Where in this structure the address of the top-level page table lies, for the VMM.
    pub const ROOT_AT: usize = core::mem::offset_of!(TaskBlock, base);

    /// A block with the kernel half and the task's slot in place and an empty user half.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new() -> Result<Self, OutOfMemory> {
        if let Some(base) = SPARE.lock().pop() {
            return Ok(Self { base });
        }
        let base = frame::alloc_block(ORDER, true)?;
        let page = |i: u64| PhysAddr(base.0 + i * PAGE_SIZE);
        let rw = Flags::PRESENT | Flags::WRITE;
        // SAFETY: four fresh zero frames are empty tables.
        let (top, pdpt, pd, pt) =
            unsafe { (Table::at(page(0)), Table::at(page(1)), Table::at(page(2)), Table::at(page(3))) };
        kernel_map::install_kernel_half(top);
        top.set(TASK_SLOT, Entry::new(page(1), rw));
        pdpt.set(index(task_slot::BASE, 3), Entry::new(page(2), rw));
        pd.set(index(task_slot::BASE, 2), Entry::new(page(3), rw));
        for i in 0..task_slot::STACK_PAGES as u64 {
            pt.set(index(task_slot::STACK_BOTTOM + i * PAGE_SIZE, 1), Entry::new(page(4 + i), rw | Flags::NO_EXECUTE));
        }
        Ok(Self { base })
    }

    /// The top-level page table's frame: the value for CR3.
    #[inline(always)]
    pub fn root(&self) -> PhysAddr {
        self.base
    }

    /// The top-level page table.
    #[inline(always)]
    pub fn top(&self) -> &Table {
        // SAFETY: the block holds a table for as long as it lives.
        unsafe { Table::at(self.base) }
    }

    /// Direct-map address of the first byte above the stack, to prepare it while the task doesn't run.
    pub fn stack_top_direct(&self) -> u64 {
        PhysAddr(self.base.0 + STACK_OFFSET).to_virt() + task_slot::STACK_PAGES as u64 * PAGE_SIZE
    }

    /// Direct-map alias of an address in this task's stack, to read it from another task.
    pub fn stack_alias(&self, addr: u64) -> Option<u64> {
        (task_slot::STACK_BOTTOM..task_slot::STACK_TOP)
            .contains(&addr)
            .then(|| PhysAddr(self.base.0 + STACK_OFFSET).to_virt() + (addr - task_slot::STACK_BOTTOM))
    }
}

impl Drop for TaskBlock {
    fn drop(&mut self) {
        // The user half was emptied when the task let go of its address space (`Task::leave_space`).
        // Never given back to the frame allocator: half of it was page tables (see `frame::alloc_table`).
        SPARE.lock().push(self.base);
    }
}
