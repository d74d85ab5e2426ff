//! Results: rows of named columns, printed, written as CSV and JSON, and plotted.

use std::path::{Path, PathBuf};

use rhai::{Array, Dynamic, Engine, ImmutableString, Map};

use super::plot::{self, Plot};
use super::values::number;
use super::{Answer, failed};
use crate::control::ctl;

/// Rows that a table may have.
const MAX_ROWS: usize = 1 << 16;

/// See the module's text. Clones are the same table's rows at that time.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Dynamic>>,
}

impl Table {
    fn new(columns: &Array) -> Answer<Self> {
        if columns.is_empty() {
            return Err(failed("a table needs columns"));
        }
        Ok(Self { columns: columns.iter().map(Dynamic::to_string).collect(), rows: Vec::new() })
    }

    fn row(&mut self, row: Array) -> Answer<()> {
        if row.len() != self.columns.len() {
            return Err(failed(format!("the row has {} values, the table {} columns", row.len(), self.columns.len())));
        }
        if self.rows.len() >= MAX_ROWS {
            return Err(failed(format!("a table has {MAX_ROWS} rows at most")));
        }
        self.rows.push(row);
        Ok(())
    }

    fn column(&self, name: &str) -> Answer<usize> {
        let found = self.columns.iter().position(|column| column == name);
        found.ok_or_else(|| failed(format!("there is no column {name:?}; there are {}", self.columns.join(", "))))
    }

    fn text(&self) -> String {
        let numeric = |n: usize| self.rows.iter().all(|row| row.get(n).is_some_and(|value| number(value).is_some()));
        let heads: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(n, name)| format!("{}{}", if numeric(n) { ">" } else { "" }, name.to_uppercase()))
            .collect();
        let rows: Vec<Vec<String>> = self.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
        ctl::table(&heads.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
    }

    /// RFC 4180.
    fn csv(&self) -> String {
        let quote = |text: String| match text.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text,
        };
        let line = |cells: &mut dyn Iterator<Item = String>| cells.map(quote).collect::<Vec<_>>().join(",") + "\r\n";
        let mut out = line(&mut self.columns.iter().cloned());
        for row in &self.rows {
            out += &line(&mut row.iter().map(Dynamic::to_string));
        }
        out
    }

    fn json(&self) -> Answer<String> {
        let row = |row: &Vec<Dynamic>| -> Answer<serde_json::Map<String, serde_json::Value>> {
            let value = |value: &Dynamic| serde_json::to_value(value).map_err(failed);
            self.columns.iter().zip(row).map(|(name, cell)| Ok((name.clone(), value(cell)?))).collect()
        };
        let rows = self.rows.iter().map(row).collect::<Answer<Vec<_>>>()?;
        Ok(serde_json::to_string_pretty(&rows).map_err(failed)? + "\n")
    }

    /// Lines of `y` over `x`, one for each value of the column `series`, in the order of their first rows.
    fn plot(&self, wanted: &Map) -> Answer<Plot> {
        let word = |key: &str| wanted.get(key).map(Dynamic::to_string);
        let needed = |key: &str| word(key).ok_or_else(|| failed(format!("a plot needs {key}: the name of a column")));
        let known = ["title", "x", "y", "series"];
        if let Some(other) = wanted.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(failed(format!("a plot has no {other}; it has {}", known.join(", "))));
        }
        let (x_name, y_name) = (needed("x")?, needed("y")?);
        let (x, y) = (self.column(&x_name)?, self.column(&y_name)?);
        let series = word("series").map(|name| self.column(&name)).transpose()?;
        let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        for row in &self.rows {
            let at = |column: usize, name: &str| {
                let value = row.get(column).and_then(number).filter(|value| value.is_finite());
                value.ok_or_else(|| failed(format!("column {name} has something that is no number")))
            };
            let point = (at(x, &x_name)?, at(y, &y_name)?);
            let name = series.zip(series.and_then(|column| row.get(column))).map(|(column, value)| {
                // A number alone tells nobody what it is a number of.
                let of = self.columns.get(column).filter(|_| number(value).is_some());
                of.map_or_else(|| value.to_string(), |of| format!("{of} {value}"))
            });
            let name = name.unwrap_or_default();
            match lines.iter_mut().find(|(known, _)| *known == name) {
                Some((_, points)) => points.push(point),
                None => lines.push((name, vec![point])),
            }
        }
        Ok(Plot { title: word("title").unwrap_or_default(), x: x_name, y: y_name, lines })
    }
}

/// Floats with as many places as a reader wants.
fn cell(value: &Dynamic) -> String {
    match value.as_float() {
        Ok(float) => format!("{float:.3}"),
        Err(_) => value.to_string(),
    }
}

/// A file in the script's directory: a name, and no way out of it.
fn file(out: &Path, name: &str) -> Answer<PathBuf> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    if plain { Ok(out.join(name)) } else { Err(failed(format!("{name:?} is no plain file name"))) }
}

fn write(path: &Path, text: &str) -> Answer<()> {
    std::fs::write(path, text).map_err(|error| failed(format!("{}: {error}", path.display())))
}

/// Gives a script `table` and what can be done with one.
pub fn register(engine: &mut Engine, out: &Path) {
    engine.register_type_with_name::<Table>("Table");
    engine.register_fn("table", |columns: Array| Table::new(&columns));
    engine.register_fn("row", Table::row);
    engine.register_fn("to_string", |table: &mut Table| table.text());
    engine.register_fn("show", |table: &mut Table| {
        use std::io::Write;
        // A closed pipe behind it is no error.
        let _ = std::io::stdout().write_all(table.text().as_bytes());
    });
    let at = out.to_owned();
    engine.register_fn("csv", move |table: &mut Table, name: ImmutableString| write(&file(&at, &name)?, &table.csv()));
    let at = out.to_owned();
    engine
        .register_fn("json", move |table: &mut Table, name: ImmutableString| write(&file(&at, &name)?, &table.json()?));
    let at = out.to_owned();
    engine.register_fn("plot", move |table: &mut Table, name: ImmutableString, wanted: Map| {
        let svg = plot::svg(&table.plot(&wanted)?).map_err(failed)?;
        write(&file(&at, &name)?, &svg)
    });
}
