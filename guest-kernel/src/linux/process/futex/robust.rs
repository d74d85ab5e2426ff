//! Robust mutexes of a thread that ends: their words say so, and somebody who waits is woken.

use core::sync::atomic::Ordering;

use super::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS, wake_address};
use crate::linux::process::Thread;
use crate::mm::user;

/// Entries of a robust list that are looked at (Linux: ROBUST_LIST_LIMIT).
const ROBUST_LIMIT: usize = 2048;
/// Mark of a priority-inheriting mutex in a robust list's addresses.
const PI: u64 = 1;

/// Marks the robust mutexes that the running thread holds, and wakes their waiters. Linux: `exit_robust_list`.
pub fn exit_robust_list(thread: &Thread) {
    let head = thread.robust_list.swap(0, Ordering::Relaxed);
    if head == 0 {
        return;
    }
    // struct robust_list_head: list.next, futex_offset, list_op_pending.
    let Ok([first, offset, pending]) = user::read::<[u64; 3]>(head) else { return };
    let mut at = first;
    for _ in 0..ROBUST_LIMIT {
        // Bit 0 marks priority-inheriting ones: who waits for those is told by `pi`.
        let entry = at & !PI;
        if entry == head || entry == 0 {
            break;
        }
        let next = user::read::<u64>(entry);
        if entry != pending & !PI {
            owner_died(thread, entry.wrapping_add(offset), at & PI != 0, false);
        }
        let Ok(next) = next else { break };
        at = next;
    }
    if pending & !PI != 0 {
        owner_died(thread, (pending & !PI).wrapping_add(offset), pending & PI != 0, true);
    }
}

fn owner_died(thread: &Thread, word: u64, pi: bool, pending: bool) {
    if !word.is_multiple_of(4) {
        return;
    }
    // Bounded: somebody may change the word all the time.
    for _ in 0..64 {
        let Ok(old) = user::read::<u32>(word) else { return };
        if pending && !pi && old & FUTEX_TID_MASK == 0 {
            // Unlocked, but perhaps not woken yet.
            wake_address(word, 1);
            return;
        }
        if old & FUTEX_TID_MASK != thread.tid() {
            return;
        }
        match user::cas_u32(word, old, old & FUTEX_WAITERS | FUTEX_OWNER_DIED) {
            Ok(found) if found == old => {
                if !pi && old & FUTEX_WAITERS != 0 {
                    wake_address(word, 1);
                }
                return;
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}
