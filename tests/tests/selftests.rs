//! The kernel's own in-guest tests on KVM.
//!
//! One alone: `taskvisor run --kernel $(resources/build-kernel.sh selftest) --cmdline test=NAME --log stderr -- /bin/true`

use taskvisor_tests::guest::program;
use taskvisor_tests::{on_1_2_and_4_vcpus, selftest};

on_1_2_and_4_vcpus! {
    fn kernel_tests(guest: Guest) {
        let guest = guest.flag("--kernel").flag(selftest::kernel()).flag("--log").flag("stderr");
        guest.run(&program("musl/hello"), [] as [&str; 0]).expect_code(0);
    }
    fn kernel_tests_without_the_linux_abi(guest: Guest) {
        let guest = guest.flag("--kernel").flag(selftest::kernel_without_linux()).flag("--log").flag("stderr");
        guest.run(&program("musl/hello"), [] as [&str; 0]).expect_code(0);
    }
}
