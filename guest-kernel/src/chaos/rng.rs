//! The generator of chaos: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014;
//! constants as in Vigna's reference splitmix64.c). One word of state, and every seed is as good as any other, so that each
//! CPU can have a stream of its own. Not for secrets.

use core::sync::atomic::{AtomicU64, Ordering};

/// The odd number that the state grows by: 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes a word so that neighbours have nothing in common.
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// One stream of random words. Used by its own CPU with interrupts off.
pub struct Stream(AtomicU64);

impl Stream {
    /// Not seeded.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Starts the stream of CPU `cpu` for a seed.
    pub fn seed(&self, seed: u64, cpu: u32) {
        self.0.store(mix(seed ^ mix(u64::from(cpu).wrapping_mul(GAMMA))), Ordering::Relaxed);
    }

    /// The next word.
    pub fn next(&self) -> u64 {
        // Relaxed, and no exchange: one CPU, interrupts off.
        let state = self.0.load(Ordering::Relaxed).wrapping_add(GAMMA);
        self.0.store(state, Ordering::Relaxed);
        mix(state)
    }
}
