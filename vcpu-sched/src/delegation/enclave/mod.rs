//! The guest's side of an enclave: its private tables, and every way in which they change.
//!
//! One [`Enclave`] under one lock of the kernel's. Its methods take no lock, send no interrupt and read no clock; what must be
//! done outside ([`Effects`]) is collected, and taken by the caller, who carries it out after it let the lock go. The kernel
//! calls, in the order in which things happen on a CPU:
//!
//! | when | what |
//! | --- | --- |
//! | a task comes, wakes, changes, leaves, ends | [`join`](Enclave::join), [`wake`](Enclave::wake), [`set_allowed`](Enclave::set_allowed), [`set_nice`](Enclave::set_nice), [`depart`](Enclave::depart), [`die`](Enclave::die) |
//! | a CPU schedules | [`pick`](Enclave::pick); if it isn't the task that ran, that one's [`leave`](Enclave::leave) once it is off; the new one's [`switched_in`](Enclave::switched_in) |
//! | a CPU was kicked | [`poll`](Enclave::poll) with [`Occasion::Kick`]; true: schedule |
//! | a tick | [`tick`](Enclave::tick); true: schedule |
//! | a CPU is about to halt | [`rest`](Enclave::rest); true: don't, look again |
//! | a higher class takes or leaves a CPU | [`higher_class`](Enclave::higher_class) |
//!
//! The invariants: each task is in exactly one [`Place`], and `Latched(c)` and `OnCpu(c)` agree with CPU c's record; the region
//! is never read for what the guest itself knows. A BUG of the kernel's (a task that leaves a CPU it isn't on) is answered by an
//! error and changes nothing.

mod agents;
mod commit;
mod cpu;
mod pick;
mod tasks;

use alloc::vec::Vec;

pub use commit::Occasion;
pub use pick::Pick;
pub use tasks::{Arrival, EnclaveError, NewTask};

use super::abi::{GTID_NONE, cpu_flags, guest_state, tunables};
use super::channel::Producer;
use super::layout::{Region, pair};
use super::life::{Life, Reason};
use super::message::{Message, MessageType};
use super::pick::Taker;
use super::status::{CpuStatus, Status};
use super::task::{Place, Record, Tells};
use super::txn::{Request, Rest, Slot};
use crate::cpumask::CpuMask;
use crate::ids::{CpuId, Nanos};
use crate::sync::Ordering;

/// What the enclave's owner decides.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its number.
    pub id: u32,
    /// Its CPUs.
    pub cpus: CpuMask,
    /// How long a task may be queued before the agent counts as hung. [`Nanos::MAX`]: for ever.
    pub runnable_timeout: Nanos,
    /// How long the next agent may be waited for.
    pub hand_off_limit: Nanos,
    /// Refused commits and requests within [`Config::FLOOD_INTERVAL`] before the agent counts as flooding.
    pub flood_limit: u32,
}

impl Config {
    /// The time in which refusals are counted.
    pub const FLOOD_INTERVAL: Nanos = Nanos::from_millis(100);

    /// The usual limits.
    pub const fn new(id: u32, cpus: CpuMask) -> Self {
        Self {
            id,
            cpus,
            runnable_timeout: Nanos::from_millis(50),
            hand_off_limit: Nanos::from_millis(1_000),
            flood_limit: 100_000,
        }
    }
}

/// What must be done outside, after the enclave's lock was let go.
#[derive(Clone, Debug)]
pub struct Effects {
    /// CPUs that must reschedule.
    pub reschedule: CpuMask,
    /// The agent sleeps: wake it.
    pub ring_bell: bool,
    /// All tasks run as fair ones from now on: queue those that may run.
    pub fall_back: Option<Life>,
    /// Tasks wait for the agent from now on: take them from the fair class.
    pub delegate: bool,
}

impl Default for Effects {
    fn default() -> Self {
        Self { reschedule: CpuMask::empty(), ring_bell: false, fall_back: None, delegate: false }
    }
}

impl Effects {
    /// Is there nothing to do? The common case.
    pub fn is_empty(&self) -> bool {
        self.reschedule.is_empty() && !self.ring_bell && self.fall_back.is_none() && !self.delegate
    }
}

/// Index of a task; also its status word.
pub type SlotId = u32;

const NO_SLOT: SlotId = SlotId::MAX;

/// What the guest keeps of a task.
#[derive(Clone, Debug)]
struct Task {
    gtid: u64,
    record: Record,
    barrier: u32,
    channel: u32,
    runtime: Nanos,
    switch_time: Nanos,
    /// Where it ran last, or is queued.
    cpu: CpuId,
    /// Since when it waits for the agent.
    queued: Nanos,
    /// Neighbours among those that wait, oldest first.
    older: SlotId,
    newer: SlotId,
    nice: i16,
    parent: u64,
    allowed: CpuMask,
    /// Of its commit, while latched or on a CPU.
    run_flags: u32,
    /// It is on its way off a CPU that has another task already, which was committed in silence.
    elided: bool,
}

/// An agent that is a task of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum AgentTask {
    #[default]
    None,
    Blocked,
    Runnable,
}

/// What the guest keeps of a CPU.
#[derive(Clone, Debug)]
struct Cpu {
    member: bool,
    online: bool,
    higher_class: bool,
    agent: AgentTask,
    agent_barrier: u32,
    seqnum: u64,
    current: Option<SlotId>,
    switch_time: Nanos,
    latched: Option<SlotId>,
    /// The task that runs must not be picked again.
    must_resched: bool,
    /// The agent wants it to idle, and to be told if it doesn't.
    told_to_idle: Option<u32>,
    /// The task that leaves next leaves without a message.
    elide_preempt: bool,
    rest: Rest,
    taker: Taker,
    timer: Option<(Nanos, u64)>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Enclave<'m> {
    region: Region<'m>,
    config: Config,
    channels: Vec<Producer>,
    tasks: Vec<Task>,
    free: Vec<SlotId>,
    cpus: Vec<Cpu>,
    /// Ends of the list of tasks that wait for the agent.
    oldest: SlotId,
    newest: SlotId,
    life: Life,
    tunables: u32,
    timeout: Nanos,
    refused: u32,
    refused_since: Nanos,
    answered: u32,
    /// The next task that an agent is to be told of anew; [`NO_SLOT`]: all have been.
    discovering: SlotId,
    /// Room for a sync group's claims.
    group: Vec<(CpuId, Request)>,
    effects: Effects,
}

impl<'m> Enclave<'m> {
    /// Lays out zeroed memory and publishes its header. CPUs beyond the region's sizes are left out; all are offline
    /// at first.
    pub fn new(region: Region<'m>, mut config: Config) -> Self {
        let sizes = *region.sizes();
        config.cpus = config.cpus.and(&CpuMask::full(sizes.cpus));
        region.publish_header(config.id, &config.cpus);
        let cpu = |n| Cpu {
            member: config.cpus.test(CpuId(n)),
            online: false,
            higher_class: false,
            agent: AgentTask::None,
            agent_barrier: 0,
            seqnum: 0,
            current: None,
            switch_time: Nanos::ZERO,
            latched: None,
            must_resched: false,
            told_to_idle: None,
            elide_preempt: false,
            rest: Rest::Polls,
            taker: Taker::default(),
            timer: None,
        };
        Self {
            region,
            channels: (0..sizes.channels).map(|_| Producer::new()).collect(),
            tasks: Vec::new(),
            free: Vec::new(),
            cpus: (0..sizes.cpus).map(cpu).collect(),
            oldest: NO_SLOT,
            newest: NO_SLOT,
            life: Life::Vacant,
            tunables: 0,
            timeout: config.runnable_timeout,
            refused: 0,
            refused_since: Nanos::ZERO,
            answered: 0,
            discovering: NO_SLOT,
            group: Vec::with_capacity(sizes.cpus as usize),
            effects: Effects::default(),
            config,
        }
    }

    /// What must be done outside; nothing is left.
    pub fn take_effects(&mut self) -> Effects {
        core::mem::take(&mut self.effects)
    }

    /// Is it worth a CPU's while to poll before it halts? The agent does, so its answer comes soon.
    pub fn is_prompt(&self) -> bool {
        matches!(self.life, Life::Online { sleeps: false, .. })
    }

    /// The transaction of a CPU, for one that polls: a look without the enclave's lock.
    pub fn transaction_of(&self, cpu: CpuId) -> Option<Slot<'m>> {
        self.region.transaction(cpu).and_then(Slot::new)
    }

    /// Must the CPU schedule, because of a commit or of something that happened to the task that it runs? For who was
    /// interrupted.
    pub fn wants(&self, cpu: CpuId) -> bool {
        self.cpu(cpu).is_some_and(|record| record.latched.is_some() || record.must_resched && record.current.is_some())
    }

    /// Is there something in [`take_effects`](Self::take_effects)?
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// Do tasks wait for an agent? If not, they run as fair ones, and the kernel calls [`switched_in`](Self::switched_in)
    /// for them all the same.
    pub fn delegates(&self) -> bool {
        self.life.delegates()
    }

    /// Who decides.
    pub fn life(&self) -> Life {
        self.life
    }

    /// The enclave's CPUs.
    pub fn cpu_set(&self) -> &CpuMask {
        &self.config.cpus
    }

    /// Where a task is; `None` for a status word that was never used.
    pub fn place(&self, slot: SlotId) -> Option<Place> {
        self.tasks.get(slot as usize).map(|task| task.record.place)
    }

    /// Does a task wait for the agent, or the agent for a tick? Then some CPU must have a timer running, because the watchdog
    /// lives in [`tick`](Self::tick).
    pub fn needs_ticks(&self) -> bool {
        self.oldest != NO_SLOT
            || self.discovering != NO_SLOT
            || self.tuned(tunables::DELIVER_TICKS | tunables::COMMIT_AT_TICK)
            || matches!(self.life, Life::HandOff { .. })
            || self.cpus.iter().any(|record| record.timer.is_some())
    }

    /// All tasks that are in the enclave, with their places.
    pub fn members(&self) -> impl Iterator<Item = (SlotId, u64, Place)> {
        let tasks = self.tasks.iter().enumerate();
        tasks
            .map(|(slot, task)| (slot as SlotId, task.gtid, task.record.place))
            .filter(|(.., place)| *place != Place::Gone)
    }

    /// How long a task has run since it was switched to.
    pub fn ran(&self, slot: SlotId, now: Nanos) -> Nanos {
        self.task(slot).map_or(Nanos::ZERO, |task| now.saturating_sub(task.switch_time))
    }

    /// The task barrier; for tests and tracing.
    pub fn task_barrier(&self, slot: SlotId) -> Option<u32> {
        self.tasks.get(slot as usize).map(|task| task.barrier)
    }

    fn cpu(&self, cpu: CpuId) -> Option<&Cpu> {
        self.cpus.get(cpu.index())
    }

    fn cpu_mut(&mut self, cpu: CpuId) -> Option<&mut Cpu> {
        self.cpus.get_mut(cpu.index())
    }

    fn task(&self, slot: SlotId) -> Option<&Task> {
        self.tasks.get(slot as usize)
    }

    fn task_mut(&mut self, slot: SlotId) -> Option<&mut Task> {
        self.tasks.get_mut(slot as usize)
    }

    fn tuned(&self, tunable: u32) -> bool {
        self.tunables & tunable != 0
    }

    /// Sends what an event of a task tells, or only counts it while nobody listens.
    ///
    /// The history of `cpu` goes on with each message that says something of it.
    fn tell_task(&mut self, slot: SlotId, tells: Tells, cpu: CpuId, now: Nanos, with: impl Fn(&mut Message)) {
        for (kind, flags) in tells.into_iter().flatten() {
            let of_cpu = kind.is_off_cpu()
                || matches!(kind, MessageType::OnCpu)
                || kind == MessageType::Departed && flags & super::abi::message_flags::WAS_CURRENT != 0;
            let cpu_seqnum = if of_cpu { self.next_seqnum(cpu) } else { 0 };
            let Some(task) = self.tasks.get_mut(slot as usize) else { return };
            task.barrier = task.barrier.wrapping_add(1);
            let mut message = Message {
                flags,
                slot,
                seqnum: task.barrier,
                gtid: task.gtid,
                cpu_seqnum,
                runtime: task.runtime,
                nice: task.nice,
                ..Message::new(kind, cpu, now)
            };
            if kind == MessageType::New {
                message.extra = task.parent;
            }
            with(&mut message);
            let channel = task.channel;
            // Status first: see docs/delegation.md, "Order".
            self.publish_task(slot);
            self.send(channel, &message);
        }
        self.publish_task(slot);
    }

    /// Sends a CPU message, which counts in the agent barrier.
    fn tell_cpu(&mut self, cpu: CpuId, kind: MessageType, now: Nanos, extra: u64) {
        let Some(record) = self.cpus.get_mut(cpu.index()) else { return };
        record.agent_barrier = record.agent_barrier.wrapping_add(1);
        record.seqnum += 1;
        let message =
            Message { seqnum: record.agent_barrier, cpu_seqnum: record.seqnum, extra, ..Message::new(kind, cpu, now) };
        self.publish_cpu(cpu);
        self.send(0, &message);
    }

    fn send(&mut self, channel: u32, message: &Message) {
        if !self.life.delegates() {
            return;
        }
        if let (Some(producer), Some(memory)) = (self.channels.get(channel as usize), self.region.channel(channel)) {
            // A lost message has been counted where the agent sees it.
            let _ = producer.send(&memory, message);
        }
        self.wake_agent_outside();
    }

    /// Rings the doorbell of an agent that sleeps.
    fn wake_agent_outside(&mut self) {
        if let Life::Online { sleeps: true, .. } = self.life {
            self.effects.ring_bell |= self.region.bell().ring();
        }
    }

    fn next_seqnum(&mut self, cpu: CpuId) -> u64 {
        self.cpus.get_mut(cpu.index()).map_or(0, |record| {
            record.seqnum += 1;
            record.seqnum
        })
    }

    fn publish_task(&self, slot: SlotId) {
        let Some(task) = self.task(slot) else { return };
        let status = Status {
            barrier: task.barrier,
            flags: task.record.flags(),
            gtid: task.gtid,
            switch_time: task.switch_time,
            runtime: task.runtime,
        };
        self.region.publish_status(slot, &status);
    }

    fn publish_cpu(&self, cpu: CpuId) {
        let Some(record) = self.cpu(cpu) else { return };
        let mut flags = 0;
        let mut set = |flag, on: bool| flags |= if on { flag } else { 0 };
        set(cpu_flags::ONLINE, record.member && record.online);
        set(cpu_flags::CPU_AVAIL, record.member && record.online && !record.higher_class);
        set(cpu_flags::BOOST_PRIO, record.agent == AgentTask::Runnable);
        set(cpu_flags::LATCHED, record.latched.is_some());
        let status = CpuStatus {
            barrier: record.agent_barrier,
            flags,
            gtid: record.current.and_then(|slot| self.task(slot)).map_or(GTID_NONE, |task| task.gtid),
            switch_time: record.switch_time,
            cpu_seqnum: record.seqnum,
            pick_tail: record.taker.tail(),
        };
        self.region.publish_cpu(cpu, &status);
    }

    fn publish_life(&self) {
        let (nonce, state) = self.life.told();
        // Release: who sees that it is accepted sees the tables as they were then.
        self.region.guest_page()[0].store(pair(nonce, state), Ordering::Release);
    }

    /// Throws the agent out. Its tasks fall back.
    pub fn eject(&mut self, reason: Reason, now: Nanos) {
        self.life_event(super::life::Event::Eject(reason), now);
    }

    /// Looks at every record: is each task where its CPU says, and in the list of those who wait if it waits? For tests and
    /// self-checks; takes as long as there are tasks.
    pub fn is_consistent(&self) -> bool {
        let mut waiting = 0;
        let mut at = self.oldest;
        while let Some(task) = self.task(at) {
            if task.record.place != Place::Queued || waiting > self.tasks.len() {
                return false;
            }
            waiting += 1;
            at = task.newer;
        }
        let placed = |(slot, task): (usize, &Task)| {
            let slot = slot as SlotId;
            match task.record.place {
                Place::Latched(cpu) => self.cpu(cpu).is_some_and(|record| record.latched == Some(slot)),
                Place::OnCpu(cpu) => self.cpu(cpu).is_none_or(|record| record.current == Some(slot)),
                Place::Gone | Place::Blocked | Place::Queued => true,
            }
        };
        let on_record = |(cpu, record): (usize, &Cpu)| {
            let here = |slot: Option<SlotId>, place| slot.is_none_or(|slot| self.place(slot) == Some(place));
            let cpu = CpuId(cpu as u32);
            here(record.latched, Place::Latched(cpu)) && here(record.current, Place::OnCpu(cpu))
        };
        let queued = self.tasks.iter().filter(|task| task.record.place == Place::Queued).count();
        queued == waiting
            && self.tasks.iter().enumerate().all(placed)
            && self.cpus.iter().enumerate().all(on_record)
            && (self.life.delegates() || self.life.told().1 != guest_state::ONLINE)
    }
}

/// Words of the agent's page.
pub(super) const WISH: usize = 0;
pub(super) const TUNABLES: usize = 1;
pub(super) const REQUEST: usize = 3;
pub(super) const REQUEST_TASK: usize = 4;
pub(super) const REQUEST_VALUE: usize = 5;
pub(super) const REQUEST_COOKIE: usize = 6;
