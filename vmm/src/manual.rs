//! What clap's description of the command line is turned into beside `--help`: shell completions and manual pages.
//!
//! Called by the binary. Invariant: both are made from [`Cli`] as it is, so that they know every command and flag.

use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::config::cli::Cli;

/// The completions for one shell, to be read by it.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "taskvisor", &mut script);
    script
}

/// Writes a page for each command into `directory`, which is made if need be: taskvisor.1, taskvisor-run.1, ...
pub fn pages(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), directory)
}

#[cfg(test)]
mod tests {
    use clap::{Command, ValueEnum};

    use super::*;

    /// The command's page name, and those of all below it.
    fn names(command: &Command, above: &str, all: &mut Vec<(String, Command)>) {
        let name =
            if above.is_empty() { command.get_name().to_owned() } else { format!("{above}-{}", command.get_name()) };
        for inner in command.get_subcommands() {
            names(inner, &name, all);
        }
        all.push((name, command.clone()));
    }

    #[test]
    fn each_command_has_a_page_with_its_flags() {
        let directory = tempfile::tempdir().unwrap();
        pages(&directory.path().join("man1")).unwrap();
        let mut all = Vec::new();
        names(&Cli::command(), "", &mut all);
        assert!(all.len() > 12, "{all:?}");
        for (name, command) in &all {
            let page = std::fs::read_to_string(directory.path().join(format!("man1/{name}.1"))).expect(name);
            for flag in command.get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(|arg| arg.get_long()) {
                assert!(page.contains(&flag.replace('-', "\\-")), "{name}.1 lacks --{flag}");
            }
        }
        let files = std::fs::read_dir(directory.path().join("man1")).unwrap().count();
        assert_eq!(files, all.len(), "pages of commands that aren't there");
    }

    #[test]
    fn completions_know_the_commands() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completions(*shell)).unwrap();
            for word in ["doctor", "core-scheduling"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
