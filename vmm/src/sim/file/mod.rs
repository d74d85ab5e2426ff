//! A workload file: TOML in, [`Workload`] and [`Machine`] out.
//!
//! docs/simulator.md is its reference. Used by [`super::source`]; pure. Every error says what is wrong, where, and what to
//! write instead: syntax and types by line and column, meaning by group and step.

mod meaning;
mod names;
mod tables;

use serde::Deserialize;
use vcpu_sched::sim::model::{ChannelFamily, Workload};

use super::span::Time;
use names::Names;
use tables::Raw;

/// What a file says about the machine. Flags go before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineTable {
    /// How many CPUs.
    pub cpus: Option<u32>,
    /// Which of them share cores and sockets, as `--topology` takes it.
    pub topology: Option<String>,
    /// The policy of ordinary tasks.
    pub policy: Option<String>,
    /// How long to simulate.
    pub duration: Option<Time>,
    /// See [`Costs`](vcpu_sched::sim::Costs).
    pub switch: Option<Time>,
    /// See [`Costs`](vcpu_sched::sim::Costs).
    pub call: Option<Time>,
    /// See [`Costs`](vcpu_sched::sim::Costs).
    pub ipi: Option<Time>,
    /// See [`Costs`](vcpu_sched::sim::Costs).
    pub idle_exit: Option<Time>,
}

/// A file that was read.
#[derive(Debug, Clone)]
pub struct File {
    /// What it is, in one line.
    pub description: String,
    /// Its machine.
    pub machine: MachineTable,
    /// Its tasks.
    pub workload: Workload,
}

/// Why a file can't be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FileError {
    /// Not TOML, or not with these names and types.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// Something in a group, channel or intervention.
    #[error("{place}: {what}")]
    Meaning {
        /// Where.
        place: String,
        /// What.
        what: String,
    },
}

/// Reads a file's text.
///
/// # Errors
/// [`FileError`].
pub fn parse(text: &str) -> Result<File, FileError> {
    let raw: Raw = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        FileError::Syntax { line, column, message: error.message().replace('\n', " ") }
    })?;
    let names = Names {
        groups: raw.group.iter().map(|group| group.name.clone()).collect(),
        channels: raw.channel.iter().map(|channel| channel.name.clone()).collect(),
    };
    let mut workload = Workload::default();
    for channel in &raw.channel {
        let kind = channel.kind().map_err(|what| meaning(format!("channel {}", channel.name), what))?;
        let family = ChannelFamily { name: channel.name.clone(), count: channel.count.unwrap_or(1), kind };
        workload.channels.push(family);
    }
    for group in &raw.group {
        workload.groups.push(group.read(&names)?);
    }
    for (i, at) in raw.at.iter().enumerate() {
        let step = at.read(&names).map_err(|what| meaning(format!("at entry {}", i + 1), what))?;
        workload.script.push(step);
    }
    workload.check().map_err(|error| meaning(error.place, error.what.to_string()))?;
    Ok(File { description: raw.description, machine: raw.machine, workload })
}

fn meaning(place: String, what: String) -> FileError {
    FileError::Meaning { place, what }
}

#[cfg(test)]
mod tests {
    use vcpu_sched::ids::Nanos;
    use vcpu_sched::sim::model::{ChannelRef, Member, Op};

    use super::*;

    #[test]
    fn a_file_says_all_that_a_workload_can_be() {
        let file = parse(
            r#"
            description = "everything"
            [machine]
            cpus = 4
            duration = "2s"
            [[channel]]
            name = "pipe"
            count = 3
            capacity = 16
            [[channel]]
            name = "door"
            parties = 2
            [[group]]
            name = "a"
            count = 2
            every = { exponential = "1ms" }
            nice = [-5, 5]
            affinity = "random 2"
            program = [
                { run = "1ms" }, { sleep = "2ms" }, { yield = true }, { take = "pipe[self]" },
                { put = "pipe[self+1]", count = 2 }, { meet = "door" }, { fork = "b", count = 3 }, { join = true },
                { nice = 3, slice = "1ms" }, { affinity = "0-1" }, { repeat = 2, do = [{ run = "1us" }] },
            ]
            [[group]]
            name = "b"
            count = 0
            policy = "deadline"
            runtime = "1ms"
            deadline = "5ms"
            period = "10ms"
            repeat = 1
            program = [{ run = "1ms" }, { next_period = "10ms", within = "5ms" }, { exit = true }]
            [[at]]
            time = "1s"
            group = "a"
            nice = 19
            "#,
        )
        .unwrap();
        assert_eq!((file.description.as_str(), file.machine.cpus), ("everything", Some(4)));
        let workload = file.workload;
        assert_eq!(workload.groups[0].program.len(), 11);
        assert_eq!(workload.groups[0].params.len(), 2);
        let own = ChannelRef { family: 0, member: Member::Own { divide: 1, add: 1 } };
        assert_eq!(workload.groups[0].program[4], Op::Put(own, 2));
        let ms = Nanos::from_millis;
        assert_eq!(workload.groups[1].program[1], Op::NextPeriod { period: ms(10), deadline: ms(5) });
        assert_eq!((workload.script.len(), workload.script[0].at), (1, Nanos::from_secs(1)));
    }

    #[test]
    fn an_error_says_where_and_what_to_do() {
        let group = |program: &str| format!("[[group]]\nname = 'g'\nprogram = [{program}]");
        let cases = [
            ("[[group]\n".to_owned(), "line 1, column 9"),
            ("colour = 1".to_owned(), "line 1, column 1: unknown field `colour`"),
            ("[[group]]\nname = 'x'\nprogram = [{ run = '5' }]".to_owned(), "line 3, column 20: the unit is missing"),
            (String::new(), "workload: no task comes by itself"),
            (group(""), "group g: the program is empty"),
            (group("{}"), "group g, step 1: give exactly one of run"),
            (group("{ run = '1ms', sleep = '1ms' }"), "group g, step 1: give exactly one of"),
            (group("{ take = 'x' }"), "group g, step 1: there is no channel 'x' (there are: none)"),
            (group("{ fork = 'h' }"), "there is no group 'h' (there are: g)"),
            (group("{ repeat = 2 }"), "belong together"),
            (
                group("{ repeat = 2, do = [{ run = '1ms' }, { count = 2, run = '1ms' }] }"),
                "group g, step 1, step 2: count",
            ),
            (group("{ policy = 'fifo' }"), "needs a priority"),
            (group("{ nice = 40 }"), "nice values are -20 to 19, not 40"),
            (group("{ affinity = '9-2' }"), "the range ends before it starts"),
            ("[[group]]\nname='g'\npolicy='wild'\nprogram=[{run='1ms'}]".to_owned(), "there is no policy 'wild'"),
            ("[[group]]\nname='g'\npolicy='deadline'\nprogram=[{run='1ms'}]".to_owned(), "needs runtime and deadline"),
            (format!("[[channel]]\nname='c'\ncapacity=0\n{}", group("{run='1ms'}")), "channel c: the capacity"),
        ];
        for (text, part) in cases {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}\n{error}");
        }
    }
}
