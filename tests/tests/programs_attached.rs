//! Programs that are started through the control socket and keep their streams: what goes in, what comes out, how they end, and clients
//! that leave them alone.

use std::io::{Read, Write};
use std::iter;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use taskvisor_tests::guest::{program, taskvisor};
use taskvisor_tests::running::Running;
use taskvisor_tests::{Outcome, Run, prereq, serial};

/// A guest that has nothing to do but what it is asked for.
fn quiet(vcpus: u32) -> Option<Running> {
    let running = Running::of(vcpus, |_| Vec::new(), &prereq::busybox()?, &["sleep", "1000"])?;
    running.until_there(|list| {
        let mut tasks = list.as_array().into_iter().flatten();
        tasks.any(|task| task["kind"] == "user" && task["state"] == "blocked")
    });
    Some(running)
}

/// `ctl spawn --attach` of a shell script, with `input`.
fn attached(running: &Running, input: &[u8], script: &str) -> Outcome {
    spawn(running, input, &["--attach", "/bin/busybox", "sh", "-c", script])
}

fn spawn(running: &Running, input: &[u8], args: &[&str]) -> Outcome {
    let run = Run::new(taskvisor()).arg("ctl").arg("--control").arg(running.socket()).arg("spawn").args(args);
    run.stdin(input).limit(Duration::from_secs(120)).run()
}

/// Sends a request and leaves its connection open.
fn ask(running: &Running, what: &str) -> UnixStream {
    let mut stream = UnixStream::connect(running.socket()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream.write_all(format!("{what} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("there is room");
    stream
}

/// Reads until what came holds `text`.
fn until(stream: &mut UnixStream, text: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let mut byte = [0; 512];
        let n = stream.read(&mut byte).expect("it comes in time");
        assert!(n > 0, "{text} in {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&byte[..n]);
    }
}

fn start_attached(running: &Running, script: &str) -> String {
    let args = ["spawn", "--streams", "attached", "--json", "/bin/busybox", "sh", "-c", script];
    running.json(args)["process"].to_string()
}

#[test]
fn streams_and_exit_code_are_the_programs() {
    let _beside_others = serial::shared();
    let Some(running) = quiet(2) else { return };
    let both = attached(&running, b"one two\n", "read a b; echo $b $a; echo said >&2; exit 7");
    both.expect_code(7).expect_stdout("two one").expect_stderr("said");
    attached(&running, b"", "kill -9 $$").expect_code(128 + libc::SIGKILL);
    attached(&running, b"", "cat; exit 0").expect_code(0);
    spawn(&running, b"", &["--attach", "/bin/none"]).expect_code(125).expect_stderr("no such file");
    // More than all the pipes and buffers between hold, both ways at once.
    let many: Vec<u8> = (0..150_000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let back = attached(&running, &many, "cat");
    back.expect_code(0);
    assert!(back.stdout == many, "{} of {} bytes came back, or others", back.stdout.len(), many.len());
}

#[test]
fn a_program_of_the_host_is_put_into_the_guest() {
    let _beside_others = serial::shared();
    let (Some(running), Some(busybox)) = (quiet(1), prereq::busybox()) else { return };
    let hello = program("musl/hello").display().to_string();
    let here = Run::new(&hello).arg("a").run();
    let sum = Run::new(&busybox).args(["sha1sum", &hello]).run();
    let sum = sum.text().split(' ').next().expect("a sum").to_owned();
    // Twice: the second one replaces the file of the first.
    for _ in 0..2 {
        let there = spawn(&running, b"", &["--attach", "--host", &hello, "a"]);
        assert_eq!((there.code(), &there.stdout), (here.code(), &here.stdout));
        attached(&running, b"", "/bin/busybox sha1sum /tmp/hello").expect_code(0).expect_stdout(&sum);
    }
    spawn(&running, b"", &["--attach", "--host", "/does/not/exist"]).expect_code(125).expect_stderr("No such file");
    let empty = ask(&running, "PUT /v1/files/..");
    until(&mut { empty }, "no file's name");
}

#[test]
fn a_program_waits_for_a_client_and_outlives_it() {
    let _beside_others = serial::shared();
    let Some(running) = quiet(2) else { return };
    let id = start_attached(&running, "echo first; yes | head -c 140000; read x; echo $x; exit 3");
    let blocked = |list: &serde_json::Value| {
        let tasks = list.as_array().into_iter().flatten();
        tasks
            .filter(|task| task["process"].as_u64() == id.parse().ok() || task["name"] == "yes")
            .any(|t| t["state"] == "blocked")
    };
    // Nobody reads: it comes to stand.
    running.until(["tasks", "--json"], blocked);
    // A client that reads a little, and dies.
    let mut reads = ask(&running, &format!("GET /v1/programs/{id}/stdout"));
    until(&mut reads, "first");
    let mut second = ask(&running, &format!("GET /v1/programs/{id}/stdout"));
    until(&mut second, "409 Conflict");
    drop((reads, second));
    // One that waits for the end, and dies; and enough of them to fill every place that there is.
    for _ in 0..60 {
        drop(ask(&running, &format!("GET /v1/programs/{id}/wait")));
    }
    running.until_there(|_| true);
    // Another one takes over, as soon as it is noticed that the first is gone.
    let take_over = || {
        let run = Run::new(taskvisor()).arg("ctl").arg("--control").arg(running.socket()).args(["attach", &id]);
        run.stdin(*b"last\n").limit(Duration::from_secs(120)).run()
    };
    let taken = iter::repeat_with(take_over).take(1000).find(|outcome| outcome.code() != 125).expect("a place is free");
    taken.expect_code(3).expect_stdout("last");
    // It was forgotten with that.
    running.ctl(["attach", &id]).expect_code(125).expect_stderr("no program of that number");
}

#[test]
fn programs_nobody_asks_for_any_more_make_room() {
    let _beside_others = serial::shared();
    let Some(running) = quiet(2) else { return };
    // Ended ones go; running ones don't.
    let ended = start_attached(&running, "exit 0");
    until(&mut ask(&running, &format!("GET /v1/programs/{ended}/wait")), "exited");
    // No shell: there are as many of them as the kernel keeps.
    let hold =
        || running.json(["spawn", "--streams", "attached", "--json", "/bin/busybox", "cat"])["process"].to_string();
    let held: Vec<_> = iter::repeat_with(hold).take(16).collect();
    running.ctl(["attach", &ended]).expect_code(125).expect_stderr("no program of that number");
    let refused = running.ctl(["spawn", "--streams", "attached", "/bin/busybox", "true"]);
    refused.expect_code(125).expect_stderr("as many programs as the guest's kernel allows");
    // Forgotten, a program finds its input at an end.
    until(&mut ask(&running, &format!("DELETE /v1/programs/{}", held[0])), "204");
    running.until(["tasks", "--json"], |list| {
        list.as_array().into_iter().flatten().all(|task| task["process"].as_u64() != held[0].parse().ok())
    });
    attached(&running, b"", "exit 9").expect_code(9);
}

#[test]
fn streams_wait_while_the_machine_is_paused() {
    let _beside_others = serial::shared();
    let Some(running) = quiet(1) else { return };
    let id = start_attached(&running, "read x; echo $x");
    let mut out = ask(&running, &format!("GET /v1/programs/{id}/stdout"));
    running.ctl(["pause"]).expect_code(0);
    let mut input = ask(&running, &format!("PUT /v1/programs/{id}/stdin HTTP/1.1\r\nContent-Length: 5\r\nX: "));
    input.write_all(b"word\n").expect("there is room");
    running.ctl(["spawn", "/bin/busybox"]).expect_code(125).expect_stderr("paused");
    running.ctl(["resume"]).expect_code(0);
    until(&mut out, "word");
    until(&mut input, "204");
}

#[test]
fn a_signal_to_the_client_is_the_programs() {
    let _beside_others = serial::shared();
    let Some(running) = quiet(1) else { return };
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let run = Run::new(taskvisor()).arg("ctl").arg("--control").arg(running.socket());
    let run = run.args(["spawn", "--attach", "/bin/busybox", "sh", "-c", script]);
    run.signal_at("ready", libc::SIGTERM).run().expect_code(5).expect_stdout("caught");
}
