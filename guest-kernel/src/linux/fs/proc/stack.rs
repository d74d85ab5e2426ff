//! /proc/PID/stack: where a thread waits in the kernel, and where its program called; and /proc/futures, the tasks without a stack.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::Out;
use super::process::{line, task_of};
use crate::linux::process::Process;
use crate::runtime;
use crate::symbols;
use crate::task::backtrace;

/// Tasks without a stack that are shown.
const MOST: usize = 1000;

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

/// /proc/futures: state, CPU that polled it last, and where it was spawned, which is its name.
pub fn futures(out: &mut Out) {
    let mut tasks = Vec::new();
    if tasks.try_reserve(MOST).is_err() {
        return;
    }
    let mut more = 0;
    // No memory is asked for, and nothing printed, with a list locked.
    runtime::for_each(|task| if tasks.len() < MOST { tasks.push(task) } else { more += 1 });
    for task in tasks {
        line(out, format_args!("{:?} {} {}", task.state, task.cpu, task.location));
    }
    if more > 0 {
        line(out, format_args!("{more} more"));
    }
}
