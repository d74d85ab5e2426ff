//! Going idle without losing a wake-up.
//!
//! One [`SleepState`] per CPU. The CPU itself calls [`prepare_idle`](SleepState::prepare_idle) and
//! [`leave_idle`](SleepState::leave_idle); any CPU that has put something in this one's queue calls
//! [`kick`](SleepState::kick) afterwards. The invariant: a CPU halts only if everything that was handed over before has
//! been looked at, and an IPI comes for everything after.
//!
//! ```text
//! idle loop of the CPU                            any other CPU
//! loop {                                          queue.lock().push(task);
//!     sleep.leave_idle();                         if sleep.kick() {
//!     if let Some(task) = queue.lock().pop() {        send_ipi(cpu);
//!         run(task);                              }
//!         continue;
//!     }
//!     disable_interrupts();
//!     if sleep.prepare_idle() {
//!         enable_interrupts_and_halt();
//!     } else {
//!         enable_interrupts();
//!     }
//! }
//! ```
//!
//! # The race
//! Going idle races with a remote enqueue. Wrong would be: we halt, and the other CPU believes that we will look again.
//! Both sides make *one* atomic read-modify-write on the same word, so one of them is first:
//! - our `prepare_idle` first: its `kick` reads `Idle`, so it sends the IPI. We may not have executed `hlt` yet, but our
//!   interrupts are off until `sti; hlt`, and `sti` takes effect only after `hlt` has begun; the IPI stays pending in
//!   the APIC and ends the `hlt` at once.
//! - its `kick` first: our `prepare_idle` finds `DontSleep`, fails, and we look again.
//!
//! The other race is between `leave_idle` and a `kick`, and here both orders are harmless:
//! - `leave_idle` first: the word is `DontSleep` afterwards, and the next `prepare_idle` fails. We may look once too
//!   often.
//! - `kick` first: `leave_idle` wipes it out, but we look into the queue *after* that, and the push came before the
//!   `kick`, so we see it.
//!
//! Hence `leave_idle` before every look, never between a look and `prepare_idle`: that would wipe out the kick for
//! something we haven't seen.
//!
//! A `kick` that finds `DontSleep` sends no IPI, because the one before did, or the CPU is awake: any number of pushes
//! costs a sleeping CPU one interrupt. Interrupting a CPU that is *busy* is not this module's job, see [`kick`](super::kick).

use crate::sync::{AtomicU8, Ordering, const_new};

/// The CPU runs, and nobody has handed it anything since it last looked.
const ACTIVE: u8 = 0;
/// The CPU halts or is about to, and needs an IPI to notice anything.
const IDLE: u8 = 1;
/// Something was handed over: the CPU must look before it may halt.
const DONT_SLEEP: u8 = 2;

/// Whether a CPU sleeps. See the module's text.
#[derive(Debug)]
#[repr(transparent)]
pub struct SleepState(AtomicU8);

impl Default for SleepState {
    fn default() -> Self {
        Self::new()
    }
}

impl SleepState {
    const_new! {
        /// A CPU that is awake.
        pub const fn new() -> Self {
            Self(AtomicU8::new(ACTIVE))
        }
    }

    /// The CPU has found nothing to do, has its interrupts off, and asks whether it may halt. If not, it must look again,
    /// after [`leave_idle`](SleepState::leave_idle).
    ///
    /// Release, so that who kicks us sees what we did before we went idle. A failure needs no acquire: the
    /// `leave_idle` that follows has it.
    #[inline]
    #[must_use = "halting although something was handed over loses it"]
    pub fn prepare_idle(&self) -> bool {
        self.0
            .compare_exchange(ACTIVE, IDLE, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }

    /// The CPU is awake and is about to look into its queue.
    ///
    /// A swap rather than a store, so that it can acquire: what was pushed before the kick that we wipe out is seen by
    /// the look that follows, even if the queue has no lock. Release for the next kicker, as above.
    #[inline]
    pub fn leave_idle(&self) {
        self.0.swap(ACTIVE, Ordering::AcqRel);
    }

    /// Something has been put into the CPU's queue. True if the caller must send the CPU an IPI.
    ///
    /// Release, so that the CPU sees what was put there; acquire, so that the IPI is sent after what the CPU did before
    /// it went idle.
    #[inline]
    #[must_use = "a sleeping CPU notices nothing without an IPI"]
    pub fn kick(&self) -> bool {
        self.0.swap(DONT_SLEEP, Ordering::AcqRel) == IDLE
    }

    /// Does the CPU halt, unkicked? A hint for placement, stale at once.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.0.load(Ordering::Relaxed) == IDLE
    }
}
