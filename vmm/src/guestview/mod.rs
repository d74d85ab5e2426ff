//! The guest's CPUs and tasks, read from its memory while it runs.
//!
//! The report of a failure, the control socket and `top` ask; [`Reader::snapshot`] answers. The guest's part is described in
//! `vcpu_sched::taskview` and docs/abi.md. Invariants: nothing here stops or slows the guest; whatever its memory holds,
//! reading it ends after a bounded amount of work with a list or an error, never with a panic; what is printed from it holds
//! no control characters.

pub mod pulse;
mod read;
mod task;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use vcpu_sched::directory::{Directory, DirectoryError, Entry, EntryKind, MAX_TABLE};
use vcpu_sched::taskview::ViewError;
use vm_memory::{Bytes, GuestAddress};

pub use self::task::{Cpu, Task, TaskState};
use crate::memory::Ram;

/// Tasks that a snapshot holds at most; more are counted as left out.
pub const MAX_TASKS: usize = 1 << 17;
/// CPUs that a snapshot holds at most.
pub const MAX_CPUS: usize = 1024;
/// A list that changes while it is read is read this often at most.
const TRIES: u32 = 4;
/// Directory tables that are followed at most.
const MAX_TABLES: usize = 4;

/// Why there is nothing to see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestViewError {
    /// The guest has written nothing to the directory port.
    #[error("the guest shows no tasks: its kernel isn't Taskvisor's own, or hasn't come that far")]
    NoDirectory,
    /// A structure lies outside of the guest's memory.
    #[error("the guest says that its {what} is at {address:#x}, where it has no memory")]
    Outside {
        /// What was looked for.
        what: &'static str,
        /// Guest-physical address.
        address: u64,
    },
    /// The directory page.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The task view's header.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The directory lists no tasks.
    #[error("the guest's directory lists no tasks")]
    NoTasks,
}

/// The host's TSC.
fn host_ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux leaves it open to programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Where the guest's directory is, once the guest has told. Shared by whoever hears it and all [`Reader`]s.
#[derive(Debug, Default)]
pub struct Told {
    /// Guest-physical address plus one; 0: nothing yet.
    address: AtomicU64,
    /// The host's TSC when it was told.
    at: AtomicU64,
}

impl Told {
    /// The guest has written this page number to the directory port.
    pub fn set(&self, page: u32) {
        self.at.store(host_ticks(), Ordering::Relaxed);
        // Release: a reader that finds the address finds the time that goes with it.
        self.address.store((u64::from(page) << 12) + 1, Ordering::Release);
    }

    /// Whether it has.
    pub fn is_there(&self) -> bool {
        self.get().is_some()
    }

    /// Address and time.
    fn get(&self) -> Option<(u64, u64)> {
        let address = self.address.load(Ordering::Acquire).checked_sub(1)?;
        Some((address, self.at.load(Ordering::Relaxed)))
    }
}

/// How guest time is told from outside: the guest's TSC is the host's plus an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct GuestClock {
    /// Frequency in kHz; 0: not known.
    khz: u64,
    /// Guest's minus host's TSC, modulo 2^64; `None`: the guest doesn't tell.
    offset: Option<u64>,
}

impl GuestClock {
    /// The guest's TSC now.
    fn ticks(&self) -> Option<u64> {
        self.offset.map(|offset| host_ticks().wrapping_add(offset))
    }

    /// Ticks as nanoseconds.
    fn nanos(&self, ticks: u64) -> u64 {
        if self.khz == 0 {
            return 0;
        }
        u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(self.khz)).unwrap_or(u64::MAX)
    }
}

/// What the guest's CPUs and tasks were at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// CPUs by number.
    pub cpus: Vec<Cpu>,
    /// Tasks in the order of the guest's list.
    pub tasks: Vec<Task>,
    /// The list changed under every attempt: some tasks may be missing, or have ended meanwhile.
    pub torn: bool,
    /// Tasks that exist but aren't in `tasks`.
    pub left_out: u64,
}

impl Snapshot {
    /// What a CPU runs.
    pub fn current(&self, cpu: u32) -> Option<&Task> {
        let id = self.cpus.iter().find(|c| c.index == cpu)?.current?;
        self.tasks.iter().find(|task| task.id == id)
    }
}

/// The directory on a page, with the tables that it leads to. Works on a copy; entries are the guest's word.
pub fn directory(ram: &Ram, page: u32) -> Result<Directory, GuestViewError> {
    Reader::new(ram.clone(), Arc::default(), 0).directory(u64::from(page) << 12)
}

/// Reads one guest's memory.
#[derive(Debug, Clone)]
pub struct Reader {
    ram: Ram,
    told: Arc<Told>,
    tsc_khz: u64,
}

impl Reader {
    /// For this memory. `tsc_khz`: the frequency of the guest's TSC, 0 if it isn't known.
    pub fn new(ram: Ram, told: Arc<Told>, tsc_khz: u32) -> Self {
        Self { ram, told, tsc_khz: tsc_khz.into() }
    }

    /// All CPUs and tasks.
    pub fn snapshot(&self) -> Result<Snapshot, GuestViewError> {
        let (directory, told_at) = self.told.get().ok_or(GuestViewError::NoDirectory)?;
        let places = self.places(directory, told_at)?;
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let (snapshot, whole) = self.read(&places)?;
            if whole || tries == 0 {
                return Ok(Snapshot { torn: !whole, ..snapshot });
            }
        }
    }

    /// Entries of one kind in the guest's directory.
    pub fn entries(&self, kind: EntryKind) -> Result<Vec<Entry>, GuestViewError> {
        let (directory, _) = self.told.get().ok_or(GuestViewError::NoDirectory)?;
        let entries = self.directory(directory)?.entries;
        Ok(entries.into_iter().filter(|entry| entry.kind == kind as u32).collect())
    }

    /// Reads the directory and the tables that it leads to.
    fn directory(&self, address: u64) -> Result<Directory, GuestViewError> {
        let mut page = [0; vcpu_sched::directory::PAGE];
        self.bytes("directory", address, &mut page)?;
        let Directory { header, mut entries } = Directory::parse(&page)?;
        let (mut tables, mut next) = (0, 0);
        while let Some(entry) = entries.get(next).copied() {
            next += 1;
            if entry.kind == EntryKind::More as u32 && tables < MAX_TABLES {
                tables += 1;
                let mut bytes = vec![0; (entry.len as usize).min(MAX_TABLE)];
                self.bytes("directory", entry.address, &mut bytes)?;
                let (more, _) = bytes.as_chunks();
                entries.extend(more.iter().map(Entry::from_bytes));
            }
        }
        Ok(Directory { header, entries })
    }

    /// What of it a snapshot needs.
    fn places(&self, directory: u64, told_at: u64) -> Result<read::Places, GuestViewError> {
        let Directory { header, entries } = self.directory(directory)?;
        let offset = (header.tsc != 0).then(|| header.tsc.wrapping_sub(told_at));
        let clock = GuestClock { khz: self.tsc_khz, offset };
        let mut places = read::Places::new(header.direct_map, clock);
        for entry in entries {
            if entry.kind == EntryKind::Cpu as u32 {
                places.add_cpu(entry.index, entry.address);
            } else if entry.kind == EntryKind::Tasks as u32 {
                places.tasks = Some(entry.address);
            }
        }
        Ok(places)
    }

    /// What the guest shows for debuggers: where its area is, and the virtual address of a user task's saved registers
    /// (`vcpu_sched::taskdebug`). Unchecked.
    pub fn debug_places(&self) -> Option<Entry> {
        self.entries(EntryKind::Debug).ok()?.first().copied()
    }

    fn bytes(&self, what: &'static str, address: u64, to: &mut [u8]) -> Result<(), GuestViewError> {
        self.ram.read_slice(to, GuestAddress(address)).map_err(|_| GuestViewError::Outside { what, address })
    }
}
