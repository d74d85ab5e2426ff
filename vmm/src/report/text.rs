//! A report for people: tables and bars, 120 columns wide at most.

use std::fmt::{self, Display, Formatter, Write};

use super::model::{Cpu, Delay, Distribution, Migration, Report, Task, Violation};

/// Tasks that are listed; `--json` has them all.
const TASKS: usize = 40;
/// CPUs up to which migrations are a matrix.
const MATRIX: u32 = 16;
/// Length of the longest bar.
const BAR: usize = 50;

/// A span of time in the unit that suits it.
pub(super) struct Span(pub(super) u64);

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ns = self.0 as f64;
        let text = match self.0 {
            0..1_000 => format!("{} ns", self.0),
            1_000..1_000_000 => format!("{:.1} us", ns / 1e3),
            1_000_000..1_000_000_000 => format!("{:.1} ms", ns / 1e6),
            _ => format!("{:.2} s", ns / 1e9),
        };
        f.pad(&text)
    }
}

/// A name that can't disturb a terminal or a table.
fn tame(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        self.tasks(f)?;
        self.cpus(f)?;
        histogram(f, "Wake-up latency (from wake-up to running)", &self.wakeup_latency)?;
        histogram(f, "Run delay (from ready to running)", &self.run_delay)?;
        migrations(f, self.trace.cpus, &self.migrations)?;
        worst(f, &self.worst_delays)?;
        self.invariants(f)
    }
}

impl Report {
    fn head(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let t = &self.trace;
        if !t.program.is_empty() {
            writeln!(f, "Program: {}", tame(&t.program.join(" ")))?;
        }
        write!(f, "{} records on {} CPUs over {}", t.records, t.cpus, Span(t.end_ns.saturating_sub(t.begin_ns)))?;
        if !t.policy.is_empty() {
            write!(f, ", policy {}", tame(&t.policy))?;
        }
        writeln!(f, "; {} lost", t.lost_records)?;
        if t.unknown_records > 0 {
            writeln!(f, "{} records are of kinds that this version doesn't know", t.unknown_records)?;
        }
        Ok(())
    }

    fn tasks(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nTasks")?;
        writeln!(
            f,
            "{:>7} {:<16} {:<8} {:>9} {:>9} {:>9} {:>8} {:>8} {:>6} {:>8} {:>9} {:>9} {:>9}",
            "id",
            "name",
            "policy",
            "run",
            "wait",
            "sleep",
            "vol",
            "invol",
            "migr",
            "wakes",
            "lat avg",
            "lat p99",
            "lat max"
        )?;
        for task in self.tasks.iter().take(TASKS) {
            writeln!(f, "{}", task_line(task).trim_end())?;
        }
        let rest = self.tasks.len().saturating_sub(TASKS) as u64;
        let unlisted = self.unlisted.as_ref().map_or(0, |u| u.tasks);
        if rest + unlisted > 0 {
            writeln!(f, "        and {} tasks that ran less", rest + unlisted)?;
        }
        Ok(())
    }

    fn cpus(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nCPUs")?;
        writeln!(
            f,
            "{:>7} {:>9} {:>9} {:>6} {:>9} {:>8} {:>9} {:>9} {:>9} {:>6}  exits",
            "cpu", "busy", "idle", "busy%", "switches", "ticks", "IPIs out", "IPIs in", "steal", "lost"
        )?;
        for cpu in &self.cpus {
            writeln!(f, "{}", cpu_line(cpu).trim_end())?;
        }
        Ok(())
    }

    fn invariants(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nInvariants")?;
        writeln!(f, "  {:<24} {:>12} {:>12}", "name", "checked", "violations")?;
        for i in &self.invariants {
            let mark = match (i.violations, i.checked) {
                (0, 0) => "nothing to check",
                (0, _) => "",
                _ => "VIOLATED",
            };
            writeln!(f, "{}", format!("  {:<24} {:>12} {:>12}  {mark}", i.name, i.checked, i.violations).trim_end())?;
        }
        for violation in &self.violations {
            describe(f, violation)?;
        }
        Ok(())
    }
}

fn task_line(t: &Task) -> String {
    let mut line = format!(
        "{:>7} {:<16} {:<8} {:>9} {:>9} {:>9} {:>8} {:>8} {:>6} {:>8}",
        t.id,
        tame(&t.name),
        t.policy,
        Span(t.run_ns),
        Span(t.wait_ns),
        Span(t.sleep_ns),
        t.switches_voluntary,
        t.switches_involuntary,
        t.migrations,
        t.wakeups
    );
    let l = &t.wakeup_latency;
    if l.count > 0 {
        let _ = write!(line, " {:>9} {:>9} {:>9}", Span(l.mean_ns), Span(l.p99_ns), Span(l.max_ns));
    }
    line
}

fn cpu_line(c: &Cpu) -> String {
    let known = c.busy_ns.saturating_add(c.idle_ns);
    let share = if known == 0 { 0.0 } else { c.busy_ns as f64 * 100.0 / known as f64 };
    let exits: Vec<String> = c.exits.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    format!(
        "{:>7} {:>9} {:>9} {:>6.1} {:>9} {:>8} {:>9} {:>9} {:>9} {:>6}  {}",
        c.cpu,
        Span(c.busy_ns),
        Span(c.idle_ns),
        share,
        c.switches,
        c.ticks,
        c.ipis_sent,
        c.ipis_received,
        Span(c.steal_ns),
        c.lost,
        exits.join(", ")
    )
}

fn histogram(f: &mut Formatter<'_>, title: &str, d: &Distribution) -> fmt::Result {
    write!(f, "\n{title}: {} times", d.count)?;
    if d.count == 0 {
        return writeln!(f);
    }
    writeln!(f, ", mean {}, p50 {}, p99 {}, max {}", Span(d.mean_ns), Span(d.p50_ns), Span(d.p99_ns), Span(d.max_ns))?;
    let most = d.buckets.iter().map(|b| b.count).max().unwrap_or(1).max(1);
    for b in &d.buckets {
        // What occurs at all is seen.
        let len = (b.count as f64 / most as f64 * BAR as f64).ceil() as usize;
        let line = format!(
            "{:>10} - {:<10} {:>10} {}",
            Span(b.from_ns).to_string(),
            Span(b.to_ns).to_string(),
            b.count,
            "#".repeat(len)
        );
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

fn migrations(f: &mut Formatter<'_>, cpus: u32, migrations: &[Migration]) -> fmt::Result {
    let total: u64 = migrations.iter().map(|m| m.count).fold(0, u64::saturating_add);
    writeln!(f, "\nMigrations: {total}")?;
    if total == 0 {
        return Ok(());
    }
    if cpus > MATRIX {
        let mut most: Vec<&Migration> = migrations.iter().collect();
        most.sort_by_key(|m| (std::cmp::Reverse(m.count), m.from, m.to));
        for m in most.into_iter().take(TASKS) {
            writeln!(f, "  from CPU {:>4} to CPU {:>4}: {}", m.from, m.to, m.count)?;
        }
        return Ok(());
    }
    write!(f, "  from \\ to")?;
    for to in 0..cpus {
        write!(f, " {to:>7}")?;
    }
    for from in 0..cpus {
        write!(f, "\n{from:>11}")?;
        for to in 0..cpus {
            match migrations.iter().find(|m| (m.from, m.to) == (from, to)) {
                Some(m) => write!(f, " {:>7}", m.count)?,
                None => write!(f, " {:>7}", "-")?,
            }
        }
    }
    writeln!(f)
}

fn worst(f: &mut Formatter<'_>, delays: &[Delay]) -> fmt::Result {
    writeln!(f, "\nLongest run delays")?;
    for d in delays {
        let instead: Vec<String> = d.instead.iter().map(|i| format!("{} {}", tame(&i.name), Span(i.ran_ns))).collect();
        write!(
            f,
            "{:>10}  {} ({}) on CPU {}, ready at {}",
            Span(d.delay_ns).to_string(),
            tame(&d.name),
            d.task,
            d.cpu,
            Span(d.ready_ns)
        )?;
        if let Some(waker) = d.woken_by {
            write!(f, ", woken by {waker}")?;
        }
        writeln!(f, "; meanwhile: {}", if instead.is_empty() { "not known".to_owned() } else { instead.join(", ") })?;
    }
    Ok(())
}

fn describe(f: &mut Formatter<'_>, v: &Violation) -> fmt::Result {
    writeln!(f, "\n{} at {} ns on CPU {}: {}", v.invariant, v.time_ns, v.cpu, v.what)?;
    for r in &v.around {
        write!(f, "{:>16} ns  CPU {:<4} {:<10} task {} #{}", r.time_ns, r.cpu, r.kind, r.task, r.seq)?;
        match r.to {
            Some(to) => writeln!(f, " -> {to}")?,
            None => writeln!(f)?,
        }
    }
    Ok(())
}
