//! When to stop the guest: the decision after each round of copying RAM. Pure.

use std::time::Duration;

/// The page size that everything is counted in.
const PAGE: u64 = 4096;
/// What the stop costs beside the last pages: collecting them, the state of vCPUs and devices, loading it. Taken off the
/// budget before pages are counted against it, at most half of it.
const FIXED: Duration = Duration::from_millis(30);
/// The first share of time that is taken from the vCPUs, and by how much it grows, in percent.
const FIRST_THROTTLE: u8 = 20;
const MORE_THROTTLE: u8 = 15;
/// A vCPU keeps at least this share of its time, so that what it does does not break off.
const MAX_THROTTLE: u8 = 95;
/// A round that leaves more than this share of what it sent, in percent, does not converge.
const CONVERGES: u64 = 60;
/// Rounds in a row that may fail to converge before the guest is slowed down.
const PATIENCE: u32 = 2;
/// The budget is what the stop may take at most. While a round leaves at most this share of what it sent, in percent, another
/// one makes the stop that much shorter, for little more time in all;
const SHRINKS: u64 = 50;
/// until what is left takes no longer than this share of the budget.
const SHORT: u32 = 16;
/// After so many rounds the guest is stopped whatever it costs: something that dirties memory beside the vCPUs cannot be
/// slowed down.
const MAX_ROUNDS: u32 = 200;

/// What one round of copying showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Guest pages that were sent.
    pub pages: u64,
    /// Bytes that this took on the wire.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// Guest pages that were dirtied meanwhile.
    pub dirtied: u64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send what was dirtied while the guest goes on as it does.
    GoOn,
    /// The same, with this share of their time taken from the vCPUs, in percent.
    Throttle(u8),
    /// Stop the guest: what is left can be sent in time.
    Stop,
}

/// The decision over all rounds.
#[derive(Clone, Copy, Debug)]
pub struct Convergence {
    budget: Duration,
    throttle: u8,
    rounds: u32,
    failing: u32,
}

impl Convergence {
    /// For a stop of at most `budget`.
    pub fn new(budget: Duration) -> Self {
        Self {
            budget,
            throttle: 0,
            rounds: 0,
            failing: 0,
        }
    }

    /// What to do after `round`.
    pub fn after(&mut self, round: Round) -> Next {
        self.rounds += 1;
        let pages_budget = self.budget - FIXED.min(self.budget / 2);
        let shrinks = round.dirtied.saturating_mul(100) <= round.pages.saturating_mul(SHRINKS);
        let may_stop = transfer_time(round)
            .is_some_and(|time| time <= pages_budget && (time <= pages_budget / SHORT || !shrinks));
        if round.dirtied == 0 || self.rounds >= MAX_ROUNDS || may_stop {
            return Next::Stop;
        }
        if round.dirtied.saturating_mul(100) > round.pages.saturating_mul(CONVERGES) {
            self.failing += 1;
        } else {
            self.failing = 0;
        }
        if self.failing < PATIENCE {
            return Next::GoOn;
        }
        self.failing = 0;
        if self.throttle >= MAX_THROTTLE {
            return Next::GoOn;
        }
        self.throttle = match self.throttle {
            0 => FIRST_THROTTLE,
            now => now.saturating_add(MORE_THROTTLE).min(MAX_THROTTLE),
        };
        Next::Throttle(self.throttle)
    }
}

/// How long it takes to send what `round` left dirty, at the pace at which it sent; unknown if it sent nothing.
pub fn transfer_time(round: Round) -> Option<Duration> {
    if round.pages == 0 || round.took.is_zero() {
        return None;
    }
    let ns = round.took.as_nanos() * u128::from(round.dirtied) / u128::from(round.pages);
    Some(Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)))
}

/// Something per second: `amount` in `took`.
pub fn per_second(amount: u64, took: Duration) -> u64 {
    let ns = took.as_nanos().max(1);
    u64::try_from(u128::from(amount) * 1_000_000_000 / ns).unwrap_or(u64::MAX)
}

/// How fast the guest dirties memory, in bytes per second.
pub fn dirty_rate(round: Round) -> u64 {
    per_second(round.dirtied.saturating_mul(PAGE), round.took)
}

/// How long copying will still take until the guest is stopped, as far as the last round can tell: the rest shrinks each
/// round by the ratio of dirtied to sent pages. `None` if it does not shrink.
pub fn estimate(round: Round, budget: Duration) -> Option<Duration> {
    let left = transfer_time(round)?;
    if left <= budget {
        return Some(left);
    }
    if round.dirtied >= round.pages {
        return None;
    }
    // The sum of a geometric series, at most all of it.
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
            (1000, 1000, 0, Next::Stop),
            // 270 ms at that pace: within 300 less 30, and it does not become less.
            (500, 500, 270, Next::Stop),
            (500, 500, 271, Next::GoOn),
            // Another round makes it less, until there is little to be had.
            (1000, 1000, 270, Next::GoOn),
            (1000, 1000, 17, Next::GoOn),
            (1000, 1000, 16, Next::Stop),
            // A slow link with few pages.
            (3, 300, 2, Next::Stop),
            (100, 10_000, 2, Next::GoOn),
            // Nothing was sent, so the pace is unknown.
            (0, 0, 10, Next::GoOn),
        ] {
            let got = Convergence::new(BUDGET).after(round(pages, ms, dirtied));
            assert_eq!(got, next, "{pages} pages in {ms} ms, {dirtied} dirtied");
        }
    }

    #[test]
    fn a_guest_that_dirties_faster_than_the_link_is_slowed_step_by_step() {
        let mut convergence = Convergence::new(BUDGET);
        let busy = round(100_000, 10_000, 90_000);
        let throttles: Vec<u8> = (0..20)
            .filter_map(|_| match convergence.after(busy) {
                Next::Throttle(percent) => Some(percent),
                Next::GoOn => None,
                Next::Stop => panic!("it was stopped"),
            })
            .collect();
        assert_eq!(throttles, [20, 35, 50, 65, 80, 95]);
        assert_eq!(convergence.after(round(1000, 1000, 16)), Next::Stop);
    }

    #[test]
    fn a_guest_that_converges_is_left_alone() {
        let mut convergence = Convergence::new(BUDGET);
        for (pages, dirtied) in [(100_000, 50_000), (50_000, 25_000), (25_000, 12_500)] {
            assert_eq!(
                convergence.after(round(pages, pages / 10, dirtied)),
                Next::GoOn
            );
        }
        // 200 ms would do; 20 are better.
        assert_eq!(convergence.after(round(12_500, 1250, 2000)), Next::GoOn);
        assert_eq!(convergence.after(round(2000, 200, 200)), Next::GoOn);
        assert_eq!(convergence.after(round(200, 20, 110)), Next::Stop);
    }

    #[test]
    fn what_cannot_converge_ends() {
        let mut convergence = Convergence::new(Duration::ZERO);
        let stops =
            (0..MAX_ROUNDS).position(|_| convergence.after(round(1000, 1000, 1000)) == Next::Stop);
        assert_eq!(stops, Some(199));
    }

    #[test]
    fn a_small_budget_is_split_between_pages_and_the_rest() {
        let mut convergence = Convergence::new(Duration::from_millis(40));
        assert_eq!(convergence.after(round(30, 30, 20)), Next::Stop);
        assert_eq!(convergence.after(round(30, 30, 21)), Next::GoOn);
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
        fn any_figures_give_a_decision(
            pages: u64, bytes: u64, ns: u64, dirtied: u64, budget_ms in 0_u64..1 << 40
        ) {
            let round = Round { pages, bytes, took: Duration::from_nanos(ns), dirtied };
            let budget = Duration::from_millis(budget_ms);
            let mut convergence = Convergence::new(budget);
            for _ in 0..10 {
                if let Next::Throttle(percent) = convergence.after(round) {
                    assert!((1..=MAX_THROTTLE).contains(&percent));
                }
            }
            let _rate = dirty_rate(round);
            let _estimate = estimate(round, budget);
        }
    }
}
