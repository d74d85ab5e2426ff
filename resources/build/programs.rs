//! Compiles the example programs: every C program with musl and with static glibc, every Rust program with static glibc.
//!
//! A compiler that isn't there leaves its variant out with a warning: the VMM and the kernel don't need the examples, the
//! whole-system tests do, and they say so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::scheme::in_path;

/// One compiled program.
pub struct Program {
    /// The source's name without its extension.
    pub name: String,
    /// Its ELF file.
    pub path: PathBuf,
}

/// What was built and what was left out, and why.
#[derive(Default)]
pub struct Outcome {
    /// The programs: musl's by name, then glibc's, then those in Rust.
    pub programs: Vec<Program>,
    /// One line for each variant left out.
    pub warnings: Vec<String>,
}

struct Compiler {
    variant: &'static str,
    extension: &'static str,
    command: PathBuf,
    args: &'static [&'static str],
}

/// Builds what is older than its source into `out/VARIANT/NAME`.
pub fn build(source_dir: &Path, out: &Path, rustc: &Path) -> Result<Outcome, String> {
    // Symbols stay, so that a crash report in the guest names functions.
    const C: &[&str] = &["-std=gnu11", "-O2", "-g0", "-Wall", "-Wextra", "-static", "-pthread", "-Wl,--strip-debug"];
    const RUST: &[&str] =
        &["--edition=2024", "-Copt-level=2", "-Ctarget-feature=+crt-static", "-Cstrip=debuginfo", "-Ccodegen-units=1"];
    let mut outcome = Outcome::default();
    let sources = sources(source_dir)?;
    let header = modified(&source_dir.join("check.h"));
    for (variant, extension, command, args) in [
        ("musl", "c", in_path("musl-gcc"), C),
        ("glibc", "c", in_path("gcc"), C),
        ("rust", "rs", Some(rustc.to_owned()), RUST),
    ] {
        let Some(command) = command else {
            outcome
                .warnings
                .push(format!("example programs of variant {variant} are left out: no compiler (run `make setup`)"));
            continue;
        };
        let compiler = Compiler { variant, extension, command, args };
        let dir = out.join(variant);
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        for source in sources.iter().filter(|s| s.extension().is_some_and(|e| e == compiler.extension)) {
            let Some(name) = source.file_stem().and_then(|s| s.to_str()) else { continue };
            let path = dir.join(name);
            let newest_input = modified(source).max(header);
            let stale = modified(&path) <= newest_input;
            if stale && let Err(message) = compiler.run(source, &path) {
                outcome.warnings.push(message);
                continue;
            }
            outcome.programs.push(Program { name: name.to_owned(), path });
        }
    }
    Ok(outcome)
}

impl Compiler {
    /// Compiles beside the target and renames, so that a running copy is never written into.
    fn run(&self, source: &Path, path: &Path) -> Result<(), String> {
        let temporary = path.with_extension(format!("new{}", std::process::id()));
        let output = Command::new(&self.command)
            .args(self.args)
            .arg("-o")
            .arg(&temporary)
            .arg(source)
            .stdin(Stdio::null())
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .map_err(|e| format!("{}: {e}", self.command.display()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let first = text.lines().find(|line| line.contains("error")).unwrap_or("no message").to_owned();
            return Err(format!("{} ({}) did not compile: {first}", source.display(), self.variant));
        }
        fs::rename(&temporary, path).map_err(|e| format!("{}: {e}", path.display()))
    }
}

fn sources(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// A missing file is older than any.
fn modified(path: &Path) -> std::time::SystemTime {
    fs::metadata(path).and_then(|m| m.modified()).unwrap_or(std::time::UNIX_EPOCH)
}
