//! The command line's grammar, in one place.
//!
//! The binary parses [`Cli`]; the flags of `run` and `image` themselves are in [`super::flags`].

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::file::{self, FileError, Said};
use super::flags::{GuestFlags, MachineFlags};
use super::units::parse_duration;
use crate::clock::verify::VerifyArgs;
use crate::control::ctl::Question;
use crate::delegate::args::AgentArgs;
use crate::sweep::SweepArgs;

/// Paragraphs are single lines: clap wraps them to the terminal.
const EXIT_CODES: &str = "\
Exit code: the program's own; 128+N when it died of signal N, or when signal N ended taskvisor; 122 a thread of taskvisor \
made a system call that --seccomp forbids it; 123 the guest kernel panicked; 124 --timeout was over; \
125 an error of taskvisor itself, or Ctrl-A x; 126 the program can't be run; 127 it was not found.

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
    Run(Box<RunArgs>),
    /// Write kernel.elf, archive.cpio and cmdline, to start the very same guest under another VMM
    Image(ImageArgs),
    /// Check, show and describe the files of run --config
    Config(ConfigArgs),
    /// Tell what this host's KVM can do, by trying
    Doctor(DoctorArgs),
    /// Tell what a trace shows, and whether the scheduler's invariants held
    #[command(after_help = REPORT_EXIT_CODES)]
    Report(ReportArgs),
    /// Run a workload on a simulated machine, under the scheduler of the guest kernel
    #[command(after_help = crate::sim::args::EXAMPLES)]
    Sim(crate::sim::args::SimArgs),
    /// Run an experiment that is written down: guests, changes while they run, tables and plots (docs/scripts.md)
    Script(ScriptArgs),
    /// Run the same program over a matrix of settings, here or on a cluster (docs/sweep.md)
    Sweep(SweepArgs),
    /// Schedule a running guest's tasks from this process (taskvisor run --delegate external:SOCKET)
    Agent(AgentArgs),
    /// Ask a running guest's VMM (taskvisor run --control)
    Ctl(CtlArgs),
    /// Show a running guest's vCPUs and tasks, live
    Top(TopArgs),
    /// Measure a guest's clocks from inside
    #[command(subcommand)]
    Tsc(TscCommand),
    /// Print a shell's completions: source <(taskvisor completions bash)
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write manual pages, one for each command
    Man {
        /// Directory to write to; it is made if need be
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// What to do with clocks.
#[derive(Debug, Subcommand)]
pub enum TscCommand {
    /// Boot a guest with these flags and tell what was asked of its clocks, what KVM reports and what a program in it measures
    #[command(after_help = VERIFY_EXIT_CODES)]
    Verify(Box<VerifyArgs>),
}

const VERIFY_EXIT_CODES: &str = "Exit code: 0 all is as asked for; 1 something is off; 125 nothing could be measured.";

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
}

/// Flags of `script`.
#[derive(Debug, Args)]
pub struct ScriptArgs {
    /// Directory for the files that the script writes; it is made if need be
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// The script
    pub file: PathBuf,
    /// What the script finds in ARGS
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
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

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Take from this file (TOML) what no flag says: its keys are the flags' names (docs/config.md)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineFlags,
    /// What runs in it.
    #[command(flatten)]
    pub guest: GuestFlags,
}

impl RunArgs {
    /// Flags over file.
    pub fn said(self) -> Result<Said, FileError> {
        let file = self.config.as_deref().map(file::read).transpose()?.unwrap_or_default();
        Ok(Said { machine: self.machine.over(file.machine), guest: self.guest.over(file.guest) })
    }
}

/// Flags of `image`: those of `run` that are about the guest itself. The machine is another VMM's.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Directory to write to; it is made if need be
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Take from this file (TOML) what no flag says about the guest; what it says about the machine is left to run
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What the guest is.
    #[command(flatten)]
    pub guest: GuestFlags,
}

impl ImageArgs {
    /// Flags over file.
    pub fn said(self) -> Result<Said, FileError> {
        let file = self.config.as_deref().map(file::read).transpose()?.unwrap_or_default();
        Ok(Said { machine: MachineFlags::default(), guest: self.guest.over(file.guest) })
    }
}

/// Flags of `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// What about them.
    #[command(subcommand)]
    pub question: ConfigQuestion,
}

/// What `config` can be asked.
#[derive(Debug, Subcommand)]
pub enum ConfigQuestion {
    /// Say whether taskvisor run --config FILE would start: names, values, files, and what this host lets a vCPU have
    Check {
        /// The files
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// Print the flags of run, over those of its --config, as such a file
    Show(Box<RunArgs>),
    /// Print the file's JSON Schema, for an editor
    Schema,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, FileSpec, LogLevel};
    use clap::CommandFactory;

    fn config(args: &[&str]) -> Result<Config, String> {
        let words = ["taskvisor", "run"].iter().chain(args);
        match Cli::try_parse_from(words).map_err(|e| e.to_string())?.command {
            Command::Run(args) => {
                let said = args.said().map_err(|e| e.to_string())?;
                Config::new(said.machine, said.guest).map_err(|e| e.to_string())
            }
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
            (&["--chaos-rate", "3"], "give --chaos SEED too"),
            (&["--chaos", "0x7", "--chaos-rate", "0"], "zero"),
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
            assert_eq!(text.parse(), Ok(FileSpec { host: host.into(), guest: guest.into() }), "{text}");
        }
        assert!("a:/".parse().is_ok_and(|spec: FileSpec| spec.guest == "/a"));
        assert!("..".parse::<FileSpec>().is_err());
    }
}
