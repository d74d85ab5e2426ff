//! Which CPU a task goes to: when it wakes, when it is new, and what a CPU does with one that it may not run.
//!
//! Pure functions, called by whoever won the right to enqueue a task ([`Action::Enqueue`](crate::task::state::Action)).
//! They take no lock and read no clock; [`CpuView`] is a snapshot that may be stale, and a stale choice is only slower,
//! never wrong. The invariant: a choice is always in the task's affinity mask, and online unless no CPU of the mask is.

use crate::cpumask::CpuMask;
use crate::ids::CpuId;
use crate::topology::Topology;

/// What placement needs to know of a task.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'a> {
    /// Where it ran last: its cache lines may still be there.
    pub last_cpu: CpuId,
    /// Where it may run. Never empty: `sched_setaffinity(2)` refuses that.
    pub allowed: &'a CpuMask,
}

/// How important what runs on a CPU is: idle, normal, real-time by priority, deadline, stop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Level(pub(crate) u8);

impl Level {
    /// Nothing runs.
    pub const IDLE: Self = Self(0);
    /// An ordinary task.
    pub const NORMAL: Self = Self(1);
    /// A deadline task.
    pub const DEADLINE: Self = Self(101);
    /// A stop task.
    pub const STOP: Self = Self(102);

    /// A real-time task of this priority; 0: an ordinary one.
    #[inline]
    pub const fn realtime(priority: u8) -> Self {
        Self(if priority > 99 { 100 } else { 1 + priority })
    }

    /// As a number, for a kernel that keeps each CPU's in an atomic.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// From such a number; what is none is the highest.
    #[inline]
    pub const fn from_u8(number: u8) -> Self {
        if number < 102 { Self(number) } else { Self::STOP }
    }
}

/// What placement needs to know of the CPUs. May be stale.
pub trait CpuView {
    /// The CPUs that take tasks.
    fn online(&self) -> &CpuMask;
    /// Does the CPU have nothing to do? Asked only for CPUs that are online.
    fn is_idle(&self, cpu: CpuId) -> bool;
    /// Online CPUs, all idle ones among them: where it is worth to look for an idle one. A view that keeps such a set saves
    /// a look at every CPU of a large machine.
    fn maybe_idle(&self) -> &CpuMask {
        self.online()
    }
    /// How many tasks run and wait there, the current one included. Asked only for CPUs that are online.
    fn nr_running(&self, cpu: CpuId) -> u32;
    /// Who shares cores and caches with whom; `None` for a flat machine.
    fn topology(&self) -> Option<&Topology> {
        None
    }
    /// How important what runs there is. Asked only for CPUs that are online, and for the sake of real-time tasks.
    fn level(&self, cpu: CpuId) -> Level {
        if self.is_idle(cpu) { Level::IDLE } else { Level::NORMAL }
    }
    /// The highest real-time priority that waits there; 0 if none does.
    fn waiting_realtime(&self, cpu: CpuId) -> u8 {
        let _ = cpu;
        0
    }
}

/// Chooses the CPU for a waking task, in this order: its last CPU if idle; an idle one that shares the last one's cache;
/// the waker's if idle; an idle one that shares the waker's cache; any idle one, searched from the last CPU upwards; else the
/// less loaded of the last and the waker's, the last if equal; else (neither is allowed) the least loaded of all.
///
/// Among idle ones of a cache, or of all, one whose whole core is idle goes first: siblings share its units. On a flat
/// machine there are no such preferences. A third CPU beside last and waker's is chosen only because it is idle.
///
/// If no allowed CPU is online, it is the first allowed one: the task waits there until it comes. An empty `allowed`,
/// which must not be, gives `last_cpu`.
pub fn select_cpu(task: &Placement<'_>, waker: CpuId, view: &impl CpuView) -> CpuId {
    let online = view.online();
    let usable = |cpu| task.allowed.test(cpu) && online.test(cpu);
    let last = task.last_cpu;
    let last_usable = usable(last);
    if last_usable && view.is_idle(last) {
        return last;
    }
    let topology = view.topology();
    let near = |cpu| idle_within(topology.and_then(|topology| topology.shared_cache(cpu))?, cpu, task, view);
    if let Some(idle) = near(last) {
        return idle;
    }
    let waker_usable = usable(waker);
    if waker_usable && view.is_idle(waker) {
        return waker;
    }
    if let Some(idle) = near(waker).or_else(|| idle_within(online, last, task, view)) {
        return idle;
    }
    match (last_usable, waker_usable) {
        (true, true) if view.nr_running(waker) < view.nr_running(last) => waker,
        (true, _) => last,
        (false, true) => waker,
        (false, false) => least_loaded(task.allowed, last, view).unwrap_or(last),
    }
}

/// An idle CPU of a set that the task may use, from `start` upwards: one on an idle core, else any.
fn idle_within(set: &CpuMask, start: CpuId, task: &Placement<'_>, view: &impl CpuView) -> Option<CpuId> {
    let online = view.online();
    let idle = |cpu: &CpuId| task.allowed.test(*cpu) && view.is_idle(*cpu);
    let mut any = None;
    for cpu in set.iter_both_from(view.maybe_idle(), start).filter(idle) {
        let siblings = view.topology().and_then(|topology| topology.siblings(cpu));
        let alone = siblings.is_none_or(|all| all.iter_both_from(online, cpu).all(|other| view.is_idle(other)));
        if alone {
            return Some(cpu);
        }
        any = any.or(Some(cpu));
    }
    any
}

/// How important what a CPU runs is, or the real-time task that it will run instead in a moment: a CPU that was just given
/// one is no place for the next, though it still looks idle.
pub(crate) fn level_soon(cpu: CpuId, view: &impl CpuView) -> Level {
    let running = view.level(cpu);
    match view.waiting_realtime(cpu) {
        0 => running,
        priority => running.max(Level::realtime(priority)),
    }
}

/// Chooses the CPU for a waking real-time task: its last one if that runs something less important; else the allowed one
/// that runs the least important, if that is less important; else its last one, where it waits for its turn.
///
/// If its last CPU is not allowed or offline, or no allowed CPU is online, it is as in [`select_cpu`].
pub fn select_cpu_realtime(level: Level, task: &Placement<'_>, waker: CpuId, view: &impl CpuView) -> CpuId {
    let last = task.last_cpu;
    let last_usable = task.allowed.test(last) && view.online().test(last);
    if last_usable && level_soon(last, view) < level {
        return last;
    }
    match crate::balance::push_target(level, task.allowed, last, view) {
        Some(lower) => lower,
        None if last_usable => last,
        None => select_cpu(task, waker, view),
    }
}

/// Chooses the CPU for a task that never ran: the least loaded one of its mask, and of equally loaded ones the next
/// after `after`. A caller that passes the CPU chosen last gets round robin among equals.
///
/// If no allowed CPU is online, it is the first allowed one; an empty `allowed`, which must not be, gives `after`.
pub fn select_cpu_new(allowed: &CpuMask, after: CpuId, view: &impl CpuView) -> CpuId {
    least_loaded(allowed, CpuId(after.0.wrapping_add(1)), view).unwrap_or(after)
}

/// The least loaded allowed CPU that is online, the first from `start` of equals; else the first allowed one, if any.
fn least_loaded(allowed: &CpuMask, start: CpuId, view: &impl CpuView) -> Option<CpuId> {
    let mut best = None;
    for cpu in allowed.iter_both_from(view.online(), start) {
        let load = view.nr_running(cpu);
        if best.is_none_or(|(_, least)| load < least) {
            best = Some((cpu, load));
            if load == 0 {
                break;
            }
        }
    }
    best.map(|(cpu, _)| cpu).or_else(|| allowed.first())
}

/// Chooses the queue for a task that the caller has just woken (`Blocked -> Ready`).
///
/// `stack_on` is the task's `on_cpu`, read after the wake-up was won. If a CPU still stands on the task's stack, the task
/// goes to that CPU's queue even if its affinity now forbids that CPU: it is the only one that knows when the stack is
/// free, and it forwards the task then ([`pick_verdict`]). Else it is [`select_cpu`].
#[inline]
pub fn enqueue_target(stack_on: Option<CpuId>, task: &Placement<'_>, waker: CpuId, view: &impl CpuView) -> CpuId {
    match stack_on {
        Some(cpu) => cpu,
        None => select_cpu(task, waker, view),
    }
}

/// What a CPU does with a task that it took from its own queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PickVerdict {
    /// Run it. If this CPU still stands on its stack, it is the task that called `schedule()`, and nothing is switched.
    Run,
    /// Its affinity forbids this CPU: take the pick back ([`PutReason::Migrate`](crate::policy::PutReason)), enqueue it
    /// where [`select_cpu`] says, kick that CPU, and pick again.
    Forward,
    /// As `Forward`, but this CPU still stands on its stack: take the pick back, pick again, switch, and forward it after
    /// the switch, when its `on_cpu` is cleared. Only the task that is being left can be so, hence one place to remember it is enough.
    ForwardAfterSwitch,
}

/// Decides what the CPU `this` does with a task that it picked. `stack_in_use` says whether the task's `on_cpu` is set,
/// which for a task in `this` CPU's queue can only mean this CPU.
#[inline]
pub const fn pick_verdict(this: CpuId, allowed: &CpuMask, stack_in_use: bool) -> PickVerdict {
    match (allowed.test(this), stack_in_use) {
        (true, _) => PickVerdict::Run,
        (false, false) => PickVerdict::Forward,
        (false, true) => PickVerdict::ForwardAfterSwitch,
    }
}
