//! Futexes: sleeping on a word of user memory.
//!
//! Buckets hashed by key, each a list of waiter records under a spin lock. The record, not the task, is what a waker finds,
//! so that a requeue moves it and a waiter that gives up knows where it is. The word is read with the bucket locked, so
//! a waker that changed it before it looks for waiters finds whoever read the old value; a page that isn't there is brought
//! in with the lock dropped.
//!
//! `robust` is what happens to the mutexes of a thread that ends, `pi` are those whose owners get the rank of who waits for them,
//! `two` the calls of the second generation, futex_waitv among them.
//!
//! Keys: memory that processes share has the identity of its source; all other memory that of its address space, whether
//! `FUTEX_PRIVATE_FLAG` is given or not.

mod pi;
mod robust;
pub mod two;

pub use pi::{own_params, set_params, thread_ends};
pub use robust::exit_robust_list;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;
use vcpu_sched::task::state::Event;

use super::Thread;
use super::thread::Restart;
use super::times;
use crate::linux::errno::{Errno, SysResult};
use crate::mm::address_space::Access;
use crate::mm::layout::{PAGE_SIZE, USER_END};
use crate::mm::user;
use crate::mm::vma::Backing;
use crate::sched;
use crate::sync::{SpinLock, SpinLockGuard};
use crate::task::{Task, current};
use crate::time;
use crate::trace;

/// Linux include/uapi/linux/futex.h.
mod op {
    pub const WAIT: u32 = 0;
    pub const WAKE: u32 = 1;
    pub const REQUEUE: u32 = 3;
    pub const CMP_REQUEUE: u32 = 4;
    pub const WAKE_OP: u32 = 5;
    pub const LOCK_PI: u32 = 6;
    pub const UNLOCK_PI: u32 = 7;
    pub const TRYLOCK_PI: u32 = 8;
    pub const WAIT_BITSET: u32 = 9;
    pub const WAKE_BITSET: u32 = 10;
    pub const LOCK_PI2: u32 = 13;
    pub const PRIVATE_FLAG: u32 = 128;
    pub const CLOCK_REALTIME: u32 = 256;
}
const MATCH_ANY: u32 = u32::MAX;
/// Bits of a robust mutex's word.
const FUTEX_WAITERS: u32 = 0x8000_0000;
const FUTEX_OWNER_DIED: u32 = 0x4000_0000;
const FUTEX_TID_MASK: u32 = 0x3fff_ffff;

/// What a futex word is: owner (address space or page source) and place in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    owner: usize,
    place: u64,
}

struct Waiter {
    task: Arc<Task>,
    bitset: u32,
    /// Changes with the buckets of the old and the new key locked.
    key: SpinLock<Key>,
    /// Taken off its bucket by a waker. Set before the task is woken.
    woken: AtomicBool,
}

/// A power of two; Linux: 256 per CPU.
const BUCKETS: usize = 256;

type List = VecDeque<Arc<Waiter>>;

static TABLE: [SpinLock<List>; BUCKETS] = [const { SpinLock::new(VecDeque::new()) }; BUCKETS];

impl Waiter {
    fn new(task: Arc<Task>, bitset: u32, key: Key) -> Arc<Self> {
        Arc::new(Self { task, bitset, key: SpinLock::new(key), woken: AtomicBool::new(false) })
    }
}

impl Key {
    fn bucket_index(self) -> usize {
        // Fibonacci hashing: the word's place varies in its low bits, the owner in its middle ones.
        let h = (self.place >> 2 ^ self.owner as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (h >> 56) as usize % BUCKETS
    }

    fn bucket(self) -> &'static SpinLock<List> {
        &TABLE[self.bucket_index()]
    }
}

fn key_of(addr: u64, private: bool) -> Result<Key, Errno> {
    if !addr.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    if addr >= USER_END {
        return Err(Errno::EFAULT);
    }
    let me = current();
    let space = me.space().ok_or(Errno::EFAULT)?;
    if !private {
        let inner = space.lock();
        let vma = inner.find(addr).ok_or(Errno::EFAULT)?;
        if let Backing::Shared(source) = &vma.backing {
            let place = vma.source_page(addr) * PAGE_SIZE + addr % PAGE_SIZE;
            return Ok(Key { owner: Arc::as_ptr(source).cast::<u8>() as usize, place });
        }
    }
    Ok(Key { owner: Arc::as_ptr(space) as usize, place: addr })
}

/// Locks a bucket and reads the word under the lock.
fn lock_and_load(key: Key, addr: u64) -> Result<(SpinLockGuard<'static, List>, u32), Errno> {
    loop {
        let guard = key.bucket().lock();
        match user::load_u32(addr) {
            Ok(v) => return Ok((guard, v)),
            Err(_) => {
                drop(guard);
                user::touch(addr, Access::Read)?;
            }
        }
    }
}

/// futex(2).
pub fn futex(thread: &Thread, a: &[u64; 6]) -> SysResult {
    let [addr, operation, value, timeout, addr2, value3] = *a;
    let operation = operation as u32;
    let private = operation & op::PRIVATE_FLAG != 0;
    let realtime = operation & op::CLOCK_REALTIME != 0;
    let count = value as u32 as usize;
    match operation & !(op::PRIVATE_FLAG | op::CLOCK_REALTIME) {
        op::WAIT if !realtime => {
            let deadline = times::relative_deadline(timeout)?;
            wait(thread, addr, private, value as u32, deadline, MATCH_ANY, true)
        }
        op::WAIT_BITSET => {
            let deadline = times::absolute_deadline(timeout, realtime)?;
            wait(thread, addr, private, value as u32, deadline, value3 as u32, false)
        }
        op::WAKE => Ok(wake(key_of(addr, private)?, count, MATCH_ANY) as u64),
        op::WAKE_BITSET if value3 as u32 == 0 => Err(Errno::EINVAL),
        op::WAKE_BITSET => Ok(wake(key_of(addr, private)?, count, value3 as u32) as u64),
        op::REQUEUE => requeue(addr, addr2, private, value as u32, timeout as u32, None),
        op::CMP_REQUEUE => requeue(addr, addr2, private, value as u32, timeout as u32, Some(value3 as u32)),
        op::LOCK_PI | op::LOCK_PI2 => {
            // The older one knows the real-time clock only.
            let realtime = realtime || operation & 15 == op::LOCK_PI;
            pi::lock(thread, addr, private, times::absolute_deadline(timeout, realtime)?)
        }
        op::TRYLOCK_PI => pi::try_lock(thread, addr, private),
        op::UNLOCK_PI => pi::unlock(thread, addr, private),
        op::WAKE_OP => wake_op(addr, addr2, private, count, timeout as u32 as usize, value3 as u32),
        _ => Err(Errno::ENOSYS),
    }
}

/// Joins the waiters of a word that has the expected value.
fn enqueue(waiter: &Arc<Waiter>, addr: u64, value: u32) -> Result<(), Errno> {
    let key = *waiter.key.lock();
    let (mut list, found) = lock_and_load(key, addr)?;
    if found != value {
        return Err(Errno::EAGAIN);
    }
    list.push_back(waiter.clone());
    Ok(())
}

/// FUTEX_WAIT. `relative`: an interruption leaves the deadline for restart_syscall.
fn wait(
    thread: &Thread,
    addr: u64,
    private: bool,
    value: u32,
    deadline: Option<Nanos>,
    bitset: u32,
    relative: bool,
) -> SysResult {
    if bitset == 0 {
        return Err(Errno::EINVAL);
    }
    let key = key_of(addr, private)?;
    let me = current();
    let waiter = Waiter::new(me.to_arc(), bitset, key);
    enqueue(&waiter, addr, value)?;
    trace::block(WaitReason::Futex, addr);
    let result = sleep(deadline, || waiter.woken.load(Ordering::SeqCst));
    if result.is_err() && !leave(&waiter) {
        return Ok(0); // a waker chose us before we gave up
    }
    match (result, deadline) {
        (Err(Errno::EINTR), Some(deadline)) if relative => {
            *thread.restart.lock() = Some(Restart::Futex { addr, value, deadline, private, bitset });
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        (Err(Errno::EINTR), _) => Err(Errno::ERESTARTSYS),
        (r, _) => r.map(|()| 0),
    }
}

/// restart_syscall(2) of a FUTEX_WAIT.
pub fn resume(thread: &Thread, addr: u64, value: u32, deadline: Nanos, private: bool, bitset: u32) -> SysResult {
    wait(thread, addr, private, value, Some(deadline), bitset, true)
}

/// Sleeps until `done`; the protocol of `sync::wait_queue`.
fn sleep(deadline: Option<Nanos>, done: impl Fn() -> bool) -> Result<(), Errno> {
    let task = current().to_arc();
    loop {
        task.set_wait_reason(WaitReason::Futex);
        let _ = task.state.apply(Event::Block);
        let stop = if done() {
            Some(Ok(()))
        } else if task.is_interrupted() {
            Some(Err(Errno::EINTR))
        } else if deadline.is_some_and(|d| time::now() >= d) {
            Some(Err(Errno::ETIMEDOUT))
        } else {
            None
        };
        if let Some(r) = stop {
            let _ = task.state.apply(Event::CancelBlock);
            return r;
        }
        let timer = deadline.map(|d| time::timer::wake_at(d, task.clone()));
        sched::block();
        if let Some(t) = timer {
            t.cancel();
        }
    }
}

/// Takes a waiter that gives up off its bucket, wherever a requeue has put it. Returns false if a waker was faster.
fn leave(waiter: &Arc<Waiter>) -> bool {
    loop {
        let key = *waiter.key.lock();
        let mut list = key.bucket().lock();
        if waiter.woken.load(Ordering::SeqCst) {
            return false;
        }
        if *waiter.key.lock() != key {
            continue; // requeued between the two looks
        }
        let at = list.iter().position(|w| Arc::ptr_eq(w, waiter));
        // Not the last handle: the caller has one.
        return at.map(|i| list.remove(i)).is_some();
    }
}

/// Wakes up to `count` waiters of a list.
fn wake_locked(list: &mut List, key: Key, count: usize, bitset: u32) -> usize {
    let mut woken = 0;
    let mut i = 0;
    while woken < count && i < list.len() {
        let w = &list[i];
        if w.bitset & bitset == 0 || *w.key.lock() != key {
            i += 1;
            continue;
        }
        if let Some(w) = list.remove(i) {
            w.woken.store(true, Ordering::SeqCst);
            // The waiter's own handle outlives ours unless it ran to its end already, and then freeing it here is fine.
            sched::wake(&w.task);
            woken += 1;
        }
    }
    woken
}

fn wake(key: Key, count: usize, bitset: u32) -> usize {
    // Linux wakes one for 0, too.
    wake_locked(&mut key.bucket().lock(), key, count.max(1), bitset)
}

/// Wakes waiters on an address of the running task (thread end).
pub fn wake_address(addr: u64, count: usize) {
    if let Ok(key) = key_of(addr, false) {
        wake(key, count, MATCH_ANY);
    }
}

/// Locks the buckets of two keys, in the order of their places in the table.
fn lock_two(a: Key, b: Key) -> (SpinLockGuard<'static, List>, Option<SpinLockGuard<'static, List>>, bool) {
    let (i, j) = (a.bucket_index(), b.bucket_index());
    match i.cmp(&j) {
        core::cmp::Ordering::Equal => (TABLE[i].lock(), None, false),
        core::cmp::Ordering::Less => {
            let first = TABLE[i].lock();
            (first, Some(TABLE[j].lock()), false)
        }
        core::cmp::Ordering::Greater => {
            let second = TABLE[j].lock();
            (second, Some(TABLE[i].lock()), true)
        }
    }
}

fn requeue(from: u64, to: u64, private: bool, wakes: u32, moves: u32, expected: Option<u32>) -> SysResult {
    requeue_keys(from, (key_of(from, private)?, key_of(to, private)?), wakes, moves, expected)
}

fn requeue_keys(from: u64, (a, b): (Key, Key), wakes: u32, moves: u32, expected: Option<u32>) -> SysResult {
    if wakes as i32 <= -1 || moves as i32 <= -1 {
        return Err(Errno::EINVAL);
    }
    loop {
        let (mut first, mut second, swapped) = lock_two(a, b);
        if let Some(value) = expected {
            match user::load_u32(from) {
                Ok(v) if v != value => return Err(Errno::EAGAIN),
                Ok(_) => {}
                Err(_) => {
                    drop((first, second));
                    user::touch(from, Access::Read)?;
                    continue;
                }
            }
        }
        let Some(second) = second.as_mut() else {
            let woken = wake_locked(&mut first, a, wakes as usize, MATCH_ANY);
            // One bucket: a new key is all that it takes.
            let same = |w: &&Arc<Waiter>| *w.key.lock() == a;
            let moved = first.iter().filter(same).take(moves as usize).map(|w| *w.key.lock() = b).count();
            return Ok((woken + moved) as u64);
        };
        let (src, dst) = if swapped { (&mut **second, &mut *first) } else { (&mut *first, &mut **second) };
        let woken = wake_locked(src, a, wakes as usize, MATCH_ANY);
        let mut moved = 0;
        let mut i = 0;
        while moved < moves as usize && i < src.len() {
            if *src[i].key.lock() != a {
                i += 1;
            } else if let Some(w) = src.remove(i) {
                *w.key.lock() = b;
                dst.push_back(w);
                moved += 1;
            }
        }
        return Ok((woken + moved) as u64);
    }
}

/// The new value that FUTEX_WAKE_OP writes, and whether the old one asks for a second wake.
fn decode_wake_op(code: u32, old: u32) -> Option<(u32, bool)> {
    let signed = |v: u32| ((v << 20) as i32) >> 20;
    let mut argument = signed(code >> 12 & 0xfff) as u32;
    let against = signed(code & 0xfff);
    if code >> 28 & 8 != 0 {
        argument = 1u32.checked_shl(argument & 31)?;
    }
    let new = match code >> 28 & 7 {
        0 => argument,
        1 => old.wrapping_add(argument),
        2 => old | argument,
        3 => old & !argument,
        4 => old ^ argument,
        _ => return None,
    };
    let old = old as i32;
    let second = match code >> 24 & 15 {
        0 => old == against,
        1 => old != against,
        2 => old < against,
        3 => old <= against,
        4 => old > against,
        5 => old >= against,
        _ => return None,
    };
    Some((new, second))
}

fn wake_op(addr: u64, addr2: u64, private: bool, count: usize, count2: usize, code: u32) -> SysResult {
    let (a, b) = (key_of(addr, private)?, key_of(addr2, private)?);
    decode_wake_op(code, 0).ok_or(Errno::ENOSYS)?;
    loop {
        let (mut first, mut second, swapped) = lock_two(a, b);
        let changed = user::load_u32(addr2).and_then(|old| {
            let (new, wake_second) = decode_wake_op(code, old).unwrap_or((old, false));
            user::cas_u32(addr2, old, new).map(|found| (found == old).then_some(wake_second))
        });
        let wake_second = match changed {
            Ok(Some(w)) => w,
            Ok(None) => continue,
            Err(_) => {
                drop((first, second));
                user::touch(addr2, Access::Write)?;
                continue;
            }
        };
        let mut woken = match (second.as_mut(), swapped) {
            (Some(s), true) => wake_locked(s, a, count, MATCH_ANY),
            _ => wake_locked(&mut first, a, count, MATCH_ANY),
        };
        if wake_second {
            woken += match (second.as_mut(), swapped) {
                (Some(s), false) => wake_locked(s, b, count2, MATCH_ANY),
                _ => wake_locked(&mut first, b, count2, MATCH_ANY),
            };
        }
        return Ok(woken as u64);
    }
}
