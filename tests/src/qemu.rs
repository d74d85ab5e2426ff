//! The very same guest under QEMU: `taskvisor image` writes it, QEMU's `tcg` runs it with exact CPU semantics.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guest::taskvisor;
use crate::run::{Outcome, Run};
use crate::temp::TempDir;

/// A guest's files: kernel, archive, command line.
#[derive(Debug)]
pub struct Image {
    dir: TempDir,
}

impl Image {
    /// Writes the image of a guest that runs `program`.
    pub fn new<T: AsRef<OsStr>>(flags: &[&str], program: &Path, args: &[T]) -> Self {
        let dir = TempDir::new();
        let mut run = Run::new(taskvisor()).arg("image").arg("-o").arg(dir.path());
        // The console's UART carries the program's output under QEMU: the kernel's log would be in between.
        run = run.args(["--log-level", "off"]).args(flags).arg("--").arg(program).args(args);
        run.run().expect_code(0);
        Self { dir }
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// QEMU's arguments for it, as docs/qemu.md gives them.
    pub fn qemu(&self, qemu: &Path, accel: &str, machine: &str, vcpus: u32) -> Run {
        let cmdline = fs::read_to_string(self.file("cmdline")).expect("taskvisor image wrote it");
        Run::new(qemu)
            .args(["-accel", accel, "-machine", machine, "-m", "512", "-smp", &vcpus.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .arg("-kernel")
            .arg(self.file("kernel.elf"))
            .arg("-initrd")
            .arg(self.file("archive.cpio"))
            .arg("-append")
            .arg(cmdline.trim())
    }

    /// Runs it under `-accel tcg`.
    pub fn run_tcg(&self, qemu: &Path, vcpus: u32) -> Outcome {
        self.qemu(qemu, "tcg", "q35", vcpus).args(["-cpu", "max"]).limit(Duration::from_secs(600)).run()
    }
}

/// What QEMU's isa-debug-exit makes of a program's exit code.
pub fn debug_exit(code: i32) -> i32 {
    (code << 1 | 1) & 0xff
}
