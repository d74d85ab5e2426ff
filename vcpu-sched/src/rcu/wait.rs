//! Waiting for a period as a future. Anyone may; the invariant is that of the list under it: who goes takes nothing
//! with him.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::domain::{Domain, RcuPlatform};
use super::grace::Cookie;
use crate::runtime::sync::waiters::Node;
use crate::runtime::waits::{self, Waits};

/// Waits until all readers from before its first poll have gone. Somebody must call [`Domain::advance`] meanwhile, as
/// for callbacks.
#[must_use = "a future does nothing until it is polled"]
pub struct Synchronize<'a, P: RcuPlatform> {
    domain: &'a Domain<P>,
    /// Taken at the first poll, under the lock that puts it into the list: so the list is in the order of the periods.
    cookie: Option<Cookie>,
    node: Node,
}

impl<P: RcuPlatform> Domain<P> {
    /// Waits until all readers of now have gone. A guard can't be held meanwhile: it isn't `Send`, and a task is.
    pub fn synchronize(&self) -> Synchronize<'_, P> {
        Synchronize { domain: self, cookie: None, node: Node::new() }
    }
}

impl<P: RcuPlatform> Future for Synchronize<'_, P> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: nothing is moved out, and `node` is only used pinned.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: pinned with the future.
        let node = unsafe { Pin::new_unchecked(&this.node) };
        let (over, old) = this.domain.inner.with(|inner| {
            let cookie = *this.cookie.get_or_insert_with(|| inner.periods.cookie());
            let over = inner.periods.is_over(cookie);
            // SAFETY: the node is in this list or none, and its future's drop takes it out.
            let old = unsafe {
                match over {
                    true => inner.waiters.leave(node).1,
                    false => inner.waiters.wait(node, cookie.0 as usize, cx.waker()),
                }
            };
            (over, old)
        });
        drop(old);
        if over {
            return Poll::Ready(());
        }
        waits::note(cx.waker(), Waits::Period, core::ptr::from_ref(this.domain).addr() as u64);
        Poll::Pending
    }
}

impl<P: RcuPlatform> Drop for Synchronize<'_, P> {
    fn drop(&mut self) {
        // SAFETY: whoever pinned the future keeps it where it is until this drop is over.
        let node = unsafe { Pin::new_unchecked(&self.node) };
        // SAFETY: as in `poll`. The end of a period is everybody's: there is nothing to pass on.
        drop(self.domain.inner.with(|inner| unsafe { inner.waiters.leave(node).1 }));
    }
}
