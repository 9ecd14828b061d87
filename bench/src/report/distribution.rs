//! A part's distribution as the values and counts of a plot.

use crate::histogram::{self, HistogramError};
use crate::unit::Unit;

use super::model::Part;

/// The maximum number of values in a plot; more would be closer together than its pixels.
const MOST: usize = 400;

/// Values in units with their counts, ascending.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Distribution {
    /// The values with their counts; a value may stand for several neighbours.
    pub(crate) steps: Vec<(f64, u64)>,
    /// The number of samples.
    pub(crate) samples: u64,
}

impl Distribution {
    /// The distribution of all rounds of a part. `None` without samples.
    pub(crate) fn of(part: &Part, unit: &Unit) -> Result<Option<Self>, HistogramError> {
        let rounds = part.rounds.iter().map(|text| histogram::decode(text));
        let all = histogram::sum(&rounds.collect::<Result<Vec<_>, _>>()?)?;
        let recorded: Vec<(f64, u64)> = all
            .iter_recorded()
            .map(|step| {
                // The highest value of the bucket, as in the summary's quantiles.
                let value = step.value_iterated_to();
                (value as f64 / unit.ticks, step.count_at_value())
            })
            .collect();
        let sane = recorded.iter().all(|(value, _)| value.is_finite());
        Ok((sane && !recorded.is_empty()).then(|| Self {
            steps: thin(&recorded, MOST),
            samples: all.len(),
        }))
    }

    /// For each value, the fraction of the samples below it and the fraction at or below it.
    pub(crate) fn stairs(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        let total = self.samples as f64;
        let mut below = 0_u64;
        self.steps.iter().map(move |&(value, count)| {
            let from = below as f64 / total;
            below = below.saturating_add(count);
            (value, from, below as f64 / total)
        })
    }
}

/// At most `most` steps: neighbours are merged, rare values above the median last, to keep the tail.
fn thin(steps: &[(f64, u64)], most: usize) -> Vec<(f64, u64)> {
    if steps.len() <= most {
        return steps.to_vec();
    }
    // The last third of the steps is unchanged if it fits: there each sample is visible on a logarithmic
    // axis.
    let tail = (most / 3).min(steps.len());
    let (bulk, tail) = steps.split_at(steps.len() - tail);
    let size = bulk.len().div_ceil(most - tail.len());
    let mut thinned: Vec<(f64, u64)> = bulk
        .chunks(size)
        .map(|chunk| {
            let last = chunk.last().map_or(0.0, |&(value, _)| value);
            let count = chunk
                .iter()
                .fold(0_u64, |sum, &(_, count)| sum.saturating_add(count));
            (last, count)
        })
        .collect();
    thinned.extend_from_slice(tail);
    thinned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::{part, unit};
    use proptest::prelude::*;

    #[test]
    fn all_rounds_count() {
        let distribution = Distribution::of(&part(1000.0), &unit()).unwrap().unwrap();
        assert_eq!(distribution.samples, 400);
        let counts: u64 = distribution.steps.iter().map(|(_, count)| count).sum();
        assert_eq!(counts, 400);
        let (value, from, to) = distribution.stairs().last().unwrap();
        assert!((value - 2500.0).abs() < 20.0 && from < 1.0 && to == 1.0);
        let first = distribution.stairs().next().unwrap();
        assert!((first.0 - 995.0).abs() < 2.0 && first.1 == 0.0);
    }

    #[test]
    fn what_is_no_histogram_is_an_error_and_an_empty_one_is_nothing() {
        let mut part = part(1000.0);
        part.rounds = vec!["?".into()];
        assert!(Distribution::of(&part, &unit()).is_err());
        part.rounds = Vec::new();
        assert_eq!(Distribution::of(&part, &unit()).unwrap(), None);
    }

    proptest! {
        #[test]
        fn thinning_keeps_counts_order_and_the_tail(
            steps in prop::collection::vec((0.0..1e9_f64, 1..1000_u64), 1..2000), most in 3..500_usize
        ) {
            let mut steps = steps;
            steps.sort_by(|a, b| a.0.total_cmp(&b.0));
            let thinned = thin(&steps, most);
            prop_assert!(thinned.len() <= most.max(steps.len().min(most)));
            prop_assert!(thinned.is_sorted_by(|a, b| a.0 <= b.0));
            let sum = |steps: &[(f64, u64)]| steps.iter().map(|(_, count)| count).sum::<u64>();
            prop_assert_eq!(sum(&thinned), sum(&steps));
            prop_assert_eq!(thinned.last(), steps.last());
        }
    }
}
