//! `monitor`: what only this machine can tell or do, as lines of text.
//!
//! Called by [`super::session`] with the guest standing still. Everything printed from the guest holds no control characters
//! ([`crate::guestview`] sees to that).

use std::fmt::Write;

use kvm_bindings::{Msrs, kvm_msr_entry};

use super::maps;
use super::session::{KERNEL_FILE, Session, pc_of};
use super::threads::so_long;
use crate::guestview::TaskState;

const HELP: &str = "\
help                   this text
tasks                  the guest's tasks: state, CPU, times, what they wait for
cpus                   the guest's CPUs and what they run
runqueues              the tasks that are on each CPU or wait for it
where                  for each thread its program counter, and that of its program if it is in the kernel
symbols                lines that load the symbols of the guest's kernel and program
translate ADDRESS      where a virtual address of the selected thread leads
maps                   what is mapped in the selected thread's address space
tsc                    the time-stamp counter of each vCPU
suspend TASK           the task executes nothing of its program until it is resumed; as all below, when the guest goes on
resume TASK            and executes again
affinity TASK CPUS     the task runs on these CPUs only
policy TASK NAME [PRIORITY]
                       the task is scheduled as other, batch, idle, fifo or rr
requests               what became of the four above
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
        ("runqueues", _) => runqueues(session),
        ("where", _) => places(session),
        ("symbols", _) => symbols(session),
        ("maps" | "vmas", _) => match session.target.root(selected) {
            Ok(root) => maps::render(&session.target.machine.ram, root),
            Err(error) => format!("{error}\n"),
        },
        ("tsc", _) => tsc(session),
        ("suspend" | "resume" | "affinity" | "policy", _) => match session.target.machine.clerk.ask(line.trim()) {
            Ok(()) => String::new(),
            Err(why) => format!("{why}\n"),
        },
        ("requests", _) => session.target.machine.clerk.render(),
        ("translate", Some(address)) => {
            let thread = session.program_thread();
            translate(session, thread, address)
        }
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
        let why = task.waits_for.as_ref().map_or_else(String::new, |why| format!("  waits: {why}"));
        // Of a ready task the state says what it waits for.
        let _ = writeln!(out, "{why}{}", so_long(task));
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

fn runqueues(session: &mut Session) -> String {
    let snapshot = match session.target.show() {
        Ok(snapshot) => snapshot,
        Err(error) => return format!("{error}\n"),
    };
    let mut out = String::new();
    for cpu in &snapshot.cpus {
        let current = cpu.current.map_or_else(|| "not known".to_owned(), |id| id.to_string());
        let _ = writeln!(out, "CPU {}: runs {current}, {} ready or running", cpu.index, cpu.nr_running);
        let ready = snapshot.tasks.iter().filter(|task| {
            task.cpu == cpu.index
                && task.state == TaskState::Ready
                && task.kind != "idle"
                && Some(task.id) != cpu.current
        });
        for task in ready {
            let (policy, nice) = (task.policy.as_deref().unwrap_or("?"), task.nice.unwrap_or(0));
            let _ = writeln!(out, "{:>10}  {:16} {policy:8} nice {nice:>3}", task.id, task.name);
        }
    }
    out
}

/// For clients that would otherwise have to unwind each thread's stack through the kernel.
fn places(session: &mut Session) -> String {
    let _ = session.target.show();
    let ids: Vec<u32> = session.target.threads.iter().map(|thread| thread.id).collect();
    let mut out = String::new();
    for id in ids {
        let Some(pc) = pc_of(session, id) else { continue };
        let _ = write!(out, "{id} {pc:#x}");
        if let Some(below) = session.target.program_pc(id).filter(|below| *below != pc) {
            let _ = write!(out, " {below:#x}");
        }
        out.push('\n');
    }
    out
}

/// A program's symbols are in its file on the host; it lies where the file says.
fn symbols(session: &Session) -> String {
    let path = session.target.machine.program.as_ref();
    let program = path.map_or_else(String::new, |path| format!("add-symbol-file {:?}\n", path.display().to_string()));
    format!("add-symbol-file target:{KERNEL_FILE}\n{program}")
}

fn tsc(session: &Session) -> String {
    /// Intel SDM vol. 4: IA32_TIME_STAMP_COUNTER.
    const TSC: u32 = 0x10;
    let mut out = String::new();
    for vcpu in 0..session.target.machine.control.vcpus() {
        let read = session.target.with_vcpu(vcpu, |fd| {
            let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: TSC, ..Default::default() }]).ok()?;
            let count = fd.get_msrs(&mut msrs).ok()?;
            msrs.as_slice().first().filter(|_| count == 1).map(|msr| msr.data)
        });
        let _ = match read {
            Ok(Some(ticks)) => writeln!(out, "vCPU {vcpu}: {ticks}"),
            Ok(None) => writeln!(out, "vCPU {vcpu}: KVM doesn't tell"),
            Err(error) => writeln!(out, "vCPU {vcpu}: {error}"),
        };
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
