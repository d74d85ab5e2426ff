//! The rings that a guest's directory lists, one a CPU at most.
//!
//! Only the recorder uses this, under its lock. A directory is the guest's word: what is wrong with it is told once, and what is
//! right is used.

use std::fmt;

use taskvisor_devices::trace_ring::{Drained, RingError, TraceRing};
use vcpu_sched::directory::{Directory, DirectoryError, ENTRY_BYTES, Entry, EntryKind, MAX_TABLE, PAGE};
use vcpu_sched::events::{Kind, Record};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::Stream;
use crate::memory::Ram;

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryReadError {
    /// Not in RAM.
    #[error("the guest's directory can't be read: {0}")]
    Memory(#[from] GuestMemoryError),
    /// Not a directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// See the module's text.
pub struct Rings {
    /// By CPU.
    rings: Vec<Option<TraceRing>>,
    /// What each ring begins with: a recording that begins later repeats it.
    openings: Vec<Vec<Record>>,
}

/// A ring begins with so many records that tell what it is: clock, the idle task's name, the CPU's coming.
const OPENING: usize = 3;

impl fmt::Debug for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.rings.iter().flatten()).finish()
    }
}

impl Rings {
    /// None yet, for `cpus` CPUs at most.
    pub fn new(cpus: u32) -> Self {
        Self { rings: (0..cpus).map(|_| None).collect(), openings: vec![Vec::new(); cpus as usize] }
    }

    /// Opens the rings that the directory on `page` lists, but for CPUs that have one. Returns the guest's TSC at the time.
    ///
    /// # Errors
    /// [`DirectoryReadError`]: there is no directory.
    pub fn open(&mut self, ram: &Ram, page: u32) -> Result<u64, DirectoryReadError> {
        let mut bytes = [0; PAGE];
        ram.read_slice(&mut bytes, GuestAddress(u64::from(page) * PAGE as u64))?;
        let directory = Directory::parse(&bytes)?;
        for entry in &directory.entries {
            if entry.kind == EntryKind::More as u32 {
                let mut bytes = vec![0; (entry.len as usize).min(MAX_TABLE)];
                ram.read_slice(&mut bytes, GuestAddress(entry.address))?;
                let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
                entries.iter().for_each(|bytes| self.add(ram, &Entry::from_bytes(bytes)));
            } else {
                self.add(ram, entry);
            }
        }
        Ok(directory.header.tsc)
    }

    fn add(&mut self, ram: &Ram, entry: &Entry) {
        if entry.kind != EntryKind::TraceRing as u32 {
            return;
        }
        match self.rings.get_mut(entry.index as usize) {
            Some(slot @ None) => match TraceRing::open(ram, entry) {
                Ok(ring) => *slot = Some(ring),
                Err(error) => log::warn!("trace ring of CPU {}: {error}; it isn't read", entry.index),
            },
            Some(Some(_)) => {}
            None => log::warn!("trace ring of CPU {}, which doesn't exist; it isn't read", entry.index),
        }
    }

    /// Opens the ring of a CPU at an address that the guest names, if that CPU has none yet. Returns whether it is one that is drained.
    ///
    /// # Errors
    /// [`RingError`]: there is no ring.
    pub fn open_at(&mut self, ram: &Ram, cpu: u32, address: u64) -> Result<bool, RingError> {
        let Some(slot) = self.rings.get_mut(cpu as usize) else { return Ok(false) };
        if slot.is_none() {
            // The ring's own size is checked against the guest's memory.
            let entry = Entry { kind: EntryKind::TraceRing as u32, index: cpu, address, len: u64::MAX, extra: 0 };
            *slot = Some(TraceRing::open(ram, &entry)?);
        }
        Ok(slot.as_ref().is_some_and(|ring| !ring.overwrites()))
    }

    /// What the rings began with, by CPU; nothing for those that there aren't.
    pub fn openings(&self) -> impl Iterator<Item = (Stream, &[Record])> {
        let stream = |cpu| Stream { cpu, vmm: false };
        (0..)
            .zip(&self.openings)
            .filter(|(_, first)| !first.is_empty())
            .map(move |(cpu, f)| (stream(cpu), f.as_slice()))
    }

    /// What has come into the rings, looking at that of CPU `first` first.
    pub fn drain(&mut self, ram: &Ram, first: Option<u32>) -> Vec<(Stream, Vec<Record>)> {
        let others = (0..self.rings.len() as u32).filter(|cpu| Some(*cpu) != first);
        let order = first.into_iter().chain(others);
        let mut all: Vec<_> = order.map(|cpu| self.read(cpu, |ring, out| ring.drain(ram, out))).collect();
        all.retain(|(_, records)| !records.is_empty());
        all
    }

    /// The records of rings that overwrite. All CPUs have stopped.
    pub fn last(&mut self, ram: &Ram) -> Vec<(Stream, Vec<Record>)> {
        let overwriting = |ring: &Option<TraceRing>| ring.as_ref().is_some_and(TraceRing::overwrites);
        let cpus: Vec<u32> =
            (0_u32..).zip(&self.rings).filter(|(_, ring)| overwriting(ring)).map(|(cpu, _)| cpu).collect();
        cpus.into_iter().map(|cpu| self.read(cpu, |ring, out| ring.last(ram, out))).collect()
    }

    fn read(
        &mut self,
        cpu: u32,
        read: impl FnOnce(&mut TraceRing, &mut Vec<Record>) -> Result<Drained, RingError>,
    ) -> (Stream, Vec<Record>) {
        let mut records = Vec::new();
        let stream = Stream { cpu, vmm: false };
        let Some(slot) = self.rings.get_mut(cpu as usize) else { return (stream, records) };
        let Some(ring) = slot else { return (stream, records) };
        let outcome = read(ring, &mut records);
        if let Some(opening) = self.openings.get_mut(cpu as usize).filter(|opening| opening.is_empty()) {
            opening.extend(records.iter().take(OPENING));
        }
        match outcome {
            Ok(Drained { lost: 0 }) => {}
            Ok(Drained { lost }) => {
                // The ring was full of what has just been read when they were lost.
                let tsc = records.last().map_or(0, |r| r.tsc);
                records.push(Record { tsc, kind: Kind::Lost as u8, a: lost, ..Record::default() });
            }
            Err(error) => {
                log::warn!("trace ring of CPU {cpu}: {error}; it is read no more");
                *slot = None;
            }
        }
        (stream, records)
    }
}
