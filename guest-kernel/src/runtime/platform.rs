//! The executors. Each is a kernel task, pinned to its CPU, with the class and the slice that anyone gives it; a CPU that runs
//! programs shares its time with it as with any other task. What it has, executors of idle CPUs come for.
//!
//! Invariant: [`EXECUTORS`] names a CPU's executor from before it runs; it never ends.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicPtr, Ordering};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;
use vcpu_sched::runtime::lock::RawLock;
use vcpu_sched::runtime::{MAX_EXECUTORS, Platform};

use super::park;
use crate::arch::instr;
use crate::cpu;
use crate::mm::frame::OutOfMemory;
use crate::sched;
use crate::sync::{IrqGuard, Mutex, SpinLock};
use crate::task::{Spawn, Task, table};

/// All tasks that are futures.
pub type Runtime = vcpu_sched::runtime::Runtime<Kernel>;

/// Set once, by [`get`].
static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(core::ptr::null_mut());
/// Held while the executors are made.
static START: Mutex<()> = Mutex::new(());
/// By CPU; each pointer owns a reference.
static EXECUTORS: [AtomicPtr<Task>; MAX_EXECUTORS as usize] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_EXECUTORS as usize];

/// This kernel under a runtime.
pub struct Kernel;

/// The kernel's spin lock as the runtime wants it: interrupts are off while it is held.
pub struct KernelLock(SpinLock<()>);

// SAFETY: a spin lock, whose guard is forgotten by the one and made again by the other.
unsafe impl RawLock for KernelLock {
    type Saved = IrqGuard;

    fn open() -> Self {
        Self(SpinLock::new(()))
    }

    #[inline]
    fn acquire(&self) -> IrqGuard {
        let irq = IrqGuard::new();
        core::mem::forget(self.0.lock_irqs_off());
        irq
    }

    fn try_acquire(&self) -> Option<IrqGuard> {
        let irq = IrqGuard::new();
        core::mem::forget(self.0.try_lock()?);
        Some(irq)
    }

    #[inline]
    unsafe fn release(&self, irq: IrqGuard) {
        // SAFETY: the caller has it, and its guard was forgotten.
        unsafe { self.0.open_again() };
        drop(irq);
    }
}

// SAFETY: who finds its own task in the table with interrupts on is that CPU's executor, which holds its worker, and not a handler:
// those have interrupts off.
unsafe impl Platform for Kernel {
    type Lock = KernelLock;

    #[inline]
    fn executor_cpu(&self) -> Option<CpuId> {
        if !instr::interrupts_enabled() {
            return None;
        }
        let cpu = cpu::this().id;
        // Relaxed: an executor finds itself, written before it ran; others find nothing that is theirs.
        let executor = EXECUTORS.get(cpu.index())?.load(Ordering::Relaxed);
        core::ptr::eq(executor, cpu::current_task()).then_some(cpu)
    }

    fn kick(&self, cpu: CpuId) {
        if let Some(task) = executor(cpu) {
            park::unpark(&task);
        }
    }

    fn park(&self, _: CpuId) {
        park::park();
    }
}

/// A CPU's executor, if there are any.
pub fn executor(cpu: CpuId) -> Option<ManuallyDrop<Arc<Task>>> {
    // Acquire: pairs with `start`.
    let task = EXECUTORS.get(cpu.index())?.load(Ordering::Acquire);
    // SAFETY: the table's reference is never given back, and this handle isn't dropped.
    (!task.is_null()).then(|| ManuallyDrop::new(unsafe { Arc::from_raw(task.cast_const()) }))
}

/// The runtime, if it was ever needed.
pub(super) fn started() -> Option<&'static Runtime> {
    // Acquire: pairs with `start`. SAFETY: leaked there.
    unsafe { RUNTIME.load(Ordering::Acquire).as_ref() }
}

/// The runtime. Task context; the first call makes the executors.
///
/// # Errors
/// [`OutOfMemory`]: there is none yet; the next call tries again.
pub fn get() -> Result<&'static Runtime, OutOfMemory> {
    match started() {
        Some(runtime) => Ok(runtime),
        None => start(),
    }
}

#[cold]
fn start() -> Result<&'static Runtime, OutOfMemory> {
    let _alone = START.lock();
    if let Some(runtime) = started() {
        return Ok(runtime);
    }
    let cpus = cpu::count().min(MAX_EXECUTORS);
    let executors = (0..cpus).map(new_executor).collect::<Result<Vec<_>, _>>()?;
    let runtime = Box::leak(Box::new(Runtime::new(Kernel, cpus)));
    // Release: whoever finds it finds it whole.
    RUNTIME.store(runtime, Ordering::Release);
    for (place, task) in EXECUTORS.iter().zip(executors) {
        // Release: as above.
        place.store(Arc::into_raw(task.clone()).cast_mut(), Ordering::Release);
        sched::start(task);
    }
    Ok(runtime)
}

fn new_executor(cpu: u32) -> Result<Arc<Task>, OutOfMemory> {
    let mut name = arrayvec::ArrayString::<16>::new();
    // It fits: the number has two digits.
    _ = core::fmt::Write::write_fmt(&mut name, format_args!("executor/{cpu}"));
    let affinity = Some(CpuMask::one_shot(CpuId(cpu)));
    Task::new(
        table::allocate_kernel_id(),
        Spawn { name: &name, affinity, entry: execute, argument: cpu as usize, user: None },
    )
}

/// An executor's life.
extern "C" fn execute(cpu: usize) -> ! {
    if let Some(mut worker) = started().and_then(|runtime| runtime.worker(CpuId(cpu as u32))) {
        worker.run(|| false);
    }
    // There is one task for each worker, and a worker's run has no end.
    panic!("executor {cpu} without work")
}
