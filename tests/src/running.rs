//! A guest that runs beside a test, seen and driven through its control socket.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guest::taskvisor;
use crate::run::HARD_LIMIT;
use crate::{Outcome, Run, TempDir, prereq};

/// A guest that runs until the test is done with it.
#[derive(Debug)]
pub struct Running {
    vmm: Child,
    dir: TempDir,
}

impl Running {
    /// Two shells that compute and a program that sleeps, on `vcpus` vCPUs; comes back when all of them are there.
    pub fn start(vcpus: u32) -> Option<Self> {
        Self::start_with(vcpus, |_| Vec::new())
    }

    /// The same with more flags, which may name files in the guest's own temporary folder.
    pub fn start_with(vcpus: u32, flags: impl FnOnce(&Path) -> Vec<OsString>) -> Option<Self> {
        let busybox = prereq::busybox()?;
        let script = "sleep 1000 & (while :; do :; done) & while :; do :; done";
        let running = Self::of(vcpus, flags, &busybox, &["sh", "-c", script])?;
        running.until_there(|list| {
            let sleepers = find(list, "sleep");
            sleepers.len() == 1 && sleepers[0]["state"] == "blocked" && find(list, "busybox").len() == 2
        });
        Some(running)
    }

    /// A program of one's own; comes back before it has done anything.
    pub fn of(vcpus: u32, flags: impl FnOnce(&Path) -> Vec<OsString>, program: &Path, args: &[&str]) -> Option<Self> {
        prereq::kvm_or_left_out().then_some(())?;
        let dir = TempDir::new();
        let mut command = Command::new(taskvisor());
        command
            .args(["run", "--timeout", "180s", "--vcpus", &vcpus.to_string(), "--control"])
            .arg(dir.path().join("control"));
        command.args(flags(dir.path())).arg("--").arg(program).args(args);
        let vmm = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        Some(Self { vmm, dir })
    }

    /// Waits until the guest has come so far that its tasks are as `there` wants them. The socket may not be there yet.
    #[track_caller]
    pub fn until_there(&self, there: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + HARD_LIMIT;
        loop {
            let outcome = self.ctl(["tasks", "--json"]);
            if outcome.code() == 0
                && let Some(list) = serde_json::from_str(&outcome.text()).ok().filter(&there)
            {
                return list;
            }
            assert!(Instant::now() < deadline, "the guest's tasks did not come: {}", outcome.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// Runs `taskvisor ctl` with these arguments.
    pub fn ctl<const N: usize>(&self, args: [&str; N]) -> Outcome {
        self.ctl_all(&args)
    }

    /// As [`Running::ctl`], with any number of them.
    pub fn ctl_all(&self, args: &[&str]) -> Outcome {
        let run = Run::new(taskvisor()).arg("ctl").arg("--control").arg(self.socket()).args(args);
        run.limit(HARD_LIMIT).run()
    }

    /// What `ctl` prints, parsed.
    pub fn json<const N: usize>(&self, args: [&str; N]) -> Value {
        let outcome = self.ctl(args);
        outcome.expect_code(0);
        serde_json::from_str(&outcome.text()).expect("ctl --json prints JSON")
    }
}

impl Running {
    /// Process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.vmm.id()
    }

    /// Waits for the VMM's end, which something else brings about; its exit code, or 128 and the signal that ended it.
    pub fn wait(&mut self) -> i32 {
        let status = self.wait_status();
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).expect("it has ended")
    }

    /// The same, with what ended it told apart.
    pub fn wait_status(&mut self) -> ExitStatus {
        self.vmm.wait().expect("our own child")
    }

    /// Asks over and over until `seen` is content with what `ctl` prints. For what has no event to wait for.
    #[track_caller]
    pub fn until<const N: usize>(&self, args: [&str; N], seen: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + HARD_LIMIT;
        loop {
            let now = self.json(args);
            if seen(&now) {
                return now;
            }
            assert!(Instant::now() < deadline, "{args:?} never came to show it: {now:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.vmm.try_wait().is_ok_and(|ended| ended.is_none()) {
            // SAFETY: our own child, which has not been waited for.
            unsafe { libc::kill(self.vmm.id() as i32, libc::SIGTERM) };
            let _ = self.vmm.wait();
        }
        if !std::thread::panicking() {
            assert!(!self.socket().exists(), "the socket's file should go with the VMM");
        }
    }
}

/// The tasks of this name in a list.
pub fn find<'a>(tasks: &'a Value, name: &str) -> Vec<&'a Value> {
    tasks.as_array().into_iter().flatten().filter(|task| task["name"] == name).collect()
}
