//! `CpuMask` against a `BTreeSet` as its model, and its text and byte forms.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vcpu_sched::cpumask::{CpuMask, MASK_BYTES, MAX_CPUS, ParseCpuMaskError, ParseCpuMaskErrorKind};
use vcpu_sched::ids::CpuId;

type Model = BTreeSet<u32>;

fn mask(model: &Model) -> CpuMask {
    model.iter().copied().map(CpuId).collect()
}

fn model(mask: &CpuMask) -> Model {
    mask.iter().map(|cpu| cpu.0).collect()
}

/// Sets of small and of large machines, and runs, so that ranges and word borders are met.
fn sets() -> impl Strategy<Value = Model> {
    let runs = |max: u32| {
        prop::collection::vec((0..max, 1..80u32), 0..6).prop_map(move |runs| {
            runs.into_iter().flat_map(|(first, length)| first..(first + length).min(max)).collect()
        })
    };
    prop_oneof![
        prop::collection::btree_set(0..64u32, 0..12),
        prop::collection::btree_set(0..MAX_CPUS, 0..12),
        runs(128),
        runs(MAX_CPUS),
    ]
}

proptest! {
    #[test]
    fn set_and_clear(start in sets(), changes in prop::collection::vec((any::<bool>(), 0..MAX_CPUS + 8), 0..40)) {
        let (mut mask, mut model) = (mask(&start), start);
        for (add, cpu) in changes {
            if add && cpu < MAX_CPUS {
                mask.set(CpuId(cpu));
                model.insert(cpu);
            } else {
                mask.clear(CpuId(cpu));
                model.remove(&cpu);
            }
            prop_assert_eq!(mask.test(CpuId(cpu)), model.contains(&cpu));
        }
        prop_assert_eq!(self::model(&mask), model.clone());
        prop_assert_eq!(mask.count() as usize, model.len());
        prop_assert_eq!(mask.is_empty(), model.is_empty());
        prop_assert_eq!(mask.first().map(|cpu| cpu.0), model.first().copied());
        // Equality doesn't depend on how a mask came to be.
        prop_assert_eq!(mask, self::mask(&model));
    }

    #[test]
    fn successors(set in sets(), after in prop_oneof![0..MAX_CPUS + 8, Just(u32::MAX)]) {
        let mask = mask(&set);
        let next = set.iter().copied().find(|&cpu| cpu > after);
        prop_assert_eq!(mask.next(CpuId(after)).map(|cpu| cpu.0), next);
        prop_assert_eq!(mask.next_wrapping(CpuId(after)).map(|cpu| cpu.0), next.or(set.first().copied()));
    }

    #[test]
    fn set_algebra(a in sets(), b in sets()) {
        let (ma, mb) = (mask(&a), mask(&b));
        prop_assert_eq!(model(&ma.and(&mb)), &a & &b);
        prop_assert_eq!(model(&ma.or(&mb)), &a | &b);
        prop_assert_eq!(model(&ma.xor(&mb)), &a ^ &b);
        prop_assert_eq!(model(&ma.andnot(&mb)), &a - &b);
        prop_assert_eq!(ma.is_subset(&mb), a.is_subset(&b));
        prop_assert!(ma.and(&mb).is_subset(&ma));
        prop_assert_eq!(ma.intersects(&mb), !a.is_disjoint(&b));
        prop_assert_eq!(ma == mb, a == b);
    }

    #[test]
    fn common_cpus_in_a_circle(a in sets(), b in sets(), start in prop_oneof![0..MAX_CPUS + 8, Just(u32::MAX)]) {
        let both: Vec<u32> = a.intersection(&b).copied().collect();
        let expected: Vec<u32> =
            both.iter().filter(|&&cpu| cpu >= start).chain(both.iter().filter(|&&cpu| cpu < start)).copied().collect();
        let (ma, mb) = (mask(&a), mask(&b));
        let found: Vec<u32> = ma.iter_both_from(&mb, CpuId(start)).map(|cpu| cpu.0).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn text_and_back(set in sets()) {
        let mask = mask(&set);
        let text = mask.to_string();
        prop_assert_eq!(text.parse::<CpuMask>(), Ok(mask.clone()), "{}", text);
        prop_assert_eq!(format!(" {text}\n").parse::<CpuMask>(), Ok(mask));
    }

    #[test]
    fn bytes_and_back(set in sets(), length in 0..2 * MASK_BYTES) {
        let mask = mask(&set);
        let bytes = mask.to_le_bytes();
        prop_assert_eq!(CpuMask::from_le_bytes(&bytes), mask);
        for cpu in 0..MAX_CPUS {
            prop_assert_eq!(bytes[cpu as usize / 8] >> (cpu % 8) & 1 == 1, set.contains(&cpu));
        }
        // A caller's buffer is shorter or longer than ours.
        let mut buffer = bytes.to_vec();
        buffer.resize(length, 0xff);
        let kept: Model = (0..MAX_CPUS)
            .filter(|cpu| buffer.get(*cpu as usize / 8).is_some_and(|byte| byte >> (cpu % 8) & 1 == 1))
            .collect();
        prop_assert_eq!(model(&CpuMask::from_le_bytes(&buffer)), kept);
    }

    #[test]
    fn strides(first in 0..500u32, length in 0..500u32, used in 1..40u32, more in 0..40u32) {
        let (last, group) = (first + length, used + more);
        let expected: Model = (first..=last).filter(|cpu| (cpu - first) % group < used).collect();
        let mask: CpuMask = format!("{first}-{last}:{used}/{group}").parse().unwrap();
        prop_assert_eq!(model(&mask), expected);
    }

    #[test]
    fn no_text_panics(text in "[0-9,:/ -]{0,12}") {
        let _ = text.parse::<CpuMask>();
    }

    #[test]
    fn full_masks(count in 0..=MAX_CPUS) {
        prop_assert_eq!(model(&CpuMask::full(count)), (0..count).collect::<Model>());
    }
}

#[test]
fn lists_as_linux_writes_them() {
    for (text, cpus) in [
        ("", vec![]),
        ("0", vec![0]),
        ("0-3,8,10-11", vec![0, 1, 2, 3, 8, 10, 11]),
        ("0-7:2/4", vec![0, 1, 4, 5]),
        ("5,1,1-2", vec![1, 2, 5]),
        ("1023", vec![1023]),
        ("0-0", vec![0]),
    ] {
        let mask: CpuMask = text.parse().unwrap();
        assert_eq!(model(&mask), Model::from_iter(cpus), "{text}");
    }
    assert_eq!(CpuMask::one_shot(CpuId(7)).to_string(), "7");
    assert_eq!(format!("{:?}", CpuMask::full(4)), "CpuMask(0-3)");
}

#[test]
fn a_bad_list_is_refused_at_its_place() {
    use ParseCpuMaskErrorKind::*;
    for (text, at, kind) in [
        ("x", 0, ExpectedNumber),
        ("1,", 2, ExpectedNumber),
        ("1,,2", 2, ExpectedNumber),
        ("1-", 2, ExpectedNumber),
        (" -1", 1, ExpectedNumber),
        ("1 2", 1, ExpectedComma),
        ("1;2", 1, ExpectedComma),
        ("0,1024", 2, TooLarge),
        ("0-99999999999", 2, TooLarge),
        ("7,3-1", 4, ReversedRange),
        ("0-7:", 4, ExpectedNumber),
        ("0-7:2", 5, ExpectedSlash),
        ("0-7:2/", 6, ExpectedNumber),
        ("0-7:0/4", 4, BadStride),
        ("0-7:5/4", 4, BadStride),
        ("0-7:2/4x", 7, ExpectedComma),
    ] {
        assert_eq!(text.parse::<CpuMask>(), Err(ParseCpuMaskError { at, kind }), "{text}");
    }
    assert_eq!(
        "0,1024".parse::<CpuMask>().unwrap_err().to_string(),
        "number too large (the highest CPU is 1023) at character 3"
    );
}

#[test]
#[should_panic = "at most 1024"]
fn a_mask_too_full_is_a_bug() {
    CpuMask::full(MAX_CPUS + 1);
}
