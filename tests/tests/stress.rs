//! The scheduler under load, under each policy of ordinary tasks: the program checks its own sums, and every trace record is held against
//! the invariants. `make soak` runs the same with hundreds of tasks for as long as one likes.

use taskvisor_tests::checked::run_checked;
use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, prereq, serial};

fn stress(vcpus: u32, policy: &str) {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let guest = Guest::new(vcpus).flag("--policy").flag(policy);
    let (outcome, _) = run_checked(guest, &program("musl/schedstress"), ["1", "4", "6", "3", "3"]);
    outcome.expect_code(0).expect_stdout("PASS schedstress: 1 rounds, 24 threads in 4 rings, 3 processes, 3 laps");
}

macro_rules! under_policies {
    ($($policy:ident)*) => {$(
        mod $policy {
            #[test]
            fn vcpus_1() { super::stress(1, stringify!($policy)); }
            #[test]
            fn vcpus_2() { super::stress(2, stringify!($policy)); }
            #[test]
            fn vcpus_4() { super::stress(4, stringify!($policy)); }
            #[test]
            fn vcpus_8() { super::stress(8, stringify!($policy)); }
        }
    )*};
}

under_policies! { fair rr count runtime }
