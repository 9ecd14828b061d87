//! A report for people.

use std::fmt::Write as _;

use hypernest_nested::l2exit::Mode;

use super::{Entry, L1, L1Facts, Measured, Outcome, Report};
use crate::l2_exit::modes::title;

const COLUMNS: [&str; 8] = [
    "samples", "p50", "p90", "p99", "p99.9", "max", "exits", "x p50",
];

/// The report as text.
pub(crate) fn table(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = write_all(report, &mut text);
    text
}

fn write_all(report: &Report, out: &mut String) -> std::fmt::Result {
    let measured: Vec<_> = report
        .results
        .iter()
        .filter_map(|entry| Some((entry, entry.measured()?)))
        .collect();
    let host = &report.environment;
    let lab = match &host.lab {
        Some(lab) => format!(" (emulated: the {lab} lab)"),
        None => String::new(),
    };
    writeln!(
        out,
        "exits of L2, handled by L1: the round trip, timed in L2"
    )?;
    writeln!(
        out,
        "host: Linux {} on {}{lab}",
        host.kernel, host.cpu_model
    )?;
    let mut facts = measured.iter().filter_map(|(_, m)| m.facts.as_ref());
    if let Some(facts) = facts.next() {
        writeln!(
            out,
            "L1: Linux {}, clocksource {}",
            facts.kernel, facts.clocksource
        )?;
        writeln!(out, "L1's command line: {}", facts.command_line)?;
    }
    writeln!(out, "unit: {} ({})", report.unit.name, report.unit.why)?;
    if !measured.is_empty() {
        writeln!(out)?;
        figures(&measured, out)?;
        writeln!(
            out,
            "exits: from L1 and L2 to the host, for each exit of L2; x p50: relative to the first line"
        )?;
        let mut empty = measured.iter().filter_map(|(_, m)| m.empty.as_ref());
        if let Some(empty) = empty.next() {
            let empty = number(empty.summary.p50);
            writeln!(out, "an interval around nothing: {empty}")?;
        }
    }
    for warning in &report.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    if report.interrupted {
        writeln!(out, "interrupted: there would be more")?;
    }
    writeln!(out)?;
    ratio(report, out)?;
    for (entry, measured) in &measured {
        for line in measured
            .facts
            .iter()
            .flat_map(|facts| said(entry.mode, facts))
        {
            writeln!(out, "{}: {line}", label(entry))?;
        }
    }
    for entry in &report.results {
        let title = label(entry);
        match &entry.outcome {
            Outcome::Measured(_) => {}
            Outcome::LeftOut { why } => writeln!(out, "{title}: left out: {why}")?,
            Outcome::Failed { why, console, .. } => {
                writeln!(out, "{title}: FAILED: {why}")?;
                if !console.is_empty() {
                    writeln!(out, "  the end of L1's console:")?;
                }
                for line in console.lines() {
                    writeln!(out, "  | {line}")?;
                }
            }
        }
    }
    Ok(())
}

fn figures(measured: &[(&Entry, &Measured)], out: &mut String) -> std::fmt::Result {
    let base = measured[0].1.parts.round_trip.summary.p50;
    let rows: Vec<[String; 8]> = measured
        .iter()
        .map(|(_, m)| {
            let all = &m.parts.round_trip.summary;
            [
                all.samples.to_string(),
                number(all.p50),
                number(all.p90),
                number(all.p99),
                number(all.p99_9),
                number(all.max),
                exits(m),
                format!("{:.2}", all.p50 / base),
            ]
        })
        .collect();
    let first = measured
        .iter()
        .map(|(entry, _)| label(entry).len())
        .max()
        .unwrap_or(0);
    let widths: Vec<_> = COLUMNS
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows.iter().map(|row| row[column].len());
            cells.max().unwrap_or(0).max(title.len())
        })
        .collect();
    write!(out, "{:first$}", "")?;
    for (title, width) in COLUMNS.iter().zip(&widths) {
        write!(out, "  {title:>width$}")?;
    }
    writeln!(out)?;
    for ((entry, _), row) in measured.iter().zip(&rows) {
        write!(out, "{:first$}", label(entry))?;
        for (cell, width) in row.iter().zip(&widths) {
            write!(out, "  {cell:>width$}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// With groups of three digits.
fn number(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `L1 MODE KIND`.
fn label(entry: &Entry) -> String {
    format!("{} {} {}", entry.l1.name(), entry.mode, entry.kind)
}

fn exits(measured: &Measured) -> String {
    let exits = measured.host_exits_per_l2_exit;
    exits.map_or("-".to_owned(), |exits| format!("{exits:.1}"))
}

/// What an enlightened VMCS is worth.
fn ratio(report: &Report, out: &mut String) -> std::fmt::Result {
    for l1 in [L1::Micro, L1::Linux] {
        let Some(with) = report.measured(l1, Mode::Evmcs, "cpuid") else {
            continue;
        };
        for other in [Mode::Classic, Mode::ClassicShadow] {
            if let Some(without) = report.measured(l1, other, "cpuid") {
                writeln!(
                    out,
                    "CPUID, L1 {}: eVMCS against \"{}\": {:.2} of the time, {} host exits instead of {}",
                    l1.name(),
                    title(other),
                    with.parts.round_trip.summary.p50 / without.parts.round_trip.summary.p50,
                    exits(with),
                    exits(without)
                )?;
            }
        }
    }
    Ok(())
}

/// What L1 said that proves which configuration this was.
fn said(mode: Mode, facts: &L1Facts) -> Vec<String> {
    let line = facts
        .kvm_log
        .iter()
        .find(|line| line.contains("Enlightened VMCS"));
    let evmcs = match line {
        Some(line) => vec![format!("L1 said \"{line}\"")],
        None if mode.is_svm() => Vec::new(),
        None => vec!["L1 said nothing of an enlightened VMCS".to_owned()],
    };
    let host = facts
        .log
        .iter()
        .find(|line| line.contains("Hypervisor detected"));
    let host = host.map(|line| format!("L1 said \"{line}\", clocksource {}", facts.clocksource));
    host.into_iter().chain(evmcs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn digits_in_groups() {
        for (value, wanted) in [
            (0.4, "0"),
            (999.6, "1,000"),
            (123.0, "123"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(number(value), wanted);
        }
    }

    #[test]
    fn everything_is_said() {
        let text = table(&report());
        for part in [
            "host: Linux 6.12 on A CPU\n",
            "unit: ns (the TSC ticks at 2000000 kHz)",
            "clocksource hyperv_clocksource_tsc_page",
            "linux evmcs cpuid: L1 said \"kvm_intel: Using Hyper-V Enlightened VMCS\"",
            "linux classic cpuid: L1 said nothing of an enlightened VMCS",
            "0.20 of the time, 2.5 host exits instead of 20.0",
            "linux offered cpuid: FAILED: L1 crashed",
            "  | Kernel panic\n  | end\n",
            "linux svm cpuid: left out: SVM is AMD's",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn columns_line_up() {
        let text = table(&report());
        let lines: Vec<_> = text
            .lines()
            .skip_while(|line| !line.contains("p99.9"))
            .take(3)
            .collect();
        let ends: Vec<_> = lines.iter().map(|line| line.len()).collect();
        assert_eq!(ends, [ends[0]; 3], "{text}");
        assert!(lines[1].ends_with("2.5   1.00"), "{text}");
        assert!(
            lines[2].ends_with("20.0   5.00") || lines[2].contains("20.0"),
            "{text}"
        );
    }

    #[test]
    fn nothing_measured_is_no_table() {
        let mut report = report();
        report.results.drain(..3);
        let text = table(&report);
        assert!(!text.contains("p99.9") && text.contains("FAILED"));
    }
}
