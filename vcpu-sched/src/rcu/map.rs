//! Values by number, which readers find without a lock: chains of nodes, as many as the map was made with. Anyone may read
//! inside a guard; who changes the map takes its lock. The invariant: a node that was taken out goes on pointing to what it
//! pointed to, and lives until the readers of that moment have gone.

use alloc::boxed::Box;
use core::ptr::{self, NonNull};

use super::callbacks::{Callback, Head};
use super::domain::{Backlog, Domain, Guard, RcuPlatform};
use crate::runtime::lock::Lock;
use crate::sync::{AtomicPtr, Ordering};

/// A value in its chain, with room for the link by which it waits to be freed.
#[repr(C)]
struct Node<T> {
    head: Head,
    next: AtomicPtr<Node<T>>,
    key: u32,
    value: T,
}

impl<T> Node<T> {
    /// # Safety
    /// `head` must be that of a boxed node of this type that nobody uses any more.
    unsafe fn free(head: NonNull<Head>) {
        // SAFETY: this function's contract; the head is the first field.
        drop(unsafe { Box::from_raw(head.cast::<Self>().as_ptr()) });
    }
}

/// See the module's text.
pub struct RcuMap<T: Send + Sync + 'static, P: RcuPlatform> {
    domain: &'static Domain<P>,
    chains: Box<[AtomicPtr<Node<T>>]>,
    /// Held by who changes a chain.
    writer: Lock<(), P::Lock>,
}

impl<T: Send + Sync + 'static, P: RcuPlatform> RcuMap<T, P> {
    /// Empty, of so many chains, at least one. Numbers that follow one another lie in different ones.
    pub fn new(domain: &'static Domain<P>, chains: usize) -> Self {
        let chains = (0..chains.max(1)).map(|_| AtomicPtr::new(ptr::null_mut())).collect();
        Self { domain, chains, writer: Lock::new(()) }
    }

    fn chain(&self, key: u32) -> &AtomicPtr<Node<T>> {
        &self.chains[key as usize % self.chains.len()]
    }

    /// The node with this number, and the link that points to it.
    ///
    /// # Safety
    /// A guard must be held, or the writers' lock, for as long as the result is used.
    unsafe fn find(&self, key: u32) -> Option<(&AtomicPtr<Node<T>>, &Node<T>)> {
        let mut link = self.chain(key);
        loop {
            // Acquire: what the node was made of is seen through the link. SAFETY: a node that could be reached when the guard began, or
            // with the lock held, is freed after that.
            let node = unsafe { link.load(Ordering::Acquire).as_ref() }?;
            if node.key == key {
                return Some((link, node));
            }
            link = &node.next;
        }
    }

    /// The value with this number, as long as the guard is there.
    ///
    /// # Panics
    /// If the guard is another domain's: it would guard nothing.
    #[inline]
    pub fn get<'g>(&'g self, guard: &'g Guard<'_, P>, key: u32) -> Option<&'g T> {
        self.check(guard);
        // SAFETY: the guard.
        unsafe { self.find(key) }.map(|(_, node)| &node.value)
    }

    fn check(&self, guard: &Guard<'_, P>) {
        assert!(ptr::eq(guard.domain(), self.domain), "a guard of another domain");
    }

    /// Shows all values to `f`, chain by chain from that of `from` on, until it gives something. What comes or goes meanwhile may be
    /// seen or not.
    pub fn find_map<'g, O>(
        &'g self,
        guard: &'g Guard<'_, P>,
        from: u32,
        mut f: impl FnMut(u32, &'g T) -> Option<O>,
    ) -> Option<O> {
        self.check(guard);
        let (before, after) = self.chains.split_at(from as usize % self.chains.len());
        for chain in after.iter().chain(before) {
            // Acquire, and SAFETY: as in `find`, with the guard.
            let mut at = unsafe { chain.load(Ordering::Acquire).as_ref() };
            while let Some(node) = at {
                if let Some(found) = f(node.key, &node.value) {
                    return Some(found);
                }
                // Acquire, and SAFETY: as above.
                at = unsafe { node.next.load(Ordering::Acquire).as_ref() };
            }
        }
        None
    }

    /// Adds a value.
    ///
    /// # Errors
    /// The value, if there is one with its number already.
    pub fn insert(&self, key: u32, value: T) -> Result<(), T> {
        let (next, head) = (AtomicPtr::new(ptr::null_mut()), Head::new(Node::<T>::free));
        let node = Box::new(Node { head, next, key, value });
        let refused = self.writer.with(|()| {
            // SAFETY: the lock is held.
            if unsafe { self.find(key) }.is_some() {
                return Some(node);
            }
            let first = self.chain(key);
            // Relaxed: changed with the lock held only.
            node.next.store(first.load(Ordering::Relaxed), Ordering::Relaxed);
            // Release: who finds the node finds it whole.
            first.store(Box::into_raw(node), Ordering::Release);
            None
        });
        refused.map_or(Ok(()), |node| Err(node.value))
    }

    /// Takes a value out and shows it to `f` once more: readers may have it still, so it can't be had. It is dropped when they have
    /// gone. `None` if there is none with this number.
    pub fn remove<O>(&self, key: u32, f: impl FnOnce(&T) -> O) -> Option<(O, Backlog)> {
        let node = self.writer.with(|()| {
            // SAFETY: the lock is held.
            let (link, node) = unsafe { self.find(key) }?;
            // Relaxed: changed with the lock held only. Release: as in `insert`, for the next one.
            link.store(node.next.load(Ordering::Relaxed), Ordering::Release);
            Some(NonNull::from(node))
        })?;
        // SAFETY: ours, but for readers, who only look.
        let output = f(&unsafe { node.as_ref() }.value);
        // SAFETY: a node begins with its head, was boxed, and no reader that comes can reach it.
        Some((output, self.domain.defer(unsafe { Callback::from_raw(node.cast()) })))
    }
}

impl<T: Send + Sync + 'static, P: RcuPlatform> Drop for RcuMap<T, P> {
    fn drop(&mut self) {
        for chain in &self.chains {
            // Acquire: as its makers left it.
            let mut at = chain.load(Ordering::Acquire);
            while let Some(node) = NonNull::new(at) {
                // SAFETY: what was got borrows the map, so nobody reads; the nodes in it are ours.
                unsafe {
                    at = node.as_ref().next.load(Ordering::Acquire);
                    Node::<T>::free(node.cast());
                }
            }
        }
    }
}
