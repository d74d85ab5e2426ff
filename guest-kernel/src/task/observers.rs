//! Who looks at every system call, in one word: a call that nobody looks at pays for one test, however many could look.
//!
//! Whoever begins or ends looking says so with [`set`]; `arch::trap` asks [`any`] once in each call. A debugger outside has a word of
//! its own (`arch::debug_port`), which the VMM writes.

use core::sync::atomic::{AtomicU32, Ordering};

/// Somebody who looks.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Observer {
    /// The ABI layer: it counts, prints or records calls.
    Layer = 1 << 0,
    /// Chaos, which has points at a call's begin and end.
    Chaos = 1 << 1,
}

static LOOKING: AtomicU32 = AtomicU32::new(0);

/// It looks at calls from now on, or no longer.
pub fn set(who: Observer, looks: bool) {
    // Relaxed, here and below: a call more or less is seen at either end.
    if looks {
        LOOKING.fetch_or(who as u32, Ordering::Relaxed);
    } else {
        LOOKING.fetch_and(!(who as u32), Ordering::Relaxed);
    }
}

/// Whether anybody does.
#[inline(always)]
pub fn any() -> bool {
    LOOKING.load(Ordering::Relaxed) != 0
}
