//! The clock that times exits.

use std::time::Instant;

use crate::kvm::tsc::host_tsc;
use crate::units::TscKhz;

/// Binary places of nanoseconds per tick.
const FRACTION: u32 = 32;

/// The source of time. Two readings of it are most of the cost of an exit's statistics.
#[derive(Clone, Copy, Debug)]
pub struct ExitClock(ClockSource);

#[derive(Clone, Copy, Debug)]
enum ClockSource {
    Tsc { ns_per_tick: u64 },
    Monotonic { origin: Instant },
}

/// The start of an exit's handling.
#[derive(Clone, Copy, Debug)]
pub struct Start(u64);

impl ExitClock {
    /// The host's TSC, with the frequency `host_tsc`, if it is invariant; otherwise, with `None`,
    /// CLOCK_MONOTONIC.
    pub fn new(host_tsc: Option<TscKhz>) -> Self {
        match host_tsc.filter(|khz| khz.0 > 0) {
            Some(khz) => Self(ClockSource::Tsc {
                ns_per_tick: (1_000_000 << FRACTION) / u64::from(khz.0),
            }),
            None => Self(ClockSource::Monotonic {
                origin: Instant::now(),
            }),
        }
    }

    /// Now.
    #[inline]
    pub(super) fn start(&self) -> Start {
        Start(match self.0 {
            ClockSource::Tsc { .. } => host_tsc(),
            ClockSource::Monotonic { origin } => since(origin),
        })
    }

    /// Nanoseconds from `start` to now; zero if the thread has moved to a CPU whose TSC lags.
    #[inline]
    pub(super) fn ns_since(&self, start: Start) -> u64 {
        match self.0 {
            ClockSource::Tsc { ns_per_tick } => {
                to_ns(host_tsc().saturating_sub(start.0), ns_per_tick)
            }
            ClockSource::Monotonic { origin } => since(origin).saturating_sub(start.0),
        }
    }
}

#[inline]
fn since(origin: Instant) -> u64 {
    let time = origin.elapsed();
    // 584 years fit.
    time.as_secs()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(u64::from(time.subsec_nanos()))
}

#[inline]
fn to_ns(ticks: u64, ns_per_tick: u64) -> u64 {
    let ns = (u128::from(ticks) * u128::from(ns_per_tick)) >> FRACTION;
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ticks_become_nanoseconds() {
        let ns = |khz: u32, ticks| match ExitClock::new(Some(TscKhz(khz))).0 {
            ClockSource::Tsc { ns_per_tick } => to_ns(ticks, ns_per_tick),
            ClockSource::Monotonic { .. } => panic!("{khz} kHz"),
        };
        assert_eq!(ns(1_000_000, 12345), 12345);
        assert_eq!(ns(2_000_000, 12345), 6172);
        assert_eq!(ns(1, 3), 3_000_000);
        assert_eq!(ns(1, u64::MAX), u64::MAX);
        // An hour at 2.9 GHz is right to a part in a million.
        let hour = 3_600_000_000_000u64;
        assert!(hour.abs_diff(ns(2_900_000, hour / 10 * 29)) < hour / 1_000_000);
    }

    #[test]
    fn without_a_frequency_the_kernels_clock_serves() {
        for khz in [None, Some(TscKhz(0))] {
            let clock = ExitClock::new(khz);
            let start = clock.start();
            std::thread::sleep(Duration::from_millis(2));
            assert!(clock.ns_since(start) >= 2_000_000);
        }
    }

    #[test]
    fn a_start_in_the_future_took_no_time() {
        let clock = ExitClock::new(Some(TscKhz(1_000_000)));
        assert_eq!(clock.ns_since(Start(u64::MAX)), 0);
    }
}
