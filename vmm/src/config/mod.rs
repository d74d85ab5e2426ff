//! What the user asked for: guest, machine, and what happens around it.
//!
//! [`Config`] is the library's entry: the binary fills it from flags ([`cli`], [`flags`]) and a file ([`file`]), tests build it by hand, and
//! [`crate::launch`] turns it into a run. Nothing in it has been checked against the host yet.

pub mod cli;
pub mod file;
pub mod flags;
pub mod near;
pub mod schema;
#[cfg(test)]
mod tests;
pub mod text;
mod text_value;
pub mod units;
pub mod values;

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vcpu_sched::runqueue::PolicyKind;

use crate::affinity;
use crate::boot::cpuid::model::Model;
use crate::chaos::Chaos;
use crate::clock::settings::ClockSettings;
use crate::delegate::Delegate;
use crate::sandbox;
use crate::topology::{NodeSpec, TopologyChoice};
use crate::vm::Gdb;

/// Guest memory when nothing is said.
pub const DEFAULT_MEMORY: u64 = 256 << 20;

/// Where the guest kernel's log goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LogSink {
    /// This process's stderr.
    #[default]
    Stderr,
    /// Nowhere.
    Off,
    /// A file, made anew.
    File(PathBuf),
}

impl From<&str> for LogSink {
    fn from(text: &str) -> Self {
        match text {
            "stderr" => LogSink::Stderr,
            "off" => LogSink::Off,
            path => LogSink::File(path.into()),
        }
    }
}

/// How much is logged, by the guest kernel and by the VMM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What went wrong.
    Error,
    /// What may be wrong.
    #[default]
    Warn,
    /// Steps.
    Info,
    /// Details.
    Debug,
}

impl LogLevel {
    /// As the kernel's command line and the log crate spell it.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Off => "off",
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        }
    }
}

/// Which device carries the programs' streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleChoice {
    /// virtio for Taskvisor's own kernel, serial for others.
    #[default]
    Auto,
    /// virtio-console: stdin, stdout and stderr kept apart.
    Virtio,
    /// COM1: stdin and stdout, with the kernel's log in between.
    Serial,
}

/// A host file for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSpec {
    /// On the host.
    pub host: PathBuf,
    /// In the guest.
    pub guest: String,
}

/// The program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramSpec {
    /// As the user gave it; becomes argv[0].
    pub name: String,
    /// argv[1..].
    pub args: Vec<String>,
}

/// Everything about one guest.
#[derive(Debug, Clone)]
pub struct Config {
    /// Number of vCPUs; else it follows from the topology, or is 1.
    pub vcpus: Option<u32>,
    /// How the vCPUs are arranged.
    pub topology: Option<TopologyChoice>,
    /// The nodes that memory and vCPUs belong to.
    pub numa: Vec<NodeSpec>,
    /// What the vCPUs can do.
    pub cpu: Model,
    /// Where the threads run on the host.
    pub host: affinity::Request,
    /// Bytes of guest memory.
    pub memory: u64,
    /// A kernel instead of the built-in one.
    pub kernel: Option<PathBuf>,
    /// Added to the kernel's command line.
    pub cmdline: String,
    /// An archive.
    pub initrd: Option<PathBuf>,
    /// Files to add.
    pub files: Vec<FileSpec>,
    /// The program.
    pub program: Option<ProgramSpec>,
    /// Added to the program's environment, or replacing what is there.
    pub env: Vec<(String, String)>,
    /// End the guest after this time.
    pub timeout: Option<Duration>,
    /// Print statistics at the end.
    pub stats: bool,
    /// Print system calls.
    pub strace: bool,
    /// The kernel's log.
    pub log: LogSink,
    /// How much of it.
    pub log_level: LogLevel,
    /// The programs' streams.
    pub console: ConsoleChoice,
    /// How ordinary tasks are scheduled; the kernel's default if none.
    pub policy: Option<PolicyKind>,
    /// Where the control socket shall be.
    pub control: Option<PathBuf>,
    /// Where debuggers connect.
    pub gdb: Option<Gdb>,
    /// What becomes of system calls that a thread has no business with. Off unless said: a filter lasts as long as the process.
    pub seccomp: sandbox::Mode,
    /// Record what the guest does in this file.
    pub trace: Option<PathBuf>,
    /// Schedule the guest's tasks.
    pub delegate: Option<Delegate>,
    /// Disturb the scheduler.
    pub chaos: Option<Chaos>,
    /// Its clock.
    pub clock: ClockSettings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vcpus: None,
            topology: None,
            numa: Vec::new(),
            cpu: Model::default(),
            host: affinity::Request::default(),
            memory: DEFAULT_MEMORY,
            kernel: None,
            cmdline: String::new(),
            initrd: None,
            files: Vec::new(),
            program: None,
            env: Vec::new(),
            timeout: None,
            stats: false,
            strace: false,
            log: LogSink::default(),
            log_level: LogLevel::default(),
            console: ConsoleChoice::default(),
            policy: None,
            control: None,
            gdb: None,
            seccomp: sandbox::Mode::Off,
            trace: None,
            delegate: None,
            chaos: None,
            clock: ClockSettings::default(),
        }
    }
}
