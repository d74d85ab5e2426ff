//! What each request does. By the task that serves requests, with no lock held; everything is checked as in a system call.

use alloc::sync::Arc;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::TaskId;
use vcpu_sched::requests::change::ParamChange;
use vcpu_sched::requests::message::{Outcome, Refusal, Request};

use super::Ticket;
use crate::sched;
use crate::task::{Task, table};

/// Carries out a request, or has it carried out.
pub(super) fn carry_out(request: Request, ticket: Ticket) {
    let outcome = match request {
        Request::Ping => Ok(0),
        Request::SetParams { task, change } => program_task(task).and_then(|task| set_params(&task, &change)),
        Request::SetAffinity { task, cpus } => program_task(task).and_then(|task| set_affinity(&task, &cpus)),
        Request::Suspend { task, holder } => {
            program_task(task).and_then(|task| sched::hold(&task, holder).map(|()| 0).map_err(|_| Refusal::Ending))
        }
        Request::Resume { task, holder } => program_task(task).map(|task| {
            sched::let_go(&task, holder);
            0
        }),
        Request::Signal { task, signal, thread_only } => {
            program_task(task).and_then(|task| send(&task, signal, thread_only))
        }
        // Answered when the program is loaded.
        Request::Spawn(spawn) => return start(spawn, ticket),
    };
    ticket.answer(outcome);
}

#[cfg(feature = "linux")]
use crate::linux::requests::{send, start};

#[cfg(not(feature = "linux"))]
fn send(_: &Arc<Task>, _: u32, _: bool) -> Outcome {
    Err(Refusal::Unsupported)
}

#[cfg(not(feature = "linux"))]
fn start(_: vcpu_sched::requests::message::Spawn, ticket: Ticket) {
    ticket.answer(Err(Refusal::Unsupported));
}

/// A task that belongs to a program.
fn program_task(id: u32) -> Result<Arc<Task>, Refusal> {
    let task = table::find(TaskId(id)).ok_or(Refusal::NoSuchTask)?;
    if task.user().is_some() { Ok(task) } else { Err(Refusal::KernelTask) }
}

fn set_params(task: &Arc<Task>, change: &ParamChange) -> Outcome {
    let new = change.apply(&task.sched.params()).map_err(|_| Refusal::Invalid)?;
    sched::set_params(task, &new).map_err(|_| Refusal::Overcommitted)?;
    Ok(0)
}

fn set_affinity(task: &Arc<Task>, cpus: &CpuMask) -> Outcome {
    let usable = cpus.and(&sched::online_mask());
    if usable.is_empty() {
        return Err(Refusal::NoCpu);
    }
    sched::set_affinity(task, &usable).map_err(|_| Refusal::Overcommitted)?;
    Ok(0)
}
