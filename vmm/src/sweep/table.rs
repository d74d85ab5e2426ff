//! One table of all results: results.csv, results.json, and the same for people.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::plan::{Plan, Run};
use super::store::Store;
use super::{SweepError, at};

/// Where the lines of `--stats` begin.
const STATS: &str = "stats: ";

/// The columns of a run; what is not known is empty.
fn row(plan: &Plan, run: &Run, store: &Store) -> Vec<(String, String)> {
    let mut cells = run.cells.clone();
    let outcome = store.result(run);
    let text = |value: Option<String>| value.unwrap_or_default();
    cells.push(("code".into(), text(outcome.as_ref().map(|outcome| outcome.code.to_string()))));
    cells.push(("seconds".into(), text(outcome.as_ref().map(|outcome| format!("{:.3}", outcome.seconds)))));
    let output = outcome.map(|_| store.output(run)).unwrap_or_default();
    for (name, regex) in &plan.captures {
        let found = regex.captures(&output).and_then(|found| found.get(1).or_else(|| found.get(0)));
        cells.push((name.clone(), text(found.map(|found| found.as_str().to_owned()))));
    }
    for name in &plan.stats {
        let of_name =
            |line: &str| line.split_once(STATS)?.1.strip_prefix(name.as_str())?.strip_prefix(' ').map(str::to_owned);
        cells.push((name.clone(), text(output.lines().find_map(of_name))));
    }
    cells
}

/// Writes the tables, and gives the one for people.
pub fn write(plan: &Plan, store: &Store, out: &Path) -> Result<String, SweepError> {
    let rows: Vec<_> = plan.runs.iter().map(|run| row(plan, run, store)).collect();
    let head: Vec<&str> = rows.first().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let mut csv = head.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(",") + "\n";
    for row in &rows {
        csv += &(row.iter().map(|(_, cell)| quoted(cell)).collect::<Vec<_>>().join(",") + "\n");
    }
    let object = |row: &Vec<(String, String)>| {
        let cells = row.iter().map(|(name, cell)| (name.clone(), value(cell)));
        Value::Object(cells.collect::<Map<_, _>>())
    };
    let json = Value::Array(rows.iter().map(object).collect());
    for (name, text) in [("results.csv", csv), ("results.json", format!("{json:#}\n"))] {
        let path = out.join(name);
        fs::write(&path, text).map_err(at(&path))?;
    }
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|(_, cell)| cell.clone()).collect()).collect();
    Ok(crate::control::ctl::table(&head, &cells))
}

/// Which runs there are.
pub fn list(plan: &Plan, store: &Store) -> String {
    let names = plan.runs.first().into_iter().flat_map(|run| run.cells.iter().map(|(name, _)| name.as_str()));
    let head: Vec<&str> = [">run"].into_iter().chain(names).chain(["finished"]).collect();
    let row = |(number, run): (usize, &Run)| {
        let finished = if store.result(run).is_some() { "yes" } else { "no" };
        let cells = run.cells.iter().map(|(_, cell)| cell.clone());
        [number.to_string()].into_iter().chain(cells).chain([finished.to_owned()]).collect()
    };
    crate::control::ctl::table(&head, &plan.runs.iter().enumerate().map(row).collect::<Vec<_>>())
}

/// As RFC 4180 has it.
fn quoted(cell: &str) -> String {
    match cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    }
}

/// A number if it is one.
fn value(cell: &str) -> Value {
    match serde_json::from_str::<Value>(cell) {
        Ok(number @ Value::Number(_)) => number,
        _ if cell.is_empty() => Value::Null,
        _ => Value::String(cell.to_owned()),
    }
}
