//! What a sweep's file says, and the runs that it means. Pure but for reading the file.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use serde::Deserialize;
use toml::{Table, Value};

use super::{SweepError, at};
use crate::config::file;
use crate::config::near::nearest;

/// Runs of a sweep at most.
const MAX_RUNS: usize = 100_000;
/// What a file may have.
const KEYS: [&str; 6] = ["run", "matrix", "repeats", "seeds", "capture", "stats"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    /// Settings of every run, as a file of `--config` has them.
    run: Table,
    /// Settings with a list of values each.
    #[serde(default)]
    matrix: BTreeMap<String, Vec<Value>>,
    /// How often each.
    #[serde(default = "once")]
    repeats: u32,
    /// Seeds for each, in the program's environment as SEED.
    #[serde(default)]
    seeds: Vec<i64>,
    /// Columns from a run's output, by regular expression.
    #[serde(default)]
    capture: BTreeMap<String, String>,
    /// Columns from what `--stats` prints, by name.
    #[serde(default)]
    stats: Vec<String>,
}

fn once() -> u32 {
    1
}

/// One run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What it differs in from others, by column.
    pub cells: Vec<(String, String)>,
    /// Its settings as a file of `--config`.
    pub config: String,
    /// Which repetition; part of what it is.
    pub repeat: u32,
}

/// A whole sweep.
#[derive(Debug)]
pub struct Plan {
    /// All runs, in the order of the file's names and values.
    pub runs: Vec<Run>,
    /// Columns from a run's output.
    pub captures: Vec<(String, Regex)>,
    /// Columns from what `--stats` prints.
    pub stats: Vec<String>,
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Plan, SweepError> {
    let text = std::fs::read_to_string(path).map_err(at(path))?;
    parse(&text).map_err(|what| SweepError::Plan { path: path.to_owned(), what })
}

/// Reads a file's text.
pub fn parse(text: &str) -> Result<Plan, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(match nearest(key, KEYS) {
            Some(near) => format!("unknown key '{key}': is it {near}?"),
            None => format!("unknown key '{key}': there are {}", KEYS.join(", ")),
        });
    }
    let said: Text = toml::from_str(text).map_err(|error| error.to_string())?;
    let compile = |(name, pattern): (String, String)| match Regex::new(&pattern) {
        Ok(regex) => Ok((name, regex)),
        Err(error) => Err(format!("capture.{name}: {error}")),
    };
    let captures = said.capture.into_iter().map(compile).collect::<Result<Vec<_>, _>>()?;

    let mut combinations = vec![Vec::new()];
    for (name, values) in &said.matrix {
        if values.is_empty() || said.run.contains_key(name) {
            return Err(format!("matrix.{name}: give at least one value, and don't set it in [run] too"));
        }
        combinations = with_each(&combinations, values, |value| (name.clone(), value.clone()), MAX_RUNS)?;
    }
    let seeds: Vec<Option<i64>> =
        if said.seeds.is_empty() { vec![None] } else { said.seeds.into_iter().map(Some).collect() };
    let total = combinations.len().saturating_mul(seeds.len()).saturating_mul(said.repeats as usize);
    if total == 0 || total > MAX_RUNS {
        return Err(format!("{total} runs: from 1 to {MAX_RUNS}"));
    }
    let mut runs = Vec::with_capacity(total);
    for combination in &combinations {
        for seed in &seeds {
            let config = config(&said.run, combination, *seed, !said.stats.is_empty())?;
            for repeat in 0..said.repeats {
                let mut cells: Vec<_> = combination.iter().map(|(name, value)| (name.clone(), show(value))).collect();
                cells.extend(seed.map(|seed| ("seed".to_owned(), seed.to_string())));
                cells.extend((said.repeats > 1).then(|| ("repeat".to_owned(), repeat.to_string())));
                runs.push(Run { cells, config: config.clone(), repeat });
            }
        }
    }
    Ok(Plan { runs, captures, stats: said.stats })
}

/// Every combination with every value.
fn with_each<T: Clone>(
    combinations: &[Vec<T>],
    values: &[Value],
    make: impl Fn(&Value) -> T,
    most: usize,
) -> Result<Vec<Vec<T>>, String> {
    if combinations.len().saturating_mul(values.len()) > most {
        return Err(format!("more than {most} runs"));
    }
    let longer = |old: &Vec<T>, value| old.iter().cloned().chain([make(value)]).collect();
    Ok(combinations.iter().flat_map(|old| values.iter().map(move |value| longer(old, value))).collect())
}

/// The settings of a run, as a file of `--config` that was read back once: a wrong name or value shows before anything runs.
fn config(run: &Table, combination: &[(String, Value)], seed: Option<i64>, stats: bool) -> Result<String, String> {
    let mut table = run.clone();
    table.extend(combination.iter().cloned());
    if let Some(seed) = seed {
        let env = table.entry("env").or_insert_with(|| Value::Table(Table::new()));
        let env = env.as_table_mut().ok_or("env: a table of names and texts")?;
        env.insert("SEED".to_owned(), Value::String(seed.to_string()));
    }
    if stats {
        table.insert("stats".to_owned(), Value::Boolean(true));
    }
    let text = toml::to_string(&table).map_err(|error| error.to_string())?;
    match file::parse(&text) {
        Ok(_) => Ok(text),
        // Lines and columns of a text that nobody has written would mislead.
        Err(error) => Err(error.what),
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
