//! `monitor`: what only this machine can tell or do, as lines of text.
//!
//! Called by [`super::session`] with the guest standing still. Everything printed from the guest holds no control characters
//! ([`crate::guestview`] sees to that).

use std::fmt::Write;

use super::session::{Session, pc_of};

const HELP: &str = "\
help                   this text
tasks                  the guest's tasks: state, CPU, times, what they wait for
cpus                   the guest's CPUs and what they run
translate ADDRESS      where a virtual address of the selected thread leads
physical on|off        whether memory is read and written by guest-physical address
stop-on-fault on|off   whether a program's fault stops before the program is told
";

/// Runs one line; what it prints.
pub fn run(session: &mut Session, selected: u32, line: &str) -> String {
    let mut words = line.split_ascii_whitespace();
    let (command, argument) = (words.next().unwrap_or("help"), words.next());
    match (command, argument) {
        ("help", _) => HELP.to_owned(),
        ("tasks", _) => tasks(session),
        ("cpus", _) => cpus(session),
        ("translate", Some(address)) => translate(session, selected, address),
        ("physical", Some(choice)) => switch(choice, &mut session.physical),
        ("stop-on-fault", Some(choice)) => switch(choice, &mut session.target.running.stop_on_fault),
        _ => format!("unknown: {line:?}; try: monitor help\n"),
    }
}

fn switch(choice: &str, value: &mut bool) -> String {
    match choice {
        "on" => *value = true,
        "off" => *value = false,
        other => return format!("on or off, not {other:?}\n"),
    }
    String::new()
}

fn tasks(session: &mut Session) -> String {
    let snapshot = match session.target.show() {
        Ok(snapshot) => snapshot,
        Err(error) => return format!("{error}\n"),
    };
    let mut out = format!("{:>10}  {:16} {:8} {:10} {:>3} {:>12}\n", "task", "name", "process", "state", "cpu", "run");
    for task in &snapshot.tasks {
        let process = task.process.map_or_else(|| task.kind.clone(), |process| process.to_string());
        let (state, cpu, run) = (task.state.name(), task.cpu, task.run_ns as f64 / 1e9);
        // Writing to a String can't fail, here and below.
        let _ = write!(out, "{:>10}  {:16} {process:8} {state:10} {cpu:>3} {run:>11.6}s", task.id, task.name);
        let _ = writeln!(out, "{}", task.waits_for.as_ref().map_or_else(String::new, |why| format!("  waits: {why}")));
    }
    if snapshot.torn || snapshot.left_out > 0 {
        let _ = writeln!(out, "the list was being changed: {} tasks are left out", snapshot.left_out);
    }
    out
}

fn cpus(session: &mut Session) -> String {
    let snapshot = match session.target.show() {
        Ok(snapshot) => snapshot.clone(),
        Err(error) => return format!("{error}\n"),
    };
    let mut out = String::new();
    for cpu in &snapshot.cpus {
        let current = snapshot.current(cpu.index);
        let name = current.map_or_else(|| "not known".to_owned(), |task| format!("{} \"{}\"", task.id, task.name));
        let pc = current.map(|task| task.id).and_then(|id| pc_of(session, id));
        let pc = pc.map_or_else(String::new, |pc| format!(" at {pc:#x}"));
        let _ = writeln!(out, "CPU {}: task {name}{pc}, {} ready or running", cpu.index, cpu.nr_running);
    }
    out
}

fn translate(session: &mut Session, selected: u32, address: &str) -> String {
    let Ok(address) = u64::from_str_radix(address.trim_start_matches("0x"), 16) else {
        return format!("{address:?} is no address\n");
    };
    match session.target.space(selected).map(|space| space.translate(address)) {
        Ok(Some(place)) => {
            let rights = if place.writable { "writable" } else { "not writable" };
            format!("{address:#x} is guest-physical {:#x}, {rights}\n", place.physical)
        }
        Ok(None) => format!("{address:#x} is not mapped for thread {selected}\n"),
        Err(error) => format!("{error}\n"),
    }
}
