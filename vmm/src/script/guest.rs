//! Guests of a script: processes of this program, and what can be asked of them.
//!
//! All of them end with the script, whatever ends that: [`Guests`] kills those that are left, and if this process is killed, the
//! kernel tells them.

use std::cell::RefCell;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use rhai::{Array, Dynamic, Engine, ImmutableString, Map};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::capture::{Capture, Seen};
use super::place::Place;
use super::values::{flags, read, show, word};
use super::{Answer, duration, failed};
use crate::config::units::parse_duration;
use crate::control::api::{
    Classed, Classes, ClockChange, Pinned, Pins, SignalRequest, SpawnRequest, Spawned, Stats, TaskChange, Tasks, Vcpus,
    Vm,
};
use crate::control::client::Client;
use crate::guestview::Task;

/// Guests at a time.
const MAX_GUESTS: usize = 64;
/// How long a guest's socket may take to come.
const START: Duration = Duration::from_secs(30);
/// A guest that isn't told otherwise ends after this.
const DEFAULT_TIMEOUT: &str = "300s";
/// Between two looks at what has no event.
const LOOK: Duration = Duration::from_millis(10);
/// How long a VMM may take to end in order.
const FAREWELL: Duration = Duration::from_secs(5);

/// All guests of a script, and where their sockets are.
#[derive(Debug)]
pub struct Guests {
    place: Place,
    list: RefCell<Vec<Rc<RefCell<Process>>>>,
}

impl Guests {
    /// None yet, with a private directory for their sockets.
    pub fn new() -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self { place: Place::new()?, list: RefCell::default() }))
    }

    fn launch(&self, options: &Map, program: &Array) -> Answer<Guest> {
        let mut list = self.list.borrow_mut();
        list.retain(|process| !process.borrow_mut().has_ended());
        if list.len() >= MAX_GUESTS {
            return Err(failed(format!("{MAX_GUESTS} guests run already")));
        }
        let program = program.iter().map(word).collect::<Answer<Vec<_>>>()?;
        let number = list.iter().map(|process| process.borrow().number).max().unwrap_or(0) + 1;
        let socket = self.place.path().join(number.to_string());
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("run").arg("--control").arg(&socket).args(flags(options)?);
        if !options.contains_key("timeout") {
            command.args(["--timeout", DEFAULT_TIMEOUT]);
        }
        if !program.is_empty() {
            command.arg("--").args(&program);
        }
        // SAFETY: between fork and exec, a system call alone.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?));
        }
        let start = Instant::now();
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
        let capture = |stream: Option<Box<dyn io::Read + Send>>| stream.map(Capture::start).unwrap_or_default();
        let stdout = capture(child.stdout.take().map(|s| Box::new(s) as _));
        let stderr = capture(child.stderr.take().map(|s| Box::new(s) as _));
        let process = Process { child, number, start, socket, stdout, stderr, client: None, code: None, seconds: None };
        let process = Rc::new(RefCell::new(process));
        list.push(process.clone());
        process.borrow_mut().connect()?;
        Ok(Guest(process))
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        for process in self.list.borrow().iter() {
            process.borrow_mut().end();
        }
    }
}

#[derive(Debug)]
struct Process {
    child: Child,
    number: u32,
    start: Instant,
    socket: PathBuf,
    stdout: Capture,
    stderr: Capture,
    client: Option<Client>,
    code: Option<i64>,
    seconds: Option<f64>,
}

impl Process {
    fn has_ended(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        if self.code.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.seconds = Some(self.start.elapsed().as_secs_f64());
            self.code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).map(i64::from);
        }
        self.code.is_some()
    }

    /// Waits for the socket. A guest that has ended already is no error: it may have been short.
    fn connect(&mut self) -> Answer<()> {
        let deadline = Instant::now() + START;
        while self.client.is_none() && !self.has_ended() {
            match Client::connect(&self.socket) {
                Ok(client) => self.client = Some(client),
                Err(error) if Instant::now() >= deadline => return Err(failed(error)),
                Err(_) => thread::sleep(LOOK),
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        if self.has_ended() {
            return;
        }
        let pid = Pid::from_child(&self.child);
        // It may end by itself just now.
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + FAREWELL;
        while !self.has_ended() && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// Asks over the control socket.
    fn ask<T>(&mut self, f: impl FnOnce(&mut Client) -> Result<T, crate::control::client::ClientError>) -> Answer<T> {
        if self.has_ended() {
            // Its last words may still be on their way here.
            self.stderr.wait_end(Instant::now() + FAREWELL);
            let said = self.stderr.text();
            let last = said.lines().last().unwrap_or("nothing on its standard error");
            return Err(failed(format!("the guest has ended with code {}: {last}", self.code.unwrap_or_default())));
        }
        let client = self.client.as_mut().ok_or_else(|| failed("the guest has no control socket"))?;
        f(client).map_err(failed)
    }
}

/// A guest, as a script has it.
#[derive(Debug, Clone)]
pub struct Guest(Rc<RefCell<Process>>);

/// A time as flags take it, from now on.
fn until(time: &str) -> Answer<Instant> {
    Ok(Instant::now() + duration(time)?)
}

impl Guest {
    fn ask<T>(&self, f: impl FnOnce(&mut Client) -> Result<T, crate::control::client::ClientError>) -> Answer<T> {
        self.0.borrow_mut().ask(f)
    }

    /// Waits for the guest's end; what came of it.
    fn wait(&mut self, time: ImmutableString) -> Answer<Map> {
        let deadline = until(&time)?;
        let stdout = self.0.borrow().stdout.clone();
        // Its streams end with it.
        stdout.wait_end(deadline);
        while !self.0.borrow_mut().has_ended() {
            if Instant::now() >= deadline {
                return Err(failed(format!("the guest has not ended within {time}")));
            }
            thread::sleep(LOOK);
        }
        self.0.borrow().stderr.wait_end(deadline);
        self.result()
    }

    fn result(&mut self) -> Answer<Map> {
        let process = self.0.borrow();
        let mut map = Map::new();
        map.insert("code".into(), process.code.unwrap_or(-1).into());
        map.insert("seconds".into(), process.seconds.unwrap_or_else(|| process.start.elapsed().as_secs_f64()).into());
        map.insert("stdout".into(), process.stdout.text().into());
        map.insert("stderr".into(), process.stderr.text().into());
        Ok(map)
    }

    /// Waits until the program has printed this.
    fn wait_output(&mut self, text: ImmutableString, time: ImmutableString) -> Answer<()> {
        let stdout = self.0.borrow().stdout.clone();
        match stdout.wait_for(text.as_bytes(), until(&time)?) {
            Seen::Yes => Ok(()),
            Seen::Late => Err(failed(format!("the program has not printed {text:?} within {time}"))),
            Seen::Ended => Err(failed(format!("the program has ended and not printed {text:?}"))),
        }
    }

    /// Waits until a task of that name is in that state; the task.
    fn wait_task(&mut self, name: ImmutableString, state: ImmutableString, time: ImmutableString) -> Answer<Dynamic> {
        let deadline = until(&time)?;
        loop {
            // The guest's kernel may not have come that far.
            let tasks = self.ask(|client| Ok(client.get::<Tasks>("/v1/tasks").ok()))?;
            let found =
                tasks.and_then(|list| list.tasks.into_iter().find(|t| t.name == *name && t.state.name() == state));
            if let Some(task) = found {
                return show(&task);
            }
            if Instant::now() >= deadline {
                return Err(failed(format!("no task {name:?} has come to be {state} within {time}")));
            }
            thread::sleep(LOOK);
        }
    }

    /// Sleeps until the guest is so old.
    fn at(&mut self, age: ImmutableString) -> Answer<()> {
        let then = self.0.borrow().start + duration(&age)?;
        thread::sleep(then.saturating_duration_since(Instant::now()));
        Ok(())
    }

    fn age(&mut self) -> f64 {
        self.0.borrow().start.elapsed().as_secs_f64()
    }

    fn running(&mut self) -> bool {
        !self.0.borrow_mut().has_ended()
    }

    fn tasks(&mut self) -> Answer<Dynamic> {
        show(&self.ask(|client| client.get::<Tasks>("/v1/tasks"))?.tasks)
    }

    fn vcpus(&mut self) -> Answer<Dynamic> {
        show(&self.ask(|client| client.get::<Vcpus>("/v1/vcpus"))?.vcpus)
    }

    fn vm(&mut self) -> Answer<Dynamic> {
        show(&self.ask(|client| client.get::<Vm>("/v1/vm"))?)
    }

    fn stats(&mut self) -> Answer<Dynamic> {
        show(&self.ask(|client| client.get::<Stats>("/v1/vm/stats"))?)
    }

    fn clock(&mut self) -> Answer<Dynamic> {
        show(&self.ask(|client| client.get::<Value>("/v1/clock"))?)
    }

    fn set_clock(&mut self, change: Map) -> Answer<Dynamic> {
        let change: ClockChange = read(change)?;
        show(&self.ask(|client| client.patch::<Value>("/v1/clock", &change))?)
    }

    fn pin(&mut self, pins: ImmutableString) -> Answer<Dynamic> {
        show(&self.ask(|client| client.put::<Vec<Pinned>>("/v1/affinity", &Pins { pins: pins.into() }))?)
    }

    fn vcpu_sched(&mut self, classes: ImmutableString) -> Answer<Dynamic> {
        let classes = Classes { classes: classes.into() };
        show(&self.ask(|client| client.put::<Vec<Classed>>("/v1/vcpu-sched", &classes))?)
    }

    fn set(&mut self, task: i64, change: Map) -> Answer<Dynamic> {
        let change: TaskChange = read(change)?;
        show(&self.ask(|client| client.patch::<Task>(&format!("/v1/tasks/{task}"), &change))?)
    }

    fn task_verb(&mut self, task: i64, verb: &str) -> Answer<Dynamic> {
        show(&self.ask(|client| client.post::<Task>(&format!("/v1/tasks/{task}/{verb}")))?)
    }

    fn signal(&mut self, task: i64, signal: ImmutableString) -> Answer<()> {
        let request = SignalRequest { signal: signal.into(), thread: false };
        self.ask(|client| client.send::<Value>(&format!("/v1/tasks/{task}/signal"), &request)).map(drop)
    }

    fn start(&mut self, path: ImmutableString, args: Array) -> Answer<i64> {
        let args = args.iter().map(word).collect::<Answer<Vec<_>>>()?;
        let request = SpawnRequest { path: path.into(), args, ..SpawnRequest::default() };
        let spawned: Spawned = self.ask(|client| client.send("/v1/tasks", &request))?;
        Ok(spawned.process.into())
    }

    fn vm_verb(&mut self, verb: &str) -> Answer<()> {
        self.ask(|client| client.post::<Value>(&format!("/v1/vm/{verb}"))).map(drop)
    }

    fn kill(&mut self) {
        self.0.borrow_mut().end();
    }
}

/// Gives a script `launch`, `run`, and what can be done with a guest.
pub fn register(engine: &mut Engine, guests: &Rc<Guests>) {
    engine.register_type_with_name::<Guest>("Guest");
    let all = guests.clone();
    engine.register_fn("launch", move |options: Map, program: Array| all.launch(&options, &program));
    let all = guests.clone();
    engine.register_fn("run", move |options: Map, program: Array| -> Answer<Map> {
        let limit = options.get("timeout").map_or_else(|| DEFAULT_TIMEOUT.to_owned(), Dynamic::to_string);
        // What the VMM takes for its own end comes on top.
        let limit = parse_duration(&limit).map_err(failed)? + FAREWELL;
        all.launch(&options, &program)?.wait(format!("{}ms", limit.as_millis()).into())
    });
    engine
        .register_fn("wait", Guest::wait)
        .register_fn("result", Guest::result)
        .register_fn("wait_output", Guest::wait_output)
        .register_fn("wait_task", Guest::wait_task)
        .register_fn("at", Guest::at)
        .register_fn("age", Guest::age)
        .register_fn("running", Guest::running)
        .register_fn("tasks", Guest::tasks)
        .register_fn("vcpus", Guest::vcpus)
        .register_fn("vm", Guest::vm)
        .register_fn("stats", Guest::stats)
        .register_fn("clock", Guest::clock)
        .register_fn("set_clock", Guest::set_clock)
        .register_fn("pin", Guest::pin)
        .register_fn("vcpu_sched", Guest::vcpu_sched)
        .register_fn("set", Guest::set)
        .register_fn("suspend", |guest: &mut Guest, task: i64| guest.task_verb(task, "suspend"))
        .register_fn("resume", |guest: &mut Guest, task: i64| guest.task_verb(task, "resume"))
        .register_fn("signal", Guest::signal)
        .register_fn("start", Guest::start)
        .register_fn("pause", |guest: &mut Guest| guest.vm_verb("pause"))
        .register_fn("resume", |guest: &mut Guest| guest.vm_verb("resume"))
        .register_fn("shutdown", |guest: &mut Guest| guest.vm_verb("shutdown"))
        .register_fn("kill", Guest::kill);
}
