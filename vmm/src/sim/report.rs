//! What a simulation showed, for people and for machines.
//!
//! Used by the command. Pure: text from [`Simulated`].

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use vcpu_sched::checker::Outcome;
use vcpu_sched::ids::Nanos;
use vcpu_sched::sim::{CpuFigures, End, GroupFigures, TaskFigures};

use super::run::Simulated;

/// CPUs that get a line each; of more, the least, the mean and the most are told.
const CPU_LINES: usize = 16;

/// A time with three digits and a unit.
fn short(time: Nanos) -> String {
    let ns = time.0 as f64;
    let (value, unit) = match time.0 {
        0..1_000 => return format!("{}ns", time.0),
        1_000..1_000_000 => (ns / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$}{unit}")
}

fn percent(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1}%", 100.0 * part / whole) } else { "-".to_owned() }
}

fn or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}

/// Columns as wide as their widest entry; the first one to the left, numbers to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            if i == 0 {
                let _ = write!(line, "{cell:<width$}");
            } else {
                let _ = write!(line, "  {cell:>width$}");
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn row<const N: usize>(cells: [String; N]) -> Vec<String> {
    cells.into()
}

fn heads(text: &str) -> Vec<String> {
    text.split('|').map(str::to_owned).collect()
}

fn at(histogram: &Histogram<u64>, quantile: f64) -> String {
    if histogram.is_empty() { "-".to_owned() } else { short(Nanos(histogram.value_at_quantile(quantile))) }
}

fn most(histogram: &Histogram<u64>) -> String {
    if histogram.is_empty() { "-".to_owned() } else { short(Nanos(histogram.max())) }
}

/// For people.
pub fn text(result: &Simulated) -> String {
    let figures = &result.figures;
    let config = &result.config;
    let wall = result.wall.as_secs_f64();
    let end = match figures.end {
        End::AllEnded => "all tasks have ended".to_owned(),
        End::TimeUp => "the time is up".to_owned(),
        End::Deadlock { waiting } => format!("{waiting} tasks wait for each other, and nothing will wake them"),
    };
    let mut text = format!(
        "{} CPUs{}, policy {}, seed {}: {} of virtual time; {end}\n{} events in {:.2} s, {:.2} million a second\n\n",
        config.cpus,
        result.shape.map_or(String::new(), |shape| format!(" ({shape})")),
        config.policy,
        config.seed,
        short(figures.time),
        figures.records,
        wall,
        figures.records as f64 / wall.max(1e-9) / 1e6,
    );
    text += &groups(result);
    text += &jobs(result);
    text.push('\n');
    text += &cpus(&figures.cpus, figures.time);
    if !figures.tasks.is_empty() {
        text.push('\n');
        text += &tasks(result);
    }
    if let Some(fairness) = figures.fairness {
        let _ = write!(text, "\nfairness over all ordinary tasks (Jain, by weight and life): {fairness:.4}\n");
    }
    match &result.outcome {
        Some(outcome) => text += &invariants(outcome, &result.command),
        None => text += "invariants: not checked\n",
    }
    text
}

fn groups(result: &Simulated) -> String {
    let time = result.figures.time.0 as f64;
    let machine = time * f64::from(result.config.cpus);
    let mut rows = vec![heads(
        "group|tasks|ended|CPU|wait|wake-ups|p50|p99|p99.9|worst|switches|preempted|moved|passes/s|fairness",
    )];
    for (group, f) in result.workload.groups.iter().zip(&result.figures.groups) {
        let passes = if time > 0.0 { format!("{:.1}", f.passes as f64 / time * 1e9) } else { "-".to_owned() };
        rows.push(row([
            group.name.clone(),
            f.tasks.to_string(),
            f.ended.to_string(),
            percent(f.run.0 as f64, machine),
            short(f.wait),
            f.wakeups.to_string(),
            at(&f.latency, 0.5),
            at(&f.latency, 0.99),
            at(&f.latency, 0.999),
            most(&f.latency),
            (f.voluntary + f.involuntary).to_string(),
            f.involuntary.to_string(),
            f.migrations.to_string(),
            passes,
            or_dash(f.fairness()),
        ]));
    }
    table(&rows)
}

/// Of groups with periodic tasks, and of those whose deadline tasks were refused.
fn jobs(result: &Simulated) -> String {
    let mut rows = vec![heads("periodic|jobs|missed|refused|response p50|p99|worst")];
    for (group, f) in result.workload.groups.iter().zip(&result.figures.groups) {
        if f.jobs > 0 || f.refused > 0 {
            rows.push(row([
                group.name.clone(),
                f.jobs.to_string(),
                f.misses.to_string(),
                f.refused.to_string(),
                at(&f.response, 0.5),
                at(&f.response, 0.99),
                most(&f.response),
            ]));
        }
    }
    if rows.len() == 1 { String::new() } else { format!("\n{}", table(&rows)) }
}

fn cpus(cpus: &[CpuFigures], time: Nanos) -> String {
    let mut rows = vec![heads("CPU|busy|switches|interrupts|ticks|halts|pulled|longest queue")];
    let line = |name: String, f: [f64; 7]| {
        let [busy, rest @ ..] = f;
        let mut cells = vec![name, percent(busy, time.0 as f64)];
        cells.extend(rest.iter().map(|n| format!("{n:.0}")));
        cells
    };
    let values = |f: &CpuFigures| {
        [f.busy.0, f.switches, f.interrupts, f.ticks, f.halts, f.pulled, u64::from(f.longest_queue)].map(|n| n as f64)
    };
    if cpus.len() <= CPU_LINES {
        rows.extend(cpus.iter().enumerate().map(|(i, f)| line(i.to_string(), values(f))));
    } else {
        let column = |i: usize| cpus.iter().map(move |f| values(f)[i]);
        rows.push(line("least".to_owned(), std::array::from_fn(|i| column(i).fold(f64::INFINITY, f64::min))));
        rows.push(line("mean".to_owned(), std::array::from_fn(|i| column(i).sum::<f64>() / cpus.len() as f64)));
        rows.push(line("most".to_owned(), std::array::from_fn(|i| column(i).fold(0.0, f64::max))));
    }
    table(&rows)
}

fn name(result: &Simulated, task: &TaskFigures) -> String {
    let group = result.workload.groups.get(task.group).map_or("?", |group| group.name.as_str());
    format!("{group}/{}", task.index)
}

fn tasks(result: &Simulated) -> String {
    let mut rows = vec![heads("task|run|wait|sleep|of life|switches|preempted|moved|wake-ups|worst|passes|missed")];
    for task in &result.figures.tasks {
        let c = &task.counters;
        let life = task.ended.unwrap_or(result.figures.time) - task.born;
        rows.push(row([
            name(result, task),
            short(c.run),
            short(c.wait),
            short(c.sleep),
            percent(c.run.0 as f64, life.0 as f64),
            c.switches().to_string(),
            c.involuntary.to_string(),
            c.migrations.to_string(),
            c.wakeups.to_string(),
            short(c.max_latency),
            task.passes.to_string(),
            task.misses.to_string(),
        ]));
    }
    table(&rows)
}

fn invariants(outcome: &Outcome, command: &str) -> String {
    let checked: u64 = outcome.tallies.iter().map(|tally| tally.checked).sum();
    if outcome.holds() {
        return format!("invariants: {} hold, {checked} checks\n", outcome.tallies.len());
    }
    let mut text = format!("invariants: {} VIOLATIONS in {checked} checks\n", outcome.violations());
    for tally in outcome.tallies.iter().filter(|tally| tally.violations > 0) {
        let _ = writeln!(text, "  {}: {} of {}", tally.invariant, tally.violations, tally.checked);
    }
    for violation in &outcome.first {
        let _ = writeln!(text, "  {violation}");
    }
    let _ = writeln!(text, "the same again: {command}");
    text
}

/// For machines.
pub fn json(result: &Simulated) -> Value {
    let figures = &result.figures;
    let groups = result.workload.groups.iter().zip(&figures.groups).map(|(group, f)| group_json(&group.name, f));
    let cpus = figures.cpus.iter().map(|f| {
        json!({
            "busy_ns": f.busy.0, "switches": f.switches, "interrupts": f.interrupts, "ticks": f.ticks,
            "halts": f.halts, "pulled": f.pulled, "longest_queue": f.longest_queue,
        })
    });
    let tasks = figures.tasks.iter().map(|task| task_json(&name(result, task), task));
    let (end, waiting) = match figures.end {
        End::AllEnded => ("all_ended", 0),
        End::TimeUp => ("time_up", 0),
        End::Deadlock { waiting } => ("deadlock", waiting),
    };
    let invariants = result.outcome.as_ref().map(|outcome| {
        let each = outcome.tallies.iter().map(
            |tally| json!({ "name": tally.invariant.name(), "checked": tally.checked, "violations": tally.violations }),
        );
        each.collect::<Vec<_>>()
    });
    json!({
        "command": result.command,
        "cpus": result.config.cpus,
        "policy": result.config.policy.to_string(),
        "seed": result.config.seed,
        "end": end,
        "waiting": waiting,
        "time_ns": figures.time.0,
        "events": figures.records,
        "wall_s": result.wall.as_secs_f64(),
        "fairness": figures.fairness,
        "groups": groups.collect::<Vec<_>>(),
        "per_cpu": cpus.collect::<Vec<_>>(),
        "tasks": tasks.collect::<Vec<_>>(),
        "invariants": invariants,
    })
}

fn quantiles(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    json!({
        "count": histogram.len(),
        "p50_ns": histogram.value_at_quantile(0.5),
        "p99_ns": histogram.value_at_quantile(0.99),
        "p999_ns": histogram.value_at_quantile(0.999),
        "max_ns": histogram.max(),
    })
}

fn group_json(name: &str, f: &GroupFigures) -> Value {
    json!({
        "name": name, "tasks": f.tasks, "ended": f.ended, "run_ns": f.run.0, "wait_ns": f.wait.0,
        "sleep_ns": f.sleep.0, "voluntary": f.voluntary, "involuntary": f.involuntary, "wakeups": f.wakeups,
        "migrations": f.migrations, "passes": f.passes, "jobs": f.jobs, "misses": f.misses, "refused": f.refused,
        "fairness": f.fairness(), "latency": quantiles(&f.latency), "response": quantiles(&f.response),
    })
}

fn task_json(name: &str, task: &TaskFigures) -> Value {
    let c = &task.counters;
    json!({
        "name": name, "id": task.id.0, "born_ns": task.born.0, "ended_ns": task.ended.map(|time| time.0),
        "run_ns": c.run.0, "wait_ns": c.wait.0, "sleep_ns": c.sleep.0, "voluntary": c.voluntary,
        "involuntary": c.involuntary, "wakeups": c.wakeups, "migrations": c.migrations,
        "max_latency_ns": c.max_latency.0, "passes": task.passes, "jobs": task.jobs, "misses": task.misses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (ns, text) in [
            (0, "0ns"),
            (999, "999ns"),
            (1_000, "1.00us"),
            (12_345, "12.3us"),
            (999_400, "999us"),
            (1_500_000, "1.50ms"),
            (61_000_000_000, "61.0s"),
        ] {
            assert_eq!(short(Nanos(ns)), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [heads("name|n"), row(["a".into(), "10".into()]), row(["longer".into(), "7".into()])];
        assert_eq!(table(&rows), "name     n\na       10\nlonger   7\n");
    }
}
