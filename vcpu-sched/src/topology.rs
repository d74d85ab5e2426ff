//! Which CPUs share a core, a cache, a memory node.
//!
//! Built once at boot (from CPUID, or a simulator's description), read by [`placement`](crate::placement) and
//! [`balance`](crate::balance). The invariant: domains of one kind don't overlap, and each known CPU is in exactly one.
//! What isn't known is told as nothing, not guessed: on a flat machine nobody prefers anybody.

use alloc::vec::Vec;

use crate::cpumask::{CpuMask, MAX_CPUS};
use crate::ids::CpuId;

/// One kind of domain.
#[derive(Clone, Debug, Default)]
struct Domains {
    /// Index into `masks`, by CPU.
    of: Vec<u16>,
    masks: Vec<CpuMask>,
}

impl Domains {
    /// From a number for each CPU: equal numbers, same domain.
    fn new(numbers: impl Iterator<Item = u32>) -> Self {
        let mut known: Vec<u32> = Vec::new();
        let mut this = Self::default();
        for (cpu, number) in numbers.take(MAX_CPUS as usize).enumerate() {
            let at = known.iter().position(|&n| n == number).unwrap_or_else(|| {
                known.push(number);
                this.masks.push(CpuMask::empty());
                known.len() - 1
            });
            this.of.push(at as u16);
            this.masks[at].set(CpuId(cpu as u32));
        }
        this
    }

    fn of(&self, cpu: CpuId) -> Option<&CpuMask> {
        self.masks.get(usize::from(*self.of.get(cpu.index())?))
    }
}

/// Where a CPU sits: numbers that are equal for CPUs that share the thing. Each is unique in the whole machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    /// The physical core.
    pub core: u32,
    /// The last-level cache.
    pub cache: u32,
    /// The memory node.
    pub node: u32,
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    cores: Domains,
    caches: Domains,
    nodes: Domains,
}

impl Topology {
    /// Nothing is known.
    pub const fn flat() -> Self {
        const NONE: Domains = Domains { of: Vec::new(), masks: Vec::new() };
        Self { cores: NONE, caches: NONE, nodes: NONE }
    }

    /// From the seats of CPU 0, 1, 2 and so on. A kind of domain that tells nothing (every CPU alone, or all together) is
    /// left out, so that nobody searches it in vain.
    pub fn new(seats: &[Seat]) -> Self {
        let domains = |number: fn(&Seat) -> u32| {
            let domains = Domains::new(seats.iter().map(number));
            let telling = domains.masks.len() > 1 && domains.masks.len() < domains.of.len();
            if telling { domains } else { Domains::default() }
        };
        Self { cores: domains(|seat| seat.core), caches: domains(|seat| seat.cache), nodes: domains(|seat| seat.node) }
    }

    /// The CPUs of its physical core, itself included, if cores have several.
    #[inline]
    pub fn siblings(&self, cpu: CpuId) -> Option<&CpuMask> {
        self.cores.of(cpu)
    }

    /// The CPUs that share its last-level cache, itself included, if there are several caches.
    #[inline]
    pub fn shared_cache(&self, cpu: CpuId) -> Option<&CpuMask> {
        self.caches.of(cpu)
    }

    /// The CPUs of its memory node, itself included, if there are several nodes.
    #[inline]
    pub fn node(&self, cpu: CpuId) -> Option<&CpuMask> {
        self.nodes.of(cpu)
    }
}
