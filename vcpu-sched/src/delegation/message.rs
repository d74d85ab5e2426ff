//! What the guest tells its agent: the messages, and their form in eight words.
//!
//! The guest encodes, the agent decodes; nobody else touches the form. The invariant: `Message::decode` of any eight
//! words returns a message whose numbers are inside what the types allow, or nothing; whether task and CPU exist is the
//! reader's to check.

use super::abi::message_flags;
use super::layout::{halves, pair};
use crate::ids::{CpuId, Nanos};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What happened. Task messages are below 64.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u16)]
        pub enum MessageType {
            $($(#[$doc])* $name = $number,)*
        }

        impl MessageType {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// By its number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// The task is in the enclave. The first message of each task.
    New = 1,
    /// It may run again.
    Wakeup = 2,
    /// It waits, and is off its CPU.
    Blocked = 3,
    /// It gave way, and is off its CPU.
    Yield = 4,
    /// It had to give way, and is off its CPU.
    Preempt = 5,
    /// It has ended.
    Dead = 6,
    /// It has left the enclave.
    Departed = 7,
    /// It gave its CPU to another and blocked: a chain begins.
    SwitchTo = 8,
    /// It may run on other CPUs than before.
    AffinityChanged = 9,
    /// It has another nice value.
    PriorityChanged = 10,
    /// A latched task runs now (asked for by SEND_TASK_ON_CPU).
    OnCpu = 11,
    /// What was in the pick-next ring could not be latched.
    LatchFailure = 12,
    /// A timer tick.
    Tick = 64,
    /// A timer that the agent armed.
    TimerExpired = 65,
    /// A CPU that was told to idle runs something.
    NotIdle = 66,
    /// No higher class needs the CPU any more.
    Available = 67,
    /// A higher class has the CPU.
    Busy = 68,
    /// The agent there (one in the guest) sleeps.
    AgentBlocked = 69,
    /// The agent there (one in the guest) is awake.
    AgentWakeup = 70,
}

impl MessageType {
    /// Is it about a task?
    pub const fn is_task(self) -> bool {
        (self as u16) < Self::Tick as u16
    }

    /// Does it say that the task is not on a CPU any more, though it was?
    pub const fn is_off_cpu(self) -> bool {
        matches!(self, Self::Blocked | Self::Yield | Self::Preempt | Self::SwitchTo)
    }
}

/// One message. What a kind doesn't use is 0; [`abi::Message`](super::abi::Message) tells what each field means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// What happened.
    pub kind: MessageType,
    /// [`message_flags`].
    pub flags: u16,
    /// The task's status word.
    pub slot: u32,
    /// The task barrier after it, or the agent barrier.
    pub seqnum: u32,
    /// The task.
    pub gtid: u64,
    /// Number of the CPU's history; 0: says nothing of a CPU.
    pub cpu_seqnum: u64,
    /// CPU time of the task.
    pub runtime: Nanos,
    /// When.
    pub time: Nanos,
    /// Where.
    pub cpu: CpuId,
    /// WAKEUP: queued there.
    pub wake_up_cpu: CpuId,
    /// WAKEUP: woken from there.
    pub waker_cpu: CpuId,
    /// Nice value.
    pub nice: i16,
    /// By kind.
    pub extra: u64,
}

/// Words of a message.
pub const WORDS: usize = 8;

impl Message {
    /// A message with nothing but its kind, its time and its CPU.
    pub const fn new(kind: MessageType, cpu: CpuId, time: Nanos) -> Self {
        Self {
            kind,
            flags: 0,
            slot: 0,
            seqnum: 0,
            gtid: 0,
            cpu_seqnum: 0,
            runtime: Nanos::ZERO,
            time,
            cpu,
            wake_up_cpu: CpuId(0),
            waker_cpu: CpuId(0),
            nice: 0,
            extra: 0,
        }
    }

    /// Is that flag set?
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// May the task of a NEW run?
    pub const fn is_runnable(&self) -> bool {
        self.has(message_flags::RUNNABLE)
    }

    /// Its words; the first lacks the position, which is the ring's.
    #[inline]
    pub(super) fn encode(&self) -> [u64; WORDS] {
        let quarters = |a: u32, b: u32, c: u32, d: u16| {
            a as u16 as u64 | (b as u16 as u64) << 16 | (c as u16 as u64) << 32 | (d as u64) << 48
        };
        [
            (self.kind as u64) << 32 | (self.flags as u64) << 48,
            pair(self.slot, self.seqnum),
            self.gtid,
            self.cpu_seqnum,
            self.runtime.0,
            self.time.0,
            quarters(self.cpu.0, self.wake_up_cpu.0, self.waker_cpu.0, self.nice as u16),
            self.extra,
        ]
    }

    /// From its words, of which none need make sense.
    #[inline]
    pub(super) fn decode(words: &[u64; WORDS]) -> Option<Self> {
        let kind = MessageType::from_number((words[0] >> 32) as u16)?;
        let (slot, seqnum) = halves(words[1]);
        let quarter = |n: u32| CpuId((words[6] >> (16 * n)) as u16 as u32);
        Some(Self {
            kind,
            flags: (words[0] >> 48) as u16,
            slot,
            seqnum,
            gtid: words[2],
            cpu_seqnum: words[3],
            runtime: Nanos(words[4]),
            time: Nanos(words[5]),
            cpu: quarter(0),
            wake_up_cpu: quarter(1),
            waker_cpu: quarter(2),
            nice: (words[6] >> 48) as u16 as i16,
            extra: words[7],
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::delegation::abi;
    use core::mem::offset_of;

    fn full(kind: MessageType) -> Message {
        Message {
            kind,
            flags: 0x1234,
            slot: 0x89ab_cdef,
            seqnum: 0x7654_3210,
            gtid: 0x0102_0304_0506_0708,
            cpu_seqnum: 0x1112_1314_1516_1718,
            runtime: Nanos(0x2122_2324_2526_2728),
            time: Nanos(0x3132_3334_3536_3738),
            cpu: CpuId(0x4142),
            wake_up_cpu: CpuId(0x5152),
            waker_cpu: CpuId(0x6162),
            nice: -20,
            extra: 0x7172_7374_7576_7778,
        }
    }

    #[test]
    fn every_kind_comes_back_as_it_went() {
        for &kind in MessageType::ALL {
            let message = full(kind);
            assert_eq!(Message::decode(&message.encode()), Some(message));
            assert_eq!(MessageType::from_number(kind as u16), Some(kind));
        }
        assert_eq!(MessageType::ALL.iter().filter(|kind| kind.is_task()).count(), 12);
        assert_eq!(MessageType::ALL.iter().filter(|kind| !kind.is_task()).count(), 7);
        assert_eq!(Message::decode(&[0; WORDS]), None);
    }

    #[test]
    fn fields_lie_where_the_c_record_has_them() {
        let bytes: std::vec::Vec<u8> =
            full(MessageType::Wakeup).encode().iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = |offset: usize, len: usize| {
            bytes[offset..offset + len].iter().rev().fold(0_u64, |n, &b| n << 8 | u64::from(b))
        };
        assert_eq!(at(offset_of!(abi::Message, kind), 2), 2);
        assert_eq!(at(offset_of!(abi::Message, flags), 2), 0x1234);
        assert_eq!(at(offset_of!(abi::Message, slot), 4), 0x89ab_cdef);
        assert_eq!(at(offset_of!(abi::Message, seqnum), 4), 0x7654_3210);
        assert_eq!(at(offset_of!(abi::Message, gtid), 8), 0x0102_0304_0506_0708);
        assert_eq!(at(offset_of!(abi::Message, cpu_seqnum), 8), 0x1112_1314_1516_1718);
        assert_eq!(at(offset_of!(abi::Message, runtime), 8), 0x2122_2324_2526_2728);
        assert_eq!(at(offset_of!(abi::Message, time), 8), 0x3132_3334_3536_3738);
        assert_eq!(at(offset_of!(abi::Message, cpu), 2), 0x4142);
        assert_eq!(at(offset_of!(abi::Message, wake_up_cpu), 2), 0x5152);
        assert_eq!(at(offset_of!(abi::Message, waker_cpu), 2), 0x6162);
        assert_eq!(at(offset_of!(abi::Message, nice), 2), 0xffec);
        assert_eq!(at(offset_of!(abi::Message, extra), 8), 0x7172_7374_7576_7778);
    }
}
