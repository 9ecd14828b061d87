//! A result for a terminal.

use std::fmt::Write as _;

use super::analyse::all_well;
use super::model::{Move, Reenlightenment, Report, Segment};
use crate::report::plain;

/// The result as text.
pub(crate) fn table(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = write_all(report, &mut text);
    text
}

/// A description of the guest.
pub(super) fn guest(report: &Report) -> String {
    let guest = &report.guest;
    let moved = match guest.moved_by {
        Some(way) => format!("{} moves by {}", report.moves.len(), way.name()),
        None => "not moved".to_owned(),
    };
    let told = match guest.reenlightenment {
        Reenlightenment::Unknown => "",
        Reenlightenment::NotOffered => ", reenlightenment is not offered",
        Reenlightenment::Declined => ", it did not ask for reenlightenment",
        Reenlightenment::Notification => ", it requested notification of other TSC frequencies",
        Reenlightenment::Emulation => {
            ", it requested notification of other TSC frequencies, and the old one until it has acknowledged"
        }
    };
    format!(
        "guest: {}, vCPUs: {}, TSC at {:.0} kHz, {moved}{told}",
        guest.kind.name(),
        guest.vcpus,
        guest.tsc_khz
    )
}

/// A description of the host.
pub(super) fn host(report: &Report) -> String {
    let environment = &report.environment;
    let lab = match &environment.lab {
        Some(lab) => format!(" (emulated: the {lab} lab)"),
        None => String::new(),
    };
    let tsc = match environment.tsc_khz {
        Some(khz) => format!("TSC {khz} kHz"),
        None => "TSC of unknown frequency".to_owned(),
    };
    format!(
        "host: Linux {} on {}{lab}, {tsc}",
        environment.kernel, environment.cpu_model
    )
}

/// A duration, in a suitable unit.
pub(super) fn time(ns: f64) -> String {
    let size = ns.abs();
    if size < 1e3 {
        format!("{ns:.0} ns")
    } else if size < 1e6 {
        format!("{:.1} us", ns / 1e3)
    } else if size < 1e9 {
        format!("{:.2} ms", ns / 1e6)
    } else {
        format!("{:.3} s", ns / 1e9)
    }
}

pub(super) const CLOCK_HEAD: [&str; 7] = [
    "clock",
    "reads",
    "backward steps",
    "largest",
    "largest quiet gap",
    "page changes",
    "read by register",
];

/// A row for each clock.
pub(super) fn clock_rows(report: &Report) -> Vec<Vec<String>> {
    let row = |result: &super::model::ClockResult| {
        let name = plain(&result.clock).into_owned();
        let Some(figures) = &result.measured else {
            return vec![name, "not offered".to_owned()];
        };
        let page = figures.page.as_ref();
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            name,
            figures.reads.to_string(),
            figures.backward_steps.to_string(),
            time(figures.largest_backward_ns),
            time(figures.largest_quiet_gap_ns),
            or_none(page.map(|page| page.sequence_changes.to_string())),
            or_none(page.map(|page| format!("{:.4} %", page.fallback_share * 100.0))),
        ]
    };
    report.clocks.iter().map(row).collect()
}

/// The clocks that the guest has.
pub(super) fn present(report: &Report) -> Vec<&str> {
    let clocks = report.clocks.iter();
    clocks
        .filter(|result| result.measured.is_some())
        .map(|result| result.clock.as_str())
        .collect()
}

pub(super) fn move_head(report: &Report) -> Vec<String> {
    let mut head: Vec<String> = ["move", "at", "to kHz", "command", "downtime"]
        .map(str::to_owned)
        .to_vec();
    for clock in present(report) {
        head.push(format!("{} gap", plain(clock)));
        head.push("ahead".to_owned());
    }
    head.extend(["page sequence", "notified after", "acknowledged after"].map(str::to_owned));
    head
}

/// A move's cells.
pub(super) fn move_row(report: &Report, of_move: &Move) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut row = vec![
        of_move.number.to_string(),
        format!("{:.2} s", of_move.at_s),
        of_move
            .host_khz
            .map_or_else(|| "own".to_owned(), |khz| format!("{khz:.0}")),
        time(of_move.command_ms * 1e6),
        or_none(of_move.downtime_ms.map(|ms| time(ms * 1e6))),
    ];
    for clock in present(report) {
        let jump = of_move.clocks.get(clock);
        row.push(or_none(jump.map(|jump| time(jump.gap_ms * 1e6))));
        let ahead = jump.and_then(|jump| jump.ahead_us);
        row.push(or_none(ahead.map(|us| time(us * 1e3))));
    }
    let ack = of_move.acknowledged.as_ref();
    row.push(format!(
        "{} to {}",
        of_move.sequence[0], of_move.sequence[1]
    ));
    row.push(or_none(ack.map(|ack| time(ack.noticed_after_us * 1e3))));
    row.push(or_none(
        ack.map(|ack| time(ack.acknowledged_after_us * 1e3)),
    ));
    row
}

pub(super) fn segment_head(report: &Report) -> Vec<String> {
    let mut head: Vec<String> = ["between", "from", "to", "TSC kHz", "samples", "late"]
        .map(str::to_owned)
        .to_vec();
    head.extend(
        present(report)
            .iter()
            .map(|clock| format!("{} ppm", plain(clock))),
    );
    head
}

/// A segment's cells.
pub(super) fn segment_row(report: &Report, segment: &Segment) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let name = match (segment.after_move, segment.acknowledged) {
        (0, _) => "start".to_owned(),
        (number, false) => format!("move {number}"),
        (number, true) => format!("acknowledgement {number}"),
    };
    let mut row = vec![
        name,
        format!("{:.2} s", segment.from_s),
        format!("{:.2} s", segment.to_s),
        format!("{:.0}", segment.tsc_khz),
        segment.samples.to_string(),
        or_none(segment.noise_us.map(|us| time(us * 1e3))),
    ];
    for clock in present(report) {
        let drift = segment.drift.get(clock);
        row.push(or_none(drift.map(|drift| {
            format!("{:+.2} ±{:.2}", drift.ppm, drift.about_ppm)
        })));
    }
    row
}

fn write_all(report: &Report, out: &mut String) -> std::fmt::Result {
    writeln!(out, "How stable a guest's clocks are")?;
    for line in [host(report), guest(report)] {
        writeln!(out, "{}", plain(&line))?;
    }
    writeln!(
        out,
        "{}, {}: {}",
        plain(&report.made_by),
        plain(&report.started),
        plain(&report.command_line.join(" "))
    )?;
    for warning in &report.warnings {
        writeln!(out, "warning: {}", plain(warning))?;
    }
    let head = CLOCK_HEAD.map(str::to_owned);
    aligned(
        "Clocks, over the whole run",
        &head,
        &clock_rows(report),
        out,
    )?;
    if !report.moves.is_empty() {
        let rows: Vec<_> = report.moves.iter().map(|m| move_row(report, m)).collect();
        aligned(
            "Moves: how far each clock jumped, and how much further than the host's",
            &move_head(report),
            &rows,
            out,
        )?;
    }
    let rows: Vec<_> = report
        .segments
        .iter()
        .map(|s| segment_row(report, s))
        .collect();
    aligned(
        "Drift against the host's monotonic clock, in parts per million",
        &segment_head(report),
        &rows,
        out,
    )?;
    writeln!(out)?;
    if report.failures.is_empty() {
        writeln!(out, "{}", plain(&all_well(report)))?;
    }
    for failure in &report.failures {
        writeln!(out, "FAILED: {}", plain(failure))?;
    }
    Ok(())
}

/// A table with columns of minimum width.
fn aligned(
    title: &str,
    head: &[String],
    rows: &[Vec<String>],
    out: &mut String,
) -> std::fmt::Result {
    let all: Vec<&[String]> = std::iter::once(head)
        .chain(rows.iter().map(Vec::as_slice))
        .collect();
    let width = |column: usize| {
        let cells = all.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    writeln!(out, "\n{title}")?;
    for row in &all {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            if column == 0 {
                write!(line, "{cell:width$}")?;
            } else {
                write!(line, "  {cell:>width$}")?;
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
