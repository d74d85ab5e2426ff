//! The stopped machine as a session sees it: threads, their registers and their memory.
//!
//! [`super::run`] makes it stand still and go on. Invariants: registers are read from a vCPU once a stop, and written through at
//! once; the guest's lists are read again only if they may say something else, or somebody wants to see them; everything that the guest's lists say is looked up through checks that end in an error, never in a panic.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use vcpu_sched::directory::Entry;
use vcpu_sched::taskdebug::frame;

use super::breakpoints::{Points, Segments};
use super::hub::Hub;
use super::memory::{MemoryError, Space, USER_HALF};
use super::registers::{
    Feature, REGISTERS, Values, VcpuRegisters, frame_word, is_vector, number, set_in_vcpu, switch_word,
};
use super::run::Running;
use super::threads::{self, Thread};
use super::watch::Watches;
use super::wishes::Clerk;
use crate::guestview::pulse::{Pulse, Watch};
use crate::guestview::{GuestViewError, Reader, Snapshot};
use crate::memory::Ram;
use crate::vm::run_control::{Paused, RunControl, RunControlError};

/// Why something can't be done with the guest.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] RunControlError),
    /// KVM.
    #[error("KVM refuses: {0}")]
    Kvm(#[from] kvm_ioctls::Error),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The guest runs.
    #[error("the guest is running")]
    Running,
    /// There is no such thread (any more).
    #[error("there is no thread {0}")]
    NoThread(u32),
    /// That register is nowhere.
    #[error("{0} can't be set for this task as it is now")]
    Register(&'static str),
}

/// What a debugger needs of a machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Stops it.
    pub control: RunControl,
    /// Shows its tasks.
    pub reader: Reader,
    /// Its memory.
    pub ram: Ram,
    /// What its vCPUs report.
    pub hub: Arc<Hub>,
    /// The guest's ids of its vCPUs.
    pub apic_ids: Vec<u32>,
    /// Where its kernel was loaded.
    pub segments: Segments,
    /// Its kernel's file.
    pub kernel: Arc<[u8]>,
    /// Who asks its kernel.
    pub clerk: Clerk,
    /// The first program's file on the host, from the root: the debugger's thread may not ask where it is.
    pub program: Option<PathBuf>,
}

/// A machine with a client.
#[derive(Debug)]
pub struct Target {
    /// The machine.
    pub machine: Machine,
    /// While it stands still.
    pub paused: Option<Paused>,
    /// Its threads. What one of them waits for may be old, see [`Target::show`].
    pub threads: Vec<Thread>,
    /// What its lists said.
    snapshot: Result<Snapshot, GuestViewError>,
    watch: Option<Watch>,
    /// When the lists were read.
    pulse: Option<Pulse>,
    /// They were at this stop.
    shown: bool,
    /// See [`Reader::debug_places`].
    pub debug_places: Option<Entry>,
    vcpus: HashMap<usize, VcpuRegisters>,
    /// vCPUs that stand in a write to the task-debug port, with the address of their program's registers.
    pub rung: HashMap<usize, u64>,
    /// Breakpoints.
    pub points: Points,
    /// Watched memory.
    pub watches: Watches,
    /// Steps and what is to be told.
    pub running: Running,
}

impl Target {
    /// For a machine that runs.
    pub fn new(machine: Machine) -> Self {
        Self {
            points: Points::new(machine.segments.clone()),
            machine,
            paused: None,
            threads: Vec::new(),
            snapshot: Ok(Snapshot::default()),
            watch: None,
            pulse: None,
            shown: false,
            debug_places: None,
            vcpus: HashMap::new(),
            rung: HashMap::new(),
            watches: Watches::default(),
            running: Running::default(),
        }
    }

    /// Reads the guest's lists again if a task has come, gone, or got or lost a CPU. The vCPUs stand still.
    pub fn refresh(&mut self) {
        let pulse = self.watch.as_ref().and_then(|watch| self.machine.reader.pulse(watch));
        self.shown = false;
        if pulse.is_none() || pulse != self.pulse {
            self.reread();
        }
    }

    /// What the guest's lists say, with everything that has changed, for whoever wants to look at it.
    pub fn show(&mut self) -> &Result<Snapshot, GuestViewError> {
        if !self.shown {
            self.reread();
        }
        &self.snapshot
    }

    fn reread(&mut self) {
        self.shown = true;
        self.debug_places = self.machine.reader.debug_places();
        self.watch = self.machine.reader.watch().ok();
        // Before the lists: what changes while they are read is seen next time.
        self.pulse = self.watch.as_ref().and_then(|watch| self.machine.reader.pulse(watch));
        self.snapshot = self.machine.reader.snapshot();
        let empty = Snapshot::default();
        let snapshot = self.snapshot.as_ref().unwrap_or(&empty);
        self.threads = threads::list(snapshot, &self.machine.apic_ids);
    }

    /// What was known of vCPUs is old: they are about to run.
    pub fn forget(&mut self) {
        self.vcpus.clear();
    }

    /// A thread of the list.
    pub fn thread(&self, id: u32) -> Result<&Thread, TargetError> {
        // They are in the order of their numbers.
        let place = self.threads.binary_search_by_key(&id, |thread| thread.id).ok();
        place.and_then(|place| self.threads.get(place)).ok_or(TargetError::NoThread(id))
    }

    /// The thread that a vCPU runs.
    pub fn thread_on(&self, vcpu: usize) -> Option<&Thread> {
        // From the end: thread 1 may be there for the client only, and then a task on its vCPU comes first.
        self.threads.iter().rev().find(|thread| thread.vcpu == Some(vcpu))
    }

    /// Does something with a vCPU's descriptor.
    pub fn with_vcpu<T: Send + 'static>(
        &self,
        vcpu: usize,
        work: impl FnOnce(&mut VcpuFd) -> T + Send + 'static,
    ) -> Result<T, TargetError> {
        Ok(self.paused.as_ref().ok_or(TargetError::Running)?.with_vcpu(vcpu, work)?)
    }

    /// A vCPU's registers.
    pub fn vcpu(&mut self, vcpu: usize) -> Result<&VcpuRegisters, TargetError> {
        if !self.vcpus.contains_key(&vcpu) {
            let registers = self.with_vcpu(vcpu, |fd| VcpuRegisters::read(fd))??;
            self.vcpus.insert(vcpu, registers);
        }
        self.vcpus.get(&vcpu).ok_or(TargetError::Running)
    }

    /// A vCPU that stands still has told its registers.
    pub fn told(&mut self, vcpu: usize, registers: VcpuRegisters) {
        self.vcpus.insert(vcpu, registers);
    }

    /// From now on a thread's registers have its vectors with them.
    pub fn want_vectors(&mut self, id: u32) -> Result<(), TargetError> {
        let Some(vcpu) = self.thread(id)?.vcpu else { return Ok(()) };
        if self.vcpu(vcpu)?.xsave.is_none() {
            let xsave = self.with_vcpu(vcpu, |fd| VcpuRegisters::read_xsave(fd))?;
            if let Some(registers) = self.vcpus.get_mut(&vcpu) {
                registers.xsave = xsave;
            }
        }
        Ok(())
    }

    /// Changes a vCPU's registers; `false` from `change`: nothing is written.
    pub fn change_vcpu(
        &mut self,
        vcpu: usize,
        change: impl FnOnce(&mut VcpuRegisters) -> bool,
    ) -> Result<bool, TargetError> {
        let old = self.vcpu(vcpu)?.clone();
        let mut new = old.clone();
        if !change(&mut new) {
            return Ok(false);
        }
        let written = new.clone();
        self.with_vcpu(vcpu, move |fd| written.write(fd, &old))??;
        self.vcpus.insert(vcpu, new);
        Ok(true)
    }

    /// A thread's address space: its own page table, or the one that its vCPU uses.
    pub fn root(&mut self, id: u32) -> Result<u64, TargetError> {
        let thread = self.thread(id)?;
        match (thread.root, thread.vcpu) {
            (0, Some(vcpu)) => Ok(self.vcpu(vcpu)?.sregs.cr3),
            (root, _) => Ok(root),
        }
    }

    /// A thread's memory.
    pub fn space(&mut self, id: u32) -> Result<Space<'_>, TargetError> {
        let thread = self.thread(id)?;
        if let (0, Some(vcpu)) = (thread.root, thread.vcpu) {
            /// CR0.PG.
            const PAGING: u64 = 1 << 31;
            let sregs = self.vcpu(vcpu)?.sregs;
            return Ok(if sregs.cr0 & PAGING == 0 {
                Space::physical(&self.machine.ram)
            } else {
                Space::new(&self.machine.ram, sregs.cr3)
            });
        }
        let root = self.root(id)?;
        Ok(Space::new(&self.machine.ram, root))
    }

    /// A thread's registers, as far as they are known.
    pub fn registers(&mut self, id: u32) -> Result<Values, TargetError> {
        let thread = self.thread(id)?.clone();
        let mut values = match thread.vcpu {
            Some(vcpu) => {
                let values = Values::of_vcpu(self.vcpu(vcpu)?);
                match self.rung.get(&vcpu).copied() {
                    Some(at) => match self.space(id)?.words::<{ frame::WORDS }>(at) {
                        Some(words) => values.with_frame(&words),
                        None => values,
                    },
                    None => values,
                }
            }
            None => {
                let saved = self.space(id)?.words(thread.saved_rsp).filter(|_| thread.saved_rsp != 0);
                let mut values = saved.map(|words| Values::of_switch(thread.saved_rsp, &words)).unwrap_or_default();
                values.set(number::CR0 + 2, thread.root);
                if thread.user {
                    values.set(number::FS_BASE, thread.fs_base);
                }
                values
            }
        };
        values.set(number::TASK_ID, id);
        let call = self.running.last.filter(|stop| stop.thread == id && self.paused.is_some());
        values.set(number::CALL, call.map_or(u64::MAX, |stop| stop.call()));
        if let Some(cpu) = thread.cpu {
            values.set(number::CPU, cpu);
        }
        Ok(values)
    }

    /// Where a thread's program is, also while the thread is in the kernel.
    pub fn program_pc(&mut self, id: u32) -> Option<u64> {
        let pc = self.registers(id).ok()?.word(number::RIP)?;
        if pc < USER_HALF {
            return Some(pc);
        }
        let at = self.thread(id).ok().filter(|thread| thread.user).and(self.debug_places)?.extra;
        let saved = self.space(id).ok()?.words::<{ frame::WORDS }>(at)?[frame::RIP];
        // A task that has never been there has nothing saved.
        (1..USER_HALF).contains(&saved).then_some(saved)
    }

    /// Sets a thread's register where it is kept now.
    pub fn set_register(&mut self, id: u32, register: usize, value: u128) -> Result<(), TargetError> {
        let thread = self.thread(id)?.clone();
        if is_vector(register) {
            self.want_vectors(id)?;
        }
        let refused = TargetError::Register(REGISTERS.get(register).map_or("that register", |known| known.name));
        // Control registers, CPU and the like are the guest's to change. gdb puts all back after it has called a function of the
        // program, so that an error would be taken for one of the call.
        let guests =
            REGISTERS.get(register).is_some_and(|known| matches!(known.feature, Feature::Task | Feature::Linux));
        if guests || self.registers(id)?.get(register) == Some(value) {
            return Ok(());
        }
        let word = match (thread.vcpu, thread.vcpu.and_then(|vcpu| self.rung.get(&vcpu))) {
            (Some(_), Some(at)) if frame_word(register).is_some() => {
                frame_word(register).filter(|_| changeable(register)).map(|word| (*at, word))
            }
            (Some(vcpu), _) => {
                let done = self.change_vcpu(vcpu, |registers| set_in_vcpu(registers, register, value))?;
                return if done { Ok(()) } else { Err(refused) };
            }
            (None, _) => switch_word(register).filter(|_| thread.saved_rsp != 0).map(|word| (thread.saved_rsp, word)),
        };
        let (at, word) = word.ok_or(refused)?;
        Ok(self.space(id)?.write(at.wrapping_add(8 * word as u64), &(value as u64).to_le_bytes())?)
    }

    /// The address spaces: of each process, and one for the kernel.
    pub fn roots(&self) -> Vec<(Option<u32>, u64)> {
        let mut roots: Vec<(Option<u32>, u64)> = Vec::new();
        for thread in self.threads.iter().filter(|thread| thread.root != 0) {
            if !roots.iter().any(|(process, _)| *process == thread.process) {
                roots.push((thread.process, thread.root));
            }
        }
        roots
    }
}

/// A program's segments are the kernel's business.
fn changeable(register: usize) -> bool {
    register != number::CS && register != number::SS
}
