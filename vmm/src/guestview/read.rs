//! From the guest's lists to a [`Snapshot`]: one pass over chunks, tasks and CPUs.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{Ordering, fence};

use vcpu_sched::cpumask::{self, CpuMask};
use vcpu_sched::ids::CpuId;
use vcpu_sched::taskview::{CHUNK_BYTES, CpuField, GENERATION_AT, HEADER_BYTES, Table, TaskField};

use super::{Cpu, GuestClock, GuestViewError, MAX_CPUS, MAX_TASKS, Reader, Snapshot, Task};

/// Where the guest keeps what is read, as its directory says.
#[derive(Debug)]
pub struct Places {
    direct_map: u64,
    clock: GuestClock,
    /// Guest-physical address of the task view's header.
    pub tasks: Option<u64>,
    /// Number and guest-physical address.
    pub(super) cpus: Vec<(u32, u64)>,
}

impl Places {
    /// Nothing is known but where the direct map begins, and the time.
    pub fn new(direct_map: u64, clock: GuestClock) -> Self {
        Self { direct_map, clock, tasks: None, cpus: Vec::new() }
    }

    /// Another CPU; one that is listed already, or too many, are left out.
    pub fn add_cpu(&mut self, index: u32, address: u64) {
        if self.cpus.len() < MAX_CPUS && self.cpus.iter().all(|(known, _)| *known != index) {
            self.cpus.push((index, address));
        }
    }

    /// The CPUs there are, as far as a task's affinity tells of them. With none listed nothing is known, and all may be there.
    fn present(&self) -> CpuMask {
        let known = self.cpus.iter().map(|(index, _)| CpuId(*index)).filter(|cpu| cpu.0 < cpumask::MAX_CPUS);
        let present: CpuMask = known.collect();
        if present.is_empty() { CpuMask::full(cpumask::MAX_CPUS) } else { present }
    }

    /// A pointer of the guest kernel as guest-physical address; `None` if it can't be one.
    pub(super) fn physical(&self, pointer: u64) -> Option<u64> {
        let address = pointer.checked_sub(self.direct_map)?;
        (address % 8 == 0 && pointer != 0).then_some(address)
    }
}

impl Reader {
    /// One pass. The second result says whether the list held still meanwhile.
    pub(super) fn read(&self, places: &Places) -> Result<(Snapshot, bool), GuestViewError> {
        let at = places.tasks.ok_or(GuestViewError::NoTasks)?;
        let mut header = [0; HEADER_BYTES];
        self.bytes("task view", at, &mut header)?;
        let table = Table::parse(&header)?;
        // Acquire, as all fences here: the lists are read between the two looks at the generation.
        fence(Ordering::Acquire);

        let (now, present) = (places.clock.ticks(), places.present());
        let monotonic = self.monotonic(places, &table)?;
        let (pointers, left_out) = self.pointers(&table)?;
        let mut by_pointer = HashMap::with_capacity(pointers.len());
        let mut tasks = Vec::with_capacity(pointers.len());
        let mut buffer = vec![0; table.task_bytes as usize];
        let mut take = |pointer: u64, tasks: &mut Vec<Task>| {
            if let Some(index) = by_pointer.get(&pointer) {
                return Some(*index);
            }
            let address = places.physical(pointer)?;
            self.bytes("task", address, &mut buffer).ok()?;
            let task = Task::read(table.task(&buffer), address, &places.clock, &present, monotonic)?;
            by_pointer.insert(pointer, tasks.len());
            tasks.push(task);
            Some(tasks.len() - 1)
        };
        let mut broken = 0;
        for pointer in pointers {
            broken += u64::from(take(pointer, &mut tasks).is_none());
        }

        let mut cpus = Vec::with_capacity(places.cpus.len());
        let mut bytes = vec![0; table.cpu_bytes as usize];
        for &(index, address) in &places.cpus {
            self.bytes("CPU", address, &mut bytes)?;
            let record = table.cpu(&bytes);
            let mut cpu = Cpu::read(record, index);
            // A task that is ending runs on after it has left the list, so it may have to be read here.
            let current = record.cpu_field(CpuField::Current).and_then(|pointer| take(pointer, &mut tasks));
            if let Some(task) = current.and_then(|index| tasks.get_mut(index)) {
                cpu.current = Some(task.id);
                if let (Some(now), Some(picked)) = (now, record.cpu_field(CpuField::PickedTicks)) {
                    task.still_running(places.clock.nanos(now.saturating_sub(picked)));
                }
            }
            let idle = record.cpu_field(CpuField::Idle).and_then(|pointer| take(pointer, &mut tasks));
            cpu.idle_ns = idle.and_then(|index| tasks.get(index)).map(|task| task.run_ns);
            cpus.push(cpu);
        }
        cpus.sort_unstable_by_key(|cpu| cpu.index);

        fence(Ordering::Acquire);
        let mut generation = [0; 8];
        self.bytes("task view", at.saturating_add(GENERATION_AT as u64), &mut generation)?;
        let whole = table.generation % 2 == 0 && u64::from_le_bytes(generation) == table.generation;
        let left_out = left_out + broken + u64::from(table.unlisted);
        Ok((Snapshot { cpus, tasks, torn: false, left_out }, whole))
    }

    /// The guest's monotonic clock now: its latest switch has a stamp of both clocks. `None`: the guest doesn't tell.
    fn monotonic(&self, places: &Places, table: &Table) -> Result<Option<u64>, GuestViewError> {
        let Some(now) = places.clock.ticks() else { return Ok(None) };
        let (mut latest, mut bytes) = (None, vec![0; table.cpu_bytes as usize]);
        for &(_, address) in &places.cpus {
            self.bytes("CPU", address, &mut bytes)?;
            let record = table.cpu(&bytes);
            let ticks = record.cpu_field(CpuField::PickedTicks).filter(|ticks| *ticks != 0);
            latest = latest.max(ticks.zip(record.cpu_field(CpuField::PickedNanos)));
        }
        Ok(latest.map(|(ticks, nanos)| nanos.saturating_add(places.clock.nanos(now.saturating_sub(ticks)))))
    }

    /// All pointers in the chain of chunks, and how many slots were not looked at.
    fn pointers(&self, table: &Table) -> Result<(Vec<u64>, u64), GuestViewError> {
        let mut pointers = Vec::with_capacity((table.live as usize).min(MAX_TASKS));
        let (mut seen, mut next) = (HashSet::new(), table.first_chunk);
        let mut chunk = [0; CHUNK_BYTES];
        while next != 0 {
            // A chain that comes back to where it was has no end.
            if pointers.len() >= MAX_TASKS || !seen.insert(next) {
                return Ok((pointers, 1));
            }
            self.bytes("list of tasks", next, &mut chunk)?;
            let (words, _) = chunk.as_chunks::<8>();
            let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
            next = words.next().unwrap_or(0);
            pointers.extend(words.filter(|pointer| *pointer != 0));
        }
        pointers.truncate(MAX_TASKS);
        Ok((pointers, 0))
    }
}

/// The field that says whether a structure is a task at all.
pub(super) const IDENTITY: TaskField = TaskField::Id;
