//! The order in which modes alternate, and the end of the repetitions. Pure functions.

use std::time::Duration;

use hypernest_nested::l2exit::Mode;

use crate::report::StoppedBy;

/// The order of the modes in every cycle: those that fit the host's present setting first, so that the module
/// is reloaded once within the cycle and once for the next. Each mode occurs once.
pub(super) fn order(modes: &[Mode], shadow_now: Option<bool>) -> Vec<Mode> {
    let mut order = modes.to_vec();
    let present = shadow_now.unwrap_or(true);
    order.sort_by_key(|mode| (mode.shadow_vmcs().is_some_and(|on| on != present), *mode));
    order.dedup();
    order
}

/// The conditions under which cycles end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    /// The maximum width of a median's interval, relative to the median.
    pub(super) precision: f64,
    /// The maximum number of cycles.
    pub(super) cycles: u32,
    /// The time after which no further cycle starts.
    pub(super) time: Duration,
}

/// The minimum number of cycles: with fewer, differences between rounds cannot be detected.
pub(super) const FEWEST_CYCLES: u32 = 2;

impl Limits {
    /// The reason to stop after `cycles` cycles that took `time`, if there is one. `widest` is the widest
    /// interval of all; it is `None` if nothing was measured, which more cycles would not change.
    pub(super) fn reached(
        &self,
        cycles: u32,
        time: Duration,
        widest: Option<f64>,
    ) -> Option<StoppedBy> {
        let precise = widest.is_none_or(|widest| widest <= self.precision);
        if precise && (cycles >= FEWEST_CYCLES || widest.is_none()) {
            Some(StoppedBy::Precision)
        } else if cycles >= self.cycles {
            Some(StoppedBy::MaxCycles)
        } else if time >= self.time {
            Some(StoppedBy::TimeLimit)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::subsequence;

    use Mode::{Classic, ClassicShadow, Evmcs, EvmcsEmsr, Offered};

    #[test]
    fn the_present_setting_first() {
        let all = [Evmcs, Classic, ClassicShadow, Offered, EvmcsEmsr, Evmcs];
        assert_eq!(
            order(&all, Some(true)),
            [ClassicShadow, Evmcs, EvmcsEmsr, Classic, Offered]
        );
        assert_eq!(
            order(&all, Some(false)),
            [Classic, Offered, Evmcs, EvmcsEmsr, ClassicShadow]
        );
    }

    proptest! {
        #[test]
        fn a_cycle_loads_the_module_at_most_twice(
            modes in subsequence(Mode::ALL, 0..=Mode::ALL.len()).prop_shuffle(),
            now in any::<Option<bool>>(),
        ) {
            let order = order(&modes, now);
            let mut sorted = order.clone();
            sorted.sort();
            let mut wanted = modes;
            wanted.sort();
            prop_assert_eq!(sorted, wanted);
            let mut setting = now;
            for cycle in 0..4 {
                let mut reloads = 0;
                for wanted in order.iter().filter_map(|mode| mode.shadow_vmcs()) {
                    reloads += u32::from(setting != Some(wanted));
                    setting = Some(wanted);
                }
                let most = if cycle == 0 && now.is_some() { 1 } else { 2 };
                prop_assert!(reloads <= most, "{} in cycle {}", reloads, cycle);
            }
        }
    }

    #[test]
    fn the_end_has_a_name() {
        let limits = Limits {
            precision: 0.01,
            cycles: 5,
            time: Duration::from_secs(60),
        };
        for (cycles, seconds, widest, wanted) in [
            (1, 1, Some(0.001), None),
            (2, 1, Some(0.01), Some(StoppedBy::Precision)),
            (2, 1, Some(0.0101), None),
            (5, 1, Some(0.02), Some(StoppedBy::MaxCycles)),
            (5, 99, Some(0.0), Some(StoppedBy::Precision)),
            (3, 60, Some(0.02), Some(StoppedBy::TimeLimit)),
            (1, 60, Some(0.0), Some(StoppedBy::TimeLimit)),
            (1, 1, Some(f64::INFINITY), None),
            (1, 1, None, Some(StoppedBy::Precision)),
        ] {
            assert_eq!(
                limits.reached(cycles, Duration::from_secs(seconds), widest),
                wanted,
                "{cycles} {seconds} {widest:?}"
            );
        }
        let once = Limits {
            cycles: 1,
            ..limits
        };
        assert_eq!(
            once.reached(1, Duration::ZERO, Some(0.0)),
            Some(StoppedBy::MaxCycles)
        );
    }
}
