//! What runs inside: kernel, command line and archive, checked before anything of KVM is touched.
//!
//! [`crate::launch`] assembles it for `run` and `image`. Invariant: a [`Guest`] that exists can be loaded, given enough
//! memory.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use toml_writer::{ToTomlValue, TomlStringBuilder};

use crate::archive::build::Builder;
use crate::archive::parse::{self, Entry};
use crate::archive::{Archive, ArchiveError};
use crate::boot::builtin::BuiltIn;
use crate::boot::kernel::{Kernel, KernelError};
use crate::boot::layout::ENCLAVE;
use crate::config::{Config, ConsoleChoice};
use crate::end::EXIT_VMM;
use crate::program::{self, Found, GUEST_PATH, ProgramError, UserArchive};

/// The start list's name in the archive (docs/abi.md).
const START_LIST: &str = "taskvisor.toml";
/// What the kernel runs without a start list.
const INIT: &str = "init";
/// Permissions of what we put into the archive ourselves.
const PROGRAM_MODE: u32 = 0o755;
const START_LIST_MODE: u32 = 0o644;

/// Why a guest can't be put together.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// No kernel.
    #[error("this taskvisor was built without a kernel: give one with --kernel")]
    NoKernel,
    /// Nothing that could be run.
    #[error("nothing to run: give a program after --, or an archive with {START_LIST} or /{INIT} (--initrd)")]
    NothingToRun,
    /// The program's own path.
    #[error("{0}: its file name is not valid UTF-8")]
    ProgramName(String),
}

impl GuestError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            GuestError::Program(error) => error.exit_code(),
            _ => EXIT_VMM,
        }
    }
}

/// A kernel with everything that it is given.
#[derive(Debug)]
pub struct Guest {
    /// The kernel.
    pub kernel: Kernel,
    /// What the user added to the command line.
    pub user_cmdline: String,
    /// The archive.
    pub archive: Option<Archive>,
    /// COM1 carries the streams.
    pub serial_console: bool,
}

/// One `[[program]]` of the start list (docs/abi.md, "Start list").
#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, serde::Deserialize))]
struct StartEntry {
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
}

impl StartEntry {
    /// As TOML. Strings have one form only, basic and on one line, so that the kernel's reader can be small; the toml
    /// crate's own writer would use all four.
    fn to_toml(&self) -> String {
        let string = |text: &str| TomlStringBuilder::new(text).as_basic().to_toml_value();
        let list = |texts: &[String]| texts.iter().map(|text| string(text)).collect::<Vec<_>>().join(", ");
        format!(
            "[[program]]\npath = {}\nargs = [{}]\nenv = [{}]\ncwd = {}\n",
            string(&self.path),
            list(&self.args),
            list(&self.env),
            string(&self.cwd)
        )
    }
}

impl Guest {
    /// Checks and lays out everything that `config` names. `term` is the terminal's name, if there is a terminal.
    pub fn assemble(config: &Config, term: Option<&str>) -> Result<Self, GuestError> {
        let kernel = match &config.kernel {
            Some(path) => Kernel::open(path)?,
            None => Kernel::built_in(BuiltIn::get().ok_or(GuestError::NoKernel)?)?,
        };
        let ours = kernel.is_ours();
        let archive = archive(config, ours, term)?;
        if let (false, Some(program)) = (ours, &config.program) {
            log::warn!("this kernel isn't Taskvisor's own: whether it starts {} is up to it", program.name);
        }
        let serial_console = match config.console {
            ConsoleChoice::Auto => !ours,
            ConsoleChoice::Serial => true,
            ConsoleChoice::Virtio => false,
        };
        let mut user_cmdline = config.cmdline.trim().to_owned();
        if let Some(policy) = config.policy.filter(|_| ours) {
            user_cmdline = format!("policy={policy} {user_cmdline}").trim_end().to_owned();
        }
        if let Some(chaos) = config.chaos.filter(|_| ours) {
            user_cmdline =
                format!("chaos={:#x} chaos_rate={} {user_cmdline}", chaos.seed, chaos.rate).trim_end().to_owned();
        }
        Ok(Self { kernel, user_cmdline, archive, serial_console })
    }

    /// Whether the kernel is Taskvisor's own.
    pub fn is_ours(&self) -> bool {
        self.kernel.is_ours()
    }
}

/// The user's archive, then his files, then the program and the start list; `None` if there is nothing of that.
fn archive(config: &Config, ours: bool, term: Option<&str>) -> Result<Option<Archive>, GuestError> {
    let user = config.initrd.as_deref().map(|path| open(path).map(|file| (path, file))).transpose()?;
    if config.program.is_none() && config.files.is_empty() {
        return match user {
            // A foreign kernel's archive may be of any kind.
            Some((path, file)) if !ours => Ok(Some(Archive::raw(path.to_owned(), file)?)),
            Some((path, file)) => {
                let entries = parse::scan(path, &file)?;
                if config.kernel.is_none() && !runs_something(&entries) {
                    return Err(GuestError::NothingToRun);
                }
                Ok(Some(Archive::raw(path.to_owned(), file)?))
            }
            // A kernel of the user's own may have something to do by itself, as one with in-guest tests.
            None if config.kernel.is_none() => Err(GuestError::NothingToRun),
            None => Ok(None),
        };
    }

    let entries = user.as_ref().map(|(path, file)| parse::scan(path, file)).transpose()?.unwrap_or_default();
    let mut start = None;
    if let Some(program) = &config.program {
        let user_archive = user.as_ref().map(|(_, file)| UserArchive { file, entries: &entries });
        let host_path = std::env::var("PATH").unwrap_or_default();
        let found = program::find(&program.name, user_archive, &host_path)?;
        start = Some((program, found));
    } else if config.kernel.is_none() && !runs_something(&entries) {
        return Err(GuestError::NothingToRun);
    }

    let mut builder = Builder::new();
    if let Some((path, file)) = user {
        builder.concatenate(path, file)?;
    }
    for file in &config.files {
        builder.host(&file.host, &file.guest)?;
    }
    if let Some((program, found)) = start {
        let guest_path = match found {
            Found::Archive { guest } => guest,
            Found::Host { path, file } => {
                let guest =
                    program::guest_path(&path).ok_or_else(|| GuestError::ProgramName(path.display().to_string()))?;
                builder.open_file(&path, file, &guest, PROGRAM_MODE)?;
                guest
            }
        };
        let args = std::iter::once(&program.name).chain(&program.args).cloned().collect();
        let entry = StartEntry { path: guest_path, args, env: environment(&config.env, term), cwd: "/".into() };
        builder.bytes(START_LIST, START_LIST_MODE, entry.to_toml().into_bytes())?;
    }
    Ok(Some(builder.finish()?))
}

fn open(path: &Path) -> Result<File, ArchiveError> {
    File::open(path).map_err(|source| ArchiveError::Read { path: path.to_owned(), source })
}

/// Whether a kernel that gets this archive has anything to start.
fn runs_something(entries: &[Entry]) -> bool {
    parse::find(entries, START_LIST).is_some() || parse::find(entries, INIT).is_some()
}

/// The program's environment: ours, with the user's on top.
fn environment(user: &[(String, String)], term: Option<&str>) -> Vec<String> {
    let mut variables = vec![("PATH", GUEST_PATH.join(":")), ("HOME", "/".to_owned()), ("LANG", "C".to_owned())];
    variables.extend(term.map(|term| ("TERM", term.to_owned())));
    for (name, value) in user {
        match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => old.clone_from(value),
            None => variables.push((name, value.clone())),
        }
    }
    variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// What the command line of our kernel says beside what the user added.
#[derive(Debug, Default)]
pub struct KernelKeys<'a> {
    /// `log_level`.
    pub log_level: &'a str,
    /// `quirks`, comma separated.
    pub quirks: &'a str,
    /// `tty`.
    pub tty: &'a str,
    /// `winsize`.
    pub winsize: Option<(u16, u16)>,
    /// `strace=1`.
    pub strace: bool,
    /// `stats=1`.
    pub stats: bool,
    /// `trace=drain`.
    pub trace: bool,
    /// `mailbox=1`.
    pub mailbox: bool,
    /// `enclave=1 enclave_at`, with this timeout, and perhaps `delegate=all`.
    pub delegate: Option<(Duration, bool)>,
    /// `virtio_mmio.device`: size, base, GSI.
    pub virtio: Option<(u64, u64, u32)>,
}

impl KernelKeys<'_> {
    /// The command line (docs/abi.md, "Command line of our kernel"); the user's part comes last.
    pub fn cmdline(&self, user: &str) -> String {
        let mut words = vec![format!("log_level={}", self.log_level)];
        if !self.quirks.is_empty() && !sets(user, "quirks") {
            words.push(format!("quirks={}", self.quirks));
        }
        if !self.tty.is_empty() {
            words.push(format!("tty={}", self.tty));
        }
        if let Some((columns, rows)) = self.winsize {
            words.push(format!("winsize={columns}x{rows}"));
        }
        if self.strace {
            words.push("strace=1".into());
        }
        if self.stats {
            words.push("stats=1".into());
        }
        if self.trace && !sets(user, "trace") {
            words.push("trace=drain".into());
        }
        if self.mailbox && !sets(user, "mailbox") {
            words.push("mailbox=1".into());
        }
        if let Some((timeout, all)) = self.delegate {
            words.push(format!("enclave=1 enclave_at={ENCLAVE:#x} enclave_timeout_ms={}", timeout.as_millis()));
            words.extend(all.then(|| "delegate=all".to_owned()));
        }
        if let Some((size, base, gsi)) = self.virtio {
            words.push(format!("virtio_mmio.device={}K@{base:#x}:{gsi}", size >> 10));
        }
        if !user.is_empty() {
            words.push(user.to_owned());
        }
        words.join(" ")
    }
}

/// Whether a command line sets this key.
fn sets(cmdline: &str, key: &str) -> bool {
    cmdline.split_ascii_whitespace().any(|word| word.split('=').next() == Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_as_the_abi_says() {
        let keys = KernelKeys {
            log_level: "warn",
            quirks: "pf_syscall,slow_ring0",
            tty: "02",
            winsize: Some((120, 40)),
            strace: true,
            stats: false,
            trace: true,
            mailbox: true,
            delegate: Some((Duration::from_secs(3), true)),
            virtio: Some((0x1000, 0xd000_0000, 5)),
        };
        assert_eq!(
            keys.cmdline("test=mm"),
            "log_level=warn quirks=pf_syscall,slow_ring0 tty=02 winsize=120x40 strace=1 \
             trace=drain mailbox=1 enclave=1 enclave_at=0xd8000000 enclave_timeout_ms=3000 delegate=all virtio_mmio.device=4K@0xd0000000:5 test=mm"
        );
        assert!(!keys.cmdline("quirks=").contains("pf_syscall"));
        assert!(!keys.cmdline("trace=ring").contains("drain"));
    }

    #[test]
    fn the_environment_can_be_changed_and_extended() {
        let env = environment(&[("HOME".into(), "/tmp".into()), ("X".into(), "a=b".into())], Some("xterm"));
        assert_eq!(env, ["PATH=/bin:/usr/bin:/sbin:/usr/sbin", "HOME=/tmp", "LANG=C", "TERM=xterm", "X=a=b"]);
    }

    #[test]
    fn the_start_list_is_toml_on_one_line_a_key() {
        let entry = StartEntry {
            path: "/bin/busybox".into(),
            args: vec!["busybox".into(), "a \"b\" 'c'\n\t\u{1}\u{7f}\\ß".into()],
            env: vec!["PATH=/bin".into(), String::new()],
            cwd: "/".into(),
        };
        let text = entry.to_toml();
        assert_eq!(text.lines().count(), 5, "{text}");
        #[derive(serde::Deserialize)]
        struct StartList {
            program: Vec<StartEntry>,
        }
        let list: StartList = toml::from_str(&text).unwrap();
        assert_eq!(list.program, [entry]);
    }
}
