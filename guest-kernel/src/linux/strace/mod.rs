//! `--strace`: system calls in strace's own format, on the reports port.
//!
//! A line is written when its call is over; what the call was given is read before it, what it gave back after it. If another
//! line comes in between, the first half is written before that, `<unfinished ...>`, and the second later, `<... resumed>`. Calls
//! that don't return (exit) are written at once. Slow by nature, and out of the way when it is off. `table` says what the
//! arguments of each call are, `decode` prints one.

mod decode;
mod table;

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::errno::{Errno, SysResult};
use super::names;
use super::process::Thread;
use super::process::signal::{self, SigInfo};
use crate::boot::cmdline;
use crate::log::report;
use crate::sync::Mutex;

static ON: AtomicBool = AtomicBool::new(false);
/// The task whose line came first; `MANY` once there was another: lines name their task from then on.
static FIRST: AtomicU32 = AtomicU32::new(0);
const MANY: u32 = u32::MAX;

/// exit(2), exit_group(2).
const NR_EXIT: u64 = 60;
const NR_EXIT_GROUP: u64 = 231;

/// The line that was begun last and that no other has cut off. Held while lines are written, so that halves come in order.
static OPEN: Mutex<Option<Open>> = Mutex::new(None);

/// The first half of a line.
struct Open {
    tid: u32,
    text: String,
    cut: Arc<AtomicBool>,
}

/// A call whose line is begun.
pub struct Call {
    nr: u64,
    args: [u64; 6],
    tid: u32,
    text: String,
    /// Bytes of the first half.
    begun: usize,
    /// The first half has been written.
    cut: Arc<AtomicBool>,
    /// What of its signature is still to be printed.
    rest: &'static [u8],
}

/// Reads the command line.
pub fn init() {
    ON.store(cmdline::flag("strace"), Ordering::Relaxed);
}

/// Whether calls are traced.
#[inline]
pub fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Writes a line, and the first half of the one that it cuts off before it.
fn line(open: &mut Option<Open>, tid: u32, text: &str) {
    cut_off(open.take());
    write_line(tid, text);
}

fn cut_off(half: Option<Open>) {
    if let Some(half) = half {
        // Relaxed: read with `OPEN` locked.
        half.cut.store(true, Ordering::Relaxed);
        write_line(half.tid, &(half.text + " <unfinished ...>"));
    }
}

fn write_line(tid: u32, text: &str) {
    let first = match FIRST.compare_exchange(0, tid, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => tid,
        Err(f) => f,
    };
    if first == tid {
        report(format_args!("{text}"));
    } else {
        FIRST.store(MANY, Ordering::Relaxed);
        report(format_args!("[pid {tid:>5}] {text}"));
    }
}

/// A call begins.
pub fn enter(thread: &Thread, nr: u64, args: &[u64; 6]) -> Call {
    let mut text = String::new();
    let rest = match names::name(nr) {
        Some(name) => {
            let _ = write!(text, "{name}(");
            table::signature(nr)
        }
        None => {
            let _ = write!(text, "syscall_{nr:#x}(");
            table::UNKNOWN
        }
    };
    let cut = Arc::new(AtomicBool::new(false));
    let mut call = Call { nr, args: *args, tid: thread.tid(), text, begun: 0, cut, rest };
    // Up to the first argument that the call itself fills in.
    let inputs = rest.iter().position(|c| decode::is_output(*c)).unwrap_or(rest.len());
    call.print(inputs, None);
    let mut open = OPEN.lock();
    if matches!(nr, NR_EXIT | NR_EXIT_GROUP) {
        call.text.push_str(") = ?");
        line(&mut open, call.tid, &call.text);
        return call;
    }
    call.begun = call.text.len();
    let mut text = call.text.clone();
    if inputs > 0 && !call.rest.is_empty() {
        text.push_str(", ");
    }
    let half = Open { tid: call.tid, text, cut: call.cut.clone() };
    cut_off(open.replace(half));
    call
}

impl Call {
    /// Prints the next `n` arguments.
    fn print(&mut self, n: usize, result: Option<u64>) {
        let (now, rest) = self.rest.split_at(n);
        let done = table::signature_len(self.nr) - self.rest.len();
        for (i, code) in now.iter().enumerate() {
            if done + i > 0 {
                self.text.push_str(", ");
            }
            decode::argument(&mut self.text, *code, &self.args, done + i, result);
        }
        self.rest = rest;
    }
}

/// A call is over.
pub fn leave(mut call: Call, result: &SysResult) {
    let n = call.rest.len();
    call.print(n, result.ok());
    let t = &mut call.text;
    let _ = match result {
        Ok(v) if table::gives_address(call.nr) => write!(t, ") = {v:#x}"),
        Ok(v) => write!(t, ") = {}", *v as i64),
        Err(
            e @ (Errno::ERESTARTSYS | Errno::ERESTARTNOINTR | Errno::ERESTARTNOHAND | Errno::ERESTART_RESTARTBLOCK),
        ) => {
            write!(t, ") = ? {e:?} (interrupted by a signal)")
        }
        Err(e) => write!(t, ") = -1 {e:?}{}", decode::error_text(*e)),
    };
    let mut open = OPEN.lock();
    if call.cut.load(Ordering::Relaxed) {
        let rest = call.text.split_at_checked(call.begun).map_or("", |(_, rest)| rest);
        let rest = rest.strip_prefix(", ").unwrap_or(rest);
        let name = names::name(call.nr).unwrap_or("syscall");
        line(&mut open, call.tid, &alloc::format!("<... {name} resumed>{rest}"));
    } else {
        // Ours: whoever replaced it would have cut it.
        *open = None;
        write_line(call.tid, &call.text);
    }
}

/// A signal is taken.
pub fn signal(thread: &Thread, info: &SigInfo) {
    if on() {
        let mut text = String::new();
        let _ = decode::signal_info(&mut text, info);
        line(&mut OPEN.lock(), thread.tid(), &text);
    }
}

/// A process has ended.
pub fn exited(thread: &Thread, status: u32) {
    if on() {
        let mut text = String::new();
        let _ = match status & 0x7f {
            0 => write!(text, "+++ exited with {} +++", status >> 8),
            s => write!(text, "+++ killed by {} +++", signal::name(s)),
        };
        line(&mut OPEN.lock(), thread.tid(), &text);
    }
}
