//! Futures that wait for the same thing, linked through themselves: no memory is asked for. Private to this folder and
//! to [`rcu`](crate::rcu); everything that waits here is a thin coat over it.
//!
//! The invariant: a node is in the list from [`wait`](Waiters::wait) until it was granted or [`leave`](Waiters::leave)
//! took it out, and its future doesn't go before. What was *granted* to a node belongs to its future: one that is
//! dropped with a grant gives it back, and it goes to the next. That is what keeps a cancelled waiter from swallowing a
//! wake-up.

use core::marker::PhantomPinned;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::Waker;

use crate::runtime::owned::Owned;

/// What a list knows of a node. Owned by the lock around the list.
struct Inner {
    prev: Option<NonNull<Node>>,
    next: Option<NonNull<Node>>,
    waker: Option<Waker>,
    /// What the waiter asks for, such as a number of permits.
    wants: usize,
    place: Place,
}

// SAFETY: the pointers are followed with the list's lock held only; the waker may move between threads.
unsafe impl Send for Inner {}

/// Where a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// In no list.
    Outside,
    /// Waits.
    Inside,
    /// Was taken from the list by who gives. Its future hasn't seen it yet.
    Granted,
}

/// The waiting part of a future. Pinned with it: the list points here.
pub(crate) struct Node {
    inner: Owned<Inner>,
    _pinned: PhantomPinned,
}

impl Node {
    pub(crate) fn new() -> Self {
        let inner = Inner { prev: None, next: None, waker: None, wants: 0, place: Place::Outside };
        Self { inner: Owned::new(inner), _pinned: PhantomPinned }
    }
}

/// A list of nodes, first come first served. Lives inside a [`Lock`](crate::runtime::lock::Lock): each method is called
/// with it held, and each waker that one returns is used when it isn't any more.
#[derive(Default)]
pub(crate) struct Waiters {
    first: Option<NonNull<Node>>,
    last: Option<NonNull<Node>>,
}

// SAFETY: nodes are touched with the lock held only, and what they hold (wakers) may move between threads.
unsafe impl Send for Waiters {}

impl Waiters {
    /// # Safety
    /// The lock of this list must be held, and the node must be in it or in none.
    unsafe fn inner<R>(node: NonNull<Node>, f: impl FnOnce(&mut Inner) -> R) -> R {
        // SAFETY: a node in a list is alive (see the module's text), one that is not is the caller's; the lock owns it.
        unsafe { node.as_ref().inner.with(f) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Where a node is.
    ///
    /// # Safety
    /// It must never have been put into another list than this.
    pub(crate) unsafe fn place(&self, node: Pin<&Node>) -> Place {
        // SAFETY: the caller's contract; `self` shows that the lock is held.
        unsafe { Self::inner(NonNull::from(node.get_ref()), |inner| inner.place) }
    }

    /// Puts a node at the end, or gives the one that is in it its newest waker. Returns what must be dropped without
    /// the lock.
    ///
    /// # Safety
    /// As for [`place`](Waiters::place); and before the node goes, [`leave`](Waiters::leave) must be called.
    pub(crate) unsafe fn wait(&mut self, node: Pin<&Node>, wants: usize, waker: &Waker) -> Option<Waker> {
        let node = NonNull::from(node.get_ref());
        let last = self.last;
        // SAFETY: as in `place`.
        let (old, entered) = unsafe {
            Self::inner(node, |inner| {
                let old = match &inner.waker {
                    Some(old) if old.will_wake(waker) => None,
                    _ => inner.waker.replace(waker.clone()),
                };
                let entered = inner.place == Place::Outside;
                if entered {
                    (inner.place, inner.wants, inner.prev, inner.next) = (Place::Inside, wants, last, None);
                }
                (old, entered)
            })
        };
        if entered {
            match last {
                // SAFETY: it is in this list.
                Some(last) => unsafe { Self::inner(last, |inner| inner.next = Some(node)) },
                None => self.first = Some(node),
            }
            self.last = Some(node);
        }
        old
    }

    /// What the first waiter asks for.
    pub(crate) fn wanted(&self) -> Option<usize> {
        // SAFETY: it is in this list.
        self.first.map(|first| unsafe { Self::inner(first, |inner| inner.wants) })
    }

    /// Takes the first waiter out and grants it what it waits for. The waker must be used without the lock.
    pub(crate) fn grant(&mut self) -> Option<Waker> {
        let first = self.first?;
        // SAFETY: it is in this list.
        unsafe { self.unlink(first, Place::Granted) }
    }

    /// Takes the first waiter out and grants it nothing: it looks again.
    pub(crate) fn dismiss(&mut self) -> Option<Waker> {
        let first = self.first?;
        // SAFETY: it is in this list.
        unsafe { self.unlink(first, Place::Outside) }
    }

    /// A future sees its grant, or goes: its node is in no list afterwards. Returns where it was, and what must be
    /// dropped without the lock.
    ///
    /// # Safety
    /// As for [`place`](Waiters::place).
    pub(crate) unsafe fn leave(&mut self, node: Pin<&Node>) -> (Place, Option<Waker>) {
        // SAFETY: the caller's contract.
        let place = unsafe { self.place(node) };
        let node = NonNull::from(node.get_ref());
        let waker = match place {
            // SAFETY: it is in this list.
            Place::Inside => unsafe { self.unlink(node, Place::Outside) },
            // SAFETY: as in `place`.
            _ => unsafe {
                Self::inner(node, |inner| {
                    inner.place = Place::Outside;
                    inner.waker.take()
                })
            },
        };
        (place, waker)
    }

    /// # Safety
    /// The node must be in this list.
    unsafe fn unlink(&mut self, node: NonNull<Node>, to: Place) -> Option<Waker> {
        // SAFETY: node and neighbours are in this list, whose lock is held.
        unsafe {
            let (prev, next, waker) = Self::inner(node, |inner| {
                inner.place = to;
                (inner.prev.take(), inner.next.take(), inner.waker.take())
            });
            match prev {
                Some(prev) => Self::inner(prev, |inner| inner.next = next),
                None => self.first = next,
            }
            match next {
                Some(next) => Self::inner(next, |inner| inner.prev = prev),
                None => self.last = prev,
            }
            waker
        }
    }
}

/// Wakers that are taken out under the lock and used after it, so many at a time.
pub(crate) struct Batch {
    wakers: [Option<Waker>; Self::MAX],
    len: usize,
}

impl Batch {
    const MAX: usize = 16;

    pub(crate) const fn new() -> Self {
        Self { wakers: [const { None }; Self::MAX], len: 0 }
    }

    /// Is there room for one more?
    pub(crate) fn has_room(&self) -> bool {
        self.len < Self::MAX
    }

    pub(crate) fn push(&mut self, waker: Option<Waker>) {
        if let Some(place) = self.wakers.get_mut(self.len) {
            *place = waker;
            self.len += 1;
        }
    }

    pub(crate) fn wake(self) {
        self.wakers.into_iter().flatten().for_each(Waker::wake);
    }
}
