//! What each request does. By the task that serves requests, with no lock held; everything is checked as in a system call.

use alloc::sync::Arc;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::directory::RingHeader;
use vcpu_sched::ids::TaskId;
#[cfg(not(feature = "linux"))]
use vcpu_sched::params::SchedParams;
use vcpu_sched::requests::change::ParamChange;
use vcpu_sched::requests::message::{Outcome, Refusal, Request, Tracing};

use super::Ticket;
use crate::mm::frame::OutOfMemory;
use crate::task::{Task, table};
use crate::{cpu, sched, trace};

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
        Request::TraceRings { first, records } => return trace_rings(first, records, ticket),
        Request::Trace(what) => {
            set_tracing(what);
            Ok(0)
        }
        // Answered when the program is loaded.
        Request::Spawn(spawn) => return start(spawn, ticket),
        Request::Streaming { process, what } => return stream(process, &what, ticket),
    };
    ticket.answer(outcome);
}

#[cfg(feature = "linux")]
use crate::linux::requests::{give_params, observe_calls, own_params, send, start, stream};

#[cfg(not(feature = "linux"))]
fn observe_calls() {}

#[cfg(not(feature = "linux"))]
fn own_params(task: &Task) -> SchedParams {
    task.sched.params()
}

#[cfg(not(feature = "linux"))]
use crate::sched::set_params as give_params;

#[cfg(not(feature = "linux"))]
fn send(_: &Arc<Task>, _: u32, _: bool) -> Outcome {
    Err(Refusal::Unsupported)
}

#[cfg(not(feature = "linux"))]
fn start(_: vcpu_sched::requests::message::Spawn, ticket: Ticket) {
    ticket.answer(Err(Refusal::Unsupported));
}

#[cfg(not(feature = "linux"))]
fn stream(_: u32, _: &vcpu_sched::requests::message::Streaming, ticket: Ticket) {
    ticket.answer(Err(Refusal::Unsupported));
}

fn trace_rings(first: u32, records: u32, mut ticket: Ticket) {
    if !records.is_power_of_two() || !RingHeader::CAPACITIES.contains(&records) {
        return ticket.answer(Err(Refusal::Invalid));
    }
    let (addresses, _) = ticket.body().as_chunks_mut::<8>();
    let mut count = 0;
    for (cpu, address) in cpu::all().skip(first as usize).zip(addresses) {
        match trace::have(cpu, records) {
            Ok(ring) => *address = ring.0.to_le_bytes(),
            Err(OutOfMemory) => return ticket.answer(Err(Refusal::NoMemory)),
        }
        count += 1;
    }
    match count {
        0 => ticket.answer(Err(Refusal::NoCpu)),
        _ => ticket.answer_with_body(count, count as usize * 8),
    }
}

fn set_tracing(what: Tracing) {
    match what {
        Tracing::Start => trace::start(),
        Tracing::Stop => trace::stop(),
        Tracing::Clock => trace::clock(),
    }
    observe_calls();
}

/// A task that belongs to a program.
fn program_task(id: u32) -> Result<Arc<Task>, Refusal> {
    let task = table::find(TaskId(id)).ok_or(Refusal::NoSuchTask)?;
    if task.user().is_some() { Ok(task) } else { Err(Refusal::KernelTask) }
}

fn set_params(task: &Arc<Task>, change: &ParamChange) -> Outcome {
    let new = change.apply(&own_params(task)).map_err(|_| Refusal::Invalid)?;
    give_params(task, &new).map_err(|_| Refusal::Overcommitted)?;
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
