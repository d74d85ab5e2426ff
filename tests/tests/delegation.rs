//! Programs whose tasks an agent schedules: the VMM's own, by every policy, and what becomes of them when it is thrown out or scribbles.

#[path = "delegation/process.rs"]
mod process;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use taskvisor_tests::checked::run_checked;
use taskvisor_tests::guest::{program, taskvisor};
use taskvisor_tests::{Guest, Outcome, TempDir, on_1_2_and_4_vcpus, prereq, serial};
/// A hundred lines of ordinary shell.
const POSIX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/posix.sh");
/// Longer than any wait on a loaded machine: what is tested is who decides, not how fast.
const PATIENCE: [&str; 2] = ["--delegate-timeout", "60s"];

fn delegated(guest: Guest, policy: &str) -> Guest {
    let guest = PATIENCE.into_iter().fold(guest, Guest::flag);
    guest.flag("--delegate").flag(policy).flag("--stats")
}

/// One of the figures that `--stats` tells of the agent.
fn figure(outcome: &Outcome, name: &str) -> u64 {
    let line = outcome.stderr.lines().find_map(|line| line.strip_prefix("stats: agent "));
    let value = line.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')));
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| outcome.fail(&format!("no figure {name} of the agent")))
}

/// The agent decided to the end.
fn expect_delegated(outcome: &Outcome) {
    if figure(outcome, "commits") == 0 || outcome.stderr.contains("enclave: agent") {
        outcome.fail("the agent didn't decide to the end");
    }
}

on_1_2_and_4_vcpus! {
    fn a_pipeline(guest: Guest) {
        let Some(busybox) = prereq::busybox() else { return };
        let host = taskvisor_tests::Run::new(&busybox).args(["sh", "-c", PIPELINE]).run();
        let (outcome, _) = run_checked(delegated(guest, "fifo"), &busybox, ["sh", "-c", PIPELINE]);
        outcome.expect_code(0);
        assert_eq!(outcome.stdout, host.stdout);
        expect_delegated(&outcome);
    }
    fn a_thread_pool(guest: Guest) {
        let outcome = delegated(guest, "shinjuku:20000").run(&program("rust/pool"), ["4", "100"]);
        outcome.expect_code(0).expect_stdout("PASS");
        expect_delegated(&outcome);
    }
}

/// A hundred lines of shell, which take long where ring 0 is interpreted: on two vCPUs only.
#[test]
fn a_bash_script() {
    let (Some(bash), Some(busybox)) = (prereq::bash(), prereq::busybox()) else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let work = TempDir::new();
    let host = taskvisor_tests::Run::new(&bash).arg(POSIX).env("BUSYBOX", &busybox).env("WORK", work.path()).run();
    let guest = Guest::new(2).file(Path::new(POSIX), "/script.sh").file(&busybox, "/bin/busybox");
    let guest = guest.env("BUSYBOX", "/bin/busybox").env("WORK", "/tmp");
    let outcome = delegated(guest, "fifo").run(&bash, ["/script.sh"]);
    outcome.expect_code(0);
    assert_eq!(outcome.stdout, host.stdout);
    expect_delegated(&outcome);
}

/// Three processes and two pipes.
const PIPELINE: &str = "seq 1 2000 | sort -rn | md5sum";

#[test]
fn every_policy_brings_a_pipeline_to_its_end() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let host = taskvisor_tests::Run::new(&busybox).args(["sh", "-c", PIPELINE]).run();
    for policy in ["percpu", "shinjuku:5000", "edf", "cores:1", "steal", "remote", "remote:rr"] {
        let outcome = delegated(Guest::new(2), policy).run(&busybox, ["sh", "-c", PIPELINE]);
        outcome.expect_code(0);
        assert_eq!(outcome.stdout, host.stdout, "{policy}");
        expect_delegated(&outcome);
    }
}

/// Two that compute on one CPU, first come, first served: the second one waits for longer than a millisecond, which counts as an
/// agent that hangs.
#[test]
fn an_agent_that_lets_a_task_wait_is_thrown_out_and_the_tasks_run_on() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let guest = Guest::new(1).flag("--delegate").flag("fifo").flag("--delegate-timeout").flag("1ms");
    let script = "seq 1 20000 >/dev/null & seq 1 20000 >/dev/null & wait; echo ended";
    let outcome = guest.run(&busybox, ["sh", "-c", script]);
    outcome.expect_code(0).expect_stdout("ended");
    for told in ["was ejected: a task waited too long for a decision", "--delegate: ejected: a task waited"] {
        if !outcome.stderr.contains(told) {
            outcome.fail(&format!("nobody said: {told}"));
        }
    }
}

/// Threads that bind themselves to one CPU after the other, with something in every vector register: the agent learns from refusals
/// where each may run, and a thread's registers are whole wherever it goes on.
#[test]
fn affinities_are_kept() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let outcome = delegated(Guest::new(4), "fifo").run(&program("musl/fpu"), ["4", "5"]);
    outcome.expect_code(0).expect_stdout("PASS");
    expect_delegated(&outcome);
}

/// Whoever has the whole region may write anything anywhere: what the guest and the VMM's agent read there is garbage for a while. The guest
/// throws the agent out or goes on with it; its programs end as they should, and so does the VMM.
#[test]
fn garbage_in_the_whole_region_harms_neither_guest_nor_vmm() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let script = "for i in 1 2 3 4; do seq 1 1000 | sort -rn | md5sum; done";
    let host = taskvisor_tests::Run::new(&busybox).args(["sh", "-c", script]).run();
    let mut vmm = Command::new(taskvisor())
        .args(["run", "--vcpus", "2", "--delegate", "fifo", "--delegate-timeout", "500ms", "--timeout", "100s", "--"])
        .arg(&busybox)
        .args(["sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut written = 0_u64;
    if let Some((memory, start, len)) = region_of(&mut vmm) {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        while vmm.try_wait().expect("our child").is_none() && written < 400_000 {
            // Xorshift (Marsaglia, "Xorshift RNGs", 2003): any words will do, and the same each time.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let value = match random >> 61 {
                0 => 0,
                1 => u64::MAX,
                2 => random & 0x1ff,
                _ => random,
            };
            let at = start + (random >> 8) % (len / 8) * 8;
            if memory.write_all_at(&value.to_le_bytes(), at).is_err() {
                // It has just ended.
                break;
            }
            written += 1;
        }
    }
    let output = vmm.wait_with_output().expect("our child");
    assert!(written > 0, "the guest had ended before anything was written");
    assert_eq!(output.status.code(), Some(0), "after {written} words");
    assert_eq!(output.stdout, host.stdout, "after {written} words");
}

/// The VMM's memory, and where in it the enclave's begins and how long it is, both files' parts; `None` if the guest ended before. A
/// process that is given the files can write the second part alone; this one goes through the VMM's own mapping.
fn region_of(vmm: &mut Child) -> Option<(File, u64, u64)> {
    loop {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", vmm.id())).ok()?;
        let parts: Vec<(u64, u64)> = maps
            .lines()
            .filter(|line| line.contains("taskvisor-enclave-"))
            .filter_map(|line| {
                let (start, end) = line.split_once(' ')?.0.split_once('-')?;
                Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
            })
            .collect();
        // Two that are neighbours: whoever maps both maps them so.
        if let Some(&[first, second]) = parts.windows(2).find(|pair| pair[0].1 == pair[1].0) {
            let memory = File::options().write(true).open(format!("/proc/{}/mem", vmm.id())).ok()?;
            return Some((memory, first.0, second.1 - first.0));
        }
        vmm.try_wait().expect("our child").is_none().then_some(())?;
    }
}
