//! When to stop the guest: the decision after each round of copying RAM. Pure.

use std::time::Duration;

/// The page size that everything is counted in.
const PAGE: u64 = 4096;
/// The cost of the stop besides the last pages: collecting them, saving and loading the state of vCPUs and
/// devices. Subtracted from the budget before pages are counted against it, up to half of it.
const FIXED: Duration = Duration::from_millis(30);
/// The first throttle of the vCPUs and its increment, in percent of their time.
const FIRST_THROTTLE: u8 = 20;
const MORE_THROTTLE: u8 = 15;
/// A vCPU keeps at least the remaining share of its time, so that the guest's work does not stall.
const MAX_THROTTLE: u8 = 95;
/// A round does not converge if it leaves more than this percentage of the pages that it sent.
const CONVERGES: u64 = 60;
/// The number of consecutive non-converging rounds before the guest is throttled.
const FAILING_ROUNDS: u32 = 2;
/// The budget is a maximum for the stop. While a round leaves at most this percentage of the pages that it
/// sent, another round shortens the stop by as much, for little more time in total.
const SHRINKS: u64 = 50;
/// No round is added for a shorter stop if the remaining pages take at most this fraction of the budget.
const SHORT: u32 = 16;
/// After this many rounds the guest is stopped regardless of the cost: the writes of devices cannot be
/// throttled.
const MAX_ROUNDS: u32 = 200;

/// The measurements of one round of copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Guest pages that were sent.
    pub pages: u64,
    /// Bytes sent on the wire.
    pub bytes: u64,
    /// The duration of the round.
    pub took: Duration,
    /// Guest pages that were dirtied meanwhile.
    pub dirtied: u64,
}

/// The decision after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundDecision {
    /// Send the dirtied pages while the guest keeps running at its current speed.
    Continue,
    /// The same, with this share of their time taken from the vCPUs, in percent.
    Throttle(u8),
    /// Stop the guest: the remaining pages can be sent within the budget.
    Stop,
}

/// Decides after each round whether to continue, throttle or stop.
#[derive(Clone, Copy, Debug)]
pub struct Convergence {
    budget: Duration,
    throttle: u8,
    rounds: u32,
    failing: u32,
}

impl Convergence {
    /// Starts for a stop of at most `budget`.
    pub fn new(budget: Duration) -> Self {
        Self {
            budget,
            throttle: 0,
            rounds: 0,
            failing: 0,
        }
    }

    /// Decides what to do after `round`.
    pub fn after(&mut self, round: Round) -> RoundDecision {
        self.rounds += 1;
        let pages_budget = self.budget - FIXED.min(self.budget / 2);
        let shrinks = round.dirtied.saturating_mul(100) <= round.pages.saturating_mul(SHRINKS);
        let may_stop = transfer_time(round)
            .is_some_and(|time| time <= pages_budget && (time <= pages_budget / SHORT || !shrinks));
        if round.dirtied == 0 || self.rounds >= MAX_ROUNDS || may_stop {
            return RoundDecision::Stop;
        }
        if round.dirtied.saturating_mul(100) > round.pages.saturating_mul(CONVERGES) {
            self.failing += 1;
        } else {
            self.failing = 0;
        }
        if self.failing < FAILING_ROUNDS {
            return RoundDecision::Continue;
        }
        self.failing = 0;
        if self.throttle >= MAX_THROTTLE {
            return RoundDecision::Continue;
        }
        self.throttle = match self.throttle {
            0 => FIRST_THROTTLE,
            now => now.saturating_add(MORE_THROTTLE).min(MAX_THROTTLE),
        };
        RoundDecision::Throttle(self.throttle)
    }
}

/// Returns the time to send the pages that `round` left dirty, at the rate of that round; `None` if it sent
/// nothing.
pub fn transfer_time(round: Round) -> Option<Duration> {
    if round.pages == 0 || round.took.is_zero() {
        return None;
    }
    let ns = round.took.as_nanos() * u128::from(round.dirtied) / u128::from(round.pages);
    Some(Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)))
}

/// Returns `amount` per second, given that it took `took`.
pub fn per_second(amount: u64, took: Duration) -> u64 {
    let ns = took.as_nanos().max(1);
    u64::try_from(u128::from(amount) * 1_000_000_000 / ns).unwrap_or(u64::MAX)
}

/// How fast the guest dirties memory, in bytes per second.
pub fn dirty_rate(round: Round) -> u64 {
    per_second(round.dirtied.saturating_mul(PAGE), round.took)
}

/// Estimates the time of copying until the guest is stopped, from the last round: the remaining pages
/// shrink in each round by the ratio of dirtied to sent pages. `None` if they do not shrink.
pub fn estimate(round: Round, budget: Duration) -> Option<Duration> {
    let left = transfer_time(round)?;
    if left <= budget {
        return Some(left);
    }
    if round.dirtied >= round.pages {
        return None;
    }
    // The sum of the infinite geometric series of the ratio dirtied / pages.
    let ns = left.as_nanos() * u128::from(round.pages) / u128::from(round.pages - round.dirtied);
    Some(Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(300);

    fn round(pages: u64, ms: u64, dirtied: u64) -> Round {
        Round {
            pages,
            bytes: pages * PAGE,
            took: Duration::from_millis(ms),
            dirtied,
        }
    }

    #[test]
    fn one_round() {
        for (pages, ms, dirtied, next) in [
            // Nothing left.
            (1000, 1000, 0, RoundDecision::Stop),
            // 270 ms at that rate: within 300 less 30, and it does not shrink.
            (500, 500, 270, RoundDecision::Stop),
            (500, 500, 271, RoundDecision::Continue),
            // Another round shrinks it, until the gain is small.
            (1000, 1000, 270, RoundDecision::Continue),
            (1000, 1000, 17, RoundDecision::Continue),
            (1000, 1000, 16, RoundDecision::Stop),
            // A slow link with few pages.
            (3, 300, 2, RoundDecision::Stop),
            (100, 10_000, 2, RoundDecision::Continue),
            // Nothing was sent, so the rate is unknown.
            (0, 0, 10, RoundDecision::Continue),
        ] {
            let got = Convergence::new(BUDGET).after(round(pages, ms, dirtied));
            assert_eq!(got, next, "{pages} pages in {ms} ms, {dirtied} dirtied");
        }
    }

    #[test]
    fn guest_that_dirties_faster_than_the_link_is_throttled_in_steps() {
        let mut convergence = Convergence::new(BUDGET);
        let busy = round(100_000, 10_000, 90_000);
        let throttles: Vec<u8> = (0..20)
            .filter_map(|_| match convergence.after(busy) {
                RoundDecision::Throttle(percent) => Some(percent),
                RoundDecision::Continue => None,
                RoundDecision::Stop => panic!("it was stopped"),
            })
            .collect();
        assert_eq!(throttles, [20, 35, 50, 65, 80, 95]);
        assert_eq!(
            convergence.after(round(1000, 1000, 16)),
            RoundDecision::Stop
        );
    }

    #[test]
    fn converging_guest_is_not_throttled() {
        let mut convergence = Convergence::new(BUDGET);
        for (pages, dirtied) in [(100_000, 50_000), (50_000, 25_000), (25_000, 12_500)] {
            assert_eq!(
                convergence.after(round(pages, pages / 10, dirtied)),
                RoundDecision::Continue
            );
        }
        // 200 ms is within the budget; 20 ms is better.
        assert_eq!(
            convergence.after(round(12_500, 1250, 2000)),
            RoundDecision::Continue
        );
        assert_eq!(
            convergence.after(round(2000, 200, 200)),
            RoundDecision::Continue
        );
        assert_eq!(convergence.after(round(200, 20, 110)), RoundDecision::Stop);
    }

    #[test]
    fn precopy_without_convergence_ends() {
        let mut convergence = Convergence::new(Duration::ZERO);
        let stops = (0..MAX_ROUNDS)
            .position(|_| convergence.after(round(1000, 1000, 1000)) == RoundDecision::Stop);
        assert_eq!(stops, Some(199));
    }

    #[test]
    fn a_small_budget_is_split_between_pages_and_the_rest() {
        let mut convergence = Convergence::new(Duration::from_millis(40));
        assert_eq!(convergence.after(round(30, 30, 20)), RoundDecision::Stop);
        assert_eq!(
            convergence.after(round(30, 30, 21)),
            RoundDecision::Continue
        );
    }

    #[test]
    fn figures() {
        let r = round(1000, 2000, 500);
        assert_eq!(transfer_time(r), Some(Duration::from_secs(1)));
        assert_eq!(dirty_rate(r), 250 * PAGE);
        assert_eq!(estimate(r, BUDGET), Some(Duration::from_secs(2)));
        assert_eq!(estimate(round(1000, 1000, 1000), BUDGET), None);
        assert_eq!(
            estimate(round(1000, 1000, 100), BUDGET),
            Some(Duration::from_millis(100))
        );
        assert_eq!(per_second(10, Duration::ZERO), 10_000_000_000);
        assert_eq!(per_second(u64::MAX, Duration::ZERO), u64::MAX);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_figures_give_a_decision(
            pages: u64, bytes: u64, ns: u64, dirtied: u64, budget_ms in 0_u64..1 << 40
        ) {
            let round = Round { pages, bytes, took: Duration::from_nanos(ns), dirtied };
            let budget = Duration::from_millis(budget_ms);
            let mut convergence = Convergence::new(budget);
            for _ in 0..10 {
                if let RoundDecision::Throttle(percent) = convergence.after(round) {
                    assert!((1..=MAX_THROTTLE).contains(&percent));
                }
            }
            let _rate = dirty_rate(round);
            let _estimate = estimate(round, budget);
        }
    }
}
