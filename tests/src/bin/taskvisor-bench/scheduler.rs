//! The scheduling core on the host, in nanoseconds: the medians of `cargo bench -p vcpu-sched`.

use std::path::Path;
use std::process::Command;

use crate::table::{Row, Table};

/// What the design asks of putting a task back and picking the next among 100.
const TURN_AT_100: f64 = 50.0;

/// All rows.
pub fn measure(table: &mut Table) {
    table.section("Scheduling core on the host, medians of `cargo bench -p vcpu-sched`");
    match run() {
        Ok(figures) if !figures.is_empty() => figures.into_iter().for_each(|row| table.push(row)),
        Ok(_) => table.push(Row::missing("all", "the benches printed no figures")),
        Err(why) => table.push(Row::missing("all", why)),
    }
}

fn run() -> Result<Vec<Row>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["bench", "--quiet", "--locked", "-p", "vcpu-sched", "--bench", "queues"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("cargo: {e}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cargo bench failed: {}", errors.lines().last().unwrap_or("no message")));
    }
    Ok(rows(&String::from_utf8_lossy(&output.stdout)))
}

/// Divan prints a tree, each leaf with fastest, slowest, median and mean between bars:
/// `│  ├─ Alone<Fair<Task>>` above `│  │  ├─ 100   23.9 ns │ 98.1 ns │ 24.4 ns │ ...`.
fn rows(tree: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut path: Vec<&str> = Vec::new();
    for line in tree.lines() {
        let Some(branch) = line.find(['├', '╰']) else { continue };
        let depth = line[..branch].chars().count() / 3;
        let columns: Vec<_> = line[branch..].trim_start_matches(['├', '╰', '─', ' ']).split('│').collect();
        let Some(name) = columns[0].split_whitespace().next() else { continue };
        path.truncate(depth);
        path.push(name);
        if let Some(ns) = columns.get(2).and_then(|median| nanoseconds(median)) {
            // `enqueue_x16`: sixteen of them in a row.
            let (what, many) = path[0].split_once("_x16").map_or((path[0], 1.0), |(what, _)| (what, 16.0));
            let name = [&[what], &path[1..]].concat().join(", ");
            let row = Row::new(name, ns / many, "ns");
            let budgeted = path.len() == 3 && path[0] == "turn" && path[1].contains("Fair") && path[2] == "100";
            rows.push(if budgeted { row.budget(TURN_AT_100) } else { row });
        }
    }
    rows
}

fn nanoseconds(text: &str) -> Option<f64> {
    let (value, unit) = text.trim().split_once(' ')?;
    let factor = match unit.trim() {
        "ns" => 1.0,
        "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    Some(value.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_found_in_the_tree() {
        let tree = "queues          fastest │ slowest │ median │ mean │ samples │ iters\n\
            ├─ turn                 │         │        │      │         │\n\
            │  ├─ Whole             │         │        │      │         │\n\
            │  │  ├─ 1      20.1 ns │ 1 ms    │ 1.5 µs │ 3 ns │ 100     │ 100\n\
            │  │  ╰─ 100    20.1 ns │ 1 ms    │ 60 ns  │ 3 ns │ 100     │ 100\n\
            │  ╰─ Alone<Fair<Task>> │         │        │      │         │\n\
            │     ╰─ 100    20.1 ns │ 1 ms    │ 40 ns  │ 3 ns │ 100     │ 100\n\
            ╰─ wake_placement       │         │        │      │         │\n\
            \u{20}  ╰─ 4      5 ns    │ 6 ns    │ 5.5 ns │ 5 ns │ 100     │ 100\n\
            ╰─ enqueue_x16          │         │        │      │         │\n\
            \u{20}  ╰─ 1      5 ns    │ 6 ns    │ 160 ns │ 5 ns │ 100     │ 100\n";
        let rows: Vec<_> = rows(tree).into_iter().map(|row| (row.name.clone(), row.value, row.over())).collect();
        assert_eq!(
            rows,
            [
                ("turn, Whole, 1".into(), Some(1500.0), false),
                ("turn, Whole, 100".into(), Some(60.0), false),
                ("turn, Alone<Fair<Task>>, 100".into(), Some(40.0), false),
                ("wake_placement, 4".to_owned(), Some(5.5), false),
                ("enqueue, 1".to_owned(), Some(10.0), false),
            ]
        );
    }
}
