//! Whether a guest's CPUs run what they ran when it was last looked at: cheaper than a [`Snapshot`](super::Snapshot).
//!
//! For a debugger, which stops a guest after each of many short steps. Only of a guest that stands still. Invariant: what can't be read
//! is no pulse, so that whoever compares two of them takes a snapshot.

use vcpu_sched::taskview::{CpuField, GENERATION_AT, HEADER_BYTES, Table, TaskField};

use super::read::Places;
use super::{GuestViewError, Reader};

/// Where to feel it.
#[derive(Debug)]
pub struct Watch {
    places: Places,
    table: Table,
}

/// Everything that a task on no CPU, or a CPU with a task, changes when it changes places. Equal ones: no task has come or gone, none
/// was switched to or from, and none that is on a CPU has got another address space.
#[derive(Debug, PartialEq, Eq)]
pub struct Pulse(Vec<u64>);

impl Reader {
    /// Reads what leads there.
    pub fn watch(&self) -> Result<Watch, GuestViewError> {
        let (directory, told_at) = self.told.get().ok_or(GuestViewError::NoDirectory)?;
        let places = self.places(directory, told_at)?;
        let mut header = [0; HEADER_BYTES];
        self.bytes("task view", places.tasks.ok_or(GuestViewError::NoTasks)?, &mut header)?;
        Ok(Watch { places, table: Table::parse(&header)? })
    }

    /// Feels it; `None`: the guest doesn't tell enough.
    pub fn pulse(&self, watch: &Watch) -> Option<Pulse> {
        let Watch { places, table } = watch;
        let mut word = [0; 8];
        self.bytes("task view", places.tasks?.checked_add(GENERATION_AT as u64)?, &mut word).ok()?;
        let mut words = vec![u64::from_le_bytes(word)];
        let (mut cpu, mut task) = (vec![0; table.cpu_bytes as usize], vec![0; table.task_bytes as usize]);
        for (_, address) in &places.cpus {
            self.bytes("CPU", *address, &mut cpu).ok()?;
            let record = table.cpu(&cpu);
            let current = record.cpu_field(CpuField::Current)?;
            words.extend([current, record.cpu_field(CpuField::Switches)?]);
            if let Some(address) = places.physical(current) {
                self.bytes("task", address, &mut task).ok()?;
                words.push(table.task(&task).task_field(TaskField::Root)?);
            }
        }
        Some(Pulse(words))
    }
}
