//! A file says exactly what flags say: the same names, the same values, and flags go before it.

use std::collections::BTreeSet;

use clap::{CommandFactory, Parser};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use super::Config;
use super::cli::{Cli, Command};
use super::file::{self, Said};
use super::flags::FlagsError;
use super::schema::schema;

/// Every flag with values of it. [`flags_files_and_schema_have_the_same_names`] sees to it that none is missing.
const FLAGS: &[(&str, &[&str])] = &[
    ("vcpus", &["1", "7", "4294967295"]),
    ("memory", &["256M", "1G", "12345", "3T", "1048577", "0"]),
    ("topology", &["host", "sockets=2,dies=1,cores=3,threads=2", "cores=5", "threads=2,sockets=1"]),
    ("numa", &["node=0", "node=0,cpus=0-1,4,mem=64M,dist=1@21;node=1,cpus=2-3,mem=1G,dist=0@22,2@30"]),
    ("cpu", &["host", "x86-64-v3", "v2,+avx2,-sse4_2", "baseline,-popcnt"]),
    ("affinity", &["0=0;1-2=1,3", "all=0-1", "0,2=1"]),
    ("vcpu-sched", &["other", "all=fifo:3", "0=rr:99;1,3=nice:-20"]),
    ("exclusive", &["true", "false"]),
    ("io-affinity", &["0", "0-3,7"]),
    ("delegate", &["fifo", "shinjuku:500", "remote:rr", "external:/run/x.sock"]),
    ("delegate-all", &["true", "false"]),
    ("delegate-timeout", &["50ms", "10s"]),
    ("agent-cpu", &["0", "63"]),
    ("seccomp", &["on", "off", "log"]),
    ("core-scheduling", &["off", "vm", "vcpu"]),
    ("tsc-khz", &["1", "2500000", "4294967295"]),
    ("tsc-offset", &["5ms", "0=-1;1=-200us", "-7"]),
    ("tsc-mode", &["native", "virtual", "auto"]),
    ("clock-rate", &["0.01", "0.5", "1", "100"]),
    ("clock-on-pause", &["stop", "run"]),
    ("timeout", &["1ms", "1500ms", "5s", "2m", "1h"]),
    ("log", &["stderr", "off", "some/file.log"]),
    ("console", &["auto", "virtio", "serial"]),
    ("control", &["/run/x.sock"]),
    ("gdb", &["unix:/run/x.sock", "localhost:1234"]),
    ("gdb-allow-remote", &["true", "false"]),
    ("wait-gdb", &["true", "false"]),
    ("trace", &["a.pftrace", "b/c.jsonl"]),
    ("kernel", &["vmlinuz", "/boot/k e l"]),
    ("cmdline", &["", "a=b c=\"d\"", "-x"]),
    ("initrd", &["x.cpio"]),
    ("stats", &["true", "false"]),
    ("strace", &["true", "false"]),
    ("env", &["A=", "B=c=d", "GRÜẞE=\n\t\u{1}'\""]),
    ("file", &["a.txt", "d/a.txt:/b/", "/etc/hosts", "x:y"]),
    ("log-level", &["off", "error", "warn", "info", "debug"]),
    ("policy", &["fair", "rr", "count", "runtime"]),
    ("chaos", &["0", "0x7", "18446744073709551615"]),
    ("chaos-rate", &["1", "64"]),
];

/// What a command line says.
fn said(words: impl IntoIterator<Item = String>) -> Said {
    let words = ["taskvisor", "run"].map(str::to_owned).into_iter().chain(words);
    match Cli::try_parse_from(words).expect("a good command line").command {
        Command::Run(args) => args.said().expect("no file"),
        other => panic!("{other:?}"),
    }
}

/// Some of the flags, each with one of its values, and a program.
fn command_line() -> impl Strategy<Value = Vec<String>> {
    let flags = subsequence(FLAGS, 0..=FLAGS.len());
    let program = proptest::collection::vec("[ -~üß\n]{0,12}", 0..4);
    (flags, any::<Index>(), program).prop_map(|(flags, choice, program)| {
        let flag = |(name, values): (&str, &[&str])| format!("--{name}={}", choice.get(values));
        let words = flags.into_iter().map(flag);
        words.chain(["--".to_owned()]).chain(program).collect()
    })
}

proptest! {
    #[test]
    fn what_flags_say_a_file_can_say(words in command_line()) {
        let by_flags = said(words);
        let text = file::write(&by_flags).unwrap();
        let by_file = file::parse(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(&by_file, &by_flags, "{}", text);
        let config = |said: Said| Config::new(said.machine, said.guest).map(|config| format!("{config:?}"));
        prop_assert_eq!(config(by_file), config(by_flags));
        let schema = jsonschema::validator_for(&schema()).unwrap();
        let value: serde_json::Value = toml::from_str(&text).unwrap();
        let wrong: Vec<_> = schema.iter_errors(&value).map(|error| error.to_string()).collect();
        prop_assert!(wrong.is_empty(), "{:?}\n{}", wrong, text);
    }

    #[test]
    fn flags_go_before_a_file(flags in command_line(), in_file in command_line()) {
        let (flags, in_file) = (said(flags), said(in_file));
        let table = |said: &Said| toml::Table::try_from(said).unwrap();
        let together = Said {
            machine: flags.machine.clone().over(in_file.machine.clone()),
            guest: flags.guest.clone().over(in_file.guest.clone()),
        };
        let mut expected = table(&in_file);
        for (key, value) in table(&flags) {
            match (expected.get_mut(&key), value) {
                (Some(toml::Value::Table(old)), toml::Value::Table(new)) if key == "env" => old.extend(new),
                (Some(toml::Value::Array(old)), toml::Value::Array(new)) if key == "file" => old.extend(new),
                (_, value) => drop(expected.insert(key, value)),
            }
        }
        prop_assert_eq!(table(&together), expected);
    }

    #[test]
    fn no_text_panics_and_errors_stay_inside(
        text in "(\\PC|\n){0,40}",
        key in proptest::sample::select(FLAGS),
        value in "[a-z0-9=,;@\\[\\]{}\"' .ü-]{0,20}",
    ) {
        for text in [text, format!("{} = {value}", key.0), format!("{} = '{value}'", key.0)] {
            if let Err(error) = file::parse(&text) {
                let lines: Vec<_> = text.split('\n').collect();
                prop_assert!((1..=lines.len()).contains(&error.line), "{}", error);
                prop_assert!(error.column <= lines[error.line - 1].chars().count() + 1, "{}", error);
            }
        }
    }
}

#[test]
fn flags_files_and_schema_have_the_same_names() {
    let cli = Cli::command();
    let run = cli.get_subcommands().find(|command| command.get_name() == "run").unwrap();
    let flags: BTreeSet<_> = run.get_arguments().map(|arg| arg.get_long().unwrap_or(arg.get_id().as_str())).collect();
    let schema = schema();
    let keys: BTreeSet<_> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    let only_flags: Vec<_> = flags.difference(&keys).copied().collect();
    assert_eq!((only_flags, keys.is_subset(&flags)), (vec!["config"], true));
    let tested: BTreeSet<_> = FLAGS.iter().map(|(name, _)| *name).chain(["program"]).collect();
    assert_eq!(tested, keys, "each flag needs values in FLAGS");
}

#[test]
fn image_takes_what_is_about_the_guest() {
    let words = |flags: &[&str]| {
        let words = ["taskvisor", "image", "-o", "dir"].iter().chain(flags).chain(&["--", "prog"]);
        Cli::try_parse_from(words).map(drop).map_err(|error| error.kind())
    };
    assert_eq!(words(&["--policy", "rr", "--env", "A=b", "--log-level", "off", "--strace"]), Ok(()));
    for flag in ["--affinity=0=0", "--vcpus=2", "--timeout=5s", "--control=x", "--trace=x.jsonl"] {
        assert_eq!(words(&[flag]), Err(clap::error::ErrorKind::UnknownArgument), "{flag}");
    }
}

#[test]
fn tables_say_the_same_as_texts() {
    for (table, text) in [
        ("topology = { sockets = 2, threads = 2 }", "topology = 'sockets=2,threads=2'"),
        (
            "[[numa]]\nnode = 0\ncpus = '0-1'\nmem = '64M'\ndist = { 1 = 21 }\n[[numa]]\nnode = 1\ncpus = 2",
            "numa = 'node=0,cpus=0-1,mem=64M,dist=1@21;node=1,cpus=2'",
        ),
        ("[affinity]\n0 = 0\n1-2 = '1,3'", "affinity = '0=0;1-2=1,3'"),
        ("[vcpu-sched]\nall = 'nice:5'", "vcpu-sched = 'all=nice:5'"),
        ("file = ['a.txt', { host = 'b', guest = '/c/' }]", "file = [{ host = 'a.txt' }, 'b:/c/b']"),
        ("memory = 4096\nchaos = 7", "memory = '4K'\nchaos = '0x7'"),
    ] {
        assert_eq!(file::parse(table).unwrap(), file::parse(text).unwrap(), "{table}");
    }
}

#[test]
fn errors_say_where_and_what_was_meant() {
    for (text, message) in [
        ("vcpus = 2\nvcpu = 3", "line 2, column 1: unknown key 'vcpu': is it vcpus?"),
        ("log_level = 'off'", "line 1, column 1: unknown key 'log_level': is it log-level?"),
        ("topology = { cores = 1, core = 2 }", "line 1, column 25: unknown key 'core': is it cores?"),
        ("[[numa]]\nnode = 0\nnumber = 1", "line 3, column 1: unknown key 'number': there are cpus, dist, mem, node"),
        ("file = ['a', { hosts = 'b' }]", "line 1, column 16: unknown key 'hosts': is it host?"),
        ("vcpus = 'two'", "line 1, column 9: invalid type: string \"two\", expected u32"),
        ("\n  memory = '12Q'", "line 2, column 12: '12Q': unknown unit 'Q' at character 3: use K, M, G or T"),
        ("timeout = 5", "line 1, column 11: '5': a unit is missing: 5s, 5ms or 5m?"),
        ("cpu = 'v3,-avx51f'", "unknown feature 'avx51f' at character 5: is it avx512f?"),
        ("[affinity]\n0 = 'x'", "line 2, column 5: 'x': a number is missing at character 1"),
        ("topology = { cores = 0 }", "line 1, column 12: cores= must be at least 1 at character 7"),
        ("policy = 'lottery'", "line 1, column 10: 'lottery':"),
        ("log-level = 'loud'", "unknown variant `loud`, expected one of `off`"),
        ("chaos-rate = 0", "line 1, column 14: invalid value: integer `0`, expected a nonzero u32"),
        ("[env]\n'a=b' = 'c'", "the name a=b holds a '='"),
        ("trace = 'x.json'", "unknown trace format .json"),
        ("stats = 1", "line 1, column 9: invalid type: integer `1`, expected a boolean"),
        ("vcpus = 1\nvcpus = 2", "line 2, column 1: duplicate key"),
        ("vcpus = [", "line 1, column 10"),
    ] {
        let error = file::parse(text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}\n{error}\n{message}");
    }
}

#[test]
fn flags_can_take_back_what_a_file_says() {
    let in_file = file::parse("stats = true\nchaos-rate = 3\n[env]\nA = '1'\nB = '2'").unwrap();
    let flags = said(["--stats=false", "--env", "A=3"].map(str::to_owned));
    let guest = flags.guest.over(in_file.guest);
    assert_eq!(Config::new(in_file.machine.clone(), guest.clone()).err(), Some(FlagsError::RateOfNothing));
    let guest = said(["--chaos=1".to_owned()]).guest.over(guest);
    let config = Config::new(in_file.machine, guest).unwrap();
    assert!(!config.stats && config.chaos.is_some_and(|chaos| chaos.rate == 3));
    let value = |name: &str| config.env.iter().rfind(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!((value("A"), value("B")), (Some("3"), Some("2")));
}
