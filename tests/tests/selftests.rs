//! The kernel's own in-guest tests on KVM.
//!
//! One alone: `taskvisor run --kernel $(resources/build-kernel.sh selftest) --cmdline test=NAME --log stderr -- /bin/true`

use std::path::Path;

use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, on_1_2_and_4_vcpus, selftest};

/// Runs the tests of a test kernel; the program is never started.
fn run(guest: Guest, kernel: &Path) {
    let guest = guest.flag("--kernel").flag(kernel).flag("--log").flag("stderr").flag("--log-level").flag("info");
    guest.run(&program("musl/hello"), [] as [&str; 0]).expect_code(0).expect_stderr(" passed, 0 failed");
}

on_1_2_and_4_vcpus! {
    fn kernel_tests(guest: Guest) {
        run(guest, selftest::kernel());
    }
    fn kernel_tests_without_the_linux_abi(guest: Guest) {
        run(guest, selftest::kernel_without_linux());
    }
}
