//! Spans of time by how often they occur: figures for tables, bars for the eye. Wraps hdrhistogram for [`super::analysis`].

use hdrhistogram::Histogram;

use super::model::{Bucket, Distribution};

/// How spans of time are distributed.
#[derive(Debug, Clone)]
pub(super) struct Spread {
    histogram: Histogram<u64>,
    /// These two are exact.
    sum: u128,
    max: u64,
}

impl Spread {
    /// Up to 1% off (two significant figures); its memory grows with the range of values, to some 40 KiB at most.
    pub(super) fn new() -> Option<Self> {
        Histogram::new(2).ok().map(|histogram| Self { histogram, sum: 0, max: 0 })
    }

    pub(super) fn add(&mut self, ns: u64) {
        // It resizes itself up to the largest value there is, so none is refused.
        if self.histogram.record(ns).is_err() {
            self.histogram.saturating_record(ns);
        }
        self.sum += u128::from(ns);
        self.max = self.max.max(ns);
    }

    /// The figures.
    pub(super) fn figures(&self) -> Distribution {
        let count = self.histogram.len();
        Distribution {
            count,
            mean_ns: self.sum.checked_div(count.into()).unwrap_or(0) as u64,
            p50_ns: self.histogram.value_at_quantile(0.5).min(self.max),
            p99_ns: self.histogram.value_at_quantile(0.99).min(self.max),
            max_ns: self.max,
            buckets: Vec::new(),
        }
    }

    /// The figures and a bucket for each power of two from the least to the largest value.
    pub(super) fn buckets(&self) -> Distribution {
        let mut buckets: Vec<Bucket> = Vec::new();
        for value in self.histogram.iter_recorded() {
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
