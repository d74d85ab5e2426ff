//! Real lldb, in batch mode: what it prints is read here. One guest and one port a test.

use std::path::PathBuf;

use taskvisor_tests::debugged::Debugged;
use taskvisor_tests::{Run, prereq, serial};

/// A running guest in lldb.
struct Lldb {
    guest: Debugged,
    lldb: PathBuf,
}

impl Lldb {
    fn start(vcpus: u32, mode: &[&str]) -> Option<Self> {
        let lldb = prereq::system_program(&["lldb", "lldb-14", "lldb-15", "lldb-16", "lldb-19"])?;
        Some(Self { guest: Debugged::of("cases.c", vcpus, mode)?, lldb })
    }

    /// What lldb prints for each command.
    fn says(&self, commands: &[&str]) -> String {
        let mut run = Run::new(&self.lldb).args(["-x", "-b"]);
        let create = format!("target create {}", self.guest.program().display());
        let connect = format!("process connect unix-connect://{}", self.guest.socket().display());
        for command in [create.as_str(), connect.as_str()].iter().chain(commands) {
            // `-k`: once it has stopped for a signal, batch mode goes on with those only.
            let (option, command) = command.strip_prefix("then: ").map_or(("-o", *command), |command| ("-k", command));
            run = run.args([option, command]);
        }
        let text = run.run().text();
        println!("{text}");
        text
    }
}

/// Each of these in this order.
#[track_caller]
fn in_order(text: &str, wanted: &[&str]) {
    let mut rest = text;
    for wanted in wanted {
        let Some(at) = rest.find(wanted) else { panic!("not there, or not in its place: {wanted:?} in\n{text}") };
        rest = &rest[at + wanted.len()..];
    }
}

#[test]
fn tasks_are_threads_with_names_frames_and_registers() {
    let _beside_others = serial::shared();
    for vcpus in [1, 2] {
        let Some(lldb) = Lldb::start(vcpus, &["float"]) else { return };
        let text = lldb.says(&[
            "breakpoint set -n marker",
            "continue",
            "thread list",
            "bt",
            "register read rip task_id mode",
            "target variable place pattern message",
            "thread select 3",
            "register read rbx rax",
            "breakpoint delete -f",
            "process detach",
        ]);
        in_order(
            &text,
            &[
                "where = target`marker",
                "stop reason = breakpoint 1.1",
                "tid = 1,",
                "name = 'target (user task, running on vCPU",
                "tid = 2,",
                "blocked on futex",
                "idle/0 (idle task",
                "frame #0:",
                "target`marker",
                "frame #1:",
                "target`main",
                "rip = 0x",
                "task_id = 0x00000001",
                "mode = 0x00000003",
                "(x = 3, y = 4, name = \"here\")",
                "[15] = 987",
                "message = \"as it was",
                "rbx = 0x",
                // What the switch doesn't save isn't known, and isn't made up.
                "error: unavailable",
                "detached",
            ],
        );
        lldb.guest.end().expect_code(7).expect_stdout("product 6.750");
    }
}

#[test]
fn steps_writes_and_breakpoints() {
    let _beside_others = serial::shared();
    let Some(lldb) = Lldb::start(2, &["calls", "6"]) else { return };
    let message = format!("{:#x}", lldb.guest.symbol("message"));
    let text = lldb.says(&[
        "breakpoint set -n outer",
        "continue",
        "thread step-inst",
        "thread step-in",
        "thread step-in",
        "thread step-out",
        "thread step-over",
        "register write rbx 0x4d",
        "register read rbx",
        "register write rbx 15",
        &format!("memory read -c 9 {message}"),
        &format!("memory write {message} 0x41"),
        "expression message[0]",
        "expression pattern[5] = 7",
        "disassemble -n marker",
        "process plugin packet monitor tasks",
        "breakpoint set -n fib",
        "continue",
        "bt",
        "breakpoint delete -f",
        "process detach",
    ]);
    in_order(
        &text,
        &[
            "stop reason = breakpoint 1.1",
            "stop reason = instruction step",
            "target`sum_to",
            "stop reason = step out",
            "stop reason = step over",
            "rbx = 0x000000000000004d",
            "as it was",
            "(char) $1 = 'A'",
            "= 7",
            "target`marker:",
            "response: 20202020",
            "stop reason = breakpoint 2.1",
            "fib(n=5)",
            "outer(n=5)",
            "detached",
        ],
    );
    lldb.guest.end().expect_code(7).expect_stdout("outer 49 As it was");
}

#[test]
fn a_fault_and_the_end_are_told() {
    let _beside_others = serial::shared();
    let Some(lldb) = Lldb::start(2, &["handled", "1"]) else { return };
    let text = lldb.says(&["continue", "then: bt", "then: continue"]);
    in_order(&text, &["stop reason = signal SIGSEGV", "target`main", "exited with status = 7"]);
    lldb.guest.end().expect_code(7).expect_stdout("faults 1");
}

#[test]
fn another_session_finds_a_clean_guest_and_kill_ends_it() {
    let _beside_others = serial::shared();
    let Some(lldb) = Lldb::start(2, &["hits", "4", "2000000000"]) else { return };
    for _ in 0..2 {
        let text = lldb.says(&["breakpoint set -n hit", "continue", "breakpoint delete -f", "process detach"]);
        in_order(&text, &["stop reason = breakpoint 1.1", "detached"]);
    }
    in_order(&lldb.says(&["process kill"]), &["exited"]);
    lldb.guest.end().expect_code(143);
}
