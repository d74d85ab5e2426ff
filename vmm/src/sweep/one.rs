//! One run: `taskvisor run --config` with its streams in files, and what it came to.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;

use super::plan::Run;
use super::store::{Outcome, Store};
use super::{SweepError, at};

/// Carries a run out and keeps its result. What an attempt before has left is overwritten.
pub fn carry_out(run: &Run, store: &Store) -> Result<Outcome, SweepError> {
    let place = store.place(run);
    fs::create_dir_all(&place).map_err(at(&place))?;
    // From here on until the end there is no result.
    let _ = fs::remove_file(place.join("result.json"));
    let config = place.join("run.toml");
    fs::write(&config, &run.config).map_err(at(&config))?;
    let stream = |name: &str| {
        let path = place.join(name);
        File::create(&path).map_err(at(&path))
    };
    let binary = std::env::current_exe().map_err(at(Path::new("taskvisor")))?;
    let mut command = Command::new(&binary);
    command.args(["run", "--config"]).arg(&config).stdin(Stdio::null());
    command.stdout(stream("stdout")?).stderr(stream("stderr")?);
    // SAFETY: between fork and exec, a system call alone.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?));
    }
    let begun = Instant::now();
    let status = command.status().map_err(at(&binary))?;
    let seconds = begun.elapsed().as_secs_f64();
    // One of the two is there.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or_default();
    let outcome = Outcome { code, seconds };
    store.keep(run, &outcome)?;
    Ok(outcome)
}
