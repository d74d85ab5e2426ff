//! What the tests need beside cargo. Something missing fails the test, unless ALLOW_MISSING=1: then the test is left out,
//! and says so past the test runner's capture, for tests/run.sh to list.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// True when what `what` names is `there`; otherwise the test fails, or is left out.
#[track_caller]
pub fn there_or_left_out(there: bool, what: &str) -> bool {
    if there {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    if env::var("ALLOW_MISSING").is_ok_and(|value| value == "1") {
        let _ = writeln!(std::io::stderr(), "left out: {test}: {what} is missing");
        return false;
    }
    panic!("{what} is missing: `make setup` installs it or tells how; ALLOW_MISSING=1 leaves out what needs it");
}

/// A program of the system, by the first of its names that is found.
#[track_caller]
pub fn system_program(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = names.iter().find_map(|name| env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file()));
    there_or_left_out(found.is_some(), names[0]).then_some(found)?
}

/// Slurm's two daemons, which an ordinary user's PATH may not have, and its client.
#[track_caller]
pub fn slurm() -> Option<[PathBuf; 2]> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<_> = env::split_paths(&path).chain(["/usr/sbin".into()]).collect();
    let find = |name: &str| dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    let found = find("slurmctld").zip(find("slurmd")).filter(|_| find("sbatch").is_some());
    there_or_left_out(found.is_some(), "Slurm (Debian: slurm-wlm)").then_some(found)?.map(<[_; 2]>::from)
}

/// Debian's static busybox, unmodified.
#[track_caller]
pub fn busybox() -> Option<PathBuf> {
    let path = system_program(&["busybox"])?;
    there_or_left_out(is_static(&path), "a static busybox (Debian: busybox-static)").then_some(path)
}

/// Debian's static bash, unmodified.
#[track_caller]
pub fn bash() -> Option<PathBuf> {
    system_program(&["bash-static"])
}

/// QEMU's system emulator.
#[track_caller]
pub fn qemu() -> Option<PathBuf> {
    system_program(&["qemu-system-x86_64"])
}

/// A /dev/kvm that may be opened.
#[track_caller]
pub fn kvm_or_left_out() -> bool {
    let usable = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    there_or_left_out(usable, "a usable /dev/kvm")
}

/// What only root can prepare, such as a mount namespace without /dev/kvm.
#[track_caller]
pub fn root_or_left_out() -> bool {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    there_or_left_out(root, "root (to prepare a /dev of its own)")
}

/// An ELF file without a PT_INTERP program header.
fn is_static(path: &Path) -> bool {
    let Ok(elf) = fs::read(path) else { return false };
    let field = |at: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    // ELF-64: e_phoff at 32, e_phentsize at 54, e_phnum at 56; PT_INTERP is 3.
    let (Some(offset), Some(size), Some(count)) = (field(32, 8), field(54, 2), field(56, 2)) else { return false };
    !(0..count).any(|index| field((offset + index * size) as usize, 4) == Some(3))
}
