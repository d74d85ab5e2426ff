//! Debian's static busybox and bash, unmodified, on 1, 2 and 4 vCPUs; their output must be the host's, byte for byte.

use std::path::Path;
use std::time::Duration;

use taskvisor_tests::{Guest, TempDir, on_1_2_and_4_vcpus, prereq, serial};

/// A hundred lines of ordinary shell.
const POSIX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/posix.sh");
/// Two hundred applets of busybox, one after the other.
const APPLETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/applets.sh");

/// Runs a script by `shell` in the guest and on the host, with the same paths for script and tools in both.
fn run_script(guest: Guest, shell: &Path, shell_args: &[&str], script: &str) {
    let Some(busybox) = prereq::busybox() else { return };
    let work = TempDir::new();
    let host = taskvisor_tests::Run::new(shell)
        .args(shell_args)
        .arg(script)
        .env("BUSYBOX", &busybox)
        .env("WORK", work.path())
        .run();
    host.expect_code(0).expect_stdout("done");
    let guest = guest
        .file(Path::new(script), "/script.sh")
        .file(&busybox, "/bin/busybox")
        .env("BUSYBOX", "/bin/busybox")
        .env("WORK", "/tmp")
        .run(shell, shell_args.iter().copied().chain(["/script.sh"]));
    guest.expect_same_output(&host).expect_code(0);
}

on_1_2_and_4_vcpus! {
    fn busybox_pipeline(guest: Guest) {
        let Some(busybox) = prereq::busybox() else { return };
        guest.same_as_host(&busybox, &["sh", "-c", "seq 1 20000 | sort -rn | md5sum"]).expect_code(0);
    }
    fn busybox_script(guest: Guest) {
        let Some(busybox) = prereq::busybox() else { return };
        run_script(guest, &busybox, &["sh"], POSIX);
    }
    fn bash_script(guest: Guest) {
        let Some(bash) = prereq::bash() else { return };
        run_script(guest, &bash, &[], POSIX);
    }
    fn bash_command(guest: Guest) {
        let Some(bash) = prereq::bash() else { return };
        let command = r#"declare -A m=([a]=1 [b]=2); for k in a b; do echo "$k ${m[$k]}"; done; coproc cat; echo x >&${COPROC[1]}
            read -r -u ${COPROC[0]} line; echo "coproc $line"; mapfile -t lines < <(printf 'p\nq\n'); echo "${#lines[@]} ${lines[1]}""#;
        // `cat` for the coprocess: busybox under that name.
        let Some(busybox) = prereq::busybox() else { return };
        let bin = TempDir::new();
        std::os::unix::fs::symlink(&busybox, bin.path().join("cat")).expect("a link in our own directory");
        let host = taskvisor_tests::Run::new(&bash).args(["-c", command]).env("PATH", bin.path()).run();
        let guest = guest.file(&busybox, "/bin/cat").env("PATH", "/bin").run(&bash, ["-c", command]);
        guest.expect_same_output(&host).expect_code(0);
    }
    fn exec_chain(guest: Guest) {
        let Some(busybox) = prereq::busybox() else { return };
        guest.same_as_host(&busybox, &["sh", "-c", "exec busybox sh -c 'exec busybox echo at the end'"]).expect_code(0);
    }
}

/// On 2 vCPUs only: where ring 0 is interpreted, it takes the better part of a minute. `qemu.rs` has the others.
#[test]
fn busybox_applets() {
    let Some(busybox) = prereq::busybox() else { return };
    if prereq::kvm_or_left_out() {
        let _beside_others = serial::shared();
        // Only a hang takes that long.
        run_script(Guest::new(2).timeout(Duration::from_secs(600)), &busybox, &["sh"], APPLETS);
    }
}
