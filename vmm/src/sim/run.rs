//! A simulation from flags to results.
//!
//! Used by the command and by tests. What is printed is [`super::report`]'s matter.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use vcpu_sched::checker::Outcome;
use vcpu_sched::ids::Nanos;
use vcpu_sched::runqueue::{PolicyKind, UnknownPolicy};
use vcpu_sched::sim::model::Workload;
use vcpu_sched::sim::{Config, Costs, Fault, Figures, Machine};

use vcpu_sched::topology::{Seat, Topology};

use super::args::SimArgs;
use super::file::{File, MachineTable};
use super::observe::Observer;
use super::source::{self, SourceError};
use crate::config::text::TextError;
use crate::topology::{self, Place, Shape, TopologyError};
use crate::trace::{Header, TraceError, VERSION};

/// Virtual time if neither flag nor workload says one.
const DEFAULT_DURATION: Nanos = Nanos::from_secs(10);
/// Moments between two looks at the wall clock.
const MOMENTS: u64 = 1 << 16;
/// The progress line changes so often.
const PROGRESS: Duration = Duration::from_millis(500);

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The workload.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The workload's policy.
    #[error("[machine] policy '{name}': {source}")]
    Policy {
        /// As it stands there.
        name: String,
        /// Why.
        source: UnknownPolicy,
    },
    /// The workload's topology can't be read.
    #[error("[machine] topology: {0}")]
    Tree(TextError),
    /// The topology and the number of CPUs don't go together.
    #[error("{0} (of a simulated machine, --vcpus is --cpus)")]
    Topology(#[from] TopologyError),
    /// The simulation.
    #[error("{0}")]
    Fault(Fault),
    /// The trace file.
    #[error("can't write the trace: {0}")]
    Trace(#[from] TraceError),
}

/// What came of a simulation.
#[derive(Debug)]
pub struct Simulated {
    /// As it was run.
    pub config: Config,
    /// Who shares what with whom, if anybody was said to.
    pub shape: Option<Shape>,
    /// Until when it was to run.
    pub duration: Nanos,
    /// What ran.
    pub workload: Workload,
    /// What it showed.
    pub figures: Figures,
    /// What the checker found, unless it was told not to look.
    pub outcome: Option<Outcome>,
    /// What it took in real time.
    pub wall: Duration,
    /// The command that does the same again.
    pub command: String,
}

/// Runs what the flags say.
///
/// # Errors
/// [`SimError`].
pub fn run(args: &SimArgs) -> Result<Simulated, SimError> {
    let File { machine, workload, .. } = source::load(&args.workload)?;
    let (config, shape) = configure(args, &machine)?;
    let duration = args.duration.or(machine.duration.map(|time| time.0)).unwrap_or(DEFAULT_DURATION);
    let command = command(args, &config, shape, duration);
    let header = Header {
        version: VERSION,
        cpus: config.cpus,
        tsc_khz: 1_000_000,
        policy: config.policy.to_string(),
        command_line: command.clone(),
        program: vec![args.workload.clone()],
        realtime_ns: 0,
    };
    let trace = args.trace.as_deref().map(|path| (path, &header));
    let mut observer = Observer::new((!args.no_check).then_some(config.costs), trace)?;
    let start = Instant::now();
    let mut machine = Machine::new(config.clone(), &workload, &mut observer).map_err(SimError::Fault)?;
    let mut progress = Progress::new(args.json, duration);
    let end = loop {
        match machine.run(duration, MOMENTS).map_err(SimError::Fault)? {
            Some(end) => break end,
            None => progress.show(start, machine.now(), machine.records()),
        }
    };
    progress.clear();
    let figures = machine.finish(end);
    let outcome = observer.finish()?;
    Ok(Simulated { config, shape, duration, workload, figures, outcome, wall: start.elapsed(), command })
}

/// The tree of CPUs, if one was asked for. A tree on the command line makes the workload's number of CPUs void.
fn tree(args: &SimArgs, machine: &MachineTable) -> Result<Option<topology::Topology>, SimError> {
    let (choice, cpus) = match (args.topology, &machine.topology) {
        (Some(choice), _) => (choice, args.cpus),
        (None, Some(text)) => (topology::parse::topology(text).map_err(SimError::Tree)?, args.cpus.or(machine.cpus)),
        (None, None) => return Ok(None),
    };
    Ok(Some(topology::resolve(cpus, Some(choice), &[], 0)?))
}

/// What the scheduler makes of it: the threads of a core share its units, a die its cache, a socket its memory.
fn seats(tree: &topology::Topology) -> Topology {
    let Shape { dies, cores, .. } = tree.shape();
    let seat = |cpu| {
        let Place { socket, die, core, .. } = tree.place(cpu);
        let cache = socket * dies + die;
        Seat { core: cache * cores + core, cache, node: socket }
    };
    Topology::new(&(0..tree.vcpus()).map(seat).collect::<Vec<_>>())
}

fn configure(args: &SimArgs, machine: &MachineTable) -> Result<(Config, Option<Shape>), SimError> {
    let tree = tree(args, machine)?;
    let policy = match (args.policy, &machine.policy) {
        (Some(policy), _) => policy,
        (None, Some(name)) => name.parse().map_err(|source| SimError::Policy { name: name.clone(), source })?,
        (None, None) => PolicyKind::Fair,
    };
    let usual = Costs::default();
    let cost =
        |flag: Option<Nanos>, file: Option<super::span::Time>, usual| flag.or(file.map(|time| time.0)).unwrap_or(usual);
    let config = Config {
        cpus: tree.as_ref().map(topology::Topology::vcpus).or(args.cpus).or(machine.cpus).unwrap_or(1),
        topology: tree.as_ref().map_or(Topology::flat(), seats),
        policy,
        seed: args.seed,
        costs: Costs {
            switch: cost(args.switch_cost, machine.switch, usual.switch),
            call: cost(args.call_cost, machine.call, usual.call),
            ipi: cost(args.ipi_latency, machine.ipi, usual.ipi),
            idle_exit: cost(args.idle_exit, machine.idle_exit, usual.idle_exit),
        },
        per_task: args.tasks,
    };
    Ok((config, tree.map(|tree| tree.shape())))
}

/// The command that repeats a run, whatever defaults change.
fn command(args: &SimArgs, config: &Config, shape: Option<Shape>, duration: Nanos) -> String {
    let Costs { switch, call, ipi, idle_exit } = config.costs;
    let topology = shape.map_or(String::new(), |shape| format!(" --topology {shape}"));
    format!(
        "taskvisor sim --workload {} --cpus {}{topology} --policy {} --seed {} --duration {duration} --switch-cost {switch} \
         --call-cost {call} --ipi-latency {ipi} --idle-exit {idle_exit}",
        args.workload, config.cpus, config.policy, config.seed
    )
}

/// A line on the terminal that tells how far it is.
struct Progress {
    /// None is wanted, or nobody would see it.
    off: bool,
    until: Nanos,
    shown: Option<Instant>,
}

impl Progress {
    fn new(json: bool, until: Nanos) -> Self {
        Self { off: json || !std::io::stderr().is_terminal(), until, shown: None }
    }

    fn show(&mut self, start: Instant, now: Nanos, records: u64) {
        if self.off || self.shown.unwrap_or(start).elapsed() < PROGRESS {
            return;
        }
        self.shown = Some(Instant::now());
        let seconds = |time: Nanos| time.0 as f64 / 1e9;
        let rate = records as f64 / start.elapsed().as_secs_f64() / 1e6;
        // A terminal that went away is no reason to stop.
        let _ = write!(
            std::io::stderr(),
            "\r\x1b[K{:.2} s of {:.2} s, {records} events, {rate:.2} million a second",
            seconds(now),
            seconds(self.until),
        );
    }

    fn clear(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use vcpu_sched::ids::CpuId;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SimArgs,
    }

    fn args(flags: &str) -> SimArgs {
        Line::parse_from(["sim", "--workload", "builtin:mixed"].into_iter().chain(flags.split_whitespace())).args
    }

    #[test]
    fn the_tree_of_cpus_reaches_the_scheduler() {
        let (config, shape) =
            configure(&args("--topology sockets=2,dies=2,cores=3,threads=2"), &MachineTable::default()).unwrap();
        assert_eq!(
            (config.cpus, shape.map(|s| s.to_string()).as_deref()),
            (24, Some("sockets=2,dies=2,cores=3,threads=2"))
        );
        let mask = |list: &str| list.parse().unwrap();
        let (topology, cpu) = (config.topology, CpuId(15));
        assert_eq!(topology.siblings(cpu), Some(&mask("14-15")));
        assert_eq!(topology.shared_cache(cpu), Some(&mask("12-17")));
        assert_eq!(topology.node(cpu), Some(&mask("12-23")));
    }

    #[test]
    fn flags_go_before_the_workload_and_must_agree() {
        let file = MachineTable { cpus: Some(8), topology: Some("sockets=2".to_owned()), ..MachineTable::default() };
        let cpus = |flags: &str| configure(&args(flags), &file).map(|(config, _)| config.cpus);
        assert_eq!(cpus("").unwrap(), 8);
        assert_eq!(cpus("--cpus 4").unwrap(), 4);
        assert_eq!(cpus("--topology cores=3").unwrap(), 3);
        assert!(cpus("--cpus 5").unwrap_err().to_string().contains("can't be divided by 2"));
        let wrong = MachineTable { topology: Some("shelves=2".to_owned()), ..MachineTable::default() };
        let error = configure(&args(""), &wrong).unwrap_err().to_string();
        assert!(error.starts_with("[machine] topology: ") && error.contains("'shelves'"), "{error}");
    }

    #[test]
    fn the_command_that_repeats_a_run_is_whole() {
        let simulated = run(&args("--cpus 2 --duration 20ms --seed 5 --policy rr")).unwrap();
        assert!(simulated.outcome.is_some_and(|outcome| outcome.violations() == 0));
        let again = Line::try_parse_from(simulated.command.split_whitespace().skip(1)).unwrap().args;
        let second = run(&again).unwrap();
        assert_eq!(second.command, simulated.command);
        assert_eq!(format!("{:?}", second.figures), format!("{:?}", simulated.figures));
    }
}
