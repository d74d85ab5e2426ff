//! The process tree: who exists, whose child it is, which groups and sessions there are.
//!
//! Fork, exit, wait and job control use it; no hot path does. Invariants: a process is listed from its fork until it is
//! waited for; its parent, if it has one, is listed too; `ppid`, `pgid` and `sid` change only with the table locked.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::ControlFlow;
use core::sync::atomic::Ordering;

use super::Process;
use crate::linux::errno::Errno;
use crate::rcu::{self, RcuMap};
use crate::sync::{BootCell, SpinLock};

struct Node {
    process: Arc<Process>,
    children: Vec<u32>,
}

/// Guards the map and the relations named above.
static TABLE: SpinLock<BTreeMap<u32, Node>> = SpinLock::new(BTreeMap::new());

/// Those who are listed, for look-ups without the lock. Changed with the table locked.
static BY_NUMBER: BootCell<RcuMap<Weak<Process>>> = BootCell::new();
/// Chains of it: with fewer processes than that, nearly each has its own.
const CHAINS: usize = 64;

/// Makes the table. Boot CPU, once RCU is there.
pub fn init() {
    BY_NUMBER.set(RcuMap::new(rcu::domain(), CHAINS));
}

/// The process with this number, zombies included.
pub fn find(pid: u32) -> Option<Arc<Process>> {
    BY_NUMBER.get()?.get(&rcu::read(), pid)?.upgrade()
}

/// How many there are.
pub fn count() -> usize {
    TABLE.lock().len()
}

/// Calls `f` for every process, in order of their numbers. `f` may sleep: it runs over a copy.
pub fn for_each(mut f: impl FnMut(&Arc<Process>)) {
    for p in snapshot(|_| true) {
        f(&p);
    }
}

/// The processes that `select` accepts.
pub fn snapshot(select: impl Fn(&Process) -> bool) -> Vec<Arc<Process>> {
    TABLE.lock().values().filter(|n| select(&n.process)).map(|n| n.process.clone()).collect()
}

/// The process for which `size` gives the most, the youngest of equals. Allocates nothing; `size` runs with the table locked.
pub fn largest(size: impl Fn(&Process) -> Option<u32>) -> Option<(u32, Arc<Process>)> {
    let t = TABLE.lock();
    let (pages, node) = t.values().filter_map(|n| Some((size(&n.process)?, n))).max_by_key(|(pages, _)| *pages)?;
    Some((pages, node.process.clone()))
}

/// Lists a new process as a child of its `ppid`, or of nobody if that has gone. Its number is unused.
pub fn insert(process: &Arc<Process>) {
    let mut t = TABLE.lock();
    match t.get_mut(&process.ppid()) {
        Some(parent) => parent.children.push(process.pid),
        None => process.ppid.store(0, Ordering::Relaxed),
    }
    if BY_NUMBER.get().is_none_or(|all| all.insert(process.pid, Arc::downgrade(process)).is_err()) {
        panic!("two processes with the number {}", process.pid);
    }
    t.insert(process.pid, Node { process: process.clone(), children: Vec::new() });
}

/// Takes an ended process off the tree.
pub fn remove(pid: u32) -> Option<Arc<Process>> {
    let mut t = TABLE.lock();
    remove_locked(&mut t, pid)
}

fn remove_locked(t: &mut BTreeMap<u32, Node>, pid: u32) -> Option<Arc<Process>> {
    let node = t.remove(&pid)?;
    // Its garbage is seen to when a task ends.
    _ = BY_NUMBER.get().and_then(|all| all.remove(pid, |_| ()));
    if let Some(parent) = t.get_mut(&node.process.ppid()) {
        parent.children.retain(|c| *c != pid);
    }
    Some(node.process)
}

/// What [`visit_children`] does with a child.
pub enum Verdict {
    /// Look at the next one.
    Skip,
    /// Stop here.
    Take,
    /// Stop here and take the child off the tree.
    Reap,
}

/// Looks at the children of `pid` in order of their age. Returns the one that `f` took.
pub fn visit_children(pid: u32, mut f: impl FnMut(&Process) -> Verdict) -> Option<Arc<Process>> {
    let mut t = TABLE.lock();
    let found = t.get(&pid)?.children.iter().find_map(|c| {
        let child = &t.get(c)?.process;
        match f(child) {
            Verdict::Skip => None,
            v => Some((child.clone(), matches!(v, Verdict::Reap))),
        }
    });
    let (child, reap) = found?;
    if reap {
        // The node's handle is not the last one: `child` is another.
        remove_locked(&mut t, child.pid);
    }
    Some(child)
}

/// Gives the children of an ending process to `heir` (0: to nobody; zombies among those are dropped). Returns them.
pub fn give_children(pid: u32, heir: u32) -> Vec<Arc<Process>> {
    let mut dropped = Vec::new();
    let mut t = TABLE.lock();
    let Some(node) = t.get_mut(&pid) else { return Vec::new() };
    let children = core::mem::take(&mut node.children);
    let heir = if t.contains_key(&heir) && heir != pid { heir } else { 0 };
    let mut given = Vec::with_capacity(children.len());
    for c in children {
        let Some(child) = t.get(&c).map(|n| n.process.clone()) else { continue };
        child.ppid.store(heir, Ordering::Relaxed);
        if let Some(h) = t.get_mut(&heir) {
            h.children.push(c);
        } else if child.zombie.load(Ordering::Acquire) {
            dropped.push(remove_locked(&mut t, c));
        }
        given.push(child);
    }
    drop(t);
    given
}

/// Whether no member of the group has a parent in the same session but another group: nobody could continue it.
pub fn is_orphaned(pgid: u32) -> bool {
    let t = TABLE.lock();
    let adopted = t.values().filter(|n| n.process.pgid() == pgid).try_for_each(|n| match t.get(&n.process.ppid()) {
        Some(p) if p.process.pgid() != pgid && p.process.sid() == n.process.sid() => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    adopted.is_continue()
}

/// Moves a process to a group (setpgid(2)).
///
/// # Errors
/// As setpgid(2).
pub fn set_group(caller: &Process, pid: u32, pgid: u32) -> Result<(), Errno> {
    let t = TABLE.lock();
    let target = &t.get(&pid).ok_or(Errno::ESRCH)?.process;
    if pid != caller.pid {
        if target.ppid() != caller.pid {
            return Err(Errno::ESRCH);
        }
        if target.sid() != caller.sid() {
            return Err(Errno::EPERM);
        }
        if target.did_exec.load(Ordering::Relaxed) {
            return Err(Errno::EACCES);
        }
    }
    if target.sid() == pid {
        return Err(Errno::EPERM);
    }
    let same_session = |n: &Node| n.process.pgid() == pgid && n.process.sid() == caller.sid();
    if pgid != pid && !t.values().any(same_session) {
        return Err(Errno::EPERM);
    }
    target.pgid.store(pgid, Ordering::Relaxed);
    Ok(())
}

/// Makes the caller the leader of a new session (setsid(2)).
///
/// # Errors
/// EPERM for a group leader.
pub fn new_session(caller: &Process) -> Result<u32, Errno> {
    let t = TABLE.lock();
    if t.values().any(|n| n.process.pgid() == caller.pid) {
        return Err(Errno::EPERM);
    }
    caller.pgid.store(caller.pid, Ordering::Relaxed);
    caller.sid.store(caller.pid, Ordering::Relaxed);
    Ok(caller.pid)
}
