//! The differences for a terminal.

use std::fmt::Write as _;

use hypernest_nested::l2exit::Mode;

use crate::report::{Group, Measured, Ratio, Report, grid, groups, number, plain, ratio};

/// B's figures relative to A's.
pub(super) fn table(a: &Report, b: &Report) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = write_all(a, b, &mut text);
    text
}

fn write_all(a: &Report, b: &Report, out: &mut String) -> std::fmt::Result {
    for (name, report) in [("A", a), ("B", b)] {
        let host = &report.environment;
        writeln!(
            out,
            "{name}: {}, {}, Linux {} on {}",
            plain(&report.started),
            plain(&report.made_by),
            plain(&host.kernel),
            plain(&host.cpu_model)
        )?;
    }
    for warning in warnings(a, b) {
        writeln!(out, "warning: {warning}")?;
    }
    let (of_a, of_b) = (groups(a), groups(b));
    for group in &of_b {
        match of_a.iter().find(|other| other.is_like(group)) {
            Some(like) => pair(like, group, &b.unit.name, out)?,
            None => writeln!(out, "\nonly in B: {}", group.title())?,
        }
    }
    for group in &of_a {
        if !of_b.iter().any(|other| other.is_like(group)) {
            writeln!(out, "\nonly in A: {}", group.title())?;
        }
    }
    writeln!(out)
}

/// Reasons for differences that the figures do not show.
pub(super) fn warnings(a: &Report, b: &Report) -> Vec<String> {
    let (host_a, host_b) = (&a.environment, &b.environment);
    let mut warnings = Vec::new();
    if host_a.cpu_model != host_b.cpu_model || host_a.lab != host_b.lab {
        warnings.push("the hosts' CPUs are not the same".to_owned());
    }
    if host_a.kernel != host_b.kernel {
        warnings.push("the hosts' kernels are not the same".to_owned());
    }
    if host_a.mitigations != host_b.mitigations {
        warnings.push("the hosts' mitigations are not the same".to_owned());
    }
    // A unit that is measured again differs in its last digits.
    let units = ratio(a.unit.ticks, b.unit.ticks);
    if !units.is_some_and(|ratio| (ratio - 1.0).abs() < 0.01) {
        warnings.push(format!(
            "the unit is {} ticks in A and {} in B",
            a.unit.ticks, b.unit.ticks
        ));
    }
    for (name, report) in [("A", a), ("B", b)] {
        if report.interrupted {
            warnings.push(format!("{name} was interrupted"));
        }
    }
    warnings
}

/// The change of a median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Change {
    before: f64,
    after: f64,
    pub(super) ratio: Ratio,
}

impl Change {
    pub(super) fn of(before: &Measured, after: &Measured) -> Option<Self> {
        let (a, b) = (&before.parts.round_trip, &after.parts.round_trip);
        Some(Self {
            before: a.summary.p50,
            after: b.summary.p50,
            ratio: Ratio::of(b, a)?,
        })
    }

    /// Whether the interval excludes 1.
    pub(super) fn is_significant(&self) -> bool {
        self.ratio.excludes_one()
    }
}

fn pair(a: &Group<'_>, b: &Group<'_>, unit: &str, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n{}", b.title())?;
    let mut modes = a.modes();
    modes.extend(b.modes());
    let modes: Vec<Mode> = Mode::ALL
        .iter()
        .copied()
        .filter(|mode| modes.contains(mode))
        .collect();
    let mut kinds = b.kinds();
    kinds.extend(
        a.kinds()
            .into_iter()
            .filter(|kind| !b.kinds().contains(kind)),
    );
    if kinds.is_empty() {
        return writeln!(out, "no figures");
    }
    writeln!(
        out,
        "medians of round trips, B in parts of A; *: the interval of the ratio, from both medians' 95 % \
         intervals, excludes 1"
    )?;
    let mut details = Vec::new();
    // As many modes side by side as fit.
    for modes in modes.chunks(MODES_A_BLOCK) {
        let mut rows = vec![row("", modes.iter().map(|mode| format!("{mode} ")))];
        for kind in &kinds {
            let cells = modes
                .iter()
                .map(|mode| cell(a, b, *mode, kind, &mut details));
            rows.push(row(&plain(kind), cells));
        }
        writeln!(out)?;
        grid(&rows, out)?;
    }
    if !details.is_empty() {
        writeln!(out, "\nwhat changed, in {}:", plain(unit))?;
    }
    for detail in details {
        writeln!(out, "  {detail}")?;
    }
    Ok(())
}

const MODES_A_BLOCK: usize = 5;

fn row(first: &str, cells: impl Iterator<Item = String>) -> [String; MODES_A_BLOCK + 1] {
    let mut row = std::array::from_fn(|_| String::new());
    row[0] = first.to_owned();
    for (place, cell) in row[1..].iter_mut().zip(cells) {
        *place = cell;
    }
    row
}

fn cell(a: &Group<'_>, b: &Group<'_>, mode: Mode, kind: &str, details: &mut Vec<String>) -> String {
    let (before, after) = match (a.complete(mode, kind), b.complete(mode, kind)) {
        (Some(before), Some(after)) => (before, after),
        (Some(_), None) => {
            let why = if b.failed(mode, kind) {
                "failed"
            } else {
                "is not there"
            };
            details.push(format!("{mode} {}: it {why} in B", plain(kind)));
            return "only A".to_owned();
        }
        (None, Some(_)) => return "only B".to_owned(),
        (None, None) => return "-".to_owned(),
    };
    let cpus = |group: &Group<'_>| group.entry(mode, kind).map(|entry| entry.cpus);
    if cpus(a) != cpus(b) {
        let number = |group| cpus(group).unwrap_or(0).to_string();
        details.push(format!(
            "{mode} {}: L1 has {} vCPUs in A and {} in B",
            plain(kind),
            number(a),
            number(b)
        ));
        return "-".to_owned();
    }
    let Some(change) = Change::of(before, after) else {
        return "-".to_owned();
    };
    let exits = before
        .host_exits_per_l2_exit
        .zip(after.host_exits_per_l2_exit)
        .filter(|(before, after)| (before - after).abs() >= 0.1);
    if change.is_significant() || exits.is_some() {
        details.push(detail(mode, kind, &change, exits));
    }
    let mark = if change.is_significant() { '*' } else { ' ' };
    format!("{:.3}x{mark}", change.ratio.value)
}

fn detail(mode: Mode, kind: &str, change: &Change, exits: Option<(f64, f64)>) -> String {
    let interval = change
        .ratio
        .interval
        .map_or_else(String::new, |[low, high]| format!(" [{low:.3}, {high:.3}]"));
    let exits = exits.map_or_else(String::new, |(before, after)| {
        format!(", host exits {before:.1} -> {after:.1}")
    });
    format!(
        "{mode} {}: {} -> {}, {:.3}x{interval}{exits}",
        plain(kind),
        number(change.before),
        number(change.after),
        change.ratio.value
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::{failed, measured, report, report_of};

    #[test]
    fn ratios_intervals_and_what_is_missing() {
        let a = report_of(vec![
            measured(Mode::Classic, "cpuid", 1000.0),
            measured(Mode::Evmcs, "cpuid", 500.0),
            measured(Mode::Evmcs, "hlt", 500.0),
            measured(Mode::Evmcs, "ipi", 500.0),
        ]);
        let mut b = report_of(vec![
            measured(Mode::Classic, "cpuid", 1000.0),
            measured(Mode::Evmcs, "cpuid", 600.0),
            failed(Mode::Evmcs, "hlt"),
            measured(Mode::Evmcs, "pause", 500.0),
        ]);
        b.environment.kernel = "6.13".into();
        let text = table(&a, &b);
        let words = |start: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.starts_with(start));
            let line = line.unwrap_or_else(|| panic!("no {start} in\n{text}"));
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words("cpuid"), ["cpuid", "1.000x", "1.200x*"]);
        assert_eq!(words("hlt"), ["hlt", "-", "only", "A"]);
        assert_eq!(words("pause"), ["pause", "-", "only", "B"]);
        for part in [
            "warning: the hosts' kernels are not the same",
            "evmcs cpuid: 500 -> 600, 1.200x [1.19",
            ", host exits 5.0 -> 6.0",
            "evmcs hlt: it failed in B",
            "evmcs ipi: it is not there in B",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("classic cpuid:"), "{text}");
    }

    #[test]
    fn a_report_is_like_itself() {
        let text = table(&report(), &report());
        assert!(
            !text.contains('*') || text.contains("*: the interval"),
            "{text}"
        );
        assert!(
            !text.contains("changes") && !text.contains("warning"),
            "{text}"
        );
        assert!(text.contains("L1: Linux"), "{text}");
    }

    #[test]
    fn what_ran_with_other_vcpus_is_not_compared() {
        let (one, mut four) = (report(), report());
        four.results[0].cpus = 4;
        let text = table(&one, &four);
        let told = "classic cpuid: L1 has 1 vCPUs in A and 4 in B";
        assert!(text.contains(told), "{text}");
    }

    #[test]
    fn another_l1_is_no_match() {
        let mut a = report();
        a.results.retain(|entry| entry.touch.is_some());
        let text = table(&a, &report());
        assert!(text.contains("only in B: L1: Linux"), "{text}");
        let text = table(&report(), &a);
        assert!(text.contains("only in A: L1: Linux"), "{text}");
    }

    #[test]
    fn an_interval_around_one_is_no_change() {
        let change = |low, high| Change {
            before: 1.0,
            after: 1.0,
            ratio: Ratio {
                value: 1.0,
                interval: Some([low, high]),
            },
        };
        assert!(!change(0.99, 1.01).is_significant());
        assert!(!change(1.0, 1.1).is_significant());
        assert!(change(1.01, 1.1).is_significant());
        assert!(change(0.9, 0.99).is_significant());
    }
}
