//! Two vCPUs are nearly twice as fast as one: user time runs natively.

use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, Outcome, prereq, serial};

fn elapsed_ms(outcome: &Outcome) -> f64 {
    outcome.expect_code(0);
    let figure = outcome.stderr.lines().find_map(|line| line.strip_prefix("elapsed_ms "));
    figure.and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| outcome.fail("no elapsed_ms on stderr"))
}

#[test]
fn the_sieve_is_1_8_times_faster_on_two_vcpus() {
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
    // The best of some tries: another process on the machine makes a try worse, nothing makes one better than it is.
    let mut best = 0.0_f64;
    let mut told = String::new();
    for _ in 0..5 {
        let one = elapsed_ms(&Guest::new(1).run(&primes, args));
        let two = elapsed_ms(&Guest::new(2).run(&primes, args));
        told.push_str(&format!("\n  one vCPU {one:.0} ms, two {two:.0} ms: {:.2}", one / two));
        best = best.max(one / two);
        if best > 1.8 {
            return;
        }
    }
    panic!("two vCPUs should be over 1.8 times as fast as one:{told}");
}
