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
        self.0.compare_exchange(ACTIVE, IDLE, Ordering::Release, Ordering::Relaxed).is_ok()
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_gets_one_interrupt_for_many_kicks() {
        let sleep = SleepState::new();
        assert!(sleep.prepare_idle());
        assert!(sleep.is_idle());
        assert!(sleep.kick());
        assert!(!sleep.kick());
        assert!(!sleep.is_idle());
        sleep.leave_idle();
        assert!(sleep.prepare_idle());
    }

    #[test]
    fn a_kick_while_awake_forbids_the_next_halt_only() {
        let sleep = SleepState::new();
        assert!(!sleep.kick());
        assert!(!sleep.prepare_idle());
        sleep.leave_idle();
        assert!(sleep.prepare_idle());
    }
}

/// A CPU in its idle loop, and others that hand it work. A halt is a wait for the IPI, so a lost wake-up is a deadlock,
/// which loom reports.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::sync::Notify;
    use loom::thread;
    // Loom's threads are coroutines of one thread. Its own Arc adds orderings, and aborts where a model is to fail.
    use std::rc::Rc;

    struct Machine {
        sleep: SleepState,
        /// A queue without a lock and without an order of its own: all that is seen is seen through `sleep`.
        queue: [AtomicU8; 2],
        /// Stays pending if it comes before the wait, as in the APIC.
        ipi: Notify,
        halts: AtomicU8,
        ipis: AtomicU8,
    }

    impl Machine {
        fn new() -> Rc<Self> {
            Rc::new(Self {
                sleep: SleepState::new(),
                queue: [AtomicU8::new(0), AtomicU8::new(0)],
                ipi: Notify::new(),
                halts: AtomicU8::new(0),
                ipis: AtomicU8::new(0),
            })
        }

        fn hand_over(this: &Rc<Self>, slot: usize) -> thread::JoinHandle<()> {
            let machine = this.clone();
            thread::spawn(move || {
                machine.queue[slot].store(1, Ordering::Relaxed);
                if machine.sleep.kick() {
                    machine.ipis.fetch_add(1, Ordering::Relaxed);
                    machine.ipi.notify();
                }
            })
        }

        fn pop_all(&self) -> u8 {
            // Only the CPU takes out, and each slot is filled once.
            self.queue
                .iter()
                .map(|slot| {
                    if slot.load(Ordering::Relaxed) == 1 {
                        slot.store(2, Ordering::Relaxed);
                        1
                    } else {
                        0
                    }
                })
                .sum()
        }

        fn halt(&self) {
            self.halts.fetch_add(1, Ordering::Relaxed);
            self.ipi.wait();
        }

        /// The idle loop of the module's text, until `tasks` tasks were seen.
        fn idle_loop(&self, tasks: u8) {
            let mut seen = 0;
            loop {
                self.sleep.leave_idle();
                seen += self.pop_all();
                if seen == tasks {
                    return;
                }
                if self.sleep.prepare_idle() {
                    self.halt();
                }
            }
        }
    }

    #[test]
    fn loom_nothing_is_left_lying_when_a_cpu_halts() {
        loom::model(|| {
            let machine = Machine::new();
            let other = Machine::hand_over(&machine, 0);
            machine.idle_loop(1);
            other.join().unwrap();
            assert!(machine.ipis.load(Ordering::Relaxed) <= machine.halts.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn loom_two_that_hand_over_are_both_seen() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(4); // all of it takes a quarter of a minute
        model.check(|| {
            let machine = Machine::new();
            let others = [Machine::hand_over(&machine, 0), Machine::hand_over(&machine, 1)];
            machine.idle_loop(2);
            for other in others {
                other.join().unwrap();
            }
            assert!(machine.ipis.load(Ordering::Relaxed) <= machine.halts.load(Ordering::Relaxed));
        });
    }

    /// The model must be able to fail: `leave_idle` after the look wipes out the kick for what wasn't seen.
    #[test]
    #[should_panic = "deadlock"]
    fn loom_sees_a_kick_that_was_wiped_out() {
        loom::model(|| {
            let machine = Machine::new();
            let other = Machine::hand_over(&machine, 0);
            while machine.pop_all() == 0 {
                machine.sleep.leave_idle();
                if machine.sleep.prepare_idle() {
                    machine.halt();
                }
            }
            other.join().unwrap();
        });
    }
}
