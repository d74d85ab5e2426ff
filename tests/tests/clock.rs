//! The guest's clocks: what programs read, measured from inside against the host's; live changes; pauses; what is refused.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use taskvisor_tests::guest::{Guest, program, taskvisor};
use taskvisor_tests::{Outcome, Run, TempDir, on_1_2_and_4_vcpus, prereq, serial};

on_1_2_and_4_vcpus! {
    /// Both ways of reading a clock, getcpu, and no clock that runs backwards between threads.
    fn clocks_musl(guest: Guest) {
        guest.same_as_host(&program("musl/clocks"), &["20000", "4"]).expect_stdout("PASS");
    }
    fn clocks_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/clocks"), &["20000", "4"]).expect_stdout("PASS");
    }
    fn clocks_while_time_is_slow(guest: Guest) {
        guest.flag("--clock-rate").flag("0.1").run(&program("musl/clocks"), ["20000", "4"]).expect_stdout("PASS");
    }
    fn timers_are_not_early_while_time_is_slow(guest: Guest) {
        guest.flag("--clock-rate").flag("0.5").run(&program("musl/timers"), ["1", "4"]).expect_stdout("PASS");
    }
}

/// A million reads of the clock, and not one of them a system call.
#[test]
fn reading_the_clock_is_no_system_call() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    for variant in ["musl/clocks", "glibc/clocks"] {
        let outcome = Guest::new(2).flag("--stats").run(&program(variant), ["500000", "2"]);
        outcome.expect_stdout("PASS");
        let calls = outcome.stderr.lines().find_map(|line| line.strip_prefix("stats: syscall clock_gettime "));
        let calls: u32 = calls.map_or(0, |n| n.trim().parse().expect("a number"));
        // The program itself makes 200 to compare, and one for CPU time and one for a clock that isn't there.
        assert!((200..=202).contains(&calls), "{variant}: {calls} system calls; again: {}", outcome.typed);
    }
}

/// What `tsc verify` found.
fn verify(flags: &[&str]) -> (Outcome, Value) {
    let outcome = Run::new(taskvisor()).args(["tsc", "verify", "--json", "--window", "3s"]).args(flags).run();
    let report = serde_json::from_slice(&outcome.stdout).unwrap_or(Value::Null);
    (outcome, report)
}

#[test]
fn what_was_asked_for_is_what_a_program_measures() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    // Alone: the host's clock and the guest's are read within a round trip of each other.
    let _alone = serial::alone();
    for flags in [
        &["--vcpus", "2"][..],
        &["--clock-rate", "0.5"],
        &["--clock-rate", "2"],
        &["--tsc-khz", "1000000", "--tsc-mode", "virtual"],
        &["--vcpus", "2", "--tsc-offset", "1=5ms", "--tsc-mode", "virtual"],
        &["--vcpus", "2", "--tsc-offset", "0=1s;1=-40us", "--clock-rate", "3", "--tsc-khz", "7000000"],
    ] {
        let (outcome, report) = verify(flags);
        outcome.expect_code(0);
        assert_eq!(report["holds"], true, "{report:#}\nagain: {}", outcome.typed);
        let rows = report["rows"].as_array().expect("it has figures");
        for row in rows.iter().filter(|row| row["unit"] != "ns") {
            let (error, uncertainty) = (row["error"].as_f64().expect("a number"), row["uncertainty"].as_f64());
            assert!(error.abs() < 500.0, "{row:#} with {uncertainty:?}\nagain: {}", outcome.typed);
        }
        assert_eq!(rows.iter().any(|row| row["unit"] == "ns"), flags.contains(&"--vcpus"), "{report:#}");
    }
}

#[test]
fn what_can_not_be_had_is_refused_with_the_reason() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let run = |flags: &[&str]| {
        Run::new(taskvisor()).arg("run").args(flags).arg("--").arg(program("musl/hello")).arg("0").run()
    };
    let doctor = Run::new(taskvisor()).args(["doctor", "--json"]).run();
    let doctor: Value = serde_json::from_slice(&doctor.stdout).expect("doctor prints JSON");
    let text = doctor.to_string();
    // Where the CPU scales, native is no error.
    if !text.contains("slower works; faster works") {
        let outcome = run(&["--tsc-mode", "native", "--tsc-khz", "1234567"]);
        outcome.expect_code(125);
        for part in ["1234567 kHz", "measured from inside a guest", "--tsc-mode virtual"] {
            assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
        }
    }
    for (flags, part) in [
        (&["--clock-rate", "0.001"][..], "0.01 to 100"),
        (&["--clock-rate", "fast"], "decimal number"),
        (&["--tsc-offset", "2=1ms", "--vcpus", "2"], "there is no vCPU 2"),
        (&["--tsc-offset", "1 h"], "is no offset"),
        (&["--tsc-khz", "0"], "--tsc-khz"),
        (&["--clock-rate", "2", "--chaos", "1"], "--clock-rate and --chaos"),
    ] {
        let outcome = run(flags);
        outcome.expect_code(125);
        assert!(outcome.stderr.contains(part), "{flags:?}: {}", outcome.stderr);
    }
}

/// A guest whose program answers questions about its clocks.
struct Clocks {
    vmm: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    dir: TempDir,
}

impl Clocks {
    fn start(flags: &[&str]) -> Self {
        let dir = TempDir::new();
        let mut command = Command::new(taskvisor());
        command.args(["run", "--timeout", "180s", "--control"]).arg(dir.path().join("control")).args(flags);
        command.arg("--").arg(program("musl/clocks")).arg("serve");
        let mut vmm = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("taskvisor starts");
        let questions = vmm.stdin.take();
        let answers = BufReader::new(vmm.stdout.take().expect("it is piped"));
        let mut clocks = Self { vmm, questions, answers, dir };
        assert_eq!(clocks.line(), "ready", "again: {command:?}");
        clocks
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the guest answers");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, what: u8) -> String {
        self.questions.as_mut().expect("until the end").write_all(&[what]).expect("the guest reads");
        self.line()
    }

    /// The monotonic clock.
    fn now(&mut self) -> Duration {
        let line = self.ask(b'r');
        let nanos = line.split(' ').nth(1).and_then(|n| n.parse().ok());
        Duration::from_nanos(nanos.unwrap_or_else(|| panic!("no reading: {line}")))
    }

    /// How often a thread that wanders over the CPUs has seen time run backwards.
    fn backwards(&mut self) -> u64 {
        let line = self.ask(b'b');
        line.strip_prefix("backwards ").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no count: {line}"))
    }

    /// vCPU 1's offset to vCPU 0, and how exact that is.
    fn offset(&mut self) -> (i64, i64) {
        let line = self.ask(b'o');
        let numbers: Vec<i64> = line.split(' ').skip(1).map(|n| n.parse().expect("a number")).collect();
        assert_eq!((numbers.len(), self.line().as_str()), (3, "offsets"), "{line}");
        (numbers[1], numbers[2])
    }

    fn ctl(&self, args: &[&str]) -> Outcome {
        Run::new(taskvisor()).arg("ctl").arg("--control").arg(self.dir.path().join("control")).args(args).run()
    }

    fn end(mut self) {
        drop(self.questions.take());
        let status = self.vmm.wait().expect("our own child");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Clocks {
    fn drop(&mut self) {
        // A test that fails leaves none behind; one that has ended is only reaped.
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

#[test]
fn live_changes_are_monotonic_unless_a_step_back_is_asked_for() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let mut guest = Clocks::start(&["--vcpus", "2"]);
    assert_eq!(guest.backwards(), 0);
    for rate in ["0.01", "100", "0.5", "3.25", "1"] {
        guest.ctl(&["tsc", "--rate", rate]).expect_code(0);
        let status: Value = serde_json::from_str(&guest.ctl(&["tsc", "--json"]).text()).expect("JSON");
        assert_eq!(status["rate"].as_f64(), rate.parse().ok(), "{status:#}");
        assert_eq!(guest.backwards(), 0, "at rate {rate}");
    }
    let before = guest.now();
    guest.ctl(&["tsc", "--step-forward", "5000000000"]).expect_code(0);
    assert!(guest.now() >= before + Duration::from_secs(5));
    assert_eq!(guest.backwards(), 0);
    let refused = guest.ctl(&["tsc", "--offset=-1000000"]);
    assert_ne!(refused.code(), 0, "a clock would run backwards");
    assert_eq!(guest.backwards(), 0);
    let before = guest.now();
    guest.ctl(&["tsc", "--step-backward", "4000000000"]).expect_code(0);
    assert!(guest.now() < before, "four seconds back");
    guest.end();
}

#[test]
fn offsets_are_equal_after_boot_and_after_a_pause_and_as_set_live() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _alone = serial::alone();
    let mut guest = Clocks::start(&["--vcpus", "2"]);
    for pause in [false, true] {
        if pause {
            guest.ctl(&["pause"]).expect_code(0);
            guest.ctl(&["resume"]).expect_code(0);
        }
        let (nanos, within) = guest.offset();
        assert!(nanos.abs() <= within + 1_000, "{nanos} +- {within} ns, after a pause: {pause}");
    }
    guest.ctl(&["tsc", "--vcpu", "1", "--offset", "3000000"]).expect_code(0);
    let (nanos, within) = guest.offset();
    assert!((nanos - 3_000_000).abs() <= within + 1_000, "{nanos} +- {within} ns");
    guest.end();
}

#[test]
fn a_pause_stops_virtual_time_or_not_as_asked() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    /// Long beside what a request takes, so that it can be told from none.
    const PAUSE: Duration = Duration::from_millis(500);
    for (mode, stops) in [("stop", true), ("run", false)] {
        let mut guest = Clocks::start(&["--clock-on-pause", mode]);
        let start = Instant::now();
        let before = guest.now();
        guest.ctl(&["pause"]).expect_code(0);
        let paused = Instant::now();
        let status: Value = serde_json::from_str(&guest.ctl(&["tsc", "--json"]).text()).expect("JSON");
        assert_eq!((&status["stopped"], &status["on_pause"]), (&stops.into(), &mode.into()), "{status:#}");
        thread::sleep(PAUSE);
        let lasted = paused.elapsed();
        guest.ctl(&["resume"]).expect_code(0);
        let passed = guest.now() - before;
        if stops {
            // Both readings lie within this; a thousandth for the difference of the clocks.
            let outside = (start.elapsed() - lasted).mul_f64(1.001);
            assert!(passed <= outside, "{passed:?} passed in {outside:?} beside a pause of {lasted:?}");
        } else {
            assert!(passed >= lasted.mul_f64(0.999), "{passed:?} passed in a pause of {lasted:?}");
        }
        guest.end();
    }
}

/// gdb and readelf take the vDSO for what it says it is.
#[test]
fn the_vdso_is_an_object_that_tools_understand() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let Some(readelf) = prereq::system_program(&["readelf"]) else { return };
    let _beside_others = serial::shared();
    let dir = TempDir::new();
    let image = Guest::new(1).run(&program("musl/clocks"), ["vdso"]);
    image.expect_code(0);
    let path = dir.path().join("vdso.so");
    fs::write(&path, &image.stdout).expect("a file of our own");
    let read = Run::new(readelf).args(["--all", "--wide", "--debug-dump=frames"]).arg(&path).run();
    read.expect_code(0);
    assert!(!read.stderr.contains("arning") && !read.stderr.contains("rror"), "{}", read.stderr);
    for part in [
        "linux-vdso.so.1",
        "__vdso_clock_gettime@@LINUX_2.6",
        "__vdso_getcpu@@LINUX_2.6",
        "DW_CFA_def_cfa: r7 (rsp) ofs 8",
    ] {
        assert!(read.text().contains(part), "{part} is not in {}", read.text());
    }
    let Some(gdb) = prereq::system_program(&["gdb"]) else { return };
    let read = Run::new(gdb)
        .args(["--batch", "-ex", "info functions __vdso", "-ex", "disassemble __vdso_getcpu"])
        .arg(&path)
        .run();
    read.expect_code(0);
    for part in ["__vdso_clock_gettime", "__vdso_taskvisor_tsc", "End of assembler dump"] {
        assert!(read.text().contains(part), "{part} is not in {}", read.text());
    }
}
