//! The interface against its description, over a real socket: what each path gives, and what hostile clients get.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use vcpu_sched::requests::change::{ALIASES, POLICIES};
use vm_memory::GuestAddress;

use super::OPENAPI;
use super::api::{Exits, Problem, TaskName, Vcpus, Vm};
use super::client::{Client, ClientError};
use super::machine::{Facts, Machine, VcpuThread};
use super::programs::Streams;
use super::routes;
use super::runs::Runs;
use super::server::{Listening, Server};
use crate::clock::interrupt::Interrupts;
use crate::clock::{self, Clock, Rate};
use crate::guestview::{Reader, Told};
use crate::memory::Ram;
use crate::requests::{Bell, Mailbox};
use crate::vcpu::counts::{ExitCounts, Kind};
use crate::vm::run_control::RunControl;

/// A machine whose only vCPU is this test's thread and whose guest shows nothing.
fn machine() -> Machine {
    let counts = ExitCounts::default();
    counts.add(Kind::PortOut);
    let ram = Ram::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let reader = Reader::new(ram.clone(), Arc::new(Told::default()), 0);
    let run = RunControl::new(0);
    let facts = clock::Facts::default();
    let clock = Clock::new(facts, Rate::REAL, vec![0], ram.clone(), run.clone(), Interrupts::by(|| ()));
    Machine {
        facts: Facts { memory: 0x1000, kernel: "k".into(), program: vec!["p".into(), "-x".into()] },
        start: Instant::now(),
        vcpus: vec![VcpuThread {
            index: 0,
            apic_id: 0,
            tid: rustix::thread::gettid().as_raw_nonzero().get(),
            counts: Arc::new(counts),
        }],
        mailbox: Mailbox::new(Bell::default(), reader.clone(), ram.clone(), Box::new(|_| Ok(()))),
        reader,
        ram,
        run: Runs::new(run),
        streams: Streams::default(),
        clock,
        trace: None,
    }
}

struct Served {
    _server: Server,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn serve() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let server = Listening::bind(&path).unwrap().serve(machine()).unwrap();
    Served { _server: server, path, _dir: dir }
}

/// Sends bytes, and gives all that comes back until the connection ends.
fn raw(path: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    // The server may have refused before it has read all.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn openapi() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

/// Checks a value against a schema of the description.
fn check(name: &str, value: &Value) {
    let mut schema = openapi();
    schema["$ref"] = json!(format!("#/components/schemas/{name}"));
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{name}: {errors:?} in {value:#}");
}

#[test]
fn the_description_has_exactly_the_paths_and_methods_that_are_served() {
    let described = openapi();
    let methods = |path: &Value| path.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let described: BTreeMap<_, _> =
        described["paths"].as_object().unwrap().iter().map(|(path, what)| (path.clone(), methods(what))).collect();
    let served: BTreeMap<_, BTreeSet<_>> = routes::paths()
        .map(|(path, methods)| (path.to_owned(), methods.iter().map(|m| (*m).to_owned()).collect()))
        .collect();
    assert_eq!(described, served);
}

#[test]
fn the_description_has_exactly_the_policies_that_are_taken() {
    let described = openapi()["components"]["schemas"]["TaskChange"]["properties"]["policy"]["enum"].clone();
    let described: BTreeSet<String> = serde_json::from_value(described).unwrap();
    assert_eq!(described, POLICIES.iter().chain(&ALIASES).map(|(_, name)| (*name).to_owned()).collect());
}

#[test]
fn answers_are_as_described() {
    let served = serve();
    let mut client = Client::connect(&served.path).unwrap();
    let vm: Value = client.get("/v1/vm").unwrap();
    check("Vm", &vm);
    let vm: Vm = serde_json::from_value(vm).unwrap();
    assert_eq!((vm.vcpus, vm.program.len(), vm.tasks_unavailable.is_some()), (1, 2, true));

    let vcpus: Value = client.get("/v1/vcpus").unwrap();
    check("Vcpus", &vcpus);
    let vcpus: Vcpus = serde_json::from_value(vcpus).unwrap();
    assert_eq!(vcpus.vcpus[0].exits, Exits { total: 1, by_reason: [("port_out".to_owned(), 1)].into() });
    // The thread is a real one, so the host knows it.
    assert!(vcpus.vcpus[0].affinity.is_some() && vcpus.vcpus[0].host_cpu.is_some());

    let openapi: Value = client.get("/v1/openapi.json").unwrap();
    assert_eq!(openapi["openapi"], "3.1.0");
}

#[test]
fn a_pin_is_read_back_and_a_bad_one_changes_nothing() {
    let served = serve();
    let mut client = Client::connect(&served.path).unwrap();
    let before: Vcpus = client.get("/v1/vcpus").unwrap();
    let all = before.vcpus[0].affinity.clone().unwrap();
    let first = all.split([',', '-']).next().unwrap().to_owned();
    let pinned: Value = client.put("/v1/affinity", &json!({ "pins": format!("all={first}") })).unwrap();
    assert_eq!(pinned, json!([{ "index": 0, "affinity": first }]));
    check("Pinned", &pinned[0]);
    let now: Vcpus = client.get("/v1/vcpus").unwrap();
    assert_eq!(now.vcpus[0].affinity.as_ref(), Some(&first));
    for (path, body, status) in [
        ("/v1/affinity", json!({ "pins": "0=4000" }), 422),
        ("/v1/affinity", json!({ "pins": "9=0" }), 422),
        ("/v1/affinity", json!({ "pins": "0" }), 400),
        ("/v1/affinity", json!({ "pin": "0=0" }), 400),
        ("/v1/vcpus/0/affinity", json!({ "cpus": "4000" }), 422),
        ("/v1/vcpus/7/affinity", json!({ "cpus": "0" }), 404),
        ("/v1/vcpus/x/affinity", json!({ "cpus": "0" }), 400),
    ] {
        let Err(ClientError::Refused(problem)) = client.put::<Value>(path, &body) else { panic!("{path} {body}") };
        assert_eq!(problem.status, status, "{path} {body}: {problem:?}");
        check("Problem", &serde_json::to_value(&problem).unwrap());
    }
    let after: Vcpus = client.get("/v1/vcpus").unwrap();
    assert_eq!(after.vcpus[0].affinity.as_ref(), Some(&first), "as before");
    let back: Value = client.put("/v1/vcpus/0/affinity", &json!({ "cpus": all })).unwrap();
    assert_eq!(back[0]["affinity"], json!(all));
}

/// What no guest without a kernel can show.
#[test]
fn resources_of_a_guest_are_as_described() {
    let task = json!({
        "id": 7, "name": "sh", "kind": "user", "process": 7, "state": "blocked", "on_cpu": false, "cpu": 1, "waits_for": "pipe",
        "policy": "other", "priority": 0, "nice": -5, "affinity": "0-1", "run_ns": 5, "wait_ns": 6, "sleep_ns": 7, "state_ns": 8,
        "voluntary_switches": 1, "involuntary_switches": 2, "migrations": 3, "faults": 4,
        "address": "0x10", "page_table": "0x2000", "saved_rsp": "0xffffff0000004f00", "fs_base": "0x0",
    });
    check("Task", &task);
    let parsed: crate::guestview::Task = serde_json::from_value(task.clone()).unwrap();
    assert_eq!(serde_json::to_value(&parsed).unwrap(), task, "every field is described, and none is lost");
    check("TaskName", &serde_json::to_value(TaskName::from(&parsed)).unwrap());
    let cpu = json!({
        "index": 1, "apic_id": 1, "current": 7, "nr_running": 2, "idle_ns": 5, "switches": 1, "syscalls": 2, "faults": 3,
        "timer_interrupts": 4, "reschedule_ipis": 5,
    });
    check("Cpu", &cpu);
    let parsed: crate::guestview::Cpu = serde_json::from_value(cpu.clone()).unwrap();
    assert_eq!(serde_json::to_value(&parsed).unwrap(), cpu);
    check("Tasks", &json!({ "time_ns": 1, "torn": false, "left_out": 0, "tasks": [task] }));
}

#[test]
fn errors_say_what_where_and_what_to_do() {
    let served = serve();
    let mut client = Client::connect(&served.path).unwrap();
    for (path, status) in [
        ("/v1/nothing", 404),
        ("/", 404),
        ("/v1/tasks", 503),
        ("/v1/tasks/x", 400),
        ("/v1/tasks/99999999999", 400),
        ("/v1/tasks/1", 503),
    ] {
        match client.get::<Value>(path) {
            Err(ClientError::Refused(problem)) => {
                check("Problem", &serde_json::to_value(&problem).unwrap());
                let Problem { status: got, instance, hint, detail, .. } = problem;
                assert_eq!((got, instance.as_str()), (status, path));
                assert!(!hint.is_empty() && !detail.is_empty(), "{path}");
            }
            other => panic!("{path}: {other:?}"),
        }
    }
    let answer = raw(&served.path, b"DELETE /v1/vm HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("application/problem+json"), "{answer}");
}

/// The request and its end are there at once, before the server looks.
#[test]
fn a_client_that_has_sent_all_gets_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let listening = Listening::bind(&path).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"POST /v1/vm/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let _server = listening.serve(machine()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
}

#[test]
fn noise_and_oversize_end_the_connection_and_nothing_else() {
    let served = serve();
    let long = [b"GET /".as_slice(), &b"x".repeat(1 << 20), b" HTTP/1.1\r\n\r\n"].concat();
    for request in [&b"\0\xff\r\n\r\n"[..], b"GET", b"", &long] {
        let answer = raw(&served.path, request);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // Silent clients take places; they must not take all of them from one that talks.
    let _silent: Vec<_> = (0..8).map(|_| UnixStream::connect(&served.path).unwrap()).collect();
    Client::connect(&served.path).unwrap().get::<Vm>("/v1/vm").unwrap();
}

#[test]
fn the_end_of_the_server_ends_its_clients() {
    let Served { _server: server, path, _dir } = serve();
    let mut client = Client::connect(&path).unwrap();
    client.get::<Vm>("/v1/vm").unwrap();
    let _silent = UnixStream::connect(&path).unwrap();
    drop(server);
    assert!(!path.exists());
    assert!(matches!(client.get::<Vm>("/v1/vm"), Err(ClientError::Broken { .. })));
    assert!(matches!(Client::connect(&path), Err(ClientError::Connect { .. })));
}
