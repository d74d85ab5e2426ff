//! `taskvisor ctl`: the control interface for people and shell scripts.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::api::{Pinned, Pins, Tasks, Vcpus, Vm};
use super::client::{Client, ClientError};
use crate::guestview::Task;

/// What to ask for.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Question {
    /// The machine as a whole
    Vm,
    /// vCPUs: host threads, where they may run, exits, and the task each runs
    Vcpus,
    /// The guest's tasks
    Tasks,
    /// Move vCPU threads to other host CPUs, all of them or none, and show what the host reads back
    Pin {
        /// VCPUS=CPUS;..., as --affinity of run takes it
        pins: String,
    },
}

/// Asks, and gives the answer as text: a table, or JSON (for lists, the list alone).
pub fn ask(socket: &Path, question: Question, json: bool) -> Result<String, ClientError> {
    let mut client = Client::connect(socket)?;
    Ok(match question {
        Question::Vm => {
            let vm: Vm = client.get("/v1/vm")?;
            if json { pretty(&vm) } else { vm_table(&vm) }
        }
        Question::Vcpus => {
            let vcpus: Vcpus = client.get("/v1/vcpus")?;
            if json { pretty(&vcpus.vcpus) } else { vcpus_table(&vcpus) }
        }
        Question::Tasks => {
            let tasks: Tasks = client.get("/v1/tasks")?;
            if json { pretty(&tasks.tasks) } else { tasks_table(&tasks) }
        }
        Question::Pin { pins } => {
            let pinned: Vec<Pinned> = client.put("/v1/affinity", &Pins { pins })?;
            let row = |pin: &Pinned| vec![pin.index.to_string(), pin.affinity.clone()];
            let rows: Vec<_> = pinned.iter().map(row).collect();
            if json { pretty(&pinned) } else { table(&[">VCPU", "AFFINITY"], &rows) }
        }
    })
}

/// Resources are plain data, of which no writer to a string fails.
fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

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

fn vm_table(vm: &Vm) -> String {
    let mut out = String::new();
    let rows = [
        ("pid", vm.pid.to_string()),
        ("version", vm.version.clone()),
        ("vcpus", vm.vcpus.to_string()),
        ("memory", format!("{} MiB", vm.memory >> 20)),
        ("kernel", vm.kernel.clone()),
        ("program", vm.program.join(" ")),
        ("up", time(vm.uptime_ns)),
        ("tasks", vm.tasks_unavailable.clone().unwrap_or_else(|| "shown".to_owned())),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "{name:8} {value}");
    }
    out
}

fn vcpus_table(list: &Vcpus) -> String {
    let rows: Vec<_> = list
        .vcpus
        .iter()
        .map(|vcpu| {
            vec![
                vcpu.index.to_string(),
                or_dash(vcpu.tid),
                vcpu.thread.clone(),
                or_dash(vcpu.affinity.as_ref()),
                or_dash(vcpu.host_cpu),
                or_dash(vcpu.host_run_ns.map(time)),
                vcpu.exits.total.to_string(),
                or_dash(vcpu.guest.as_ref().map(|cpu| cpu.switches)),
                vcpu.current.as_ref().map_or_else(|| "-".to_owned(), |task| format!("{} {}", task.id, task.name)),
            ]
        })
        .collect();
    table(&[">VCPU", ">TID", "THREAD", "AFFINITY", ">ON", ">HOST TIME", ">EXITS", ">SWITCHES", "TASK"], &rows)
}

/// State as a table shows it: with what a blocked task waits for.
pub fn state(task: &Task) -> String {
    match &task.waits_for {
        Some(what) => format!("{}: {what}", task.state.name()),
        None => task.state.name().to_owned(),
    }
}

fn tasks_table(list: &Tasks) -> String {
    let rows: Vec<_> = list
        .tasks
        .iter()
        .map(|task| {
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
        })
        .collect();
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
    let mut out = table(&head, &rows);
    if list.left_out != 0 || list.torn {
        let _ =
            writeln!(out, "({} not shown{})", list.left_out, if list.torn { ", list changed meanwhile" } else { "" });
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
