//! The counts at one moment.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{ExitReason, bucket};

/// The counts of one vCPU, or of several together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountersSnapshot {
    /// Reasons that occurred.
    pub reasons: BTreeMap<ExitReason, ReasonCounts>,
}

impl CountersSnapshot {
    /// Adds the counts of another.
    pub fn add(&mut self, other: &Self) {
        for (reason, counts) in &other.reasons {
            self.reasons.entry(*reason).or_default().add(counts);
        }
    }

    /// All exits.
    pub fn count(&self) -> u64 {
        self.reasons.values().map(ReasonCounts::count).sum()
    }
}

/// The exits of one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReasonCounts {
    /// Bucket -> exits; only buckets that are not empty.
    pub(super) buckets: BTreeMap<usize, u64>,
    /// Exits that took longer than any bucket holds.
    pub(super) out_of_range: u64,
    pub(super) sum_ns: u64,
    pub(super) max_ns: u64,
}

/// The figures of a report, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Exits.
    pub count: u64,
    /// Their total time.
    pub sum: u64,
    /// Average time of an exit.
    pub mean: f64,
    /// Half of the exits took at most this long.
    pub p50: u64,
    /// 90 % did.
    pub p90: u64,
    /// 99 % did.
    pub p99: u64,
    /// 99.9 % did.
    #[serde(rename = "p99.9")]
    pub p99_9: u64,
    /// The longest exit.
    pub max: u64,
    /// Exits longer than the histogram's range. They count in all figures above, and are longer than all
    /// others.
    pub out_of_range: u64,
}

impl ReasonCounts {
    /// The number of exits, including those out of range.
    pub fn count(&self) -> u64 {
        self.buckets.values().sum::<u64>() + self.out_of_range
    }

    fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
        self.out_of_range += other.out_of_range;
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// As an HDR histogram. Exits out of range are in its last bucket.
    pub fn histogram(&self) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, bucket::MAX, bucket::DIGITS)
            .expect("the bounds are constants that a test uses");
        for (bucket, count) in &self.buckets {
            histogram.saturating_record_n(bucket::lowest(*bucket), *count);
        }
        if self.out_of_range > 0 {
            histogram.saturating_record_n(bucket::MAX, self.out_of_range);
        }
        histogram
    }

    /// The figures for a report.
    pub fn summary(&self) -> Summary {
        let histogram = self.histogram();
        let in_range = self.count() - self.out_of_range;
        // A bucket's upper end can lie above the largest value seen; and the largest value is the best
        // estimate for exits out of range.
        let quantile = |per_mille: u64| {
            let rank = (u128::from(self.count()) * u128::from(per_mille)).div_ceil(1000);
            if rank > u128::from(in_range) {
                self.max_ns
            } else {
                #[expect(clippy::cast_precision_loss, reason = "a quantile is a fraction")]
                let quantile = per_mille as f64 / 1000.0;
                histogram.value_at_quantile(quantile).min(self.max_ns)
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "a mean needs no 64 bits")]
        let mean = self.sum_ns as f64 / self.count().max(1) as f64;
        Summary {
            count: self.count(),
            sum: self.sum_ns,
            mean,
            p50: quantile(500),
            p90: quantile(900),
            p99: quantile(990),
            p99_9: quantile(999),
            max: self.max_ns,
            out_of_range: self.out_of_range,
        }
    }
}
