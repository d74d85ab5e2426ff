//! Where results lie: a directory for each run, named by what the run is.
//!
//! `runs/KEY/` holds `run.toml` (what was run), `stdout` and `stderr`, and `result.json`, which appears last and whole. A
//! result counts if it can be read and `run.toml` says the same as the run: a key that two runs share by accident costs a repetition,
//! nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::Run;
use super::{SweepError, at};

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Its exit code; 128 and the signal that ended it.
    pub code: i32,
    /// Its wall time.
    pub seconds: f64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Store {
    runs: PathBuf,
}

impl Store {
    /// Makes the directory if need be.
    pub fn open(out: &Path) -> Result<Self, SweepError> {
        let runs = out.join("runs");
        fs::create_dir_all(&runs).map_err(at(&runs))?;
        Ok(Self { runs })
    }

    /// The directory of a run.
    pub fn place(&self, run: &Run) -> PathBuf {
        self.runs.join(key(run))
    }

    /// What a run came to, if it is finished.
    pub fn result(&self, run: &Run) -> Option<Outcome> {
        let place = self.place(run);
        let same = fs::read_to_string(place.join("run.toml")).is_ok_and(|text| text == run.config);
        let text = fs::read(place.join("result.json")).ok().filter(|_| same)?;
        serde_json::from_slice(&text).ok()
    }

    /// What it wrote: standard output, then standard error.
    pub fn output(&self, run: &Run) -> String {
        let place = self.place(run);
        let read = |name: &str| fs::read(place.join(name)).unwrap_or_default();
        let all = [read("stdout"), read("stderr")].concat();
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Keeps a result.
    pub fn keep(&self, run: &Run, outcome: &Outcome) -> Result<(), SweepError> {
        let path = self.place(run).join("result.json");
        let part = path.with_extension("part");
        // Plain data, of which no writer to memory fails.
        fs::write(&part, serde_json::to_vec(outcome).unwrap_or_default()).map_err(at(&part))?;
        fs::rename(&part, &path).map_err(at(&path))
    }
}

/// A name for what a run is: FNV-1a of 64 bits (Fowler, Noll, Vo), the same on every machine and in every version.
fn key(run: &Run) -> String {
    let text = format!("{}\0{}", run.config, run.repeat);
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
