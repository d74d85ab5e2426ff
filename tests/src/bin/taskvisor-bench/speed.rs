//! Whole programs by the clock: what a second vCPU gains, bytes through a program, how quickly a guest is ended.
//!
//! Only a quiet machine gives figures that mean something; each stands beside the host's own where there is one, taken in turn
//! with it, so that what else the machine does strikes both.

use std::time::Duration;

use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, Outcome, Run, prereq};

use crate::median;
use crate::table::{Row, Table};

/// Pairs of sieves.
const PAIRS: usize = 15;
/// Runs of everything else.
const RUNS: usize = 5;
/// The sieve: primes up to, rounds.
const LIMIT: &str = "100000000";
const ROUNDS: &str = "4";
const STREAM: usize = 3 << 20;

/// All rows.
pub fn measure(table: &mut Table) {
    table.section("Whole programs, medians");
    if !prereq::kvm_or_left_out() {
        return table.push(Row::missing("all", "no /dev/kvm"));
    }
    type Part = fn(&'static str) -> Result<Row, String>;
    let parts: [(&str, Part); 4] = [
        ("sieve in 2 threads, 2 vCPUs beside 1", sieve),
        ("3 MiB through `busybox cat`, 2 vCPUs", stream),
        ("end at --timeout, 4 vCPUs, one spins", timeout),
        ("end at SIGTERM to the VMM, 4 vCPUs, one spins", signal),
    ];
    for (name, part) in parts {
        table.push(part(name).unwrap_or_else(|why| Row::missing(name, why)));
    }
}

/// How many times as fast two vCPUs are as one, and two of the host's threads.
fn sieve(name: &'static str) -> Result<Row, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Err("needs two host cores".into());
    }
    let primes = program("musl/primes");
    let guest = |n: u32| elapsed_ms(&Guest::new(n).run(&primes, [LIMIT, "2", ROUNDS]));
    let host = |n: u32| elapsed_ms(&Run::new(&primes).args([LIMIT, &n.to_string(), ROUNDS]).run());
    let mut gains = Vec::new();
    let mut host_gains = Vec::new();
    for _ in 0..PAIRS {
        gains.push(guest(1)? / guest(2)?);
        host_gains.push(host(1)? / host(2)?);
    }
    let (low, high) = range(&gains);
    let (host_low, host_high) = range(&host_gains);
    let row = Row::new(name, median(&mut gains), "times")
        .aim(1.8)
        .beside("host, 2 threads beside 1", Some(median(&mut host_gains)));
    Ok(row.note(format!(
        "{PAIRS} pairs, {low:.2} to {high:.2}, host {host_low:.2} to {host_high:.2}; primes up to {LIMIT}, {ROUNDS} rounds"
    )))
}

/// What the sieve itself measured: threads, without start and end.
fn elapsed_ms(outcome: &Outcome) -> Result<f64, String> {
    let figure = outcome.stderr.lines().find_map(|line| line.strip_prefix("elapsed_ms "));
    let figure = figure.and_then(|text| text.trim().parse().ok()).filter(|_| outcome.code() == 0);
    figure.ok_or_else(|| format!("exit code {} or no elapsed_ms; again: {}", outcome.code(), outcome.typed))
}

/// Start and end of the guest included.
fn stream(name: &'static str) -> Result<Row, String> {
    let busybox = prereq::busybox().ok_or("needs busybox-static")?;
    let bytes: Vec<u8> = (0..STREAM).map(|i| (i % 251) as u8).collect();
    let (mut times, mut host_times) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        for (run, times) in [
            (Guest::new(2).stdin(bytes.clone()).command().arg("--").arg(&busybox).arg("cat"), &mut times),
            (Run::new(&busybox).arg("cat").stdin(bytes.clone()), &mut host_times),
        ] {
            let outcome = run.run();
            if outcome.code() != 0 || outcome.stdout != bytes {
                return Err(format!("exit code {} or other bytes; again: {}", outcome.code(), outcome.typed));
            }
            times.push(outcome.elapsed.as_secs_f64() * 1e3);
        }
    }
    let row = Row::new(name, median(&mut times), "ms").budget(2000.0);
    Ok(row.beside("host", Some(median(&mut host_times))).note("start and end of the guest included"))
}

/// What a run takes beyond its time limit, less what the same guest takes that ends by itself.
fn timeout(name: &'static str) -> Result<Row, String> {
    const LIMIT: Duration = Duration::from_secs(1);
    let bad = program("musl/bad");
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let plain = ended(Guest::new(4).run(&bad, ["exit", "0"]), 0)?;
        let limited = ended(Guest::new(4).timeout(LIMIT).run(&bad, ["spin"]), 124)?;
        times.push((limited.elapsed.as_secs_f64() - LIMIT.as_secs_f64() - plain.elapsed.as_secs_f64()).max(0.0) * 1e3);
    }
    Ok(Row::new(name, median(&mut times), "ms").budget(100.0).note("beyond a whole run of a program that does nothing"))
}

/// From the signal to the end of the process.
fn signal(name: &'static str) -> Result<Row, String> {
    let bad = program("musl/bad");
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let run = Guest::new(4).command().arg("--").arg(&bad).arg("spin").signal_at("about to: spin", libc::SIGTERM);
        let outcome = ended(run.run(), 128 + libc::SIGTERM)?;
        times.push(outcome.since_signal.ok_or("it ended before the signal")?.as_secs_f64() * 1e3);
    }
    Ok(Row::new(name, median(&mut times), "ms").budget(100.0))
}

fn ended(outcome: Outcome, code: i32) -> Result<Outcome, String> {
    if outcome.code() == code && !outcome.timed_out {
        return Ok(outcome);
    }
    Err(format!("exit code {} instead of {code}; again: {}", outcome.code(), outcome.typed))
}

fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, 0.0), |(low, high), value| (low.min(*value), high.max(*value)))
}
