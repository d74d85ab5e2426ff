//! `--chaos`: whatever the scheduler is made to do, programs' results stay right and no trace record breaks an invariant; and on one
//! vCPU a seed gives one trace.
//!
//! `CHAOS_SEED=N` has the seeds begin at N. A failure prints the command that repeats the run. `make soak` goes on with new seeds.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use taskvisor_tests::checked::run_checked;
use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, TempDir, on_1_2_and_4_vcpus, prereq, serial};

/// Seeds of each test.
const SEEDS: u64 = 5;

/// Threads and processes that wake each other while their policies change; small, because there are many runs.
const STRESS: [&str; 5] = ["1", "4", "2", "1", "2"];

fn seeds() -> std::ops::Range<u64> {
    let first = std::env::var("CHAOS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    first..first + SEEDS
}

fn all_seeds(guest: &Guest, name: &str, args: &[&str]) {
    for seed in seeds() {
        let guest = guest.clone().flag("--chaos").flag(seed.to_string()).flag("--chaos-rate").flag("16");
        let (outcome, _) = run_checked(guest, &program(name), args);
        outcome.expect_code(0).expect_stdout("PASS");
    }
}

on_1_2_and_4_vcpus! {
    fn seeds_of_threads_and_processes(guest: Guest) {
        all_seeds(&guest, "musl/schedstress", &STRESS);
    }
    fn seeds_of_forks(guest: Guest) {
        all_seeds(&guest, "musl/forkstorm", &["1", "3", "4"]);
    }
}

/// The kernel's records of a run on one vCPU, each without what the VMM adds; nothing else is left out, time stamps included.
fn kernel_records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the trace is there");
    let lines = text.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).expect("a record"));
    lines.filter(|record| !record["kind"].as_str().is_some_and(|kind| kind.starts_with("vcpu_"))).collect()
}

/// What a seed makes of a program that has threads, futexes, pipes, eventfds, signals, sleeps and forks.
fn trace_of(seed: u64) -> Vec<Value> {
    let dir = TempDir::new();
    let path = dir.path().join("x.jsonl");
    let guest = Guest::new(1).flag("--chaos").flag(seed.to_string()).flag("--trace").flag(&path);
    let outcome = guest.run(&program("musl/schedstress"), STRESS);
    outcome.expect_code(0).expect_stdout("PASS");
    assert!(!outcome.stderr.contains("not repeatable"), "again: {}\n{}", outcome.typed, outcome.stderr);
    kernel_records(&path)
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let mut all = BTreeSet::new();
    for seed in [7, 8, 0xffff_ffff_ffff_ffff] {
        let (first, second) = (trace_of(seed), trace_of(seed));
        let differs = first.iter().zip(&second).position(|(a, b)| a != b);
        if let Some(at) = differs {
            panic!("seed {seed}: record {at} of two runs differs:\n{}\n{}", first[at], second[at]);
        }
        assert_eq!(first.len(), second.len(), "seed {seed}: one run goes on where the other has ended");
        assert!(first.iter().any(|record| record["kind"] == "chaos"), "seed {seed}: nothing happened");
        all.insert(first.iter().map(Value::to_string).collect::<String>());
    }
    assert_eq!(all.len(), 3, "each seed has its own trace");
}

/// A program that computes without ever entering the kernel, while another one is due, is preempted all the same.
#[test]
fn a_spinning_program_is_preempted_and_told_about() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let outcome = Guest::new(1).flag("--chaos").flag("7").run(&program("musl/schedstress"), ["spin"]);
    outcome.expect_code(0).expect_stdout("PASS").expect_stderr("this run is not repeatable");
}
