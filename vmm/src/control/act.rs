//! What the control interface does to a machine: runs and pauses it, changes its tasks, starts programs. Everything that reaches
//! into the guest goes through its mailbox and may wait for the guest: for threads that may wait.

use axum::http::StatusCode;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::Nanos;
use vcpu_sched::requests::change::{ParamChange, policy_number};
use vcpu_sched::requests::message::{Request, Spawn, Streams};
use vcpu_sched::task::suspension::Holder;

use super::api::{ClockChange, SignalRequest, SpawnRequest, Spawned, StreamsChoice, TaskChange, Vm};
use super::machine::Machine;
use super::problem::Fault;
use super::signals;
use crate::affinity::parse;
use crate::clock::{Rate, Status, Step};
use crate::guestview::Task;
use crate::requests::RequestError;
use crate::trace::Live;
use crate::trace::live::{self, Wanted};

/// The first program, whose end is the guest's.
const FIRST_PROGRAM: u32 = 1;

impl Machine {
    /// One task, by number.
    pub fn task(&self, id: u32) -> Result<Task, Fault> {
        self.tasks()?.tasks.into_iter().find(|task| task.id == id).ok_or_else(|| no_task(id))
    }

    /// Stops all vCPUs.
    pub fn pause(&self) -> Result<Vm, Fault> {
        self.run.pause()?;
        Ok(self.vm())
    }

    /// Lets them go on.
    pub fn resume(&self) -> Vm {
        self.run.resume();
        self.vm()
    }

    /// Asks the first program to end, as a terminal that is closed would.
    pub fn shutdown(&self) -> Result<Vm, Fault> {
        self.check_runs()?;
        match self.mailbox.ask(&Request::Signal { task: FIRST_PROGRAM, signal: signals::TERM, thread_only: false }) {
            // Its end may overtake the answer.
            Ok(_) | Err(RequestError::Ended) => Ok(self.vm()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the VMM as SIGTERM does: at once, and in order.
    pub fn kill(&self) -> Result<Vm, Fault> {
        let vm = self.vm();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).map_err(|error| {
            Fault::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the VMM can't be signalled: {error}"),
                "kill its pid",
            )
        })?;
        Ok(vm)
    }

    /// Changes how and where a task runs, and shows it as it is then. Where the second of two changes fails, the first is undone.
    pub fn change(&self, id: u32, change: &TaskChange) -> Result<Task, Fault> {
        let cpus = change.affinity.as_deref().map(cpu_mask).transpose()?;
        let params = params(change)?;
        let before = self.task(id)?;
        if let Some(cpus) = cpus {
            self.ask(&Request::SetAffinity { task: id, cpus })?;
        }
        if params != ParamChange::default()
            && let Err(fault) = self.ask(&Request::SetParams { task: id, change: params })
        {
            if let Some(cpus) = before.affinity.filter(|_| change.affinity.is_some()) {
                let undone = cpu_mask(&cpus).and_then(|cpus| self.ask(&Request::SetAffinity { task: id, cpus }));
                if let Err(stuck) = undone {
                    let detail = format!("{}; and its affinity could not be put back: {}", fault.detail, stuck.detail);
                    return Err(Fault { detail, ..fault });
                }
            }
            return Err(fault);
        }
        self.task(id)
    }

    /// Holds a task off its program, or lets it go on.
    pub fn suspend(&self, id: u32, held: bool) -> Result<Task, Fault> {
        let holder = Holder::Api;
        self.ask(&match held {
            true => Request::Suspend { task: id, holder },
            false => Request::Resume { task: id, holder },
        })?;
        self.task(id)
    }

    /// Changes the clock, and shows it as it is then.
    pub fn change_clock(&self, change: &ClockChange) -> Result<Status, Fault> {
        let rate = change.rate.as_deref().map(str::parse::<Rate>).transpose();
        let rate =
            rate.map_err(|error| Fault::bad(format!("rate: {error}"), "send a decimal number from 0.01 to 100"))?;
        if let Some(rate) = rate {
            self.clock.set_rate(rate)?;
        }
        if let Some(ns) = change.step_forward_ns {
            self.clock.step(Step::Forward(Nanos(ns)))?;
        }
        if let Some(ns) = change.step_backward_ns {
            self.clock.step(Step::Backward(Nanos(ns)))?;
        }
        if let Some(offset) = &change.offset {
            self.clock.set_offset(offset.vcpu, offset.ns, offset.backward)?;
        }
        Ok(self.clock.status())
    }

    /// Sends a signal.
    pub fn signal(&self, id: u32, request: &SignalRequest) -> Result<(), Fault> {
        let signal = signals::number(&request.signal).ok_or_else(|| {
            Fault::bad(
                format!("there is no signal {:?}", request.signal),
                "send a number from 1 to 64, or a name such as TERM",
            )
        })?;
        self.ask(&Request::Signal { task: id, signal, thread_only: request.thread }).map(drop)
    }

    /// Starts a program.
    pub fn spawn(&self, request: SpawnRequest) -> Result<Spawned, Fault> {
        let SpawnRequest { path, args, env, cwd, streams } = request;
        let strings = [&path].into_iter().chain(&args).chain(&env).chain(&cwd);
        if path.is_empty() || strings.into_iter().any(|text| text.contains('\0')) {
            return Err(Fault::bad("the path is empty, or a string has a zero in it", "send what execve(2) takes"));
        }
        let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
        let bytes = |list: Vec<String>| list.into_iter().map(String::into_bytes);
        let process = self.ask(&Request::Spawn(Spawn {
            args: std::iter::once(name.into_bytes()).chain(bytes(args)).collect(),
            env: bytes(env).collect(),
            cwd: cwd.unwrap_or_default().into_bytes(),
            streams: match streams {
                StreamsChoice::Console => Streams::Console,
                StreamsChoice::Null => Streams::Null,
                StreamsChoice::Attached => Streams::Attached,
            },
            path: path.into_bytes(),
        }))?;
        let broken =
            || Fault::new(StatusCode::BAD_GATEWAY, "the guest names a process that can't be", "see docs/abi.md");
        Ok(Spawned { process: u32::try_from(process).map_err(|_| broken())? })
    }

    /// What records the guest.
    pub fn tracing(&self) -> Result<&Live, Fault> {
        let hint = "start it with --control";
        self.trace.as_ref().ok_or_else(|| Fault::new(StatusCode::NOT_IMPLEMENTED, "nothing can be recorded", hint))
    }

    /// Begins a recording.
    pub fn start_trace(&self, wanted: &Wanted) -> Result<live::Status, Fault> {
        self.check_runs()?;
        Ok(self.tracing()?.start(&self.mailbox, wanted)?)
    }

    /// Ends it, also that of a machine that is paused.
    pub fn stop_trace(&self) -> Result<live::Status, Fault> {
        let mailbox = (!self.run.paused()).then_some(&self.mailbox);
        Ok(self.tracing()?.stop(mailbox)?)
    }

    fn ask(&self, request: &Request) -> Result<u64, Fault> {
        self.check_runs()?;
        Ok(self.mailbox.ask(request)?)
    }

    /// It isn't paused.
    pub(super) fn check_runs(&self) -> Result<(), Fault> {
        if self.run.paused() {
            let detail = "the machine is paused, so its kernel can't do anything";
            return Err(Fault::new(StatusCode::CONFLICT, detail, "POST /v1/vm/resume first"));
        }
        Ok(())
    }
}

fn no_task(id: u32) -> Fault {
    let detail = format!("the guest has no task {id}; it may have ended");
    Fault::new(StatusCode::NOT_FOUND, detail, "GET /v1/tasks lists those that live")
}

fn cpu_mask(text: &str) -> Result<CpuMask, Fault> {
    let bad = |why: String| Fault::bad(format!("affinity: {why}"), "send a list of the guest's CPUs: 0-1,3");
    let cpus = parse::cpus(text).map_err(|error| bad(error.to_string()))?;
    let mut mask = CpuMask::empty();
    for cpu in cpus.iter() {
        if cpu >= vcpu_sched::cpumask::MAX_CPUS {
            return Err(bad(format!("there is no CPU {cpu}")));
        }
        mask.set(vcpu_sched::ids::CpuId(cpu));
    }
    Ok(mask)
}

fn params(change: &TaskChange) -> Result<ParamChange, Fault> {
    let policy = change.policy.as_deref().map(|name| {
        let detail = || format!("there is no policy {name:?}");
        let hint = "one of other, batch, idle, fifo, rr, deadline, delegated";
        policy_number(name).ok_or_else(|| Fault::bad(detail(), hint))
    });
    Ok(ParamChange {
        policy: policy.transpose()?,
        nice: change.nice,
        priority: change.priority,
        runtime: change.runtime_ns,
        deadline: change.deadline_ns,
        period: change.period_ns,
        reset_on_fork: None,
    })
}
