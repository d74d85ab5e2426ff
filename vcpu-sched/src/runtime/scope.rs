//! Tasks that end with whoever started them. Used by services that spawn on behalf of one request; the invariant: when
//! [`scope`] gives its output, all tasks of the scope are dead.
//!
//! # A scope that is leaked
//! A scope that lent its tasks the memory of its own future would need its destructor to run: leak the future and the
//! tasks write to memory that is somebody else's. Nothing here rests on a destructor. The tasks of a scope own what
//! they use (`'static`, share it by `Arc`), so a scope that is leaked leaves tasks that simply go on, and its handles'
//! memory. A scope that is dropped cancels its tasks: those that are being polled on another CPU at that moment are
//! dropped when that poll returns, which may be after the scope is gone, and is harmless for the same reason.

use alloc::vec::Vec;
use core::future::Future;

use super::executor::Runtime;
use super::join::JoinHandle;
use super::lock::Lock;
use super::platform::Platform;

/// The tasks of one scope.
pub struct Scope<P: Platform> {
    runtime: &'static Runtime<P>,
    tasks: Lock<Vec<JoinHandle<()>>, P::Lock>,
}

impl<P: Platform> Scope<P> {
    /// Starts a task of this scope. It may be given a reference-counted handle of something, but no borrow.
    #[track_caller]
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let handle = self.runtime.spawn(future);
        let ended = self.tasks.with(|tasks| {
            // Those that have ended go before the list grows, so it holds twice the living at most.
            let ended = if tasks.len() == tasks.capacity() {
                let (ended, living) = core::mem::take(tasks).into_iter().partition(JoinHandle::is_finished);
                *tasks = living;
                ended
            } else {
                Vec::new()
            };
            tasks.push(handle);
            ended
        });
        drop(ended);
    }

    /// Waits for all tasks, those included that tasks start meanwhile.
    async fn join(&self) {
        while let Some(task) = self.tasks.with(Vec::pop) {
            // Cancelled is ended too.
            _ = task.await;
        }
    }
}

/// Gives `f` a scope, waits for `f` and then for all tasks that it started in it.
///
/// Dropped before that, it cancels them.
pub async fn scope<P: Platform, T>(runtime: &'static Runtime<P>, f: impl AsyncFnOnce(&Scope<P>) -> T) -> T {
    let scope = Scope { runtime, tasks: Lock::new(Vec::new()) };
    let output = f(&scope).await;
    scope.join().await;
    output
}
