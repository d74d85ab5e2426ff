//! The command `taskvisor`: parses the command line, calls the library, turns results into messages and exit codes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use taskvisor::config::cli::{Cli, Command, ConfigQuestion, ControlArgs, TscCommand};
use taskvisor::config::file::{self, Said};
use taskvisor::config::flags::FlagsError;
use taskvisor::config::{Config, LogLevel, LogSink, schema};
use taskvisor::control::ctl;
use taskvisor::end::EXIT_VMM;
use taskvisor::launch::{self, LaunchError};
use taskvisor::script::{self, Script};
use taskvisor::sim::args::SimArgs;
use taskvisor::{clock, delegate, host, logger, manual, report, sim, sweep, top};
use vcpu_sched::checker::Options;
use vcpu_sched::ids::Nanos;

fn main() -> ExitCode {
    let start = Instant::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match execute(cli, start) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(format_args!("taskvisor: {error}\n"));
            ExitCode::from(error.downcast_ref::<LaunchError>().map_or(EXIT_VMM, LaunchError::exit_code))
        }
    }
}

fn execute(cli: Cli, start: Instant) -> anyhow::Result<u8> {
    match cli.command {
        Command::Run(args) => {
            let config = config(args.said()?)?;
            logger::install(&config.log, config.log_level);
            let ended = launch::run(&config, start)?;
            if let Some(report) = &ended.report {
                say(format_args!("taskvisor: {report}"));
            }
            if let Some(message) = ended.end.message() {
                say(format_args!("taskvisor: {message}\n"));
            }
            if let Some(trouble) = &ended.trace {
                say(format_args!("taskvisor: {trouble}\n"));
            }
            if let Some(stats) = &ended.stats {
                say(format_args!("{stats}"));
            }
            Ok(ended.end.exit_code())
        }
        Command::Image(args) => {
            let output = args.output.clone();
            let config = config(args.said()?)?;
            logger::install(&config.log, config.log_level);
            launch::image(&config, &output)?;
            Ok(0)
        }
        Command::Config(args) => {
            let text = match args.question {
                ConfigQuestion::Check { files } => return Ok(check(&files)),
                ConfigQuestion::Show(args) => file::write(&args.said()?)?,
                ConfigQuestion::Schema => serde_json::to_string_pretty(&schema::schema())? + "\n",
            };
            // A closed pipe behind it is no error.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(0)
        }
        Command::Agent(args) => {
            let figures = delegate::Figures::default();
            logger::install(&LogSink::Stderr, LogLevel::Warn);
            let ended = delegate::args::run(&args, &figures);
            if args.stats {
                say(format_args!("{}", figures.render()));
            }
            ended?;
            Ok(0)
        }
        Command::Ctl(args) => {
            let (text, code) = ctl::run(socket(&args.socket)?, args.question, args.json)?;
            // A closed pipe behind it is no error.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(code)
        }
        Command::Script(args) => {
            script::run(&Script { path: args.file, args: args.args, out: args.out })?;
            Ok(0)
        }
        Command::Sweep(args) => {
            let text = sweep::run(&args)?;
            // A closed pipe behind it is no error.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(0)
        }
        Command::Top(args) => {
            top::run(socket(&args.socket)?, args.interval, args.once)?;
            Ok(0)
        }
        Command::Report(args) => {
            let nanos = |time: Duration| Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            let elsewhere = nanos(args.idle_grace);
            let options = Options { elsewhere, complete: args.complete, ..Options::default() };
            let options = args.grace.map_or(options, |grace| options.at_least(nanos(grace)));
            let report = report::report(&args.trace, args.html.as_deref(), options)?;
            let text = if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.to_string() };
            // A closed pipe behind it is no error.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(if report.holds() { 0 } else { report::EXIT_VIOLATED })
        }
        Command::Doctor(args) => {
            let report = host::examine();
            let text = if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.to_string() };
            // A closed pipe behind it is no error.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(if report.can_run() { 0 } else { EXIT_VMM })
        }
        Command::Sim(args) => simulate(&args),
        Command::Tsc(TscCommand::Verify(args)) => {
            let json = args.json;
            let report = clock::verify::verify(*args)?;
            let text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { report.to_string() };
            // A closed pipe behind it is no error.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(if report.holds { 0 } else { clock::verify::EXIT_OFF })
        }
        Command::Completions { shell } => {
            // A closed pipe behind it is no error.
            let _ = std::io::stdout().write_all(&manual::completions(shell));
            Ok(0)
        }
        Command::Man { out } => {
            manual::pages(&out).with_context(|| format!("can't write manual pages into {}", out.display()))?;
            Ok(0)
        }
    }
}

fn config(said: Said) -> Result<Config, FlagsError> {
    Config::new(said.machine, said.guest)
}

/// `config check`: a line for each file. The exit code is that of the last one that isn't good.
fn check(files: &[PathBuf]) -> u8 {
    let mut code = 0;
    for path in files {
        let checked = file::read(path).map_err(LaunchError::from).and_then(|said| launch::check(&config(said)?));
        match checked {
            Ok(()) => {
                // A closed pipe behind it is no error.
                let _ = writeln!(std::io::stdout(), "{}: good", path.display());
            }
            Err(error) => {
                let path = path.display().to_string();
                let place = if matches!(error, LaunchError::File(_)) { String::new() } else { format!("{path}: ") };
                say(format_args!("taskvisor: {place}{error}\n"));
                code = error.exit_code();
            }
        }
    }
    code
}

/// The control socket that a client was told.
fn socket(args: &ControlArgs) -> anyhow::Result<&Path> {
    args.control.as_deref().context(
        "no guest named: give --control SOCKET, or set TASKVISOR_CONTROL to the socket of taskvisor run --control",
    )
}

/// `sim`. Its exit code tells whether the scheduler's invariants held.
fn simulate(args: &SimArgs) -> anyhow::Result<u8> {
    let mut stdout = std::io::stdout();
    if args.workload == "list" {
        let _ = stdout.write_all(sim::source::list().as_bytes());
        return Ok(0);
    }
    let result = sim::run::run(args)?;
    let text = if args.json {
        serde_json::to_string_pretty(&sim::report::json(&result))? + "\n"
    } else {
        sim::report::text(&result)
    };
    // A closed pipe behind it is no error.
    let _ = stdout.write_all(text.as_bytes());
    let holds = result.outcome.is_none_or(|outcome| outcome.holds());
    if !holds {
        say(format_args!("taskvisor: an invariant of the scheduler was broken; the same again: {}\n", result.command));
    }
    Ok(if holds { 0 } else { sim::EXIT_VIOLATION })
}

/// Help and version as they are; errors in one line, with our exit code for errors instead of clap's 2.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A closed pipe behind --help is no error.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(EXIT_VMM);
    }
    if let Some(flag) = flag_of_run(error) {
        say(format_args!(
            "taskvisor: image takes no {flag}: it writes the guest alone, and the machine is whose VMM starts it (see \
             taskvisor image --help)\n"
        ));
        return ExitCode::from(EXIT_VMM);
    }
    let text = error.render().to_string();
    let useful = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let useful = useful.filter(|line| !line.is_empty() && !line.starts_with("For more"));
    let line = useful.collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    say(format_args!("taskvisor: {} (see taskvisor --help)\n", line.strip_prefix("error: ").unwrap_or(&line)));
    ExitCode::from(EXIT_VMM)
}

/// The flag that `image` doesn't take, though `run` does.
fn flag_of_run(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(wrong)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = wrong.strip_prefix("--")?.split('=').next()?;
    let cli = Cli::command();
    let known = cli.find_subcommand("run")?.get_arguments().any(|arg| arg.get_long() == Some(flag));
    let ours = std::env::args_os().nth(1).is_some_and(|command| command == "image");
    (known && ours && error.kind() == ErrorKind::UnknownArgument).then(|| format!("--{flag}"))
}

/// Writes to stderr. A closed pipe behind it changes nothing, least of all the exit code (`eprint!` would panic).
fn say(text: std::fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_fmt(text);
}
