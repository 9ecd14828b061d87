//! The combined result of several hosts.

use std::collections::{BTreeMap, BTreeSet};

use super::protocol::Outcome;
use crate::host::Host;

/// One test on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The host.
    pub host: Host,
    /// The test's name.
    pub name: String,
    /// Its outcome.
    pub outcome: Outcome,
}

/// Numbers of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Skipped.
    pub skipped: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// The result of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Results, each test counted once per host it ran on.
    pub counts: Counts,
    /// Tests that ran nowhere, with what each host lacked.
    pub ran_nowhere: BTreeMap<String, Vec<(Host, String)>>,
}

/// Adds up the results. With `every_host`, a test that was skipped on each host counts as failed (once,
/// instead of as skipped), because it has not run anywhere.
pub fn verdict(records: &[Record], every_host: bool) -> Verdict {
    let ran: BTreeSet<&str> = records
        .iter()
        .filter(|record| !matches!(record.outcome, Outcome::Skipped(_)))
        .map(|record| record.name.as_str())
        .collect();
    let mut verdict = Verdict::default();
    for record in records {
        match &record.outcome {
            Outcome::Passed => verdict.counts.passed += 1,
            Outcome::Failed(_) => verdict.counts.failed += 1,
            Outcome::Skipped(missing) => {
                if ran.contains(record.name.as_str()) {
                    verdict.counts.skipped += 1;
                } else {
                    let hosts = verdict.ran_nowhere.entry(record.name.clone()).or_default();
                    hosts.push((record.host, missing.clone()));
                    if !every_host {
                        verdict.counts.skipped += 1;
                    }
                }
            }
        }
    }
    if every_host {
        verdict.counts.failed += verdict.ran_nowhere.len() as u64;
    }
    verdict
}

/// Adds up the results of `cargo test` (`test result: ok. 3 passed; 0 failed; 1 ignored; …`).
pub fn cargo_test_counts(output: &str) -> Counts {
    let mut counts = Counts::default();
    for line in output.lines() {
        let Some(rest) = line.trim().strip_prefix("test result: ") else {
            continue;
        };
        for part in rest.split([';', '.']) {
            let Some((number, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => counts.passed += number,
                "failed" => counts.failed += number,
                "ignored" => counts.skipped += number,
                _ => {}
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(host: Host, name: &str, outcome: Outcome) -> Record {
        Record {
            host,
            name: name.to_owned(),
            outcome,
        }
    }

    fn skipped(missing: &str) -> Outcome {
        Outcome::Skipped(missing.to_owned())
    }

    #[test]
    fn a_test_skipped_somewhere_must_run_elsewhere() {
        let records = [
            record(Host::Here, "a", skipped("VMX")),
            record(Host::Intel, "a", Outcome::Passed),
            record(Host::Here, "b", skipped("X")),
            record(Host::Amd, "b", skipped("Y")),
            record(Host::Amd, "c", Outcome::Failed("boom".to_owned())),
            record(Host::Here, "c", skipped("Z")),
        ];
        let all = verdict(&records, true);
        assert_eq!(
            all.counts,
            Counts {
                passed: 1,
                failed: 2,
                skipped: 2
            }
        );
        assert_eq!(all.ran_nowhere.len(), 1);
        assert_eq!(
            all.ran_nowhere["b"],
            [(Host::Here, "X".to_owned()), (Host::Amd, "Y".to_owned())]
        );
        let some = verdict(&records, false);
        assert_eq!(
            some.counts,
            Counts {
                passed: 1,
                failed: 1,
                skipped: 4
            }
        );
        assert_eq!(some.ran_nowhere.len(), 1);
    }

    #[test]
    fn nothing_comes_to_nothing() {
        assert_eq!(verdict(&[], true), Verdict::default());
        assert_eq!(
            Counts::default().to_string(),
            "0 passed, 0 failed, 0 skipped"
        );
    }

    #[test]
    fn what_cargo_test_says() {
        let output = "\
            running 3 tests\n\
            test result: ok. 22 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.28s\n\
            noise test result: ok. 5 passed\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in \
            0.00s\n";
        assert_eq!(
            cargo_test_counts(output),
            Counts {
                passed: 23,
                failed: 2,
                skipped: 1
            }
        );
    }
}
