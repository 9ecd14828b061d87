//! The number of occurrences of each value.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Binary digits that are kept of a value: an error of at most 1 in 2048.
const DIGITS: u32 = 11;

/// Values and their counts: in JSON a list of pairs `[value, count]`.
///
/// Values of more than 11 binary digits are rounded, so that the list stays short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Counts(BTreeMap<u64, u64>);

impl From<Vec<(u64, u64)>> for Counts {
    fn from(pairs: Vec<(u64, u64)>) -> Self {
        let mut counts = Self::default();
        for (value, count) in pairs {
            counts.add(value, count);
        }
        counts
    }
}

impl From<Counts> for Vec<(u64, u64)> {
    fn from(counts: Counts) -> Self {
        counts.0.into_iter().collect()
    }
}

impl FromIterator<u64> for Counts {
    fn from_iter<I: IntoIterator<Item = u64>>(values: I) -> Self {
        let mut counts = Self::default();
        for value in values {
            counts.add(rounded(value), 1);
        }
        counts
    }
}

/// Rounds to the middle of the values that share its first digits.
fn rounded(value: u64) -> u64 {
    let dropped = (u64::BITS - value.leading_zeros()).saturating_sub(DIGITS);
    let half = (1_u64 << dropped) >> 1;
    ((value >> dropped) << dropped) | half
}

impl Counts {
    fn add(&mut self, value: u64, count: u64) {
        if count > 0 {
            let sum = self.0.entry(value).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// The number of values.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.values().fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each value, ascending, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(&value, &count)| (value, count))
    }

    /// The sum of several lists.
    #[must_use]
    pub fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for (value, count) in all.into_iter().flat_map(Self::iter) {
            sum.add(value, count);
        }
        sum
    }

    /// The smallest value that is not exceeded by `per_mille` of a thousand values; `None` without values.
    #[must_use]
    pub fn quantile(&self, per_mille: u32) -> Option<u64> {
        let wanted = u128::from(self.len()) * u128::from(per_mille.min(1000));
        let mut seen = 0_u128;
        self.iter()
            .find(|&(_, count)| {
                seen += u128::from(count) * 1000;
                seen >= wanted.max(1)
            })
            .map(|(value, _)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_changes_little(value: u64) {
            let error = rounded(value).abs_diff(value);
            prop_assert!(error <= value / 2048);
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_values(
            mut values in prop::collection::vec(0..2048_u64, 1..50),
            per_mille in 0..=1000_u32,
        ) {
            let counts: Counts = values.iter().copied().collect();
            values.sort_unstable();
            let rank = (values.len() * per_mille as usize).div_ceil(1000).max(1);
            prop_assert_eq!(counts.quantile(per_mille), Some(values[rank - 1]));
        }
    }

    #[test]
    fn json_is_pairs() {
        let counts: Counts = [7, 5, 7].into_iter().collect();
        let text = serde_json::to_string(&counts).unwrap();
        assert_eq!(text, "[[5,1],[7,2]]");
        assert_eq!(serde_json::from_str::<Counts>(&text).unwrap(), counts);
        // A value that occurs twice, and one with count 0.
        let odd: Counts = serde_json::from_str("[[3,1],[3,18446744073709551615],[4,0]]").unwrap();
        assert_eq!(odd.len(), u64::MAX);
        assert_eq!(odd.iter().count(), 1);
        assert!(Counts::default().quantile(500).is_none());
    }
}
