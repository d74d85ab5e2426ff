//! A task that always finds something would never return from its poll: each poll may take so many steps, and then the
//! task goes to the end of the queue. Called by everything that a future can wait for and that can
//! succeed at once; the invariant is that a poll that is told to stop has been woken already.

use core::task::{Context, Poll};

use super::header;

/// Steps in one poll.
pub(super) const BUDGET: u32 = 128;

/// Takes one step of the polled task's budget. `Pending` if there is none left; the task is queued again then.
///
/// A future that is polled with a waker of its own making has no budget, and is never stopped.
#[inline]
pub fn step(cx: &mut Context<'_>) -> Poll<()> {
    let Some(task) = header::task_of(cx.waker()) else { return Poll::Ready(()) };
    match task.budget.get().checked_sub(1) {
        Some(left) => {
            task.budget.set(left);
            Poll::Ready(())
        }
        None => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }
}

/// Lets the others of this CPU run first.
pub async fn yield_now() {
    let mut yielded = false;
    core::future::poll_fn(|cx| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
