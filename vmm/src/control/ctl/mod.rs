//! `taskvisor ctl`: the control interface for people and shell scripts.

mod attach;
mod tables;
mod trace;

use std::path::Path;

use clap::builder::{PossibleValue, PossibleValuesParser};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vcpu_sched::requests::change::{ALIASES, POLICIES};

pub use self::tables::{or_dash, state, table, time};
use self::tables::{tasks_table, vcpus_table, vm_table};
pub use self::trace::TraceCommand;
use super::api::{
    Classed, Classes, ClockChange, ClockOffset, Pinned, Pins, SignalRequest, Spawned, Stats, StreamsChoice, TaskChange,
    Tasks, Vcpus, Vm,
};
use super::client::{Client, ClientError};
use crate::clock::Status;
use crate::guestview::Task;

/// What to ask for.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Question {
    /// The machine as a whole: what it is and whether it runs
    #[command(visible_alias = "vm")]
    Status,
    /// Sums over the machine: memory in use, exits, host time, tasks by state
    Stats,
    /// vCPUs: host threads, where they may run, exits, and the task each runs
    Vcpus,
    /// The guest's tasks
    Tasks,
    /// Move vCPU threads to other host CPUs, all of them or none, and show what the host reads back
    Pin {
        /// VCPUS=CPUS;..., as --affinity of run takes it
        pins: String,
    },
    /// Change how urgently vCPU threads run on the host, all of them or none, and show what the host reads back
    Sched {
        /// VCPUS=CLASS;..., or a class for all, as --vcpu-sched of run takes it
        classes: String,
    },
    /// Stop all vCPUs
    Pause,
    /// Let stopped vCPUs, or a suspended task, go on
    Resume {
        /// Number of the task; without it, the vCPUs
        task: Option<u32>,
    },
    /// Take a task off its CPU, and let it execute nothing of its program until it is resumed
    Suspend {
        /// Number of the task
        task: u32,
    },
    /// Send a signal to a task's process
    Signal {
        /// Number of the task
        task: u32,
        /// Number, or name with or without SIG
        signal: String,
        /// To this thread alone
        #[arg(long)]
        thread: bool,
    },
    /// End a task's process (SIGKILL); without a task the VMM, as SIGTERM to it does
    Kill {
        /// Number of the task
        task: Option<u32>,
    },
    /// Ask the first program to end (SIGTERM)
    Shutdown,
    /// Schedule a task otherwise; what isn't named stays
    Set(SetArgs),
    /// Start a program that is in the guest, or --host's
    Spawn(SpawnArgs),
    /// Take over the streams of a program that was spawned with --streams attached, and end as it does
    Attach {
        /// Number of its process
        process: u32,
    },
    /// The guest's clock: what it is, and changes to it
    #[command(visible_alias = "clock")]
    Tsc(ClockArgs),
    /// Record what the guest does, from now on and until told to stop
    Trace {
        /// What to do.
        #[command(subcommand)]
        command: TraceCommand,
    },
    /// The machine's counters as Prometheus reads them
    Metrics,
}

/// The names that the API takes.
fn policies() -> PossibleValuesParser {
    let all = POLICIES.iter().map(|(_, name)| PossibleValue::new(*name));
    PossibleValuesParser::new(all.chain(ALIASES.iter().map(|(_, name)| PossibleValue::new(*name).hide(true))))
}

/// What changes of a task.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Changes {
    /// Its scheduling policy
    #[arg(long, value_parser = policies())]
    pub policy: Option<String>,
    /// -20 to 19
    #[arg(long, allow_hyphen_values = true)]
    pub nice: Option<i32>,
    /// Real-time priority, 1 to 99
    #[arg(long)]
    pub priority: Option<u32>,
    /// Budget of a deadline task, slice of a fair one, in nanoseconds
    #[arg(long, value_name = "NS")]
    pub runtime: Option<u64>,
    /// Of a deadline task, in nanoseconds
    #[arg(long, value_name = "NS")]
    pub deadline: Option<u64>,
    /// Of a deadline task, in nanoseconds
    #[arg(long, value_name = "NS")]
    pub period: Option<u64>,
    /// Guest CPUs that it may run on
    #[arg(long, value_name = "CPUS")]
    pub affinity: Option<String>,
}

/// Flags of `set`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct SetArgs {
    /// Number of the task
    pub task: u32,
    /// What changes.
    #[command(flatten)]
    pub changes: Changes,
}

/// What changes of the clock; nothing: show it.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct ClockArgs {
    /// Seconds of virtual time in a second of the host's, 0.01 to 100
    #[arg(long)]
    pub rate: Option<String>,
    /// All clocks jump ahead, by nanoseconds
    #[arg(long, value_name = "NS", conflicts_with = "step_backward")]
    pub step_forward: Option<u64>,
    /// All clocks jump back, by nanoseconds: programs see time run backwards
    #[arg(long, value_name = "NS")]
    pub step_backward: Option<u64>,
    /// By how many nanoseconds the clock of --vcpu, or of all, shall be ahead
    #[arg(long, value_name = "NS", allow_hyphen_values = true)]
    pub offset: Option<i64>,
    /// Whose clock --offset is about
    #[arg(long, value_name = "VCPU", requires = "offset")]
    pub vcpu: Option<u32>,
    /// A clock may be set back by --offset
    #[arg(long, requires = "offset")]
    pub backward: bool,
}

/// Flags of `spawn`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct SpawnArgs {
    /// Working directory in the guest
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set a variable of its environment
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Where its streams go
    #[arg(long, value_enum, default_value_t)]
    pub streams: StreamsChoice,
    /// Its streams are those of this command, which waits for its end; the exit code is the program's
    #[arg(short, long, conflicts_with = "streams")]
    pub attach: bool,
    /// PATH is a file of the host: it is put into the guest's /tmp and started from there
    #[arg(long)]
    pub host: bool,
    /// Path of the program in the guest
    pub path: String,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// Asks, and gives the answer as text: a table, or JSON (for lists, the list alone); and an exit code, an attached program's if there
/// is one.
pub fn run(socket: &Path, question: Question, json: bool) -> Result<(String, u8), ClientError> {
    let mut client = Client::connect(socket)?;
    let show = Show { json };
    let text = match question {
        Question::Status => show.one(&client.get::<Vm>("/v1/vm")?, vm_table),
        Question::Stats => show.one(&client.get::<Stats>("/v1/vm/stats")?, tables::stats_table),
        Question::Vcpus => {
            let vcpus: Vcpus = client.get("/v1/vcpus")?;
            if json { pretty(&vcpus.vcpus) } else { vcpus_table(&vcpus) }
        }
        Question::Tasks => {
            let tasks: Tasks = client.get("/v1/tasks")?;
            if json { pretty(&tasks.tasks) } else { tasks_table(&tasks) }
        }
        Question::Pin { pins } => {
            let pinned: Vec<Pinned> = client.put("/v1/affinity", &Pins { pins })?;
            if json { pretty(&pinned) } else { tables::pins_table(&pinned) }
        }
        Question::Sched { classes } => {
            let classed: Vec<Classed> = client.put("/v1/vcpu-sched", &Classes { classes })?;
            if json { pretty(&classed) } else { tables::classes_table(&classed) }
        }
        Question::Pause => show.one(&client.post::<Vm>("/v1/vm/pause")?, vm_table),
        Question::Resume { task: None } => show.one(&client.post::<Vm>("/v1/vm/resume")?, vm_table),
        Question::Resume { task: Some(task) } => show.task(&client.post(&format!("/v1/tasks/{task}/resume"))?),
        Question::Suspend { task } => show.task(&client.post(&format!("/v1/tasks/{task}/suspend"))?),
        Question::Signal { task, signal, thread } => send(&mut client, task, signal, thread)?,
        Question::Kill { task: Some(task) } => send(&mut client, task, "KILL".to_owned(), false)?,
        Question::Kill { task: None } => show.one(&client.post::<Vm>("/v1/vm/kill")?, |_| String::new()),
        Question::Shutdown => show.one(&client.post::<Vm>("/v1/vm/shutdown")?, |_| String::new()),
        Question::Set(SetArgs { task, changes }) => {
            show.task(&client.patch(&format!("/v1/tasks/{task}"), &changes.wanted())?)
        }
        Question::Spawn(args) if args.attach => return Ok((String::new(), attach::spawn(socket, client, args)?)),
        Question::Attach { process } => return Ok((String::new(), attach::attach(socket, client, process)?)),
        Question::Spawn(args) => {
            let request = args.wanted(&mut client)?;
            let spawned: Spawned = client.send("/v1/tasks", &request)?;
            if json { pretty(&spawned) } else { format!("{}\n", spawned.process) }
        }
        Question::Tsc(args) => {
            let change = args.wanted();
            let status: Status = match change == ClockChange::default() {
                true => client.get("/v1/clock")?,
                false => client.patch("/v1/clock", &change)?,
            };
            show.one(&status, tables::clock_table)
        }
        Question::Trace { command } => trace::ask(&mut client, command, &show)?,
        Question::Metrics => client.text("/v1/metrics")?,
    };
    Ok((text, 0))
}

impl ClockArgs {
    fn wanted(self) -> ClockChange {
        let Self { rate, step_forward, step_backward, offset, vcpu, backward } = self;
        let offset = offset.map(|ns| ClockOffset { vcpu, ns, backward });
        ClockChange { rate, step_forward_ns: step_forward, step_backward_ns: step_backward, offset }
    }
}

impl Changes {
    fn wanted(self) -> TaskChange {
        TaskChange {
            policy: self.policy,
            nice: self.nice,
            priority: self.priority,
            runtime_ns: self.runtime,
            deadline_ns: self.deadline,
            period_ns: self.period,
            affinity: self.affinity,
        }
    }
}

fn send(client: &mut Client, task: u32, signal: String, thread: bool) -> Result<String, ClientError> {
    client.send::<Value>(&format!("/v1/tasks/{task}/signal"), &SignalRequest { signal, thread })?;
    Ok(String::new())
}

/// How an answer is shown.
struct Show {
    json: bool,
}

impl Show {
    fn one<T: Serialize + DeserializeOwned>(&self, value: &T, table: impl Fn(&T) -> String) -> String {
        if self.json { pretty(value) } else { table(value) }
    }

    fn task(&self, task: &Task) -> String {
        self.one(task, |task| tables::tasks(std::slice::from_ref(task)))
    }
}

/// Resources are plain data, of which no writer to a string fails.
fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
