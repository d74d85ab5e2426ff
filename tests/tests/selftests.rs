//! The kernel's own in-guest tests on KVM, and under chaos.
//!
//! One alone: `taskvisor run --kernel $(resources/build-kernel.sh selftest) --cmdline test=NAME --log stderr -- /bin/true`

use std::path::Path;

use taskvisor_tests::guest::program;
use taskvisor_tests::qemu::{Image, debug_exit};
use taskvisor_tests::{Guest, on_1_2_and_4_vcpus, prereq, selftest, serial};

/// What the kernel writes to the debug exit: kind 3, tests finished, 0 failures.
const TESTS_PASSED: i32 = 3 << 8;

/// Runs the tests of a test kernel; the program is never started.
fn run(guest: Guest, kernel: &Path) {
    let guest = guest.flag("--kernel").flag(kernel).flag("--log").flag("stderr").flag("--log-level").flag("info");
    guest.run(&program("musl/hello"), [] as [&str; 0]).expect_code(0).expect_stderr(" passed, 0 failed");
}

on_1_2_and_4_vcpus! {
    fn kernel_tests(guest: Guest) {
        run(guest, selftest::kernel());
    }
}

/// The same tests, less code around them: on one number of vCPUs here, on others under QEMU (`qemu.rs`).
#[test]
fn kernel_tests_without_the_linux_abi() {
    if prereq::kvm_or_left_out() {
        let _beside_others = serial::shared();
        run(Guest::new(2), selftest::kernel_without_linux());
    }
}

/// The in-guest test `name` ends in a kernel panic on purpose; the report is what is tested.
fn crash(name: &str, report: &[&str]) {
    crash_with(&format!("test={name}"), report);
}

/// The same with more on the kernel's command line.
fn crash_with(cmdline: &str, report: &[&str]) {
    let guest = Guest::new(2).flag("--kernel").flag(selftest::kernel()).flag("--log").flag("stderr");
    let guest = guest.flag("--cmdline").flag(cmdline);
    let outcome = guest.run(&program("musl/hello"), [] as [&str; 0]);
    outcome.expect_code(123).expect_stderr("task ").expect_stderr("\"selftest\"");
    for part in report {
        outcome.expect_stderr(part);
    }
}

#[test]
fn a_kernel_stack_overflow_is_reported() {
    crash("crash_stack_overflow", &["kernel panic: kernel stack overflow, guard page hit at", "rip 0x", "recurse+0x"]);
}

#[test]
fn a_guard_page_hit_is_reported() {
    crash("crash_guard_page", &["kernel panic: read of the kernel stack's guard page"]);
}

#[test]
fn a_null_pointer_in_the_kernel_is_reported() {
    crash("crash_null_pointer", &["kernel panic: page fault in ring 0: read of 0x8"]);
}

/// What the kernel can't report itself: the VMM names vCPU, reason, place and the task that ran.
#[test]
fn a_triple_fault_of_our_kernel_names_the_task() {
    let guest =
        Guest::new(2).flag("--kernel").flag(selftest::kernel()).flag("--cmdline").flag("test=crash_triple_fault");
    let outcome = guest.run(&program("musl/hello"), [] as [&str; 0]);
    outcome.expect_code(125).expect_stderr("triple fault").expect_stderr("crash_triple_fault+0x");
    outcome.expect_stderr("\"selftest\" (kernel task, running), in the kernel");
}

#[test]
fn a_kernel_panic_has_a_symbolised_backtrace() {
    crash("crash_panic", &["kernel panic: asked for by crash_panic", "run_all+0x"]);
}

/// The ring's last records are in the report, oldest first: what the CPU did before it panicked.
#[test]
fn a_kernel_panic_shows_the_last_trace_records() {
    let last = ["trace records of CPU ", " switch task ", "name task ", "\"selftest\""];
    crash_with("test=crash_panic trace=ring trace_records=64", &last);
}

/// Moments that hardly come by themselves, on purpose: seeds as good as any others, whose runs the command in a failing test repeats. Under
/// QEMU's `tcg`, where a run takes seconds; `make soak` has new seeds on KVM. Not on one CPU: its time would be virtual, and stand still
/// while a test waits for it to pass.
#[test]
fn kernel_tests_under_chaos() {
    let Some(qemu) = prereq::qemu() else { return };
    let _beside_others = serial::shared();
    let kernel = selftest::kernel().to_str().expect("our own path is UTF-8");
    for (cpus, seed) in [(2, 1), (2, 3), (4, 4), (4, 5)] {
        let chaos = format!("chaos={seed}");
        let flags = ["--kernel", kernel, "--cmdline", &chaos];
        let image = Image::new(&flags, &program("musl/hello"), &[] as &[&str]);
        image.run_tcg(&qemu, cpus).expect_code(debug_exit(TESTS_PASSED)).expect_stdout(" passed, 0 failed");
    }
}
