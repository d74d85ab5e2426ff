//! A task of the runtime that drives periods while somebody waits for one, or for callbacks to be run. It is made by the first who does.
//!
//! Invariant: whoever has begun to wait notifies it afterwards, so it looks again before it sleeps for good.

use alloc::boxed::Box;
use core::future::poll_fn;
use core::pin::pin;
use core::sync::atomic::{AtomicPtr, Ordering};

use vcpu_sched::ids::Nanos;
use vcpu_sched::rcu::{Backlog, Domain};

use super::{Kernel, domain};
use crate::mm::frame::OutOfMemory;
use crate::runtime::{self, sync::Notify, time};
use crate::sync::Mutex;

/// Wakes the task. Set once, by [`get`].
static WANTED: AtomicPtr<Notify> = AtomicPtr::new(core::ptr::null_mut());
/// Held while the task is made.
static START: Mutex<()> = Mutex::new(());

/// Between two looks at a period.
const STEP: Nanos = Nanos::from_millis(1);
/// After so many looks, CPUs that have not passed by themselves are asked.
const LOOKS: u32 = 4;
/// Callbacks at a time; then others have their turn.
const CALLBACKS: usize = 64;

/// What wakes the task.
fn get() -> Result<&'static Notify, OutOfMemory> {
    // Acquire: pairs with the store below. SAFETY: leaked there.
    let there = || unsafe { WANTED.load(Ordering::Acquire).as_ref() };
    if let Some(wanted) = there() {
        return Ok(wanted);
    }
    let _alone = START.lock();
    if let Some(wanted) = there() {
        return Ok(wanted);
    }
    let wanted: &'static Notify = Box::leak(Box::new(Notify::new()));
    runtime::spawn(serve(wanted))?.detach();
    // Release: whoever finds it finds it whole.
    WANTED.store(core::ptr::from_ref(wanted).cast_mut(), Ordering::Release);
    Ok(wanted)
}

async fn serve(wanted: &'static Notify) {
    let domain = domain();
    loop {
        let mut looks = 0;
        while domain.is_wanted() || domain.pending() > 0 {
            look(domain);
            while domain.run_callbacks(CALLBACKS) == CALLBACKS {
                vcpu_sched::runtime::budget::yield_now().await;
            }
            looks += 1;
            if looks % LOOKS == 0 {
                domain.expedite();
            }
            if domain.is_wanted() || domain.pending() > 0 {
                time::sleep(STEP).await;
            }
        }
        wanted.notified().await;
    }
}

fn look(domain: &Domain<Kernel>) {
    if let Some(stall) = domain.advance().stall {
        crate::warn!("RCU: period {} has been waiting for CPUs {} for {}", stall.period, stall.cpus, stall.waited);
    }
}

/// Has the task look.
///
/// # Errors
/// [`OutOfMemory`], for the task.
pub fn ask() -> Result<(), OutOfMemory> {
    get()?.notify_one();
    Ok(())
}

/// Waits until all readers of now have gone.
///
/// # Errors
/// [`OutOfMemory`], for the task that sees to it.
pub async fn synchronize() -> Result<(), OutOfMemory> {
    let wanted = get()?;
    let mut gone = pin!(domain().synchronize());
    poll_fn(|cx| {
        let polled = gone.as_mut().poll(cx);
        if polled.is_pending() {
            // After the poll, which has begun to wait.
            wanted.notify_one();
        }
        polled
    })
    .await;
    Ok(())
}

/// Has `f` called when all readers of now have gone, in task context.
///
/// # Errors
/// [`OutOfMemory`], for the task that calls it; `f` is dropped.
pub fn call(f: impl FnOnce() + Send + 'static) -> Result<Backlog, OutOfMemory> {
    let wanted = get()?;
    let backlog = domain().call(f);
    wanted.notify_one();
    Ok(backlog)
}

/// Waits until everything that was called or retired before has been called and freed.
///
/// # Errors
/// [`OutOfMemory`], as for [`synchronize`].
pub async fn barrier() -> Result<(), OutOfMemory> {
    let wanted = get()?;
    while domain().pending() > 0 {
        wanted.notify_one();
        synchronize().await?;
        time::sleep(STEP).await;
    }
    Ok(())
}
