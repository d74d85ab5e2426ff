//! Futures that wait for a time. Each CPU has its sleepers, in a heap that is linked through them: to sleep asks for no memory. The CPU's
//! timer interrupt wakes them.
//!
//! Invariant: a sleeper enters the heap of the CPU that it is polled on, with interrupts off until that CPU's timer is armed for it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::pin::Pin;
use core::sync::atomic::{AtomicPtr, Ordering};
use core::task::{Context, Poll};

use vcpu_sched::ids::Nanos;
use vcpu_sched::runtime::combine::{Either, select};
use vcpu_sched::runtime::time::{Clock, Elapsed, Sleep as Sleeper, Timers};

use super::platform::KernelLock;
use crate::cpu::{self, Cpu};
use crate::sync::IrqGuard;
use crate::time;

type CpuSleepers = Timers<CpuClock, KernelLock>;

/// One for each CPU, never freed. Set once, by [`make`], when somebody sleeps for the first time.
static SLEEPERS: AtomicPtr<Vec<CpuSleepers>> = AtomicPtr::new(core::ptr::null_mut());

/// The timer of the CPU that asks.
struct CpuClock;

impl Clock for CpuClock {
    fn now(&self) -> Nanos {
        time::now()
    }

    fn arm(&self, deadline: Nanos) {
        let _irq = IrqGuard::new();
        cpu::this().timers.arm_sleepers(deadline);
    }
}

/// All CPUs' heaps, if anybody ever slept.
fn made() -> Option<&'static [CpuSleepers]> {
    // Acquire: see `make`. SAFETY: leaked there.
    unsafe { SLEEPERS.load(Ordering::Acquire).as_ref() }.map(Vec::as_slice)
}

/// Makes the heaps, once.
#[cold]
fn make() -> Option<&'static [CpuSleepers]> {
    let sleepers = (0..cpu::count()).map(|_| Timers::new(CpuClock)).collect::<Vec<_>>();
    let sleepers = Box::into_raw(Box::new(sleepers));
    // Release: who finds them finds them whole. Acquire: so do we if another CPU was first.
    let made_now =
        SLEEPERS.compare_exchange(core::ptr::null_mut(), sleepers, Ordering::AcqRel, Ordering::Acquire).is_ok();
    if !made_now {
        // SAFETY: made above, and nobody has seen it.
        drop(unsafe { Box::from_raw(sleepers) });
    }
    made()
}

/// Which of them a CPU uses.
fn of_cpu<'a>(all: &'a [CpuSleepers], cpu: &Cpu) -> Option<&'a CpuSleepers> {
    all.get(cpu.id.index())
}

/// This CPU's timer was armed for its sleepers, and their time has come. Interrupts are off.
pub fn expire(me: &Cpu) {
    if let Some(sleepers) = made().and_then(|all| of_cpu(all, me)) {
        sleepers.expire();
    }
}

/// Waits until a time of the monotonic clock. To be polled in task context.
#[must_use = "a future does nothing until it is polled"]
pub struct Sleep {
    deadline: Nanos,
    /// From the first poll on.
    sleeper: Option<Sleeper<'static, CpuClock, KernelLock>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: `sleeper` is never moved, and only used pinned.
        let this = unsafe { self.get_unchecked_mut() };
        let _irq = IrqGuard::new();
        if this.sleeper.is_none() {
            let all = made().or_else(make);
            // All CPUs that there are have been counted when the first task sleeps, so each has its own.
            let Some(own) = all.and_then(|all| of_cpu(all, cpu::this())) else {
                panic!("CPU {} came after the sleepers", cpu::this().id.0)
            };
            this.sleeper = Some(own.sleep_until(this.deadline));
        }
        match &mut this.sleeper {
            // SAFETY: pinned with us.
            Some(sleeper) => unsafe { Pin::new_unchecked(sleeper) }.poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Waits until a time of the monotonic clock.
pub fn sleep_until(deadline: Nanos) -> Sleep {
    Sleep { deadline, sleeper: None }
}

/// Waits for so long from now on.
pub fn sleep(span: Nanos) -> Sleep {
    sleep_until(time::now() + span)
}

/// Waits for a future, but not longer than until a time.
///
/// # Errors
/// [`Elapsed`]; the future is dropped then.
pub async fn timeout_at<F: Future>(deadline: Nanos, future: F) -> Result<F::Output, Elapsed> {
    match select(future, sleep_until(deadline)).await {
        Either::First(output) => Ok(output),
        Either::Second(()) => Err(Elapsed),
    }
}
