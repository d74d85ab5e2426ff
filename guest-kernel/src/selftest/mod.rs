//! In-guest tests: run by a kernel built with the feature `selftest` instead of the start list.
//!
//! One alone: `test=SUBSTRING` on the command line. Tests named `crash_...` end in a kernel panic on purpose, and those named `soak_...`
//! take long; they run only when named in full. Whoever starts the former checks the report. The debug exit carries the number of
//! failures.

mod company;
mod crash;
mod memory;
mod policies;
mod races;
mod rcu;
mod runtime;
mod scheduling;
mod shootdown;
mod timing;

use alloc::string::String;
use alloc::sync::Arc;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::{CpuId, Nanos};

use crate::boot::cmdline;
use crate::cpu;
use crate::crash::{Exit, debug_exit};
use crate::log;
use crate::sched;
use crate::task::{Spawn, Task, table};
use crate::time;

/// What a test gives: nothing, or what went wrong.
pub type TestResult = Result<(), String>;

/// A test.
pub struct Test {
    name: &'static str,
    run: fn() -> TestResult,
}

/// Builds a [`Test`] from a function.
macro_rules! tests {
    ($($f:ident),* $(,)?) => { &[$($crate::selftest::Test { name: stringify!($f), run: $f }),*] };
}
use tests;

/// Ends a test if a condition doesn't hold.
macro_rules! check {
    ($c:expr) => { if !$c { return Err(alloc::format!("{} (line {})", stringify!($c), line!())) } };
    ($c:expr, $($a:tt)*) => { if !$c { return Err(alloc::format!("{} (line {}): {}", stringify!($c), line!(), alloc::format!($($a)*))) } };
}
use check;

const GROUPS: [&[Test]; 12] = [
    memory::TESTS,
    scheduling::TESTS,
    races::TESTS,
    company::TESTS,
    policies::TESTS,
    shootdown::TESTS,
    timing::TESTS,
    runtime::TASKS,
    runtime::STACKS,
    runtime::FIGURES,
    rcu::TESTS,
    crash::TESTS,
];

/// How long a test may go on for more of the same, once it has seen a tenth of it.
const PATIENCE: Nanos = Nanos::from_millis(2_000);

/// Rounds of a test that only gets better by more of them: up to `most`, fewer where the kernel is interpreted.
pub fn rounds(most: u32) -> impl Iterator<Item = u32> {
    let end = time::now() + PATIENCE;
    (0..most).take_while(move |&round| round < most / 10 || time::now() < end)
}

/// Starts a task on certain CPUs.
pub fn spawn(
    name: &str,
    affinity: Option<CpuMask>,
    entry: extern "C" fn(usize) -> !,
    argument: usize,
) -> Result<Arc<Task>, String> {
    let task = Task::new(table::allocate_kernel_id(), Spawn { name, affinity, entry, argument, user: None })
        .map_err(|_| String::from("no memory for a task"))?;
    sched::start(task.clone());
    Ok(task)
}

/// As [`spawn`], on one CPU.
pub fn spawn_on(id: u32, name: &str, entry: extern "C" fn(usize) -> !, argument: usize) -> Result<Arc<Task>, String> {
    spawn(name, Some(CpuMask::one_shot(CpuId(id % cpu::count()))), entry, argument)
}

/// Waits for a task's end.
pub fn join(task: &Arc<Task>) {
    task.exited.wait_until(|| {
        (task.state.load() == vcpu_sched::task::state::State::Dead || table::find(task.id).is_none()).then_some(())
    });
}

/// Runs the tests as a task.
pub fn start() {
    if let Err(e) = spawn("selftest", None, run_all, 0) {
        panic!("{e}");
    }
}

extern "C" fn run_all(_: usize) -> ! {
    let wanted = cmdline::get("test").unwrap_or("");
    let (mut passed, mut failed) = (0u32, 0u32);
    for t in GROUPS.iter().flat_map(|g| g.iter()) {
        let alone = t.name.starts_with("crash_") || t.name.starts_with("soak_");
        let selected = if alone { t.name == wanted } else { t.name.contains(wanted) };
        if !selected {
            continue;
        }
        match (t.run)() {
            Ok(()) => {
                passed += 1;
                log::report(format_args!("test {} ... ok", t.name));
            }
            Err(e) => {
                failed += 1;
                log::report(format_args!("test {} ... FAILED: {e}", t.name));
            }
        }
    }
    log::report(format_args!("{passed} passed, {failed} failed"));
    if passed + failed == 0 {
        log::report(format_args!("no test matches test={wanted}"));
        failed = 1;
    }
    debug_exit(Exit::Tests(failed.min(255) as u8))
}
