//! docs/cli.md shows the commands' own help. UPDATE_DOCS=1 writes it anew.

use std::fs;
use std::path::Path;

use taskvisor_tests::Run;
use taskvisor_tests::guest::taskvisor;

const COMMANDS: [&str; 18] = [
    "",
    "run",
    "image",
    "config",
    "config check",
    "config show",
    "doctor",
    "report",
    "sim",
    "script",
    "sweep",
    "top",
    "agent",
    "ctl",
    "tsc",
    "tsc verify",
    "completions",
    "man",
];

#[test]
fn cli_md_is_what_help_prints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let old = fs::read_to_string(&path).expect("docs/cli.md is part of the tree");
    // Everything up to the first block is written by hand.
    let intro = old.split("\n## `taskvisor").next().unwrap_or_default().trim_end();
    let mut new = format!("{intro}\n");
    for command in COMMANDS {
        let run = Run::new(taskvisor()).args(command.split_whitespace()).arg("--help").env("COLUMNS", "100").run();
        run.expect_code(0);
        let title = format!("taskvisor {command}");
        let help: Vec<_> = run.text().lines().map(|line| line.trim_end().to_owned()).collect();
        new.push_str(&format!("\n## `{}`\n```\n{}\n```\n", title.trim_end(), help.join("\n").trim_end()));
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &new).expect("docs/ can be written");
    } else if old != new {
        panic!(
            "docs/cli.md is out of date; write it anew with\n  UPDATE_DOCS=1 cargo test -p taskvisor-tests --test docs"
        );
    }
}
