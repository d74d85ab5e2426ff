//! A task sleeps until somebody has something for it: a token in the task, not a queue. Any task may [`park`] itself; anybody may
//! [`unpark`] it, in interrupts too, with no run queue locked.
//!
//! # The race
//! Wrong would be: the task finds no token and sleeps, and the other has left one and wakes nobody. Each side writes before it reads,
//! both by a locked exchange: the task announces that it blocks ([`Event::Block`]), then takes the token; the other leaves the token,
//! then sends [`Event::Wake`]. If the task finds no token, its announcement came first, and the wake-up finds it.
//!
//! A token that was there already needs no second wake-up: who left it sends one. Whoever waits for something else meanwhile may be woken
//! by a late one; every wait in this kernel looks again.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vcpu_sched::events::WaitReason;
use vcpu_sched::task::state::Event;

use crate::sched;
use crate::task::{Task, current};
use crate::trace;

/// Sleeps until there is a token, and takes it. May return without one.
pub fn park() {
    park_for(WaitReason::Other, 0, || false);
}

/// The same, told to who looks: for what, and which. Doesn't sleep if `look` says so, which is asked once the task has announced that it
/// blocks; whoever changes what it looks at wakes the task afterwards.
pub(super) fn park_for(why: WaitReason, number: u64, look: impl FnOnce() -> bool) {
    let me = current();
    me.set_wait_reason(why);
    let block = me.state.apply(Event::Block);
    debug_assert!(block.is_ok());
    // SeqCst: a locked exchange after the announcement, see the module's text. Acquire: what was done for us is seen.
    if me.token.swap(false, Ordering::SeqCst) || look() {
        _ = me.state.apply(Event::CancelBlock);
        return;
    }
    trace::block(why, number);
    sched::block();
    // As above.
    me.token.swap(false, Ordering::SeqCst);
}

/// Leaves a token for a task, and wakes it.
pub fn unpark(task: &Arc<Task>) {
    // SeqCst: before the wake-up, see the module's text. Release: what was done for the task goes with it.
    if !task.token.swap(true, Ordering::SeqCst) {
        sched::wake(task);
    }
}
