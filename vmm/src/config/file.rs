//! `--config FILE.toml`: the flags of `run` as a file (docs/config.md).
//!
//! Every error names line and column. Names are checked against the file's own schema first, so that a wrong one gets a
//! suggestion, at any depth; then serde reads each half of the flags. Invariant: no text panics, and nothing longer than
//! [`MAX_LEN`] is read.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::flags::{GuestFlags, MachineFlags};
use super::near::nearest;
use super::schema::schema;

/// Far more than anybody writes by hand.
const MAX_LEN: u64 = 1 << 20;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("can't read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It holds something else.
    #[error("{path}: {source}")]
    Text {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: TextError,
    },
}

/// What is wrong in a file's text, and where; both counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct TextError {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
    /// What is wrong.
    pub what: String,
}

impl TextError {
    fn new(text: &str, span: Option<Range<usize>>, what: String) -> Self {
        let at = span.map_or(0, |span| span.start).min(text.len());
        let before = text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        Self { line, column, what }
    }
}

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Said {
    /// About the machine.
    #[serde(flatten)]
    pub machine: MachineFlags,
    /// About the guest.
    #[serde(flatten)]
    pub guest: GuestFlags,
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Said, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_LEN + 1).read_to_string(&mut text)).map_err(failed)?;
    if text.len() as u64 > MAX_LEN {
        return Err(failed(io::Error::other(format!("it is longer than {} KiB", MAX_LEN >> 10))));
    }
    parse(&text).map_err(|source| FileError::Text { path: path.to_owned(), source })
}

/// Reads a file's text.
pub fn parse(text: &str) -> Result<Said, TextError> {
    let broken = |error: toml::de::Error| TextError::new(text, error.span(), error.message().replace('\n', " "));
    let document = DeTable::parse(text).map_err(broken)?;
    check_table(document.get_ref(), &schema())
        .map_err(|wrong| TextError::new(text, Some(wrong.span.clone()), wrong.message()))?;
    Ok(Said { machine: toml::from_str(text).map_err(broken)?, guest: toml::from_str(text).map_err(broken)? })
}

/// What `config show` prints; [`parse`] reads it back as the same.
pub fn write(said: &Said) -> Result<String, toml::ser::Error> {
    toml::to_string(said)
}

/// A name that the schema doesn't have.
struct Unknown {
    span: Range<usize>,
    name: String,
    near: Option<String>,
    known: Vec<String>,
}

impl Unknown {
    fn message(&self) -> String {
        match &self.near {
            Some(near) => format!("unknown key '{}': is it {near}?", self.name),
            None => format!("unknown key '{}': there are {}", self.name, self.known.join(", ")),
        }
    }
}

fn check_table(table: &DeTable<'_>, schema: &Value) -> Result<(), Unknown> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Ok(()) };
    for (key, value) in table {
        let name: &str = key.get_ref();
        let Some(schema) = properties.get(name) else {
            let known = properties.keys().map(String::as_str);
            return Err(Unknown {
                span: key.span(),
                name: name.to_owned(),
                near: nearest(name, known.clone()).map(str::to_owned),
                known: known.map(str::to_owned).collect(),
            });
        };
        check(value, schema)?;
    }
    Ok(())
}

/// Looks for tables in a value. Where the schema allows several forms, at most one of them is a table's and one a list's.
fn check(value: &Spanned<DeValue<'_>>, schema: &Value) -> Result<(), Unknown> {
    if let Some(forms) = schema.get("anyOf").and_then(Value::as_array) {
        return forms.iter().try_for_each(|form| check(value, form));
    }
    match (value.get_ref(), schema.get("items")) {
        (DeValue::Table(table), _) => check_table(table, schema),
        (DeValue::Array(items), Some(schema)) => items.iter().try_for_each(|item| check(item, schema)),
        _ => Ok(()),
    }
}
