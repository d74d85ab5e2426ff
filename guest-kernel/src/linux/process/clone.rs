//! fork, vfork, clone, clone3: new threads and new processes.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::TaskId;

use super::signal::{MAX_SIGNAL, SIGCHLD, SignalState};
use super::{Image, Process, Thread, table, thread};
use crate::arch::fpu::{self, Area};
use crate::arch::trap_entry::TrapFrame;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::FsContext;
use crate::mm::address_space::AddressSpace;
use crate::mm::layout::USER_END;
use crate::mm::user;
use crate::sched;
use crate::sync::{SpinLock, WaitQueue};
use crate::task::{self, Spawn, SpawnUser, Task, current};
use crate::time;

/// Linux include/uapi/linux/sched.h.
mod flags {
    pub const VM: u64 = 0x100;
    pub const FS: u64 = 0x200;
    pub const FILES: u64 = 0x400;
    pub const SIGHAND: u64 = 0x800;
    pub const VFORK: u64 = 0x4000;
    pub const PARENT: u64 = 0x8000;
    pub const THREAD: u64 = 0x1_0000;
    pub const SYSVSEM: u64 = 0x4_0000;
    pub const SETTLS: u64 = 0x8_0000;
    pub const PARENT_SETTID: u64 = 0x10_0000;
    pub const CHILD_CLEARTID: u64 = 0x20_0000;
    pub const DETACHED: u64 = 0x40_0000;
    pub const UNTRACED: u64 = 0x80_0000;
    pub const CHILD_SETTID: u64 = 0x100_0000;
    pub const IO: u64 = 0x8000_0000;
    pub const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    /// What this kernel can do; namespaces, pidfds and tracing are missing.
    pub const KNOWN: u64 = VM
        | FS
        | FILES
        | SIGHAND
        | VFORK
        | PARENT
        | THREAD
        | SYSVSEM
        | SETTLS
        | PARENT_SETTID
        | CHILD_CLEARTID
        | DETACHED
        | UNTRACED
        | CHILD_SETTID
        | IO
        | CLEAR_SIGHAND;
}

/// What a vfork parent waits for.
pub struct Vfork {
    done: AtomicBool,
    parent: WaitQueue,
}

impl Vfork {
    /// The child has its own memory, or has ended.
    pub fn finish(&self) {
        self.done.store(true, Ordering::Release);
        self.parent.wake_all();
    }
}

#[derive(Clone, Copy)]
struct Request {
    flags: u64,
    exit_signal: u64,
    /// Stack pointer of the child; 0: the parent's.
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
}

/// fork(2).
pub fn fork(me: &Thread, frame: &TrapFrame) -> SysResult {
    let r = Request { flags: 0, exit_signal: u64::from(SIGCHLD), stack: 0, parent_tid: 0, child_tid: 0, tls: 0 };
    spawn(me, frame, r)
}

/// vfork(2).
pub fn vfork(me: &Thread, frame: &TrapFrame) -> SysResult {
    let flags = flags::VM | flags::VFORK;
    let r = Request { flags, exit_signal: u64::from(SIGCHLD), stack: 0, parent_tid: 0, child_tid: 0, tls: 0 };
    spawn(me, frame, r)
}

/// clone(2).
pub fn clone(me: &Thread, frame: &TrapFrame, a: &[u64; 6]) -> SysResult {
    /// `CSIGNAL`.
    const SIGNAL_MASK: u64 = 0xff;
    let r = Request {
        flags: a[0] & !SIGNAL_MASK & 0xffff_ffff,
        exit_signal: a[0] & SIGNAL_MASK,
        stack: a[1],
        parent_tid: a[2],
        child_tid: a[3],
        tls: a[4],
    };
    spawn(me, frame, r)
}

/// clone3(2).
pub fn clone3(me: &Thread, frame: &TrapFrame, at: u64, size: u64) -> SysResult {
    /// `CLONE_ARGS_SIZE_VER0`.
    const SMALLEST: u64 = 64;
    if size < SMALLEST {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, and what must be zero.
    let a = user::read_array::<u64>(at, (size / 8) as usize)?;
    if a[8..].iter().any(|w| *w != 0) {
        return Err(if a.len() > 11 { Errno::E2BIG } else { Errno::EINVAL });
    }
    if (a[5] == 0) != (a[6] == 0) {
        return Err(Errno::EINVAL);
    }
    let stack = a[5].checked_add(a[6]).ok_or(Errno::EINVAL)?;
    let r = Request { flags: a[0], exit_signal: a[4], stack, parent_tid: a[3], child_tid: a[2], tls: a[7] };
    spawn(me, frame, r)
}

fn check(r: &Request) -> Result<(), Errno> {
    let has = |f| r.flags & f != 0;
    let thread = has(flags::THREAD);
    if r.flags & !flags::KNOWN != 0
        || r.exit_signal > u64::from(MAX_SIGNAL)
        || (thread && !has(flags::SIGHAND))
        || (has(flags::SIGHAND) && (!has(flags::VM) || has(flags::CLEAR_SIGHAND)))
        || (has(flags::SETTLS) && r.tls >= USER_END)
    {
        return Err(Errno::EINVAL);
    }
    // Files, directory and handlers belong to the process here: threads share all of them, processes none.
    let shared = flags::FILES | flags::SIGHAND | flags::FS;
    if (thread && r.flags & shared != shared) || (!thread && has(flags::FILES | flags::SIGHAND)) {
        crate::warn!("clone with flags {:#x}: sharing a part of a process is not supported", r.flags);
        return Err(Errno::EINVAL);
    }
    Ok(())
}

fn spawn(me: &Thread, frame: &TrapFrame, r: Request) -> SysResult {
    check(&r)?;
    let has = |f| r.flags & f != 0;
    let here = current();
    let params = here.sched.params().for_child().map_err(|_| Errno::EAGAIN)?;
    let id = unused_id();
    let old_space = here.space().ok_or(Errno::EFAULT)?;
    let space = if has(flags::VM) { old_space.clone() } else { old_space.fork()? };
    let process = if has(flags::THREAD) { me.process.clone() } else { child_process(me, id.0, space.clone(), &r) };
    let thread = Arc::new(Thread::new(process.clone(), id.0, me.blocked()));
    inherit(me, &thread, &r);
    let vfork = has(flags::VFORK)
        .then(|| Arc::new(Vfork { done: AtomicBool::new(false), parent: WaitQueue::of(WaitReason::Child) }));
    thread.vfork.lock().clone_from(&vfork);

    let mut child_frame = *frame;
    child_frame.rax = 0;
    if r.stack != 0 {
        child_frame.rsp = r.stack;
    }
    let fpu = Area::new()?;
    fpu::save_current_to(&fpu);
    let fs_base = if has(flags::SETTLS) { r.tls } else { here.fs_base() };
    if has(flags::PARENT_SETTID) {
        // As on Linux, a bad address is the program's own problem.
        let _ = user::write(r.parent_tid, &id.0);
    }
    let task = make_task(id, &here.name(), &thread, space, fpu, fs_base, child_frame)?;
    // It comes into force when the task is queued.
    task.sched.request(&params);
    admit(&process, &task, has(flags::THREAD));
    sched::start(task);
    if let Some(v) = vfork {
        // Killable only: the child runs on our stack.
        v.parent.wait_until(|| (v.done.load(Ordering::Acquire) || me.process.is_exiting()).then_some(()));
    }
    Ok(u64::from(id.0))
}

/// A number that no task and no process has, zombies included.
fn unused_id() -> TaskId {
    loop {
        let id = task::table::allocate_id();
        if table::find(id.0).is_none() {
            return id;
        }
    }
}

fn inherit(me: &Thread, child: &Thread, r: &Request) {
    let has = |f| r.flags & f != 0;
    if has(flags::CHILD_CLEARTID) {
        child.clear_child_tid.store(r.child_tid, Ordering::Relaxed);
    }
    if has(flags::CHILD_SETTID) {
        child.set_child_tid.store(r.child_tid, Ordering::Relaxed);
    }
    if !has(flags::VM) || has(flags::VFORK) {
        *child.alt_stack.lock() = *me.alt_stack.lock();
    }
}

/// A new process, listed nowhere yet.
fn child_process(me: &Thread, pid: u32, space: Arc<AddressSpace>, r: &Request) -> Arc<Process> {
    let parent = &me.process;
    let ppid = if r.flags & flags::PARENT != 0 { parent.ppid() } else { parent.pid };
    let mut signals = parent.signals.lock().fork();
    if r.flags & flags::CLEAR_SIGHAND != 0 {
        signals.reset_handlers();
    }
    let mut p = new_process(pid, parent.fs.fork(), signals);
    p.ppid = AtomicU32::new(ppid);
    p.pgid = AtomicU32::new(parent.pgid());
    p.sid = AtomicU32::new(parent.sid());
    p.exit_signal = AtomicU32::new(r.exit_signal as u32);
    p.space = SpinLock::new(Some(space));
    p.image = SpinLock::new(parent.image());
    p.limits = SpinLock::new(parent.limits.lock().clone());
    Arc::new(p)
}

/// A process without parent, memory and threads, the leader of its own session.
pub fn new_process(pid: u32, fs: FsContext, signals: SignalState) -> Process {
    Process {
        pid,
        fs,
        ppid: AtomicU32::new(0),
        pgid: AtomicU32::new(pid),
        sid: AtomicU32::new(pid),
        did_exec: AtomicBool::new(false),
        signals: SpinLock::new(signals),
        group_exit: AtomicU64::new(0),
        exec_by: AtomicU32::new(0),
        zombie: AtomicBool::new(false),
        wait_status: AtomicU32::new(0),
        child_events: WaitQueue::of(WaitReason::Child),
        thread_gone: WaitQueue::new(),
        resumed: WaitQueue::new(),
        signal_files: WaitQueue::new(),
        space: SpinLock::new(None),
        image: SpinLock::new(Arc::new(Image::default())),
        exit_signal: AtomicU32::new(SIGCHLD),
        dead_ns: AtomicU64::new(0),
        child_ns: AtomicU64::new(0),
        dead_faults: AtomicU64::new(0),
        dead_switches: [AtomicU64::new(0), AtomicU64::new(0)],
        started: time::now(),
        limits: SpinLock::new(super::resource::Limits::new()),
        timers: SpinLock::new(super::timers::Timers::new()),
    }
}

/// A task for a thread, which will go to ring 3 with `frame`.
pub fn make_task(
    id: TaskId,
    name: &str,
    thread: &Arc<Thread>,
    space: Arc<AddressSpace>,
    fpu: Area,
    fs_base: u64,
    frame: TrapFrame,
) -> Result<Arc<Task>, Errno> {
    let argument = Box::into_raw(Box::new(frame)) as usize;
    let affinity = current().user().map(|_| current().affinity.lock().clone());
    let user = Some(SpawnUser { space, fpu, fs_base, context: thread.clone(), process: thread.process.pid });
    Task::new(id, Spawn { name, affinity, entry: thread::run, argument, user }).map_err(|e| {
        // SAFETY: made above; nobody runs with it.
        drop(unsafe { Box::from_raw(argument as *mut TrapFrame) });
        e.into()
    })
}

/// Makes the task a thread of its process, and the process a part of the tree. A task that was made is always started, since
/// only a task that runs lets go of its address space: in a group that is about to end it ends at once.
fn admit(process: &Arc<Process>, task: &Arc<Task>, is_thread: bool) {
    {
        let mut s = process.signals.lock();
        if process.is_exiting() || process.exec_by.load(Ordering::Relaxed) != 0 || s.stopped {
            task.work.fetch_or(task::work::USER, Ordering::Relaxed);
        }
        s.threads.push(task.clone());
    }
    if !is_thread {
        table::insert(process);
    }
}
