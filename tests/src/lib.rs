//! Helpers of the whole-system tests: real KVM, real QEMU, real programs.
//!
//! [`Guest`] describes one run of `taskvisor run`, [`run::Run`] any command with a hard time limit; both give an
//! [`run::Outcome`] whose checks print, when they fail, the command that repeats the run by itself. [`prereq`] finds what the
//! tests need beside cargo.

pub mod checked;
pub mod debugged;
pub mod guest;
pub mod prereq;
pub mod pty;
pub mod qemu;
pub mod run;
pub mod running;
pub mod selftest;
pub mod serial;
pub mod slurm;
pub mod temp;

pub use guest::Guest;
pub use run::{Outcome, Run};
pub use temp::TempDir;

/// Turns each function of a [`Guest`] prepared for some vCPUs into three tests: on 1, 2 and 4 vCPUs.
#[macro_export]
macro_rules! on_1_2_and_4_vcpus {
    ($($(#[$meta:meta])* fn $name:ident($guest:ident: Guest) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports, reason = "not every test body uses all that its file imports")]
            use super::*;
            fn test_body($guest: $crate::Guest) $body
            fn test_on(vcpus: u32) {
                if $crate::prereq::kvm_or_left_out() {
                    let _beside_others = $crate::serial::shared();
                    test_body($crate::Guest::new(vcpus));
                }
            }
            #[test]
            fn vcpus_1() { test_on(1); }
            #[test]
            fn vcpus_2() { test_on(2); }
            #[test]
            fn vcpus_4() { test_on(4); }
        }
    )*};
}
