//! The flags of `run`, which are also the keys of a configuration file, and what the two make together.
//!
//! One struct is both: clap reads it from a command line, serde from a file ([`super::file`]), schemars writes the file's schema
//! from it. A new flag is a field here, a line in [`MachineFlags::over`] or [`GuestFlags::over`], which don't compile without, and
//! its place in [`Config`]. Nothing has a default here: what isn't given is `None`, so that a file can say it.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vcpu_sched::runqueue::PolicyKind;

use super::text::IdSet;
use super::values::{
    Classes, ClockRate, Decider, Nodes, Pins, Policy, Seed, Size, Time, TraceFile, Variable, variables,
};
use super::{Config, ConsoleChoice, DEFAULT_MEMORY, FileSpec, LogLevel, LogSink, ProgramSpec};
use crate::affinity::{self, CoreScheduling};
use crate::boot::cpuid::model::Model;
use crate::chaos::{Chaos, DEFAULT_RATE};
use crate::clock::Rate;
use crate::clock::settings::{ClockSettings, Offsets, OnPause, TscMode};
use crate::debug::address::GdbAddress;
use crate::delegate::{DEFAULT_TIMEOUT, Delegate, Who};
use crate::sandbox;
use crate::topology::TopologyChoice;
use crate::vm::Gdb;

/// What the machine is like and what this VMM does around it.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct MachineFlags {
    /// Number of virtual CPUs [default: 1, or what --topology says]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub vcpus: Option<u32>,

    /// Guest memory: a number with K, M, G or T [default: 256M, or what --numa says]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory: Option<Size>,

    /// How the vCPUs are arranged: sockets=N,dies=N,cores=N,threads=N (each 1 unless given), or host for the host's own
    #[arg(long, value_name = "TREE")]
    pub topology: Option<TopologyChoice>,

    /// The nodes: node=N,cpus=LIST,mem=SIZE[,dist=N@10..254] for each, separated by ';'
    #[arg(long, value_name = "NODES")]
    pub numa: Option<Nodes>,

    /// What the vCPUs can do: host, baseline, x86-64-v2 or x86-64-v3, and ,+FEATURE or ,-FEATURE [default: host]
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<Model>,

    /// Pin vCPUs to host CPUs: VCPUS=CPUS;..., such as '0=0;1-2=1,3' or 'all=0-1'
    #[arg(long, value_name = "PINS")]
    pub affinity: Option<Pins>,

    /// How urgent the vCPU threads are on the host: other, fifo:PRIO, rr:PRIO or nice:N, for all or as VCPUS=CLASS;...
    #[arg(long, value_name = "CLASS")]
    pub vcpu_sched: Option<Classes>,

    /// Give each vCPU a host CPU that no other vCPU has (of its --affinity, if that is given)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub exclusive: Option<bool>,

    /// Pin the event loop and all other threads that are no vCPU's to these host CPUs
    #[arg(long, value_name = "CPUS")]
    pub io_affinity: Option<IdSet>,

    /// Who may share a host core's threads with the vCPUs [default: off]
    #[arg(long, value_name = "WHO", value_enum)]
    pub core_scheduling: Option<CoreScheduling>,

    /// End the guest after this time, with exit code 124: 500ms, 5s, 2m
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Time>,

    /// Where the kernel's log goes: a file, stderr or off [default: stderr]
    #[arg(long, value_name = "FILE|stderr|off")]
    pub log: Option<LogSink>,

    /// Which device carries the programs' streams [default: auto]
    #[arg(long, value_name = "DEVICE", value_enum)]
    pub console: Option<ConsoleChoice>,

    /// Tell the guest that its TSC has this frequency, and have all its clocks agree with it (docs/clock.md) [default: the host's]
    #[arg(long, value_name = "KHZ")]
    pub tsc_khz: Option<NonZeroU32>,

    /// Have the vCPUs' clocks ahead, or behind: [VCPU=]NANOSECONDS;..., or with ns, us, ms, s, such as '1=-200us'
    #[arg(long, value_name = "OFFSETS", allow_hyphen_values = true)]
    pub tsc_offset: Option<Offsets>,

    /// Who does --tsc-khz and --tsc-offset: the CPU (native, refused where a measurement shows no effect), the clock page that
    /// kernel and programs read (virtual), or auto: the CPU if it can [default: auto]
    #[arg(long, value_name = "MODE", value_enum)]
    pub tsc_mode: Option<TscMode>,

    /// Run virtual time, that is clocks, sleeps, timers and time slices, so fast: 0.01 to 100, 1 as the host's [default: 1]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub clock_rate: Option<ClockRate>,

    /// What virtual time does while the guest is paused [default: stop]
    #[arg(long, value_name = "WHAT", value_enum)]
    pub clock_on_pause: Option<OnPause>,

    /// Serve the control interface on this Unix socket, for taskvisor ctl and taskvisor top
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,

    /// Let debuggers connect here: unix:PATH or HOST:PORT. The guest's tasks are their threads (docs/debugging.md)
    #[arg(long, value_name = "ADDRESS")]
    pub gdb: Option<GdbAddress>,

    /// Allow --gdb at an address that other machines can reach
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub gdb_allow_remote: Option<bool>,

    /// With --gdb: the guest waits with its first instruction until a debugger lets it go on
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub wait_gdb: Option<bool>,

    /// Have this VMM schedule the guest's tasks: a thread of its own decides which task runs on which vCPU (docs/delegation.md). fifo,
    /// percpu, shinjuku[:MICROSECONDS], edf, cores[:BITS], steal or remote[:POLICY]. external:SOCKET: a process that connects there
    /// decides, such as taskvisor agent
    #[arg(long, value_name = "POLICY[:OPTION]")]
    pub delegate: Option<Decider>,

    /// With --delegate: programs start as tasks that are delegated; if not, only those are that ask, or are made so: ctl set TASK --policy
    /// delegated [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub delegate_all: Option<bool>,

    /// With --delegate: after this time without a decision for a task, the kernel schedules by itself again [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub delegate_timeout: Option<Time>,

    /// With --delegate: the host CPU that the deciding thread has; it spins there. Without, it sleeps when there is nothing to do
    #[arg(long, value_name = "CPU")]
    pub agent_cpu: Option<u32>,

    /// What becomes of a system call that a thread of this VMM has no business with (docs/security.md) [default: on]
    #[arg(long, value_name = "MODE", value_enum)]
    pub seccomp: Option<sandbox::Mode>,

    /// Record what the guest's scheduler and the vCPUs do: a Perfetto trace for ui.perfetto.dev (.pftrace) or JSON
    /// lines (.jsonl)
    #[arg(long, value_name = "FILE")]
    pub trace: Option<TraceFile>,
}

/// What runs inside, wherever it runs.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
pub struct GuestFlags {
    /// Boot this kernel instead of the built-in one: an ELF with a PVH entry, or a Linux bzImage
    #[arg(long, value_name = "ELF")]
    pub kernel: Option<PathBuf>,

    /// Add this to the kernel's command line (for a foreign kernel: all of it)
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// A newc cpio archive with the guest's files; PROGRAM is looked up there first
    #[arg(long, value_name = "CPIO")]
    pub initrd: Option<PathBuf>,

    /// At the end, print times to boot milestones, exits by reason and memory to stderr
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub stats: Option<bool>,

    /// Print the programs' system calls to stderr
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub strace: Option<bool>,

    /// Set a variable of the program's environment (it has PATH, HOME, LANG, and TERM on a terminal); repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    #[serde(with = "variables", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub env: Vec<Variable>,

    /// Add a host file or directory to the guest, by default under the path as given; repeatable
    #[arg(long, value_name = "HOST[:GUEST]")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub file: Vec<FileSpec>,

    /// How much the kernel and taskvisor log [default: warn]
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub log_level: Option<LogLevel>,

    /// How the kernel schedules ordinary tasks: fair (EEVDF), rr (round robin), count (least often scheduled first) or runtime
    /// (least CPU time first) [default: fair]
    #[arg(long, value_name = "NAME", value_parser = policy_parser())]
    pub policy: Option<Policy>,

    /// Make the kernel's scheduler do at seeded points what it seldom does: preemptions, spurious wake-ups, late interrupts,
    /// moves, pauses of vCPUs. On one vCPU time is virtual then, and the same seed gives the same run
    #[arg(long, value_name = "SEED")]
    pub chaos: Option<Seed>,

    /// With --chaos: about one point in N does something [default: 64]
    #[arg(long, value_name = "N")]
    pub chaos_rate: Option<NonZeroU32>,

    /// A static Linux x86-64 program and its arguments. It is looked up like a shell does, and packed as /bin/NAME
    /// with argv[0] as given here
    #[arg(value_name = "PROGRAM", trailing_var_arg = true)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub program: Vec<String>,
}

/// The policies by name, for help and suggestions.
fn policy_parser() -> impl TypedValueParser<Value = Policy> {
    PossibleValuesParser::new(PolicyKind::ALL.map(PolicyKind::name)).try_map(|name| name.parse::<Policy>())
}

impl MachineFlags {
    /// These flags, with those of a file where they say nothing.
    pub fn over(self, file: Self) -> Self {
        Self {
            vcpus: self.vcpus.or(file.vcpus),
            memory: self.memory.or(file.memory),
            topology: self.topology.or(file.topology),
            numa: self.numa.or(file.numa),
            cpu: self.cpu.or(file.cpu),
            affinity: self.affinity.or(file.affinity),
            vcpu_sched: self.vcpu_sched.or(file.vcpu_sched),
            exclusive: self.exclusive.or(file.exclusive),
            io_affinity: self.io_affinity.or(file.io_affinity),
            core_scheduling: self.core_scheduling.or(file.core_scheduling),
            timeout: self.timeout.or(file.timeout),
            log: self.log.or(file.log),
            console: self.console.or(file.console),
            tsc_khz: self.tsc_khz.or(file.tsc_khz),
            tsc_offset: self.tsc_offset.or(file.tsc_offset),
            tsc_mode: self.tsc_mode.or(file.tsc_mode),
            clock_rate: self.clock_rate.or(file.clock_rate),
            clock_on_pause: self.clock_on_pause.or(file.clock_on_pause),
            control: self.control.or(file.control),
            gdb: self.gdb.or(file.gdb),
            gdb_allow_remote: self.gdb_allow_remote.or(file.gdb_allow_remote),
            wait_gdb: self.wait_gdb.or(file.wait_gdb),
            delegate: self.delegate.or(file.delegate),
            delegate_all: self.delegate_all.or(file.delegate_all),
            delegate_timeout: self.delegate_timeout.or(file.delegate_timeout),
            agent_cpu: self.agent_cpu.or(file.agent_cpu),
            seccomp: self.seccomp.or(file.seccomp),
            trace: self.trace.or(file.trace),
        }
    }
}

impl GuestFlags {
    /// These flags, with those of a file where they say nothing. What may be repeated comes together: first the file's.
    pub fn over(self, file: Self) -> Self {
        Self {
            kernel: self.kernel.or(file.kernel),
            cmdline: self.cmdline.or(file.cmdline),
            initrd: self.initrd.or(file.initrd),
            stats: self.stats.or(file.stats),
            strace: self.strace.or(file.strace),
            env: [file.env, self.env].concat(),
            file: [file.file, self.file].concat(),
            log_level: self.log_level.or(file.log_level),
            policy: self.policy.or(file.policy),
            chaos: self.chaos.or(file.chaos),
            chaos_rate: self.chaos_rate.or(file.chaos_rate),
            program: if self.program.is_empty() { file.program } else { self.program },
        }
    }
}

/// Why flags and file together mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlagsError {
    /// A rate of nothing.
    /// As the text says.
    #[error("{0} is about what --delegate starts: give --delegate POLICY too")]
    NoAgent(&'static str),
    /// As the text says.
    #[error(
        "--agent-cpu is for an agent of this VMM's: give --cpu to the agent that connects to --delegate external:SOCKET"
    )]
    AgentElsewhere,
    /// As the text says.
    #[error("--chaos-rate says how often --chaos does something: give --chaos SEED too")]
    RateOfNothing,
}

impl Config {
    /// What the flags ask for.
    pub fn new(machine: MachineFlags, guest: GuestFlags) -> Result<Self, FlagsError> {
        if guest.chaos.is_none() && guest.chaos_rate.is_some() {
            return Err(FlagsError::RateOfNothing);
        }
        if machine.delegate.is_none() {
            if machine.agent_cpu.is_some() {
                return Err(FlagsError::NoAgent("--agent-cpu"));
            }
            if machine.delegate_all.is_some() {
                return Err(FlagsError::NoAgent("--delegate-all"));
            }
            if machine.delegate_timeout.is_some() {
                return Err(FlagsError::NoAgent("--delegate-timeout"));
            }
        }
        if machine.agent_cpu.is_some() && machine.delegate.as_ref().is_some_and(|who| matches!(who.0, Who::Process(_)))
        {
            return Err(FlagsError::AgentElsewhere);
        }
        let rate = guest.chaos_rate.map_or(DEFAULT_RATE, NonZeroU32::get);
        let numa = machine.numa.map(|nodes| nodes.0).unwrap_or_default();
        let of_nodes = || numa.iter().fold(0u64, |sum, node| sum.saturating_add(node.memory));
        let unsaid = || if numa.is_empty() { DEFAULT_MEMORY } else { of_nodes() };
        let memory = machine.memory.map_or_else(unsaid, |size| size.0);
        let mut words = guest.program.into_iter();
        Ok(Self {
            vcpus: machine.vcpus,
            memory,
            topology: machine.topology,
            numa,
            cpu: machine.cpu.unwrap_or_default(),
            host: affinity::Request {
                affinity: machine.affinity.map(|pins| pins.0).unwrap_or_default(),
                classes: machine.vcpu_sched.map(|classes| classes.0).unwrap_or_default(),
                exclusive: machine.exclusive.unwrap_or_default(),
                io: machine.io_affinity,
                core_scheduling: machine.core_scheduling.unwrap_or_default(),
            },
            kernel: guest.kernel,
            cmdline: guest.cmdline.unwrap_or_default(),
            initrd: guest.initrd,
            files: guest.file,
            program: words.next().map(|name| ProgramSpec { name, args: words.collect() }),
            env: guest.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
            timeout: machine.timeout.map(|time| time.0),
            stats: guest.stats.unwrap_or_default(),
            strace: guest.strace.unwrap_or_default(),
            log: machine.log.unwrap_or_default(),
            log_level: guest.log_level.unwrap_or_default(),
            console: machine.console.unwrap_or_default(),
            policy: guest.policy.map(|policy| policy.0),
            control: machine.control,
            gdb: machine.gdb.map(|address| Gdb {
                address,
                allow_remote: machine.gdb_allow_remote.unwrap_or_default(),
                wait: machine.wait_gdb.unwrap_or_default(),
            }),
            seccomp: machine.seccomp.unwrap_or(sandbox::Mode::On),
            delegate: machine.delegate.map(|who| Delegate {
                who: who.0,
                all: machine.delegate_all.unwrap_or(true),
                cpu: machine.agent_cpu,
                timeout: machine.delegate_timeout.map_or(DEFAULT_TIMEOUT, |time| time.0),
            }),
            trace: machine.trace.map(|file| file.0),
            chaos: guest.chaos.map(|seed| Chaos { seed: seed.0, rate }),
            clock: ClockSettings {
                tsc_khz: machine.tsc_khz.map(NonZeroU32::get),
                mode: machine.tsc_mode.unwrap_or_default(),
                offsets: machine.tsc_offset.unwrap_or_default(),
                rate: machine.clock_rate.map_or(Rate::REAL, |rate| rate.0),
                on_pause: machine.clock_on_pause.unwrap_or_default(),
            },
        })
    }
}
