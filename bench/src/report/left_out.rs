//! Measurements that were left out, grouped by reason.

use hypernest_nested::l2exit::Mode;

use super::groups::Group;
use super::model::{ALL_KINDS, Outcome};

/// The measurements left out for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut<'a> {
    /// The names of groups.
    pub(super) groups: Vec<String>,
    modes: Vec<Mode>,
    /// The kinds; empty if the whole mode was left out.
    pub(super) kinds: Vec<&'a str>,
    pub(super) why: &'a str,
}

impl LeftOut<'_> {
    /// The modes as text.
    pub(super) fn modes(&self) -> String {
        let names: Vec<_> = self.modes.iter().map(|mode| mode.name()).collect();
        names.join(", ")
    }
}

/// All that `groups` left out, grouped by reason.
pub(super) fn left_out<'a>(groups: &[Group<'a>]) -> Vec<LeftOut<'a>> {
    let mut by_mode: Vec<LeftOut<'a>> = Vec::new();
    for group in groups {
        let name = group.name();
        for entry in group.entries() {
            let Outcome::LeftOut { why } = &entry.outcome else {
                continue;
            };
            let same = by_mode.iter_mut().find(|one| {
                one.groups == [name.as_str()] && one.modes == [entry.mode] && one.why == why
            });
            let kind = Some(entry.kind.as_str()).filter(|kind| *kind != ALL_KINDS);
            match same {
                Some(one) => one.kinds.extend(kind),
                None => by_mode.push(LeftOut {
                    groups: vec![name.clone()],
                    modes: vec![entry.mode],
                    kinds: kind.into_iter().collect(),
                    why,
                }),
            }
        }
    }
    let mut by_group: Vec<LeftOut<'a>> = Vec::new();
    for one in by_mode {
        let same = by_group.iter_mut().find(|other| {
            other.groups == one.groups && other.kinds == one.kinds && other.why == one.why
        });
        match same {
            Some(other) => other.modes.extend(one.modes),
            None => by_group.push(one),
        }
    }
    let mut all: Vec<LeftOut<'a>> = Vec::new();
    for one in by_group {
        let same = all.iter_mut().find(|other| {
            other.modes == one.modes && other.kinds == one.kinds && other.why == one.why
        });
        match same {
            Some(other) => other.groups.extend(one.groups),
            None => all.push(one),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::groups::groups;
    use crate::report::model::{Entry, L1};
    use crate::report::sample::{left_out as entry, report_of};

    #[test]
    fn each_reason_stands_once() {
        let linux = |mut entry: Entry| {
            entry.l1 = L1::Linux;
            entry.touch = None;
            entry
        };
        let report = report_of(vec![
            entry(Mode::Svm, ALL_KINDS),
            entry(Mode::SvmEmsr, ALL_KINDS),
            linux(entry(Mode::Svm, ALL_KINDS)),
            linux(entry(Mode::SvmEmsr, ALL_KINDS)),
            entry(Mode::Classic, "xsetbv"),
            entry(Mode::Classic, "ipi"),
            entry(Mode::Evmcs, "xsetbv"),
            entry(Mode::Evmcs, "ipi"),
        ]);
        let all = left_out(&groups(&report));
        let seen: Vec<_> = all
            .iter()
            .map(|one| (one.groups.join(","), one.modes(), one.kinds.join(",")))
            .collect();
        let text = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(
            seen,
            [
                text("micro,linux", "svm, svm+emsr", ""),
                text("micro", "classic, evmcs", "xsetbv,ipi"),
            ]
        );
    }
}
