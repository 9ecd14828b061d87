//! Which failed tests are run again. Pure functions.
//!
//! An emulator keeps a CPU busy, and two run side by side. Where the machine gives them less, a guest gets no
//! processor for seconds, and a test that waits for it fails. So a few failed tests are run once more, one
//! after the other, with nothing beside them. Those that pass then are listed by name in the result: the
//! first failure, which was shown, may still be a defect. A test that fails twice has failed, and so have all
//! if there are many.

use super::boots::Suite;
use crate::host::Host;
use crate::suite::protocol::Outcome;
use crate::suite::verdict::Record;

/// More failures than these are no accident.
const MOST: usize = 3;

/// The suites with only the tests that failed on this host, if these tests are to be run again there.
pub(super) fn suites_of_failed(suites: &[Suite], records: &[Record], host: Host) -> Vec<Suite> {
    let failed = |record: &&Record| matches!(record.outcome, Outcome::Failed(_));
    if records.iter().filter(failed).count() > MOST {
        return Vec::new();
    }
    let has_failed = |name: &str| {
        let mut failed = records.iter().filter(failed);
        failed.any(|record| record.host == host && record.name == name)
    };
    let suites = suites.iter().map(|suite| {
        // A stage that comes after another needs the files of its tests.
        let is_chained = |stage: &str| {
            let mut all = suite.tests.iter();
            all.any(|test| {
                let after = test.after.as_deref();
                after == Some(stage) || (after.is_some() && test.stage == stage)
            })
        };
        let tests = suite.tests.iter();
        let tests = tests.filter(|test| has_failed(&test.name) && !is_chained(&test.stage));
        Suite {
            binary: suite.binary.clone(),
            tests: tests.cloned().collect(),
        }
    });
    suites.filter(|suite| !suite.tests.is_empty()).collect()
}

/// Replaces the failures that `again` has as passed; returns their tests.
pub(super) fn take_over(records: &mut [Record], again: &[Record]) -> Vec<String> {
    let mut passed = Vec::new();
    for record in records {
        let is_same = |other: &&Record| other.host == record.host && other.name == record.name;
        let found = again.iter().find(is_same);
        if matches!(record.outcome, Outcome::Failed(_))
            && found.is_some_and(|other| other.outcome == Outcome::Passed)
        {
            record.outcome = Outcome::Passed;
            passed.push(format!("{} on {}", record.name, record.host.name()));
        }
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::protocol::Listed;
    use crate::test::boots::tests::test;

    fn record(name: &str, host: Host, passed: bool) -> Record {
        Record {
            host,
            name: name.to_owned(),
            outcome: match passed {
                true => Outcome::Passed,
                false => Outcome::Failed("why".to_owned()),
            },
        }
    }

    fn names(suites: &[Suite]) -> Vec<&str> {
        let tests = suites.iter().flat_map(|suite| &suite.tests);
        tests.map(|test| test.name.as_str()).collect()
    }

    #[test]
    fn a_few_failed_tests_are_run_again_where_they_failed() {
        let chained = Listed {
            after: Some("first".to_owned()),
            ..test("c", Host::Amd, "second", 60)
        };
        let suites = [Suite {
            binary: "/suite".into(),
            tests: vec![
                test("a", Host::Amd, "plain", 60),
                test("b", Host::Amd, "first", 60),
                chained,
                test("d", Host::Intel, "plain", 60),
            ],
        }];
        let mut records = vec![
            record("a", Host::Amd, false),
            record("b", Host::Amd, false),
            record("c", Host::Amd, false),
            record("d", Host::Intel, true),
        ];
        assert_eq!(
            names(&suites_of_failed(&suites, &records, Host::Amd)),
            ["a"]
        );
        assert!(suites_of_failed(&suites, &records, Host::Intel).is_empty());
        records.push(record("d", Host::Intel, false));
        assert!(suites_of_failed(&suites, &records, Host::Amd).is_empty());
    }

    #[test]
    fn only_what_passes_then_has_passed() {
        let mut records = vec![
            record("a", Host::Amd, false),
            record("a", Host::Intel, false),
            record("b", Host::Amd, true),
        ];
        let again = [
            record("a", Host::Amd, true),
            record("a", Host::Intel, false),
            record("b", Host::Amd, false),
        ];
        assert_eq!(take_over(&mut records, &again), ["a on amd"]);
        let passed: Vec<_> = records
            .iter()
            .map(|r| r.outcome == Outcome::Passed)
            .collect();
        assert_eq!(passed, [true, false, true]);
    }
}
