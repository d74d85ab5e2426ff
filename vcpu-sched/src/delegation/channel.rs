//! Channels: rings of messages from any number of the guest's CPUs to one agent.
//!
//! [`Producer`] is the guest's, shared by its CPUs, in its private memory; [`Consumer`] the agent's, one for each channel. The
//! invariants: a message is read once, in the order in which places were claimed; one that finds no room is counted and
//! nothing else is lost.
//!
//! # Who may believe what
//! The producer's head is private. The consumer's tail is private too, and only told to the producer, who takes one that
//! makes no sense (ahead of the head, or more than a ring behind) for a full ring: a consumer that lies gets no messages. The
//! consumer copies a slot once, and takes it for a message only if its position is the one it waits for; a producer that lies
//! makes it read nonsense, or nothing.
//!
//! # The order
//! - A producer claims place `n` by compare-and-swap of the head, once the tail shows that `n - len` was read. The tail is read
//!   with acquire, so that what we write comes after the consumer's copy was made.
//! - It writes seven words, then the first with release. The consumer reads the first with acquire, so it sees the rest.
//! - Wrong would be: the consumer sees the first word of a lap ago. It can't take it for the new one, because the position is in it.
//! - A producer that stands still between claim and first word (its vCPU is preempted) holds up those behind it, not other channels.

use super::layout::ChannelMemory;
use super::message::{Message, WORDS};
use crate::sync::{AtomicU64, Ordering};

/// The message was lost, because the ring is full. It has been counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overflow;

/// The guest's end of a channel. See the module's text.
#[derive(Debug)]
pub struct Producer {
    head: AtomicU64,
    lost: AtomicU64,
}

impl Default for Producer {
    fn default() -> Self {
        Self::new()
    }
}

impl Producer {
    /// Of a channel in fresh memory.
    pub fn new() -> Self {
        Self { head: AtomicU64::new(0), lost: AtomicU64::new(0) }
    }

    /// Appends a message.
    ///
    /// # Errors
    /// [`Overflow`].
    #[inline]
    pub fn send(&self, memory: &ChannelMemory<'_>, message: &Message) -> Result<(), Overflow> {
        let len = memory.slots.len() as u64;
        // Relaxed: only claims its place; the slot's words are ordered by tail and first word.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // Acquire: the consumer's copy of the slot's last content was made before.
            let tail = memory.tail.load(Ordering::Acquire);
            let waiting = head.wrapping_sub(tail);
            if waiting >= len {
                // A head that was old looks like a tail from the future; with a fresh one it is the truth.
                let now = self.head.load(Ordering::Relaxed);
                if now != head {
                    head = now;
                    continue;
                }
                // Relaxed: a count. Published as a copy, so that scribbling there changes nothing here.
                let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
                memory.overflow.store(lost, Ordering::Relaxed);
                return Err(Overflow);
            }
            match self.head.compare_exchange_weak(head, head + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        let Some(slot) = memory.slots.get((head & (len - 1)) as usize) else { return Err(Overflow) };
        let words = message.encode();
        for (to, word) in slot.iter().zip(words).skip(1) {
            to.store(word, Ordering::Relaxed);
        }
        // Release: see the module's text.
        slot[0].store(words[0] | position(head), Ordering::Release);
        Ok(())
    }

    /// How many messages find room now, at least as long as nobody else sends.
    pub fn room(&self, memory: &ChannelMemory<'_>) -> u64 {
        let waiting = self.head.load(Ordering::Relaxed).wrapping_sub(memory.tail.load(Ordering::Acquire));
        (memory.slots.len() as u64).saturating_sub(waiting)
    }

    /// Messages that found no room, since the beginning.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// What the low half of a message's first word says at place `n`. Zeroed memory is nobody's first message.
const fn position(n: u64) -> u64 {
    (n as u32).wrapping_add(1) as u64
}

/// The agent's end of a channel. See the module's text.
#[derive(Debug, Default)]
pub struct Consumer {
    tail: u64,
    told: u64,
    overflow: u64,
    nonsense: u64,
}

impl Consumer {
    /// Of an agent that reads from the beginning, or follows another: continues at the tail that stands in memory.
    pub fn attach(memory: &ChannelMemory<'_>) -> Self {
        let tail = memory.tail.load(Ordering::Acquire);
        Self { tail, told: tail, overflow: memory.overflow.load(Ordering::Relaxed), nonsense: 0 }
    }

    /// Takes the next message. Ends of reading are told to the guest by [`Consumer::release`], which should come after a few
    /// of them: each telling moves a cache line.
    #[inline]
    pub fn receive(&mut self, memory: &ChannelMemory<'_>) -> Option<Message> {
        loop {
            let slot = memory.slots.get((self.tail & (memory.slots.len() as u64 - 1)) as usize)?;
            // Acquire: the producer wrote this word last.
            let first = slot[0].load(Ordering::Acquire);
            if first as u32 as u64 != position(self.tail) {
                return None;
            }
            let mut words = [first; WORDS];
            for (word, from) in words.iter_mut().zip(slot).skip(1) {
                *word = from.load(Ordering::Relaxed);
            }
            self.tail += 1;
            if let Some(message) = Message::decode(&words) {
                return Some(message);
            }
            self.nonsense += 1;
        }
    }

    /// Tells the guest what has been read.
    #[inline]
    pub fn release(&mut self, memory: &ChannelMemory<'_>) {
        if self.told != self.tail {
            self.told = self.tail;
            // Release: our copies were made before the producer may write there again.
            memory.tail.store(self.tail, Ordering::Release);
        }
    }

    /// How many messages have been lost since the last call.
    pub fn overflowed(&mut self, memory: &ChannelMemory<'_>) -> u64 {
        let now = memory.overflow.load(Ordering::Relaxed);
        let lost = now.wrapping_sub(self.overflow);
        self.overflow = now;
        lost
    }

    /// Slots that were no messages.
    pub const fn nonsense(&self) -> u64 {
        self.nonsense
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::delegation::message::MessageType;
    use crate::ids::{CpuId, Nanos};
    use std::vec::Vec;

    struct Memory {
        overflow: AtomicU64,
        tail: AtomicU64,
        slots: Vec<[AtomicU64; WORDS]>,
    }

    impl Memory {
        fn new(len: usize) -> Self {
            let zero = || AtomicU64::new(0);
            Self { overflow: zero(), tail: zero(), slots: (0..len).map(|_| core::array::from_fn(|_| zero())).collect() }
        }

        fn view(&self) -> ChannelMemory<'_> {
            ChannelMemory { overflow: &self.overflow, tail: &self.tail, slots: &self.slots }
        }
    }

    fn message(n: u64) -> Message {
        Message { extra: n, ..Message::new(MessageType::Tick, CpuId(1), Nanos(5)) }
    }

    #[test]
    fn messages_come_in_order_and_what_finds_no_room_is_counted() {
        let memory = Memory::new(4);
        let (producer, mut consumer) = (Producer::new(), Consumer::attach(&memory.view()));
        let mut sent = 0;
        let mut read = 0;
        for round in 0..20 {
            while producer.send(&memory.view(), &message(sent)).is_ok() {
                sent += 1;
            }
            assert_eq!(sent - read, 4, "the whole ring is used");
            assert_eq!((producer.lost(), consumer.overflowed(&memory.view())), (round + 1, 1));
            for _ in 0..=round % 4 {
                assert_eq!(consumer.receive(&memory.view()), Some(message(read)));
                read += 1;
            }
            consumer.release(&memory.view());
        }
        while let Some(got) = consumer.receive(&memory.view()) {
            assert_eq!(got, message(read));
            read += 1;
        }
        assert_eq!(read, sent);
    }

    #[test]
    fn the_next_agent_goes_on_where_the_last_one_stopped() {
        let memory = Memory::new(8);
        let (producer, mut first) = (Producer::new(), Consumer::attach(&memory.view()));
        (0..3).for_each(|n| producer.send(&memory.view(), &message(n)).expect("room"));
        assert_eq!(first.receive(&memory.view()), Some(message(0)));
        first.release(&memory.view());
        assert_eq!(Consumer::attach(&memory.view()).receive(&memory.view()), Some(message(1)));
    }

    #[test]
    fn a_tail_that_lies_gets_nothing() {
        let memory = Memory::new(4);
        let producer = Producer::new();
        for lie in [1, 5, u64::MAX, 1 << 63] {
            memory.tail.store(lie, Ordering::Relaxed);
            assert_eq!(producer.send(&memory.view(), &message(0)).is_err(), lie != u64::MAX, "{lie}");
        }
    }

    #[test]
    fn nonsense_is_counted_and_skipped() {
        let memory = Memory::new(4);
        let mut consumer = Consumer::attach(&memory.view());
        memory.slots[0][0].store(position(0) | 99 << 32, Ordering::Relaxed);
        assert_eq!((consumer.receive(&memory.view()), consumer.nonsense()), (None, 1));
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::delegation::message::MessageType;
    use crate::ids::{CpuId, Nanos};
    use loom::thread;
    use std::rc::Rc;
    use std::vec::Vec;

    struct Shared {
        producer: Producer,
        overflow: AtomicU64,
        tail: AtomicU64,
        slots: Vec<[AtomicU64; WORDS]>,
    }

    impl Shared {
        fn new(len: usize) -> Rc<Self> {
            let zero = || AtomicU64::new(0);
            let slots = (0..len).map(|_| core::array::from_fn(|_| zero())).collect();
            Rc::new(Self { producer: Producer::new(), overflow: zero(), tail: zero(), slots })
        }

        fn view(&self) -> ChannelMemory<'_> {
            ChannelMemory { overflow: &self.overflow, tail: &self.tail, slots: &self.slots }
        }

        fn send(&self, n: u32) -> bool {
            let message =
                Message { seqnum: n, extra: n.into(), ..Message::new(MessageType::Tick, CpuId(0), Nanos::ZERO) };
            self.producer.send(&self.view(), &message).is_ok()
        }
    }

    /// Whole, and its two numbers of the same moment.
    fn number(message: Message) -> u32 {
        assert_eq!(u64::from(message.seqnum), message.extra, "half a message");
        message.seqnum
    }

    #[test]
    fn loom_two_cpus_send_and_nothing_is_torn_lost_or_read_twice() {
        loom::model(|| {
            let shared = Shared::new(2);
            let other = thread::spawn({
                let shared = shared.clone();
                move || shared.send(1)
            });
            assert!(shared.send(2), "there is room for both");
            let mut consumer = Consumer::attach(&shared.view());
            let mut got: Vec<u32> = core::iter::from_fn(|| consumer.receive(&shared.view())).map(number).collect();
            assert!(other.join().unwrap());
            got.extend(core::iter::from_fn(|| consumer.receive(&shared.view())).map(number));
            got.sort_unstable();
            assert_eq!(got, [1, 2]);
        });
    }

    #[test]
    fn loom_a_full_ring_is_written_over_only_after_it_was_read() {
        loom::model(|| {
            let shared = Shared::new(2);
            assert!(shared.send(1) && shared.send(2));
            let guest = thread::spawn({
                let shared = shared.clone();
                move || shared.send(3)
            });
            let mut consumer = Consumer::attach(&shared.view());
            assert_eq!(consumer.receive(&shared.view()).map(number), Some(1));
            consumer.release(&shared.view());
            assert_eq!(consumer.receive(&shared.view()).map(number), Some(2));
            let third = guest.join().unwrap();
            assert_eq!(consumer.receive(&shared.view()).map(number), third.then_some(3));
            assert_eq!(shared.producer.lost(), u64::from(!third));
        });
    }
}
