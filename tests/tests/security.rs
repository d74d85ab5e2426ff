//! What the VMM allows itself, read back from the host while a guest runs; runs without privileges; and starts after a VMM that was killed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::run::HARD_LIMIT;
use taskvisor_tests::{Run, TempDir, prereq};

/// An ordinary user without a name here.
const NOBODY: u32 = 65_534;

/// A VMM whose guest sleeps, with every kind of thread that there is.
struct Vmm {
    child: std::process::Child,
    dir: TempDir,
}

impl Vmm {
    fn start(flags: &[&str]) -> Option<Self> {
        let busybox = prereq::busybox().filter(|_| prereq::kvm_or_left_out())?;
        let dir = TempDir::new();
        let mut command = Command::new(taskvisor());
        command.args(["run", "--timeout", "180s", "--vcpus", "2", "--chaos", "1"]).args(flags);
        command.arg("--control").arg(dir.path().join("control"));
        command.arg("--gdb").arg(format!("unix:{}", dir.path().join("gdb").display()));
        command.arg("--trace").arg(dir.path().join("trace.jsonl"));
        command.arg("--").arg(busybox).args(["sleep", "1000"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("taskvisor starts");
        let vmm = Self { child, dir };
        // Whoever answers has confined itself, and was started after the vCPUs.
        until(|| vmm.ctl(&["tasks"]).code() == 0);
        until(|| vmm.threads().len() >= 7);
        Some(vmm)
    }

    fn ctl(&self, args: &[&str]) -> taskvisor_tests::Outcome {
        Run::new(taskvisor()).args(["ctl", "--control"]).arg(self.dir.path().join("control")).args(args).run()
    }

    /// Name, `Seccomp` and `NoNewPrivs` of each thread that is ours; KVM's workers are the kernel's.
    fn threads(&self) -> BTreeMap<String, (String, String)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it lives");
        let status = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        let seen = status.filter_map(|status| {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.map(|value| value.trim().to_owned())
            };
            Some((field("Name")?, (field("Seccomp")?, field("NoNewPrivs")?)))
        });
        seen.filter(|(name, _)| !name.starts_with("kvm-")).collect()
    }

    fn all(&self, seccomp: &str, no_new_privs: &str) -> bool {
        self.threads().values().all(|(filter, privs)| filter == seccomp && privs == no_new_privs)
    }

    /// As nobody can prevent.
    fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn until(seen: impl Fn() -> bool) {
    let deadline = Instant::now() + HARD_LIMIT;
    while !seen() {
        assert!(Instant::now() < deadline, "it never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_thread_has_its_filter_and_none_can_get_privileges() {
    let Some(vmm) = Vmm::start(&[]) else { return };
    // The last to confine itself is the main thread, a moment after the others have begun to answer.
    until(|| vmm.all("2", "1"));
    let threads = vmm.threads();
    for name in ["vcpu0", "vcpu1", "control", "gdb", "gdb-requests", "trace", "chaos"] {
        assert!(threads.contains_key(name), "{name}: {threads:?}");
    }
    // And everything goes on working.
    for question in [&["vcpus"][..], &["pin", "0=0"], &["pause"], &["resume"], &["tsc"], &["metrics"], &["vm"]] {
        vmm.ctl(question).expect_code(0);
    }
    assert!(vmm.all("2", "1"), "threads that wait for the guest too: {:?}", vmm.threads());
}

#[test]
fn filters_can_be_left_out() {
    let Some(vmm) = Vmm::start(&["--seccomp", "off"]) else { return };
    assert!(vmm.all("0", "0"), "{:?}", vmm.threads());
    let Some(vmm) = Vmm::start(&["--seccomp", "log"]) else { return };
    until(|| vmm.all("2", "1"));
}

#[test]
fn a_vmm_that_was_killed_is_in_nobody_s_way() {
    let Some(mut vmm) = Vmm::start(&[]) else { return };
    vmm.kill();
    assert!(vmm.dir.path().join("control").exists(), "nobody was there to remove it");
    let again = Run::new(taskvisor()).args(["run", "--control"]).arg(vmm.dir.path().join("control"));
    let again = again.arg("--gdb").arg(format!("unix:{}", vmm.dir.path().join("gdb").display()));
    let again = again.arg("--trace").arg(vmm.dir.path().join("trace.jsonl"));
    let Some(busybox) = prereq::busybox() else { return };
    again.arg("--").arg(busybox).arg("true").run().expect_code(0);
    assert!(!vmm.dir.path().join("control").exists() && !vmm.dir.path().join("gdb").exists());
}

#[test]
fn an_ordinary_user_who_may_open_kvm_needs_nothing_else() {
    let programs = prereq::system_program(&["setpriv"]).zip(prereq::system_program(&["unshare"]));
    let (Some(_), Some(busybox)) = (programs, prereq::busybox()) else { return };
    if !(prereq::kvm_or_left_out() && prereq::root_or_left_out()) {
        return;
    }
    // Copies in a place of his own: the build's may be closed to him.
    let dir = TempDir::new();
    for (name, source) in [("taskvisor", Path::new(&taskvisor())), ("busybox", busybox.as_path())] {
        fs::copy(source, dir.path().join(name)).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    }
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("we are root");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");
    let path = dir.path().display();
    // A /dev/kvm that everybody may open, in a mount namespace that ends with the run.
    let script = format!(
        "mount -t tmpfs none /mnt && mknod -m 666 /mnt/kvm c 10 232 && mount --bind /mnt/kvm /dev/kvm && exec setpriv \
         --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all --bounding-set=-all \
         {path}/taskvisor run --vcpus 2 --control {path}/control -- {path}/busybox echo as nobody"
    );
    let run = Run::new("unshare").args(["--mount", "sh", "-c", &script]);
    run.limit(HARD_LIMIT).run().expect_code(0).expect_stdout("as nobody");
}
