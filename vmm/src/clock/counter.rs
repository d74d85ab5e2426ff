//! The guest's counter, told from outside: the host's, times a ratio, plus an offset.
//!
//! Both are the same on hosts where KVM steers nothing; elsewhere the offset is the one that KVM says it set. Which of the two is
//! true is seen when the guest publishes its directory, for there it tells its own counter.

/// A guess is right if it comes this near, in milliseconds; the wrong one is off by the host's uptime.
const NEAR_MS: u64 = 100;
/// If no guess is right, the counter is related by one reading whose exit may have taken so long; a clock based on it then
/// stands still for that time at a change instead of running backwards.
const EXIT_US: u64 = 100;

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// Guest ticks in `host` of the host's.
    guest: u32,
    host: u32,
    /// Modulo 2^64.
    offset: u64,
}

/// The host's counter.
pub fn host_ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux leaves it open to programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

impl Counter {
    /// With these frequencies in kHz (0: unknown, then they are the same), an offset that KVM claims, and one look: what the guest
    /// said its counter was, a moment before the host's was `host_ticks`.
    pub fn settle(guest_khz: u32, host_khz: u32, claimed: Option<u64>, guest_ticks: u64, host_ticks: u64) -> Self {
        let same = guest_khz == 0 || host_khz == 0;
        let (guest, host) = if same { (1, 1) } else { (guest_khz, host_khz) };
        let with = |offset| Self { guest, host, offset };
        let off = |counter: &Self| counter.at(host_ticks).abs_diff(guest_ticks);
        let near = u64::from(guest_khz.max(1)).saturating_mul(NEAR_MS);
        let guesses = [Some(0), claimed].into_iter().flatten().map(with);
        guesses.filter(|guess| off(guess) < near).min_by_key(off).unwrap_or_else(|| {
            let late = u64::from(guest_khz) * EXIT_US / 1000;
            with(guest_ticks.wrapping_add(late).wrapping_sub(with(0).at(host_ticks)))
        })
    }

    /// The guest's counter when the host's is this.
    pub fn at(&self, host_ticks: u64) -> u64 {
        let scaled = u128::from(host_ticks) * u128::from(self.guest) / u128::from(self.host.max(1));
        (scaled as u64).wrapping_add(self.offset)
    }

    /// The guest's counter now.
    pub fn now(&self) -> u64 {
        self.at(host_ticks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KHZ: u32 = 2_000_000;

    #[test]
    fn the_guess_that_the_guest_confirms_is_taken() {
        let uptime = 1 << 50;
        // KVM claims an offset that has no effect.
        assert_eq!(Counter::settle(KHZ, KHZ, Some(77 << 40), uptime - 9_000, uptime).offset, 0);
        // It has.
        let offset = 0u64.wrapping_sub(uptime - 5_000_000);
        assert_eq!(Counter::settle(KHZ, KHZ, Some(offset), 5_000_000 - 9_000, uptime).offset, offset);
        // Half as fast, and an offset.
        let scaled = Counter::settle(KHZ / 2, KHZ, Some(7 << 40), uptime / 2 + (7 << 40), uptime);
        assert_eq!((scaled.offset, scaled.at(uptime + 10)), (7 << 40, uptime / 2 + (7 << 40) + 5));
    }

    #[test]
    fn without_a_right_guess_the_clock_is_rather_late_than_early() {
        let counter = Counter::settle(KHZ, KHZ, None, 1_000, 1 << 50);
        assert_eq!(counter.at(1 << 50), 1_000 + 200_000);
        assert_eq!(Counter::settle(0, 0, None, 5, 5).at(9), 9);
    }
}
