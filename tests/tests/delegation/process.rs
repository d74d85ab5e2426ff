//! Agents in processes of their own: `taskvisor agent`, one in C, and what becomes of tasks when such a process is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::running::find;
use taskvisor_tests::{TempDir, on_1_2_and_4_vcpus, prereq, serial};

use super::PIPELINE;

/// Longer than anything that is waited for on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);
/// The kernel says so when tasks wait for an agent.
const DECIDES: &str = "enclave: an agent decides";
/// A shell that runs the pipeline for each line that it reads.
const ON_DEMAND: &str = "while read line; do seq 1 500 | sort -rn | md5sum; done";

/// Lines of a stream, read by a thread of its own so that waiting for one has a limit.
struct Lines(Receiver<String>, Vec<String>);

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self(receiver, Vec::new())
    }

    /// The next line with this text; those before it are passed over.
    #[track_caller]
    fn until(&mut self, text: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => self.1.push(line),
                Err(error) => panic!("{error}: there is no {text:?} in:\n{}", self.1.join("\n")),
            }
        }
    }

    /// All that is left.
    fn rest(mut self) -> String {
        loop {
            match self.0.recv_timeout(LIMIT) {
                Ok(line) => self.1.push(line),
                Err(RecvTimeoutError::Disconnected) => return self.1.join("\n"),
                Err(RecvTimeoutError::Timeout) => panic!("the stream doesn't end:\n{}", self.1.join("\n")),
            }
        }
    }
}

/// A process that is ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn new(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts"))
    }

    /// How it ended, and what it wrote to stderr.
    fn end(mut self) -> (Option<i32>, String) {
        let stderr = Lines::of(self.0.stderr.take().expect("piped"));
        (self.0.wait().expect("a child").code(), stderr.rest())
    }
}

/// A guest that waits for agents.
struct Hosted {
    vmm: Process,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    stderr: Lines,
    dir: TempDir,
}

impl Hosted {
    fn start(vcpus: u32, program: &Path, args: &[&str]) -> Self {
        Self::start_with(vcpus, &[], program, args)
    }

    fn start_with(vcpus: u32, flags: &[&str], program: &Path, args: &[&str]) -> Self {
        let dir = TempDir::new();
        let mut command = Command::new(taskvisor());
        command.args(["run", "--timeout", "300s", "--log-level", "info", "--stats", "--delegate-timeout", "60s"]);
        command.args(["--vcpus", &vcpus.to_string(), "--control"]).arg(dir.path().join("control"));
        command.args(flags).arg("--delegate");
        command.arg(format!("external:{}", dir.path().join("agent").display())).arg("--").arg(program).args(args);
        let mut vmm = Process::new(&mut command);
        let stdin = vmm.0.stdin.take();
        let stdout: ChildStdout = vmm.0.stdout.take().expect("piped");
        let stderr = Lines::of(vmm.0.stderr.take().expect("piped"));
        let hosted = Self { vmm, stdin, stdout: Lines::of(stdout), stderr, dir };
        let deadline = Instant::now() + LIMIT;
        while !hosted.socket().exists() {
            assert!(Instant::now() < deadline, "there is no socket");
            thread::sleep(Duration::from_millis(10));
        }
        hosted
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn agent(&self, policy: &str) -> Process {
        Process::new(Command::new(taskvisor()).args(["agent", "--stats", "--attach"]).arg(self.socket()).arg(policy))
    }

    /// Has the guest's shell scheduled otherwise.
    fn set_policy(&self, policy: &str) {
        let ctl = |words: &[&str]| {
            let run = taskvisor_tests::Run::new(taskvisor()).arg("ctl").args(words.iter().copied());
            let outcome = run.env("TASKVISOR_CONTROL", self.dir.path().join("control")).run();
            outcome.expect_code(0);
            outcome.text().to_owned()
        };
        let tasks = serde_json::from_str(&ctl(&["tasks", "--json"])).expect("ctl writes JSON");
        let shells = find(&tasks, "busybox");
        let id = shells.first().expect("the shell reads")["id"].to_string();
        ctl(&["set", &id, "--policy", policy]);
    }

    /// Has the shell run its pipeline; what that wrote.
    #[track_caller]
    fn answer(&mut self) -> String {
        self.stdin.as_mut().expect("not closed").write_all(b"go\n").expect("the guest reads");
        self.stdout.until("  -")
    }

    /// The shell finds the end of its input. What the VMM and its guest wrote to stderr.
    #[track_caller]
    fn end(mut self) -> String {
        drop(self.stdin.take());
        let code = self.vmm.0.wait().expect("a child").code();
        let text = self.stderr.rest();
        assert_eq!(code, Some(0), "{text}");
        text
    }
}

/// What the pipeline writes on the host.
fn on_host(busybox: &Path, script: &str) -> String {
    let host = taskvisor_tests::Run::new(busybox).args(["sh", "-c", script]).stdin("go\n").run();
    String::from_utf8(host.stdout).expect("md5sum writes text").trim_end().to_owned()
}

/// One of the figures of an agent's own.
#[track_caller]
fn figure(stats: &str, name: &str) -> u64 {
    let line = stats.lines().find_map(|line| line.strip_prefix("stats: agent "));
    let value = line.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no figure {name} in {stats:?}"))
}

on_1_2_and_4_vcpus! {
    fn a_pipeline_under_a_process(guest: Guest) {
        let Some(busybox) = prereq::busybox() else { return };
        let mut hosted = Hosted::start(guest.vcpus(), &busybox, &["sh", "-c", ON_DEMAND]);
        let agent = hosted.agent("fifo");
        hosted.stderr.until(DECIDES);
        assert_eq!(hosted.answer(), on_host(&busybox, ON_DEMAND));
        let told = hosted.end();
        let (code, stats) = agent.end();
        assert_eq!(code, Some(0), "{stats}");
        assert!(!told.contains("enclave: agent") && told.contains("stats: agents attached=1 refused=0"), "{told}");
        let (decisions, interrupts) = (figure(&stats, "decisions"), figure(&stats, "interrupts"));
        assert!(figure(&stats, "commits") > 0, "{stats}");
        assert!(interrupts <= decisions + 1, "a decision costs one interrupt at most, and coming one: {stats}");
    }
}

/// One that preempts, and one that looks at what the host does.
#[test]
fn other_policies_in_a_process() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    for policy in ["shinjuku:5000", "steal"] {
        let mut hosted = Hosted::start(2, &busybox, &["sh", "-c", ON_DEMAND]);
        let agent = hosted.agent(policy);
        hosted.stderr.until(DECIDES);
        assert_eq!(hosted.answer(), on_host(&busybox, ON_DEMAND), "{policy}");
        hosted.end();
        let (code, stats) = agent.end();
        assert!(code == Some(0) && figure(&stats, "commits") > 0, "{policy}: {stats}");
    }
}

/// A second agent is refused; the first one is killed while tasks wait for it, and they run on, first by the kernel, then under a third one.
#[test]
fn an_agent_that_is_killed_is_noticed_and_another_takes_over() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let wanted = on_host(&busybox, ON_DEMAND);
    let mut hosted = Hosted::start(2, &busybox, &["sh", "-c", ON_DEMAND]);
    let mut first = hosted.agent("fifo");
    hosted.stderr.until(DECIDES);
    assert_eq!(hosted.answer(), wanted);

    let (code, refused) = hosted.agent("fifo").end();
    assert_eq!(code, Some(125));
    let occupied = format!("the enclave has an agent already: process {}", first.0.id());
    assert!(refused.contains(&occupied), "{refused}");

    first.0.kill().expect("our child");
    let gone = hosted.stderr.until("has gone");
    assert!(gone.contains(&format!("process {}", first.0.id())), "{gone}");
    assert_eq!(hosted.answer(), wanted, "when nobody decides");
    hosted.stderr.until("enclave: no agent any more; its tasks run on as ordinary ones");

    let third = hosted.agent("percpu");
    hosted.stderr.until(DECIDES);
    assert_eq!(hosted.answer(), wanted);
    let told = hosted.end();
    assert!(told.contains("stats: agents attached=2 refused=1"), "{told}");
    let (code, stats) = third.end();
    assert!(code == Some(0) && figure(&stats, "commits") > 0, "{stats}");
}

/// Where nobody listens.
#[test]
fn a_process_without_a_guest_says_why() {
    let dir = TempDir::new();
    let nowhere = dir.path().join("nowhere");
    let mut command = Command::new(taskvisor());
    let (code, told) = Process::new(command.args(["agent", "--attach"]).arg(&nowhere).arg("fifo")).end();
    assert_eq!(code, Some(125));
    assert!(told.contains("can't connect to") && told.contains("--delegate external:"), "{told}");
}

/// resources/agents/fifo.c, which knows nothing of this project but a header.
#[test]
fn an_agent_in_c_decides_for_a_guest() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let mut hosted = Hosted::start(2, &busybox, &["sh", "-c", PIPELINE_AFTER_A_LINE]);
    let program = hosted.dir.path().join("fifo");
    let resources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources");
    let built = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(resources.join("include"))
        .arg("-o")
        .arg(&program)
        .args(["fifo.c", "attach.c"].map(|file| resources.join("agents").join(file)))
        .output()
        .expect("a C compiler; Rust links with one");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let agent = Process::new(Command::new(program).arg(hosted.socket()));
    hosted.stderr.until(DECIDES);
    assert_eq!(hosted.answer(), on_host(&busybox, PIPELINE));
    let told = hosted.end();
    assert!(!told.contains("enclave: agent"), "{told}");
    assert_eq!(agent.end(), (Some(0), String::new()));
}

/// With --delegate-all=false nothing is delegated, until somebody says so; what it starts then is, too. It leaves the class the same way.
#[test]
fn a_task_enters_the_class_and_leaves_it() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let wanted = on_host(&busybox, ON_DEMAND);
    for enters in [false, true] {
        let mut hosted = Hosted::start_with(2, &["--delegate-all=false"], &busybox, &["sh", "-c", ON_DEMAND]);
        let agent = hosted.agent("fifo");
        hosted.stderr.until(DECIDES);
        assert_eq!(hosted.answer(), wanted);
        if enters {
            hosted.set_policy("delegated");
            assert_eq!(hosted.answer(), wanted);
            hosted.set_policy("other");
        }
        assert_eq!(hosted.answer(), wanted);
        hosted.end();
        let (code, stats) = agent.end();
        assert!(code == Some(0) && (figure(&stats, "commits") > 0) == enters, "{stats}");
    }
}

/// resources/agents/newest.rs: a policy of one's own, in Rust.
#[test]
fn an_agent_of_one_s_own_in_rust_decides_for_a_guest() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let mut hosted = Hosted::start(2, &busybox, &["sh", "-c", ON_DEMAND]);
    let agent = Process::new(Command::new(env!("CARGO_BIN_EXE_newest-agent")).arg(hosted.socket()));
    hosted.stderr.until(DECIDES);
    assert_eq!(hosted.answer(), on_host(&busybox, ON_DEMAND));
    hosted.end();
    let (code, stats) = agent.end();
    assert!(code == Some(0) && figure(&stats, "commits") > 0, "{stats}");
}

/// The same pipeline as the VMM's agents have, when the test says so.
const PIPELINE_AFTER_A_LINE: &str = "read line; seq 1 2000 | sort -rn | md5sum";
