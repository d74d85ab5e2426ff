//! Plain numbers in shared memory: the fields of a task that only the holder of its run queue's lock touches. Private;
//! the invariant is that nobody synchronises by one of these. They are atomics because tasks are shared and this crate has
//! no `unsafe`; a relaxed load or store is an ordinary move. The lock orders the accesses; a reader without the lock
//! (a report) sees each number whole, but not two of the same moment.
//!
//! They are `core`'s atomics in a loom model too: what a lock guards is not what the models are for.

use core::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

macro_rules! cells {
    ($($(#[$doc:meta])* $name:ident($atomic:ident, $number:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name($atomic);

        impl $name {
            pub(crate) const fn new(value: $number) -> Self {
                Self($atomic::new(value))
            }

            #[inline(always)]
            pub(crate) fn get(&self) -> $number {
                self.0.load(Ordering::Relaxed)
            }

            #[inline(always)]
            pub(crate) fn set(&self, value: $number) {
                self.0.store(value, Ordering::Relaxed);
            }
        }
    )*};
}

cells! {
    U8Cell(AtomicU8, u8);
    U32Cell(AtomicU32, u32);
    U64Cell(AtomicU64, u64);
    I64Cell(AtomicI64, i64);
}
