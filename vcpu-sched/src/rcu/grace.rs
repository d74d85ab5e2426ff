//! Grace periods: a pure state machine over sets of CPUs. No atomics and no clock; [`Domain`](super::Domain) feeds it
//! under a lock. The invariant: a period ends only when each CPU that was online when it began has since been
//! quiescent, idle or offline.
//!
//! Periods are numbered from 1. [`Periods::cookie`] names the first one that begins after the call, so that whatever
//! was unlinked before has no reader when it [`is_over`](Periods::is_over).

use crate::cpumask::CpuMask;
use crate::ids::{CpuId, Nanos};

/// Names the end of a period.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cookie(pub(super) u64);

/// A period that takes too long, told once for each time that the limit passes.
#[derive(Clone, Debug)]
pub struct Stall {
    /// The period's number.
    pub period: u64,
    /// Who holds it up.
    pub cpus: CpuMask,
    /// For how long it has been going on.
    pub waited: Nanos,
}

/// What the state machine wants its caller to do.
#[must_use = "callbacks wait for the end, and CPUs that are not asked may never answer"]
#[derive(Clone, Debug)]
pub enum Step {
    /// Nothing has changed.
    Wait,
    /// A period has begun: ask these CPUs.
    Began(CpuMask),
    /// A period has ended, and no other is wanted.
    Ended,
    /// A period has ended and the next has begun: ask these CPUs.
    EndedAndBegan(CpuMask),
}

/// All periods of one domain.
#[derive(Debug)]
pub struct Periods {
    /// The last period that has ended.
    ended: u64,
    /// The last one that somebody waits for.
    wanted: u64,
    /// The running period, `ended + 1`, and who holds it up; `None` between periods.
    holdouts: Option<CpuMask>,
    began: Nanos,
    /// When the next stall is to be told.
    patience: Nanos,
    stall_after: Nanos,
}

impl Periods {
    /// None has begun. A period that takes longer than `stall_after` is told of.
    pub const fn new(stall_after: Nanos) -> Self {
        Self { ended: 0, wanted: 0, holdouts: None, began: Nanos::ZERO, patience: Nanos::ZERO, stall_after }
    }

    /// The number of the running period.
    pub const fn running(&self) -> Option<u64> {
        if self.holdouts.is_some() { Some(self.ended + 1) } else { None }
    }

    /// Wants a period that begins after this call, and names its end. The one that is running may have readers that
    /// began before the call, so it doesn't count.
    pub fn cookie(&mut self) -> Cookie {
        let first_whole = self.ended + 1 + u64::from(self.holdouts.is_some());
        self.wanted = self.wanted.max(first_whole);
        Cookie(first_whole)
    }

    /// Have all readers from before the cookie gone?
    pub const fn is_over(&self, cookie: Cookie) -> bool {
        self.ended >= cookie.0
    }

    /// Does anybody wait?
    pub const fn is_wanted(&self) -> bool {
        self.wanted > self.ended
    }

    /// Who holds up the running period.
    pub const fn holdouts(&self) -> Option<&CpuMask> {
        self.holdouts.as_ref()
    }

    /// These CPUs hold the running period up no longer: they have been quiescent since it began, or are idle or
    /// offline. A CPU that comes online during a period has read nothing from before it, and is not asked.
    pub fn quiescent(&mut self, mut is: impl FnMut(CpuId) -> bool) {
        let Some(holdouts) = &mut self.holdouts else { return };
        let mut at = holdouts.first();
        while let Some(cpu) = at {
            at = holdouts.next(cpu);
            if is(cpu) {
                holdouts.clear(cpu);
            }
        }
    }

    /// Ends the running period if nobody holds it up, and begins the next if one is wanted, with the CPUs that are
    /// online.
    pub fn step(&mut self, now: Nanos, online: &CpuMask) -> Step {
        let ended = match &self.holdouts {
            Some(holdouts) if !holdouts.is_empty() => return Step::Wait,
            Some(_) => {
                self.ended += 1;
                self.holdouts = None;
                true
            }
            None => false,
        };
        if !self.is_wanted() {
            return if ended { Step::Ended } else { Step::Wait };
        }
        self.holdouts = Some(online.clone());
        self.began = now;
        self.patience = now + self.stall_after;
        if ended { Step::EndedAndBegan(online.clone()) } else { Step::Began(online.clone()) }
    }

    /// Tells of a period that takes too long. It goes on all the same: a reader that is slow still reads.
    pub fn stall(&mut self, now: Nanos) -> Option<Stall> {
        let holdouts = self.holdouts.as_ref().filter(|holdouts| !holdouts.is_empty() && now >= self.patience)?;
        self.patience = now + self.stall_after;
        Some(Stall { period: self.ended + 1, cpus: holdouts.clone(), waited: now - self.began })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn mask(cpus: u32) -> CpuMask {
        CpuMask::full(cpus)
    }

    #[test]
    fn a_cookie_from_the_middle_of_a_period_waits_for_the_next() {
        let mut periods = Periods::new(Nanos(100));
        let first = periods.cookie();
        assert!(matches!(periods.step(Nanos(0), &mask(2)), Step::Began(_)));
        let second = periods.cookie();
        assert!(second > first);
        periods.quiescent(|_| true);
        assert!(matches!(periods.step(Nanos(1), &mask(2)), Step::EndedAndBegan(_)));
        assert!(periods.is_over(first) && !periods.is_over(second));
        periods.quiescent(|cpu| cpu.0 == 1);
        assert!(matches!(periods.step(Nanos(2), &mask(2)), Step::Wait));
        periods.quiescent(|cpu| cpu.0 == 0);
        assert!(matches!(periods.step(Nanos(3), &mask(2)), Step::Ended));
        assert!(periods.is_over(second) && periods.running().is_none());
    }

    #[test]
    fn nothing_begins_that_nobody_wants_and_no_cpus_hold_up_nothing() {
        let mut periods = Periods::new(Nanos(100));
        assert!(matches!(periods.step(Nanos(0), &mask(2)), Step::Wait));
        let cookie = periods.cookie();
        assert!(matches!(periods.step(Nanos(0), &CpuMask::empty()), Step::Began(_)));
        assert!(matches!(periods.step(Nanos(0), &mask(2)), Step::Ended));
        assert!(periods.is_over(cookie));
    }

    #[test]
    fn a_stall_names_who_holds_it_up_once_in_a_while() {
        let mut periods = Periods::new(Nanos(100));
        periods.cookie();
        assert!(matches!(periods.step(Nanos(1000), &mask(3)), Step::Began(_)));
        periods.quiescent(|cpu| cpu.0 != 1);
        assert!(periods.stall(Nanos(1099)).is_none());
        let stall = periods.stall(Nanos(1100)).expect("its time is up");
        assert_eq!((stall.period, stall.waited, stall.cpus.first()), (1, Nanos(100), Some(CpuId(1))));
        assert!(periods.stall(Nanos(1150)).is_none());
        assert!(periods.stall(Nanos(1200)).is_some());
        periods.quiescent(|_| true);
        assert!(periods.stall(Nanos(9999)).is_none(), "it only has to be ended");
    }

    proptest! {
        /// Whatever the CPUs do: when a cookie is over, each CPU that was online when it was given has been quiescent
        /// or offline since.
        #[test]
        fn no_period_ends_before_all_have_answered(steps in proptest::collection::vec((0..5u8, 0..4u32), 1..300)) {
            let mut periods = Periods::new(Nanos(100));
            let mut online = mask(4);
            // For each cookie: who has not been seen quiescent since.
            let mut waiting: Vec<(Cookie, CpuMask)> = Vec::new();
            for (step, cpu) in steps {
                let cpu = CpuId(cpu);
                match step {
                    0 => waiting.push((periods.cookie(), online.clone())),
                    1 | 2 => {
                        if step == 2 {
                            online.clear(cpu);
                        }
                        periods.quiescent(|one| one == cpu);
                        waiting.iter_mut().for_each(|(_, unseen)| unseen.clear(cpu));
                    }
                    3 => online.set(cpu),
                    _ => _ = periods.step(Nanos::ZERO, &online),
                }
                for (cookie, unseen) in &waiting {
                    prop_assert!(!periods.is_over(*cookie) || unseen.is_empty());
                }
                waiting.retain(|(cookie, _)| !periods.is_over(*cookie));
            }
            // And all end, when all answer.
            while periods.is_wanted() {
                periods.quiescent(|_| true);
                _ = periods.step(Nanos::ZERO, &online);
            }
            prop_assert!(waiting.iter().all(|(cookie, _)| periods.is_over(*cookie)));
        }
    }
}
