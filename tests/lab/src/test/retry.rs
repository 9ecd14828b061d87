//! Decides whether an emulator that ended is started again. Pure functions.
//!
//! A host that disappears without having reported the end of its command is a failure of the emulator, not of
//! the test. The running test is repeated once; if the emulator ends during it again, the test has failed. A
//! test that failed by itself is no reason ([`repeat`](super::repeat)).

use std::collections::BTreeSet;

/// The maximum number of restarts in one boot's tests; more are not accidental.
const MAX_RESTARTS: usize = 3;

/// The restarts of one boot's tests.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// The tests that were repeated; an empty name stands for no running test.
    tests: BTreeSet<String>,
}

impl Retries {
    /// Whether to restart the emulator after it ended during the test `running`.
    pub(super) fn allow(&mut self, running: Option<&str>) -> bool {
        self.tests.len() < MAX_RESTARTS && self.tests.insert(running.unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_is_tried_again_once_and_so_is_a_boot() {
        let mut retries = Retries::default();
        assert!(retries.allow(Some("a")));
        assert!(!retries.allow(Some("a")));
        assert!(retries.allow(None));
        assert!(!retries.allow(None));
        assert!(retries.allow(Some("b")));
    }

    #[test]
    fn an_emulator_that_dies_all_the_time_is_given_up() {
        let mut retries = Retries::default();
        let allowed = (0..10).filter(|test| retries.allow(Some(&test.to_string())));
        assert_eq!(allowed.count(), MAX_RESTARTS);
    }
}
