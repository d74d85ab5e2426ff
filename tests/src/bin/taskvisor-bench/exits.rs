//! VM exits per second of steady loads, from `--stats`.
//!
//! Each load runs short and long; the difference is free of start and end.

use taskvisor_tests::guest::program;
use taskvisor_tests::{Guest, prereq};

use crate::table::{Row, Table};

/// All loads.
pub fn measure(table: &mut Table) {
    table.section("VM exits to the VMM per second, 2 vCPUs");
    if !prereq::kvm_or_left_out() {
        table.push(Row::missing("all loads", "no /dev/kvm"));
        return;
    }
    let loads = [
        ("idle guest", "idle 1", "idle 4", Some(0.0)),
        ("one spinning task per vCPU", "spin 500 2", "spin 6000 2", Some(0.0)),
        ("pipe ping-pong", "pipe 50", "pipe 400", None),
        ("sleeps of 1 ms", "sleep 20", "sleep 200", None),
    ];
    for (name, short, long, budget) in loads {
        let row = match (run(short), run(long)) {
            (Ok(short), Ok(long)) => rate(name, &short, &long),
            (Err(why), _) | (_, Err(why)) => Row::missing(name, why),
        };
        table.push(match budget {
            Some(budget) => row.budget(budget),
            None => row,
        });
    }
}

/// Exits by reason and the time that they took.
struct Load {
    seconds: f64,
    exits: Vec<(String, f64)>,
}

impl Load {
    fn count(&self, reason: &str) -> f64 {
        self.exits.iter().filter(|(name, _)| name == reason).map(|(_, count)| count).sum()
    }
}

fn run(load: &str) -> Result<Load, String> {
    let outcome = Guest::new(2).flag("--stats").run(&program("musl/ubench"), load.split(' '));
    if outcome.code() != 0 || outcome.timed_out {
        return Err(format!("ubench {load} ended with exit code {}", outcome.code()));
    }
    let exits: Vec<_> = outcome
        .stderr
        .lines()
        .filter_map(|line| line.strip_prefix("stats: exits "))
        .flat_map(str::split_whitespace)
        .filter_map(|pair| pair.split_once('='))
        .filter(|(name, _)| *name != "vcpu")
        .filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?)))
        .collect();
    if exits.is_empty() {
        Err("no exits in --stats".into())
    } else {
        Ok(Load { seconds: outcome.elapsed.as_secs_f64(), exits })
    }
}

fn rate(name: &str, short: &Load, long: &Load) -> Row {
    let seconds = long.seconds - short.seconds;
    let per_second = |reason: &str| ((long.count(reason) - short.count(reason)) / seconds).max(0.0);
    let mut reasons: Vec<_> = long.exits.iter().map(|(reason, _)| reason.as_str()).filter(|r| *r != "total").collect();
    reasons.sort_unstable();
    reasons.dedup();
    let notes: Vec<_> = reasons
        .into_iter()
        .map(|reason| (reason, per_second(reason)))
        .filter(|(_, rate)| *rate >= 0.5)
        .map(|(reason, rate)| format!("{reason} {rate:.0}"))
        .collect();
    Row::new(name, per_second("total"), "exits/s").note(notes.join(", "))
}
