//! Where a workload comes from: a file, a trace, or one that is built in.
//!
//! Used by the command. The built-in ones are the files of resources/workloads, so that each can be copied and changed.

use std::path::{Path, PathBuf};

use super::file::{self, File, FileError};
use super::replay::{self, ReplayError};
use crate::trace::Format;

/// The built-in workloads: name and text.
const BUILTIN: &[(&str, &str)] = &[
    ("cpu-bound", include_str!("../../../resources/workloads/cpu-bound.toml")),
    ("nice-ladder", include_str!("../../../resources/workloads/nice-ladder.toml")),
    ("mixed", include_str!("../../../resources/workloads/mixed.toml")),
    ("ping-pong", include_str!("../../../resources/workloads/ping-pong.toml")),
    ("pipeline", include_str!("../../../resources/workloads/pipeline.toml")),
    ("fork-join", include_str!("../../../resources/workloads/fork-join.toml")),
    ("hackbench", include_str!("../../../resources/workloads/hackbench.toml")),
    ("rt-control", include_str!("../../../resources/workloads/rt-control.toml")),
    ("thundering-herd", include_str!("../../../resources/workloads/thundering-herd.toml")),
    ("open-load", include_str!("../../../resources/workloads/open-load.toml")),
    ("churn", include_str!("../../../resources/workloads/churn.toml")),
    ("crowd", include_str!("../../../resources/workloads/crowd.toml")),
];

/// Why there is no workload.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No built-in workload of that name.
    #[error("there is no built-in workload '{0}': taskvisor sim --workload list shows them")]
    Unknown(String),
    /// Can't be read.
    #[error("can't read the workload {path}: {source}")]
    Read {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A trace that can't be replayed.
    #[error("can't replay: {0}")]
    Replay(#[from] ReplayError),
    /// Not a workload.
    #[error("workload {name}: {source} (docs/simulator.md is the reference)")]
    Content {
        /// As the user gave it.
        name: String,
        /// Why.
        source: FileError,
    },
}

/// Loads `builtin:NAME`, a trace (by its extension), or a file.
///
/// # Errors
/// [`SourceError`].
pub fn load(name: &str) -> Result<File, SourceError> {
    let content = |source| SourceError::Content { name: name.to_owned(), source };
    if let Some(builtin) = name.strip_prefix("builtin:") {
        let (_, text) = BUILTIN
            .iter()
            .find(|(known, _)| *known == builtin)
            .ok_or_else(|| SourceError::Unknown(builtin.to_owned()))?;
        return file::parse(text).map_err(content);
    }
    let path = Path::new(name);
    if path.extension().is_some() && Format::of(path).is_ok() {
        return Ok(replay::load(path)?);
    }
    let text = std::fs::read_to_string(path).map_err(|source| SourceError::Read { path: name.into(), source })?;
    file::parse(&text).map_err(content)
}

/// The built-in workloads, one line each.
pub fn list() -> String {
    let mut text = String::new();
    for (name, content) in BUILTIN {
        let description = file::parse(content).map(|file| file.description).unwrap_or_default();
        text += &format!("builtin:{name:<16} {description}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_ones_are_sound_and_described() {
        for (name, _) in BUILTIN {
            let file = load(&format!("builtin:{name}")).unwrap();
            assert!(file.description.len() > 10, "{name} isn't described");
            assert!(file.machine.cpus.is_some() && file.machine.duration.is_some(), "{name} leaves its size open");
        }
        assert_eq!(list().lines().count(), BUILTIN.len());
    }

    #[test]
    fn a_workload_that_is_not_there_is_named() {
        assert!(load("builtin:nope").unwrap_err().to_string().contains("'nope'"));
        assert!(load("/nowhere/x.toml").unwrap_err().to_string().contains("/nowhere/x.toml"));
    }
}
