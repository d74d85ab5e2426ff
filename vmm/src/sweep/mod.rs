//! `taskvisor sweep FILE.toml`: the same program over a matrix of settings, as independent runs (docs/sweep.md).
//!
//! [`plan`] expands the file, [`store`] keeps what each run came to, [`one`] carries one out, [`local`] and [`slurm`] carry them all
//! out, [`table`] makes one table of the results. Invariants: a run's directory is named by what the run is, so a result is used again
//! only for the very same run; a result is written as a whole or not at all, so one that was cut short is done anew; who schedules jobs is Slurm,
//! never we.

mod local;
mod one;
mod plan;
mod slurm;
mod store;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

/// Who carries the runs out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineChoice {
    /// This machine
    #[default]
    Local,
    /// Slurm, as one job array (sbatch)
    Slurm,
}

/// Flags of `sweep`.
#[derive(Debug, Clone, clap::Args)]
pub struct SweepArgs {
    /// The file that describes the sweep
    pub file: PathBuf,
    /// Directory of results; without it FILE's name with .results. Runs that are finished there are not done again
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Who carries the runs out
    #[arg(long, value_enum, default_value_t)]
    pub engine: EngineChoice,
    /// Runs at a time
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
    /// Only make the tables of what is finished
    #[arg(long, conflicts_with = "list")]
    pub gather: bool,
    /// Only show which runs there are, and which of them are finished
    #[arg(long)]
    pub list: bool,
    /// Carry out this run alone, by its number in --list (what a job of the array does)
    #[arg(long, value_name = "N", conflicts_with_all = ["gather", "list"])]
    pub only: Option<usize>,
    /// More arguments for sbatch
    #[arg(long, value_name = "ARG", allow_hyphen_values = true, requires = "engine")]
    pub sbatch: Vec<String>,
}

/// Why a sweep can't be.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The file can't be read, or a directory or result can't be written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path}: {what}", path = path.display())]
    Plan {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// There is no such run.
    #[error("there is no run {0}: --list shows them")]
    NoRun(usize),
    /// Slurm's command.
    #[error("{0}")]
    Slurm(String),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SweepError + '_ {
    move |source| SweepError::Io { path: path.to_owned(), source }
}

/// Does what the flags say. Returns what to print.
///
/// # Errors
/// [`SweepError`]. A run that fails is a result, not an error.
pub fn run(args: &SweepArgs) -> Result<String, SweepError> {
    let plan = plan::read(&args.file)?;
    let out = args.out.clone().unwrap_or_else(|| args.file.with_extension("results"));
    let store = store::Store::open(&out)?;
    if let Some(number) = args.only {
        let run = plan.runs.get(number).ok_or(SweepError::NoRun(number))?;
        one::carry_out(run, &store)?;
        return Ok(String::new());
    }
    if args.list {
        return Ok(table::list(&plan, &store));
    }
    let open: Vec<usize> = (0..plan.runs.len()).filter(|n| store.result(&plan.runs[*n]).is_none()).collect();
    if !args.gather && !open.is_empty() {
        match args.engine {
            EngineChoice::Local => local::carry_out(&plan, &open, &store, args.jobs)?,
            EngineChoice::Slurm => slurm::carry_out(&args.file, &open, &out, args)?,
        }
    }
    table::write(&plan, &store, &out)
}
