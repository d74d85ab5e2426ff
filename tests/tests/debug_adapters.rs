//! The debug adapters of editors: what VS Code's C++ adapter says to gdb over MI in a remote launch, and lldb's own adapter over DAP.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use taskvisor_tests::debugged::Debugged;
use taskvisor_tests::{prereq, serial};

/// A program that is talked to. It ends with its standard input, and with the guest's port, which has a limit.
struct Talk {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Talk {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        let input = child.stdin.take().expect("it was asked for");
        let output = BufReader::new(child.stdout.take().expect("it was asked for"));
        Self { child, input, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.output.read_line(&mut line).expect("it can be read"), 0, "the adapter's debugger has ended");
        println!("< {}", line.trim_end());
        line
    }

    /// The first line that begins so.
    fn line_with(&mut self, start: &str) -> String {
        loop {
            let line = self.line();
            if line.starts_with(start) {
                return line;
            }
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// gdb's machine interface.
struct Mi {
    talk: Talk,
    token: u32,
}

impl Mi {
    /// A command's result.
    fn ask(&mut self, command: &str) -> String {
        self.token += 1;
        writeln!(self.talk.input, "{}{command}", self.token).expect("gdb reads");
        self.talk.line_with(&format!("{}^", self.token))
    }

    #[track_caller]
    fn done(&mut self, command: &str) -> String {
        let result = self.ask(command);
        assert!(
            result.contains("^done") || result.contains("^connected") || result.contains("^running"),
            "{command}: {result}"
        );
        result
    }
}

#[test]
fn the_c_plus_plus_adapter_s_remote_launch() {
    let _beside_others = serial::shared();
    let Some(gdb) = prereq::system_program(&["gdb"]) else { return };
    let Some(guest) = Debugged::of("cases.c", 2, &["float"]) else { return };
    let mut mi = Mi { talk: Talk::start(&gdb, &["--interpreter=mi2", "-q", "-nx"]), token: 1000 };
    // In the order of MIEngine's launch with miDebuggerServerAddress.
    mi.done("-gdb-set mi-async on");
    mi.done("-gdb-set debuginfod enabled off");
    mi.done("-enable-pretty-printing");
    mi.done("-gdb-set breakpoint pending on");
    mi.done("-gdb-set non-stop off");
    mi.done(&format!("-file-exec-and-symbols {}", guest.program().display()));
    mi.done(&format!("-target-select remote {}", guest.socket().display()));
    assert!(mi.done("-thread-info").contains("id=\"1\""), "the first thread is there");
    let inserted = mi.done("-break-insert -f marker");
    assert!(inserted.contains("func=\"marker\""), "{inserted}");
    mi.done("-exec-continue");
    let stopped = mi.talk.line_with("*stopped");
    assert!(stopped.contains("reason=\"breakpoint-hit\"") && stopped.contains("thread-id=\"1\""), "{stopped}");
    assert!(stopped.contains("stopped-threads=\"all\""), "{stopped}");
    let threads = mi.done("-thread-info");
    for known in ["id=\"1\"", "blocked on futex", "idle task", "core=\"0\"", "current-thread-id=\"1\""] {
        assert!(threads.contains(known), "{known}: {threads}");
    }
    let frames = mi.done("-stack-list-frames --thread 1 0 1000");
    assert!(frames.contains("func=\"marker\"") && frames.contains("func=\"main\""), "{frames}");
    mi.done("-stack-list-variables --thread 1 --frame 1 --simple-values");
    let variable = mi.done("-var-create - * place");
    assert!(variable.contains("numchild=\"3\""), "{variable}");
    assert!(mi.done("-data-list-register-names").contains("task_id"));
    assert!(mi.done("-data-list-register-values --thread 1 --skip-unavailable x 16").contains("0x40"));
    let evaluated = mi.done("-data-evaluate-expression pattern[5]");
    assert!(evaluated.contains("value=\"8\""), "{evaluated}");
    mi.done("-exec-next --thread 1");
    assert!(mi.talk.line_with("*stopped").contains("end-stepping-range"));
    mi.done("-break-delete");
    mi.done("-exec-continue");
    mi.talk.line_with("*stopped,reason=\"exited\",exit-code=\"07\"");
    mi.ask("-gdb-exit");
    guest.end().expect_code(7).expect_stdout("product 6.750");
}

/// The Debug Adapter Protocol: a header with a length, and JSON.
struct Dap {
    talk: Talk,
    sequence: u64,
    events: Vec<Value>,
}

impl Dap {
    fn send(&mut self, command: &str, arguments: &Value) -> u64 {
        self.sequence += 1;
        let request =
            json!({"seq": self.sequence, "type": "request", "command": command, "arguments": arguments}).to_string();
        write!(self.talk.input, "Content-Length: {}\r\n\r\n{request}", request.len()).expect("the adapter reads");
        self.sequence
    }

    fn message(&mut self) -> Value {
        let header = self.talk.line_with("Content-Length: ");
        let length = header["Content-Length: ".len()..].trim().parse().expect("a length");
        self.talk.line();
        let mut bytes = vec![0; length];
        self.talk.output.read_exact(&mut bytes).expect("a whole message");
        let message: Value = serde_json::from_slice(&bytes).expect("JSON");
        println!("< {message}");
        message
    }

    /// A request's answer; events on the way are kept.
    #[track_caller]
    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let sequence = self.send(command, arguments);
        loop {
            let message = self.message();
            if message["type"] == "response" && message["request_seq"] == sequence {
                assert_eq!(message["success"], true, "{command}: {message}");
                return message["body"].clone();
            }
            self.events.push(message);
        }
    }

    /// The next event of this name that has not been looked at.
    fn event(&mut self, name: &str) -> Value {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.drain(..=at).next_back().expect("it is there")["body"].clone();
            }
            let message = self.message();
            self.events.push(message);
        }
    }
}

#[test]
fn lldb_s_adapter_attaches_stops_looks_and_goes_on() {
    let _beside_others = serial::shared();
    let names = ["lldb-dap", "lldb-vscode", "lldb-vscode-14", "lldb-vscode-15", "lldb-vscode-16"];
    let Some(adapter) = prereq::system_program(&names) else { return };
    let Some(guest) = Debugged::of("cases.c", 2, &["float"]) else { return };
    let mut dap = Dap { talk: Talk::start(&adapter, &[]), sequence: 0, events: Vec::new() };
    dap.ask(
        "initialize",
        &json!({"adapterID": "lldb", "linesStartAt1": true, "columnsStartAt1": true, "pathFormat": "path"}),
    );
    let connect = format!("process connect unix-connect://{}", guest.socket().display());
    dap.ask("attach", &json!({"program": guest.program(), "attachCommands": [connect], "stopOnEntry": true}));
    dap.event("initialized");
    let set = dap.ask("setFunctionBreakpoints", &json!({"breakpoints": [{"name": "marker"}]}));
    assert_eq!(set["breakpoints"][0]["verified"], true, "{set}");
    dap.ask("configurationDone", &json!({}));
    dap.ask("continue", &json!({"threadId": 1}));
    while dap.event("stopped")["reason"] != "breakpoint" {}
    let threads = dap.ask("threads", &json!({}))["threads"].clone();
    let named =
        |text: &str| threads.as_array().into_iter().flatten().any(|t| t["name"].as_str().unwrap_or("").contains(text));
    assert!(threads[0]["id"] == 1 && named("blocked on futex") && named("idle task"), "{threads}");
    let frames = dap.ask("stackTrace", &json!({"threadId": 1, "levels": 20}))["stackFrames"].clone();
    assert!(frames[0]["name"] == "marker" && frames[1]["name"] == "main", "{frames}");
    let scopes = dap.ask("scopes", &json!({"frameId": frames[1]["id"]}))["scopes"].clone();
    let mut seen = String::new();
    for scope in scopes.as_array().into_iter().flatten() {
        seen += &dap.ask("variables", &json!({"variablesReference": scope["variablesReference"]})).to_string();
    }
    assert!(seen.contains("\"argc\"") && seen.contains("\"pattern\"") && seen.contains("\"task\""), "{seen}");
    let found =
        dap.ask("evaluate", &json!({"expression": "pattern[5]", "frameId": frames[0]["id"], "context": "watch"}));
    assert_eq!(found["result"], "8");
    dap.ask("next", &json!({"threadId": 1}));
    assert_eq!(dap.event("stopped")["reason"], "step");
    dap.ask("setFunctionBreakpoints", &json!({"breakpoints": []}));
    dap.ask("continue", &json!({"threadId": 1}));
    assert_eq!(dap.event("exited")["exitCode"], 7);
    dap.ask("disconnect", &json!({}));
    guest.end().expect_code(7).expect_stdout("product 6.750");
}
