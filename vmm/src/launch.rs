//! From a [`Config`] to a finished run, or to the files of an image.
//!
//! The binary's and the tests' way in. What goes wrong is a [`LaunchError`] that knows the exit code.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::affinity::{self, AffinityError, Plan};
use crate::archive::ArchiveError;
use crate::config::Config;
use crate::config::file::FileError;
use crate::config::flags::FlagsError;
use crate::console::{terminal, virtio};
use crate::end::EXIT_VMM;
use crate::guest::{Guest, GuestError, KernelKeys};
use crate::topology::{self, Topology, TopologyError};
use crate::vm::{Ended, Options, Vm, VmError};

/// Why a run or an image failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Kernel, program or archive.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// How the vCPUs are arranged.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// Where the threads run.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// The machine.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// `--config`.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is asked for.
    #[error(transparent)]
    Flags(#[from] FlagsError),
    /// `image`: a file can't be written.
    #[error("can't write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// `image`: the archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl LaunchError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            LaunchError::Guest(error) => error.exit_code(),
            _ => EXIT_VMM,
        }
    }
}

/// Everything that a run checks before it touches KVM. The program may still be missing: a command line can give it.
pub fn check(config: &Config) -> Result<(), LaunchError> {
    prepare(config)?;
    match Guest::assemble(config, None) {
        Ok(_) | Err(GuestError::NothingToRun) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How the vCPUs are arranged, and where their threads will run.
fn prepare(config: &Config) -> Result<(Topology, Plan), LaunchError> {
    let topology = topology::resolve(config.vcpus, config.topology, &config.numa, config.memory)?;
    let host = affinity::plan::Host::ask().map_err(AffinityError::Thread)?;
    let placement = Plan::new(&config.host, topology.vcpus(), host)?;
    placement.rehearse()?;
    Ok((topology, placement))
}

/// Runs the guest to its end. `start` is when the process began, for `--stats`.
pub fn run(config: &Config, start: Instant) -> Result<Ended, LaunchError> {
    let (topology, placement) = prepare(config)?;
    let term = terminal_name();
    let guest = Guest::assemble(config, term.as_deref())?;
    let options = Options {
        vcpus: topology.vcpus(),
        topology,
        cpu: config.cpu.clone(),
        placement,
        memory: config.memory,
        timeout: config.timeout,
        stats: config.stats,
        strace: config.strace,
        log: config.log.clone(),
        log_level: config.log_level,
        start,
        control: config.control.clone(),
        gdb: config.gdb.clone(),
        trace: config.trace.clone(),
        seccomp: config.seccomp,
        chaos: config.chaos,
        delegate: config.delegate.clone(),
        clock: config.clock.clone(),
        program: config.program.iter().flat_map(|p| std::iter::once(&p.name).chain(&p.args)).cloned().collect(),
    };
    Ok(Vm::build(guest, options)?.run()?)
}

/// `TERM`, if any of our streams is a terminal.
fn terminal_name() -> Option<String> {
    let terminal = io::stdin().is_terminal() || io::stdout().is_terminal() || io::stderr().is_terminal();
    std::env::var("TERM").ok().filter(|term| terminal && !term.is_empty())
}

/// Writes kernel.elf, archive.cpio and cmdline into `directory`. The command line lacks what belongs to one VMM or
/// host: the virtio devices' addresses, the terminal, and quirks.
pub fn image(config: &Config, directory: &Path) -> Result<(), LaunchError> {
    let guest = Guest::assemble(config, None)?;
    fs::create_dir_all(directory).map_err(|source| LaunchError::Write { path: directory.to_owned(), source })?;
    write_file(directory.join("kernel.elf"), |out| guest.kernel.write_to(out).map(drop))?;

    let path = directory.join("archive.cpio");
    let mut out = create(&path)?;
    if let Some(archive) = &guest.archive {
        archive.write_to(&mut out)?;
    }
    out.flush().map_err(|source| LaunchError::Write { path, source })?;

    let cmdline = if guest.is_ours() {
        KernelKeys {
            log_level: config.log_level.name(),
            strace: config.strace,
            stats: config.stats,
            ..Default::default()
        }
        .cmdline(&guest.user_cmdline)
    } else {
        guest.user_cmdline.clone()
    };
    write_file(directory.join("cmdline"), |out| writeln!(out, "{cmdline}"))
}

fn create(path: &Path) -> Result<BufWriter<File>, LaunchError> {
    File::create(path).map(BufWriter::new).map_err(|source| LaunchError::Write { path: path.to_owned(), source })
}

fn write_file(path: PathBuf, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), LaunchError> {
    let mut out = create(&path)?;
    write(&mut out).and_then(|()| out.flush()).map_err(|source| LaunchError::Write { path, source })
}

/// The command line of our kernel in this VMM, on this host and terminal.
pub(crate) fn kernel_cmdline(guest: &Guest, options: &Options, quirks: &str) -> String {
    if !guest.is_ours() {
        return guest.user_cmdline.clone();
    }
    let tty = terminal::tty_digits();
    let keys = KernelKeys {
        log_level: if options.log == crate::config::LogSink::Off { "off" } else { options.log_level.name() },
        quirks,
        tty: &tty,
        winsize: virtio::window_size().map(|size| (size.cols, size.rows)),
        strace: options.strace,
        stats: options.stats,
        trace: options.trace.is_some(),
        mailbox: options.takes_requests(),
        delegate: options.delegate.as_ref().map(|delegate| (delegate.timeout, delegate.all)),
        virtio: (!guest.serial_console).then_some((
            crate::boot::layout::VIRTIO_MMIO_SIZE,
            crate::boot::layout::VIRTIO_MMIO,
            crate::boot::layout::VIRTIO_GSI,
        )),
    };
    keys.cmdline(&guest.user_cmdline)
}
