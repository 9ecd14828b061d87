//! Limits on how much a guest may ask of a disk: leaky buckets, as plain values that are told the time.
//!
//! Each request adds to a bucket what it costs, as the time that the limit gives it, and the bucket leaks by
//! time itself. While there is less than 100 ms in it the next request may begin, whatever its size: so a
//! request that is larger than the bucket goes as well, and those after it wait the longer. Over time the
//! rate is the limit exactly.

use std::num::NonZeroU64;
use std::time::Duration;

/// What may come at once after a pause: as much as the limit allows in this time, and at least one request.
/// QEMU's, without `bps-max` and `iops-max`.
const BURST: Duration = Duration::from_millis(100);

const SECOND: u128 = 1_000_000_000;

/// The highest limit of operations: one in a nanosecond.
pub const MAX_IOPS: u32 = 1_000_000_000;

/// Limits per second; none are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Reads, writes, discards and write zeroes.
    pub iops: Option<NonZeroU64>,
    /// Bytes that are read, written or zeroed.
    pub bps: Option<NonZeroU64>,
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    per_second: NonZeroU64,
    /// When it will be empty; it is, if that is past.
    empty_at: Duration,
}

impl Bucket {
    fn new(per_second: NonZeroU64) -> Self {
        Self {
            per_second,
            empty_at: Duration::ZERO,
        }
    }

    /// When the next request may begin; it may, if that is not in the future.
    fn opens_at(&self) -> Duration {
        // The nanosecond behind, as there must be less than that in it.
        let behind = self.empty_at.saturating_add(Duration::from_nanos(1));
        behind.saturating_sub(BURST)
    }

    fn add(&mut self, count: u64, now: Duration) {
        let nanoseconds = (u128::from(count) * SECOND).div_ceil(self.per_second.get().into());
        // More than there is until the end of all time is that.
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.empty_at = self.empty_at.max(now).saturating_add(cost);
    }
}

/// The limits of a disk, and what was used of them. Times are since any one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    iops: Option<Bucket>,
    bps: Option<Bucket>,
}

impl Throttle {
    /// Limits of which nothing is used.
    pub fn new(limits: Limits) -> Self {
        Self {
            iops: limits.iops.map(Bucket::new),
            bps: limits.bps.map(Bucket::new),
        }
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        Limits {
            iops: self.iops.map(|bucket| bucket.per_second),
            bps: self.bps.map(|bucket| bucket.per_second),
        }
    }

    /// Whether there are any.
    pub fn is_limited(&self) -> bool {
        self.iops.is_some() || self.bps.is_some()
    }

    /// When the next request may begin, if that is after `now`.
    pub fn closed_until(&self, now: Duration) -> Option<Duration> {
        let buckets = [self.iops, self.bps].into_iter().flatten();
        let opens = buckets.map(|bucket| bucket.opens_at()).max();
        opens.filter(|at| *at > now)
    }

    /// A request begins: one operation, for so many bytes.
    pub fn add(&mut self, bytes: u64, now: Duration) {
        for (bucket, count) in [(&mut self.iops, 1), (&mut self.bps, bytes)] {
            if let Some(bucket) = bucket {
                bucket.add(count, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(iops: u64, bps: u64) -> Limits {
        Limits {
            iops: NonZeroU64::new(iops),
            bps: NonZeroU64::new(bps),
        }
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// When each of `requests` begins that a guest makes as soon as it may, from `start` on.
    fn begins(throttle: &mut Throttle, start: Duration, requests: &[u64]) -> Vec<Duration> {
        let mut now = start;
        let mut all = Vec::new();
        for bytes in requests {
            now = throttle.closed_until(now).unwrap_or(now);
            assert_eq!(throttle.closed_until(now), None, "it opens when it says");
            throttle.add(*bytes, now);
            all.push(now);
        }
        all
    }

    #[test]
    fn after_a_burst_requests_come_at_the_rate() {
        let mut throttle = Throttle::new(limits(20, 0));
        let tick = Duration::from_nanos(1);
        assert_eq!(
            begins(&mut throttle, ms(1000), &[0; 5]),
            [
                ms(1000),
                ms(1000),
                ms(1000) + tick,
                ms(1050) + tick,
                ms(1100) + tick
            ]
        );
        // An hour later there is no more than one burst.
        let later = begins(&mut throttle, ms(3_600_000), &[0; 4]);
        assert_eq!(later[..2], [ms(3_600_000); 2]);
        assert!(later[3] >= ms(3_600_050), "{later:?}");
    }

    #[test]
    fn a_request_that_is_larger_than_the_bucket_goes_and_the_next_waits_for_it() {
        let mut throttle = Throttle::new(limits(0, 1 << 20));
        let begun = begins(&mut throttle, ms(0), &[4 << 20, 512, 512]);
        assert_eq!(begun[0], ms(0));
        assert!(begun[1] >= ms(3900) && begun[1] < ms(3901), "{begun:?}");
        assert!(begun[2] > begun[1], "{begun:?}");
    }

    #[test]
    fn the_stricter_limit_holds() {
        let slow = begins(&mut Throttle::new(limits(10, 1 << 30)), ms(0), &[512; 11]);
        assert!(slow[10] >= ms(900), "{slow:?}");
        let narrow = begins(
            &mut Throttle::new(limits(1_000_000, 5120)),
            ms(0),
            &[512; 11],
        );
        assert!(narrow[10] >= ms(900), "{narrow:?}");
        let free = begins(
            &mut Throttle::new(Limits::default()),
            ms(0),
            &[u64::MAX; 11],
        );
        assert_eq!(free[10], ms(0));
        assert!(!Throttle::default().is_limited());
    }

    #[test]
    fn nothing_overflows() {
        let mut throttle = Throttle::new(limits(1, 1));
        for _ in 0..3 {
            throttle.add(u64::MAX, Duration::MAX);
            assert!(throttle.closed_until(ms(0)).is_some());
        }
    }

    proptest! {
        /// Whatever the requests and the pauses between them, no more than a burst and one request come
        /// beyond the rate.
        #[test]
        fn the_rate_is_kept(
            iops in 1_u64..5000,
            bps in 512_u64..1 << 32,
            requests in prop::collection::vec((0_u64..1 << 22, 0_u64..300), 1..200),
        ) {
            let limits = limits(iops, bps);
            let mut throttle = Throttle::new(limits);
            prop_assert_eq!(throttle.limits(), limits);
            let mut now = ms(0);
            let (mut operations, mut bytes) = (0_u128, 0_u128);
            for (len, pause) in requests {
                now = throttle.closed_until(now).unwrap_or(now);
                prop_assert_eq!(throttle.closed_until(now), None);
                // What has come before this one.
                let time = (now + BURST).as_nanos();
                prop_assert!(operations * SECOND <= time * u128::from(iops));
                prop_assert!(bytes * SECOND <= time * u128::from(bps));
                throttle.add(len, now);
                operations += 1;
                bytes += u128::from(len);
                now += ms(pause);
            }
        }

        #[test]
        fn a_guest_that_always_has_a_request_gets_the_whole_rate(
            iops in 1_u64..100_000,
            count in 1_usize..500,
        ) {
            let mut throttle = Throttle::new(limits(iops, 0));
            let begun = begins(&mut throttle, ms(0), &vec![512; count]);
            let last = begun[count - 1].as_nanos();
            let at_the_rate = (count as u128 - 1) * SECOND / u128::from(iops);
            // Each request may cost a nanosecond more than its part.
            prop_assert!(last <= at_the_rate + count as u128 + 1, "{last} {at_the_rate}");
        }
    }
}
