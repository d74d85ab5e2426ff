//! Tasks: what is scheduled. A user task belongs to some ABI layer, which hangs its own state on it ([`UserContext`]).
//!
//! Ownership: a `Task` lives in an `Arc`. The scheduler holds one reference while a task is queued or runs, a wait queue holds one
//! while it waits, the task table holds one until it ends. Invariants:
//! - [`Task::state`] says what may happen to the task, [`Task::on_cpu`] whether some CPU still stands on its stack.
//! - Only the task itself, while it runs, changes its address space and its user registers.

pub mod backtrace;
pub mod current;
pub mod listing;
mod name;
pub mod observers;
pub mod table;
mod view;

use alloc::sync::Arc;
use core::any::Any;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayString;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::entity::{Entity, SchedEntity};
use vcpu_sched::events::{ClassTag, WaitReason};
use vcpu_sched::ids::{CpuId, TaskId};
use vcpu_sched::task::state::{AtomicState, State};
use vcpu_sched::task::suspension::Suspension;
use vcpu_sched::taskview::TaskKind;

pub use current::{Current, current};

use self::name::TaskName;

use crate::arch::fpu;
use crate::arch::switch;
use crate::arch::trap_entry::TrapFrame;
use crate::cpu;
use crate::cpu::set::AtomicCpuSet;
use crate::mm::address_space::AddressSpace;
use crate::mm::frame::OutOfMemory;
use crate::mm::layout::task_slot;
use crate::mm::task_block::TaskBlock;
use crate::sync::{SpinLock, WaitQueue};
use crate::trace;

/// What an ABI layer does for its tasks. Called on the task itself.
pub trait UserContext: Send + Sync {
    /// A system call: numbers and arguments in the frame, the result goes there too.
    fn syscall(&self, frame: &mut TrapFrame);
    /// The same while somebody looks at calls ([`observers`]): the layer's own lookers see it.
    fn observed_syscall(&self, frame: &mut TrapFrame);
    /// An exception in ring 3 that the kernel itself doesn't resolve.
    fn exception(&self, frame: &mut TrapFrame, fault: UserFault);
    /// [`Task::work`] is set: something to do before the task sees ring 3 again.
    fn before_user(&self, frame: &mut TrapFrame);
    /// For the layer to find its own type again.
    fn as_any(&self) -> &dyn Any;
}

/// What went wrong in ring 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserFault {
    /// Page fault that has no page: address and reason.
    Page(u64, crate::mm::address_space::FaultError, crate::mm::address_space::Access),
    /// Any other exception, by vector.
    Exception(u64),
}

/// What [`Task::work`] can ask for.
pub mod work {
    /// The ABI layer has something (signals, exit of the group).
    pub const USER: u32 = 1;
    /// The task may have to wait for its resumption (`Task::suspension`).
    pub const HELD: u32 = 1 << 1;
}

/// Counters of one task that are not its run queue's (`SchedEntity::accounting`).
#[derive(Default)]
pub struct TaskStats {
    /// Times it came to another CPU.
    pub migrations: AtomicU64,
    /// Page faults resolved.
    pub faults: AtomicU64,
}

/// [`Task::ran_on`] of a task that never ran.
const NOWHERE: u32 = u32::MAX;

/// A task.
pub struct Task {
    /// Number, unique among living tasks. Linux's tid.
    pub id: TaskId,
    /// Life cycle.
    pub state: AtomicState,
    /// A CPU stands on this task's stack. Set before the switch to it, cleared by assembly once it is left.
    pub on_cpu: AtomicBool,
    /// The CPU whose queue it is in, that it runs on, or that it left last. Written with that CPU's run queue locked.
    pub cpu: AtomicU32,
    /// CPU whose registers hold the only copy of the FPU state, or `fpu::NOT_LIVE`.
    pub fpu_live: AtomicU32,
    /// The CPU that it ran on last, whose slot is in its page table; or [`NOWHERE`]. Written by the CPU that is about to run it.
    pub ran_on: AtomicU32,
    /// Where the task may run. Guards the mask only.
    pub affinity: SpinLock<CpuMask>,
    /// Where it may run in fact, for lock-free looks: `affinity`, or the home of a deadline task.
    pub may_run: AtomicCpuSet,
    /// Bits of [`work`].
    pub work: AtomicU32,
    /// Who holds it off its program.
    pub suspension: Suspension,
    /// FPU save area; kernel tasks have none.
    pub fpu: Option<fpu::Area>,
    /// Its seat in the enclave, or `sched::delegated::NO_SEAT`. Written with the enclave locked.
    pub seat: AtomicU32,
    /// Parameters, figures of its scheduling class, accounting.
    pub sched: SchedEntity,
    /// Counters.
    pub stats: TaskStats,
    /// Somebody has something for it: see `runtime::park`.
    pub token: AtomicBool,
    /// Woken when the task has ended.
    pub exited: WaitQueue,
    /// For whom it works.
    kind: TaskKind,
    /// Number of its process; 0: none.
    process: u32,
    /// What its last wait is or was for: a [`WaitReason`]. Written by the task itself, read by the VMM.
    wait_reason: AtomicU8,
    name: TaskName,
    saved_rsp: UnsafeCell<u64>,
    space: UnsafeCell<Option<Arc<AddressSpace>>>,
    fs_base: AtomicU64,
    user: Option<Arc<dyn UserContext>>,
    /// Page tables and kernel stack.
    pub block: TaskBlock,
}

// SAFETY: `saved_rsp` is written by the CPU that leaves the task and read by the one that continues it, ordered by `on_cpu`
// or the run queue's lock; `space` is used by the task itself while it runs (and by its creator before it starts).
unsafe impl Sync for Task {}
// SAFETY: as above; nothing in it belongs to one CPU.
unsafe impl Send for Task {}

/// A counted handle, as run queues hold it.
#[derive(Clone)]
pub struct TaskRef(pub Arc<Task>);

impl core::ops::Deref for TaskRef {
    type Target = Task;
    fn deref(&self) -> &Task {
        &self.0
    }
}

impl Entity for TaskRef {
    fn id(&self) -> TaskId {
        self.0.id
    }

    fn sched(&self) -> &SchedEntity {
        &self.0.sched
    }
}

/// How a task starts.
pub struct Spawn<'a> {
    /// Name for reports, cut to 16 bytes.
    pub name: &'a str,
    /// Where it may run; `None`: everywhere.
    pub affinity: Option<CpuMask>,
    /// Function and argument.
    pub entry: extern "C" fn(usize) -> !,
    /// See `entry`.
    pub argument: usize,
    /// For a user task: its address space, FPU area, FS base and ABI state.
    pub user: Option<SpawnUser>,
}

/// The user side of a new task.
pub struct SpawnUser {
    /// User half.
    pub space: Arc<AddressSpace>,
    /// FPU state to start with.
    pub fpu: fpu::Area,
    /// Thread pointer.
    pub fs_base: u64,
    /// ABI state.
    pub context: Arc<dyn UserContext>,
    /// Number of its process.
    pub process: u32,
}

impl Task {
    /// Makes a task that doesn't run yet; [`crate::sched::start`] starts it. `id` comes from [`table::allocate_id`].
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(id: TaskId, spawn: Spawn<'_>) -> Result<Arc<Task>, OutOfMemory> {
        let block = TaskBlock::new()?;
        // SAFETY: nobody runs on this stack yet.
        let rsp = unsafe {
            switch::initial_stack(block.stack_top_direct(), task_slot::STACK_TOP, spawn.entry, spawn.argument)
        };
        Ok(Self::assemble(id, spawn.name, spawn.affinity, block, rsp, spawn.user, State::New))
    }

    /// The task that a CPU is already running when it comes up: its idle task.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new_idle(id: TaskId, name: &str, cpu: CpuId) -> Result<Arc<Task>, OutOfMemory> {
        let t = Self::assemble(id, name, Some(CpuMask::one_shot(cpu)), TaskBlock::new()?, 0, None, State::Running);
        t.cpu.store(cpu.0, Ordering::Relaxed);
        t.on_cpu.store(true, Ordering::Relaxed);
        t.sched.show_as(ClassTag::IDLE);
        Ok(t)
    }

    fn assemble(
        id: TaskId,
        name: &str,
        affinity: Option<CpuMask>,
        block: TaskBlock,
        rsp: u64,
        user: Option<SpawnUser>,
        state: State,
    ) -> Arc<Task> {
        let kind = match (&user, state) {
            (Some(_), _) => TaskKind::User,
            // Only an idle task is running from the start.
            (None, State::Running) => TaskKind::Idle,
            (None, _) => TaskKind::Kernel,
        };
        let (space, fpu, fs_base, process, user) = match user {
            Some(u) => (Some(u.space), Some(u.fpu), u.fs_base, u.process, Some(u.context)),
            None => (None, None, 0, 0, None),
        };
        let affinity = affinity.unwrap_or_else(|| CpuMask::full(cpu::MAX_CPUS as u32));
        let task = Arc::new(Task {
            id,
            state: AtomicState::new(state),
            on_cpu: AtomicBool::new(false),
            cpu: AtomicU32::new(cpu::this().id.0),
            fpu_live: AtomicU32::new(fpu::NOT_LIVE),
            ran_on: AtomicU32::new(NOWHERE),
            may_run: AtomicCpuSet::of(&affinity),
            affinity: SpinLock::new(affinity),
            work: AtomicU32::new(0),
            suspension: Suspension::new(),
            fpu,
            seat: AtomicU32::new(crate::sched::delegated::NO_SEAT),
            sched: SchedEntity::default(),
            stats: TaskStats::default(),
            token: AtomicBool::new(false),
            exited: WaitQueue::new(),
            kind,
            process,
            wait_reason: AtomicU8::new(0),
            name: TaskName::new(name),
            saved_rsp: UnsafeCell::new(rsp),
            space: UnsafeCell::new(None),
            fs_base: AtomicU64::new(fs_base),
            user,
            block,
        });
        if let Some(space) = space {
            // SAFETY: the task doesn't run and nobody else knows it.
            unsafe { task.attach(space) };
        }
        task
    }

    /// Name for reports.
    pub fn name(&self) -> ArrayString<16> {
        self.name.get()
    }

    /// Number of its process; 0: none.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// Renames the task; cut to 16 bytes.
    pub fn set_name(&self, name: &str) {
        self.name.set(name);
        trace::name(self.id, name);
    }

    /// The task is about to wait for this.
    #[inline(always)]
    pub fn set_wait_reason(&self, why: WaitReason) {
        // Relaxed: shown, never acted upon.
        self.wait_reason.store(why as u8, Ordering::Relaxed);
    }

    /// Nanoseconds on a CPU, up to its last switch.
    pub fn run_ns(&self) -> u64 {
        self.sched.accounting().run().0
    }

    /// How often it gave way of its own will, and how often it was made to.
    pub fn switches(&self) -> [u64; 2] {
        self.sched.accounting().switches()
    }

    /// Whether the ABI layer has something for the task, so that it shall not go on waiting.
    #[inline(always)]
    pub fn is_interrupted(&self) -> bool {
        // SeqCst: a task that is about to block has announced that before; see `sync::wait_queue`.
        self.work.load(Ordering::SeqCst) & work::USER != 0
    }

    /// The ABI layer's state.
    #[inline(always)]
    pub fn user(&self) -> Option<&Arc<dyn UserContext>> {
        self.user.as_ref()
    }

    /// Whether the task may run on a CPU. A snapshot.
    #[inline(always)]
    pub fn allowed_on(&self, cpu: CpuId) -> bool {
        self.may_run.contains(cpu, Ordering::Relaxed)
    }

    /// Replaces where the task may run in fact. For `sched`, which moves it if it has to.
    pub(crate) fn restrict_to(&self, mask: &CpuMask) {
        // SeqCst: see `sched::affinity`. Its argument is about each CPU by itself.
        self.may_run.replace(mask, Ordering::SeqCst);
    }

    /// Thread pointer.
    #[inline(always)]
    pub fn fs_base(&self) -> u64 {
        self.fs_base.load(Ordering::Relaxed)
    }

    /// Address of the saved stack pointer, for the switch.
    #[inline(always)]
    pub(crate) fn saved_rsp(&self) -> *mut u64 {
        self.saved_rsp.get()
    }

    /// The address space that the switch must load.
    ///
    /// # Safety
    /// By the CPU that is about to run or runs the task.
    #[inline(always)]
    pub(crate) unsafe fn space_ptr(&self) -> *const AddressSpace {
        // SAFETY: the caller owns the task's execution.
        unsafe { (*self.space.get()).as_ref().map_or(core::ptr::null(), Arc::as_ptr) }
    }

    /// Puts an address space into a task that has none.
    ///
    /// # Safety
    /// By the task itself, or before it starts.
    unsafe fn attach(&self, space: Arc<AddressSpace>) {
        if space.threads.fetch_add(1, Ordering::AcqRel) > 0 {
            // Release: a shootdown that sees one thread also sees that there never were two.
            space.shared_ever.store(true, Ordering::Release);
        }
        space.install(self.block.top());
        // SAFETY: the caller's promise.
        unsafe { *self.space.get() = Some(space) };
    }
}
