//! A median's 95 % confidence interval by bootstrap, over rounds and over samples.
//!
//! Samples of one round have more in common than samples of different rounds: caches, the placement of pages,
//! the host's state. Each draw therefore first picks rounds with repetition, as many as there are, and then
//! samples of those. The median of `n` samples drawn with repetition from a pool is the pool's quantile at
//! `u`, where `u` is the median of `n` uniform numbers. `u` has a beta distribution, which for the `n` of a
//! measurement is close to normal with mean 1/2 and variance 1/(4(n+2)). The cost of a draw is thus a few
//! look-ups, independent of the number of samples.

use hdrhistogram::Histogram;

/// Number of draws. The interval's ends are the 13th from either side of 500.
const DRAWS: usize = 500;
/// Draws outside the interval at each side.
const OUTSIDE: usize = DRAWS / 40;
/// The fixed seed: the same samples give the same interval.
const SEED: u64 = 0x4859_5045_524e_4553;

/// Samples of several rounds.
#[derive(Clone, Debug)]
pub(crate) struct Rounds {
    /// Each distinct value, ascending.
    values: Vec<u64>,
    /// For each round, the number of samples that are at most as long as each value.
    cumulative: Vec<Vec<u64>>,
}

impl Rounds {
    /// Rounds as histograms. A value is the highest of its bucket, as in [`Histogram::value_at_quantile`], so
    /// that a median and the ends of its interval are on one grid. Rounds without samples do not count.
    pub(crate) fn of_histograms<'a>(rounds: impl IntoIterator<Item = &'a Histogram<u64>>) -> Self {
        let counted = rounds.into_iter().map(|round| {
            let recorded = round.iter_recorded();
            recorded
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
                .collect()
        });
        Self::of_counts(counted.collect())
    }

    fn of_counts(mut rounds: Vec<Vec<(u64, u64)>>) -> Self {
        rounds.retain(|round| !round.is_empty());
        let mut values: Vec<u64> = rounds.iter().flatten().map(|&(value, _)| value).collect();
        values.sort_unstable();
        values.dedup();
        let cumulative = rounds.iter().map(|round| {
            let mut counts = round.iter().peekable();
            let mut sum = 0;
            let at_most = values.iter().map(|value| {
                if let Some((_, count)) = counts.next_if(|(at, _)| at == value) {
                    sum += count;
                }
                sum
            });
            at_most.collect()
        });
        Self {
            cumulative: cumulative.collect(),
            values,
        }
    }

    /// The median. `None` without samples.
    pub(crate) fn median(&self) -> Option<u64> {
        let all: Vec<usize> = (0..self.cumulative.len()).collect();
        self.quantile(&all, 0.5)
    }

    /// The median's 95 % confidence interval. It always contains [`Rounds::median`]; if rounds differ in
    /// size, the draws alone need not. `None` without samples.
    pub(crate) fn median_interval(&self) -> Option<[u64; 2]> {
        let rounds = self.cumulative.len();
        if rounds == 0 {
            return None;
        }
        let mut random = Random(SEED);
        let mut medians = Vec::with_capacity(DRAWS);
        for _ in 0..DRAWS {
            let picked: Vec<usize> = (0..rounds).map(|_| random.below(rounds)).collect();
            let samples: u64 = picked.iter().map(|&round| self.samples(round)).sum();
            let spread = 0.5 / (samples as f64 + 2.0).sqrt();
            medians.extend(self.quantile(&picked, 0.5 + spread * random.normal()));
        }
        medians.sort_unstable();
        let median = self.median()?;
        Some([
            median.min(*medians.get(OUTSIDE)?),
            median.max(*medians.get(DRAWS - 1 - OUTSIDE)?),
        ])
    }

    /// The interval's width relative to the median. `None` without samples; infinite around a median of 0.
    pub(crate) fn relative_width(&self) -> Option<f64> {
        let ([low, high], median) = (self.median_interval()?, self.median()?);
        Some(if low == high {
            0.0
        } else {
            (high - low) as f64 / median as f64
        })
    }

    fn samples(&self, round: usize) -> u64 {
        self.cumulative[round].last().copied().unwrap_or(0)
    }

    /// The smallest value that has at least `q` of the picked rounds' samples at or below it.
    fn quantile(&self, picked: &[usize], q: f64) -> Option<u64> {
        let total: u64 = picked.iter().map(|&round| self.samples(round)).sum();
        let wanted = (q * total as f64).max(0.0);
        let at_most = |index: usize| -> u64 {
            let counts = picked.iter().map(|&round| self.cumulative[round][index]);
            counts.sum()
        };
        let (mut low, mut high) = (0, self.values.len().checked_sub(1)?);
        while low < high {
            let middle = low.midpoint(high);
            if at_most(middle) as f64 >= wanted && at_most(middle) > 0 {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        self.values.get(low).copied()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number less than `bound`, which is small against 2^32, so that the distribution is nearly uniform.
    fn below(&mut self, bound: usize) -> usize {
        let high = self.next() >> 32;
        usize::try_from((high * bound as u64) >> 32).unwrap_or(0)
    }

    /// A uniform number in `0..1`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A standard normal number: the sum of twelve uniform numbers has variance 1, and the tails beyond 6 do
    /// not matter here.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram;
    use proptest::prelude::*;

    fn of_samples(rounds: &[Vec<u64>]) -> Rounds {
        let histograms: Vec<_> = rounds
            .iter()
            .map(|round| histogram::of(round.iter().copied()).0)
            .collect();
        Rounds::of_histograms(&histograms)
    }

    fn rounds(rounds: &[&[u64]]) -> Rounds {
        let owned: Vec<Vec<u64>> = rounds.iter().map(|round| round.to_vec()).collect();
        of_samples(&owned)
    }

    #[test]
    fn medians() {
        assert_eq!(rounds(&[]).median(), None);
        assert_eq!(rounds(&[&[]]).median_interval(), None);
        assert_eq!(rounds(&[&[7]]).median(), Some(7));
        assert_eq!(rounds(&[&[3, 1, 2], &[9, 8]]).median(), Some(3));
        assert_eq!(rounds(&[&[4, 1, 3, 2]]).median(), Some(2));
    }

    #[test]
    fn samples_that_agree_are_known_exactly() {
        let same = rounds(&[&[500; 40], &[500; 40]]);
        assert_eq!(same.median_interval(), Some([500, 500]));
        assert_eq!(same.relative_width(), Some(0.0));
        assert_eq!(rounds(&[&[0; 9]]).relative_width(), Some(0.0));
    }

    #[test]
    fn within_a_round_the_interval_is_that_of_the_binomial_distribution() {
        // The ranks 40 and 61 of 100 enclose the median with 95 % probability.
        let hundred: Vec<u64> = (1..=100).collect();
        let [low, high] = rounds(&[&hundred]).median_interval().unwrap();
        assert!(
            low.abs_diff(40) <= 2 && high.abs_diff(60) <= 2,
            "{low} {high}"
        );
    }

    #[test]
    fn rounds_that_differ_widen_it_although_each_is_tight() {
        let apart = rounds(&[&[100; 1000], &[110; 1000], &[105; 1000]]);
        let [low, high] = apart.median_interval().unwrap();
        assert_eq!((low, high), (100, 110));
        assert!(apart.relative_width() > Some(0.09));
    }

    #[test]
    fn an_interval_contains_the_median_of_rounds_of_different_sizes() {
        // One round of many samples decides the median, and is in 63 % of the draws only.
        let uneven: Vec<Vec<u64>> = std::iter::once(vec![10; 1000])
            .chain((0..40).map(|_| vec![20_u64; 30]))
            .collect();
        let rounds = of_samples(&uneven);
        let ([low, high], median) = (rounds.median_interval().unwrap(), rounds.median().unwrap());
        assert!(low <= median && median <= high, "{low} {median} {high}");
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_median_and_is_the_same_each_time(
            rounds in prop::collection::vec(prop::collection::vec(0..2_000_000_u64, 1..60), 1..9)
        ) {
            let rounds = of_samples(&rounds);
            let [low, high] = rounds.median_interval().unwrap();
            let least = *rounds.values.first().unwrap();
            let most = *rounds.values.last().unwrap();
            prop_assert!(least <= low && high <= most);
            prop_assert_eq!(rounds.median_interval(), Some([low, high]));
            let median = rounds.median().unwrap();
            prop_assert!(low <= median && median <= high, "{} {} {}", low, median, high);
        }
    }
}
