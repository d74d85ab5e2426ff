//! Two vCPUs are nearly twice as fast as one: user time runs natively.

use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, Outcome, Run, prereq, serial};

fn elapsed_ms(outcome: &Outcome) -> f64 {
    outcome.expect_code(0);
    let figure = outcome.stderr.lines().find_map(|line| line.strip_prefix("elapsed_ms "));
    figure.and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| outcome.fail("no elapsed_ms on stderr"))
}

#[test]
fn the_sieve_gains_by_a_second_vcpu_what_the_host_gains_by_a_second_core() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if !prereq::there_or_left_out(cores >= 2, "a second core") {
        return;
    }
    let _alone = serial::alone();
    let primes = program("musl/primes");
    let args = ["100000000", "2", "4"];
    // What the host itself gains by a second thread is what can be had: on a shared machine that is less than twice, for the
    // guest as for the host. The best of some tries on either side: others on the machine only ever make a try worse.
    let host = |threads: &str| elapsed_ms(&Run::new(&primes).args([args[0], threads, args[2]]).run());
    let (mut best, mut possible) = (0.0_f64, 0.0_f64);
    let mut told = String::new();
    for _ in 0..5 {
        let one = elapsed_ms(&Guest::new(1).run(&primes, args));
        let two = elapsed_ms(&Guest::new(2).run(&primes, args));
        let (host_one, host_two) = (host("1"), host("2"));
        best = best.max(one / two);
        possible = possible.max(host_one / host_two);
        told.push_str(&format!("\n  guest {one:.0} ms, {two:.0} ms: {:.2}", one / two));
        told.push_str(&format!("; host {host_one:.0} ms, {host_two:.0} ms: {:.2}", host_one / host_two));
        if best > 1.8 {
            return;
        }
    }
    assert!(
        best >= 0.9 * possible,
        "two vCPUs should be 1.8 times as fast as one, or as much as the host gains:{told}"
    );
}
