//! Runs as one job array of Slurm: `sbatch --wait`, each job being `taskvisor sweep --only N`.

use std::path::Path;
use std::process::Command;

use super::{SweepArgs, SweepError, at};

/// Submits the runs of these numbers and waits for all of them. Every node must see the file and the directory of results.
pub fn carry_out(file: &Path, open: &[usize], out: &Path, args: &SweepArgs) -> Result<(), SweepError> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(at(path));
    let (file, out) = (absolute(file)?, absolute(out)?);
    let binary = std::env::current_exe().map_err(at(Path::new("taskvisor")))?;
    let array = open.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    let job = format!(
        "exec {} sweep --out {} --only \"$SLURM_ARRAY_TASK_ID\" {}",
        quoted(&binary),
        quoted(&out),
        quoted(&file)
    );
    let mut sbatch = Command::new("sbatch");
    sbatch.args(["--wait", "--parsable", "--job-name=taskvisor-sweep"]);
    sbatch.arg(format!("--array={array}%{}", args.jobs));
    sbatch.arg(format!("--output={}", out.join("slurm-%A_%a.log").display()));
    sbatch.args(&args.sbatch).arg(format!("--wrap={job}"));
    let told = sbatch.output().map_err(at(Path::new("sbatch")))?;
    // With --wait its exit code is the worst of the jobs'; which failed, the results tell.
    if told.stdout.is_empty() {
        let said = String::from_utf8_lossy(&told.stderr);
        return Err(SweepError::Slurm(format!("sbatch: {}", said.trim().replace('\n', "; "))));
    }
    Ok(())
}
