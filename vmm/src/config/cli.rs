//! The command line's grammar, in one place.
//!
//! The binary parses [`Cli`] and turns the flags of `run` and `image` into a [`Config`]. Pure, but for `--file`, which
//! looks whether a name with a colon exists.

use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParser};
use clap::{Args, Parser, Subcommand};

use vcpu_sched::runqueue::PolicyKind;

use super::text::IdSet;
use super::units::{parse_duration, parse_size};
use super::{Config, ConsoleChoice, DEFAULT_MEMORY, FileSpec, LogLevel, LogSink, ProgramSpec};
use crate::affinity::parse as pins;
use crate::affinity::{self, Class, CoreScheduling, Entry};
use crate::archive::build::clean;
use crate::boot::cpuid::model::Model;
use crate::chaos::{Chaos, DEFAULT_RATE};
use crate::control::ctl::Question;
use crate::topology::{NodeSpec, TopologyChoice, parse};
use crate::trace::{Format, FormatError};

/// Paragraphs are single lines: clap wraps them to the terminal.
const EXIT_CODES: &str = "\
Exit code: the program's own; 128+N when it died of signal N, or when signal N ended taskvisor; 123 the guest kernel \
panicked; 124 --timeout was over; 125 an error of taskvisor itself, or Ctrl-A x; 126 the program can't be run; 127 it was \
not found.

On a terminal: Ctrl-A x ends the guest, Ctrl-A Ctrl-A sends one Ctrl-A; everything else, Ctrl-C too, goes to the guest.";

const RUN_EXAMPLES: &str = "\
Examples:
  taskvisor run -- ./prog a b
  echo hello | taskvisor run --vcpus 2 -- /usr/bin/busybox tr a-z A-Z
  taskvisor run --file script.sh:/script.sh -- busybox sh /script.sh
  taskvisor run --kernel vmlinuz --cmdline 'console=ttyS0' --timeout 2m";

/// Runs static Linux programs in a small guest on KVM, and shows what their tasks do.
#[derive(Debug, Parser)]
#[command(name = "taskvisor", version, about, after_help = EXIT_CODES, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program in a guest; its streams and its exit code are those of this command
    #[command(after_help = RUN_EXAMPLES, after_long_help = format!("{RUN_EXAMPLES}\n\n{EXIT_CODES}"))]
    Run(GuestArgs),
    /// Write kernel.elf, archive.cpio and cmdline, to start the very same guest under another VMM
    Image(ImageArgs),
    /// Tell what this host's KVM can do, by trying
    Doctor(DoctorArgs),
    /// Tell what a trace shows, and whether the scheduler's invariants held
    #[command(after_help = REPORT_EXIT_CODES)]
    Report(ReportArgs),
    /// Run a workload on a simulated machine, under the scheduler of the guest kernel
    #[command(after_help = crate::sim::args::EXAMPLES)]
    Sim(crate::sim::args::SimArgs),
    /// Ask a running guest's VMM (taskvisor run --control)
    Ctl(CtlArgs),
    /// Show a running guest's vCPUs and tasks, live
    Top(TopArgs),
}

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
}

/// Where a running VMM is found.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// The socket that was given to taskvisor run --control
    #[arg(long, value_name = "SOCKET", env = "TASKVISOR_CONTROL", global = true)]
    pub control: Option<PathBuf>,
}

/// Flags of `ctl`.
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub socket: ControlArgs,
    /// Machine-readable output
    #[arg(long, global = true)]
    pub json: bool,
    /// What to ask.
    #[command(subcommand)]
    pub question: Question,
}

/// Flags of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub socket: ControlArgs,
    /// Print one snapshot as plain text and end
    #[arg(long)]
    pub once: bool,
    /// Time between two looks: 500ms, 2s
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    pub interval: Duration,
}

const REPORT_EXIT_CODES: &str = "Exit code: 0 every invariant held; 1 one was violated; 125 no report.";

/// Flags of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A trace of taskvisor run --trace or taskvisor sim --trace
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
    /// Write a page with a time line too: one file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// A CPU may idle so long beside a task in another CPU's queue before that is a violation
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "100ms")]
    pub idle_grace: Duration,
    /// The host was busy: no CPU is held to have been late before this time, whatever it should have done
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub grace: Option<Duration>,
    /// The trace has every task's beginning: one without it is a violation
    #[arg(long)]
    pub complete: bool,
}

/// Flags of `image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Directory to write to; it is made if need be
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// What the guest is.
    #[command(flatten)]
    pub guest: GuestArgs,
}

/// Flags that describe a guest.
#[derive(Debug, Args)]
pub struct GuestArgs {
    /// Number of virtual CPUs [default: 1, or what --topology says]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub vcpus: Option<u32>,

    /// Guest memory: a number with K, M, G or T [default: 256M, or what --numa says]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true)]
    pub memory: Option<u64>,

    /// How the vCPUs are arranged: sockets=N,dies=N,cores=N,threads=N (each 1 unless given), or host for the host's own
    #[arg(long, value_name = "TREE", value_parser = parse::topology)]
    pub topology: Option<TopologyChoice>,

    /// The nodes: node=N,cpus=LIST,mem=SIZE[,dist=N@10..254] for each, separated by ';'
    #[arg(long, value_name = "NODES", value_parser = ValueParser::new(|text: &str| parse::numa(text).map(Nodes)))]
    pub numa: Option<Nodes>,

    /// What the vCPUs can do: host, baseline, x86-64-v2 or x86-64-v3, and ,+FEATURE or ,-FEATURE
    #[arg(long, value_name = "MODEL", default_value = "host")]
    pub cpu: Model,

    /// Pin vCPUs to host CPUs: VCPUS=CPUS;..., such as '0=0;1-2=1,3' or 'all=0-1'
    #[arg(long, value_name = "PINS", value_parser = ValueParser::new(|text: &str| pins::affinity(text).map(Pins)))]
    pub affinity: Option<Pins>,

    /// How urgent the vCPU threads are on the host: other, fifo:PRIO, rr:PRIO or nice:N, for all or as VCPUS=CLASS;...
    #[arg(long, value_name = "CLASS", value_parser = ValueParser::new(|text: &str| pins::classes(text).map(Classes)))]
    pub vcpu_sched: Option<Classes>,

    /// Give each vCPU a host CPU that no other vCPU has (of its --affinity, if that is given)
    #[arg(long)]
    pub exclusive: bool,

    /// Pin the event loop and all other threads that are no vCPU's to these host CPUs
    #[arg(long, value_name = "CPUS", value_parser = pins::cpus)]
    pub io_affinity: Option<IdSet>,

    /// Who may share a host core's threads with the vCPUs
    #[arg(long, value_name = "WHO", value_enum, default_value = "off")]
    pub core_scheduling: CoreScheduling,

    /// Boot this kernel instead of the built-in one: an ELF with a PVH entry, or a Linux bzImage
    #[arg(long, value_name = "ELF")]
    pub kernel: Option<PathBuf>,

    /// Add this to the kernel's command line (for a foreign kernel: all of it)
    #[arg(long, value_name = "STRING", default_value = "", allow_hyphen_values = true)]
    pub cmdline: String,

    /// A newc cpio archive with the guest's files; PROGRAM is looked up there first
    #[arg(long, value_name = "CPIO")]
    pub initrd: Option<PathBuf>,

    /// End the guest after this time, with exit code 124: 500ms, 5s, 2m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,

    /// At the end, print times to boot milestones, exits by reason and memory to stderr
    #[arg(long)]
    pub stats: bool,

    /// Print the programs' system calls to stderr
    #[arg(long)]
    pub strace: bool,

    /// Set a variable of the program's environment (it has PATH, HOME, LANG, and TERM on a terminal); repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_env)]
    pub env: Vec<(String, String)>,

    /// Add a host file or directory to the guest, by default under the path as given; repeatable
    #[arg(long, value_name = "HOST[:GUEST]", value_parser = parse_file)]
    pub file: Vec<FileSpec>,

    /// Where the kernel's log goes: a file, stderr or off
    #[arg(long, value_name = "FILE|stderr|off", default_value = "stderr", value_parser = |s: &str| Ok::<_, std::convert::Infallible>(LogSink::from(s)))]
    pub log: LogSink,

    /// How much the kernel and taskvisor log
    #[arg(long, value_name = "LEVEL", value_enum, default_value = "warn")]
    pub log_level: LogLevel,

    /// Which device carries the programs' streams
    #[arg(long, value_name = "DEVICE", value_enum, default_value = "auto")]
    pub console: ConsoleChoice,

    /// Serve the control interface on this Unix socket, for taskvisor ctl and taskvisor top
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Record what the guest's scheduler and the vCPUs do: a Perfetto trace for ui.perfetto.dev (.pftrace) or JSON
    /// lines (.jsonl)
    #[arg(long, value_name = "FILE", value_parser = parse_trace)]
    pub trace: Option<PathBuf>,

    /// How the kernel schedules ordinary tasks: fair (EEVDF), rr (round robin), count (least often scheduled first) or runtime
    /// (least CPU time first) [default: fair]
    #[arg(long, value_name = "NAME", value_parser = policy_parser())]
    pub policy: Option<PolicyKind>,

    /// Make the kernel's scheduler do at seeded points what it seldom does: preemptions, spurious wake-ups, late interrupts,
    /// moves, pauses of vCPUs. On one vCPU time is virtual then, and the same seed gives the same run
    #[arg(long, value_name = "SEED", value_parser = parse_seed)]
    pub chaos: Option<u64>,

    /// With --chaos: about one point in N does something
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE, requires = "chaos",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub chaos_rate: u32,

    /// A static Linux x86-64 program and its arguments. It is looked up like a shell does, and packed as /bin/NAME
    /// with argv[0] as given here
    #[arg(value_name = "PROGRAM", trailing_var_arg = true)]
    pub program: Vec<String>,
}

/// `--numa`, as one value.
#[derive(Debug, Clone)]
pub struct Nodes(Vec<NodeSpec>);

/// `--affinity`, as one value.
#[derive(Debug, Clone)]
pub struct Pins(Vec<Entry<IdSet>>);

/// `--vcpu-sched`, as one value.
#[derive(Debug, Clone)]
pub struct Classes(Vec<Entry<Class>>);

impl From<GuestArgs> for Config {
    fn from(args: GuestArgs) -> Self {
        let mut words = args.program.into_iter();
        let numa = args.numa.map(|nodes| nodes.0).unwrap_or_default();
        let of_nodes = || numa.iter().fold(0u64, |sum, node| sum.saturating_add(node.memory));
        let memory = args.memory.unwrap_or_else(|| if numa.is_empty() { DEFAULT_MEMORY } else { of_nodes() });
        Self {
            vcpus: args.vcpus,
            memory,
            topology: args.topology,
            numa,
            cpu: args.cpu,
            host: affinity::Request {
                affinity: args.affinity.map(|pins| pins.0).unwrap_or_default(),
                classes: args.vcpu_sched.map(|classes| classes.0).unwrap_or_default(),
                exclusive: args.exclusive,
                io: args.io_affinity,
                core_scheduling: args.core_scheduling,
            },
            kernel: args.kernel,
            cmdline: args.cmdline,
            initrd: args.initrd,
            files: args.file,
            program: words.next().map(|name| ProgramSpec { name, args: words.collect() }),
            env: args.env,
            timeout: args.timeout,
            stats: args.stats,
            strace: args.strace,
            log: args.log,
            log_level: args.log_level,
            console: args.console,
            policy: args.policy,
            control: args.control,
            trace: args.trace,
            chaos: args.chaos.map(|seed| Chaos { seed, rate: args.chaos_rate }),
        }
    }
}

/// Why a flag's value can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// `--env`.
    #[error("it has no '=': write NAME=VALUE")]
    NoEquals,
    /// `--env`.
    #[error("the name before '=' is empty")]
    EmptyName,
    /// `--file`.
    #[error("the host path is empty: write HOST or HOST:GUEST")]
    EmptyPath,
    /// `--file`.
    #[error("the guest path {0} names no file")]
    NoGuestName(String),
}

/// The policies by name, for help and suggestions.
fn policy_parser() -> impl TypedValueParser<Value = PolicyKind> {
    PossibleValuesParser::new(PolicyKind::ALL.map(PolicyKind::name)).try_map(|name| name.parse::<PolicyKind>())
}

/// A seed, decimal or hexadecimal with 0x.
fn parse_seed(text: &str) -> Result<u64, ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// A file whose name tells a format, so that a wrong one shows before a guest has run.
fn parse_trace(text: &str) -> Result<PathBuf, FormatError> {
    Format::of(Path::new(text)).map(|_| text.into())
}

fn parse_env(text: &str) -> Result<(String, String), ValueError> {
    let (name, value) = text.split_once('=').ok_or(ValueError::NoEquals)?;
    if name.is_empty() {
        return Err(ValueError::EmptyName);
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// `HOST`, or `HOST:GUEST`. A host path may hold colons itself: if the whole names a file, it is one.
fn parse_file(text: &str) -> Result<FileSpec, ValueError> {
    let (host, guest) = match text.rsplit_once(':') {
        Some((host, guest)) if !Path::new(text).exists() => (host, guest),
        _ => (text, text),
    };
    if host.is_empty() {
        return Err(ValueError::EmptyPath);
    }
    // A guest path that ends in a slash is a directory to put the file into.
    let guest = match guest.strip_suffix('/') {
        Some(directory) if guest != host => {
            let name = clean(host);
            format!("{directory}/{}", name.rsplit('/').next().unwrap_or_default())
        }
        _ => guest.to_owned(),
    };
    let cleaned = clean(&guest);
    if cleaned.is_empty() {
        return Err(ValueError::NoGuestName(guest));
    }
    Ok(FileSpec { host: host.into(), guest: format!("/{cleaned}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn config(args: &[&str]) -> Result<Config, String> {
        let words = ["taskvisor", "run"].iter().chain(args);
        match Cli::try_parse_from(words).map_err(|e| e.to_string())?.command {
            Command::Run(args) => Ok(args.into()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let config = config(&["--", "./prog", "-a", "--vcpus", "7"]).unwrap();
        assert_eq!((config.vcpus, config.memory, config.log_level), (None, 256 << 20, LogLevel::Warn));
        let program = config.program.unwrap();
        assert_eq!((program.name.as_str(), program.args.len()), ("./prog", 3));
    }

    #[test]
    fn the_program_s_own_flags_are_left_alone() {
        for words in [&["--vcpus", "2", "prog", "--memory", "x"][..], &["--vcpus", "2", "--", "prog", "--memory", "x"]]
        {
            let config = config(words).unwrap();
            assert_eq!(config.vcpus, Some(2));
            let program = config.program.unwrap();
            assert_eq!((program.name.as_str(), program.args), ("prog", vec!["--memory".to_owned(), "x".to_owned()]));
        }
    }

    #[test]
    fn values_are_checked_where_they_stand() {
        for (args, part) in [
            (&["--memory", "12Q"][..], "unknown unit 'Q' at character 3"),
            (&["--timeout", "5"], "a unit is missing"),
            (&["--env", "X"], "NAME=VALUE"),
            (&["--vcpus", "-1"], "--vcpus"),
            (&["--topology", "core=2"], "unknown word 'core' at character 1"),
            (&["--numa", "node=0,mem=x"], "'x' is no size"),
            (&["--cpu", "v3,-avx51f"], "is it avx512f?"),
            (&["--affinity", "0=0;1"], "'=' is missing at character 6"),
            (&["--vcpu-sched", "fifo:0"], "a real-time priority is 1 to 99"),
            (&["--io-affinity", "1-0"], "runs backwards"),
            (&["--file", ":x"], "host path is empty"),
            (&["--log-level", "loud"], "possible values"),
            (&["--policy", "lottery"], "fair"),
            (&["--chaos", "x"], "invalid digit"),
            (&["--chaos-rate", "3"], "--chaos <SEED>"),
            (&["--chaos", "0x7", "--chaos-rate", "0"], "0 is not in 1.."),
            (&["--trace", "x.json"], "unknown trace format .json"),
            (&["--no-such-flag"], "--no-such-flag"),
        ] {
            let error = config(args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }

    #[test]
    fn files_are_placed() {
        for (text, host, guest) in [
            ("a.txt", "a.txt", "/a.txt"),
            ("./d/a.txt", "./d/a.txt", "/d/a.txt"),
            ("/etc/hosts", "/etc/hosts", "/etc/hosts"),
            ("a:/b/c", "a", "/b/c"),
            ("d/a.txt:/b/", "d/a.txt", "/b/a.txt"),
            ("../x", "../x", "/x"),
        ] {
            assert_eq!(parse_file(text), Ok(FileSpec { host: host.into(), guest: guest.into() }), "{text}");
        }
        assert!(parse_file("a:/").is_ok_and(|spec| spec.guest == "/a"));
        assert!(parse_file("..").is_err());
    }
}
