//! Resources as tables for people. Pure: from what the interface gave to text.

use std::fmt::Write;

use crate::clock::Status;
use crate::control::api::{Classed, Pinned, Stats, Tasks, Vcpus, Vm};
use crate::guestview::Task;

/// Nanoseconds for people: three digits or so.
pub fn time(nanos: u64) -> String {
    let seconds = nanos as f64 / 1e9;
    match nanos {
        0..1_000_000 => format!("{}us", nanos / 1000),
        1_000_000..1_000_000_000 => format!("{:.1}ms", seconds * 1e3),
        1_000_000_000..100_000_000_000 => format!("{seconds:.2}s"),
        _ => format!("{}m{:02}s", nanos / 60_000_000_000, nanos / 1_000_000_000 % 60),
    }
}

/// A value that may be missing.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Columns as wide as their widest cell, numbers (as headed by `>`) to the right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let name = |column: &str| column.trim_start_matches('>').to_owned();
    let width = |n: usize| {
        let cells = rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count());
        cells.chain([name(head[n]).chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = String>| {
        let mut text = String::new();
        for (n, cell) in cells.enumerate().take(head.len()) {
            let gap = if n == 0 { "" } else { "  " };
            // Writing to a String can't fail.
            let _ = match head[n].starts_with('>') {
                true => write!(text, "{gap}{cell:>width$}", width = widths[n]),
                false => write!(text, "{gap}{cell:<width$}", width = widths[n]),
            };
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut head.iter().map(|column| name(column)));
    for row in rows {
        line(&mut row.iter().cloned());
    }
    out
}

/// The machine.
pub fn vm_table(vm: &Vm) -> String {
    let mut out = String::new();
    let rows = [
        ("pid", vm.pid.to_string()),
        ("version", vm.version.clone()),
        ("vcpus", vm.vcpus.to_string()),
        ("memory", format!("{} MiB", vm.memory >> 20)),
        ("kernel", vm.kernel.clone()),
        ("program", vm.program.join(" ")),
        ("up", time(vm.uptime_ns)),
        ("state", vm.state.name().to_owned()),
        ("tasks", vm.tasks_unavailable.clone().unwrap_or_else(|| "shown".to_owned())),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "{name:8} {value}");
    }
    out
}

/// Its vCPUs.
pub fn vcpus_table(list: &Vcpus) -> String {
    let rows: Vec<_> = list
        .vcpus
        .iter()
        .map(|vcpu| {
            vec![
                vcpu.index.to_string(),
                or_dash(vcpu.tid),
                vcpu.thread.clone(),
                or_dash(vcpu.affinity.as_ref()),
                or_dash(vcpu.class.as_ref()),
                or_dash(vcpu.host_cpu),
                or_dash(vcpu.host_run_ns.map(time)),
                or_dash(vcpu.host_wait_ns.map(time)),
                or_dash(vcpu.halted_share.map(|share| format!("{:.0}%", share * 100.0))),
                vcpu.exits.total.to_string(),
                or_dash(vcpu.guest.as_ref().map(|cpu| cpu.switches)),
                vcpu.current.as_ref().map_or_else(|| "-".to_owned(), |task| format!("{} {}", task.id, task.name)),
            ]
        })
        .collect();
    table(
        &[
            ">VCPU",
            ">TID",
            "THREAD",
            "AFFINITY",
            "CLASS",
            ">ON",
            ">HOST TIME",
            ">STOLEN",
            ">HALTED",
            ">EXITS",
            ">SWITCHES",
            "TASK",
        ],
        &rows,
    )
}

/// State as a table shows it: with what a blocked task waits for.
pub fn state(task: &Task) -> String {
    let held = task.suspended == Some(true);
    match &task.waits_for {
        Some(what) if held && what == "suspended" => what.clone(),
        Some(what) if held => format!("{}: {what}, suspended", task.state.name()),
        Some(what) => format!("{}: {what}", task.state.name()),
        None if held => format!("{}, suspended", task.state.name()),
        None => task.state.name().to_owned(),
    }
}

/// The guest's tasks.
pub fn tasks_table(list: &Tasks) -> String {
    let mut out = tasks(&list.tasks);
    if list.left_out != 0 || list.torn {
        let _ =
            writeln!(out, "({} not shown{})", list.left_out, if list.torn { ", list changed meanwhile" } else { "" });
    }
    out
}

/// Some tasks.
pub fn tasks(list: &[Task]) -> String {
    let row = |task: &Task| {
        vec![
            task.id.to_string(),
            or_dash(task.process),
            task.kind.clone(),
            state(task),
            task.cpu.to_string(),
            time(task.run_ns),
            (task.voluntary_switches + task.involuntary_switches).to_string(),
            task.migrations.to_string(),
            or_dash(task.policy.as_ref()),
            or_dash(task.nice),
            or_dash(task.affinity.as_ref()),
            task.name.clone(),
        ]
    };
    let head = [
        ">ID",
        ">PROCESS",
        "KIND",
        "STATE",
        ">CPU",
        ">RUN",
        ">SWITCHES",
        ">MOVED",
        "POLICY",
        ">NICE",
        "AFFINITY",
        "NAME",
    ];
    table(&head, &list.iter().map(row).collect::<Vec<_>>())
}

/// What the host reads back of classes.
pub fn classes_table(classed: &[Classed]) -> String {
    let row = |vcpu: &Classed| vec![vcpu.index.to_string(), vcpu.class.clone()];
    table(&[">VCPU", "CLASS"], &classed.iter().map(row).collect::<Vec<_>>())
}

/// What the host reads back of pins.
pub fn pins_table(pinned: &[Pinned]) -> String {
    let row = |pin: &Pinned| vec![pin.index.to_string(), pin.affinity.clone()];
    table(&[">VCPU", "AFFINITY"], &pinned.iter().map(row).collect::<Vec<_>>())
}

/// The guest's clock.
pub fn clock_table(clock: &Status) -> String {
    let mut out = String::new();
    let ahead = (0..).zip(&clock.offsets_ns).filter(|(_, ns)| **ns != 0);
    let ahead = ahead.map(|(vcpu, ns): (u32, _)| format!("vCPU {vcpu} by {ns} ns")).collect::<Vec<_>>().join(", ");
    let ahead = if ahead.is_empty() { "no vCPU".to_owned() } else { ahead };
    let rows = [
        ("mode", clock.mode.clone()),
        ("asked", or_dash(clock.asked_khz.map(|khz| format!("{khz} kHz")))),
        ("told", format!("{} kHz", clock.told_khz)),
        ("counter", format!("{} kHz", clock.counter_khz)),
        ("rate", clock.rate.to_string()),
        ("ahead", ahead),
        ("shows", or_dash(clock.now_ns.map(time))),
        ("state", if clock.stopped { "stands still" } else { "runs" }.to_owned()),
        ("changes", clock.changes.to_string()),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "{name:8} {value}");
    }
    out
}

/// Sums over the machine.
pub fn stats_table(stats: &Stats) -> String {
    let mut out = String::new();
    let tasks = stats.tasks.as_ref().map(|tasks| {
        let [running, ready, blocked, held] = [tasks.running, tasks.ready, tasks.blocked, tasks.suspended];
        format!("{} ({running} running, {ready} ready, {blocked} blocked; {held} suspended)", tasks.total)
    });
    let rows = [
        ("up", time(stats.time_ns)),
        ("memory", format!("{} KiB in use", stats.memory_touched >> 10)),
        ("exits", stats.exits.to_string()),
        ("ran", time(stats.host_run_ns)),
        ("waited", time(stats.host_wait_ns)),
        ("tasks", or_dash(tasks)),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "{name:8} {value}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (nanos, text) in
            [(0, "0us"), (999_999, "999us"), (1_500_000, "1.5ms"), (2_345_000_000, "2.35s"), (125_000_000_000, "2m05s")]
        {
            assert_eq!(time(nanos), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = vec![vec!["1".into(), "a long one".into()], vec!["200".into(), "b".into()]];
        assert_eq!(table(&[">N", "NAME"], &rows), "  N  NAME\n  1  a long one\n200  b\n");
    }
}
