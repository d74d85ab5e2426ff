//! Status words: what the guest tells of a task or a CPU at any moment.
//!
//! The guest publishes from its private records and never reads back. Barrier and flags share one 64-bit word, written
//! last; the invariant for readers: flags are of the same moment as the barrier beside them, and the other fields at least as new.

use super::layout::{Region, halves, pair};
use crate::ids::{CpuId, Nanos};
use crate::sync::Ordering;

/// What a task's status word says. [`abi::StatusWord`](super::abi::StatusWord) tells what each field means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// The task barrier.
    pub barrier: u32,
    /// [`task_flags`](super::abi::task_flags).
    pub flags: u32,
    /// The task.
    pub gtid: u64,
    /// When it was switched to last.
    pub switch_time: Nanos,
    /// CPU time before that.
    pub runtime: Nanos,
}

/// What a CPU's word says. [`abi::CpuWord`](super::abi::CpuWord) tells what each field means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuStatus {
    /// The agent barrier.
    pub barrier: u32,
    /// [`cpu_flags`](super::abi::cpu_flags).
    pub flags: u32,
    /// The task it runs.
    pub gtid: u64,
    /// Since when.
    pub switch_time: Nanos,
    /// Number of its history.
    pub cpu_seqnum: u64,
    /// Pick-next entries taken.
    pub pick_tail: u64,
}

/// What the hypervisor says of a vCPU. [`abi::HostWord`](super::abi::HostWord) tells what each field means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostStatus {
    /// [`host_flags`](super::abi::host_flags).
    pub flags: u32,
    /// The host CPU.
    pub host_cpu: u32,
    /// Since when.
    pub since: Nanos,
    /// Wanted to run and did not.
    pub stolen: Nanos,
    /// The core it shares.
    pub core: Option<u32>,
}

impl Region<'_> {
    /// Guest: a task's status word. Nothing happens for one that isn't there.
    #[inline]
    pub fn publish_status(&self, slot: u32, status: &Status) {
        if let Some([head, gtid, switch_time, runtime]) = self.status_word(slot) {
            gtid.store(status.gtid, Ordering::Relaxed);
            switch_time.store(status.switch_time.0, Ordering::Relaxed);
            runtime.store(status.runtime.0, Ordering::Relaxed);
            // Release: who sees the barrier sees the rest.
            head.store(pair(status.barrier, status.flags), Ordering::Release);
        }
    }

    /// Agent: a task's status word.
    #[inline]
    pub fn read_status(&self, slot: u32) -> Option<Status> {
        let [head, gtid, switch_time, runtime] = self.status_word(slot)? else { return None };
        let (barrier, flags) = halves(head.load(Ordering::Acquire));
        Some(Status {
            barrier,
            flags,
            gtid: gtid.load(Ordering::Relaxed),
            switch_time: Nanos(switch_time.load(Ordering::Relaxed)),
            runtime: Nanos(runtime.load(Ordering::Relaxed)),
        })
    }

    /// Guest: a CPU's word.
    #[inline]
    pub fn publish_cpu(&self, cpu: CpuId, status: &CpuStatus) {
        if let Some([head, gtid, switch_time, seqnum, pick_tail, ..]) = self.cpu_word(cpu) {
            gtid.store(status.gtid, Ordering::Relaxed);
            switch_time.store(status.switch_time.0, Ordering::Relaxed);
            seqnum.store(status.cpu_seqnum, Ordering::Relaxed);
            pick_tail.store(status.pick_tail, Ordering::Relaxed);
            // Release: as for tasks; and who sees the pick tail through it may write those entries again.
            head.store(pair(status.barrier, status.flags), Ordering::Release);
        }
    }

    /// Agent: a CPU's word.
    #[inline]
    pub fn read_cpu(&self, cpu: CpuId) -> Option<CpuStatus> {
        let [head, gtid, switch_time, seqnum, pick_tail, ..] = self.cpu_word(cpu)? else { return None };
        let (barrier, flags) = halves(head.load(Ordering::Acquire));
        Some(CpuStatus {
            barrier,
            flags,
            gtid: gtid.load(Ordering::Relaxed),
            switch_time: Nanos(switch_time.load(Ordering::Relaxed)),
            cpu_seqnum: seqnum.load(Ordering::Relaxed),
            pick_tail: pick_tail.load(Ordering::Relaxed),
        })
    }

    /// VMM: what the host does with a vCPU.
    pub fn publish_host(&self, cpu: CpuId, status: &HostStatus) {
        if let Some([head, since, stolen, core, ..]) = self.host_word(cpu) {
            since.store(status.since.0, Ordering::Relaxed);
            stolen.store(status.stolen.0, Ordering::Relaxed);
            core.store(status.core.map_or(0, |core| u64::from(core) + 1), Ordering::Relaxed);
            // Release: as for tasks.
            head.store(pair(status.flags, status.host_cpu), Ordering::Release);
        }
    }

    /// Agent: what the host does with a vCPU.
    pub fn read_host(&self, cpu: CpuId) -> Option<HostStatus> {
        let [head, since, stolen, core, ..] = self.host_word(cpu)? else { return None };
        let (flags, host_cpu) = halves(head.load(Ordering::Acquire));
        Some(HostStatus {
            flags,
            host_cpu,
            since: Nanos(since.load(Ordering::Relaxed)),
            stolen: Nanos(stolen.load(Ordering::Relaxed)),
            core: core.load(Ordering::Relaxed).checked_sub(1).map(|core| core as u32),
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::delegation::abi;
    use crate::delegation::layout::{Layout, Sizes};
    use crate::sync::AtomicU64;
    use core::mem::offset_of;
    use std::vec::Vec;

    #[test]
    fn words_come_back_and_lie_where_the_c_records_have_them() {
        let layout = Layout::new(Sizes { cpus: 2, tasks: 2, channels: 1, channel_len: 2, pick_len: 2 }).expect("sizes");
        let words: Vec<AtomicU64> = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        let region = Region::new(&words, layout).expect("long enough");
        let status = Status { barrier: 1, flags: 2, gtid: 3, switch_time: Nanos(4), runtime: Nanos(5) };
        region.publish_status(1, &status);
        assert_eq!((region.read_status(1), region.read_status(2)), (Some(status), None));
        let cpu = CpuStatus { barrier: 1, flags: 2, gtid: 3, switch_time: Nanos(4), cpu_seqnum: 5, pick_tail: 6 };
        region.publish_cpu(CpuId(1), &cpu);
        assert_eq!((region.read_cpu(CpuId(1)), region.read_cpu(CpuId(2))), (Some(cpu), None));
        let host = HostStatus { flags: 1, host_cpu: 2, since: Nanos(3), stolen: Nanos(4), core: Some(0) };
        region.publish_host(CpuId(0), &host);
        assert_eq!((region.read_host(CpuId(0)), region.read_host(CpuId(2))), (Some(host), None));

        let words = |words: Option<&[AtomicU64]>| -> Vec<u64> {
            words.into_iter().flatten().map(|word| word.load(Ordering::Relaxed)).collect()
        };
        assert_eq!(words(region.status_word(1)), [1 | 2 << 32, 3, 4, 5]);
        assert_eq!([offset_of!(abi::StatusWord, gtid), offset_of!(abi::StatusWord, runtime)], [8, 24]);
        assert_eq!(words(region.cpu_word(CpuId(1)))[..5], [1 | 2 << 32, 3, 4, 5, 6]);
        assert_eq!([offset_of!(abi::CpuWord, cpu_seqnum), offset_of!(abi::CpuWord, pick_tail)], [24, 32]);
        assert_eq!(words(region.host_word(CpuId(0)))[..4], [1 | 2 << 32, 3, 4, 1]);
        assert_eq!([offset_of!(abi::HostWord, since), offset_of!(abi::HostWord, core)], [8, 24]);
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::delegation::channel::{Consumer, Producer};
    use crate::delegation::layout::ChannelMemory;
    use crate::delegation::message::{Message, MessageType};
    use crate::sync::AtomicU64;
    use loom::thread;
    use std::rc::Rc;
    use std::vec::Vec;

    /// Status word first, then the message: what an agent knows of a task is never older than the message it acts on. So a
    /// barrier that it takes from a message is refused only if there is a newer message.
    #[test]
    fn loom_a_message_comes_after_the_status_it_tells_of() {
        loom::model(|| {
            // Loom can't have a whole page of atomics; the words that are used, by hand.
            let word = || AtomicU64::new(0);
            let status: Rc<[AtomicU64; 4]> = Rc::new(core::array::from_fn(|_| word()));
            let ring: Rc<(Producer, AtomicU64, AtomicU64, Vec<[AtomicU64; 8]>)> =
                Rc::new((Producer::new(), word(), word(), (0..2).map(|_| core::array::from_fn(|_| word())).collect()));
            fn memory(ring: &(Producer, AtomicU64, AtomicU64, Vec<[AtomicU64; 8]>)) -> ChannelMemory<'_> {
                ChannelMemory { overflow: &ring.1, tail: &ring.2, slots: &ring.3 }
            }
            let guest = thread::spawn({
                let (status, ring) = (status.clone(), ring.clone());
                move || {
                    status[1].store(77, Ordering::Relaxed);
                    status[0].store(pair(1, 5), Ordering::Release);
                    let message = Message { seqnum: 1, ..Message::new(MessageType::Wakeup, CpuId(0), Nanos::ZERO) };
                    ring.0.send(&memory(&ring), &message).expect("room");
                }
            });
            if let Some(message) = Consumer::attach(&memory(&ring)).receive(&memory(&ring)) {
                let (barrier, flags) = halves(status[0].load(Ordering::Acquire));
                assert_eq!((barrier, flags, status[1].load(Ordering::Relaxed)), (message.seqnum, 5, 77));
            }
            guest.join().unwrap();
        });
    }
}
