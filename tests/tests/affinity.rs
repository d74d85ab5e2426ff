//! Where the VMM's threads run, read back from the host's /proc; and what is refused before a guest exists.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::{Run, prereq, serial};

/// A guest that has started and lives until its stdin ends.
struct Running(Child);

impl Running {
    fn start(flags: &[&str]) -> Option<Self> {
        let busybox = prereq::busybox()?;
        let mut command = Command::new(taskvisor());
        command.args(["run", "--timeout", "120s"]).args(flags).arg("--").arg(busybox).args([
            "sh",
            "-c",
            "echo ready; cat",
        ]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("taskvisor starts");
        let mut this = Self(child);
        let mut line = String::new();
        let stdout = this.0.stdout.as_mut().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the guest writes a line");
        assert_eq!(line, "ready\n", "again: {command:?}");
        Some(this)
    }

    /// Each thread's name, and a field of its /proc status.
    fn threads(&self, field: &str) -> BTreeMap<String, String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).expect("it lives");
        // KVM's own worker shows up among the threads; it is made by the kernel at the first KVM_RUN.
        let read = |task: fs::DirEntry| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let value = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
                Some(line.trim().to_owned())
            };
            // A thread that is no vCPU's may have any name, and several may have the same.
            let name = value("Name").filter(|name| name.starts_with("vcpu"));
            if value("Name")?.starts_with("kvm-") {
                return None;
            }
            Some((name.unwrap_or_else(|| task.file_name().to_string_lossy().into_owned()), value(field)?))
        };
        tasks.flatten().filter_map(read).collect()
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().expect("our own child");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that fails leaves none behind; one that has ended is only reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first and the last CPU that this process has.
fn two_cpus() -> (u32, u32) {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("and this line").trim();
    let mut numbers = list.split([',', '-']).map(|number| number.parse().expect("a number"));
    let first = numbers.next().expect("one at least");
    (first, numbers.next_back().unwrap_or(first))
}

#[test]
fn pins_are_in_force_and_read_back_from_the_host() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let (a, b) = two_cpus();
    let pins = format!("0={a};1={b};2={a}");
    let flags = ["--vcpus", "3", "--affinity", &pins, "--io-affinity", &b.to_string()];
    let Some(guest) = Running::start(&flags) else { return };
    let cpus = guest.threads("Cpus_allowed_list");
    for (name, cpus) in &cpus {
        let expected = if name == "vcpu0" || name == "vcpu2" { a } else { b };
        assert_eq!(cpus, &expected.to_string(), "thread {name}");
    }
    assert!(["vcpu0", "vcpu1", "vcpu2"].iter().all(|name| cpus.contains_key(*name)), "{cpus:?}");
    assert!(cpus.len() > 3, "the event loop is there too");
    guest.end();
}

#[test]
fn vcpus_without_a_pin_float_beside_pinned_io_threads() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let (first, _) = two_cpus();
    let Some(guest) = Running::start(&["--vcpus", "2", "--io-affinity", &first.to_string()]) else { return };
    let own = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let own = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("and this line").trim();
    let cpus = guest.threads("Cpus_allowed_list");
    assert_eq!((cpus["vcpu0"].as_str(), cpus["vcpu1"].as_str()), (own, own));
    guest.end();
}

#[test]
fn exclusive_vcpus_have_a_cpu_each_or_none_starts() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let available = std::thread::available_parallelism().expect("Linux tells").get();
    let n = available.min(4).to_string();
    if let Some(guest) = Running::start(&["--vcpus", &n, "--exclusive"]) {
        let threads = guest.threads("Cpus_allowed_list");
        let cpus: std::collections::BTreeSet<_> =
            threads.iter().filter(|(name, _)| name.starts_with("vcpu")).map(|(_, cpus)| cpus).collect();
        assert_eq!(cpus.len().to_string(), n, "{cpus:?}");
        assert!(cpus.iter().all(|cpus| cpus.parse::<u32>().is_ok()), "{cpus:?}");
        guest.end();
    }
    let more = (available + 1).to_string();
    let refused = Run::new(taskvisor()).args(["run", "--vcpus", &more, "--exclusive", "--", "/bin/true"]).run();
    refused.expect_code(125).expect_one_line_error().expect_stderr("--exclusive: vCPU");
}

#[test]
fn classes_are_in_force() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let Some(guest) = Running::start(&["--vcpus", "2", "--vcpu-sched", "1=nice:19"]) else { return };
    // Where nothing is said, the class is that of whoever starts it.
    let own = fs::read_to_string("/proc/self/stat").expect("we live");
    let own = own.rsplit_once(") ").and_then(|(_, rest)| rest.split_whitespace().nth(16));
    let tasks = fs::read_dir(format!("/proc/{}/task", guest.0.id())).expect("it lives");
    let stats: Vec<String> =
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok()).collect();
    // Behind the name: field 3 is the state, field 19 the nice value (proc(5)).
    let nice = |name: &str| {
        let stat = stats.iter().find(|stat| stat.contains(&format!("({name})"))).expect("the thread is there");
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split_whitespace().nth(16).map(str::to_owned))
    };
    assert_eq!((nice("vcpu0").as_deref(), nice("vcpu1").as_deref()), (own, Some("19")));
    guest.end();
}

#[test]
fn bad_pins_name_vcpu_cpus_and_cause() {
    for (flags, parts) in [
        (&["--affinity", "0=4000"][..], &["vCPU 0", "CPUs 4000", "offline or doesn't exist"][..]),
        (&["--vcpus", "2", "--affinity", "2=0"], &["--affinity names vCPU 2", "there are vCPUs 0-1"]),
        (&["--affinity", "0=0;0=1"], &["names vCPU 0 twice"]),
        (&["--affinity", "0:0"], &["'=' is missing at character 2"]),
        (&["--io-affinity", "4000"], &["the I/O threads", "CPUs 4000"]),
        (&["--vcpu-sched", "fifo:100"], &["a real-time priority is 1 to 99 at character 6"]),
    ] {
        let run = Run::new(taskvisor()).arg("run").args(flags).args(["--", "/bin/true"]).run();
        run.expect_code(125).expect_one_line_error();
        for part in parts {
            run.expect_stderr(part);
        }
    }
}

#[test]
fn an_ordinary_user_is_told_what_a_real_time_class_takes() {
    let Some(setpriv) = prereq::system_program(&["setpriv"]) else { return };
    if !prereq::root_or_left_out() {
        return;
    }
    // A copy, since the ordinary user may not be allowed into the build's directory.
    let dir = taskvisor_tests::TempDir::new();
    let copy = dir.path().join("taskvisor");
    fs::copy(taskvisor(), &copy).expect("the binary can be copied");
    let run = Run::new(setpriv).args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
    let run = run.args(["run", "--vcpus", "2", "--vcpu-sched", "1=fifo:10", "--", "/bin/true"]).run();
    run.expect_code(125).expect_one_line_error();
    run.expect_stderr("vCPU 1 on CPUs")
        .expect_stderr("can't be fifo:10: no permission")
        .expect_stderr("RLIMIT_RTPRIO of 10");
}

#[test]
fn core_scheduling_works_or_is_refused_with_the_cause() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let Some(busybox) = prereq::busybox() else { return };
    for who in ["vm", "vcpu"] {
        let run = Run::new(taskvisor()).args(["run", "--core-scheduling", who, "--"]).arg(&busybox).arg("true").run();
        if run.code() != 0 {
            run.expect_code(125).expect_one_line_error().expect_stderr("--core-scheduling for");
            assert!(run.stderr.contains("not supported") || run.stderr.contains("no permission"), "{}", run.stderr);
        }
    }
}
