//! The mailbox in guest memory, and which of its slots are in use. Only [`super`] uses it, with its lock held.

use std::sync::atomic::AtomicU32;

use vcpu_sched::directory::EntryKind;
use vcpu_sched::requests::head::{ANSWER_AT, AnswerHead, BODY_AT, HEAD_BYTES, REQUEST_AT, RequestHead, WORD_AT};
use vcpu_sched::requests::slot::SlotWord;
use vcpu_sched::requests::{HEADER_BYTES, Header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::RequestError;
use crate::guestview::Reader;
use crate::memory::Ram;

/// What we know of a slot; its word is the guest's as much as ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Free,
    /// Somebody waits for its answer.
    Asked,
    /// Nobody waits any more; the guest has it still.
    Left,
}

/// A mailbox that was found and checked.
#[derive(Debug)]
pub struct Region {
    base: u64,
    header: Header,
    slots: Vec<Use>,
}

impl Region {
    /// Looks into the guest's directory.
    pub fn find(reader: &Reader, ram: &Ram) -> Result<Self, RequestError> {
        let entries = reader.entries(EntryKind::Mailbox)?;
        let entry = entries.first().ok_or(RequestError::NoMailbox)?;
        let mut bytes = [0; HEADER_BYTES];
        ram.read_slice(&mut bytes, GuestAddress(entry.address)).map_err(outside)?;
        // Ours from here on: what the guest writes there later changes nothing.
        let header = Header::parse(&bytes)?;
        let fits = entry.address % 64 == 0 && entry.address.checked_add(header.region_bytes()).is_some();
        if !fits {
            return Err(RequestError::Broken("it isn't aligned, or wraps around"));
        }
        Ok(Self { base: entry.address, header, slots: vec![Use::Free; header.slots as usize] })
    }

    /// As a test's guest knows it.
    #[cfg(test)]
    pub fn find_at(base: u64, header: Header) -> Self {
        Self { base, header, slots: Vec::new() }
    }

    /// Who gets the interrupt.
    pub fn apic_id(&self) -> u32 {
        self.header.apic_id
    }

    fn at(&self, slot: u32, offset: u64) -> GuestAddress {
        GuestAddress(self.base + self.header.slot_at(slot) + offset)
    }

    /// Bytes that a body may have. A header's slots have a page at least.
    pub fn room(&self) -> usize {
        self.header.slot_bytes as usize - BODY_AT as usize
    }

    fn set(&mut self, slot: u32, to: Use) {
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            *slot = to;
        }
    }

    /// Does something with a slot's word.
    pub(super) fn with_word<T>(
        &self,
        ram: &Ram,
        slot: u32,
        act: impl FnOnce(&SlotWord) -> T,
    ) -> Result<T, RequestError> {
        let place = ram.get_slice(self.at(slot, WORD_AT), size_of::<SlotWord>()).map_err(outside)?;
        let word = place.get_atomic_ref::<AtomicU32>(0).map_err(|_| RequestError::Broken("a word isn't aligned"))?;
        // SAFETY: SlotWord is a transparent AtomicU32, which the reference is one of.
        Ok(act(unsafe { &*std::ptr::from_ref(word).cast::<SlotWord>() }))
    }

    /// A slot for a request. Slots that were left to the guest and have been answered since are free again.
    pub fn claim(&mut self, ram: &Ram) -> Option<u32> {
        let left = self.slots.iter().enumerate().filter(|(_, used)| **used == Use::Left).map(|(slot, _)| slot as u32);
        let released = |slot: &u32| self.with_word(ram, *slot, SlotWord::release).unwrap_or(false);
        for slot in left.filter(released).collect::<Vec<_>>() {
            self.set(slot, Use::Free);
        }
        let slot = self.slots.iter().position(|used| *used == Use::Free)? as u32;
        self.set(slot, Use::Asked);
        Some(slot)
    }

    /// The slot was claimed and nothing was posted in it.
    pub fn give_back(&mut self, slot: u32) {
        self.set(slot, Use::Free);
    }

    /// Writes a request into a claimed slot, for the guest to take.
    pub fn post(&mut self, ram: &Ram, slot: u32, head: &RequestHead, body: &[u8]) -> Result<(), RequestError> {
        let max = self.room();
        if body.len() > max {
            return Err(RequestError::TooLong { bytes: body.len(), max });
        }
        ram.write_slice(&head.to_bytes(), self.at(slot, REQUEST_AT)).map_err(outside)?;
        ram.write_slice(body, self.at(slot, BODY_AT)).map_err(outside)?;
        match self.with_word(ram, slot, SlotWord::post)? {
            true => Ok(()),
            false => Err(RequestError::Broken("it says that a free slot isn't")),
        }
    }

    /// Whether the answer is there.
    pub fn is_answered(&self, ram: &Ram, slot: u32) -> Result<bool, RequestError> {
        self.with_word(ram, slot, SlotWord::is_answered)
    }

    /// Takes the answer, and gives the slot back.
    pub fn answer(&mut self, ram: &Ram, slot: u32) -> Result<(AnswerHead, Vec<u8>), RequestError> {
        let answer = self.read_answer(ram, slot);
        let released = self.with_word(ram, slot, SlotWord::release)?;
        self.set(slot, if released { Use::Free } else { Use::Left });
        answer
    }

    fn read_answer(&self, ram: &Ram, slot: u32) -> Result<(AnswerHead, Vec<u8>), RequestError> {
        let mut bytes = [0; HEAD_BYTES];
        ram.read_slice(&mut bytes, self.at(slot, ANSWER_AT)).map_err(outside)?;
        let head = AnswerHead::from_bytes(&bytes);
        let len = head.len as usize;
        if len > self.room() {
            return Err(RequestError::Broken("its answer is longer than a slot"));
        }
        let mut body = vec![0; len];
        ram.read_slice(&mut body, self.at(slot, BODY_AT)).map_err(outside)?;
        Ok((head, body))
    }

    /// Nobody waits for the answer any more. True: the guest has not seen the request, and won't.
    pub fn withdraw(&mut self, ram: &Ram, slot: u32) -> bool {
        let unseen = self.with_word(ram, slot, SlotWord::withdraw).unwrap_or(false);
        self.set(slot, if unseen { Use::Free } else { Use::Left });
        unseen
    }
}

fn outside<E>(_: E) -> RequestError {
    RequestError::Broken("it lies where the guest has no memory")
}
