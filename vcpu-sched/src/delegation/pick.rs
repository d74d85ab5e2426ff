//! Pick-next rings: tasks that the agent leaves ready for a CPU, to be taken when it would idle.
//!
//! One ring for each CPU; the agent writes ([`Filler`]), the CPU takes ([`Taker`]). The invariant: a CPU takes each entry at most
//! once, and what it takes is only a proposal, checked like any commit; so an entry that has become stale costs a look.

use super::layout::{Region, halves, pair};
use crate::ids::CpuId;
use crate::sync::Ordering;

/// A task that may be run. [`abi::PickEntry`](super::abi::PickEntry).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its status word.
    pub slot: u32,
    /// The task barrier seen.
    pub task_barrier: u32,
    /// The task.
    pub gtid: u64,
}

/// The guest's end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taker {
    tail: u64,
}

impl Taker {
    /// Entries taken, to be published in the CPU's word.
    pub const fn tail(self) -> u64 {
        self.tail
    }

    /// Takes the next entry. A head that makes no sense is taken for an empty ring, from which one goes on.
    pub fn take(&mut self, region: &Region<'_>, cpu: CpuId) -> Option<Entry> {
        let (head, entries) = region.pick_ring(cpu)?;
        // Acquire: the entries up to it.
        let head = head.load(Ordering::Acquire);
        let there = head.wrapping_sub(self.tail);
        if there == 0 {
            return None;
        }
        if there > entries.len() as u64 {
            self.tail = head;
            return None;
        }
        let [first, gtid] = entries.get((self.tail & (entries.len() as u64 - 1)) as usize)?;
        let (slot, task_barrier) = halves(first.load(Ordering::Relaxed));
        let entry = Entry { slot, task_barrier, gtid: gtid.load(Ordering::Relaxed) };
        self.tail = self.tail.wrapping_add(1);
        Some(entry)
    }
}

/// The agent's end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filler {
    head: u64,
}

impl Filler {
    /// Of an agent that may follow another: continues where that one stopped.
    pub fn attach(region: &Region<'_>, cpu: CpuId) -> Self {
        Self { head: region.pick_ring(cpu).map_or(0, |(head, _)| head.load(Ordering::Relaxed)) }
    }

    /// Puts an entry at the end. False: no room (or no such CPU).
    pub fn put(&mut self, region: &Region<'_>, cpu: CpuId, entry: &Entry) -> bool {
        let (Some((head, entries)), Some(status)) = (region.pick_ring(cpu), region.read_cpu(cpu)) else { return false };
        // The status was read with acquire: what we write over was copied before. A tail from the future means a full ring.
        if self.head.wrapping_sub(status.pick_tail) >= entries.len() as u64 {
            return false;
        }
        let Some([first, gtid]) = entries.get((self.head & (entries.len() as u64 - 1)) as usize) else { return false };
        first.store(pair(entry.slot, entry.task_barrier), Ordering::Relaxed);
        gtid.store(entry.gtid, Ordering::Relaxed);
        self.head = self.head.wrapping_add(1);
        // Release: the entry.
        head.store(self.head, Ordering::Release);
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::delegation::layout::{Layout, Sizes};
    use crate::delegation::status::CpuStatus;
    use crate::sync::AtomicU64;
    use std::vec::Vec;

    #[test]
    fn entries_come_in_order_and_a_lying_head_only_loses_them() {
        let layout = Layout::new(Sizes { cpus: 2, tasks: 1, channels: 1, channel_len: 2, pick_len: 4 }).expect("sizes");
        let words: Vec<AtomicU64> = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        let region = Region::new(&words, layout).expect("long enough");
        let cpu = CpuId(1);
        let (mut filler, mut taker) = (Filler::attach(&region, cpu), Taker::default());
        let entry = |n: u32| Entry { slot: n, task_barrier: n + 1, gtid: u64::from(n) + 2 };
        for round in 0..5 {
            for n in 0..4 {
                assert!(filler.put(&region, cpu, &entry(round * 4 + n)));
            }
            assert!(!filler.put(&region, cpu, &entry(99)), "full");
            for n in 0..4 {
                assert_eq!(taker.take(&region, cpu), Some(entry(round * 4 + n)));
            }
            assert_eq!(taker.take(&region, cpu), None);
            region.publish_cpu(cpu, &CpuStatus { pick_tail: taker.tail(), ..CpuStatus::default() });
        }
        let (head, _) = region.pick_ring(cpu).expect("it is there");
        for lie in [0, 19, 25, u64::MAX] {
            head.store(lie, Ordering::Relaxed);
            assert_eq!(taker.take(&region, cpu), None, "{lie}");
            assert_eq!(taker.tail(), lie, "one goes on from there");
        }
        assert!(!filler.put(&region, CpuId(2), &entry(0)));
    }
}
