//! Trace records: what this kernel tells about its scheduler, into one ring a CPU (`vcpu_sched::events`, docs/tracing.md).
//!
//! Anybody may call the functions here, from any context but NMI and machine check. Each is one test of a flag while tracing is
//! off. Invariants: a ring has one writer, its own CPU with interrupts off, so its time stamps rise; a record about a task's
//! place is written with the run queue locked that the task enters or leaves.

mod dump;
mod ring;

use core::sync::atomic::{AtomicBool, Ordering};

use vcpu_sched::events::{ChaosAction, Kind, MigrateReason, Record, Side, WaitReason, flag};
use vcpu_sched::ids::{CpuId, TaskId};

use crate::cpu::Cpu;
use crate::task::{current, table};

pub use dump::print_last;
pub use ring::{CpuTrace, clock, have, init};
pub use vcpu_sched::events::ClassTag;

/// Records are written. Set at boot, before other tasks run, or by [`start`]; relaxed, because [`ring::put`] looks at its CPU's own
/// ring, and because a record more or less at either end of a trace is nobody's loss.
static ON: AtomicBool = AtomicBool::new(false);

/// Whether records are kept: for callers whose arguments cost something.
#[inline(always)]
pub fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Writes records from now on, first the names of the tasks that there are. Those that come meanwhile name themselves.
pub fn start() {
    ON.store(true, Ordering::Relaxed);
    for task in table::snapshot() {
        name(task.id, &task.name());
        process(task.id, task.process());
    }
}

/// Writes no more. What a CPU is just writing still comes.
pub fn stop() {
    ON.store(false, Ordering::Relaxed);
}

/// Task, seq, kind and flags as they lie in memory.
#[inline(always)]
fn word(r: &Record) -> u64 {
    u64::from(r.task) | u64::from(r.seq) << 32 | u64::from(r.kind) << 48 | u64::from(r.flags) << 56
}

#[inline(always)]
fn write(r: Record) {
    ring::put(word(&r), r.a, r.b);
}

/// A record of three numbers, not about a task's place.
#[inline(always)]
fn plain(kind: Kind, task: TaskId, flags: u8, a: u64, b: u64) {
    if on() {
        write(Record { tsc: 0, task: task.0, seq: 0, kind: kind as u8, flags, a, b });
    }
}

/// `me`, this CPU, goes from `prev` to `next`, as of `tsc`. `flags`: the state of `prev` afterwards, and [`flag::PREEMPTED`]. Run queue
/// locked, nothing written since `tsc`; for callers that have asked whether tracing is [`on`].
#[inline(always)]
pub fn switch(me: &Cpu, prev: Side, next: Side, flags: u8, queued: u32, tsc: u64) {
    let r = Record::switch(tsc, prev, next, flags, queued);
    ring::put_at(me, tsc, word(&r), r.a, r.b);
}

/// `task` was put into the queue of `target` ([`Kind::New`] or [`Kind::Wake`]). That queue is locked.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn queued(
    kind: Kind,
    task: TaskId,
    seq: u16,
    flags: u8,
    waker: TaskId,
    target: CpuId,
    class: ClassTag,
    queued: u32,
) {
    if on() {
        write(Record::queued(kind, 0, task, seq, flags, waker, target, class, queued));
    }
}

/// A ready task went to another CPU's queue, which is locked.
#[inline(always)]
pub fn migrate(task: TaskId, seq: u16, from: CpuId, to: CpuId, why: MigrateReason, queued: u32, kicked: bool) {
    if on() {
        write(Record::migrate(0, task, seq, from, to, why, queued, kicked));
    }
}

/// A record about the running task.
#[inline(always)]
fn own(kind: Kind, flags: u8, a: u64, b: u64) {
    if on() {
        plain(kind, current().id, flags, a, b);
    }
}

/// The current task is going to wait. `which` tells the futex, deadline or the like.
#[inline(always)]
pub fn block(why: WaitReason, which: u64) {
    own(Kind::Block, 0, why as u64, which);
}

/// The current task has ended with a wait status.
#[inline(always)]
pub fn exit(status: u32) {
    own(Kind::Exit, 0, u64::from(status), 0);
}

/// A task's name: before it is queued for the first time, and when it changes.
#[inline(always)]
pub fn name(task: TaskId, name: &str) {
    if on() {
        let [a, b] = name_words(name);
        plain(Kind::Name, task, 0, a, b);
    }
}

/// The process of a task; 0: none, and then nothing is told.
#[inline(always)]
pub fn process(task: TaskId, process: u32) {
    if process != 0 {
        plain(Kind::Process, task, 0, u64::from(process), 0);
    }
}

/// A name as the record's two words: 16 bytes, zero-padded.
fn name_words(name: &str) -> [u64; 2] {
    let mut words = [0_u64; 2];
    for (i, byte) in name.bytes().take(16).enumerate() {
        words[i / 8] |= u64::from(byte) << (8 * (i % 8));
    }
    words
}

/// Timer interrupt.
#[inline(always)]
pub fn tick(slice_over: bool) {
    own(Kind::Tick, if slice_over { flag::SLICE_OVER } else { 0 }, 0, 0);
}

/// An interrupt is sent to another CPU.
#[inline(always)]
pub fn ipi_sent(to: CpuId, vector: u8) {
    own(Kind::Ipi, 0, u64::from(to.0) | u64::from(vector) << 32, 0);
}

/// An interrupt from another CPU has come.
#[inline(always)]
pub fn ipi_received(vector: u8) {
    own(Kind::Ipi, flag::RECEIVED, u64::from(vector), 0);
}

/// Page fault.
#[inline(always)]
pub fn fault(address: u64, rip: u64, error: u64) {
    own(Kind::Fault, error as u8, address, rip);
}

/// System call entered.
#[inline(always)]
pub fn syscall_enter(number: u64, first: u64) {
    own(Kind::SyscallEnter, 0, number, first);
}

/// System call left; `result` as the program sees it.
#[inline(always)]
pub fn syscall_exit(number: u64, result: u64) {
    own(Kind::SyscallExit, 0, number, result);
}

/// A task's new affinity mask, as bytes from CPU 0 on.
pub fn affinity(task: TaskId, mask: &[u8]) {
    if on() {
        let words = mask.len().div_ceil(8) as u64;
        for (i, chunk) in (0_u64..).zip(mask.chunks(8)) {
            let word = chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            plain(Kind::Affinity, task, 0, word, i | words << 32);
        }
    }
}

/// A task's class changed; `slice` is its slice or deadline runtime in nanoseconds.
#[inline(always)]
pub fn params(task: TaskId, class: ClassTag, nice: i8, slice: u64) {
    let a = u64::from(class.policy) | u64::from(class.prio) << 8 | u64::from(nice as u8) << 16;
    plain(Kind::Params, task, 0, a, slice);
}

/// The idle task halts the CPU (`resumed` false), or goes on.
#[inline(always)]
pub fn halt(resumed: bool, queued: u32) {
    own(Kind::Halt, u8::from(resumed), u64::from(queued), 0);
}

/// A chaos point did something.
#[inline(always)]
pub fn chaos(point: u32, action: ChaosAction, random: u64) {
    own(Kind::Chaos, 0, u64::from(point) | (action as u64) << 32, random);
}
