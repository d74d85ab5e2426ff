//! Sets of CPUs that several CPUs look at and change at once, without a lock: one atomic word for each 64.
//!
//! Invariant: a CPU's bit is in one word and no other, so whatever is argued about one CPU ("it sets its bit before it looks") holds
//! as if there were a single word. What is read of several words is not of one moment: it tells of each CPU by itself. Only the
//! words that this machine's CPUs fill are looked at, one on most.

use core::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;

use super::{MAX_CPUS, count};

/// Words of a set that can hold every CPU.
const WORDS: usize = MAX_CPUS / 64;

const _: () = assert!(WORDS.is_power_of_two() && MAX_CPUS == vcpu_sched::cpumask::MAX_CPUS as usize);

/// How many words this machine's CPUs fill.
#[inline(always)]
fn words() -> usize {
    (count() as usize).div_ceil(64)
}

/// The set.
pub struct AtomicCpuSet([AtomicU64; WORDS]);

impl AtomicCpuSet {
    /// No CPU.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    /// Those of a mask.
    pub fn of(mask: &CpuMask) -> Self {
        Self(core::array::from_fn(|i| AtomicU64::new(mask.word(i))))
    }

    /// The words that count.
    #[inline(always)]
    fn used(&self) -> impl Iterator<Item = &AtomicU64> {
        self.0.iter().take(words())
    }

    /// The word that a CPU's bit is in. Numbers are below [`MAX_CPUS`]; the rest of the division only tells the compiler.
    #[inline(always)]
    fn word(&self, id: CpuId) -> &AtomicU64 {
        &self.0[id.index() / 64 % WORDS]
    }

    /// Adds a CPU.
    #[inline(always)]
    pub fn insert(&self, id: CpuId, order: Ordering) {
        self.word(id).fetch_or(bit(id), order);
    }

    /// Takes a CPU out.
    #[inline(always)]
    pub fn remove(&self, id: CpuId, order: Ordering) {
        self.word(id).fetch_and(!bit(id), order);
    }

    /// Is the CPU in it?
    #[inline(always)]
    pub fn contains(&self, id: CpuId, order: Ordering) -> bool {
        self.word(id).load(order) & bit(id) != 0
    }

    /// Takes all out, and calls `act` for each.
    pub fn drain(&self, order: Ordering, mut act: impl FnMut(CpuId)) {
        for (i, word) in (0..).zip(self.used()) {
            let mut left = word.swap(0, order);
            while left != 0 {
                act(CpuId(i * 64 + left.trailing_zeros()));
                left &= left - 1;
            }
        }
    }

    /// Makes it those of a mask, word by word. One writer at a time.
    pub fn replace(&self, mask: &CpuMask, order: Ordering) {
        for (i, word) in self.used().enumerate() {
            word.swap(mask.word(i), order);
        }
    }

    /// As it is now.
    pub fn read(&self, order: Ordering) -> CpuMask {
        CpuMask::from_words(self.used().map(|word| word.load(order)))
    }

    /// Makes it what another one is now, one CPU left out. Whether that leaves any. For sets that one CPU has to itself.
    #[inline(always)]
    pub fn copy_without(&self, from: &Self, id: CpuId) -> bool {
        // Relaxed: nobody else looks at this set, and each bit of the other one is a hint.
        self.set_without(id, from.0.iter().map(|word| word.load(Ordering::Relaxed)))
    }

    /// Makes it all CPUs but one. For sets that one CPU has to itself.
    pub fn fill_without(&self, id: CpuId) {
        self.set_without(id, core::iter::repeat(u64::MAX));
    }

    #[inline(always)]
    fn set_without(&self, id: CpuId, words: impl Iterator<Item = u64>) -> bool {
        let mut any = 0;
        for ((i, to), word) in (0..).zip(self.used()).zip(words) {
            let word = if i == id.0 / 64 { word & !bit(id) } else { word };
            // Relaxed: see `copy_without`.
            to.store(word, Ordering::Relaxed);
            any |= word;
        }
        any != 0
    }

    /// A CPU that is in both.
    #[inline(always)]
    pub fn first_of_both(&self, other: &Self, order: Ordering) -> Option<CpuId> {
        let both = self.used().zip(&other.0).map(|(word, other)| word.load(order) & other.load(Ordering::Relaxed));
        (0..).zip(both).find(|(_, both)| *both != 0).map(|(i, both)| CpuId(i * 64 + both.trailing_zeros()))
    }
}

/// A CPU's bit in its word.
#[inline(always)]
const fn bit(id: CpuId) -> u64 {
    1 << (id.0 % 64)
}
