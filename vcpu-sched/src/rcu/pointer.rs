//! A pointer that readers follow without a lock, and that updaters replace. Anyone may use it; the invariant is one of
//! types: what is read lives as long as the guard, and the pointer is read *inside* the guard, since `load` asks for
//! one.

use alloc::boxed::Box;
use core::ptr::NonNull;

use super::callbacks::{Callback, Head};
use super::domain::{Backlog, Domain, Guard, RcuPlatform};
use crate::sync::{AtomicPtr, Ordering};

/// A value, with room for the link by which it waits to be freed.
#[repr(C)]
struct Node<T> {
    head: Head,
    value: T,
}

impl<T> Node<T> {
    fn new(value: T) -> *mut Self {
        unsafe fn free<T>(head: NonNull<Head>) {
            // SAFETY: the head of a node of this type, which is freed once.
            drop(unsafe { Box::from_raw(head.cast::<Node<T>>().as_ptr()) });
        }
        Box::into_raw(Box::new(Self { head: Head::new(free::<T>), value }))
    }
}

/// See the module's text. Without a guard it can't be read, and what was read doesn't outlive the guard:
/// ```compile_fail,E0061
/// # fn f<P: vcpu_sched::rcu::RcuPlatform>(pointer: &vcpu_sched::rcu::RcuPointer<u32, P>) {
/// pointer.load();
/// # }
/// ```
/// ```compile_fail,E0505
/// # use vcpu_sched::rcu::{Domain, RcuPlatform, RcuPointer};
/// # fn f<P: RcuPlatform>(domain: &'static Domain<P>, pointer: &RcuPointer<u32, P>) {
/// let guard = domain.read();
/// let value = pointer.load(&guard);
/// drop(guard);
/// assert_eq!(*value, 0);
/// # }
/// ```
/// ```
/// # use vcpu_sched::rcu::{Domain, RcuPlatform, RcuPointer};
/// # fn f<P: RcuPlatform>(domain: &'static Domain<P>, pointer: &RcuPointer<u32, P>) {
/// let guard = domain.read();
/// assert_eq!(*pointer.load(&guard), 0);
/// # }
/// ```
/// What it points to is dropped by [`Domain::run_callbacks`], after the last reader.
pub struct RcuPointer<T: Send + Sync + 'static, P: RcuPlatform> {
    domain: &'static Domain<P>,
    node: AtomicPtr<Node<T>>,
}

impl<T: Send + Sync + 'static, P: RcuPlatform> RcuPointer<T, P> {
    /// Points to a value whose readers are guarded by `domain`.
    pub fn new(domain: &'static Domain<P>, value: T) -> Self {
        Self { domain, node: AtomicPtr::new(Node::new(value)) }
    }

    /// The value, as long as the guard is there.
    ///
    /// # Panics
    /// If the guard is another domain's: it would guard nothing.
    #[inline]
    pub fn load<'g>(&'g self, guard: &'g Guard<'_, P>) -> &'g T {
        assert!(core::ptr::eq(guard.domain(), self.domain), "a guard of another domain");
        // Acquire: what the value was made of is seen through it.
        let node = self.node.load(Ordering::Acquire);
        // SAFETY: never null. It is freed in a callback that was deferred after it was replaced, and so runs after this
        // guard, which began before the load, has gone.
        unsafe { &(*node).value }
    }

    /// Puts another value in its place. Readers that are there see the old one, which is freed when they have gone.
    pub fn replace(&self, value: T) -> Backlog {
        // Release: the new value is complete for whoever loads it. Acquire: the old one is ours, as its maker left it.
        let old = self.node.swap(Node::new(value), Ordering::AcqRel);
        // SAFETY: no longer reachable by those who come.
        unsafe { self.retire(old) }
    }

    /// # Safety
    /// The node must have been taken out of `self.node`, and be the caller's.
    unsafe fn retire(&self, node: *mut Node<T>) -> Backlog {
        let Some(head) = NonNull::new(node.cast::<Head>()) else { return Backlog::Room };
        // SAFETY: a node begins with its head, `free` can end it anywhere since `T: Send`, and it is ours but for
        // readers, who go before it is run.
        self.domain.defer(unsafe { Callback::from_raw(head) })
    }
}

impl<T: Send + Sync + 'static, P: RcuPlatform> Drop for RcuPointer<T, P> {
    fn drop(&mut self) {
        // What was loaded borrows the pointer too, so nobody reads; but whoever drops it may stand where values must
        // not be dropped, so it goes the same way. Acquire: the value as its maker left it.
        let node = self.node.load(Ordering::Acquire);
        // SAFETY: nobody can load it any more.
        _ = unsafe { self.retire(node) };
    }
}
