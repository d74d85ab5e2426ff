//! Processes and threads: what the Linux layer hangs on the kernel's tasks.
//!
//! A [`Thread`] is the `UserContext` of one task; a [`Process`] is shared by the threads of one thread group. `table` holds the
//! process tree, `exec`, `clone` and `exit` make and end them, `signal` interrupts them; the other modules are system calls.
//!
//! Lock order inside this folder (left to right): process table -> `Process::signals` -> `Thread::pending` -> wait queues.
//! All of these are spin locks: nothing under them touches user memory or sleeps.

pub mod clone;
pub mod cpu_clock;
pub mod crash_report;
pub mod exec;
pub mod exit;
pub mod fault;
pub mod futex;
pub mod identity;
pub mod memory;
pub mod out_of_memory;
pub mod resource;
pub mod scheduling;
pub mod shared_memory;
pub mod signal;
pub mod table;
pub mod thread;
pub mod timers;
pub mod times;
pub mod wait;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayString;
use vcpu_sched::ids::Nanos;
use vcpu_sched::task::state::State;

use self::signal::SignalState;
pub use self::table::{find, for_each};
pub use self::thread::Thread;
use crate::linux::fs::FsContext;
use crate::mm::address_space::AddressSpace;
use crate::sync::{SpinLock, WaitQueue};
use crate::task::{self, Task};

/// What exec put into a process; replaced as a whole by the next exec.
#[derive(Default)]
pub struct Image {
    /// Absolute path of the program.
    pub path: Vec<u8>,
    /// Arguments, each ended by a zero byte.
    pub cmdline: Vec<u8>,
    /// Environment, each ended by a zero byte.
    pub environ: Vec<u8>,
    /// Auxiliary vector as the program sees it.
    pub auxv: Vec<u64>,
    /// The program's file, for its symbols.
    pub file: Option<Arc<dyn crate::linux::fs::Inode>>,
    /// What was added to the file's addresses (position-independent programs).
    pub bias: u64,
    /// Highest address of the stack.
    pub stack_top: u64,
}

/// A thread group.
pub struct Process {
    /// Thread group id.
    pub pid: u32,
    /// Open files, working directory, umask (owned by `fs`).
    pub fs: FsContext,
    /// Changed with the process table locked.
    ppid: AtomicU32,
    pgid: AtomicU32,
    sid: AtomicU32,
    /// Has called exec since its fork (setpgid cares).
    pub did_exec: AtomicBool,
    /// Signal actions, shared pending signals, the living threads, stop and exit of the group.
    pub signals: SpinLock<SignalState>,
    /// `EXITING | status` once the whole group ends; written with `signals` locked.
    group_exit: AtomicU64,
    /// The thread that runs exec and waits for the others to end; 0: none.
    pub exec_by: AtomicU32,
    /// All threads have ended; `wait_status` is final.
    pub zombie: AtomicBool,
    /// As wait4 gives it.
    pub wait_status: AtomicU32,
    /// Woken when a child changes state.
    pub child_events: WaitQueue,
    /// Woken when a thread ends, and when the last one has made it a zombie.
    pub thread_gone: WaitQueue,
    /// Woken when a stopped group continues.
    pub resumed: WaitQueue,
    /// Woken when a signal becomes pending (signalfd).
    pub signal_files: WaitQueue,
    /// User half; none once the process is a zombie.
    space: SpinLock<Option<Arc<AddressSpace>>>,
    image: SpinLock<Arc<Image>>,
    /// Signal for the parent at the end (clone's low byte).
    pub exit_signal: AtomicU32,
    /// Run time of threads that have ended, in nanoseconds.
    pub dead_ns: AtomicU64,
    /// Of children that were waited for.
    pub child_ns: AtomicU64,
    /// Page faults of ended threads.
    pub dead_faults: AtomicU64,
    /// Switches of ended threads: voluntary, involuntary.
    pub dead_switches: [AtomicU64; 2],
    /// Monotonic time of its start.
    pub started: Nanos,
    /// Resource limits.
    pub limits: SpinLock<resource::Limits>,
    /// Interval timers and POSIX timers.
    pub timers: SpinLock<timers::Timers>,
}

/// `Process::group_exit` is set.
const EXITING: u64 = 1 << 32;

impl Process {
    /// Parent's number; 0: none.
    pub fn ppid(&self) -> u32 {
        self.ppid.load(Ordering::Relaxed)
    }

    /// Process group.
    pub fn pgid(&self) -> u32 {
        self.pgid.load(Ordering::Relaxed)
    }

    /// Session.
    pub fn sid(&self) -> u32 {
        self.sid.load(Ordering::Relaxed)
    }

    /// Name of its first living thread.
    pub fn name(&self) -> ArrayString<16> {
        self.first_task().map_or_else(ArrayString::new, |t| t.name())
    }

    /// As /proc/PID/stat shows it.
    pub fn state_char(&self) -> char {
        if self.zombie.load(Ordering::Acquire) {
            return 'Z';
        }
        if self.signals.lock().stopped {
            return 'T';
        }
        match self.first_task().map(|t| t.state.load()) {
            Some(State::Running | State::Ready | State::New) => 'R',
            Some(_) => 'S',
            None => 'Z',
        }
    }

    /// Living threads.
    pub fn thread_count(&self) -> usize {
        self.signals.lock().threads.len()
    }

    /// The living threads' tasks.
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        self.signals.lock().threads.clone()
    }

    fn first_task(&self) -> Option<Arc<Task>> {
        self.signals.lock().threads.first().cloned()
    }

    /// User half; none once all threads have ended.
    pub fn space(&self) -> Option<Arc<AddressSpace>> {
        self.space.lock().clone()
    }

    /// Puts another user half in place; the caller drops the old one.
    pub fn set_space(&self, space: Option<Arc<AddressSpace>>) -> Option<Arc<AddressSpace>> {
        core::mem::replace(&mut *self.space.lock(), space)
    }

    /// What the last exec left.
    pub fn image(&self) -> Arc<Image> {
        self.image.lock().clone()
    }

    fn set_image(&self, image: Arc<Image>) {
        let old = core::mem::replace(&mut *self.image.lock(), image);
        drop(old); // after the lock
    }

    /// Absolute path of the program.
    pub fn exe_path(&self) -> Vec<u8> {
        self.image().path.clone()
    }

    /// Arguments, each ended by a zero byte.
    pub fn cmdline(&self) -> Vec<u8> {
        self.image().cmdline.clone()
    }

    /// Environment, each ended by a zero byte.
    pub fn environ(&self) -> Vec<u8> {
        self.image().environ.clone()
    }

    /// Nanoseconds that its threads have run. Callable from interrupt context.
    pub fn run_ns(&self) -> u64 {
        let s = self.signals.lock();
        let living: u64 = s.threads.iter().map(|t| crate::sched::ran(t).0).sum();
        // Under the lock: a thread that ends goes from one to the other.
        living + self.dead_ns.load(Ordering::Relaxed)
    }

    /// Whether the whole group ends.
    #[inline(always)]
    pub fn is_exiting(&self) -> bool {
        self.group_exit.load(Ordering::Acquire) & EXITING != 0
    }
}

/// The Linux state of a task; none for kernel tasks.
pub fn thread_of(task: &Task) -> Option<&Thread> {
    task.user()?.as_any().downcast_ref()
}

/// The running task's process.
///
/// # Panics
/// On a kernel task, which has none: nothing that a program does leads there.
pub fn current() -> Arc<Process> {
    match thread_of(&task::current()) {
        Some(t) => t.process.clone(),
        None => panic!("a kernel task has no process"),
    }
}
