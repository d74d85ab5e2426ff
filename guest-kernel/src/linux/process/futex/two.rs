//! The second generation of futex calls: futex_waitv, futex_wake, futex_wait, futex_requeue. Words of 32 bits only, as on Linux.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;

use super::{Key, Waiter, enqueue, key_of, leave, requeue_keys, sleep, wait, wake};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::{Thread, times};
use crate::mm::user;
use crate::task::current;
use crate::trace;

/// Linux include/uapi/linux/futex.h.
const FUTEX2_SIZE_MASK: u32 = 3;
const FUTEX2_SIZE_U32: u32 = 2;
const FUTEX2_PRIVATE: u32 = 128;
/// FUTEX_WAITV_MAX.
const MAX_FUTEXES: u64 = 128;
/// Clock ids: Linux include/uapi/linux/time.h.
const CLOCK_REALTIME: u32 = 0;
const CLOCK_MONOTONIC: u32 = 1;

/// Whether the word is private.
fn private(flags: u32) -> Result<bool, Errno> {
    if flags & !(FUTEX2_SIZE_MASK | FUTEX2_PRIVATE) != 0 || flags & FUTEX2_SIZE_MASK != FUTEX2_SIZE_U32 {
        return Err(Errno::EINVAL);
    }
    Ok(flags & FUTEX2_PRIVATE != 0)
}

/// A value or mask that must fit the word.
fn word(value: u64) -> Result<u32, Errno> {
    u32::try_from(value).map_err(|_| Errno::EINVAL)
}

fn deadline(at: u64, clock: u64) -> Result<Option<Nanos>, Errno> {
    match (at, clock as u32) {
        (0, _) => Ok(None),
        (at, CLOCK_REALTIME) => times::absolute_deadline(at, true),
        (at, CLOCK_MONOTONIC) => times::absolute_deadline(at, false),
        _ => Err(Errno::EINVAL),
    }
}

/// One `struct futex_waitv`.
struct Wanted {
    value: u32,
    addr: u64,
    private: bool,
}

fn read_list(at: u64, count: u64) -> Result<Vec<Wanted>, Errno> {
    // val, uaddr, flags and a word that must be zero.
    let words = user::read_array::<[u64; 3]>(at, count as usize)?;
    let parse = |[value, addr, rest]: &[u64; 3]| {
        if rest >> 32 != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Wanted { value: word(*value)?, addr: *addr, private: private(*rest as u32)? })
    };
    words.iter().map(parse).collect()
}

/// futex_waitv(2): sleeps on several words; returns the index of one that woke it.
pub fn wait_many(list: u64, count: u64, flags: u64, timeout: u64, clock: u64) -> SysResult {
    if flags as u32 != 0 || list == 0 || !(1..=MAX_FUTEXES).contains(&(count & 0xffff_ffff)) {
        return Err(Errno::EINVAL);
    }
    let deadline = deadline(timeout, clock)?;
    let wanted = read_list(list, count & 0xffff_ffff)?;
    let me = current().to_arc();
    let mut waiters: Vec<Arc<Waiter>> = Vec::with_capacity(wanted.len());
    let mut result = Ok(());
    for w in &wanted {
        let queued = key_of(w.addr, w.private).and_then(|key| {
            let waiter = Waiter::new(me.clone(), super::MATCH_ANY, key);
            enqueue(&waiter, w.addr, w.value)?;
            waiters.push(waiter);
            Ok(())
        });
        if let Err(e) = queued {
            result = Err(e);
            break;
        }
    }
    if result.is_ok() {
        trace::block(WaitReason::Futex, list);
        result = sleep(deadline, || waiters.iter().any(|w| w.woken.load(Ordering::SeqCst)));
    }
    // A wake-up that hit one of them must not get lost, whatever else happened: the last one counts.
    let mut woken = None;
    for (i, waiter) in waiters.iter().enumerate() {
        if !leave(waiter) {
            woken = Some(i as u64);
        }
    }
    match (woken, result) {
        (Some(i), _) => Ok(i),
        (None, Err(Errno::EINTR)) => Err(Errno::ERESTARTSYS),
        (None, Err(e)) => Err(e),
        // Not reached: a sleep ends well only by a wake-up.
        (None, Ok(())) => Err(Errno::EAGAIN),
    }
}

/// futex_wake(2).
pub fn wake_one_word(addr: u64, mask: u64, count: u64, flags: u64) -> SysResult {
    let private = private(flags as u32)?;
    let mask = word(mask)?;
    if mask == 0 {
        return Err(Errno::EINVAL);
    }
    let key = key_of(addr, private)?;
    // Unlike the first generation's: none is none.
    if count as i32 <= 0 {
        return Ok(0);
    }
    Ok(wake(key, count as u32 as usize, mask) as u64)
}

/// futex_wait(2): `a` is address, value, mask, flags, timeout, clock.
pub fn wait_one_word(thread: &Thread, a: &[u64; 6]) -> SysResult {
    let private = private(a[3] as u32)?;
    let (value, mask) = (word(a[1])?, word(a[2])?);
    wait(thread, a[0], private, value, deadline(a[4], a[5])?, mask, false)
}

/// futex_requeue(2).
pub fn requeue(list: u64, flags: u64, wakes: u64, moves: u64) -> SysResult {
    if flags as u32 != 0 || list == 0 {
        return Err(Errno::EINVAL);
    }
    let list = read_list(list, 2)?;
    let [from, to] = list.as_slice() else { return Err(Errno::EINVAL) };
    let keys: (Key, Key) = (key_of(from.addr, from.private)?, key_of(to.addr, to.private)?);
    requeue_keys(from.addr, keys, wakes as u32, moves as u32, Some(from.value))
}
