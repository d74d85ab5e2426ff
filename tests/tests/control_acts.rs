//! What the control socket does to a running guest: pausing, suspending, signals, policies, affinity, programs; and clients that
//! behave badly meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use taskvisor_tests::guest::program;
use taskvisor_tests::running::{Running, find};
use taskvisor_tests::serial;

/// Number of one of the shells that compute.
fn computes(running: &Running) -> (u64, String) {
    let id = find(&running.json(["tasks", "--json"]), "busybox")[0]["id"].as_u64().expect("tasks have numbers");
    (id, id.to_string())
}

fn task(list: &Value, id: u64) -> &Value {
    list.as_array().into_iter().flatten().find(|task| task["id"] == id).unwrap_or(&Value::Null)
}

/// Two looks with some of the guest's own work between them: its other shell has computed for a while.
fn while_others_compute(running: &Running, not: u64) -> (Value, Value) {
    let before = running.json(["tasks", "--json"]);
    let run = |list: &Value| {
        let others = find(list, "busybox").into_iter().filter(|task| task["id"] != not);
        others.filter_map(|task| task["run_ns"].as_u64()).sum::<u64>()
    };
    let after = running.until(["tasks", "--json"], |now| run(now) > run(&before) + 30_000_000);
    (before, after)
}

#[test]
fn a_suspended_task_stands_still_until_it_is_resumed() {
    let _beside_others = serial::shared();
    for vcpus in [1, 2] {
        let Some(running) = Running::start(vcpus) else { return };
        let (id, text) = computes(&running);
        for _ in 0..3 {
            let held = running.json(["suspend", &text, "--json"]);
            assert_eq!(held["suspended"], true, "{held:#}");
            // One that was ready has yet to take its turn in the kernel.
            let parked = |list: &Value| task(list, id)["waits_for"] == "suspended" && task(list, id)["on_cpu"] == false;
            running.until(["tasks", "--json"], parked);
            let (before, after) = while_others_compute(&running, id);
            assert!(parked(&after), "{after:#}");
            let (before, after) = (task(&before, id), task(&after, id));
            assert_eq!(before["run_ns"], after["run_ns"], "{after:#}");
            let free = running.json(["resume", &text, "--json"]);
            assert_eq!(free["suspended"], false);
            running.until(["tasks", "--json"], |now| task(now, id)["run_ns"].as_u64() > after["run_ns"].as_u64());
        }
    }
}

#[test]
fn a_task_that_sleeps_is_suspended_and_one_that_is_killed_is_not() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    let id = find(&running.json(["tasks", "--json"]), "sleep")[0]["id"].as_u64().expect("a number");
    let text = id.to_string();
    let held = running.json(["suspend", &text, "--json"]);
    assert_eq!((&held["suspended"], &held["state"]), (&true.into(), &"blocked".into()));
    running.ctl(["suspend", &text]).expect_code(0).expect_stdout("suspended");
    running.ctl(["kill", &text]).expect_code(0);
    running.until(["tasks", "--json"], |now| task(now, id).is_null());
    running.ctl(["resume", &text]).expect_code(125).expect_stderr("no such task");
}

#[test]
fn policy_nice_and_affinity_are_read_back() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    let (id, text) = computes(&running);
    let set = running.json(["set", &text, "--nice", "-5", "--affinity", "1", "--json"]);
    assert_eq!((&set["nice"], &set["affinity"]), (&(-5).into(), &"1".into()), "{set:#}");
    let on_1 = running.until(["tasks", "--json"], |now| task(now, id)["cpu"] == 1 && task(now, id)["on_cpu"] == true);
    assert_eq!(task(&on_1, id)["affinity"], "1");
    let set = running.json(["set", &text, "--policy", "rr", "--priority", "7", "--affinity", "0", "--json"]);
    assert_eq!((&set["policy"], &set["priority"]), (&"rr".into(), &7.into()), "{set:#}");
    running.until(["tasks", "--json"], |now| task(now, id)["cpu"] == 0);
    let set = running.json(["set", &text, "--policy", "batch", "--affinity", "0-1", "--json"]);
    assert_eq!((&set["policy"], &set["nice"]), (&"batch".into(), &(-5).into()));
    let bad: [(&[&str], &str); 5] = [
        (&["--policy", "fifo"], "no task can have such values"),
        (&["--policy", "best"], "possible values: other, batch, idle, fifo, rr, deadline, delegated"),
        (&["--affinity", "40"], "none of these CPUs"),
        (&["--priority", "5"], "no task can have such values"),
        (&["--policy", "deadline", "--runtime", "9000000", "--deadline", "5000000"], "no task can have such values"),
    ];
    for (flags, why) in bad {
        let args: Vec<&str> = ["set", &text].into_iter().chain(flags.iter().copied()).collect();
        running.ctl_all(&args).expect_code(125).expect_one_line_error().expect_stderr(why);
    }
    // The second of two changes fails: the first is undone.
    running.ctl(["set", &text, "--affinity", "0", "--priority", "5"]).expect_code(125);
    let after = running.json(["tasks", "--json"]);
    assert_eq!((&task(&after, id)["affinity"], &task(&after, id)["policy"]), (&"0-1".into(), &"batch".into()));
}

#[test]
fn what_a_lock_lends_stays_when_a_policy_is_given() {
    let _beside_others = serial::shared();
    let Some(running) = Running::of(1, |_| Vec::new(), &program("musl/pi"), &["hold"]) else { return };
    let holder = |list: &Value| find(list, "holder").first().map_or(Value::Null, |task| (*task).clone());
    let list = running.until_there(|list| holder(list)["priority"] == 50);
    let (id, text) = (holder(&list)["id"].as_u64().expect("a number"), holder(&list)["id"].to_string());
    let set = running.json(["set", &text, "--policy", "batch", "--nice", "5", "--json"]);
    assert_eq!((&set["policy"], &set["priority"], &set["nice"]), (&"fifo".into(), &50.into(), &5.into()), "{set:#}");
    let after = running.json(["tasks", "--json"]);
    assert_eq!((&task(&after, id)["policy"], &task(&after, id)["priority"]), (&"fifo".into(), &50.into()));
}

#[test]
fn what_no_program_is_can_not_be_asked_of() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(1) else { return };
    let list = running.json(["tasks", "--json"]);
    let kernel = list.as_array().into_iter().flatten().filter(|task| task["kind"] != "user");
    for task in kernel.map(|task| task["id"].to_string()) {
        for verb in ["suspend", "kill", "resume"] {
            running.ctl([verb, &task]).expect_code(125).expect_stderr("a task of the guest's kernel");
        }
    }
    running.ctl(["suspend", "4000000"]).expect_code(125).expect_stderr("no such task");
    running.ctl(["signal", "1", "SIGNONE"]).expect_code(125).expect_stderr("there is no signal");
    running.ctl(["signal", "1", "65"]).expect_code(125).expect_stderr("there is no signal");
}

#[test]
fn programs_are_started_and_signalled() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    let spawned =
        running.json(["spawn", "--streams", "null", "--env", "X=1", "--json", "/bin/busybox", "sleep", "1000"]);
    let id = spawned["process"].as_u64().expect("a process");
    let list = running.json(["tasks", "--json"]);
    assert_eq!((&task(&list, id)["process"], &task(&list, id)["kind"]), (&id.into(), &"user".into()), "{list:#}");
    running.ctl(["signal", &id.to_string(), "TERM"]).expect_code(0);
    running.until(["tasks", "--json"], |now| task(now, id).is_null());
    running.ctl(["spawn", "/bin/none"]).expect_code(125).expect_stderr("no such file");
    running.ctl(["spawn", "/etc"]).expect_code(125).expect_one_line_error();
    // A program that couldn't be started leaves nothing.
    running.until(["tasks", "--json"], |now| {
        now.as_array().is_some_and(|l| l.len() == list.as_array().map_or(0, Vec::len) - 1)
    });
}

#[test]
fn vcpus_are_moved_while_programs_run_all_of_them_or_none() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let own = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("and this line").trim();
    let ends: Vec<&str> = own.split([',', '-']).collect();
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    let host = |vcpu: usize| {
        let tid = running.json(["vcpus", "--json"])[vcpu]["tid"].to_string();
        let status = fs::read_to_string(format!("/proc/{}/task/{tid}/status", running.pid())).expect("it lives");
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(str::trim);
        list.expect("Linux has that line").to_owned()
    };
    let (id, _) = computes(&running);
    for pins in [[first, last], [last, first], [first, first]] {
        let read = running.json(["pin", &format!("0={};1={}", pins[0], pins[1]), "--json"]);
        for vcpu in 0..2 {
            assert_eq!((read[vcpu]["affinity"].as_str(), host(vcpu).as_str()), (Some(pins[vcpu]), pins[vcpu]));
        }
        // Programs go on, on CPUs that share one of the host's, too.
        while_others_compute(&running, id);
    }
    let refused = running.ctl(["pin", &format!("0={last};1=4000")]);
    refused.expect_code(125).expect_one_line_error().expect_stderr("vCPU 1").expect_stderr("nothing was changed");
    assert_eq!([host(0), host(1)], [first, first], "the first one is back where it was");
    running.ctl(["pin", "7=0"]).expect_code(125).expect_stderr("vCPU 7");
    let stolen =
        |list: &Value| list[0]["host_wait_ns"].as_u64() > Some(0) && list[1]["host_wait_ns"].as_u64() > Some(0);
    running.until(["vcpus", "--json"], stolen);
    running.ctl(["vcpus"]).expect_code(0).expect_stdout("STOLEN");
}

#[test]
fn vcpus_change_their_class_while_programs_run() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    // Behind the name: field 3 is the state, field 19 the nice value (proc(5)).
    let nice = |vcpu: usize| {
        let tid = running.json(["vcpus", "--json"])[vcpu]["tid"].to_string();
        let stat = fs::read_to_string(format!("/proc/{}/task/{tid}/stat", running.pid())).expect("it lives");
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split_whitespace().nth(16).map(str::to_owned))
    };
    let (id, _) = computes(&running);
    let before = nice(0);
    let read = running.json(["sched", "1=nice:19", "--json"]);
    assert_eq!((read[0]["index"].as_u64(), read[0]["class"].as_str()), (Some(1), Some("nice:19")));
    assert_eq!((nice(0), nice(1).as_deref()), (before, Some("19")), "the host's word");
    assert_eq!(running.json(["vcpus", "--json"])[1]["class"], "nice:19");
    while_others_compute(&running, id);
    running.ctl(["sched", "1=nice:20"]).expect_code(125).expect_stderr("a nice value is -20 to 19");
    running.ctl(["sched", "7=other"]).expect_code(125).expect_stderr("vCPU 7");
}

#[test]
fn a_paused_machine_stands_still_and_refuses_what_needs_it() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    assert_eq!(running.json(["pause", "--json"])["state"], "paused");
    running.ctl(["pause"]).expect_code(0).expect_stdout("paused");
    let exits = |running: &Running| running.json(["stats", "--json"])["exits"].as_u64();
    let before = exits(&running);
    assert_eq!(find(&running.json(["tasks", "--json"]), "busybox").len(), 2, "it can be looked at");
    running.ctl(["suspend", "1"]).expect_code(125).expect_stderr("paused");
    assert_eq!(exits(&running), before);
    assert_eq!(running.json(["resume", "--json"])["state"], "running");
    let (id, _) = computes(&running);
    while_others_compute(&running, id);
}

#[test]
fn shutdown_and_kill_end_the_machine() {
    let _beside_others = serial::shared();
    let Some(mut running) = Running::start(1) else { return };
    running.ctl(["shutdown"]).expect_code(0);
    // The shell dies of SIGTERM, and the machine with it.
    assert_eq!(running.wait(), 128 + libc::SIGTERM);
    let Some(mut running) = Running::start(1) else { return };
    running.ctl(["pause"]).expect_code(0);
    running.ctl(["kill"]).expect_code(0);
    assert_eq!(running.wait(), 128 + libc::SIGTERM);
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    let text = running.ctl(["metrics"]);
    text.expect_code(0)
        .expect_stdout("taskvisor_vcpus 2\n")
        .expect_stdout("taskvisor_vcpu_exits_total{vcpu=\"0\",reason=")
        .expect_stdout("taskvisor_tasks{state=\"running\"}");
}

/// Sends a request's bytes, and gives the status line of the answer.
fn raw(running: &Running, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(running.socket()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    // The server may have refused before it has read all.
    let _ = stream.write_all(bytes);
    let mut answer = [0; 64];
    let n = stream.read(&mut answer).unwrap_or(0);
    String::from_utf8_lossy(&answer[..n]).lines().next().unwrap_or("").to_owned()
}

#[test]
fn bad_clients_harm_nobody() {
    let _beside_others = serial::shared();
    let Some(running) = Running::start(2) else { return };
    let (id, text) = computes(&running);
    // Clients that hang: in the head, in the body, and without a word.
    let hanging: Vec<_> =
        [&b"GET /v1/vm HT"[..], b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{", b""]
            .into_iter()
            .map(|bytes| {
                let mut stream = UnixStream::connect(running.socket()).expect("it listens");
                stream.write_all(bytes).expect("there is room");
                stream
            })
            .collect();
    // Clients that ask for something that waits for the guest, and die without waiting for it.
    for n in 0..40 {
        let verb = if n % 2 == 0 { "suspend" } else { "resume" };
        let head = format!("POST /v1/tasks/{id}/{verb} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut stream = UnixStream::connect(running.socket()).expect("it listens");
        stream.write_all(head.as_bytes()).expect("there is room");
    }
    let large = vec![b' '; 1 << 20];
    let head =
        b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n\r\n";
    assert!(raw(&running, &[&head[..], &large].concat()).contains("413"));
    let odd = [
        (json!({ "path": "" }), "400"),
        (json!({ "path": "/a\u{0}b" }), "400"),
        (json!({ "path": "/bin/busybox", "args": vec!["a".repeat(60_000)] }), "413"),
        (json!({ "path": 5 }), "400"),
        (json!([]), "400"),
    ];
    for (body, status) in odd {
        let body = body.to_string();
        let head = "POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
        let answer = raw(&running, format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        assert!(answer.contains(status), "{answer} for {body:.80}");
    }
    drop(hanging);
    // All of that is over, and the task is as the last one left it, whichever that was.
    running.ctl(["suspend", &text]).expect_code(0);
    running.ctl(["resume", &text]).expect_code(0);
    let (_, after) = while_others_compute(&running, u64::MAX);
    assert_eq!(task(&after, id)["suspended"], false);
}
