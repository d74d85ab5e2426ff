//! `make bench`: counts and times, each beside its budget or its counterpart, as a table and as JSON.
//!
//! Instruction counts come from QEMU's `-icount`, which repeats exactly and knows nothing of the machine's load; times and
//! exits come from KVM on this machine. A part that can't be measured is a row that says why, never a missing row.

mod control;
mod counts;
mod divan;
mod exits;
mod launch;
mod origin;
mod programs;
mod runtime;
mod scheduler;
mod speed;
mod symbols;
mod table;
mod wakes;

use std::path::PathBuf;
use std::process::ExitCode;

use table::Table;

fn main() -> ExitCode {
    let mut json = None;
    let mut only = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = args.next().map(PathBuf::from),
            "--only" => only = args.next(),
            _ => {
                eprintln!(
                    "usage: taskvisor-bench [--json FILE] [--only counts|wakes|scheduler|runtime|launch|speed|exits|control|programs]"
                );
                return ExitCode::from(2);
            }
        }
    }
    let mut table = Table::default();
    let parts = [
        ("counts", counts::measure as fn(&mut Table)),
        ("wakes", wakes::measure),
        ("scheduler", scheduler::measure),
        ("runtime", runtime::measure),
        ("launch", launch::measure),
        ("speed", speed::measure),
        ("exits", exits::measure),
        ("control", control::measure),
        ("programs", programs::measure),
    ];
    for (name, measure) in parts {
        if only.as_deref().is_none_or(|wanted| wanted == name) {
            eprintln!("measuring: {name}");
            measure(&mut table);
        }
    }
    print!("{}", table.render());
    if let Some(path) = json {
        if let Err(e) = std::fs::write(&path, table.json()) {
            eprintln!("{}: {e}", path.display());
            return ExitCode::FAILURE;
        }
        println!("written to {}", path.display());
    }
    ExitCode::SUCCESS
}

/// Of an odd number of values the middle one.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
