//! Steps forward of a clock between moves.

use hypernest_nested::tsc::Clock;

use super::super::record::Record;
use super::{Span, times};

/// A step of a clock ahead of the host's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) clock: Clock,
    /// The run.
    pub(super) after_move: u32,
    /// The length in ns.
    pub(super) ns: f64,
    /// The delay of the median report against the earliest one before the step, in ns.
    pub(super) noise_ns: f64,
}

/// The minimum number of reports that determine the delay of reports.
const ENOUGH: usize = 8;

/// The largest step of each clock in each span. A report can be late but not early: if one is earlier than
/// all before it, by the clock that it reads, that clock stepped ahead.
pub(super) fn steps(record: &Record, spans: &[Span<'_>]) -> Vec<Step> {
    let mut found = Vec::new();
    for span in spans {
        for clock in Clock::ALL {
            let offsets = times(record, span, clock)
                .into_iter()
                .map(|(clock, host)| host - clock)
                .filter(|offset| offset.is_finite());
            if let Some((ns, noise_ns)) = largest(offsets) {
                found.push(Step {
                    clock,
                    after_move: u32::try_from(span.run).unwrap_or(u32::MAX),
                    ns,
                    noise_ns,
                });
            }
        }
    }
    found
}

/// The largest step and the delay before it, from the arrivals by the clock.
fn largest(offsets: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let mut before: Vec<f64> = Vec::new();
    let mut largest: Option<(f64, f64)> = None;
    let mut earliest = f64::INFINITY;
    for offset in offsets {
        if before.len() >= ENOUGH && offset < earliest {
            let step = earliest - offset;
            if largest.is_none_or(|(ns, _)| step > ns) {
                let mut late = before.clone();
                let middle = late.len() / 2;
                let (_, median, _) = late.select_nth_unstable_by(middle, f64::total_cmp);
                largest = Some((step, *median - earliest));
            }
        }
        earliest = earliest.min(offset);
        before.push(offset);
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_from_lateness_and_drift() {
        let late = |n: u32| f64::from(n * 7919 % 13) * 1000.0;
        let of = |step: f64, drift: f64| {
            let offsets = (0..100).map(|n| {
                let stepped = if n >= 50 { step } else { 0.0 };
                late(n) - stepped - drift * f64::from(n)
            });
            largest(offsets).map_or(0.0, |(ns, _)| ns)
        };
        assert!(of(0.0, 0.0) < 1_000.0);
        assert!(of(0.0, 500.0) < 12_000.0);
        assert!((of(45e6, 500.0) - 45e6).abs() < 20_000.0);
        assert_eq!(largest([1.0; 5].into_iter()), None);
    }
}
