//! The kernel that runs its own tests instead of programs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crate::run::Run;

/// The kernel with the feature `selftest`: a relink when the ordinary one is there.
pub fn kernel() -> &'static Path {
    static ELF: OnceLock<PathBuf> = OnceLock::new();
    ELF.get_or_init(|| build("selftest"))
}

/// The same without the Linux ABI: kernel tasks only.
pub fn kernel_without_linux() -> &'static Path {
    static ELF: OnceLock<PathBuf> = OnceLock::new();
    ELF.get_or_init(|| build("no-default,selftest"))
}

fn build(features: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
    // The directory beside the programs is the one that the build script used.
    let target = Path::new(taskvisor_resources::PROGRAMS_DIR).parent().expect("it is the guest's target/programs");
    let outcome = Run::new(root.join("resources/build-kernel.sh"))
        .arg(features)
        .env("TASKVISOR_GUEST_TARGET_DIR", target)
        .limit(Duration::from_secs(600))
        .run();
    outcome.expect_code(0);
    PathBuf::from(outcome.text().trim())
}
