//! fork, vfork, clone, clone3: new threads and new processes; unshare.
//!
//! Processes may share memory, descriptors, working directory and signal actions with their parents. Threads of one process
//! share all of these: a thread with a part of its own is refused.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::TaskId;

use super::signal::{MAX_SIGNAL, SIGCHLD, SignalState};
use super::{Image, Process, Thread, futex, table, thread, timers};
use crate::arch::debug_port;
use crate::arch::fpu::{self, Area};
use crate::arch::trap_entry::TrapFrame;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::{FileFlags as Flags, FsContext, Share, pidfd};
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
    pub const PIDFD: u64 = 0x1000;
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
    /// CLONE_NEWTIME, CLONE_NEWNS, CLONE_NEWCGROUP to CLONE_NEWNET.
    pub const NAMESPACES: u64 = 0x7e02_0080;
    /// CLONE_NEWTIME lies in the byte of clone's signal.
    pub const SIGNAL_MASK: u64 = 0xff;
    /// What this kernel can do; namespaces and tracing are missing.
    pub const KNOWN: u64 = VM
        | FS
        | FILES
        | SIGHAND
        | PIDFD
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
    /// Where the descriptor of CLONE_PIDFD goes.
    pidfd: u64,
    tls: u64,
}

impl Request {
    fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// As fork(2) wants it.
    fn of(flags: u64) -> Self {
        let exit_signal = u64::from(SIGCHLD);
        Self { flags, exit_signal, stack: 0, parent_tid: 0, child_tid: 0, pidfd: 0, tls: 0 }
    }
}

/// fork(2).
pub fn fork(me: &Thread, frame: &TrapFrame) -> SysResult {
    spawn(me, frame, Request::of(0))
}

/// vfork(2).
pub fn vfork(me: &Thread, frame: &TrapFrame) -> SysResult {
    spawn(me, frame, Request::of(flags::VM | flags::VFORK))
}

/// clone(2).
pub fn clone(me: &Thread, frame: &TrapFrame, a: &[u64; 6]) -> SysResult {
    let r = Request {
        flags: a[0] & !flags::SIGNAL_MASK & 0xffff_ffff,
        exit_signal: a[0] & flags::SIGNAL_MASK,
        stack: a[1],
        parent_tid: a[2],
        child_tid: a[3],
        pidfd: a[2],
        tls: a[4],
    };
    // One address for both.
    if r.has(flags::PIDFD) && r.has(flags::PARENT_SETTID) {
        return Err(Errno::EINVAL);
    }
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
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid and its size, cgroup, and what must
    // be zero.
    let a = user::read_array::<u64>(at, (size / 8) as usize)?;
    if a.iter().skip(11).any(|w| *w != 0) {
        return Err(Errno::E2BIG);
    }
    // Nobody can choose a number here.
    if a.iter().skip(8).take(2).any(|w| *w != 0) || (a[5] == 0) != (a[6] == 0) {
        return Err(Errno::EINVAL);
    }
    let stack = a[5].checked_add(a[6]).filter(|end| *end <= USER_END).ok_or(Errno::EINVAL)?;
    let r =
        Request { flags: a[0], exit_signal: a[4], stack, parent_tid: a[3], child_tid: a[2], pidfd: a[1], tls: a[7] };
    let without_signal = r.has(flags::THREAD | flags::PARENT) && r.exit_signal != 0;
    if without_signal || r.has(flags::DETACHED | flags::SIGNAL_MASK & !flags::NAMESPACES) {
        return Err(Errno::EINVAL);
    }
    spawn(me, frame, r)
}

/// The rules of Linux's `copy_process`, and those of this kernel.
fn check(r: &Request) -> Result<(), Errno> {
    if r.has(flags::NAMESPACES) {
        return Err(Errno::EPERM);
    }
    let thread = r.has(flags::THREAD);
    if r.flags & !flags::KNOWN != 0
        || r.exit_signal > u64::from(MAX_SIGNAL)
        || (thread && !r.has(flags::SIGHAND))
        || (r.has(flags::SIGHAND) && (!r.has(flags::VM) || r.has(flags::CLEAR_SIGHAND)))
        || (r.has(flags::PIDFD) && (thread || r.has(flags::DETACHED)))
        || (r.has(flags::SETTLS) && r.tls >= USER_END)
    {
        return Err(Errno::EINVAL);
    }
    let shared = flags::FILES | flags::FS;
    if thread && r.flags & shared != shared {
        crate::warn!("clone with flags {:#x}: a thread with descriptors of its own is not supported", r.flags);
        return Err(Errno::EINVAL);
    }
    Ok(())
}

fn spawn(me: &Thread, frame: &TrapFrame, r: Request) -> SysResult {
    check(&r)?;
    let has = |f| r.has(f);
    let here = current();
    let params = futex::own_params(&here).for_child().map_err(|_| Errno::EAGAIN)?;
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
    child_frame.rflags = debug_port::child_flags(frame.rflags, process.pid);
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
    let pidfd = if has(flags::PIDFD) { Some(give_pidfd(me, &process, r.pidfd)?) } else { None };
    let task = make_task(id, &here.name(), &thread, space, fpu, fs_base, child_frame).inspect_err(|_| {
        if let Some(fd) = pidfd {
            // The program may have closed it meanwhile.
            let _ = me.process.fs.close(fd);
        }
    })?;
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

/// Gives the caller a descriptor of its child, and tells it which.
fn give_pidfd(me: &Thread, child: &Arc<Process>, at: u64) -> Result<i32, Errno> {
    let fd = pidfd::install(&me.process, child, Flags::empty())? as i32;
    user::write(at, &fd).inspect_err(|_| {
        // As above.
        let _ = me.process.fs.close(fd);
    })?;
    Ok(fd)
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
    let has = |f| r.has(f);
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
    let as_sibling = r.has(flags::PARENT);
    let ppid = if as_sibling { parent.ppid() } else { parent.pid };
    let exit_signal = if as_sibling { parent.exit_signal.load(Ordering::Relaxed) } else { r.exit_signal as u32 };
    let mut signals = parent.signals.lock().fork(r.has(flags::SIGHAND));
    if r.has(flags::CLEAR_SIGHAND) {
        signals.reset_handlers();
    }
    let share = Share { files: r.has(flags::FILES), place: r.has(flags::FS) };
    let mut p = new_process(pid, parent.fs.fork(share), signals);
    p.ppid = AtomicU32::new(ppid);
    p.pgid = AtomicU32::new(parent.pgid());
    p.sid = AtomicU32::new(parent.sid());
    p.exit_signal = AtomicU32::new(exit_signal);
    p.space = SpinLock::new(Some(space));
    p.image = SpinLock::new(parent.image());
    let limits = parent.limits.lock().clone();
    let cpu_limit = limits.first_cpu_second();
    p.limits = SpinLock::new(limits);
    let p = Arc::new(p);
    timers::watch_cpu_limit(&p, cpu_limit);
    p
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

/// unshare(2). Namespaces are nobody's to have.
pub fn unshare(me: &Thread, wanted: u64) -> SysResult {
    let has = |f| wanted & f != 0;
    let known = flags::VM | flags::FS | flags::FILES | flags::SIGHAND | flags::THREAD | flags::SYSVSEM;
    if wanted & !(known | flags::NAMESPACES) != 0 {
        return Err(Errno::EINVAL);
    }
    if has(flags::NAMESPACES) {
        return Err(Errno::EPERM);
    }
    let alone = me.process.thread_count() == 1;
    let shares_memory = current().space().is_some_and(|s| s.threads.load(Ordering::Relaxed) > 1);
    // What can't be divided must be the caller's own already. Descriptors could be on Linux, but threads share them here.
    if (!alone && wanted != 0) || (shares_memory && has(flags::VM)) {
        return Err(Errno::EINVAL);
    }
    if has(flags::SIGHAND | flags::VM) && me.process.signals.lock().shares_actions() {
        return Err(Errno::EINVAL);
    }
    me.process.fs.unshare(Share { files: has(flags::FILES), place: has(flags::FS) });
    Ok(0)
}
