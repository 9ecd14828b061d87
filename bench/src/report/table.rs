//! A report for people.

use std::fmt::Write as _;

use super::{Measured, Outcome, Report};
use crate::l2_exit::configuration::Configuration;

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
        .configurations
        .iter()
        .filter_map(|entry| match &entry.outcome {
            Outcome::Measured(measured) => Some((entry.name, &**measured)),
            _ => None,
        })
        .collect();
    let host = &report.host;
    let lab = match &host.lab {
        Some(lab) => format!(" (emulated: the {lab} lab)"),
        None => String::new(),
    };
    writeln!(
        out,
        "CPUID in L2, handled by L1's KVM: the round trip, timed in L2"
    )?;
    writeln!(out, "host: Linux {} on {}{lab}", host.kernel, host.cpu)?;
    if let Some((_, first)) = measured.first() {
        writeln!(
            out,
            "L1: Linux {}, clocksource {}",
            first.l1_kernel, first.l1_clocksource
        )?;
        writeln!(out, "L1's command line: {}", report.l1_command_line)?;
    }
    writeln!(out, "unit: {} ({})", report.unit.name, report.unit.why)?;
    if !measured.is_empty() {
        writeln!(out)?;
        figures(&measured, out)?;
        writeln!(
            out,
            "exits: from L1 and L2 to the host, for each exit of L2; x p50: relative to the first line"
        )?;
        let empty = measured[0].1.empty_p50;
        writeln!(out, "an interval around nothing: {}", number(empty))?;
    }
    writeln!(out)?;
    ratio(report, out)?;
    for (name, measured) in &measured {
        for line in said(*name, measured) {
            writeln!(out, "{}: {line}", name.title())?;
        }
    }
    for entry in &report.configurations {
        let title = entry.name.title();
        match &entry.outcome {
            Outcome::Measured(_) => {}
            Outcome::LeftOut { why } => writeln!(out, "{title}: left out: {why}")?,
            Outcome::Failed { why, console } => {
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

fn figures(measured: &[(Configuration, &Measured)], out: &mut String) -> std::fmt::Result {
    let base = measured[0].1.all.p50;
    let rows: Vec<[String; 8]> = measured
        .iter()
        .map(|(_, m)| {
            let all = &m.all;
            [
                all.samples.to_string(),
                number(all.p50),
                number(all.p90),
                number(all.p99),
                number(all.p99_9),
                number(all.max),
                format!("{:.1}", m.host_exits_per_l2_exit),
                format!("{:.2}", all.p50 / base),
            ]
        })
        .collect();
    let first = measured
        .iter()
        .map(|(name, _)| name.title().len())
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
    for ((name, _), row) in measured.iter().zip(&rows) {
        write!(out, "{:first$}", name.title())?;
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

/// What an enlightened VMCS is worth.
fn ratio(report: &Report, out: &mut String) -> std::fmt::Result {
    let Some(with) = report.measured(Configuration::Evmcs) else {
        return Ok(());
    };
    for other in [Configuration::Classic, Configuration::ClassicShadow] {
        if let Some(without) = report.measured(other) {
            writeln!(
                out,
                "eVMCS against \"{}\": {:.2} of the time, {:.1} host exits instead of {:.1}",
                other.title(),
                with.all.p50 / without.all.p50,
                with.host_exits_per_l2_exit,
                without.host_exits_per_l2_exit
            )?;
        }
    }
    Ok(())
}

/// What L1 said that proves which configuration this was.
fn said(name: Configuration, measured: &Measured) -> Vec<String> {
    let line = measured
        .l1_kvm_log
        .iter()
        .find(|line| line.contains("Enlightened VMCS"));
    let evmcs = match (line, name) {
        (Some(line), _) => vec![format!("L1 said \"{line}\"")],
        (None, Configuration::Svm) => Vec::new(),
        (None, _) => vec!["L1 said nothing of an enlightened VMCS".to_owned()],
    };
    let host = measured
        .l1_log
        .iter()
        .find(|line| line.contains("Hypervisor detected"));
    let host = host.map(|line| {
        format!(
            "L1 said \"{line}\", clocksource {}",
            measured.l1_clocksource
        )
    });
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
            "eVMCS used: L1 said \"kvm_intel: Using Hyper-V Enlightened VMCS\"",
            "no eVMCS; no shadow VMCS: L1 said nothing of an enlightened VMCS",
            "0.20 of the time, 2.5 host exits instead of 20.0",
            "eVMCS offered, not used; no shadow VMCS: FAILED: L1 crashed",
            "  | Kernel panic\n  | end\n",
            "SVM: left out: SVM is AMD's",
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
        report.configurations.drain(..2);
        let text = table(&report);
        assert!(!text.contains("p99.9") && text.contains("FAILED"));
    }
}
