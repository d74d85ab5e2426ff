//! Which task goes to another CPU without being woken: what an idle CPU pulls, what a busy one evens out, where a real-time
//! task is pushed. Pure decisions over a [`CpuView`], which may be stale; the caller takes the task with
//! [`RunQueue::steal`](crate::runqueue::RunQueue::steal), where the affinity is looked at under the lock.
//!
//! The invariant: a decision never makes the imbalance greater, so balancing comes to an end.

use crate::cpumask::CpuMask;
use crate::ids::CpuId;
use crate::placement::{CpuView, Level, level_soon};

/// From whom an idle CPU takes a task: the one with the most, of those that share its cache if one of them has a task to
/// spare, then of its node, then of all. Of equals the next one upwards, so that idle CPUs don't all go for the same.
/// `None`: nobody has one to spare.
pub fn idle_victim(this: CpuId, view: &impl CpuView) -> Option<CpuId> {
    let topology = view.topology();
    let near = topology.and_then(|topology| topology.shared_cache(this));
    let node = topology.and_then(|topology| topology.node(this));
    [near, node].into_iter().flatten().chain([view.online()]).find_map(|among| busiest(among, this, view))
}

/// The CPU of a set with the most tasks, but at least two: one runs, and one can go.
fn busiest(among: &CpuMask, this: CpuId, view: &impl CpuView) -> Option<CpuId> {
    let mut best: Option<(CpuId, u32)> = None;
    for cpu in among.iter_both_from(view.online(), this).filter(|&cpu| cpu != this) {
        let load = view.nr_running(cpu);
        if load > best.map_or(1, |(_, most)| most) {
            best = Some((cpu, load));
        }
    }
    best.map(|(cpu, _)| cpu)
}

/// Tasks to be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// Away from this CPU.
    pub from: CpuId,
    /// To this one.
    pub to: CpuId,
    /// At most so many. At least 1.
    pub count: u32,
}

/// What the periodic balancing of the CPU `this` does: takes half of what the busiest has more. A difference of one is
/// balanced, because moving it would only turn it round.
pub fn periodic(this: CpuId, view: &impl CpuView) -> Option<Move> {
    if !view.online().test(this) {
        return None;
    }
    let from = busiest(view.online(), this, view)?;
    let count = view.nr_running(from).saturating_sub(view.nr_running(this)) / 2;
    (count > 0).then_some(Move { from, to: this, count })
}

/// Where a real-time task goes that waits on `from` behind something at least as important: the allowed CPU that runs the
/// least important, if that is less important than the task. CPUs that share `from`'s cache go before their equals.
pub fn push_target(level: Level, allowed: &CpuMask, from: CpuId, view: &impl CpuView) -> Option<CpuId> {
    let near = view.topology().and_then(|topology| topology.shared_cache(from));
    let mut best: Option<(CpuId, (Level, bool))> = None;
    for cpu in allowed.iter_both_from(view.online(), from).filter(|&cpu| cpu != from) {
        let far = near.is_some_and(|near| !near.test(cpu));
        let cost = (level_soon(cpu, view), far);
        if cost.0 < level && best.is_none_or(|(_, least)| cost < least) {
            best = Some((cpu, cost));
        }
    }
    best.map(|(cpu, _)| cpu)
}

/// From whom a CPU that is about to run something of `level` takes a real-time task: where the most important waits, if it
/// is more important than that. Asks the view for [`CpuView::waiting_realtime`].
pub fn pull_source(level: Level, this: CpuId, view: &impl CpuView) -> Option<CpuId> {
    let mut best: Option<(CpuId, Level)> = None;
    for cpu in view.online().iter_both_from(view.online(), this).filter(|&cpu| cpu != this) {
        let waiting = Level::realtime(view.waiting_realtime(cpu));
        if waiting > best.map_or(level.max(Level::NORMAL), |(_, most)| most) {
            best = Some((cpu, waiting));
        }
    }
    best.map(|(cpu, _)| cpu)
}
