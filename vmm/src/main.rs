//! The command `taskvisor`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use taskvisor::boot::kernel::Kernel;
use taskvisor::guest::{Archive, Guest};
use taskvisor::vm::{LogSink, Options, Vm};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Run(Run),
}

#[derive(clap::Args)]
struct Run {
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    #[arg(long, default_value_t = 256)]
    memory: u64,
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long, default_value = "")]
    cmdline: String,
    #[arg(long)]
    initrd: Option<PathBuf>,
    #[arg(long)]
    timeout: Option<u64>,
    #[arg(long)]
    stats: bool,
    #[arg(long)]
    serial: bool,
}

fn main() -> ExitCode {
    let start = Instant::now();
    let Command::Run(run) = Cli::parse().command;
    match execute(run, start) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("taskvisor: {error}");
            ExitCode::from(125)
        }
    }
}

fn execute(run: Run, start: Instant) -> anyhow::Result<u8> {
    let guest = Guest {
        kernel: Kernel::open(&run.kernel)?,
        cmdline: run.cmdline,
        archive: run.initrd.as_deref().map(Archive::open).transpose()?,
    };
    let options = Options {
        vcpus: run.vcpus,
        memory: run.memory << 20,
        timeout: run.timeout.map(std::time::Duration::from_secs),
        stats: run.stats,
        log: LogSink::Stderr,
        serial_console: run.serial || !guest.is_ours(),
        start,
    };
    let ended = Vm::build(guest, options)?.run()?;
    if let Some(report) = &ended.report {
        eprint!("taskvisor: {report}");
    }
    if let Some(message) = ended.end.message() {
        eprintln!("taskvisor: {message}");
    }
    if let Some(stats) = &ended.stats {
        eprint!("{stats}");
    }
    Ok(ended.end.exit_code())
}
