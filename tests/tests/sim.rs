//! The simulator and the guest agree: the same small workload under the same policy gives the same shares of the CPU and the
//! same order of completion.
//!
//! The guest's figures are its own accounts of CPU time, so time that the host takes from a vCPU weighs on all tasks alike.

use serde_json::Value;
use taskvisor_tests::guest::{program, taskvisor};
use taskvisor_tests::{Guest, Run, TempDir, prereq, serial};

/// One task that only computes: policy, nice value or priority, milliseconds.
type Task = (&'static str, i32, u32);

/// How far a share may be from the other side's.
const TOLERANCE: f64 = 0.05;

/// What `player` prints: (task, CPU time in ns) in the order of completion.
fn play(until: &str, vcpus: u32, policy: &str, tasks: &[Task]) -> Vec<(usize, f64)> {
    let plan = tasks.iter().map(|(class, value, ms)| format!("{class}:{value}:{ms}"));
    let args: Vec<_> = std::iter::once(until.to_owned()).chain(plan).collect();
    let outcome = Guest::new(vcpus).flag("--policy").flag(policy).run(&program("musl/player"), &args);
    outcome.expect_code(0);
    let lines: Vec<_> = outcome
        .text()
        .lines()
        .filter_map(|line| {
            let (task, ns) = line.split_once(' ')?;
            Some((task.parse().ok()?, ns.trim().parse().ok()?))
        })
        .collect();
    assert_eq!(lines.len(), tasks.len(), "a line for each task: {}", outcome.text());
    lines
}

/// The same tasks in the simulator, each a group of its own.
fn simulate(cpus: u32, policy: &str, tasks: &[Task], duration: Option<&str>) -> Value {
    let dir = TempDir::new();
    let mut plan = String::new();
    for (i, (class, value, ms)) in tasks.iter().enumerate() {
        let parameter = if *class == "normal" { "nice" } else { "priority" };
        let repeat = if duration.is_some() { 1000 } else { 1 };
        plan.push_str(&format!(
            "[[group]]\nname = \"t{i}\"\npolicy = \"{class}\"\n{parameter} = {value}\nrepeat = {repeat}\n\
             program = [{{ run = \"{ms}ms\" }}]\n"
        ));
    }
    let workload = dir.write("plan.toml", plan.as_bytes());
    let mut run = Run::new(taskvisor()).args(["sim", "--cpus", &cpus.to_string(), "--policy", policy, "--seed", "1"]);
    run = run.args(["--json", "--tasks", "--workload"]).arg(&workload);
    if let Some(duration) = duration {
        run = run.args(["--duration", duration]);
    }
    let outcome = run.run();
    outcome.expect_code(0);
    serde_json::from_str(&outcome.text()).expect("sim --json prints JSON")
}

fn shares(times: &[f64]) -> Vec<f64> {
    let sum: f64 = times.iter().sum();
    assert!(sum > 0.0, "somebody ran: {times:?}");
    times.iter().map(|time| time / sum).collect()
}

fn shares_agree(vcpus: u32, policy: &str, tasks: &[Task], duration: &str) {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let mut played = play("first", vcpus, policy, tasks);
    played.sort_by_key(|(task, _)| *task);
    let guest = shares(&played.iter().map(|(_, ns)| *ns).collect::<Vec<_>>());
    let json = simulate(vcpus, policy, tasks, Some(duration));
    let groups = json["groups"].as_array().expect("a list of groups");
    let run = |i: usize| groups.iter().find(|group| group["name"] == format!("t{i}"))?["run_ns"].as_f64();
    let simulated = shares(&(0..tasks.len()).map(|i| run(i).expect("a figure for each group")).collect::<Vec<_>>());
    for (i, (guest_share, simulated_share)) in guest.iter().zip(&simulated).enumerate() {
        let apart = (guest_share - simulated_share).abs();
        assert!(apart <= TOLERANCE, "task {i} of {tasks:?}: guest {guest:.3?}, simulator {simulated:.3?}");
    }
}

#[test]
fn nice_values_give_the_same_shares() {
    shares_agree(1, "fair", &[("normal", 0, 500), ("normal", 5, 500), ("normal", 10, 500)], "700ms");
}

#[test]
fn equals_on_two_cpus_share_alike_under_fair() {
    shares_agree(2, "fair", &[("normal", 0, 500); 4], "1s");
}

#[test]
fn equals_on_two_cpus_share_alike_under_rr() {
    shares_agree(2, "rr", &[("normal", 0, 500); 4], "1s");
}

#[test]
fn priorities_give_the_same_order() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let tasks = [("fifo", 10, 100), ("normal", 0, 50), ("fifo", 30, 100), ("fifo", 20, 50)];
    let guest: Vec<_> = play("all", 1, "fair", &tasks).into_iter().map(|(task, _)| task).collect();
    let json = simulate(1, "fair", &tasks, None);
    let mut ends: Vec<_> = json["tasks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|task| Some((task["ended_ns"].as_u64()?, task["name"].as_str()?[1..2].parse::<usize>().ok()?)))
        .collect();
    ends.sort_unstable();
    let simulated: Vec<_> = ends.into_iter().map(|(_, task)| task).collect();
    assert_eq!(guest, simulated);
    assert_eq!(guest, [2, 3, 0, 1], "by priority");
}
