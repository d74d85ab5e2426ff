//! Builds the guest kernel and the example programs and hands their paths to the crate, which embeds them.
//!
//! The work is in `build/`: `scheme.rs` chooses how the kernel can be built here, `kernel.rs` builds it, `programs.rs`
//! compiles the examples.

#[path = "build/kernel.rs"]
mod kernel;
#[path = "build/programs.rs"]
mod programs;
#[path = "build/scheme.rs"]
mod scheme;
#[path = "build/symbols.rs"]
mod symbols;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Each line by itself: cargo shows the first line of an error instruction only.
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let root = here.parent().ok_or("resources/ has no parent directory")?;
    for path in [
        "guest-kernel/src",
        "guest-kernel/Cargo.toml",
        "guest-kernel/Cargo.lock",
        "guest-kernel/build.rs",
        "vcpu-sched/src",
        "vcpu-sched/Cargo.toml",
        "Cargo.toml",
        "resources/guest.ld",
        "resources/build",
        "resources/build.rs",
        "resources/programs",
    ] {
        let path = root.join(path);
        // A missing file would count as changed every time.
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    for name in ["GUEST_KERNEL_ELF", "TASKVISOR_GUEST_TARGET_DIR", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let target_dir = guest_target_dir(root);
    let elf = match env::var_os("GUEST_KERNEL_ELF").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            path.canonicalize().map_err(|e| format!("GUEST_KERNEL_ELF={}: {e}", path.display()))?
        }
        None => {
            let scheme = scheme::find().map_err(|e| e.to_string())?;
            kernel::build(&scheme, &kernel::Request { root, target_dir: &target_dir, features: "", locked: true })?
        }
    };
    println!("cargo::rustc-env=TASKVISOR_KERNEL_ELF={}", elf.display());

    let programs_dir = target_dir.join("programs");
    let rustc = PathBuf::from(variable("RUSTC")?);
    let outcome = programs::build(&here.join("programs"), &programs_dir, &rustc)?;
    for warning in &outcome.warnings {
        println!("cargo::warning={warning}");
    }
    println!("cargo::rustc-env=TASKVISOR_PROGRAMS_DIR={}", programs_dir.display());
    write_list(&out.join("programs.rs"), &outcome.programs)
}

/// The examples to embed: each name once, musl before glibc, because it is a tenth of the size.
fn write_list(path: &Path, programs: &[programs::Program]) -> Result<(), String> {
    let mut text = String::from("&[\n");
    let mut names = Vec::new();
    for program in programs {
        if !names.contains(&&program.name) {
            names.push(&program.name);
            writeln!(text, "    ({:?}, include_bytes!({:?})),", program.name, program.path)
                .map_err(|e| e.to_string())?;
        }
    }
    text.push_str("]\n");
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Beside the outer build's own target directory, never in OUT_DIR: `core` is compiled once for debug, release and clippy.
fn guest_target_dir(root: &Path) -> PathBuf {
    env::var_os("TASKVISOR_GUEST_TARGET_DIR")
        .or_else(|| env::var_os("CARGO_TARGET_DIR").map(|dir| PathBuf::from(dir).join("guest").into()))
        .map_or_else(|| root.join("target/guest"), PathBuf::from)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}
