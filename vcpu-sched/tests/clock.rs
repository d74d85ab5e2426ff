//! `TscScale` against exact rational arithmetic.

use proptest::prelude::*;
use vcpu_sched::clock::TscScale;
use vcpu_sched::ids::{Khz, Nanos};

/// Frequencies that exist, and all others.
fn frequencies() -> impl Strategy<Value = u32> {
    prop_oneof![
        1..=u32::MAX,
        800_000..6_000_000u32,
        (0..32u32).prop_map(|bit| 1 << bit),
        (0..32u32).prop_map(|bit| u32::MAX >> bit),
        prop::sample::select(vec![1, 1_000, 1_000_000, 1_000_001, 2_100_000, 3_000_000, u32::MAX]),
    ]
}

/// Spread over all magnitudes.
fn amounts() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64u32).prop_map(|(value, shift)| value >> shift)
}

fn scale(khz: u32) -> TscScale {
    TscScale::from_khz(Khz(khz)).expect("not zero")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn ticks_to_ns(khz in frequencies(), ticks in amounts()) {
        let exact = u128::from(ticks) * 1_000_000 / u128::from(khz);
        let got = u128::from(scale(khz).to_ns(ticks).0);
        if exact < 1 << 63 {
            prop_assert!(got <= exact && exact - got <= 1, "{} for {}", got, exact);
        } else if exact > u128::from(u64::MAX) + 2 {
            prop_assert_eq!(got, u128::from(u64::MAX));
        } else {
            prop_assert!(got <= exact && exact - got <= 2 || got == u128::from(u64::MAX), "{} for {}", got, exact);
        }
    }

    #[test]
    fn ns_to_ticks(khz in frequencies(), ns in amounts()) {
        let exact = (u128::from(ns) * u128::from(khz)).div_ceil(1_000_000);
        let got = u128::from(scale(khz).to_ticks(Nanos(ns)));
        if exact < 1 << 61 {
            prop_assert!(got >= exact && got - exact <= 1, "{} for {}", got, exact);
        } else if exact >= u128::from(u64::MAX) {
            prop_assert_eq!(got, u128::from(u64::MAX));
        } else {
            prop_assert!(got >= exact && got - exact <= 6, "{} for {}", got, exact);
        }
    }

    #[test]
    fn a_timer_is_never_early(khz in frequencies(), ns in amounts()) {
        let scale = scale(khz);
        let ticks = scale.to_ticks(Nanos(ns));
        if ticks < u64::MAX {
            prop_assert!(scale.to_ns(ticks) >= Nanos(ns));
        }
        // Nor later than a few ticks, which is at most a few ticks' worth of nanoseconds.
        let slack = 2 + 8_000_000 / u64::from(khz);
        if ticks < 1 << 61 {
            prop_assert!(scale.to_ns(ticks) <= Nanos(ns) + Nanos(slack));
        }
    }

    #[test]
    fn both_are_monotone(khz in frequencies(), value in amounts(), step in amounts()) {
        let scale = scale(khz);
        let later = value.saturating_add(step);
        prop_assert!(scale.to_ns(value) <= scale.to_ns(later));
        prop_assert!(scale.to_ticks(Nanos(value)) <= scale.to_ticks(Nanos(later)));
    }
}

#[test]
fn round_figures_are_exact() {
    let ghz = scale(1_000_000);
    for value in [0, 1, 5, 1 << 40, u64::MAX] {
        assert_eq!(ghz.to_ns(value), Nanos(value));
        assert_eq!(ghz.to_ticks(Nanos(value)), value);
    }
    let four_ghz = scale(4_000_000);
    assert_eq!(four_ghz.to_ns(4_000_000_000), Nanos::from_secs(1));
    assert_eq!(four_ghz.to_ticks(Nanos::from_secs(1)), 4_000_000_000);
    assert_eq!(four_ghz.to_ticks(Nanos::MAX), u64::MAX);
    assert_eq!(scale(1).to_ns(u64::MAX), Nanos::MAX);
}

#[test]
fn no_frequency_no_scale() {
    assert_eq!(TscScale::from_khz(Khz(0)), None);
}
