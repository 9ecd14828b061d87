//! When an emulator that died is started again: pure.
//!
//! A host that disappears without having reported the end of its command is the emulator's fault, not the
//! test's. The test that was running is tried once more; if the emulator dies during it again, the test has
//! failed. A test that failed by itself is never tried again.

use std::collections::BTreeSet;

/// More deaths than this in one boot's tests are no accidents.
const MAX_RESTARTS: usize = 3;

/// The restarts of one boot's tests.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// The tests that were tried again; empty: no test was running.
    tests: BTreeSet<String>,
}

impl Retries {
    /// Whether to start the emulator once more after it died during the test `running`.
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
