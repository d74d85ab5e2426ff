//! Where time goes, as the guest's kernel tells it.

use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, prereq};

/// What `--stats` says that the host took of each of two CPUs that compute, on these CPUs of the host.
fn stolen(places: &str) -> Vec<u64> {
    let guest = Guest::new(2).flag("--stats").flag("--affinity").flag(places);
    let outcome = guest.run(&program("musl/ubench"), ["spin", "200", "2"]);
    outcome.expect_code(0);
    let cpus = outcome.stderr.lines().filter(|line| line.starts_with("stats: cpu "));
    cpus.filter_map(|line| line.split_once("steal_us ")?.1.trim().parse().ok()).collect()
}

/// Two vCPUs that compute on one CPU of the host: each must wait for the other. Linux's KVM tells its guests since 3.1; one that
/// doesn't, or whose kernel keeps no scheduler statistics, would fail this.
#[test]
fn time_that_the_host_took_is_told() {
    if prereq::kvm_or_left_out() {
        let stolen = stolen("0=0;1=0");
        assert!(stolen.len() == 2 && stolen.iter().sum::<u64>() > 0, "{stolen:?}");
    }
}
