//! The context switch.
//!
//! Only `sched` calls it, with interrupts off. Between the two tasks the CPU stands on its neutral stack, which every root
//! maps at the same address: were it still on the old task's stack when CR3 changes, that stack would vanish under it, since
//! all tasks have theirs at one address. `on_cpu` of the old task is cleared only when both its stack and its root are left;
//! from then on another CPU may run it.

use core::arch::global_asm;

use crate::mm::layout::cpu_slot::NEUTRAL_STACK_TOP;

global_asm!(
    r#"
    .section .text, "ax", @progbits
    // switch_task(rdi *prev_rsp, rsi next_rsp, rdx next_root, rcx *prev_on_cpu)
    .global switch_task
switch_task:
    "#,
    push_callee_saved!(),
    r#"
    mov [rdi], rsp
    movabs rsp, {neutral}
    mov cr3, rdx
    mov rsp, rsi
    // Release by x86's store order: all that the old task did, its saved RSP included, is visible first.
    mov byte ptr [rcx], 0
    "#,
    pop_callee_saved!(),
    r#"
    // A name for whoever counts what a switch costs.
switch_task_done:
    ret

    // First code of a new task: r12 = function, r13 = its argument.
    .global task_start
task_start:
    call finish_first_switch
    mov rdi, r13
    xor ebp, ebp
    call r12
    ud2

    // Leaves the kernel for the first time: rsp -> TrapFrame.
    .global enter_user
enter_user:
    mov rsp, rdi
    jmp return_to_user
    "#,
    neutral = const NEUTRAL_STACK_TOP,
);

unsafe extern "C" {
    /// Saves the running context in `*prev_rsp` and continues the one in `next_rsp`.
    ///
    /// # Safety
    /// Interrupts are off; `next_rsp` was saved by this function or laid out by [`initial_stack`]; `next_root` maps the
    /// kernel half, this CPU's slot and the stack of `next_rsp`; `prev_on_cpu` lives in the direct map or the image.
    pub fn switch_task(prev_rsp: *mut u64, next_rsp: u64, next_root: u64, prev_on_cpu: *mut bool);
    fn task_start();
    /// Goes to ring 3 with the registers of a [`TrapFrame`](super::trap_entry::TrapFrame) on the current kernel stack.
    ///
    /// # Safety
    /// Interrupts are off, and the frame's selectors are the user ones.
    pub fn enter_user(frame: *const super::trap_entry::TrapFrame) -> !;
}

/// Lays out a new task's stack so that [`switch_task`] starts `entry(argument)` on it. `top` is the direct-map alias of
/// the virtual address `virt_top`; returns the saved RSP.
///
/// # Safety
/// The stack belongs to a task that doesn't run.
pub unsafe fn initial_stack(top: u64, virt_top: u64, entry: extern "C" fn(usize) -> !, argument: usize) -> u64 {
    // r15, r14, r13, r12, rbx, rbp, return address, then a null return address that ends backtraces; 16-byte aligned at
    // `task_start`'s calls.
    let words = [0, 0, argument as u64, entry as *const () as u64, 0, 0, task_start as *const () as u64, 0, 0];
    let size = size_of_val(&words) as u64;
    // SAFETY: the caller's promise; `size` bytes below the top are inside the stack.
    unsafe { core::ptr::copy_nonoverlapping(words.as_ptr(), (top - size) as *mut u64, words.len()) };
    virt_top - size
}
