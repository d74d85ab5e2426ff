//! /proc/PID/stack: where a thread waits in the kernel, and where its program called; and /proc/futures, the tasks without a stack.

use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::Ordering;

use vcpu_sched::runtime::Waits;
use vcpu_sched::runtime::state::State;

use super::Out;
use super::process::{line, task_of};
use crate::linux::process::Process;
use crate::runtime;
use crate::symbols;
use crate::task::backtrace;

/// Tasks without a stack that are shown.
const MOST: usize = 1000;
/// Tasks of a chain that are shown: one whose tasks have ended meanwhile may seem to have no end.
const DEEPEST: usize = 8;

/// /proc/PID/stack, in Linux's form; a last line that Linux hasn't tells where the program was.
pub fn stack(p: &Process, tid: u32, out: &mut Out) {
    let Some(task) = task_of(p, tid) else { return };
    if task.on_cpu.load(Ordering::Acquire) {
        return line(out, format_args!("[<0>] on CPU {}", task.cpu.load(Ordering::Relaxed)));
    }
    backtrace::of(&task, |address| match symbols::lookup(address) {
        Some((name, offset)) => {
            line(out, format_args!("[<0>] {:#}+{offset:#x}", rustc_demangle::demangle(name)));
        }
        None => line(out, format_args!("[<0>] {address:#x}")),
    });
    if let Some((rip, rsp)) = backtrace::entered_from(&task) {
        line(out, format_args!("[<0>] program, rip {rip:#x} rsp {rsp:#x}"));
    }
}

/// /proc/futures: state, CPU that polled it last, and where it was spawned, which is its name; then what it waits for, along the chain of those
/// that wait for one another.
pub fn futures(out: &mut Out) {
    let mut tasks = Vec::new();
    if tasks.try_reserve(MOST).is_err() {
        return;
    }
    let mut more = 0;
    // No memory is asked for, and nothing printed, with a list locked.
    runtime::for_each(|task| if tasks.len() < MOST { tasks.push(task) } else { more += 1 });
    for task in &tasks {
        // Writing to memory can't fail.
        _ = write!(out, "{:?} {} {}", task.state, task.cpu, task.location);
        let mut at = Some(task);
        for _ in 0..DEEPEST {
            let Some(waiting) = at.filter(|task| task.state == State::BLOCKED) else { break };
            at = tasks.iter().find(|other| waiting.waits == Waits::Task && other.id == waiting.waits_for);
            _ = match (waiting.waits, at) {
                (Waits::Unknown, _) => Ok(()),
                (Waits::Task, Some(other)) => write!(out, ", task {}", other.location),
                (Waits::Time, _) => write!(out, ", time {}", waiting.waits_for),
                (what, _) => write!(out, ", {what:?} {:#x}", waiting.waits_for),
            };
        }
        out.push_str("\n");
    }
    if more > 0 {
        line(out, format_args!("{more} more"));
    }
}
