//! `taskvisor run` and the same program on the host.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::run::{Outcome, Run};

/// The binary under test: TASKVISOR_BIN, else built now, so that `cargo test` alone never tests an old one.
pub fn taskvisor() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(path) = std::env::var_os("TASKVISOR_BIN").map(PathBuf::from).filter(|path| path.is_file()) {
            return path;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
        let output = Command::new(env!("CARGO"))
            .args(["build", "--release", "--quiet", "-p", "taskvisor", "--bin", "taskvisor", "--message-format=json"])
            .current_dir(root)
            .stderr(std::process::Stdio::inherit())
            .output()
            .expect("cargo runs, it runs this test");
        assert!(output.status.success(), "the binary under test does not build");
        let executable = String::from_utf8_lossy(&output.stdout).lines().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            (message["target"]["name"] == "taskvisor").then_some(())?;
            message["executable"].as_str().map(PathBuf::from)
        });
        executable.expect("cargo tells where the binary is")
    })
}

/// An example program of resources/programs, by variant and name, such as `musl/fpu`.
pub fn program(name: &str) -> PathBuf {
    let path = Path::new(taskvisor_resources::PROGRAMS_DIR).join(name);
    assert!(
        path.is_file(),
        "{} is missing: its compiler was not there at build time; run `make setup`",
        path.display()
    );
    path
}

/// One run of `taskvisor run`.
#[derive(Debug, Clone)]
pub struct Guest {
    vcpus: u32,
    memory: String,
    timeout: Duration,
    flags: Vec<OsString>,
    stdin: Vec<u8>,
    env: Vec<(String, String)>,
}

impl Guest {
    /// A guest with this many vCPUs and enough memory for any test program.
    pub fn new(vcpus: u32) -> Self {
        Self {
            vcpus,
            memory: "512M".into(),
            // Only a hang takes that long. Where ring 0 is interpreted, a new process costs some 200 ms, and the shell scripts
            // start a hundred while other tests run beside them.
            timeout: Duration::from_secs(600),
            flags: Vec::new(),
            stdin: Vec::new(),
            env: Vec::new(),
        }
    }

    /// How many vCPUs it has.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Sets the size of its memory, as the flag takes it.
    pub fn memory(mut self, size: &str) -> Self {
        self.memory = size.into();
        self
    }

    /// Sets the limit that the VMM itself is told.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Adds a flag of `taskvisor run`.
    pub fn flag(mut self, flag: impl AsRef<OsStr>) -> Self {
        self.flags.push(flag.as_ref().to_owned());
        self
    }

    /// Puts a host file into the guest.
    pub fn file(self, host: &Path, guest: &str) -> Self {
        self.flag("--file").flag(format!("{}:{guest}", host.display()))
    }

    /// What the program reads.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Sets a variable of the program's environment, in the guest and on the host.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The command line up to the program.
    pub fn command(&self) -> Run {
        let mut run = Run::new(taskvisor())
            .args(["run", "--vcpus", &self.vcpus.to_string(), "--memory", &self.memory])
            .args(["--timeout", &format!("{}s", self.timeout.as_secs())])
            .args(&self.flags);
        for (name, value) in &self.env {
            run = run.arg("--env").arg(format!("{name}={value}"));
        }
        run.stdin(self.stdin.clone()).limit(self.timeout + Duration::from_secs(15))
    }

    /// Runs a program in the guest.
    pub fn run<T: AsRef<OsStr>>(&self, program: &Path, args: impl IntoIterator<Item = T>) -> Outcome {
        self.command().arg("--").arg(program).args(args).run()
    }

    /// Runs a program that never ends into `--timeout`, which leaves it the time to print `text`: the time that starting a guest takes
    /// depends on what else the machine does.
    pub fn run_into_timeout<T: AsRef<OsStr> + Clone>(&self, program: &Path, args: &[T], text: &str) -> Outcome {
        const LONGEST: u64 = 64;
        let mut seconds = 1;
        loop {
            let outcome = self.clone().timeout(Duration::from_secs(seconds)).run(program, args);
            if seconds >= LONGEST || outcome.text().contains(text) {
                return outcome;
            }
            seconds *= 2;
        }
    }

    /// Runs it in the guest and on the host; output and exit code must be the same. Returns the guest's run.
    #[track_caller]
    pub fn same_as_host<T: AsRef<OsStr> + Clone>(&self, program: &Path, args: &[T]) -> Outcome {
        let mut host = Run::new(program).args(args).stdin(self.stdin.clone()).limit(self.timeout);
        for (name, value) in &self.env {
            host = host.env(name, value);
        }
        let host = host.run();
        let guest = self.run(program, args);
        guest.expect_same_output(&host).expect_code(host.code());
        guest
    }
}
