//! A report for a terminal.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hypernest_nested::l2exit::Mode;

use super::comparison::Reason;
use super::groups::{Group, PARTS, groups, number, plain, ratio};
use super::heading;
use super::left_out::left_out;
use super::matrix::matrix;
use super::model::{ALL_KINDS, Measured, Outcome, Part, Report};
use super::verdict::{decided_by_ticks, verdicts};
use crate::l2_exit::modes::title;

/// The maximum width of a line in columns.
pub(super) const WIDTH: usize = 110;

/// Whether the report has exits of `kind`.
///
/// # Errors
/// If there are none: the nearest kind, or all kinds of the report.
pub(crate) fn check_kind(report: &Report, kind: &str) -> Result<(), String> {
    let groups = groups(report);
    let mut kinds: Vec<&str> = Vec::new();
    for known in groups.iter().flat_map(Group::kinds) {
        if !kinds.contains(&known) {
            kinds.push(known);
        }
    }
    if kinds.contains(&kind) {
        return Ok(());
    }
    let known = match hypernest::text::nearest(kind, kinds.iter().copied()) {
        Some(meant) => format!("did you mean {}?", plain(meant)),
        None => format!("the kinds are {}", plain(&kinds.join(", "))),
    };
    Err(format!(
        "--kind: the report has no exits of kind {kind:?}; {known}"
    ))
}

/// Details beside the verdict and the matrices.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Details<'a> {
    /// The parts of the round trip for this kind, also if the report has several kinds.
    pub(crate) kind: Option<&'a str>,
    /// Each answer with all its ratios and its rule.
    pub(crate) explain: bool,
}

/// The report as text.
pub(crate) fn table(report: &Report, details: Details<'_>) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = write_all(report, details, &mut text);
    text
}

fn write_all(report: &Report, details: Details<'_>, out: &mut String) -> std::fmt::Result {
    writeln!(out, "The cost of an L2 exit")?;
    write_verdicts(report, out)?;
    for line in heading::lines(report) {
        wrap(out, "", &plain(&line))?;
    }
    if report.interrupted {
        writeln!(
            out,
            "INTERRUPTED: these are the results up to then; some have fewer samples than was asked for"
        )?;
    }
    for warning in &report.warnings {
        wrap(out, "warning: ", &plain(warning))?;
    }
    for group in groups(report) {
        write_group(&group, details.kind, report, out)?;
    }
    if report.recommendations.is_empty() {
        return Ok(());
    }
    if !details.explain {
        return writeln!(
            out,
            "\n(--explain shows each answer with all its ratios and its rule)"
        );
    }
    writeln!(out, "\nThe answers, L1 by L1")?;
    for recommendation in &report.recommendations {
        wrap(out, "- ", &plain(&recommendation.text))?;
        wrap(out, "  rule: ", &plain(&recommendation.rule))?;
    }
    Ok(())
}

/// The short answers, at the top.
fn write_verdicts(report: &Report, out: &mut String) -> std::fmt::Result {
    for verdict in verdicts(report) {
        let what = format!("- {}: ", verdict.subject);
        wrap(out, &what, &plain(&verdict.text))?;
        if let Some(why) = &verdict.why {
            wrap(out, "  why: ", &plain(why))?;
        }
    }
    let ticks = decided_by_ticks(report);
    if !ticks.is_empty() {
        let text = format!("{}: {}", plain(&ticks.join(", ")), Reason::Ticks.text());
        wrap(out, "- no answer from ", &text)?;
    }
    Ok(())
}

fn write_group(
    group: &Group<'_>,
    kind: Option<&str>,
    report: &Report,
    out: &mut String,
) -> std::fmt::Result {
    writeln!(out, "\n{}", group.title())?;
    for line in said(group) {
        writeln!(out, "{}", plain(&line))?;
    }
    let (modes, kinds) = (group.modes(), group.kinds());
    let meanings: Vec<_> = modes
        .iter()
        .map(|mode| format!("{mode}: {}", title(group.l1, *mode)))
        .collect();
    if !modes.is_empty() {
        wrap(out, "", &format!("{}.", meanings.join(". ")))?;
        matrix(group, report, out)?;
    }
    let shown = match (kind, kinds.as_slice()) {
        (Some(kind), _) => kinds.iter().find(|known| **known == kind),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    match shown {
        Some(kind) => write_parts(group, kind, &report.unit.name, out)?,
        None if kind.is_none() && !kinds.is_empty() => {
            writeln!(
                out,
                "(`hypernest-bench report FILE --kind KIND` shows where the time of a kind goes)"
            )?;
        }
        None => {}
    }
    not_tried(group, out)?;
    failures(group, out)
}

/// The parts of the round trip of one kind.
fn write_parts(group: &Group<'_>, kind: &str, unit: &str, out: &mut String) -> std::fmt::Result {
    let measured: Vec<(Mode, &Measured)> = group
        .modes()
        .into_iter()
        .filter_map(|mode| Some((mode, group.measured(mode, kind)?)))
        .collect();
    out.push('\n');
    let what = format!(
        "medians in {}; those of the parts need not add up to the whole's; 95 %: its confidence interval",
        plain(unit)
    );
    wrap(out, &format!("{}: ", plain(kind)), &what)?;
    let mut rows = vec![
        [
            "",
            "L2 to L1",
            "L1",
            "L1 to L2",
            "round trip",
            "95 %",
            "p99",
            "max",
            "samples",
        ]
        .map(str::to_owned),
    ];
    for (mode, measured) in &measured {
        let parts = &measured.parts;
        let median = |part: &Option<Part>| {
            let part = part.as_ref();
            part.map_or_else(|| "-".to_owned(), |part| number(part.summary.p50))
        };
        let whole = &parts.round_trip;
        rows.push([
            mode.name().to_owned(),
            median(&parts.l2_to_l1),
            median(&parts.l1),
            median(&parts.l1_to_l2),
            number(whole.summary.p50),
            spread(whole).unwrap_or_default(),
            number(whole.summary.p99),
            number(whole.summary.max),
            whole.summary.samples.to_string(),
        ]);
    }
    grid(&rows, out)?;
    for (mode, measured) in &measured {
        if measured.out_of_order > 0 {
            writeln!(
                out,
                "{mode}: {} samples are left out, because their stamps are not in order",
                measured.out_of_order
            )?;
        }
        for (name, _, part) in PARTS {
            let beyond = part(&measured.parts).map_or(0, |part| part.out_of_range);
            if beyond > 0 {
                writeln!(
                    out,
                    "{}, {name}: {beyond} samples were longer than a histogram holds and count as the \
                     longest it does",
                    mode.name()
                )?;
            }
        }
    }
    for (mode, measured) in &measured {
        if let Some(reasons) = &measured.host_exits_by_reason {
            let text = by_count(reasons);
            let text: Vec<_> = text
                .iter()
                .map(|(reason, count)| format!("{} {count:.1}", plain(reason)))
                .collect();
            wrap(
                out,
                &format!("{}: host exits for each of L2: ", mode.name()),
                &text.join(", "),
            )?;
        }
    }
    Ok(())
}

/// The distance from the median to the farther end of its interval.
pub(crate) fn spread(part: &Part) -> Option<String> {
    let ([low, high], p50) = (part.interval()?, part.summary.p50);
    let far = ratio((high - p50).max(p50 - low), p50)?;
    Some(format!("±{:.2} %", far * 100.0))
}

/// Reasons, the most frequent first.
pub(crate) fn by_count(reasons: &BTreeMap<String, f64>) -> Vec<(&str, f64)> {
    let mut sorted: Vec<_> = reasons
        .iter()
        .map(|(reason, count)| (reason.as_str(), *count))
        .filter(|(_, count)| *count >= 0.005)
        .collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
    sorted
}

/// Rows with aligned columns, the first to the left and the others to the right.
pub(crate) fn grid<const N: usize>(rows: &[[String; N]], out: &mut String) -> std::fmt::Result {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = format!("{:width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            write!(line, "  {cell:>width$}")?;
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The lines of a Linux L1's report that prove its setup.
fn said(group: &Group<'_>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for entry in group.entries() {
        let facts = entry
            .measured()
            .and_then(|measured| measured.facts.as_ref());
        let Some(facts) = facts else { continue };
        let kernel = format!(
            "Linux {}, clocksource {}, command line: {}",
            facts.kernel, facts.clocksource, facts.command_line
        );
        let heard = facts.log.iter().chain(&facts.kvm_log);
        let heard = heard.filter(|line| {
            line.contains("Hypervisor detected") || line.contains("Enlightened VMCS")
        });
        let heard = heard.map(|line| format!("{}: L1 logged \"{line}\"", entry.mode.name()));
        for line in std::iter::once(kernel).chain(heard) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}

/// Measurements that were left out, a line for each reason.
fn not_tried(group: &Group<'_>, out: &mut String) -> std::fmt::Result {
    for one in left_out(std::slice::from_ref(group)) {
        let kinds = match one.kinds.as_slice() {
            [] => String::new(),
            kinds => format!(" ({})", plain(&kinds.join(", "))),
        };
        let what = format!("{}: left out: ", one.modes());
        wrap(out, &what, &format!("{}{kinds}", plain(one.why)))?;
    }
    Ok(())
}

fn failures(group: &Group<'_>, out: &mut String) -> std::fmt::Result {
    for entry in group.entries() {
        let Outcome::Failed { why, console, .. } = &entry.outcome else {
            continue;
        };
        let kind = match entry.kind.as_str() {
            ALL_KINDS => String::new(),
            kind => format!(" {}", plain(kind)),
        };
        let what = format!("{}{kind}: FAILED: ", entry.mode.name());
        wrap(out, &what, &plain(why))?;
        if !console.is_empty() {
            writeln!(out, "  the end of L1's console:")?;
        }
        for line in console.lines() {
            writeln!(out, "  | {}", plain(line))?;
        }
    }
    Ok(())
}

/// A paragraph within the width, indented by the length of its start (at most 8).
fn wrap(out: &mut String, start: &str, text: &str) -> std::fmt::Result {
    let indent = start.chars().count().min(8);
    let mut line = start.to_owned();
    let mut fresh = true;
    for word in text.split_whitespace() {
        if !fresh && line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(out, "{line}")?;
            line = " ".repeat(indent);
            fresh = true;
        }
        if !fresh {
            line.push(' ');
        }
        line.push_str(word);
        fresh = false;
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::model::Recommendation;
    use crate::report::sample::{figures, measured, report, report_of};

    fn of_kind(kind: &str) -> Details<'_> {
        Details {
            kind: Some(kind),
            explain: false,
        }
    }

    fn recommendation(text: &str, rule: &str) -> Recommendation {
        Recommendation {
            text: text.to_owned(),
            rule: rule.to_owned(),
            question: None,
            l1: None,
            answer: None,
        }
    }

    #[test]
    fn everything_is_said() {
        let mut report = report();
        report.interrupted = true;
        report.recommendations = vec![recommendation("hv-evmcs: use it", "a rule")];
        let details = Details {
            kind: Some("cpuid"),
            explain: true,
        };
        let text = table(&report, details);
        for part in [
            "6.12 on A CPU",
            "unit: ns (the TSC ticks at 2000000 kHz)",
            "INTERRUPTED",
            "warning: the CPU's frequency is not fixed",
            "L1: the micro-hypervisor, touching kvm-like, 1 vCPU\n",
            "its ratio to classic",
            "evmcs: L1 logged \"kvm_intel: Using Hyper-V Enlightened VMCS\"",
            "clocksource hyperv_clocksource_tsc_page",
            "evmcs: host exits for each of L2: VMREAD 11.2, CPUID 1.0, VMRESUME 1.0",
            "classic hlt: FAILED: L1 crashed",
            "  | Kernel panic\n  | end\n",
            "svm: left out: SVM is AMD's; this host's CPU has VMX (cpuid)",
            "!: it failed later",
            "- hv-evmcs: use it\n  rule: a rule\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn the_matrix_lines_up_and_says_what_is_missing() {
        let text = table(&report(), Details::default());
        let lines: Vec<_> = text
            .lines()
            .skip_while(|line| !line.ends_with("evmcs"))
            .take(4)
            .collect();
        let columns = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(columns(lines[0]), ["classic", "classic+shadow", "evmcs"]);
        let cpuid = columns(lines[1]);
        assert_eq!(cpuid[0], "cpuid");
        assert_eq!(cpuid[2..4], ["1.00x", "24.0"]);
        assert_eq!(cpuid[10..], ["0.55x", "[0.55,", "0.55]", "13.2"]);
        assert_eq!(columns(lines[2])[..2], ["hlt", "FAILED"]);
        assert_eq!(columns(lines[2])[2], "-");
        assert!(columns(lines[2])[3].starts_with('!'), "{text}");
        assert_eq!(lines[0].len(), lines[1].len(), "{text}");
    }

    #[test]
    fn the_verdict_comes_first_and_rules_only_when_asked_for() {
        let mut report = report();
        report.recommendations = crate::report::recommend(&report);
        let text = table(&report, Details::default());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "The cost of an L2 exit");
        assert!(
            lines[1].starts_with("- hv-evmcs, without shadow VMCS: use it ("),
            "{text}"
        );
        assert!(
            !text.contains("rule: ") && text.contains("(--explain shows"),
            "{text}"
        );
        let explained = Details {
            kind: None,
            explain: true,
        };
        let text = table(&report, explained);
        assert!(text.contains("\n  rule: evmcs against classic"), "{text}");
    }

    #[test]
    fn ratios_that_the_figures_do_not_support_are_marked() {
        let mut entries = vec![
            measured(Mode::Classic, "cpuid", 1000.0),
            measured(Mode::Evmcs, "cpuid", 1050.0),
        ];
        for entry in &mut entries {
            let Outcome::Measured(figures) = &mut entry.outcome else {
                continue;
            };
            let trip = &mut figures.parts.round_trip;
            trip.p50_ci = Some([trip.summary.p50 * 0.9, trip.summary.p50 * 1.1]);
        }
        let text = table(&report_of(entries), Details::default());
        assert!(text.contains("1.05x? [0.86, 1.28]"), "{text}");
        assert!(
            text.contains("?: the figures do not support this difference"),
            "{text}"
        );
    }

    #[test]
    fn no_line_of_a_full_matrix_is_too_long() {
        let entries = Mode::ALL.iter().flat_map(|mode| {
            ["cpuid", "second-level-fault", "hlt"].map(|kind| measured(*mode, kind, 12_345_678.0))
        });
        let mut report = report_of(entries.collect());
        report.recommendations = vec![recommendation(&"word ".repeat(60), &"rule ".repeat(60))];
        let details = Details {
            kind: Some("hlt"),
            explain: true,
        };
        let text = table(&report, details);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line:?} in\n{text}");
        }
        for mode in Mode::ALL {
            let titles = text.lines().filter(|line| !line.contains(':'));
            assert!(
                titles
                    .flat_map(str::split_whitespace)
                    .any(|word| word == mode.name()),
                "{} is not in\n{text}",
                mode.name()
            );
        }
    }

    #[test]
    fn a_kind_that_is_not_there_is_refused_with_the_nearest() {
        let report = report_of(vec![
            measured(Mode::Classic, "cpuid", 1000.0),
            measured(Mode::Classic, "hlt", 1000.0),
        ]);
        assert_eq!(check_kind(&report, "hlt"), Ok(()));
        for (kind, says) in [
            ("cpuidd", "no exits of kind \"cpuidd\"; did you mean cpuid?"),
            ("dance", "the kinds are cpuid, hlt"),
            ("", "the kinds are cpuid, hlt"),
        ] {
            let error = check_kind(&report, kind).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn modes_that_lack_the_same_share_a_line() {
        let left_out = |mode, kind: &str, why: &str| {
            super::super::sample::entry(mode, kind, Outcome::LeftOut { why: why.into() })
        };
        let text = table(
            &report_of(vec![
                measured(Mode::Classic, "cpuid", 1000.0),
                left_out(Mode::Evmcs, ALL_KINDS, "no eVMCS here"),
                left_out(Mode::EvmcsEmsr, ALL_KINDS, "no eVMCS here"),
                left_out(Mode::Svm, ALL_KINDS, "no SVM here"),
            ]),
            Details::default(),
        );
        assert_eq!(text.matches("no eVMCS here").count(), 1, "{text}");
        assert!(
            text.contains("evmcs, evmcs+emsr: left out: no eVMCS here"),
            "{text}"
        );
        assert!(text.contains("svm: left out: no SVM here"), "{text}");
    }

    #[test]
    fn parts_are_shown_for_the_only_kind() {
        let report = report_of(vec![measured(Mode::Classic, "cpuid", 1000.0)]);
        assert!(table(&report, Details::default()).contains("L2 to L1"));
        assert!(!table(&report, of_kind("hlt")).contains("L2 to L1"));
        let two = report_of(vec![
            measured(Mode::Classic, "cpuid", 1000.0),
            measured(Mode::Classic, "hlt", 1000.0),
        ]);
        assert!(!table(&two, Details::default()).contains("L2 to L1"));
    }

    #[test]
    fn samples_beyond_the_range_are_told() {
        let mut figures = figures(1000.0);
        figures.parts.round_trip.out_of_range = 3;
        figures.out_of_order = 2;
        let entry = super::super::sample::entry(
            Mode::Classic,
            "cpuid",
            Outcome::Measured(Box::new(figures)),
        );
        let text = table(&report_of(vec![entry]), Details::default());
        assert!(
            text.contains("classic, round-trip: 3 samples were longer"),
            "{text}"
        );
        assert!(text.contains("classic: 2 samples are left out"), "{text}");
    }

    #[test]
    fn a_hostile_console_does_not_reach_the_terminal() {
        let mut report = report();
        for entry in &mut report.results {
            entry.kind.push_str("\u{1b}[2J\n");
            if let Outcome::Failed { why, console, .. } = &mut entry.outcome {
                why.push('\u{7}');
                console.push_str("\u{1b}]0;title\u{7}");
            }
        }
        report.unit.name.push('\u{1b}');
        report.environment.cpu_model.push('\u{1b}');
        let text = table(&report, Details::default());
        assert!(
            !text.contains(|c: char| c.is_control() && c != '\n'),
            "{text:?}"
        );
    }
}
