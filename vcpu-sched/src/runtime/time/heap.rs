//! Those who wait for a time, earliest first: a leftist heap that is linked through the waiting futures, so that to wait asks for no
//! memory. Private to [`time`](super); the invariant: a node is in the heap from [`insert`](Heap::insert) until
//! [`pop_expired`](Heap::pop_expired) or [`remove`](Heap::remove) took it out, and its future doesn't go before.
//!
//! A node's left side is never lower than its right one, so the way down the right sides is short: every operation takes some log n steps
//! at worst, in a timer interrupt too. That is why it is no pairing heap, whose single operations may take n.

use core::marker::PhantomPinned;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::Waker;

use crate::ids::Nanos;
use crate::runtime::owned::Owned;

type Link = Option<NonNull<Node>>;

/// What the heap knows of a node. Owned by the lock around the heap.
struct Inner {
    left: Link,
    right: Link,
    parent: Link,
    /// Nodes on the way down the right sides, itself included.
    rank: u32,
    inside: bool,
    deadline: Nanos,
    /// Which of equal deadlines came first.
    seq: u64,
    waker: Option<Waker>,
}

// SAFETY: the pointers are followed with the heap's lock held only; the waker may move between threads.
unsafe impl Send for Inner {}

/// The waiting part of a future. Pinned with it: the heap points here.
pub(super) struct Node {
    inner: Owned<Inner>,
    _pinned: PhantomPinned,
}

impl Node {
    pub(super) fn new(deadline: Nanos) -> Self {
        let (left, right, parent) = (None, None, None);
        let inner = Inner { left, right, parent, rank: 1, inside: false, deadline, seq: 0, waker: None };
        Self { inner: Owned::new(inner), _pinned: PhantomPinned }
    }
}

/// The heap. Lives inside a [`Lock`](crate::runtime::lock::Lock): each method is called with it held, and each waker that one
/// returns is used or dropped when it isn't any more.
#[derive(Default)]
pub(super) struct Heap {
    root: Link,
    len: usize,
    next_seq: u64,
}

// SAFETY: nodes are touched with the lock held only, and what they hold (wakers) may move between threads.
unsafe impl Send for Heap {}

/// # Safety
/// The lock of the node's heap must be held, and the node must be in it or in none; `f` must not come here again for the same node.
unsafe fn with<R>(node: NonNull<Node>, f: impl FnOnce(&mut Inner) -> R) -> R {
    // SAFETY: a node in a heap is alive (see the module's text), one that is not is the caller's; the lock owns it.
    unsafe { node.as_ref().inner.with(f) }
}

/// # Safety
/// As for [`with`].
unsafe fn rank(link: Link) -> u32 {
    // SAFETY: this function's contract.
    link.map_or(0, |node| unsafe { with(node, |inner| inner.rank) })
}

/// # Safety
/// As for [`with`].
unsafe fn set_parent(link: Link, parent: Link) {
    if let Some(node) = link {
        // SAFETY: this function's contract.
        unsafe { with(node, |inner| inner.parent = parent) };
    }
}

/// Turns a node's sides so that the left one is no lower; true if its rank has changed.
///
/// # Safety
/// As for [`with`], the node's neighbours included.
unsafe fn settle(node: NonNull<Node>) -> bool {
    // SAFETY: this function's contract.
    unsafe {
        let (left, right, before) = with(node, |inner| (inner.left, inner.right, inner.rank));
        let (left_rank, right_rank) = (rank(left), rank(right));
        with(node, |inner| {
            if left_rank < right_rank {
                core::mem::swap(&mut inner.left, &mut inner.right);
            }
            inner.rank = left_rank.min(right_rank) + 1;
            inner.rank != before
        })
    }
}

/// Makes one heap of two, both of which are roots; the result's parent is not set. As deep as both right sides are long.
///
/// # Safety
/// As for [`with`], all nodes of both included.
unsafe fn meld(a: Link, b: Link) -> Link {
    let (Some(a), Some(b)) = (a, b) else { return a.or(b) };
    // SAFETY: this function's contract.
    unsafe {
        let key = |node| with(node, |inner| (inner.deadline, inner.seq));
        let (first, second) = if key(a) <= key(b) { (a, b) } else { (b, a) };
        let right = meld(with(first, |inner| inner.right), Some(second));
        set_parent(right, Some(first));
        with(first, |inner| inner.right = right);
        settle(first);
        Some(first)
    }
}

impl Heap {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// When the first one's time comes.
    pub(super) fn next_deadline(&self) -> Option<Nanos> {
        // SAFETY: it is in this heap.
        self.root.map(|root| unsafe { with(root, |inner| inner.deadline) })
    }

    /// Puts a node in, or gives the one that is in its newest waker. Tells whether it has come in as the first of all, and
    /// what must be dropped without the lock.
    ///
    /// # Safety
    /// The node must never have been put into another heap than this; and before it goes, [`remove`](Heap::remove) must be called.
    pub(super) unsafe fn insert(&mut self, node: Pin<&Node>, waker: &Waker) -> (bool, Option<Waker>) {
        let node = NonNull::from(node.get_ref());
        let seq = self.next_seq;
        // SAFETY: this function's contract.
        let (entered, old) = unsafe {
            with(node, |inner| {
                let old = match &inner.waker {
                    Some(old) if old.will_wake(waker) => None,
                    _ => inner.waker.replace(waker.clone()),
                };
                let entered = !inner.inside;
                if entered {
                    (inner.left, inner.right, inner.parent) = (None, None, None);
                    (inner.rank, inner.inside, inner.seq) = (1, true, seq);
                }
                (entered, old)
            })
        };
        if !entered {
            return (false, old);
        }
        self.next_seq += 1;
        self.len += 1;
        // SAFETY: all are in this heap now.
        unsafe {
            self.root = meld(self.root, Some(node));
            set_parent(self.root, None);
        }
        (self.root == Some(node), old)
    }

    /// Takes the first one out if its time is not after `now`; its waker, which must be used without the lock.
    pub(super) fn pop_expired(&mut self, now: Nanos) -> Option<Option<Waker>> {
        let root = self.root?;
        // SAFETY: it is in this heap.
        unsafe { (with(root, |inner| inner.deadline) <= now).then(|| self.unlink(root)) }
    }

    /// A future goes: its node is in no heap afterwards. Returns what must be dropped without the lock.
    ///
    /// # Safety
    /// As for [`insert`](Heap::insert).
    pub(super) unsafe fn remove(&mut self, node: Pin<&Node>) -> Option<Waker> {
        let node = NonNull::from(node.get_ref());
        // SAFETY: this function's contract.
        unsafe {
            if with(node, |inner| inner.inside) { self.unlink(node) } else { with(node, |inner| inner.waker.take()) }
        }
    }

    /// # Safety
    /// The node must be in this heap.
    unsafe fn unlink(&mut self, node: NonNull<Node>) -> Option<Waker> {
        self.len -= 1;
        // SAFETY: node and neighbours are in this heap, whose lock is held.
        unsafe {
            let (left, right, parent, waker) = with(node, |inner| {
                inner.inside = false;
                (inner.left.take(), inner.right.take(), inner.parent.take(), inner.waker.take())
            });
            let rest = meld(left, right);
            set_parent(rest, parent);
            match parent {
                None => self.root = rest,
                Some(parent) => with(parent, |inner| {
                    let side = if inner.left == Some(node) { &mut inner.left } else { &mut inner.right };
                    *side = rest;
                }),
            }
            // What is above may be lopsided now, as far up as ranks change.
            let mut at = parent;
            while let Some(above) = at
                && settle(above)
            {
                at = with(above, |inner| inner.parent);
            }
            waker
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::pin::Pin;
    use core::task::Waker;
    use std::boxed::Box;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Walks the whole heap: order, ranks, parents; returns how many nodes it has.
    fn check(link: Link, parent: Link, least: (Nanos, u64)) -> usize {
        let Some(node) = link else { return 0 };
        // SAFETY: single thread, and all nodes of the test live in boxes.
        unsafe {
            let (left, right, above, own, key) =
                with(node, |i| (i.left, i.right, i.parent, i.rank, (i.deadline, i.seq)));
            assert_eq!(above, parent);
            assert!(key >= least);
            assert!(rank(left) >= rank(right) && own == rank(right) + 1);
            1 + check(left, link, key) + check(right, link, key)
        }
    }

    proptest! {
        /// Whatever goes in, comes out and is taken out: the heap gives what an ordered set of the same gives, and keeps its form.
        #[test]
        fn it_gives_what_an_ordered_set_gives(steps in proptest::collection::vec((0..4u8, 0..40u64), 1..300)) {
            let mut heap = Heap::default();
            let mut nodes: Vec<Pin<Box<Node>>> = Vec::new();
            let mut model = BTreeSet::new();
            for (what, number) in steps {
                match what {
                    0 | 1 => {
                        let node = Box::pin(Node::new(Nanos(number)));
                        let first = model.first().is_none_or(|(deadline, _)| Nanos(number) < *deadline);
                        // SAFETY: boxed, and taken out below.
                        let (is_first, _) = unsafe { heap.insert(node.as_ref(), Waker::noop()) };
                        prop_assert_eq!(is_first, first);
                        model.insert((Nanos(number), nodes.len()));
                        nodes.push(node);
                    }
                    2 if !nodes.is_empty() => {
                        let which = number as usize % nodes.len();
                        let node = &nodes[which];
                        // SAFETY: it was only ever in this heap.
                        _ = unsafe { heap.remove(node.as_ref()) };
                        model.retain(|(_, at)| *at != which);
                    }
                    _ => {
                        let popped = heap.pop_expired(Nanos(number)).is_some();
                        let due = model.first().is_some_and(|(deadline, _)| deadline.0 <= number);
                        prop_assert_eq!(popped, due);
                        if due {
                            let (_, which) = model.pop_first().unwrap();
                            // SAFETY: single thread.
                            let inside = unsafe { with(NonNull::from(nodes[which].as_ref().get_ref()), |i| i.inside) };
                            prop_assert!(!inside);
                        }
                    }
                }
                prop_assert_eq!(check(heap.root, None, (Nanos(0), 0)), model.len());
                prop_assert_eq!(heap.len(), model.len());
                prop_assert_eq!(heap.next_deadline(), model.first().map(|(deadline, _)| *deadline));
            }
            for node in &nodes {
                // SAFETY: as above.
                _ = unsafe { heap.remove(node.as_ref()) };
            }
            prop_assert_eq!(heap.len(), 0);
        }
    }
}
