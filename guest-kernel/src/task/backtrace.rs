//! The return addresses on the kernel stack of a task that doesn't run. For reports: the stack is read by its direct-map name without a
//! lock, so a task that runs on meanwhile gives nonsense, of which only addresses of the kernel's text are shown; nothing breaks.

use core::sync::atomic::Ordering;

use super::Task;
use crate::arch::trap_entry::TrapFrame;
use crate::mm::kernel_map;
use crate::mm::layout::task_slot;

/// Frames that are followed.
const MOST: usize = 32;

/// A word of the task's stack, by its own address of it.
fn word(task: &Task, at: u64) -> Option<u64> {
    let alias = task.block.stack_alias(at).filter(|_| at.is_multiple_of(8))?;
    // SAFETY: in the task's stack, which is mapped as long as the task lives; any word will do. Volatile: it may change.
    Some(unsafe { core::ptr::read_volatile(alias as *const u64) })
}

/// Shows the return addresses, innermost first, to `f`. None of a task that stands on a CPU.
pub fn of(task: &Task, mut f: impl FnMut(u64)) {
    // Acquire: what was pushed is seen if the stack is left.
    if task.on_cpu.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: a word; see the module's text.
    let rsp = unsafe { core::ptr::read_volatile(task.saved_rsp()) };
    // As `arch::switch` has left it: six registers, RBP the last of them, and the return address.
    let (mut rbp, mut ret) = (word(task, rsp.wrapping_add(40)), word(task, rsp.wrapping_add(48)));
    for _ in 0..MOST {
        let Some(address) = ret.filter(|ret| kernel_map::is_text(*ret)) else { return };
        f(address);
        let Some(frame) = rbp else { return };
        let above = word(task, frame);
        ret = word(task, frame.wrapping_add(8));
        rbp = above.filter(|above| *above > frame);
    }
}

/// Where a program's task was when it entered the kernel: RIP and RSP.
pub fn entered_from(task: &Task) -> Option<(u64, u64)> {
    task.user()?;
    let frame = task_slot::STACK_TOP - size_of::<TrapFrame>() as u64;
    let at = |offset: usize| word(task, frame + offset as u64);
    Some((at(core::mem::offset_of!(TrapFrame, rip))?, at(core::mem::offset_of!(TrapFrame, rsp))?))
}
