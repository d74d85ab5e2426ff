//! What is to be done when a period is over: lists linked through what is to be freed, so that freeing asks for no
//! memory. Used by [`Domain`](super::Domain) under a lock; the invariant: a callback runs once, after the period its
//! cookie names, in the order in which they came.

use alloc::boxed::Box;
use core::ptr::{self, NonNull};

use super::grace::{Cookie, Periods};

/// The link in what waits. The first field of its allocation.
pub(super) struct Head {
    next: *mut Head,
    run: unsafe fn(NonNull<Head>),
}

/// Something that waits. Owned by who has this; dropping it leaks, [`Callback::run`] ends it.
#[must_use = "a callback that isn't run is leaked"]
pub(super) struct Callback(NonNull<Head>);

/// A closure with its link.
#[repr(C)]
struct Deferred<F> {
    head: Head,
    f: F,
}

impl Head {
    pub(super) const fn new(run: unsafe fn(NonNull<Self>)) -> Self {
        Self { next: ptr::null_mut(), run }
    }
}

impl Callback {
    /// # Safety
    /// `head` must begin an allocation that `head.run` can end from any thread, and it must be the caller's alone.
    pub(super) const unsafe fn from_raw(head: NonNull<Head>) -> Self {
        Self(head)
    }

    /// Calls a closure.
    pub(super) fn of(f: impl FnOnce() + Send + 'static) -> Self {
        fn make<F: FnOnce()>(f: F) -> NonNull<Head> {
            unsafe fn run<F: FnOnce()>(head: NonNull<Head>) {
                // SAFETY: made by `make` of the same type, and run once.
                let deferred = unsafe { Box::from_raw(head.cast::<Deferred<F>>().as_ptr()) };
                (deferred.f)();
            }
            NonNull::from(Box::leak(Box::new(Deferred { head: Head::new(run::<F>), f }))).cast()
        }
        Self(make(f))
    }

    /// Does it.
    pub(super) fn run(self) {
        // SAFETY: it is ours, and ends here.
        unsafe { (self.0.as_ref().run)(self.0) }
    }
}

/// A list of callbacks.
#[derive(Debug)]
pub(super) struct List {
    first: *mut Head,
    last: *mut Head,
    len: usize,
}

// SAFETY: it owns what is in it, and that may be ended by any thread (see `Callback`).
unsafe impl Send for List {}

impl List {
    pub(super) const fn new() -> Self {
        Self { first: ptr::null_mut(), last: ptr::null_mut(), len: 0 }
    }

    fn push(&mut self, callback: Callback) {
        let head = callback.0.as_ptr();
        match NonNull::new(self.last) {
            // SAFETY: what is in the list is ours.
            Some(mut last) => unsafe { last.as_mut().next = head },
            None => self.first = head,
        }
        self.last = head;
        self.len += 1;
    }

    fn append(&mut self, other: &mut Self) {
        let other = core::mem::replace(other, Self::new());
        match NonNull::new(self.last) {
            None => *self = other,
            Some(_) if other.len == 0 => {}
            Some(mut last) => {
                // SAFETY: what is in the list is ours.
                unsafe { last.as_mut().next = other.first };
                self.last = other.last;
                self.len += other.len;
            }
        }
    }

    /// Takes the first `limit` out.
    fn split_to(&mut self, limit: usize) -> Self {
        let mut taken = Self::new();
        while taken.len < limit
            && let Some(callback) = self.next()
        {
            taken.push(callback);
        }
        taken
    }
}

impl Iterator for List {
    type Item = Callback;

    fn next(&mut self) -> Option<Callback> {
        let mut first = NonNull::new(self.first)?;
        // SAFETY: what is in the list is ours.
        self.first = core::mem::replace(unsafe { &mut first.as_mut().next }, ptr::null_mut());
        if self.first.is_null() {
            self.last = ptr::null_mut();
        }
        self.len -= 1;
        Some(Callback(first))
    }
}

/// One CPU's callbacks. At any time there are at most two cookies that are not over: that of the running period and
/// that of the next, so two lists beside the one of what may run are enough.
#[derive(Debug)]
pub(super) struct Callbacks {
    ripe: List,
    waiting: [(Cookie, List); 2],
}

impl Callbacks {
    pub(super) const fn new() -> Self {
        Self { ripe: List::new(), waiting: [(Cookie(0), List::new()), (Cookie(0), List::new())] }
    }

    /// Adds one that waits for `cookie`, which `periods` has just given.
    pub(super) fn push(&mut self, callback: Callback, cookie: Cookie, periods: &Periods) {
        self.ripen(periods);
        let [first, second] = &mut self.waiting;
        let list = if first.1.len == 0 || first.0 == cookie { first } else { second };
        debug_assert!(list.1.len == 0 || list.0 == cookie, "a third cookie that isn't over");
        list.0 = cookie;
        list.1.push(callback);
    }

    /// Takes up to `limit` out that may run.
    pub(super) fn take(&mut self, limit: usize, periods: &Periods) -> List {
        self.ripen(periods);
        self.ripe.split_to(limit)
    }

    fn ripen(&mut self, periods: &Periods) {
        for _ in 0..2 {
            let [first, second] = &mut self.waiting;
            if first.1.len != 0 && periods.is_over(first.0) {
                self.ripe.append(&mut first.1);
            }
            // The older one is always the first.
            if first.1.len == 0 {
                core::mem::swap(first, second);
            }
        }
    }
}
