//! Runs cargo for the guest kernel in a clean environment, and puts the result where nobody overwrites it.

use std::env;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scheme::{Scheme, TARGET};
use crate::symbols;

/// What to build and where.
pub struct Request<'a> {
    /// The project's root.
    pub root: &'a Path,
    /// The guest's target directory; each scheme gets a directory in it.
    pub target_dir: &'a Path,
    /// Cargo features beside the default ones, comma-separated, perhaps none; `no-default` leaves out the default ones.
    pub features: &'a str,
    /// Whether the kernel's lock file must already fit.
    pub locked: bool,
}

/// Builds the kernel and returns the path of its ELF file, which is written anew only when its content changed.
pub fn build(scheme: &Scheme, request: &Request<'_>) -> Result<PathBuf, String> {
    let dir = request.target_dir.join(scheme.name());
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    // Cargo's own lock ends before we copy, and two feature sets share one output name.
    let lock_path = dir.join(".lock");
    let lock = File::create(&lock_path).map_err(|e| format!("{}: {e}", lock_path.display()))?;
    lock.lock().map_err(|e| format!("{}: {e}", lock_path.display()))?;

    let script = linker_script(request.root, &dir)?;
    let status = cargo(scheme, request, &dir, &script)
        .status()
        .map_err(|e| format!("cargo could not be started for the guest kernel: {e}"))?;
    if !status.success() {
        return Err(format!("the guest kernel did not build ({status}); see the compiler's messages above"));
    }
    let built = dir.join(TARGET).join("release/guest-kernel");
    let name = match request.features {
        "" => "kernel.elf".to_owned(),
        features => format!("kernel-{}.elf", features.replace([',', ' '], "-")),
    };
    let out = dir.join(name);
    let mut elf = fs::read(&built).map_err(|e| format!("{}: {e}", built.display()))?;
    symbols::fill(&mut elf)?;
    write_if_changed(&elf, &out).map_err(|e| format!("{}: {e}", out.display()))?;
    Ok(out)
}

/// Cargo does not track linker scripts. A copy named by its content makes a change of it a change of the command line, and
/// that of the last crate only.
fn linker_script(root: &Path, dir: &Path) -> Result<PathBuf, String> {
    let source = root.join("resources/guest.ld");
    let text = fs::read(&source).map_err(|e| format!("{}: {e}", source.display()))?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let copy = dir.join(format!("guest-{:016x}.ld", hasher.finish()));
    if !copy.is_file() {
        fs::write(&copy, text).map_err(|e| format!("{}: {e}", copy.display()))?;
    }
    Ok(copy)
}

fn cargo(scheme: &Scheme, request: &Request<'_>, dir: &Path, script: &Path) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_outer_build) {
            command.env_remove(name);
        }
    }
    let flags = ["-Crelocation-model=static", "-Ccode-model=kernel", "-Cforce-frame-pointers=yes"];
    command
        .current_dir(request.root.join("guest-kernel"))
        .env("RUSTUP_AUTO_INSTALL", "0")
        .env("RUSTC", &scheme.rustc)
        .env("CARGO_TARGET_DIR", dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["rustc", "--quiet", "--release", "--bin", "guest-kernel", "--target", TARGET]);
    if scheme.needs_build_std() {
        command
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["-Zbuild-std=core,alloc,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"]);
    }
    for feature in request.features.split([',', ' ']).filter(|feature| !feature.is_empty()) {
        match feature {
            "no-default" => command.arg("--no-default-features"),
            feature => command.args(["--features", feature]),
        };
    }
    if request.locked && request.root.join("guest-kernel/Cargo.lock").is_file() {
        command.arg("--locked");
    }
    command.arg("--").args(scheme.linker.rustc_args());
    command.arg(format!("-Clink-arg=-T{}", script.display()));
    command.args(["-Clink-arg=-zmax-page-size=0x1000", "-Clink-arg=--no-eh-frame-hdr", "-Clink-arg=--build-id=none"]);
    command
}

/// Variables by which the build that we are part of would reach into the kernel's. Where crates come from is the user's
/// own setting and stays.
fn is_outer_build(name: &str) -> bool {
    const KEEP: [&str; 5] = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    const CLEAR: [&str; 8] =
        ["CARGO", "__CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "CLIPPY_", "DEP_", "RUSTUP_TOOLCHAIN"];
    const CLEAR_EXACT: [&str; 10] = [
        "LD_LIBRARY_PATH",
        "MAKEFLAGS",
        "MFLAGS",
        "OUT_DIR",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
    ];
    !KEEP.iter().any(|prefix| name.starts_with(prefix))
        && (CLEAR.iter().any(|prefix| name.starts_with(prefix)) || CLEAR_EXACT.contains(&name))
}

/// Replaces `to` in one step, so that a reader sees the old file or the new one.
pub fn write_if_changed(new: &[u8], to: &Path) -> io::Result<()> {
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let temporary = to.with_extension("new");
    fs::write(&temporary, new)?;
    fs::rename(&temporary, to)
}
