//! The boots of hosts that the tests need, and their order. Pure functions.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::Host;
use crate::suite::INTEL_PATIENCE;
use crate::suite::protocol::Listed;

/// A test binary and its selected tests.
#[derive(Debug)]
pub(super) struct Suite {
    pub(super) binary: PathBuf,
    pub(super) tests: Vec<Listed>,
}

/// Tests that run one after the other in one boot of a host: all or some of the tests of one stage.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Boot<'a> {
    pub(super) host: Host,
    pub(super) binary: &'a Path,
    pub(super) tests: Vec<Listed>,
    /// The boot that follows this one and receives its files.
    pub(super) next: Option<Box<Boot<'a>>>,
}

/// Tests are split over further boots if their limits add up to more than this; a boot takes half a minute.
/// Most tests take a tenth of their limit.
const MOST_SECONDS: u32 = 2400;

impl Boot<'_> {
    /// The time limit of its tests and of those of the following boots.
    fn limit(&self) -> Duration {
        let own: Duration = self.tests.iter().map(|test| limit(self.host, test)).sum();
        own + self
            .next
            .as_ref()
            .map_or(Duration::ZERO, |next| next.limit())
    }

    /// This boot and the following ones.
    pub(super) fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |boot| boot.next.as_deref())
    }

    /// The tests of all of them.
    pub(super) fn tests(&self) -> impl Iterator<Item = &Listed> {
        self.chain().flat_map(|boot| &boot.tests)
    }

    /// Whether its stage comes after the stage called `name`.
    fn is_after(&self, name: &str) -> bool {
        self.tests
            .first()
            .is_some_and(|test| test.after.as_deref() == Some(name))
    }
}

/// `boots` of one suite on one host, each with the following ones. A boot whose predecessor has no tests here
/// runs alone.
fn chained(mut boots: Vec<Boot<'_>>) -> Vec<Boot<'_>> {
    let mut chains: Vec<Boot<'_>> = Vec::new();
    // The last boot of a chain is attached to its predecessor, until no boot has a predecessor in the list.
    while let Some(at) = boots.iter().position(|last| {
        let stage = last.tests.first().map(|test| test.stage.as_str());
        !boots
            .iter()
            .any(|other| stage.is_some_and(|stage| other.is_after(stage)))
    }) {
        let last = boots.remove(at);
        let after = last.tests.first().and_then(|test| test.after.clone());
        let before = boots.iter_mut().find(|boot| {
            let stage = boot.tests.first().map(|test| test.stage.as_str());
            stage.is_some() && stage == after.as_deref()
        });
        match before {
            Some(before) => before.next = Some(Box::new(last)),
            None => chains.push(last),
        }
    }
    chains
}

/// The time limit of a test on `host`.
pub(super) fn limit(host: Host, test: &Listed) -> Duration {
    let patience = match host {
        Host::Intel => INTEL_PATIENCE,
        Host::Here | Host::Amd => 1,
    };
    Duration::from_secs(test.limit_seconds.into()) * patience
}

/// The time limit of a test that takes as long as the start and the end of `host`: a test takes a tenth of
/// its limit.
pub(super) fn start_up(host: Host) -> Duration {
    Duration::from_secs(match host {
        Host::Here => 0,
        Host::Amd => 120,
        Host::Intel => 450,
    })
}

/// The boots of emulated `hosts` for the tests of `suites`, the longest first: several run at once, and a
/// long boot that started last would run alone at the end. This machine has one boot per stage.
pub(super) fn boots<'a>(suites: &'a [Suite], hosts: &[Host]) -> Vec<Boot<'a>> {
    let mut boots = Vec::new();
    for &host in hosts {
        for suite in suites {
            let mut stages: BTreeMap<&str, Vec<Listed>> = BTreeMap::new();
            for test in &suite.tests {
                if test.hosts.iter().any(|name| name == host.name()) {
                    stages.entry(&test.stage).or_default().push(test.clone());
                }
            }
            let mut of_suite = Vec::new();
            for tests in stages.into_values() {
                let in_chain = |test: &Listed| {
                    let stages = suite.tests.iter().filter_map(|other| other.after.as_ref());
                    test.after.is_some() || stages.into_iter().any(|after| *after == test.stage)
                };
                let seconds: u32 = tests.iter().map(|test| test.limit_seconds).sum();
                let parts = match host {
                    Host::Here => 1,
                    // The files of one boot are carried to the next.
                    _ if tests.iter().any(in_chain) => 1,
                    Host::Amd | Host::Intel => seconds.div_ceil(MOST_SECONDS).max(1),
                };
                of_suite.extend(shares(tests, parts).into_iter().map(|tests| Boot {
                    host,
                    binary: &suite.binary,
                    tests,
                    next: None,
                }));
            }
            boots.extend(chained(of_suite));
        }
    }
    boots.sort_by_key(|boot| Reverse(boot.limit()));
    boots
}

/// `tests` in their order, in at most `parts` shares whose limits add up to similar times.
fn shares(tests: Vec<Listed>, parts: u32) -> Vec<Vec<Listed>> {
    let all: u32 = tests.iter().map(|test| test.limit_seconds).sum();
    let share = all.div_ceil(parts).max(1);
    let mut shares: BTreeMap<u32, Vec<Listed>> = BTreeMap::new();
    let mut before = 0;
    for test in tests {
        let number = (before / share).min(parts - 1);
        before += test.limit_seconds;
        shares.entry(number).or_default().push(test);
    }
    shares.into_values().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::test) fn test(name: &str, host: Host, stage: &str, limit_seconds: u32) -> Listed {
        Listed {
            name: name.to_owned(),
            hosts: vec![host.name().to_owned()],
            stage: stage.to_owned(),
            cpus: 1,
            memory_mib: 1024,
            kernel: "linux-6.12".to_owned(),
            intel: "skylake".to_owned(),
            with: Vec::new(),
            disks: Vec::new(),
            without: Vec::new(),
            parameters: Vec::new(),
            after: None,
            limit_seconds,
        }
    }

    #[test]
    fn stages_that_carry_files_are_booted_one_after_the_other() {
        let after = |name: &str, stage: &str, before: &str| Listed {
            after: Some(before.to_owned()),
            ..test(name, Host::Amd, stage, 2000)
        };
        let suites = [Suite {
            binary: "/suite".into(),
            tests: vec![
                after("c", "third", "second"),
                test("x", Host::Amd, "other", 60),
                after("b", "second", "first"),
                test("a", Host::Amd, "first", 2000),
                test("a2", Host::Amd, "first", 2000),
                after("lost", "fifth", "fourth"),
            ],
        }];
        let boots = boots(&suites, &[Host::Amd]);
        assert_eq!(boots.len(), 3);
        assert_eq!(names(&boots[0]), ["a", "a2"]);
        assert_eq!(boots[0].limit(), Duration::from_secs(8000));
        let second = boots[0].next.as_ref().unwrap();
        assert_eq!(names(second), ["b"]);
        let third = second.next.as_ref().unwrap();
        assert_eq!(names(third), ["c"]);
        assert_eq!(third.next, None);
        assert_eq!(names(&boots[1]), ["lost"]);
        assert_eq!(names(&boots[2]), ["x"]);
    }

    fn names(boot: &Boot<'_>) -> Vec<String> {
        boot.tests.iter().map(|test| test.name.clone()).collect()
    }

    #[test]
    fn each_stage_has_its_boots_and_the_longest_is_first() {
        let suites = [Suite {
            binary: "/suite".into(),
            tests: vec![
                test("a", Host::Amd, "plain", 60),
                test("b", Host::Intel, "plain", 60),
                test("c", Host::Intel, "linux", 300),
                test("d", Host::Intel, "plain", 60),
                test("e", Host::Here, "plain", 9000),
            ],
        }];
        let boots = boots(&suites, &[Host::Amd, Host::Intel]);
        let seen: Vec<_> = boots.iter().map(names).collect();
        assert_eq!(seen, [vec!["c"], vec!["b", "d"], vec!["a"]]);
        assert_eq!(boots[0].host, Host::Intel);
        assert_eq!(boots[0].limit(), Duration::from_secs(1500));
        assert_eq!(super::boots(&suites, &[Host::Here]).len(), 1);
    }

    #[test]
    fn what_would_take_long_is_divided_and_nothing_is_lost() {
        let tests: Vec<_> = (0..50)
            .map(|number| test(&number.to_string(), Host::Amd, "plain", 60 + number))
            .collect();
        let suites = [Suite {
            binary: "/suite".into(),
            tests: tests.clone(),
        }];
        let boots = boots(&suites, &[Host::Amd]);
        assert_eq!(boots.len(), 2);
        let mut all: Vec<_> = boots.iter().flat_map(names).collect();
        all.sort_by_key(|name| name.parse::<u32>().unwrap());
        let expected: Vec<_> = tests.iter().map(|test| test.name.clone()).collect();
        assert_eq!(all, expected);
        for boot in &boots {
            assert!(boot.limit() <= Duration::from_secs(MOST_SECONDS.into()));
        }
    }
}
