//! What /proc/PID shows.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::Nanos;
use vcpu_sched::params::number;

use super::{Kind, Out};
use crate::linux::errno::Errno;
use crate::linux::fs::inode::Inode;
use crate::linux::fs::sys::HexMask;
use crate::linux::fs::{root, tty};
use crate::linux::process::{Process, Thread, signal, thread_of, times};
use crate::mm::layout::PAGE_SIZE;
use crate::mm::vma::{Backing, PageSource, Prot, Vma};
use crate::sched;
use crate::task::{Task, current};

/// Makes a text about a process and one of its threads.
pub type Maker = fn(&Process, u32, &mut Out);

/// Where a link leads that is more than its text.
#[derive(Clone, Copy)]
pub enum Target {
    /// The program.
    Exe,
    /// The working directory.
    Cwd,
    /// The root directory.
    Root,
}

/// Entries of a process's directory, or of one thread's.
pub fn entries(pid: u32, thread: Option<u32>) -> Vec<(&'static str, Kind)> {
    let texts: [(&'static str, Maker); 18] = [
        ("auxv", auxv),
        ("cgroup", |_, _, out| out.push_str("0::/\n")),
        ("cmdline", |p, _, out| out.bytes(&p.cmdline())),
        ("comm", |p, tid, out| line(out, format_args!("{}", name(p, tid)))),
        ("environ", |p, _, out| out.bytes(&p.environ())),
        ("limits", limits),
        ("maps", maps),
        ("mountinfo", |_, _, out| super::system::mount_info(out)),
        ("mounts", |_, _, out| super::system::mounts(out)),
        ("oom_score", |_, _, out| out.push_str("0\n")),
        ("oom_score_adj", |_, _, out| out.push_str("0\n")),
        ("sched", super::sched::sched),
        ("schedstat", super::sched::schedstat),
        ("stack", super::stack::stack),
        ("stat", stat),
        ("statm", statm),
        ("status", status),
        ("wchan", |_, _, out| out.push_str("0")),
    ];
    let tid = thread.unwrap_or(pid);
    let mut all: Vec<_> = texts.into_iter().map(|(n, make)| (n, Kind::Text(pid, tid, make))).collect();
    all.push(("cwd", Kind::Jump(pid, Target::Cwd)));
    all.push(("exe", Kind::Jump(pid, Target::Exe)));
    all.push(("root", Kind::Jump(pid, Target::Root)));
    all.push(("fd", Kind::Descriptors(pid)));
    if thread.is_none() {
        all.push(("task", Kind::Threads(pid)));
    }
    all
}

/// The text of a link.
pub fn target_path(p: &Process, target: Target) -> Result<Vec<u8>, Errno> {
    match target {
        Target::Exe => Some(p.exe_path()).filter(|e| !e.is_empty()).ok_or(Errno::ENOENT),
        Target::Cwd => Ok(p.fs.cwd().path()),
        Target::Root => Ok(b"/".to_vec()),
    }
}

/// What a link leads to.
pub fn target_inode(p: &Process, target: Target) -> Result<Arc<dyn Inode>, Errno> {
    match target {
        Target::Exe => p.image().file.clone().ok_or(Errno::ENOENT),
        Target::Cwd => Ok(p.fs.cwd()),
        Target::Root => Ok(root()),
    }
}

/// Linux's number of a task.
fn tid_of(task: &Task) -> u32 {
    thread_of(task).map_or(task.id.0, Thread::tid)
}

/// The caller's thread number.
pub fn own_tid() -> Option<u32> {
    thread_of(&current()).map(Thread::tid)
}

/// The numbers of a process's threads.
pub fn tids(p: &Process) -> Vec<u32> {
    let tasks = p.tasks();
    if tasks.is_empty() { alloc::vec![p.pid] } else { tasks.iter().map(|t| tid_of(t)).collect() }
}

/// The task of a process's thread.
pub fn task_of(p: &Process, tid: u32) -> Option<Arc<Task>> {
    p.tasks().into_iter().find(|t| tid_of(t) == tid)
}

/// The name of a process's thread.
pub fn name(p: &Process, tid: u32) -> arrayvec::ArrayString<16> {
    task_of(p, tid).map_or_else(|| p.name(), |t| t.name())
}

/// Appends a line.
pub fn line(out: &mut Out, args: fmt::Arguments<'_>) {
    // Writing to memory can't fail.
    let _ = out.write_fmt(args);
    out.push_str("\n");
}

fn auxv(p: &Process, _tid: u32, out: &mut Out) {
    p.image().auxv.iter().for_each(|word| out.bytes(&word.to_ne_bytes()));
}

fn limits(p: &Process, _tid: u32, out: &mut Out) {
    let files = p.limits.lock().files();
    line(out, format_args!("{:<26}{:<21}{:<21}{:<10}", "Limit", "Soft Limit", "Hard Limit", "Units"));
    line(out, format_args!("{:<26}{:<21}{:<21}{:<10}", "Max open files", files, files, "files"));
}

/// Total size and resident size in bytes.
fn sizes(p: &Process) -> (u64, u64) {
    let Some(space) = p.space() else { return (0, 0) };
    let total = space.lock().iter().map(|v| v.end - v.start).sum();
    (total, u64::from(space.resident.load(Ordering::Relaxed)) * PAGE_SIZE)
}

fn state_char(p: &Process, tid: u32) -> char {
    use vcpu_sched::task::state::State;
    if tid == p.pid {
        return p.state_char();
    }
    match task_of(p, tid).map(|t| t.state.load()) {
        Some(State::Running | State::Ready | State::New) => 'R',
        Some(_) => 'S',
        None => 'X',
    }
}

fn stat(p: &Process, tid: u32, out: &mut Out) {
    let (size, resident) = sizes(p);
    let (session, foreground) = tty::session();
    let (tty_nr, tpgid) = if session != 0 && session == p.sid() { (0x501, foreground as i32) } else { (0, -1) };
    let task = task_of(p, tid);
    let run_ns = if tid == p.pid { p.run_ns() } else { task.as_ref().map_or(0, |t| sched::ran(t).0) };
    let cpu = task.as_ref().map_or(0, |t| t.cpu.load(Ordering::Relaxed));
    let faults = task.as_ref().map_or(0, |t| t.stats.faults.load(Ordering::Relaxed));
    let sets = sets(p, tid);
    let image = p.image();
    let params = task.as_ref().map(|t| t.sched.params()).unwrap_or_default();
    let (attr, nice) = (params.to_attr(Nanos::ZERO), params.nice.get());
    // Linux: the kernel's priority less MAX_RT_PRIO, so that real-time tasks are below zero.
    let priority = match attr.policy {
        number::DEADLINE => -101,
        number::FIFO | number::RR => -1 - i64::from(attr.priority),
        _ => i64::from(params.tag().prio) - 100,
    };
    line(
        out,
        format_args!(
            "{tid} ({}) {} {} {} {} {tty_nr} {tpgid} 4194304 {faults} 0 0 0 {} 0 {} 0 {} {} {} 0 {} {size} {} 18446744073709551615 \
             0 0 {} 0 0 {} {} {} {} 0 0 0 17 {cpu} {} {} 0 0 0 0 0 0 0 0 0 0 0",
            name(p, tid),
            state_char(p, tid),
            p.ppid(),
            p.pgid(),
            p.sid(),
            times::clock_ticks(run_ns),
            times::clock_ticks(p.child_ns.load(Ordering::Relaxed)),
            priority,
            nice,
            p.thread_count(),
            p.started.0 / 10_000_000,
            resident / PAGE_SIZE,
            image.stack_top,
            sets.pending as u32,
            sets.blocked as u32,
            sets.ignored as u32,
            sets.caught as u32,
            attr.priority,
            attr.policy,
        ),
    );
}

fn statm(p: &Process, _tid: u32, out: &mut Out) {
    let (size, resident) = sizes(p);
    line(out, format_args!("{} {} 0 0 0 {} 0", size / PAGE_SIZE, resident / PAGE_SIZE, size / PAGE_SIZE));
}

struct Sets {
    pending: u64,
    shared: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

fn sets(p: &Process, tid: u32) -> Sets {
    let task = task_of(p, tid);
    let thread = task.as_ref().and_then(|t| thread_of(t));
    let s = p.signals.lock();
    Sets {
        pending: thread.map_or(0, |t| t.pending.lock().set),
        shared: s.shared.set,
        blocked: thread.map_or(0, Thread::blocked),
        ignored: s.ignored(),
        caught: (1..=signal::MAX_SIGNAL).filter(|n| s.action(*n).handler > 1).map(signal::bit).sum(),
    }
}

fn status(p: &Process, tid: u32, out: &mut Out) {
    let (size, resident) = sizes(p);
    let state = state_char(p, tid);
    let word = match state {
        'R' => "running",
        'T' => "stopped",
        'Z' => "zombie",
        _ => "sleeping",
    };
    let sets = sets(p, tid);
    let task = task_of(p, tid);
    let online = sched::online_mask();
    let allowed = task.as_ref().map_or(CpuMask::empty(), |t| t.affinity.lock().and(&online));
    let switches = |f: fn(&Task) -> u64| task.as_ref().map_or(0, |t| f(t));
    let mut field = |name: &str, value: fmt::Arguments<'_>| line(out, format_args!("{name}:\t{value}"));
    field("Name", format_args!("{}", name(p, tid)));
    field("Umask", format_args!("{:04o}", p.fs.umask()));
    field("State", format_args!("{state} ({word})"));
    field("Tgid", format_args!("{}", p.pid));
    field("Ngid", format_args!("0"));
    field("Pid", format_args!("{tid}"));
    field("PPid", format_args!("{}", p.ppid()));
    field("TracerPid", format_args!("0"));
    field("Uid", format_args!("0\t0\t0\t0"));
    field("Gid", format_args!("0\t0\t0\t0"));
    field("FDSize", format_args!("{}", p.fs.descriptors().last().map_or(0, |d| (d + 1).next_multiple_of(64))));
    field("Groups", format_args!(""));
    field("VmPeak", format_args!("{:>8} kB", size / 1024));
    field("VmSize", format_args!("{:>8} kB", size / 1024));
    field("VmHWM", format_args!("{:>8} kB", resident / 1024));
    field("VmRSS", format_args!("{:>8} kB", resident / 1024));
    field("Threads", format_args!("{}", p.thread_count()));
    field("SigQ", format_args!("0/4096"));
    field("SigPnd", format_args!("{:016x}", sets.pending));
    field("ShdPnd", format_args!("{:016x}", sets.shared));
    field("SigBlk", format_args!("{:016x}", sets.blocked));
    field("SigIgn", format_args!("{:016x}", sets.ignored));
    field("SigCgt", format_args!("{:016x}", sets.caught));
    field("CapEff", format_args!("000001ffffffffff"));
    field("NoNewPrivs", format_args!("0"));
    field("Seccomp", format_args!("0"));
    field("Cpus_allowed", format_args!("{}", HexMask(&allowed)));
    field("Cpus_allowed_list", format_args!("{allowed}"));
    field("voluntary_ctxt_switches", format_args!("{}", switches(|t| t.switches()[0])));
    field("nonvoluntary_ctxt_switches", format_args!("{}", switches(|t| t.switches()[1])));
}

/// Shows a page source by its own words.
struct Described<'a>(&'a dyn PageSource);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f)
    }
}

fn maps(p: &Process, _tid: u32, out: &mut Out) {
    let Some(space) = p.space() else { return };
    // A copy, so that no text is made under the space's lock.
    let all: Vec<Vma> = space.lock().iter().cloned().collect();
    for v in &all {
        let bit = |b, c| if v.prot.contains(b) { c } else { '-' };
        let shared = if matches!(v.backing, Backing::Shared(_)) { 's' } else { 'p' };
        let what = match (&v.backing, v.name) {
            (Backing::Anonymous, n) => n.into(),
            (Backing::Private(s) | Backing::Shared(s), _) => format!("{}", Described(&**s)),
        };
        let offset = if matches!(v.backing, Backing::Anonymous) { 0 } else { v.offset * PAGE_SIZE };
        let head = format!(
            "{:08x}-{:08x} {}{}{}{shared} {offset:08x} 00:01 0 ",
            v.start,
            v.end,
            bit(Prot::READ, 'r'),
            bit(Prot::WRITE, 'w'),
            bit(Prot::EXEC, 'x'),
        );
        if what.is_empty() { line(out, format_args!("{head}")) } else { line(out, format_args!("{head:<73}{what}")) }
    }
}
