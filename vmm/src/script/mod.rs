//! `taskvisor script FILE.rhai`: experiments with guests, written down.
//!
//! A script starts guests ([`guest`]), waits for what they do, changes them while they run, and collects what it found in tables
//! ([`table`]) and plots ([`plot`]). Guests are processes of this very program, driven through their control sockets, so a script
//! can do what a user can, and no more. Invariants: a script ends, by a bounded number of operations and a time limit for every
//! wait; it writes only into the directory that it was given; no guest outlives it; an error says where in the script it is.

mod capture;
mod guest;
mod place;
mod plot;
mod table;
mod values;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rhai::{Array, Dynamic, Engine, EvalAltResult, ImmutableString, Position, Scope};

use self::guest::Guests;

/// Operations of a script, some hundred to a line that does something.
const MAX_OPERATIONS: u64 = 20_000_000;
/// Time of its own on a CPU: an operation on a long list is a long one. Waiting isn't counted.
const MAX_COMPUTING: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });
/// Operations between two looks at that time.
const LOOK_EVERY: u64 = 64;
/// Nested calls.
const MAX_CALLS: usize = 64;
/// Bytes of a string: a program's output may be one.
const MAX_STRING: usize = 16 << 20;
/// Elements of an array or map.
const MAX_ELEMENTS: usize = 1 << 17;
/// Deepest expression.
const MAX_DEPTH: usize = 64;

/// Why a script ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The directory for what it writes.
    #[error("{path}: {source}", path = path.display())]
    Out {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// In the script.
    #[error("{path}:{line}:{column}: {what}", path = path.display())]
    Failed {
        /// The script.
        path: PathBuf,
        /// Line, from 1; 0: none in particular.
        line: usize,
        /// Column, from 1; 0: none in particular.
        column: usize,
        /// What is wrong.
        what: String,
    },
}

/// What a script's own functions give.
type Answer<T> = Result<T, Box<EvalAltResult>>;

/// An error of a script's own function; rhai adds where it was called.
fn failed(what: impl ToString) -> Box<EvalAltResult> {
    Box::new(EvalAltResult::ErrorRuntime(what.to_string().into(), Position::NONE))
}

/// What a script is run with.
#[derive(Debug, Clone)]
pub struct Script {
    /// The script.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it may write.
    pub out: PathBuf,
}

/// Runs a script to its end.
pub fn run(script: &Script) -> Result<(), ScriptError> {
    let path = &script.path;
    let text = std::fs::read_to_string(path).map_err(|source| ScriptError::Read { path: path.clone(), source })?;
    let out = |source| ScriptError::Out { path: script.out.clone(), source };
    std::fs::create_dir_all(&script.out).map_err(out)?;
    let guests = Guests::new().map_err(out)?;
    let engine = engine(&guests, &script.out);
    let mut scope = Scope::new();
    let args: Array = script.args.iter().map(|arg| Dynamic::from(arg.clone())).collect();
    scope.push_constant("ARGS", args);
    engine.run_with_scope(&mut scope, &text).map_err(|error| explain(path, &error))
}

/// Reads a script's text without running it: what is no script is told as [`run`] would.
pub fn check(text: &str) -> Result<(), ScriptError> {
    language().compile(text).map(drop).map_err(|error| explain(Path::new("script"), &error.into()))
}

/// The innermost error with the outermost place that is in the script.
fn explain(path: &Path, error: &EvalAltResult) -> ScriptError {
    let position = error.position();
    let what = match error.unwrap_inner() {
        EvalAltResult::ErrorRuntime(what, _) => what.to_string(),
        EvalAltResult::ErrorTerminated(..) => format!("more than {MAX_COMPUTING:?} of computing: does it end?"),
        EvalAltResult::ErrorTooManyOperations(_) => format!("more than {MAX_OPERATIONS} operations: does it end?"),
        other => {
            // Without rhai's own words for the place, which is given in front.
            let text = other.to_string();
            text.split(" (line ").next().unwrap_or(&text).to_owned()
        }
    };
    ScriptError::Failed {
        path: path.to_owned(),
        line: position.line().unwrap_or(0),
        column: position.position().unwrap_or(0),
        what,
    }
}

/// The language and its bounds.
fn language() -> Engine {
    let mut engine = Engine::new();
    engine
        .set_max_operations(MAX_OPERATIONS)
        .set_max_call_levels(MAX_CALLS)
        .set_max_string_size(MAX_STRING)
        .set_max_array_size(MAX_ELEMENTS)
        .set_max_map_size(MAX_ELEMENTS)
        .set_max_expr_depths(MAX_DEPTH, MAX_DEPTH);
    engine
}

/// The same with everything that a script may call.
fn engine(guests: &Rc<Guests>, out: &Path) -> Engine {
    let mut engine = language();
    let end = computed() + MAX_COMPUTING;
    engine.on_progress(move |done| (done % LOOK_EVERY == 0 && computed() > end).then_some(Dynamic::UNIT));
    engine.on_print(|text| {
        use std::io::Write;
        // A closed pipe behind it is no error.
        let _ = writeln!(std::io::stdout(), "{text}");
    });
    engine.register_fn("fail", |what: ImmutableString| -> Answer<()> { Err(failed(what)) });
    engine.register_fn("host_cpus", || {
        i64::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1)
    });
    engine.register_fn("sleep", |time: ImmutableString| -> Answer<()> {
        std::thread::sleep(duration(&time)?);
        Ok(())
    });
    guest::register(&mut engine, guests);
    table::register(&mut engine, out);
    engine
}

/// What this thread has had of a CPU.
fn computed() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    Duration::from_secs(part(now.tv_sec)) + Duration::from_nanos(part(now.tv_nsec))
}

/// A time as flags take it, an hour at most.
fn duration(text: &str) -> Answer<Duration> {
    /// Longer is a mistake.
    const MOST: Duration = Duration::from_secs(3600);
    let time = crate::config::units::parse_duration(text).map_err(failed)?;
    if time > MOST { Err(failed(format!("{text} is more than an hour"))) } else { Ok(time) }
}

#[cfg(test)]
mod tests;
