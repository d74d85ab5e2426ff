//! The atomics of this crate: `core`'s, or loom's in a loom model. Private; the invariant is that nothing else names
//! an atomic type, so that every atomic of the crate is seen by the models.

#[cfg(not(all(test, loom)))]
pub(crate) use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Between two looks at something that another CPU will change.
#[inline(always)]
pub(crate) fn relax() {
    #[cfg(not(all(test, loom)))]
    core::hint::spin_loop();
    #[cfg(all(test, loom))]
    loom::thread::yield_now();
}

/// A constructor that is `const` everywhere but in a loom model, whose atomics must be registered at run time.
macro_rules! const_new {
    ($(#[$meta:meta])* pub const fn new($($arg:ident: $ty:ty),*) -> Self $body:block) => {
        #[cfg(not(all(test, loom)))]
        $(#[$meta])*
        pub const fn new($($arg: $ty),*) -> Self $body

        #[cfg(all(test, loom))]
        $(#[$meta])*
        pub fn new($($arg: $ty),*) -> Self $body
    };
}
pub(crate) use const_new;
