//! Bandwidth limit. Pure: the caller passes the time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After a pause, this much time's worth of data may be sent at once.
const BURST: Duration = Duration::from_millis(20);

/// A limit that several connections share.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    /// The time at which the limit allows more data.
    free_at: Mutex<Instant>,
}

impl Pace {
    /// Limits to `bytes_per_second`; unlimited if `None`.
    pub fn new(bytes_per_second: Option<u64>, now: Instant) -> Self {
        Self {
            bytes_per_second: bytes_per_second.map(|rate| rate.max(1)),
            free_at: Mutex::new(now),
        }
    }

    /// Records that `bytes` were sent at `now`; returns how long to wait before sending more.
    pub fn sent(&self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else {
            return Duration::ZERO;
        };
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let cost = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        // Unused time is not saved up.
        let from = (*free_at).max(now.checked_sub(BURST).unwrap_or(now));
        *free_at = from.checked_add(cost).unwrap_or(from);
        free_at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_bytes_are_charged() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let pace = Pace::new(Some(1000), start);
        // After a pause of 1 s only the burst is free.
        assert_eq!(pace.sent(100, at(1000)), Duration::from_millis(80));
        // Another connection sends as well: both wait.
        assert_eq!(pace.sent(100, at(1000)), Duration::from_millis(180));
        assert_eq!(pace.sent(0, at(1100)), Duration::from_millis(80));
        assert_eq!(pace.sent(10, at(1500)), Duration::ZERO);
        let free = Pace::new(None, start);
        assert_eq!(free.sent(u64::MAX, at(0)), Duration::ZERO);
        // The lowest limit does not overflow.
        let slow = Pace::new(Some(0), start);
        assert!(slow.sent(u64::MAX, at(0)) > Duration::from_secs(1 << 30));
    }
}
