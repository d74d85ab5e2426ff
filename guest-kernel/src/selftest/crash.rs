//! Tests that end in a kernel panic, or in no way that the kernel could report; the report is what is tested.

use super::{Test, TestResult, tests};

pub(super) const TESTS: &[Test] =
    tests![crash_stack_overflow, crash_panic, crash_null_pointer, crash_guard_page, crash_triple_fault];

/// Recursion that the compiler can't turn into a loop.
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let here = [depth; 16];
    let sum: u64 = core::hint::black_box(&here).iter().sum();
    if depth == u64::MAX { sum } else { recurse(depth + 1) + sum }
}

fn crash_stack_overflow() -> TestResult {
    core::hint::black_box(recurse(0));
    Err("the stack has no end".into())
}

fn crash_panic() -> TestResult {
    panic!("asked for by crash_panic");
}

fn crash_null_pointer() -> TestResult {
    // SAFETY: none: the fault is the test.
    let v = unsafe { core::ptr::read_volatile(core::hint::black_box(8) as *const u64) };
    Err(alloc::format!("read {v} from address 8"))
}

fn crash_guard_page() -> TestResult {
    // SAFETY: none: the fault is the test.
    let v = unsafe { core::ptr::read_volatile(crate::mm::layout::task_slot::BASE as *const u64) };
    Err(alloc::format!("read {v} from the guard page"))
}

fn crash_triple_fault() -> TestResult {
    let no_table = [0u16; 5];
    // SAFETY: none: an exception without any IDT ends the machine, and that is the test.
    unsafe { core::arch::asm!("cli", "lidt [{}]", "ud2", in(reg) &no_table, options(nostack)) };
    Err("an exception without an IDT went by".into())
}
