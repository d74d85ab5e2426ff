//! Who waits for whose lock, and what rank everybody gets from that. Bookkeeping only: `super` keeps it under one lock, and gives
//! the tasks their ranks when that is open again.
//!
//! The rules of the chain:
//! - A task's rank is the highest of its own and of those who wait for a lock that it holds; theirs are made the same way.
//! - Waiters stand in order of rank, equals in order of arrival; a change of rank moves a waiter and goes on to the lock's
//!   owner, up to [`MAX_DEPTH`] owners.
//! - Who would wait for himself that way doesn't wait: EDEADLK. So the graph has no circle.
//!
//! A task has a node while it waits, or holds a lock that somebody waits for; only then can its parameters be other than its own.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, Ordering};

use vcpu_sched::ids::TaskId;
use vcpu_sched::params::{Class, RtPriority, SchedParams};

use super::super::Key;
use crate::task::Task;

/// Owners that a chain may have (Linux: kernel.max_lock_depth).
const MAX_DEPTH: usize = 1024;

/// Real-time priority; 0: an ordinary task, above 99: a deadline task.
type Rank = u8;
const ABOVE_ALL: Rank = 100;

fn rank_of(params: &SchedParams) -> Rank {
    match params.class {
        Class::Stop | Class::Deadline(_) => ABOVE_ALL,
        Class::Fifo(p) | Class::RoundRobin(p) => p.get(),
        Class::Normal | Class::Batch | Class::Idle | Class::Delegated => 0,
    }
}

/// Parameters with a rank that is higher than their own. A deadline can't be lent: it counts as the highest priority.
fn lifted(own: SchedParams, rank: Rank) -> SchedParams {
    if rank <= rank_of(&own) {
        return own;
    }
    let priority = RtPriority::new(u32::from(rank)).unwrap_or(RtPriority::MAX);
    let class = match own.class {
        Class::RoundRobin(_) => Class::RoundRobin(priority),
        _ => Class::Fifo(priority),
    };
    SchedParams { class, ..own }
}

/// What became of a waiter.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It waits.
    Waiting = 0,
    /// The lock is its own.
    Granted = 1,
    /// The lock is its own since the last owner has died; the word is still to be written.
    Inherited = 2,
}

/// A task in a lock's queue.
pub struct Waiter {
    /// Who.
    pub task: Arc<Task>,
    /// As the word names it.
    pub tid: u32,
    verdict: AtomicU8,
}

impl Waiter {
    /// One who waits.
    pub fn new(task: Arc<Task>, tid: u32) -> Arc<Self> {
        Arc::new(Self { task, tid, verdict: AtomicU8::new(Verdict::Waiting as u8) })
    }

    /// What became of it. SeqCst: read by a task that has announced to block, see `sync::wait_queue`.
    pub fn verdict(&self) -> Verdict {
        match self.verdict.load(Ordering::SeqCst) {
            0 => Verdict::Waiting,
            1 => Verdict::Granted,
            _ => Verdict::Inherited,
        }
    }
}

/// A lock that somebody waits for, or whose new owner has still to write its word.
struct Lock {
    owner: TaskId,
    unwritten: bool,
    /// Highest rank first.
    waiters: Vec<Arc<Waiter>>,
}

struct Node {
    task: Arc<Task>,
    /// What the task would have without anybody waiting.
    own: SchedParams,
    rank: Rank,
    holds: Vec<Key>,
    waits_for: Option<Key>,
}

/// It would wait for itself.
pub struct Deadlock;

/// Tasks whose parameters are to be looked at again.
pub type Changed = Vec<Arc<Task>>;

/// See the module's text.
pub struct Graph {
    locks: BTreeMap<Key, Lock>,
    nodes: BTreeMap<TaskId, Node>,
}

impl Graph {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self { locks: BTreeMap::new(), nodes: BTreeMap::new() }
    }

    /// Owner of a lock that is in the graph: its word need not be up to date.
    pub fn owner(&self, key: Key) -> Option<TaskId> {
        self.locks.get(&key).map(|l| l.owner)
    }

    /// Whoever gets the lock next.
    pub fn next(&self, key: Key) -> Option<&Arc<Waiter>> {
        self.locks.get(&key)?.waiters.first()
    }

    /// How many wait.
    pub fn waiting(&self, key: Key) -> usize {
        self.locks.get(&key).map_or(0, |l| l.waiters.len())
    }

    /// Puts a waiter in the queue of a lock that `owner` holds (who is asked only if nobody waits yet).
    ///
    /// # Errors
    /// [`Deadlock`]; nothing has changed then.
    pub fn wait(&mut self, key: Key, waiter: &Arc<Waiter>, owner: &Arc<Task>) -> Result<Changed, Deadlock> {
        let owner_id = self.owner(key).unwrap_or(owner.id);
        if self.leads_to(owner_id, waiter.task.id) {
            return Err(Deadlock);
        }
        if let Entry::Vacant(free) = self.locks.entry(key) {
            free.insert(Lock { owner: owner.id, unwritten: false, waiters: Vec::new() });
            self.node(owner).holds.push(key);
        }
        self.node(&waiter.task).waits_for = Some(key);
        self.insert(key, waiter.clone());
        let mut changed = Vec::new();
        self.adjust(owner_id, &mut changed);
        Ok(changed)
    }

    /// Takes a waiter out again.
    pub fn give_up(&mut self, key: Key, waiter: &Arc<Waiter>) -> Changed {
        let mut changed = alloc::vec![waiter.task.clone()];
        if let Some(node) = self.nodes.get_mut(&waiter.task.id) {
            node.waits_for = None;
        }
        if let Some(lock) = self.locks.get_mut(&key) {
            lock.waiters.retain(|w| !Arc::ptr_eq(w, waiter));
            let owner = lock.owner;
            self.forget_if_free(key, &mut changed);
            self.adjust(owner, &mut changed);
        }
        changed
    }

    /// Gives a lock to the first who waits for it. The caller wakes it.
    pub fn hand_over(&mut self, key: Key, verdict: Verdict) -> Option<(Arc<Waiter>, Changed)> {
        let lock = self.locks.get_mut(&key)?;
        if lock.waiters.is_empty() {
            return None;
        }
        let next = lock.waiters.remove(0);
        let before = core::mem::replace(&mut lock.owner, next.task.id);
        lock.unwritten = verdict == Verdict::Inherited;
        if let Some(node) = self.nodes.get_mut(&before) {
            node.holds.retain(|k| *k != key);
        }
        let node = self.node(&next.task);
        node.waits_for = None;
        node.holds.push(key);
        let mut changed = alloc::vec![next.task.clone()];
        changed.extend(self.nodes.get(&before).map(|n| n.task.clone()));
        self.forget_if_free(key, &mut changed);
        self.adjust(before, &mut changed);
        self.adjust(next.task.id, &mut changed);
        next.verdict.store(verdict as u8, Ordering::SeqCst);
        Some((next, changed))
    }

    /// The word of a lock that was inherited has been written.
    pub fn written(&mut self, key: Key) -> Changed {
        let mut changed = Vec::new();
        if let Some(lock) = self.locks.get_mut(&key) {
            lock.unwritten = false;
            self.forget_if_free(key, &mut changed);
        }
        changed
    }

    /// Locks that the task holds and others wait for.
    pub fn held_by(&self, task: TaskId) -> Vec<Key> {
        self.nodes.get(&task).map_or_else(Vec::new, |n| n.holds.clone())
    }

    /// What the task would have without anybody waiting for it; none: just what it has.
    pub fn own(&self, task: TaskId) -> Option<SchedParams> {
        self.nodes.get(&task).map(|n| n.own)
    }

    /// The task's own parameters change. What it must get now, and who else must be looked at; none: just these.
    pub fn set_own(&mut self, task: TaskId, own: &SchedParams) -> Option<(SchedParams, Changed)> {
        self.nodes.get_mut(&task)?.own = *own;
        let mut changed = Vec::new();
        self.adjust(task, &mut changed);
        let node = self.nodes.get(&task)?;
        Some((lifted(node.own, node.rank), changed))
    }

    /// What the task must get now. Forgets a task that has neither locks nor a wait any more.
    pub fn settle(&mut self, task: TaskId) -> Option<SchedParams> {
        let node = self.nodes.get(&task)?;
        let params = lifted(node.own, node.rank);
        if node.holds.is_empty() && node.waits_for.is_none() {
            self.nodes.remove(&task);
        }
        Some(params)
    }

    fn node(&mut self, task: &Arc<Task>) -> &mut Node {
        self.nodes.entry(task.id).or_insert_with(|| {
            let own = task.sched.params();
            Node { task: task.clone(), own, rank: rank_of(&own), holds: Vec::new(), waits_for: None }
        })
    }

    fn leads_to(&self, from: TaskId, to: TaskId) -> bool {
        let mut at = from;
        for _ in 0..MAX_DEPTH {
            if at == to {
                return true;
            }
            let Some(lock) = self.nodes.get(&at).and_then(|n| self.locks.get(&n.waits_for?)) else { return false };
            at = lock.owner;
        }
        true
    }

    fn rank(&self, task: TaskId) -> Rank {
        self.nodes.get(&task).map_or(0, |n| n.rank)
    }

    fn insert(&mut self, key: Key, waiter: Arc<Waiter>) {
        let rank = self.rank(waiter.task.id);
        let Some(lock) = self.locks.get(&key) else { return };
        let at = lock.waiters.partition_point(|w| self.rank(w.task.id) >= rank);
        if let Some(lock) = self.locks.get_mut(&key) {
            lock.waiters.insert(at, waiter);
        }
    }

    /// A lock that nobody waits for is known by its word alone.
    fn forget_if_free(&mut self, key: Key, changed: &mut Changed) {
        let Some(lock) = self.locks.get(&key).filter(|l| l.waiters.is_empty() && !l.unwritten) else { return };
        let owner = lock.owner;
        self.locks.remove(&key);
        if let Some(node) = self.nodes.get_mut(&owner) {
            node.holds.retain(|k| *k != key);
            changed.push(node.task.clone());
        }
    }

    /// Makes the ranks right from a task on, along its chain.
    fn adjust(&mut self, from: TaskId, changed: &mut Changed) {
        let mut at = from;
        for _ in 0..MAX_DEPTH {
            let Some(node) = self.nodes.get(&at) else { return };
            let tops = node.holds.iter().filter_map(|k| self.next(*k)).map(|w| self.rank(w.task.id));
            let rank = tops.fold(rank_of(&node.own), Rank::max);
            let Some(node) = self.nodes.get_mut(&at).filter(|n| n.rank != rank) else { return };
            node.rank = rank;
            changed.push(node.task.clone());
            let Some(key) = node.waits_for else { return };
            let Some(lock) = self.locks.get_mut(&key) else { return };
            let owner = lock.owner;
            if let Some(i) = lock.waiters.iter().position(|w| w.task.id == at) {
                let waiter = lock.waiters.remove(i);
                self.insert(key, waiter);
            }
            at = owner;
        }
    }
}
