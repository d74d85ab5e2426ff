//! Priority-inheriting locks: FUTEX_LOCK_PI and its kin. The word holds its owner's number, so that a free lock is taken without a
//! call; who waits is in the graph, and lends the owner its priority meanwhile.
//!
//! A lock in the graph is handed over, never freed: the word goes from owner to owner. An owner's end hands its locks over too;
//! the heir writes the word, since only it surely has the memory, and the lock stays in the graph until that is done.
//!
//! Locks, left to right: `CHANGES` -> `GRAPH`. Parameters are given with `GRAPH` open and `CHANGES` held: what is given last is
//! what the graph said last.

mod graph;

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;
use vcpu_sched::params::SchedParams;
use vcpu_sched::policy::deadline::Overcommitted;

use self::graph::{Deadlock, Graph, Verdict, Waiter};
use super::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS, Key, key_of, sleep};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::identity::task_by_tid;
use crate::linux::process::{Thread, thread_of};
use crate::mm::address_space::Access;
use crate::mm::user;
use crate::sched;
use crate::sync::{Mutex, SpinLock};
use crate::task::{Task, current};
use crate::trace;

static GRAPH: SpinLock<Graph> = SpinLock::new(Graph::new());
/// One change of parameters at a time; see the module's text.
static CHANGES: Mutex<()> = Mutex::new(());

/// Gives tasks the parameters that the graph has for them.
fn apply(changed: &[Arc<Task>]) {
    if changed.is_empty() {
        return;
    }
    let _one_at_a_time = CHANGES.lock();
    for task in changed {
        let wanted = GRAPH.lock().settle(task.id);
        if let Some(wanted) = wanted.filter(|w| *w != task.sched.params()) {
            // Only deadlines can be refused, and those are neither lent nor taken away.
            let _ = sched::set_params(task, &wanted);
        }
    }
}

/// The parameters that a program gave a task, whatever others lend it.
pub fn own_params(task: &Task) -> SchedParams {
    GRAPH.lock().own(task.id).unwrap_or_else(|| task.sched.params())
}

/// Changes the parameters that a program gave a task; what others lend it stays.
///
/// # Errors
/// As [`sched::set_params`].
pub fn set_params(task: &Arc<Task>, new: &SchedParams) -> Result<(), Overcommitted> {
    let changed = {
        let _one_at_a_time = CHANGES.lock();
        let before = own_params(task);
        let lent = GRAPH.lock().set_own(task.id, new);
        let Some((wanted, changed)) = lent else { return sched::set_params(task, new) };
        sched::set_params(task, &wanted).inspect_err(|_| {
            GRAPH.lock().set_own(task.id, &before);
        })?;
        changed
    };
    apply(&changed);
    Ok(())
}

enum Step {
    Mine,
    /// The word has changed meanwhile.
    Again,
    Taken,
    Queued(Arc<Waiter>),
}

/// Takes the lock if it is free; else queues, or tells that it is taken.
fn attempt(thread: &Thread, key: Key, addr: u64, queue: bool) -> Result<Step, Errno> {
    let Ok(seen) = user::load_u32(addr) else {
        user::touch(addr, Access::Write)?;
        return Ok(Step::Again);
    };
    let holder = seen & FUTEX_TID_MASK;
    let named = if holder == 0 { None } else { task_by_tid(thread, holder) };
    let exchange = |new: u32| match user::cas_u32(addr, seen, new) {
        Ok(found) => Ok(found == seen),
        Err(_) => Err(()),
    };
    let mut graph = GRAPH.lock();
    let known = graph.owner(key);
    if holder == thread.tid() || known == Some(current().id) {
        return Err(Errno::EDEADLK);
    }
    let wanted = match (holder, known) {
        (0, None) => thread.tid() | seen & FUTEX_OWNER_DIED,
        (_, _) if !queue => return Ok(Step::Taken),
        _ => seen | FUTEX_WAITERS,
    };
    if wanted != seen || holder != 0 {
        match exchange(wanted) {
            Ok(true) => {}
            Ok(false) => return Ok(Step::Again),
            Err(()) => {
                drop(graph);
                user::touch(addr, Access::Write)?;
                return Ok(Step::Again);
            }
        }
    }
    if (holder, known) == (0, None) {
        return Ok(Step::Mine);
    }
    let me = current().to_arc();
    let owner = match known {
        // Named by the graph; the word need not be written yet.
        Some(_) => named.unwrap_or_else(|| me.clone()),
        None => named.filter(|t| !has_left(t)).ok_or(Errno::ESRCH)?,
    };
    let waiter = Waiter::new(me, thread.tid());
    let changed = graph.wait(key, &waiter, &owner).map_err(|Deadlock| Errno::EDEADLK)?;
    drop(graph);
    apply(&changed);
    Ok(Step::Queued(waiter))
}

/// Whether a task has handed its locks over for good. Asked with the graph locked.
fn has_left(task: &Task) -> bool {
    // Relaxed: written with the graph locked.
    thread_of(task).is_none_or(|t| t.left_locks.load(Ordering::Relaxed))
}

/// FUTEX_LOCK_PI, FUTEX_LOCK_PI2.
pub fn lock(thread: &Thread, addr: u64, private: bool, deadline: Option<Nanos>) -> SysResult {
    let key = key_of(addr, private)?;
    let waiter = loop {
        match attempt(thread, key, addr, true)? {
            Step::Mine => return Ok(0),
            Step::Queued(waiter) => break waiter,
            // Somebody may change the word all the time.
            Step::Again | Step::Taken if current().is_interrupted() => return Err(Errno::ERESTARTNOINTR),
            Step::Again | Step::Taken => {}
        }
    };
    trace::block(WaitReason::Futex, addr);
    let result = sleep(deadline, || waiter.verdict() != Verdict::Waiting);
    let changed = {
        let mut graph = GRAPH.lock();
        // What was granted meanwhile is ours.
        match waiter.verdict() {
            Verdict::Waiting => graph.give_up(key, &waiter),
            Verdict::Granted => return Ok(0),
            Verdict::Inherited => {
                drop(graph);
                return inherit(thread, key, addr);
            }
        }
    };
    apply(&changed);
    match result {
        Err(Errno::EINTR) => Err(Errno::ERESTARTNOINTR),
        r => r.map(|()| 0),
    }
}

/// Writes the word of a lock whose owner has died.
fn inherit(thread: &Thread, key: Key, addr: u64) -> SysResult {
    let written = loop {
        let mut graph = GRAPH.lock();
        let more = if graph.waiting(key) > 0 { FUTEX_WAITERS } else { 0 };
        let done = user::load_u32(addr)
            .and_then(|old| user::cas_u32(addr, old, thread.tid() | FUTEX_OWNER_DIED | more).map(|found| found == old));
        match done {
            Ok(true) => break Ok(graph.written(key)),
            Ok(false) => {}
            Err(_) => {
                drop(graph);
                if user::touch(addr, Access::Write).is_err() {
                    break Err(Errno::EFAULT);
                }
            }
        }
    };
    match written {
        Ok(changed) => {
            apply(&changed);
            Ok(0)
        }
        Err(e) => {
            pass_on(key); // the memory is gone for us; perhaps not for others
            Err(e)
        }
    }
}

/// FUTEX_TRYLOCK_PI.
pub fn try_lock(thread: &Thread, addr: u64, private: bool) -> SysResult {
    let key = key_of(addr, private)?;
    loop {
        match attempt(thread, key, addr, false)? {
            Step::Mine => return Ok(0),
            Step::Taken | Step::Queued(_) => return Err(Errno::EAGAIN),
            Step::Again if current().is_interrupted() => return Err(Errno::ERESTARTNOINTR),
            Step::Again => {}
        }
    }
}

/// FUTEX_UNLOCK_PI.
pub fn unlock(thread: &Thread, addr: u64, private: bool) -> SysResult {
    let key = key_of(addr, private)?;
    loop {
        let mut graph = GRAPH.lock();
        let changed = user::load_u32(addr).and_then(|old| {
            if old & FUTEX_TID_MASK != thread.tid() {
                return Ok(Err(Errno::EPERM));
            }
            let new = match (graph.next(key), graph.waiting(key)) {
                (None, _) => 0,
                (Some(w), 1) => w.tid,
                (Some(w), _) => w.tid | FUTEX_WAITERS,
            };
            user::cas_u32(addr, old, new).map(|found| if found == old { Ok(()) } else { Err(Errno::EAGAIN) })
        });
        match changed {
            Ok(Ok(())) => {
                let handed = graph.hand_over(key, Verdict::Granted);
                drop(graph);
                finish(handed);
                return Ok(0);
            }
            Ok(Err(Errno::EAGAIN)) if !current().is_interrupted() => {}
            Ok(Err(Errno::EAGAIN)) => return Err(Errno::ERESTARTNOINTR),
            Ok(Err(e)) => return Err(e),
            Err(_) => {
                drop(graph);
                user::touch(addr, Access::Write)?;
            }
        }
    }
}

fn finish(handed: Option<(Arc<Waiter>, graph::Changed)>) {
    if let Some((next, changed)) = handed {
        // The new owner first: until it runs with its rank the old one may keep its own.
        sched::wake(&next.task);
        apply(&changed);
    }
}

/// Hands a lock over whose owner dies, or can't have it.
fn pass_on(key: Key) {
    let (handed, changed) = {
        let mut graph = GRAPH.lock();
        match graph.hand_over(key, Verdict::Inherited) {
            Some(handed) => (Some(handed), graph::Changed::new()),
            None => (None, graph.written(key)), // nobody is left to write it
        }
    };
    finish(handed);
    apply(&changed);
}

/// The running thread leaves its memory, and with `for_good` the world: the locks that others wait for are theirs.
pub fn thread_ends(thread: &Thread, for_good: bool) {
    let me = current();
    let held = {
        let graph = GRAPH.lock();
        thread.left_locks.store(for_good, Ordering::Relaxed);
        graph.held_by(me.id)
    };
    held.into_iter().for_each(pass_on);
}
