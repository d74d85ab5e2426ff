//! One CPU's own data, reached through GS.
//!
//! Invariant: in ring 0, GS_BASE points to the running CPU's [`Cpu`]. A `&Cpu` may outlive a migration of the task that
//! got it; then it names the CPU of before. What must not be mixed up is therefore used with interrupts off, and everything
//! in it that others may touch is atomic or locked.

pub mod bring_up;
pub mod set;
pub mod shown;
pub mod steal;
pub mod topology;
pub mod view;

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

use vcpu_sched::clock::FastClock;
use vcpu_sched::cpu::sleep::SleepState;
use vcpu_sched::ids::CpuId;
use vcpu_sched::placement::Level;
use vcpu_sched::runqueue::PolicyKind;

use self::set::AtomicCpuSet;
use self::steal::StealRecord;
use crate::arch::descriptors::{Gdt, Tss};
use crate::arch::instr;
use crate::mm::PhysAddr;
use crate::mm::address_space::AddressSpace;
use crate::mm::frame::FrameCache;
use crate::mm::heap::HeapCache;
use crate::mm::layout::KERNEL_BASE;
use crate::sched;
use crate::sync::{IrqGuard, SpinLock};
use crate::task::Task;
use crate::time::timer::CpuTimers;
use crate::trace::CpuTrace;

/// Most CPUs that this kernel brings up: as many as a mask of the C library's has room for, and as KVM takes on most hosts.
pub const MAX_CPUS: usize = 1024;

/// Counters for `--stats`; monotone, relaxed.
#[derive(Default)]
pub struct CpuStats {
    /// Task switches.
    pub switches: AtomicU64,
    /// Page faults resolved.
    pub faults: AtomicU64,
    /// System calls.
    pub syscalls: AtomicU64,
    /// Timer interrupts.
    pub timer_interrupts: AtomicU64,
    /// Reschedule interrupts received.
    pub reschedule_ipis: AtomicU64,
    /// Shootdown interrupts sent.
    pub shootdown_ipis: AtomicU64,
    /// Excursions into the ring-3 engine.
    pub excursions: AtomicU64,
    /// Spin locks that were not free at once.
    pub lock_waits: AtomicU64,
    /// Those among them whose holder was seen without a CPU of the host: it had been taken away.
    pub lock_waits_preempted: AtomicU64,
}

/// One CPU. The first fields are used by assembly.
#[repr(C)]
pub struct Cpu {
    this: AtomicPtr<Cpu>,
    user_rsp: u64,
    excursion_rsp: u64,
    excursion_cr3: u64,
    /// The running task; never null once tasks run. The scheduler owns a reference for it.
    pub current: AtomicPtr<Task>,
    /// Set when the running task should give way; looked at on the way out of the kernel and of interrupts. Set by other CPUs,
    /// and cleared, with the run queue locked: see `sched::switch`.
    pub need_resched: AtomicBool,
    /// See [`lock_tag`].
    lock_tag: u32,
    /// See [`pin`].
    pinned: AtomicU32,
    /// Index in the CPU table.
    pub id: CpuId,
    /// Address for IPIs.
    apic_id: AtomicU32,
    /// Halted, awake, or not to halt.
    pub sleep: SleepState,
    /// Ready tasks. Guards the queue only.
    pub run_queue: SpinLock<sched::Queue>,
    /// Tasks ready or running here, the idle task not counted. A hint for placement.
    pub nr_running: AtomicU32,
    /// Runs when nothing else does. Set at bring-up.
    pub idle: AtomicPtr<Task>,
    /// Its copy of the clock. Own CPU, interrupts off.
    pub clock: FastClock,
    /// Armed timers.
    pub timers: CpuTimers,
    /// Address space whose user half this CPU may have in its TLB.
    pub loaded_space: AtomicPtr<AddressSpace>,
    /// Generation of `loaded_space` up to which this CPU has flushed.
    pub flushed: AtomicU64,
    /// Task whose FPU state the registers hold (see `fpu`).
    pub fpu_owner: AtomicPtr<Task>,
    /// FS base that is loaded.
    pub fs_base: AtomicU64,
    /// Root of the ring-3 engine, 0 before it exists.
    pub ring3_root: AtomicU64,
    /// Frame for the engine's list of transfers.
    pub ring3_list: AtomicU64,
    /// Task that has just left this CPU, to be let go of by its successor.
    pub leaving: AtomicPtr<Task>,
    /// It wants to run elsewhere. Own CPU, interrupts off.
    pub forward: AtomicBool,
    /// It gave way of its own will. Own CPU, interrupts off; see `sched::delegated`.
    pub gave_way: AtomicBool,
    /// When this CPU must look into the enclave, in TSC ticks; 0: need not. Own CPU, interrupts off.
    pub watch_at: AtomicU64,
    /// The task that was picked last; null: the idle task. Written with the run queue locked, so that who holds that lock knows
    /// whether a task is queued here, runs here (or is about to), or neither; `current` follows a moment later.
    pub chosen: AtomicPtr<Task>,
    /// How important it is (`vcpu_sched::placement::Level`), and the highest real-time priority that waits here. Hints for placement.
    pub level: AtomicU8,
    /// See `level`; 0: none waits. Written with the run queue locked.
    pub waiting_realtime: AtomicU8,
    /// One of the CPUs of `offer` may come for a task that waits in this CPU's queue now. Own CPU, interrupts off.
    pub offers: AtomicBool,
    /// See `offers`. Own CPU, interrupts off.
    pub offer: AtomicCpuSet,
    /// Other CPUs that the task may run on that is being queued. Own CPU, interrupts off.
    pub elsewhere: AtomicCpuSet,
    /// Top-level entry for the per-CPU slot.
    pub slot_entry: AtomicU64,
    /// Address of the frame that programs see of this CPU.
    pub shown_page: AtomicU64,
    /// Time at which the current task was picked, in TSC ticks.
    pub picked_at: AtomicU64,
    /// The same as monotonic time, in nanoseconds.
    pub picked_time: AtomicU64,
    /// An RCU period waits for this CPU, which shall say that it has no reader. See `rcu::interrupted`.
    pub rcu_asked: AtomicBool,
    /// Counters.
    pub stats: CpuStats,
    /// Its trace ring.
    pub trace: CpuTrace,
    /// What the host took from it.
    pub steal: StealRecord,
    /// Takes tasks.
    pub online: AtomicBool,
    frames: UnsafeCell<FrameCache>,
    heap: UnsafeCell<HeapCache>,
    gdt: UnsafeCell<Gdt>,
    tss: UnsafeCell<Tss>,
}

// SAFETY: the UnsafeCells are used by their own CPU with interrupts off (with_frame_cache, with_heap_cache, load_tables,
// set_rsp0); the plain fields are written before the CPU is published or by its own assembly only.
unsafe impl Sync for Cpu {}

/// GS offset of the scratch word of `syscall_entry`.
pub const OFFSET_USER_RSP: usize = offset_of!(Cpu, user_rsp);
/// GS offset of the kernel RSP during an excursion; 0 outside.
pub const OFFSET_EXCURSION_RSP: usize = offset_of!(Cpu, excursion_rsp);
/// GS offset of the kernel root during an excursion.
pub const OFFSET_EXCURSION_CR3: usize = offset_of!(Cpu, excursion_cr3);
const OFFSET_CURRENT: usize = offset_of!(Cpu, current);
const OFFSET_SYSCALLS: usize = offset_of!(Cpu, stats.syscalls);
const OFFSET_LOCK_TAG: usize = offset_of!(Cpu, lock_tag);
const OFFSET_PINNED: usize = offset_of!(Cpu, pinned);

static CPUS: [AtomicPtr<Cpu>; MAX_CPUS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];
static COUNT: AtomicU32 = AtomicU32::new(1);
static BOOT: Cpu = Cpu::new(CpuId(0), 0, sched::Queue::new(CpuId(0), PolicyKind::ALL[0]));

impl Cpu {
    const fn new(id: CpuId, apic_id: u32, run_queue: sched::Queue) -> Self {
        Self {
            this: AtomicPtr::new(core::ptr::null_mut()),
            user_rsp: 0,
            excursion_rsp: 0,
            excursion_cr3: 0,
            current: AtomicPtr::new(core::ptr::null_mut()),
            need_resched: AtomicBool::new(false),
            lock_tag: id.0 + 1,
            pinned: AtomicU32::new(0),
            id,
            apic_id: AtomicU32::new(apic_id),
            sleep: SleepState::new(),
            run_queue: SpinLock::new(run_queue),
            nr_running: AtomicU32::new(0),
            idle: AtomicPtr::new(core::ptr::null_mut()),
            clock: FastClock::new(),
            timers: CpuTimers::new(),
            loaded_space: AtomicPtr::new(core::ptr::null_mut()),
            flushed: AtomicU64::new(0),
            fpu_owner: AtomicPtr::new(core::ptr::null_mut()),
            fs_base: AtomicU64::new(0),
            ring3_root: AtomicU64::new(0),
            ring3_list: AtomicU64::new(0),
            leaving: AtomicPtr::new(core::ptr::null_mut()),
            forward: AtomicBool::new(false),
            gave_way: AtomicBool::new(false),
            watch_at: AtomicU64::new(0),
            chosen: AtomicPtr::new(core::ptr::null_mut()),
            level: AtomicU8::new(Level::IDLE.get()),
            waiting_realtime: AtomicU8::new(0),
            offers: AtomicBool::new(false),
            offer: AtomicCpuSet::new(),
            elsewhere: AtomicCpuSet::new(),
            slot_entry: AtomicU64::new(0),
            shown_page: AtomicU64::new(0),
            picked_at: AtomicU64::new(0),
            picked_time: AtomicU64::new(0),
            rcu_asked: AtomicBool::new(false),
            stats: CpuStats {
                switches: AtomicU64::new(0),
                faults: AtomicU64::new(0),
                syscalls: AtomicU64::new(0),
                timer_interrupts: AtomicU64::new(0),
                reschedule_ipis: AtomicU64::new(0),
                shootdown_ipis: AtomicU64::new(0),
                excursions: AtomicU64::new(0),
                lock_waits: AtomicU64::new(0),
                lock_waits_preempted: AtomicU64::new(0),
            },
            trace: CpuTrace::new(),
            steal: StealRecord::new(),
            online: AtomicBool::new(false),
            frames: UnsafeCell::new(FrameCache::new()),
            heap: UnsafeCell::new(HeapCache::new()),
            gdt: UnsafeCell::new(Gdt::new()),
            tss: UnsafeCell::new(Tss::new()),
        }
    }

    /// Loads GDT, TSS and IDT of this CPU.
    ///
    /// # Safety
    /// On this CPU, once, before its interrupts are on.
    pub unsafe fn load_tables(&self) {
        // SAFETY: the caller is the only user; `Cpu`s are never freed.
        unsafe { crate::arch::descriptors::load(self.gdt.get(), self.tss.get()) };
        // Loading segment selectors cleared nothing of GS_BASE (only SS, DS, ES were loaded).
    }

    /// Sets the stack for entries from ring 3.
    ///
    /// # Safety
    /// On this CPU with interrupts off; `top` is mapped wherever ring 3 runs next.
    #[inline(always)]
    pub unsafe fn set_rsp0(&self, top: u64) {
        // SAFETY: only this CPU uses its TSS.
        unsafe { (*self.tss.get()).set_rsp0(top) };
    }

    /// Address for IPIs.
    #[inline(always)]
    pub fn apic_id(&self) -> u32 {
        // Relaxed: written before the CPU is published.
        self.apic_id.load(Ordering::Relaxed)
    }

    /// Whether the current task is pinned to this CPU, see [`pin`]. Own CPU, interrupts off.
    #[inline(always)]
    pub fn is_pinned(&self) -> bool {
        // Relaxed: this CPU's own.
        self.pinned.load(Ordering::Relaxed) != 0
    }

    /// Whether an excursion into the ring-3 engine is under way here.
    pub fn in_excursion(&self) -> bool {
        // SAFETY: written by this CPU's assembly; a volatile read sees the present value.
        unsafe { core::ptr::read_volatile(&raw const self.excursion_rsp) != 0 }
    }
}

/// Guest-physical address of a [`Cpu`], or of something in it.
fn physical(virt: u64) -> PhysAddr {
    // The boot CPU's data is part of the image, the others' lie in the heap.
    if virt >= KERNEL_BASE { PhysAddr::from_image(virt) } else { PhysAddr::from_direct(virt) }
}

/// This CPU.
#[inline(always)]
pub fn this() -> &'static Cpu {
    let p: *const Cpu;
    // SAFETY: GS_BASE points to a `Cpu` whose first word is its address. Not `pure`: the answer changes at a switch.
    unsafe { asm!("mov {}, gs:[0]", out(reg) p, options(nostack, preserves_flags, readonly)) };
    // SAFETY: `Cpu`s live for ever.
    unsafe { &*p }
}

/// The running task, by one load that can't be torn by a migration.
#[inline(always)]
pub fn current_task() -> *mut Task {
    let p: *mut Task;
    // SAFETY: as in `this`.
    unsafe { asm!("mov {}, gs:[{}]", out(reg) p, const OFFSET_CURRENT, options(nostack, preserves_flags, readonly)) };
    p
}

/// One more system call, counted by one instruction that no migration can tear.
#[inline(always)]
pub fn count_system_call() {
    // SAFETY: as in `this`; nobody else writes the counter, and others read it as the atomic that it is.
    unsafe { asm!("inc qword ptr gs:[{}]", const OFFSET_SYSCALLS, options(nostack)) };
}

/// Keeps the current task on this CPU, and everybody else off it but interrupts, until the matching [`unpin`]; nests. It must not wait
/// meanwhile. One instruction, so that neither an interrupt nor a migration tears it.
#[inline(always)]
pub fn pin() {
    // SAFETY: as in `this`; nobody else writes the counter. Not `nomem`: what follows stays behind it.
    unsafe { asm!("inc dword ptr gs:[{}]", const OFFSET_PINNED, options(nostack)) };
}

/// Undoes one [`pin`], and gives way if that was asked for meanwhile.
#[inline(always)]
pub fn unpin() {
    // SAFETY: as in `pin`.
    unsafe { asm!("dec dword ptr gs:[{}]", const OFFSET_PINNED, options(nostack)) };
    // Relaxed: a request that comes later finds us unpinned.
    if this().need_resched.load(Ordering::Relaxed) {
        sched::preempt_after_pin();
    }
}

/// What a spin lock that this CPU holds has in it: its number and one.
#[inline(always)]
pub fn lock_tag() -> u32 {
    let tag: u32;
    // SAFETY: as in `this`; the field never changes.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) tag, const OFFSET_LOCK_TAG, options(nostack, preserves_flags, readonly))
    };
    tag
}

/// Makes the boot CPU's data reachable. First thing in Rust.
///
/// # Safety
/// Once, on the boot CPU.
pub unsafe fn init_boot() {
    BOOT.apic_id.store(crate::arch::apic::initial_id(), Ordering::Relaxed);
    // SAFETY: GS is not used yet.
    unsafe { install(&BOOT) };
}

/// Points GS to `cpu`.
///
/// # Safety
/// On that CPU, before it uses per-CPU data.
pub unsafe fn install(cpu: &'static Cpu) {
    /// IA32_GS_BASE and IA32_KERNEL_GS_BASE. Intel SDM vol. 4 table 2-2.
    const GS_BASE: u32 = 0xc000_0101;
    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    let address = core::ptr::from_ref(cpu).cast_mut();
    cpu.this.store(address, Ordering::Relaxed);
    // SAFETY: both exist in 64-bit mode; the caller's promise.
    unsafe {
        instr::wrmsr(GS_BASE, address as u64);
        instr::wrmsr(KERNEL_GS_BASE, 0);
    }
    // Release: whoever finds the CPU in the table finds it initialised.
    CPUS[cpu.id.0 as usize].store(address, Ordering::Release);
}

/// Makes a further CPU's data.
pub fn allocate(id: CpuId, apic_id: u32) -> &'static Cpu {
    alloc::boxed::Box::leak(alloc::boxed::Box::new(Cpu::new(id, apic_id, sched::new_queue(id))))
}

/// CPU `id`, if it has been brought up.
#[inline(always)]
pub fn get(id: CpuId) -> Option<&'static Cpu> {
    // Acquire: pairs with `install`. SAFETY: `Cpu`s live for ever.
    CPUS.get(id.0 as usize).and_then(|p| unsafe { p.load(Ordering::Acquire).as_ref() })
}

/// All CPUs that have been brought up.
pub fn all() -> impl Iterator<Item = &'static Cpu> {
    (0..COUNT.load(Ordering::Acquire)).filter_map(|i| get(CpuId(i)))
}

/// How many CPUs there are.
#[inline(always)]
pub fn count() -> u32 {
    COUNT.load(Ordering::Acquire)
}

/// One more CPU is up.
fn set_count(n: u32) {
    COUNT.store(n, Ordering::Release);
}

/// Runs `f` on this CPU's frame cache.
#[inline(always)]
pub fn with_frame_cache<R>(f: impl FnOnce(&mut FrameCache) -> R) -> R {
    let _irq = IrqGuard::new();
    // SAFETY: own CPU, interrupts off, and no user of the cache calls back into it.
    f(unsafe { &mut *this().frames.get() })
}

/// Runs `f` on this CPU's heap lists.
#[inline(always)]
pub fn with_heap_cache<R>(f: impl FnOnce(&mut HeapCache) -> R) -> R {
    let _irq = IrqGuard::new();
    // SAFETY: own CPU, interrupts off, and no user of the lists calls back into them.
    f(unsafe { &mut *this().heap.get() })
}
