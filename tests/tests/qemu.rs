//! The same kernel and archive under QEMU's `tcg` with 2 and 4 CPUs: the check on exact CPU semantics, which a host that
//! interprets ring 0 can't give.

use std::ffi::OsStr;
use std::path::Path;

use taskvisor_tests::guest::program;
use taskvisor_tests::qemu::{Image, debug_exit};
use taskvisor_tests::{Run, TempDir, prereq, selftest, serial};

const VCPUS: [u32; 2] = [2, 4];
/// Two hundred applets of busybox, one after the other.
const APPLETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/applets.sh");

/// Runs a program under QEMU on 2 and 4 CPUs and expects exit code 0 and, on stdout, `wanted`.
fn runs<T: AsRef<OsStr>>(path: &Path, args: &[T], wanted: &str) {
    let Some(qemu) = prereq::qemu() else { return };
    let _beside_others = serial::shared();
    let image = Image::new(&[], path, args);
    for vcpus in VCPUS {
        image.run_tcg(&qemu, vcpus).expect_code(debug_exit(0)).expect_stdout(wanted);
    }
}

#[test]
fn busybox_pipeline_like_the_host() {
    let Some(busybox) = prereq::busybox() else { return };
    let args = ["sh", "-c", "seq 1 20000 | sort -rn | md5sum"];
    let host = Run::new(&busybox).args(args).run();
    runs(&busybox, &args, host.text().trim());
}

/// What one process leaves behind wrongly, a later one meets: a frame given away twice, a page of the kernel's given away at all.
#[test]
fn busybox_applets_like_the_host() {
    let (Some(qemu), Some(busybox)) = (prereq::qemu(), prereq::busybox()) else { return };
    let _beside_others = serial::shared();
    let work = TempDir::new();
    let host = Run::new(&busybox).args(["sh", APPLETS]).env("BUSYBOX", &busybox).env("WORK", work.path()).run();
    host.expect_code(0).expect_stdout("done");
    let script = format!("{APPLETS}:/script.sh");
    let tools = format!("{}:/bin/busybox", busybox.display());
    let flags = ["--file", &script, "--file", &tools, "--env", "BUSYBOX=/bin/busybox", "--env", "WORK=/tmp"];
    let image = Image::new(&flags, &busybox, &["sh", "/script.sh"]);
    for vcpus in [1].into_iter().chain(VCPUS) {
        image.run_tcg(&qemu, vcpus).expect_same_output(&host).expect_code(debug_exit(0));
    }
}

#[test]
fn exit_code_arrives() {
    let Some(qemu) = prereq::qemu() else { return };
    let image = Image::new(&[], &program("musl/bad"), &["exit", "42"]);
    image.run_tcg(&qemu, 1).expect_code(debug_exit(42));
}

#[test]
fn hello_musl() {
    runs(&program("musl/hello"), &["0"], "hello from");
}

/// On one CPU, where an opener that is woken can run before the one that woke it: one meeting in some ten thousand.
#[test]
fn fifos_musl() {
    let Some(qemu) = prereq::qemu() else { return };
    let _beside_others = serial::shared();
    let image = Image::new(&[], &program("musl/fifos"), &["150000"]);
    image.run_tcg(&qemu, 1).expect_code(debug_exit(0)).expect_stdout("PASS fifos");
}

#[test]
fn pool_rust() {
    runs(&program("rust/pool"), &["4", "500"], "PASS pool");
}

#[test]
fn primes_glibc() {
    runs(&program("glibc/primes"), &["1000000", "4"], "PASS primes");
}

#[test]
fn fpu_musl() {
    runs(&program("musl/fpu"), &["6", "20", "2000"], "PASS fpu");
}

#[test]
fn forkstorm_glibc() {
    runs(&program("glibc/forkstorm"), &["2", "6", "16"], "PASS forkstorm");
}

#[test]
fn signals_musl() {
    runs(&program("musl/signals"), &[] as &[&str], "PASS signals");
}

#[test]
fn signals_glibc() {
    runs(&program("glibc/signals"), &[] as &[&str], "PASS signals");
}

#[test]
fn mapstress_musl() {
    runs(&program("musl/mapstress"), &["15", "3", "8"], "PASS mapstress");
}

#[test]
fn timers_musl() {
    runs(&program("musl/timers"), &["1", "4"], "PASS timers");
}

/// The tests of a test kernel; the program is never started.
fn run_selftests(kernel: &Path) {
    let Some(qemu) = prereq::qemu() else { return };
    let _beside_others = serial::shared();
    let kernel = kernel.to_str().expect("our own path is UTF-8");
    let image = Image::new(&["--kernel", kernel], &program("musl/hello"), &[] as &[&str]);
    for vcpus in VCPUS {
        // Kind 3 (tests finished), 0 failures.
        image.run_tcg(&qemu, vcpus).expect_code(debug_exit(3 << 8)).expect_stdout(" passed, 0 failed");
    }
}

#[test]
fn kernel_tests() {
    run_selftests(selftest::kernel());
}

#[test]
fn kernel_tests_without_the_linux_abi() {
    run_selftests(selftest::kernel_without_linux());
}
