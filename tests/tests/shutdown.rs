//! Ends are quick and complete, whoever causes them.

use std::time::Duration;

use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, Run, prereq, serial};

/// What a guest that does nothing costs, plus the 100 ms that shutting down may take.
fn limit() -> Duration {
    let start_and_end = Guest::new(4).run(&program("musl/bad"), ["exit", "0"]);
    start_and_end.expect_code(0);
    start_and_end.elapsed + Duration::from_millis(100)
}

#[test]
fn at_the_timeout() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _alone = serial::alone();
    let limit = limit();
    for way in ["spin", "forever"] {
        let outcome = Guest::new(4).timeout(Duration::from_secs(1)).run(&program("musl/bad"), [way]);
        outcome.expect_code(124);
        if outcome.elapsed > Duration::from_secs(1) + limit {
            outcome.fail(&format!("all threads should end within 100 ms (start and end take {limit:?} in all)"));
        }
    }
}

#[test]
fn by_a_signal_to_the_vmm() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _alone = serial::alone();
    for (signal, code) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let command = Guest::new(4).command().arg("--").arg(program("musl/bad")).arg("spin").typed();
        // Job control, because a shell without it starts background jobs with SIGINT ignored.
        let script = format!(
            "set -m; {command} >/dev/null & sleep 0.7; kill -{signal} $!; start=$(date +%s%N); wait $!; code=$?; \
             echo $code $((($(date +%s%N) - start) / 1000000))"
        );
        let outcome = Run::new("bash").args(["-c", &script]).limit(Duration::from_secs(20)).run();
        let text = outcome.text();
        let numbers: Vec<i64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match numbers[..] {
            [got, ms] if got == code && ms <= 100 => {}
            _ => outcome.fail(&format!("should end with {code} within 100 ms, not (code, ms) = {text}")),
        }
    }
}
