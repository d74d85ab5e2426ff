//! VM exits per second of steady loads, from the control interface of a guest that runs: nothing of its start and its end is in them.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use taskvisor_tests::guest::program;
use taskvisor_tests::prereq;
use taskvisor_tests::running::{Running, find};

use crate::table::{Row, Table};

/// A load that has begun is left alone for so long before it is looked at: its program starts, its threads spread out.
const SETTLED: Duration = Duration::from_secs(2);
/// Then it is looked at for so long.
const WATCHED: Duration = Duration::from_secs(5);

/// All loads.
pub fn measure(table: &mut Table) {
    table.section("VM exits to the VMM per second, 2 vCPUs");
    if !prereq::kvm_or_left_out() {
        table.push(Row::missing("all loads", "no /dev/kvm"));
        return;
    }
    // Each would take longer than it is looked at.
    let loads = [
        ("idle guest", ["idle", "1000", "0"], Some(0.0)),
        ("one spinning task per vCPU", ["spin", "1000000000", "2"], Some(0.0)),
        ("pipe ping-pong", ["pipe", "1000000000", "0"], None),
        ("sleeps of 1 ms", ["sleep", "1000000000", "0"], None),
    ];
    for (name, args, budget) in loads {
        let row = match Running::of(2, |_| Vec::new(), &program("musl/ubench"), &args) {
            Some(running) => rate(name, &running),
            None => Row::missing(name, "no guest"),
        };
        table.push(match budget {
            Some(budget) => row.budget(budget),
            None => row,
        });
    }
}

/// Exits by reason since the start, all vCPUs.
fn exits(running: &Running) -> BTreeMap<String, f64> {
    let mut sum = BTreeMap::new();
    let all = running.json(["vcpus", "--json"]);
    for vcpu in all.as_array().into_iter().flatten() {
        for (reason, count) in vcpu["exits"].as_object().into_iter().flatten() {
            *sum.entry(reason.clone()).or_default() += count.as_f64().unwrap_or_default();
        }
    }
    sum
}

fn rate(name: &str, running: &Running) -> Row {
    running.until_there(|list: &Value| !find(list, "ubench").is_empty());
    thread::sleep(SETTLED);
    let (before, start) = (exits(running), Instant::now());
    thread::sleep(WATCHED);
    let (after, seconds) = (exits(running), start.elapsed().as_secs_f64());
    let since = |(reason, count): (String, f64)| {
        let rate = (count - before.get(&reason).unwrap_or(&0.0)) / seconds;
        (reason, rate)
    };
    let rates: BTreeMap<_, _> = after.into_iter().map(since).collect();
    let notes: Vec<_> = rates
        .iter()
        .filter(|(reason, rate)| *reason != "total" && **rate > 0.0)
        .map(|(reason, rate)| format!("{reason} {rate:.1}"))
        .collect();
    match rates.get("total") {
        Some(total) => Row::new(name, *total, "exits/s").note(notes.join(", ")),
        None => Row::missing(name, "the control interface shows no exits"),
    }
}
