//! Read-copy-update in this kernel: `vcpu_sched::rcu` with what it needs of a machine. docs/runtime.md tells the story.
//!
//! Anybody may [`read`], in interrupts too: a reader counts in its CPU's own memory and isn't preempted. Who changes what readers follow
//! may use [`RcuMap`] or [`RcuPointer`], [`call`] something later, or wait.
//!
//! What is asked of the scheduler is nothing at a switch: it counts its switches, and each loads a root, which is the full barrier that
//! a passage needs. An idle CPU is away. A CPU that computes in a program or in a task that never leaves it is asked by an interrupt, when a
//! period has waited for some milliseconds. So neither a system call nor a switch has an instruction for this.
//!
//! Who drives the periods: updaters as they pass ([`tidy`]), for what only frees memory; and, as soon as somebody waits or [`call`]s, a task
//! of the runtime ([`service`](mod@service)).
//!
//! Invariant: what was unlinked is freed when each CPU has switched, been idle or answered an interrupt outside of a reader since.

mod service;

use core::sync::atomic::Ordering;

use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::rcu::{Backlog, Domain, Guard, InReader, RcuPlatform};

use crate::cpu::{self, Cpu};
use crate::runtime::KernelLock;
use crate::sched;
use crate::sync::BootCell;
use crate::time;

pub use service::{barrier, call, synchronize};

/// A pointer that readers follow.
pub type RcuPointer<T> = vcpu_sched::rcu::RcuPointer<T, Kernel>;
/// Values by number.
pub type RcuMap<T> = vcpu_sched::rcu::RcuMap<T, Kernel>;

/// Set at boot, before there are tasks.
static DOMAIN: BootCell<Domain<Kernel>> = BootCell::new();

/// How many pieces of garbage an updater leaves lying before it looks after them.
const BATCH: u32 = 32;
/// How many may lie around before updaters are told to wait.
const LIMIT: u32 = 4096;
/// A period that takes longer is told of.
const STALL_AFTER: Nanos = Nanos::from_millis(10_000);

/// This kernel under a domain.
pub struct Kernel;

// SAFETY: a pinned task isn't preempted, so it stays, and nothing but interrupts runs on its CPU until it is unpinned.
unsafe impl RcuPlatform for Kernel {
    type Lock = KernelLock;

    #[inline(always)]
    fn pin(&self) -> CpuId {
        cpu::pin();
        cpu::this().id
    }

    #[inline(always)]
    fn unpin(&self) {
        cpu::unpin();
    }

    fn now(&self) -> Nanos {
        time::now()
    }

    fn kick(&self, cpu: CpuId) {
        if let Some(cpu) = cpu::get(cpu) {
            // Release: the interrupt that follows finds it.
            cpu.rcu_asked.store(true, Ordering::Release);
            sched::send(cpu);
        }
    }

    fn relax(&self) {
        sched::yield_now();
    }

    /// A switch: its count is changed with interrupts off, outside of readers, and before the next one the new root is loaded, which
    /// serialises.
    fn passages(&self, cpu: CpuId) -> u64 {
        // Acquire: what the CPU read before it counted comes before whatever is done for it. Its store needs nothing on x86.
        cpu::get(cpu).map_or(0, |cpu| cpu.stats.switches.load(Ordering::Acquire))
    }
}

/// For so many CPUs. Boot CPU, before there are tasks.
pub fn init(cpus: usize) {
    DOMAIN.set(Domain::new(Kernel, cpus.clamp(1, cpu::MAX_CPUS) as u32, LIMIT, STALL_AFTER));
}

/// The kernel's readers and updaters.
#[inline(always)]
pub fn domain() -> &'static Domain<Kernel> {
    match DOMAIN.get() {
        Some(domain) => domain,
        None => too_early(),
    }
}

#[cold]
fn too_early() -> ! {
    panic!("RCU before it was set up")
}

/// Begins to read. The task isn't preempted until the guard is gone, and must not wait.
#[inline(always)]
pub fn read() -> Guard<'static, Kernel> {
    domain().read()
}

/// An updater has left garbage that only has to be freed: if there is a heap of it, looks after it, and has the [`service`](mod@service) do so
/// if there is too much. Task context, outside of readers.
pub fn tidy(backlog: Backlog) {
    let domain = domain();
    if domain.pending() >= BATCH {
        _ = domain.advance();
        domain.run_callbacks(2 * BATCH as usize);
    }
    // Without memory for its task the next updater tries again.
    if backlog == Backlog::Full && service::ask().is_err() {
        crate::warn!("RCU: {} callbacks wait, and there is no memory for the task that runs them", domain.pending());
    }
}

/// Waits until all readers of now have gone, with an interrupt to each CPU that may have one.
///
/// # Errors
/// [`InReader`]: this CPU has one, by the caller.
pub fn synchronize_expedited() -> Result<(), InReader> {
    domain().synchronize_expedited()
}

/// The CPU has nothing to do. Its idle task, interrupts off.
pub fn enter_idle() {
    // It has no reader: the idle task is none.
    _ = domain().enter_away();
}

/// The CPU goes on to another task. Interrupts off.
pub fn leave_idle() {
    domain().leave_away();
}

/// The CPU was interrupted, perhaps to be asked. Interrupts off.
#[inline(always)]
pub fn interrupted(me: &Cpu) {
    // Relaxed: a look; who asked has sent an interrupt after it, which is this one or comes.
    if me.rcu_asked.load(Ordering::Relaxed) {
        answer(me);
    }
}

#[cold]
fn answer(me: &Cpu) {
    // Acquire: see `kick`.
    me.rcu_asked.swap(false, Ordering::Acquire);
    domain().report();
}
