//! `taskvisor doctor` tells what this host can do, to people and to programs.

use std::time::Duration;

use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::{Run, prereq};

#[test]
fn tells_people_and_programs_the_same_host() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let run = |args: &[&str]| Run::new(taskvisor()).arg("doctor").args(args).limit(Duration::from_secs(30)).run();
    let text = run(&[]);
    text.expect_code(0);
    assert!(text.text().lines().count() >= 8, "again: {}\n{}", text.typed, text.text());
    let json = run(&["--json"]);
    json.expect_code(0);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap_or_else(|e| json.fail(&e.to_string()));
    assert!(value.is_object(), "again: {}", json.typed);
}
