//! Spans of time by how often they occur: figures for tables, bars for the eye. Wraps hdrhistogram for [`super::analysis`].

use hdrhistogram::Histogram;

use super::model::{Bucket, Distribution};

/// How spans of time are distributed.
#[derive(Debug, Clone)]
pub(super) struct Spread(Histogram<u64>);

impl Spread {
    /// Up to 1% off (two significant figures); its memory grows with the range of values, to some 40 KiB at most.
    pub(super) fn new() -> Option<Self> {
        Histogram::new(2).ok().map(Self)
    }

    pub(super) fn add(&mut self, ns: u64) {
        // It resizes itself, so no value is refused; if one were, it would count as the largest.
        self.0.saturating_record(ns);
    }

    /// The figures.
    pub(super) fn figures(&self) -> Distribution {
        Distribution {
            count: self.0.len(),
            mean_ns: self.0.mean() as u64,
            p50_ns: self.0.value_at_quantile(0.5).min(self.0.max()),
            p99_ns: self.0.value_at_quantile(0.99).min(self.0.max()),
            max_ns: self.0.max(),
            buckets: Vec::new(),
        }
    }

    /// The figures and a bucket for each power of two from the least to the largest value.
    pub(super) fn buckets(&self) -> Distribution {
        let mut buckets: Vec<Bucket> = Vec::new();
        for value in self.0.iter_recorded() {
            let from = value.value_iterated_to().checked_ilog2().map_or(0, |log| 1_u64 << log);
            let to = from.saturating_mul(2).max(1);
            // Those between two that occur are there too, so that bars keep their scale.
            while let Some(last) = buckets.last()
                && last.to_ns < from
            {
                let from_ns = last.to_ns;
                buckets.push(Bucket { from_ns, to_ns: from_ns.saturating_mul(2), count: 0 });
            }
            match buckets.last_mut() {
                Some(last) if last.from_ns == from => last.count += value.count_at_value(),
                _ => buckets.push(Bucket { from_ns: from, to_ns: to, count: value.count_at_value() }),
            }
        }
        Distribution { buckets, ..self.figures() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn buckets_hold_all_values_without_a_hole(values in prop::collection::vec(0..=u64::MAX / 4, 1..50)) {
            let mut spread = Spread::new().unwrap();
            values.iter().for_each(|&v| spread.add(v));
            let d = spread.buckets();
            prop_assert_eq!(d.buckets.iter().map(|b| b.count).sum::<u64>(), values.len() as u64);
            prop_assert!(d.buckets.windows(2).all(|w| w[0].to_ns == w[1].from_ns));
            prop_assert!(d.p50_ns <= d.p99_ns && d.p99_ns <= d.max_ns);
        }
    }
}
