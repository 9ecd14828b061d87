//! Two medians: their ratio, its precision, and the finding that it supports.

use std::fmt;

use hdrhistogram::Histogram;

use super::groups::{Group, ratio};
use super::model::{Environment, L1, Measured, Part};
use crate::histogram;
use hypernest_nested::l2exit::Mode;

/// Smaller differences are not reported as differences.
pub(crate) const NOTABLE: f64 = 0.03;
/// The minimum number of samples of a median that is compared.
pub(crate) const MIN_SAMPLES: u64 = 30;
/// The difference that two starts of one VM may have (placement of memory, of interrupts). A single run of
/// each of two labels does not support a smaller difference, however narrow the interval within each.
pub(crate) const BETWEEN_STARTS: f64 = 0.10;

/// A median relative to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) value: f64,
    /// From the lower end of one median's 95 % interval divided by the upper end of the other's, to the
    /// reverse; it contains `value`, also when both are printed with the same number of digits.
    pub(crate) interval: Option<[f64; 2]>,
}

impl Ratio {
    /// `part` relative to `against`; `None` if that is not a number.
    pub(crate) fn of(part: &Part, against: &Part) -> Option<Self> {
        let ends = |[low, high]: [f64; 2], [from, to]: [f64; 2]| {
            Some([ratio(low, to)?, ratio(high, from)?])
        };
        let both = part.interval().zip(against.interval());
        Some(Self {
            value: ratio(part.summary.p50, against.summary.p50)?,
            interval: both.and_then(|(part, against)| ends(part, against)),
        })
    }

    /// Whether the interval excludes 1.
    pub(crate) fn excludes_one(&self) -> bool {
        self.interval
            .is_some_and(|[low, high]| low > 1.0 || high < 1.0)
    }

    /// The finding that the figures alone support.
    fn finding(&self) -> Finding {
        let Some([low, high]) = self.interval else {
            return Finding::Undecided(Reason::NoInterval);
        };
        if self.value <= 1.0 - NOTABLE && high < 1.0 {
            Finding::Gain
        } else if self.value >= 1.0 + NOTABLE && low > 1.0 {
            Finding::Cost
        } else if low > 1.0 - 2.0 * NOTABLE && high < 1.0 + 2.0 * NOTABLE {
            Finding::Same
        } else {
            Finding::Undecided(Reason::Wide)
        }
    }
}

/// Printed as `1.051 [0.930, 1.180]`.
impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.value)?;
        match self.interval {
            Some([low, high]) => write!(f, " [{low:.3}, {high:.3}]"),
            None => Ok(()),
        }
    }
}

/// The finding that a comparison supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Gain,
    Cost,
    Same,
    Undecided(Reason),
}

/// The reason why a comparison supports no finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The interval allows more than one answer.
    Wide,
    /// A median has no interval.
    NoInterval,
    /// Fewer than [`MIN_SAMPLES`].
    FewSamples,
    /// One run of each label, and a difference that two starts of one VM may also have.
    OneRun,
    /// Times are multiples of a timer tick.
    Ticks,
}

impl Reason {
    /// The reason and the remedy.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Wide => "the interval is too wide: run more",
            Self::NoInterval => "a median has no interval",
            Self::FewSamples => "too few samples: run more",
            Self::OneRun => "one run of each does not show what differs between starts: run more",
            Self::Ticks => {
                "these times are multiples of a timer tick of the host, not of the exit's cost"
            }
        }
    }
}

/// A kind of exits in one mode compared with another mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Comparison<'a> {
    pub(crate) kind: &'a str,
    pub(crate) ratio: Ratio,
    pub(crate) finding: Finding,
    /// Host exits for each exit of L2, with and without.
    pub(crate) exits: Option<(f64, f64)>,
}

impl<'a> Comparison<'a> {
    /// `kind` in the mode `with` compared with `without`; `None` unless both measurements are complete.
    pub(crate) fn of(group: &Group<'_>, with: Mode, without: Mode, kind: &'a str) -> Option<Self> {
        let (a, b) = (group.entry(with, kind)?, group.entry(without, kind)?);
        let measured = (a.measured()?, b.measured()?);
        // These start L1 anew for each run; the others start L2s anew within one L1.
        let by_start = matches!(group.l1, L1::Manual | L1::Image);
        let one_run = by_start && a.runs.unwrap_or(1).min(b.runs.unwrap_or(1)) < 2;
        Self::of_measured(kind, measured, group.environment, one_run)
    }

    fn of_measured(
        kind: &'a str,
        (with, without): (&Measured, &Measured),
        environment: &Environment,
        one_run: bool,
    ) -> Option<Self> {
        let (a, b) = (&with.parts.round_trip, &without.parts.round_trip);
        let ratio = Ratio::of(a, b).filter(|ratio| ratio.value > 0.0)?;
        let within_starts = (ratio.value - 1.0).abs() < BETWEEN_STARTS;
        let finding = if ticks_decide(kind, environment, a, b) {
            Finding::Undecided(Reason::Ticks)
        } else if a.summary.samples.min(b.summary.samples) < MIN_SAMPLES {
            Finding::Undecided(Reason::FewSamples)
        } else {
            match ratio.finding() {
                Finding::Gain | Finding::Cost if one_run && within_starts => {
                    Finding::Undecided(Reason::OneRun)
                }
                finding => finding,
            }
        };
        Some(Self {
            kind,
            ratio,
            finding,
            exits: with
                .host_exits_per_l2_exit
                .zip(without.host_exits_per_l2_exit),
        })
    }
}

/// Kinds that end with a timer: L1's in l2-exit, the kernel's in l2probe.
const END_WITH_A_TIMER: [&str; 3] = ["hlt", "timer-sleep", "hlt-wake"];
/// hrtimer_resolution (kernel/time/hrtimer.c) is 1 ns on a host with high-resolution timers, and the tick on
/// others.
const FINE_TIMERS_NS: u64 = 1000;

/// Whether timer ticks dominate these times, and not the cost of the exit.
fn ticks_decide(kind: &str, environment: &Environment, a: &Part, b: &Part) -> bool {
    let coarse = environment
        .timer_resolution_ns
        .is_some_and(|ns| ns > FINE_TIMERS_NS);
    END_WITH_A_TIMER.contains(&kind) && (coarse || are_multiples(a, b))
}

/// The maximum distance of a value from a multiple of the tick, in ticks: the cost of the exit itself.
const NEAR_A_MULTIPLE: f64 = 0.03;
/// For longer waits, one tick more or less does not matter.
const MAX_TICKS: f64 = 8.0;

/// Whether nearly all samples of both are multiples of one time, and some are larger multiples of it.
fn are_multiples(a: &Part, b: &Part) -> bool {
    let decoded = |part: &Part| -> Option<Histogram<u64>> {
        let rounds = part.rounds.iter().map(|text| histogram::decode(text));
        histogram::sum(&rounds.collect::<Result<Vec<_>, _>>().ok()?).ok()
    };
    let (Some(a), Some(b)) = (decoded(a), decoded(b)) else {
        return false;
    };
    let tick = a.value_at_quantile(0.5).min(b.value_at_quantile(0.5)) as f64;
    if tick <= 0.0 {
        return false;
    }
    // Shares of the samples: near any multiple, and near the second or a later one.
    let shares = |all: &Histogram<u64>| {
        let (mut near, mut later) = (0.0, 0.0);
        for step in all.iter_recorded() {
            let ticks = step.value_iterated_to() as f64 / tick;
            let multiple = ticks.round();
            if (ticks - multiple).abs() <= NEAR_A_MULTIPLE && (1.0..=MAX_TICKS).contains(&multiple)
            {
                let share = step.count_at_value() as f64 / all.len() as f64;
                near += share;
                if multiple > 1.0 {
                    later += share;
                }
            }
        }
        (near, later)
    };
    let ((near_a, later_a), (near_b, later_b)) = (shares(&a), shares(&b));
    near_a.min(near_b) >= 0.9 && later_a.max(later_b) >= 0.05
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::unit;
    use proptest::prelude::*;

    fn part(rounds: &[Vec<u64>]) -> Part {
        Part::of_samples(rounds, &unit()).unwrap().unwrap()
    }

    fn measured(part: Part) -> Measured {
        let mut figures = crate::report::sample::figures(100.0);
        figures.parts.round_trip = part;
        figures
    }

    fn finding(kind: &str, with: Part, without: Part, one_run: bool) -> Finding {
        let (a, b) = (measured(with), measured(without));
        let environment = Environment::default();
        let comparison = Comparison::of_measured(kind, (&a, &b), &environment, one_run);
        comparison.unwrap().finding
    }

    /// `count` samples near `ticks`, within a percent.
    fn near(ticks: u64, count: u64) -> Vec<u64> {
        (0..count)
            .map(|n| ticks + ticks * (n % 10) / 1000)
            .collect()
    }

    #[test]
    fn waiting_for_one_tick_or_two_is_no_gain() {
        let one = || part(&[near(95_800, 100)]);
        let two = || part(&[near(191_700, 100)]);
        let undecided = Finding::Undecided(Reason::Ticks);
        assert_eq!(finding("hlt", one(), two(), false), undecided);
        assert_eq!(finding("hlt", two(), one(), false), undecided);
        // Occasionally a tick is missed.
        let mixed = part(&[near(95_800, 85), near(191_700, 15)]);
        assert_eq!(finding("hlt", one(), mixed, false), undecided);
        // A kind without a timer may well take half of the time.
        assert_eq!(finding("cpuid", one(), two(), false), Finding::Gain);
        // Not every halt is dominated by ticks.
        let other = part(&[near(140_000, 100)]);
        assert_eq!(finding("hlt", one(), other, false), Finding::Gain);
        assert_eq!(finding("hlt", one(), one(), false), Finding::Same);
    }

    #[test]
    fn a_host_without_high_resolution_timers_decides_no_halt() {
        let (a, b) = (
            measured(part(&[near(1000, 100)])),
            measured(part(&[near(2500, 100)])),
        );
        for (resolution, wanted) in [
            (None, Finding::Gain),
            (Some(1), Finding::Gain),
            (Some(4_000_000), Finding::Undecided(Reason::Ticks)),
        ] {
            let environment = Environment {
                timer_resolution_ns: resolution,
                ..Environment::default()
            };
            let comparison = Comparison::of_measured("hlt", (&a, &b), &environment, false);
            assert_eq!(comparison.unwrap().finding, wanted, "{resolution:?}");
            let other = Comparison::of_measured("timer", (&a, &b), &environment, false);
            assert_eq!(other.unwrap().finding, Finding::Gain);
        }
    }

    #[test]
    fn one_run_of_each_supports_large_differences_only() {
        let run = |ticks| part(&[near(ticks, 100)]);
        let undecided = Finding::Undecided(Reason::OneRun);
        assert_eq!(
            finding("cpuid", run(105_000), run(100_000), true),
            undecided
        );
        assert_eq!(finding("cpuid", run(95_000), run(100_000), true), undecided);
        assert_eq!(
            finding("cpuid", run(56_000), run(100_000), true),
            Finding::Gain
        );
        assert_eq!(
            finding("cpuid", run(100_000), run(100_100), true),
            Finding::Same
        );
        assert_eq!(
            finding("cpuid", run(105_000), run(100_000), false),
            Finding::Cost
        );
    }

    fn rounds() -> impl Strategy<Value = Vec<Vec<u64>>> {
        let round = |least: u64| prop::collection::vec(least..least + least / 5, 1..40);
        (1_000..100_000_000_u64)
            .prop_flat_map(move |least| prop::collection::vec(round(least), 1..6))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn an_interval_contains_its_median_and_every_printed_ratio(a in rounds(), b in rounds(),
            digits in 0..4_usize) {
            let (a, b) = (part(&a), part(&b));
            for part in [&a, &b] {
                let ([low, high], p50) = (part.p50_ci.unwrap(), part.summary.p50);
                prop_assert!(low <= p50 && p50 <= high, "{} {} {}", low, p50, high);
                prop_assert!(part.summary.min <= low && high <= part.summary.max);
                let distribution = super::super::distribution::Distribution::of(part, &unit());
                let steps = distribution.unwrap().unwrap().steps;
                prop_assert!(steps.iter().any(|(value, _)| *value == p50), "the plot has another median");
            }
            for (a, b) in [(&a, &b), (&b, &a)] {
                let ratio = Ratio::of(a, b).unwrap();
                let [low, high] = ratio.interval.unwrap();
                prop_assert!(low <= ratio.value && ratio.value <= high);
                let printed = |value: f64| -> f64 { format!("{value:.digits$}").parse().unwrap() };
                prop_assert!(printed(low) <= printed(ratio.value) && printed(ratio.value) <= printed(high));
            }
        }

        #[test]
        fn an_interval_of_an_earlier_version_is_widened_to_its_median(p50 in 1.0..1e9_f64,
            low in 1.0..1e9_f64, more in 0.0..1e6_f64) {
            let mut part = part(&[vec![10]]);
            part.summary.p50 = p50;
            part.p50_ci = Some([low, low + more]);
            let [low, high] = part.interval().unwrap();
            prop_assert!(low <= p50 && p50 <= high);
        }
    }
}
