//! What of a wake-up leaves the guest, counted under QEMU's `tcg` by a plugin (tests/bench/exits.c).
//!
//! Each load runs short and long; the difference is free of start and end.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use taskvisor_tests::guest::program;
use taskvisor_tests::qemu::Image;
use taskvisor_tests::{TempDir, prereq};
use vcpu_sched::runqueue::PolicyKind;

use crate::counts::{TSC_KNOWN, icount, plugin};
use crate::table::{Row, Table};

/// Turns of the short and the long run.
const SHORT: u32 = 20;
const LONG: u32 = 60;
/// What the design allows: an interrupt for a wake-up on another CPU.
const REMOTE: f64 = 1.0;

type Exits = BTreeMap<String, f64>;

/// All rows.
pub fn measure(table: &mut Table) {
    table.section("What of a wake-up leaves the guest: exits of a hypervisor that emulates the local APIC");
    let Some(qemu) = prereq::qemu() else {
        table.push(Row::missing("all", "no QEMU"));
        return;
    };
    let dir = TempDir::new();
    let plugin = match plugin(&dir, "exits") {
        Ok(plugin) => plugin,
        Err(why) => return table.push(Row::missing("all", why)),
    };
    for policy in PolicyKind::ALL.map(PolicyKind::name) {
        let count = |cpus, what| -> Result<Exits, String> {
            let run = |turns| exits(&qemu, &plugin, &dir, policy, cpus, what, turns);
            let short = run(SHORT)?;
            let turns = f64::from(LONG - SHORT);
            let mut exits = run(LONG)?;
            exits.iter_mut().for_each(|(kind, n)| *n = (*n - short.get(kind).unwrap_or(&0.0)) / turns);
            Ok(exits)
        };
        // A turn: sched_yield of two threads, futex wake and wait of two, a wake-up that preempts; all on one CPU.
        let name = format!("{policy}: a turn of yields, wakes and preemptions on one CPU");
        table.push(match count(1, "switch") {
            Ok(exits) => Row::new(name, exits.values().sum(), "exits").budget(0.0).note(told(&exits)),
            Err(why) => Row::missing(name, why),
        });
        // A turn: a sleep, and two wake-ups, there and back.
        let name = format!("{policy}: a wake-up on another CPU that idles");
        table.push(match count(2, "remote") {
            Ok(exits) => {
                let sent = exits.get("ipi").copied().unwrap_or(f64::NAN) / 2.0;
                Row::new(name, sent, "exits")
                    .budget(REMOTE)
                    .note(format!("of the waker; two with a sleep in all: {}", told(&exits)))
            }
            Err(why) => Row::missing(name, why),
        });
    }
}

/// By kind, those that there were.
fn told(exits: &Exits) -> String {
    let kinds: Vec<_> = exits.iter().filter(|(_, n)| **n != 0.0).map(|(kind, n)| format!("{kind} {n:.2}")).collect();
    if kinds.is_empty() { "none of any kind".to_owned() } else { kinds.join(", ") }
}

fn exits(
    qemu: &Path,
    plugin: &Path,
    dir: &TempDir,
    policy: &str,
    cpus: u32,
    what: &str,
    turns: u32,
) -> Result<Exits, String> {
    let out = dir.path().join("exits");
    let _ = fs::remove_file(&out);
    let flags = [TSC_KNOWN.as_slice(), &["--policy", policy]].concat();
    let image = Image::new(&flags, &program("musl/ubench"), &[what, &turns.to_string()]);
    let run = icount(image.qemu(qemu, "tcg", "microvm", cpus));
    let outcome = run.arg("-plugin").arg(format!("{},out={}", plugin.display(), out.display())).run();
    let failed = || format!("ubench {what} ended before, exit code {}; again: {}", outcome.code(), outcome.typed);
    let text = fs::read_to_string(&out).ok().filter(|_| !outcome.timed_out).ok_or_else(failed)?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(kind, n)| Some((kind.to_owned(), n.parse().ok()?)))
        .collect())
}
