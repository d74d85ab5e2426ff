//! The kernel that runs its own tests instead of programs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crate::run::Run;

/// Builds the kernel with the feature `selftest` (a relink when the ordinary one is there) and returns its ELF file.
pub fn kernel() -> &'static Path {
    static ELF: OnceLock<PathBuf> = OnceLock::new();
    ELF.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
        // The directory beside the programs is the one that the build script used.
        let target = Path::new(taskvisor_resources::PROGRAMS_DIR).parent().expect("it is the guest's target/programs");
        let outcome = Run::new(root.join("resources/build-kernel.sh"))
            .arg("selftest")
            .env("TASKVISOR_GUEST_TARGET_DIR", target)
            .limit(Duration::from_secs(600))
            .run();
        outcome.expect_code(0);
        PathBuf::from(outcome.text().trim())
    })
}
