//! What the VMM may ask of this layer: signals, and programs that it starts. Called by `crate::requests`, which answers for the rest.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use vcpu_sched::requests::message::{Outcome, Refusal, Spawn, Streaming};

/// What a program, or whoever speaks for it, gave a task: what others lend it for a lock that it holds stays apart.
pub use super::process::futex::{own_params, set_params as give_params};

use super::errno::Errno;
use super::fs::attached;
use super::process::signal::{self, FIRST_REALTIME, SigInfo};
use super::process::thread_of;
use super::start as programs;
use super::start_list::Entry;
use crate::requests::Ticket;
use crate::task::Task;

/// Largest signal number.
const LAST_SIGNAL: u32 = 64;
const _: () = assert!(FIRST_REALTIME < LAST_SIGNAL);

/// Sends a signal, as from the kernel, to a thread or to its process.
pub fn send(task: &Arc<Task>, number: u32, thread_only: bool) -> Outcome {
    if !(1..=LAST_SIGNAL).contains(&number) {
        return Err(Refusal::Invalid);
    }
    let process = &thread_of(task).ok_or(Refusal::KernelTask)?.process;
    let info = SigInfo::kernel(number);
    let room = match thread_only {
        true => signal::send_info_to_thread(process, task, info),
        false => signal::send_info(process, info),
    };
    if room { Ok(0) } else { Err(Refusal::NoMemory) }
}

/// Tracing has begun or ended: system calls are looked at, or not.
pub use super::syscall::observe as observe_calls;

/// Starts a program. The ticket is answered when it is loaded, or can't be.
pub fn start(spawn: Spawn, ticket: Ticket) {
    match entry(&spawn) {
        Some(entry) => programs::spawn_for(entry, spawn.streams, ticket),
        None => ticket.answer(Err(Refusal::Malformed)),
    }
}

/// Does something with an attached program's streams, or with a file.
pub fn stream(process: u32, what: &Streaming, mut ticket: Ticket) {
    match attached::act(process, what, ticket.body()) {
        Ok((value, len)) => ticket.answer_with_body(value, len),
        Err(refusal) => ticket.answer(Err(refusal)),
    }
}

/// As the start list has it, which is UTF-8.
fn entry(spawn: &Spawn) -> Option<Entry> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let list = |list: &[Vec<u8>]| list.iter().map(|item| text(item)).collect::<Option<Vec<_>>>();
    Some(Entry {
        path: text(&spawn.path)?,
        args: list(&spawn.args)?,
        env: list(&spawn.env)?,
        cwd: if spawn.cwd.is_empty() { None } else { Some(text(&spawn.cwd)?) },
    })
}

/// Why a program can't be started.
pub fn refusal(error: Errno) -> Refusal {
    match error {
        Errno::ENOENT | Errno::ENOTDIR => Refusal::NotFound,
        Errno::ENOMEM | Errno::EAGAIN | Errno::E2BIG => Refusal::NoMemory,
        _ => Refusal::NotExecutable,
    }
}
