//! A running guest seen from outside: the control socket, `ctl` and `top`, over tasks that compute and tasks that sleep.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use taskvisor_tests::guest::{program, taskvisor};
use taskvisor_tests::pty::Terminal;
use taskvisor_tests::running::{Running, find};
use taskvisor_tests::{Guest, Outcome, Run, TempDir, prereq, serial};

#[test]
fn tasks_are_listed_with_what_they_do() {
    let _beside_others = serial::shared();
    for vcpus in [1, 2, 4] {
        let Some(running) = Running::start(vcpus) else { return };
        let before = running.json(["tasks", "--json"]);
        let sleepers = find(&before, "sleep");
        assert_eq!(
            (sleepers.len(), &sleepers[0]["state"], &sleepers[0]["kind"]),
            (1, &"blocked".into(), &"user".into())
        );
        assert_eq!(sleepers[0]["process"], sleepers[0]["id"]);
        assert_eq!(before.as_array().map_or(0, |l| l.iter().filter(|t| t["kind"] == "idle").count()), vcpus as usize);
        // Both shells compute for as long as we like, so their run times must come to grow.
        let deadline = Instant::now() + Duration::from_secs(60);
        let busy = |list: &Value| find(list, "busybox").iter().filter_map(|t| t["run_ns"].as_u64()).collect::<Vec<_>>();
        assert_eq!(busy(&before).len(), 2, "{before:#}");
        loop {
            let after = running.json(["tasks", "--json"]);
            if busy(&before).iter().zip(busy(&after)).all(|(before, after)| after > *before) {
                break;
            }
            assert!(Instant::now() < deadline, "run times stand still: {after:#}");
        }
    }
}

#[test]
fn vcpus_are_named_with_their_threads_and_tasks() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    let vcpus = running.json(["vcpus", "--json"]);
    let list = vcpus.as_array().expect("a list");
    assert_eq!(list.len(), 2);
    for (index, vcpu) in list.iter().enumerate() {
        assert_eq!(vcpu["index"], index);
        let comm = format!("/proc/{}/task/{}/comm", running.pid(), vcpu["tid"]);
        let comm = std::fs::read_to_string(&comm).unwrap_or_else(|e| panic!("{comm}: {e}"));
        assert_eq!(comm.trim_end(), format!("vcpu{index}"));
        assert!(vcpu["affinity"].is_string() && vcpu["exits"]["total"].as_u64() > Some(0), "{vcpu:#}");
        assert!(vcpu["current"]["id"].is_u64(), "a CPU always runs something: {vcpu:#}");
    }
    let vm = running.json(["vm", "--json"]);
    assert_eq!((&vm["pid"], &vm["vcpus"]), (&running.pid().into(), &2.into()));
    running.ctl(["vcpus"]).expect_code(0).expect_stdout("vcpu1");
    running.ctl(["tasks"]).expect_code(0).expect_stdout("busybox");
}

#[test]
fn top_once_is_plain_text() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    let outcome = Run::new(taskvisor()).args(["top", "--once", "--control"]).arg(running.socket()).run();
    outcome.expect_code(0).expect_stdout("taskvisor top - up ").expect_stdout("BUSY%").expect_stdout("sleep");
    assert!(!outcome.text().contains('\u{1b}'), "no escape sequence in plain text");
}

#[test]
fn top_on_a_terminal_and_every_way_out() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    for way in [&b"q"[..], b"\x03", b"/x\rq"] {
        let mut command = Command::new(taskvisor());
        command.args(["top", "--interval", "100ms", "--control"]).arg(running.socket());
        let mut terminal = Terminal::start(command, 120, 30);
        terminal.expect("taskvisor top");
        terminal.expect("SWITCHES/S");
        terminal.press(b"h");
        terminal.expect("Ctrl-C   leave");
        terminal.press(b" ");
        terminal.press(way);
        // Also checks that the terminal's modes are as before.
        let (code, seen) = terminal.end();
        assert_eq!(code, 0);
        assert!(seen.contains("\u{1b}[?1049l"), "the other screen is left");
    }
}

#[test]
fn top_ends_with_the_guest() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(1) else { return };
    let mut command = Command::new(taskvisor());
    command.args(["top", "--interval", "100ms", "--control"]).arg(running.socket());
    let mut terminal = Terminal::start(command, 100, 20);
    terminal.expect("taskvisor top");
    drop(running);
    let (code, seen) = terminal.end();
    assert_eq!(code, 125);
    assert!(seen.contains("has ended"), "{seen}");
}

/// `ctl` or `top` against something that is no guest: one line, and what to do.
fn refused(args: &[&str], socket: Option<&Path>) -> Outcome {
    let mut run = Run::new(taskvisor()).args(args);
    if let Some(socket) = socket {
        run = run.arg("--control").arg(socket);
    }
    let outcome = run.limit(Duration::from_secs(30)).run();
    outcome.expect_code(125).expect_one_line_error();
    outcome
}

#[test]
fn clients_without_a_guest() {
    let _beside_others = serial::shared();
    let dir = TempDir::new();
    refused(&["ctl", "vm"], None).expect_stderr("--control");
    refused(&["top", "--once"], Some(&dir.path().join("none"))).expect_stderr("can't connect");
    refused(&["ctl", "tasks"], Some(&dir.write("file", "x"))).expect_stderr("can't connect");
}

#[test]
fn a_bad_place_for_the_socket_is_an_error_before_the_guest_starts() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let dir = TempDir::new();
    for (path, why) in [(dir.write("file", "precious"), "no socket"), (dir.path().join("none/s"), "none/s")] {
        let guest = Guest::new(1).flag("--control").flag(&path);
        guest.run(&program("musl/hello"), [] as [&str; 0]).expect_code(125).expect_one_line_error().expect_stderr(why);
    }
    assert_eq!(std::fs::read(dir.path().join("file")).expect("still there"), b"precious");
}

#[test]
fn a_timeout_tells_what_ran() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let spin = ["sh", "-c", "echo there; while :; do :; done"];
    let outcome = Guest::new(2).run_into_timeout(&busybox, &spin, "there");
    outcome
        .expect_code(124)
        .expect_stderr("at the end the guest's CPUs ran")
        .expect_stderr("\"busybox\" (user task of process 1");
}
