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

/// One for each CPU that has an executor, as a slice that is never freed. Set once, by [`init`].
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

/// Makes the heaps. Once, before the runtime is there.
pub(super) fn init(cpus: u32) {
    let sleepers = (0..cpus).map(|_| Timers::new(CpuClock)).collect::<Vec<_>>();
    // Release: who finds them finds them whole.
    SLEEPERS.store(Box::leak(Box::new(sleepers)), Ordering::Release);
}

/// The sleepers of a CPU; a CPU without an executor uses another's, whose timer it arms by its own: it only has to be somebody's, see
/// [`expire`].
fn sleepers_of(cpu: &Cpu) -> Option<&'static CpuSleepers> {
    // Acquire: see `init`. SAFETY: leaked there.
    let all = unsafe { SLEEPERS.load(Ordering::Acquire).as_ref() }?;
    all.get(cpu.id.index() % all.len().max(1))
}

/// This CPU's timer was armed for its sleepers, and their time has come. Interrupts are off.
pub fn expire(me: &Cpu) {
    if let Some(sleepers) = sleepers_of(me) {
        sleepers.expire();
    }
}

/// Waits until a time of the monotonic clock. To be polled by a task of the runtime, or by `block_on` once there is a runtime.
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
            let Some(sleepers) = sleepers_of(cpu::this()) else {
                // Nobody has made them: the caller polls without a runtime. It is asked to come again until the time has passed.
                return if time::now() >= this.deadline {
                    Poll::Ready(())
                } else {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                };
            };
            this.sleeper = Some(sleepers.sleep_until(this.deadline));
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
