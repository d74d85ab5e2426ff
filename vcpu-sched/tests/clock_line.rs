//! The clock's line, its page and a CPU's copy against exact rational arithmetic, over the whole range of counters, rates and times.

use proptest::prelude::*;
use vcpu_sched::clock::line::scale;
use vcpu_sched::clock::{ClockLine, ClockPage, FastClock, Rate, Step, StepError, TscScale};
use vcpu_sched::ids::{Khz, Nanos};

/// Counters that can carry any rate, and slower ones.
fn counters() -> impl Strategy<Value = Khz> {
    prop_oneof![1..=u32::MAX, 800_000..6_000_000u32, Just(1), Just(u32::MAX)].prop_map(Khz)
}

fn rates() -> impl Strategy<Value = Rate> {
    let (min, max) = (Rate::MIN.nanos(), Rate::MAX.nanos());
    let near = prop::sample::select(vec![min, min + 1, 500_000_000, 999_999_999, 1_000_000_000, 2_000_000_000, max]);
    prop_oneof![min..=max, near].prop_map(|nanos| Rate::from_nanos(nanos).unwrap())
}

/// Spread over all magnitudes.
fn amounts() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64u32).prop_map(|(value, shift)| value >> shift)
}

/// A change of a clock.
#[derive(Clone, Copy, Debug)]
enum Change {
    Rate(Rate),
    Forward(u64),
    /// It stood still for so many ticks.
    Still(u64),
    Nothing,
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        rates().prop_map(Change::Rate),
        (0..1u64 << 50).prop_map(Change::Forward),
        (0..1u64 << 50).prop_map(Change::Still),
        Just(Change::Nothing),
    ]
}

fn line(counter: Khz, base: u64, time: u64) -> ClockLine {
    ClockLine::new(counter, counter, base, Nanos(time)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// `floor(x)` or one less, for the exact quotient x; never more, so nobody sees a time that hasn't come.
    #[test]
    fn a_scale_is_exact(counter in counters(), rate in rates(), ticks in amounts()) {
        let per = u64::from(counter.0) * 1000;
        let Some(scale) = TscScale::from_ratio(rate.nanos(), per) else { return Err(TestCaseError::fail("no scale")) };
        let exact = u128::from(ticks) * u128::from(rate.nanos()) / u128::from(per);
        let got = u128::from(scale.to_ns(ticks).0);
        if exact < 1 << 63 {
            prop_assert!(got <= exact && exact - got <= 1, "{got} for {exact}");
        } else {
            prop_assert!(got <= exact && (exact - got <= 2 || got == u128::from(u64::MAX)), "{got} for {exact}");
        }
    }

    /// A timer that is armed for a time fires when it has come, and not a millionth and a few ticks later.
    #[test]
    fn there_and_back(counter in counters(), rate in rates(), ns in amounts()) {
        let Ok(scale) = scale(counter, rate) else { return Ok(()) };
        let ticks = scale.to_ticks(Nanos(ns));
        if ticks == u64::MAX {
            return Ok(());
        }
        prop_assert!(scale.to_ns(ticks) >= Nanos(ns));
        let earlier = ticks.saturating_sub(8 + ticks / 1_000_000);
        prop_assert!(ticks < 16 || scale.to_ns(earlier) <= Nanos(ns), "{ticks} ticks for {ns} ns");
    }

    #[test]
    fn parts_make_the_scale_again_and_others_none(counter in counters(), rate in rates(), at in 0..4usize, bit in 0..64u32) {
        let Ok(scale) = scale(counter, rate) else { return Ok(()) };
        let parts = scale.parts();
        prop_assert_eq!(TscScale::from_parts(parts), Some(scale));
        prop_assert_eq!(TscScale::from_trusted_parts(parts), scale);
        let mut spoiled = parts;
        spoiled[at] ^= 1 << bit;
        // Another scale is possible, for a multiplier that has the same inverse; no panic and no nonsense are.
        if let Some(other) = TscScale::from_parts(spoiled) {
            prop_assert_eq!(other.parts(), spoiled);
        }
    }

    #[test]
    fn parts_of_anything_do_no_harm(parts: [u64; 4], amount: u64) {
        let scale = TscScale::from_trusted_parts(parts);
        let _ = (scale.to_ns(amount), TscScale::from_parts(parts));
    }

    /// Whatever happens to a clock, in whatever order: who reads it before and after sees no time run backwards, and no jump at
    /// a change that isn't a step.
    #[test]
    fn no_change_runs_backwards(
        counter in 800_000..6_000_000u32,
        base in amounts(),
        steps in prop::collection::vec((0..1u64 << 44, changes()), 1..20),
    ) {
        let mut clock = line(Khz(counter), base >> 2, 0);
        let (mut ticks, mut seen) = (clock.base_ticks, Nanos::ZERO);
        for (passes, change) in steps {
            ticks += passes;
            let before = clock.at(ticks);
            prop_assert!(before >= seen);
            match change {
                Change::Rate(rate) => clock = clock.with_rate(ticks, rate).unwrap(),
                Change::Forward(ns) => {
                    if let Ok(stepped) = clock.with_step(ticks, Step::Forward(Nanos(ns))) {
                        prop_assert_eq!(stepped.at(ticks), before + Nanos(ns));
                        clock = stepped;
                    }
                }
                Change::Still(for_ticks) => {
                    clock = clock.without(ticks, ticks + for_ticks);
                    ticks += for_ticks;
                }
                Change::Nothing => {}
            }
            seen = clock.at(ticks);
            prop_assert!(seen >= before);
            if !matches!(change, Change::Forward(_)) {
                prop_assert_eq!(seen, before);
            }
        }
    }

    /// A CPU's copy says what the page says, to two nanoseconds, and knows when it doesn't any more.
    #[test]
    fn the_fast_copy_agrees(counter in 800_000..6_000_000u32, rate in rates(), base in amounts(), later in 0..1u64 << 56) {
        let clock = line(Khz(counter), base >> 1, 0).with_rate(base >> 1, rate).unwrap();
        let fast = FastClock::new();
        fast.fill(&clock, 4, base >> 1);
        let ticks = (base >> 1) + later;
        prop_assert!(fast.at(ticks).0.abs_diff(clock.at(ticks).0) <= 2, "{:?} {:?}", fast.at(ticks), clock.at(ticks));
        prop_assert!(!fast.is_stale(4, ticks) && fast.is_stale(6, ticks));
        prop_assert!(fast.is_stale(4, ticks.wrapping_add(1 << 57)));
    }

    /// A slice that was armed is over when its ticks have passed.
    #[test]
    fn a_slice_is_over_when_its_timer_fires(counter in 800_000..6_000_000u32, rate in rates(), base in amounts(), slice in 0..1u64 << 40) {
        let clock = line(Khz(counter), base >> 1, 0).with_rate(base >> 1, rate).unwrap();
        let fast = FastClock::new();
        fast.fill(&clock, 2, base >> 1);
        let start = (base >> 1) + (slice >> 3);
        let end = start + fast.span_ticks(Nanos(slice));
        prop_assert!(fast.at(end) - fast.at(start) >= Nanos(slice));
        // What was noted as a time is found again as a tick.
        let tick = fast.tick_of(fast.at(start));
        let few_ticks = 8 + 4 * rate.nanos().div_ceil(u64::from(counter) * 1000);
        prop_assert!(fast.at(tick).0.abs_diff(fast.at(start).0) <= few_ticks);
    }

    /// The page gives back what was put in, and a host takes nothing else from it.
    #[test]
    fn the_page_keeps_a_line(counter in counters(), told in 2..=u32::MAX, rate in rates(), base in amounts(), time in amounts()) {
        let Ok(clock) = ClockLine::new(counter, Khz(told), base, Nanos(time)).and_then(|clock| clock.with_rate(base, rate)) else {
            return Ok(());
        };
        let page = ClockPage::new();
        prop_assert!(page.checked().is_err());
        prop_assert_eq!(page.now(|| 5), Nanos::ZERO);
        page.set_line(&clock);
        prop_assert_eq!(page.checked(), Ok(clock));
        prop_assert_eq!(page.line(), Some((clock, 2)));
        prop_assert_eq!(page.now(|| base), clock.at(base));
        prop_assert_eq!(page.ticks_at(clock.base_ns + Nanos(1000)), clock.ticks_at(clock.base_ns + Nanos(1000)));
        page.set_skews(&[0, -5]);
        prop_assert_eq!((page.skew(0), page.skew(1), page.skew(2), page.skew(usize::MAX)), (0, -5, 0, 0));
        prop_assert_eq!(page.sequence(), 4);
    }
}

#[test]
fn a_step_back_stops_at_zero_and_a_far_one_at_the_end() {
    let clock = line(Khz(1_000_000), 0, 500);
    assert_eq!(clock.with_step(0, Step::Backward(Nanos(500))).map(|clock| clock.at(0)), Ok(Nanos::ZERO));
    let refused = clock.with_step(0, Step::Backward(Nanos(501)));
    assert_eq!(refused, Err(StepError::BeforeZero { now: Nanos(500) }));
    assert_eq!(clock.with_step(0, Step::Forward(Nanos::MAX)), Err(StepError::TooFar));
}

#[test]
fn a_slow_counter_carries_no_fast_clock() {
    let clock = line(Khz(100_000), 0, 0);
    assert_eq!(clock.with_rate(0, Rate::MAX), Err(StepError::CounterTooSlow { counter: Khz(100_000) }));
    assert!(clock.with_rate(0, Rate::from_nanos(12_000_000_000).unwrap()).is_ok());
    assert!(ClockLine::new(Khz(7_000), Khz(7_000), 0, Nanos::ZERO).is_err());
}

#[test]
fn the_virtual_counter_counts_what_is_told() {
    let clock = ClockLine::new(Khz(2_596_140), Khz(1_000_000), 0, Nanos::ZERO).unwrap();
    assert_eq!(clock.told_ticks(Nanos(12_345)), 12_345);
    let clock = ClockLine { told: Khz(2_000_000), ..clock };
    assert_eq!(clock.told_ticks(Nanos(12_345)), 24_690);
    assert!(clock.around(0) <= clock.at(0));
}
