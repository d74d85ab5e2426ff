//! From the archive to the first user instruction, and the guest's end when the first program has ended.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use vcpu_sched::params::{Class, SchedParams};
use vcpu_sched::requests::message::Streams;

use super::errno::Errno;
use super::fs::attached::{self, Attached};
use super::process::exec::{self, Arguments};
use super::process::signal::SignalState;
use super::process::{Process, Thread, clone, exit, out_of_memory, table, thread};
use super::requests::refusal;
use super::start_list::{self, Entry, SyntaxError};
use super::{fs, stats, strace, syscall};
use crate::arch::fpu::Area;
use crate::arch::instr;
use crate::arch::trap_entry::TrapFrame;
use crate::crash::{Exit, debug_exit};
use crate::mm::address_space::AddressSpace;
use crate::mm::{PhysAddr, fault};
use crate::requests::Ticket;
use crate::sched;
use crate::task::{self, Spawn, SpawnUser, Task, current};
use crate::{console, error};

/// docs/abi.md, "Start list".
const START_LIST: &[u8] = b"/taskvisor.toml";
/// docs/abi.md, "Ports": boot milestones.
const MILESTONE_PORT: u16 = 0x80;
const FIRST_USER_INSTRUCTION: u8 = 2;
const LAST_PROGRAM_ENDED: u8 = 3;
/// As a shell gives them.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
const AT_FDCWD: i32 = -100;

fn milestone(n: u8) {
    // SAFETY: the port only notes the value.
    unsafe { instr::outb(MILESTONE_PORT, n) };
}

/// Reads the archive and starts the programs of its start list. Boot CPU's idle task, once.
pub fn start(archive: (PhysAddr, u64)) {
    fs::init(archive);
    fault::set_out_of_memory_handler(out_of_memory::make_room);
    stats::init();
    strace::init();
    syscall::observe();
    let list = match read_list() {
        Ok(l) => l,
        Err(SyntaxError(line, why)) => {
            error!("{}, line {line}: {why}", String::from_utf8_lossy(START_LIST));
            not_started(CANNOT_RUN);
        }
    };
    for entry in list {
        if let Err(e) = spawn(Start { entry, ticket: None }, fs::FsContext::new_initial(), None) {
            error!("no memory to start a program: {e:?}");
            not_started(CANNOT_RUN);
        }
    }
}

fn read_list() -> Result<Vec<Entry>, SyntaxError> {
    let Some(bytes) = fs::read_whole(START_LIST) else {
        return Ok(alloc::vec![Entry {
            path: "/init".into(),
            args: alloc::vec!["/init".into()],
            env: alloc::vec!["PATH=/bin:/usr/bin:/sbin:/usr/sbin".into(), "HOME=/".into()],
            cwd: None,
        }]);
    };
    let text = String::from_utf8(bytes).map_err(|_| SyntaxError(1, "not UTF-8".into()))?;
    start_list::parse(&text)
}

/// A program to be started, and who wants to know whether it could be.
struct Start {
    entry: Entry,
    /// None: the start list, whose programs must start.
    ticket: Option<Ticket>,
}

/// Starts a program because the VMM asks for it, and answers that.
pub fn spawn_for(entry: Entry, streams: Streams, ticket: Ticket) {
    let (files, attached) = match streams {
        Streams::Attached => match attached::make() {
            Ok((streams, ends)) => (fs::FsContext::new_attached(&streams), Some(ends)),
            Err(refusal) => return ticket.answer(Err(refusal)),
        },
        Streams::Console | Streams::Null => (fs::FsContext::new_spawned(streams), None),
    };
    // What fails for want of memory drops the ticket, which says so.
    if let Err(e) = spawn(Start { entry, ticket: Some(ticket) }, files, attached) {
        crate::warn!("a program that the VMM asked for can't be started: {}", reason(e));
    }
}

/// A process whose first thread executes the entry's program.
fn spawn(start: Start, files: fs::FsContext, attached: Option<Attached>) -> Result<(), Errno> {
    let id = task::table::allocate_id();
    let space = AddressSpace::new()?;
    let process = Arc::new(clone::new_process(id.0, files, SignalState::new()));
    drop(process.set_space(Some(space.clone())));
    let context = Arc::new(Thread::new(process.clone(), id.0, 0));
    let user = Some(SpawnUser { space, fpu: Area::new()?, fs_base: 0, context, process: id.0 });
    let asked_for = start.ticket.is_some();
    let argument = Box::into_raw(Box::new(start)) as usize;
    let task = Task::new(id, Spawn { name: "init", affinity: None, entry: first_steps, argument, user })?;
    if asked_for {
        // Until its program is loaded: the slot must come back, however busy the programs keep the CPUs.
        task.sched.request(&SchedParams::of_class(Class::Stop));
    } else {
        task.sched.request(&sched::delegated::initial_params());
    }
    process.signals.lock().threads.push(task.clone());
    table::insert(&process);
    if let Some(ends) = attached {
        attached::list(id.0, ends);
    }
    sched::start(task);
    Ok(())
}

extern "C" fn first_steps(argument: usize) -> ! {
    let mut frame = TrapFrame::default();
    // SAFETY: `spawn` made it by `Box::into_raw` for this task alone.
    let Start { entry, ticket } = *unsafe { Box::from_raw(argument as *mut Start) };
    let me = current();
    let Some(thread) = task::Task::user(&me).and_then(|u| u.as_any().downcast_ref::<Thread>()) else {
        panic!("the first task has no process")
    };
    if let Err((code, e)) = execute(thread, &entry, &mut frame) {
        match ticket {
            Some(ticket) => {
                // Nobody learns its number, if it was attached.
                let _ = attached::forget(thread.process.pid);
                ticket.answer(Err(refusal(e)));
                drop(entry);
                exit::exit_group(thread, u64::from(code));
            }
            None => {
                error!("{}: can't be started: {}", entry.path, reason(e));
                not_started(code);
            }
        }
    }
    drop(entry);
    if let Some(ticket) = ticket {
        // From here on it is like any other; an ordinary task has no budget that could be refused.
        let _ = sched::set_params(&me.to_arc(), &sched::delegated::initial_params());
        ticket.answer(Ok(u64::from(thread.process.pid)));
    }
    if thread.process.pid == 1 {
        milestone(FIRST_USER_INSTRUCTION);
    }
    thread::enter(&mut frame)
}

fn execute(thread: &Thread, entry: &Entry, frame: &mut TrapFrame) -> Result<(), (u8, Errno)> {
    let process: &Process = &thread.process;
    if let Some(dir) = &entry.cwd {
        process.fs.set_cwd(dir.as_bytes()).map_err(|e| (CANNOT_RUN, e))?;
    }
    let path = entry.path.as_bytes();
    let file = fs::lookup(process, AT_FDCWD, path, true).map_err(|e| (NOT_FOUND, e))?;
    let arguments =
        Arguments::from_strings(entry.args.iter().map(String::as_bytes), entry.env.iter().map(String::as_bytes));
    let prepared = exec::prepare(process, file, path.to_vec(), arguments).map_err(|e| (CANNOT_RUN, e))?;
    exec::commit(thread, prepared, frame).map_err(|e| (CANNOT_RUN, e))
}

fn reason(e: Errno) -> &'static str {
    match e {
        Errno::ENOENT | Errno::ENOTDIR => "no such file in the archive",
        Errno::EACCES => "not an executable file (its mode needs an x bit)",
        Errno::ENOEXEC => "not a program",
        Errno::ELIBBAD => "dynamically linked, and this kernel runs static programs",
        Errno::ENOMEM => "not enough memory",
        Errno::ELOOP => "too many interpreters or symbolic links",
        _ => e.name().unwrap_or("unknown error"),
    }
}

fn not_started(code: u8) -> ! {
    console::drain();
    debug_exit(Exit::NotStarted(code))
}

/// The first program has ended, and with it the guest.
pub fn first_program_ended(status: u32) -> ! {
    milestone(LAST_PROGRAM_ENDED);
    stats::print();
    console::drain();
    debug_exit(match status & 0x7f {
        0 => Exit::Code((status >> 8) as u8),
        signal => Exit::Signal(signal as u8),
    })
}
