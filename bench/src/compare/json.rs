//! The differences as JSON; its schema is bench/schema/compare.schema.json.

use serde::Serialize;

use super::table::{Change, warnings};
use crate::report::{Group, Report, groups};

/// The version of the JSON form.
const VERSION: u32 = 1;

/// Two reports side by side.
#[derive(Debug, Serialize)]
pub(super) struct Comparison<'a> {
    version: u32,
    unit: &'a str,
    warnings: Vec<String>,
    changes: Vec<MedianChange<'a>>,
    /// L1s that only one of the reports has.
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
    pub(super) conditions: Vec<Condition>,
    /// Whether a condition failed.
    pub(super) failed: bool,
}

/// The medians of round trips of one kind in one mode.
#[derive(Debug, Serialize)]
struct MedianChange<'a> {
    l1: String,
    mode: &'static str,
    kind: &'a str,
    a: Option<f64>,
    b: Option<f64>,
    /// B relative to A.
    ratio: Option<f64>,
    /// From the 95 % intervals of both medians.
    ratio_interval: Option<[f64; 2]>,
    /// The interval does not include 1.
    significant: bool,
    host_exits_a: Option<f64>,
    host_exits_b: Option<f64>,
}

/// The result of a condition for one L1.
#[derive(Debug, Serialize)]
pub(super) struct Condition {
    pub(super) condition: String,
    pub(super) failed: bool,
    pub(super) why: String,
}

impl<'a> Comparison<'a> {
    pub(super) fn of(a: &'a Report, b: &'a Report) -> Self {
        let (of_a, of_b) = (groups(a), groups(b));
        let mut changes = Vec::new();
        let only = |these: &[Group<'a>], others: &[Group<'a>]| -> Vec<String> {
            let lonely = these
                .iter()
                .filter(|group| !others.iter().any(|other| other.is_like(group)));
            lonely.map(Group::title).collect()
        };
        let (only_in_a, only_in_b) = (only(&of_a, &of_b), only(&of_b, &of_a));
        for group in &of_b {
            if let Some(like) = of_a.iter().find(|other| other.is_like(group)) {
                pair(like, group, &mut changes);
            }
        }
        Self {
            version: VERSION,
            unit: &b.unit.name,
            warnings: warnings(a, b),
            changes,
            only_in_a,
            only_in_b,
            conditions: Vec::new(),
            failed: false,
        }
    }
}

fn pair<'a>(a: &Group<'a>, b: &Group<'a>, changes: &mut Vec<MedianChange<'a>>) {
    let mut modes = b.modes();
    modes.extend(
        a.modes()
            .into_iter()
            .filter(|mode| !b.modes().contains(mode)),
    );
    let mut kinds = b.kinds();
    kinds.extend(
        a.kinds()
            .into_iter()
            .filter(|kind| !b.kinds().contains(kind)),
    );
    for mode in modes {
        for kind in &kinds {
            let cpus = |group: &Group<'a>| group.entry(mode, kind).map(|entry| entry.cpus);
            let (before, after) = (a.complete(mode, kind), b.complete(mode, kind));
            // Results with different numbers of vCPUs are different measurements.
            let alike = cpus(a) == cpus(b);
            let change = before
                .zip(after)
                .filter(|_| alike)
                .and_then(|(before, after)| Change::of(before, after));
            if before.is_none() && after.is_none() {
                continue;
            }
            changes.push(MedianChange {
                l1: b.title(),
                mode: mode.name(),
                kind,
                a: before.map(|m| m.parts.round_trip.summary.p50),
                b: after.map(|m| m.parts.round_trip.summary.p50),
                ratio: change.map(|change| change.ratio.value),
                ratio_interval: change.and_then(|change| change.ratio.interval),
                significant: change.is_some_and(|change| change.is_significant()),
                host_exits_a: before.and_then(|m| m.host_exits_per_l2_exit),
                host_exits_b: after.and_then(|m| m.host_exits_per_l2_exit),
            });
        }
    }
}
