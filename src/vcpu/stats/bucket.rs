//! The buckets of values: the layout of an HDR histogram that starts at 1 and keeps two significant
//! digits.
//!
//! Values up to 255 have a bucket each. Above, each power of two is cut into 128 buckets, so that a bucket is
//! never wider than 1/128 of its values.

/// Significant digits kept.
pub(super) const DIGITS: u8 = 2;

/// The largest value with a bucket, in nanoseconds: just under 69 seconds.
pub(super) const MAX: u64 = (1 << MAX_BITS) - 1;

/// The number of buckets.
pub(super) const COUNT: usize = LINEAR + HALF * (MAX_BITS - LINEAR_BITS) as usize;

const MAX_BITS: u32 = 36;
const LINEAR_BITS: u32 = 8;
const LINEAR: usize = 1 << LINEAR_BITS;
const HALF: usize = LINEAR / 2;

/// The bucket of `value`, if it has one.
#[inline]
pub(super) fn index(value: u64) -> Option<usize> {
    if value > MAX {
        return None;
    }
    // The shift that moves the leading one to bit 7; values below 256 stay unchanged.
    let shift = (value | 0xff).ilog2() - (LINEAR_BITS - 1);
    let top = usize::try_from(value >> shift).ok()?;
    Some(shift as usize * HALF + top)
}

/// The smallest value in bucket `index`.
pub(super) fn lowest(index: usize) -> u64 {
    if index < LINEAR {
        return index as u64;
    }
    let shift = index / HALF - 1;
    ((index - shift * HALF) as u64) << shift
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use proptest::prelude::*;

    #[test]
    fn the_buckets_follow_one_another() {
        for i in 0..COUNT {
            assert_eq!(index(lowest(i)), Some(i));
            if let Some(last) = lowest(i).checked_sub(1) {
                assert_eq!(index(last), Some(i - 1));
            }
        }
        assert_eq!(index(MAX), Some(COUNT - 1));
        assert_eq!(index(MAX + 1), None);
        assert_eq!(index(u64::MAX), None);
    }

    proptest! {
        /// Each bucket is one bucket of the histogram that it is converted to, so nothing is lost.
        #[test]
        fn a_bucket_is_one_of_the_histograms(bits in 0u32..=36, low in any::<u64>()) {
            let value = (low >> (64 - 36)).checked_shr(36 - bits).unwrap_or(0);
            let histogram = Histogram::<u64>::new_with_bounds(1, MAX, DIGITS).unwrap();
            let i = index(value).unwrap();
            prop_assert_eq!(lowest(i), histogram.lowest_equivalent(value));
            prop_assert_eq!(lowest(i + 1), histogram.next_non_equivalent(value));
        }
    }
}
