//! A result as one self-contained HTML page, without scripts.

use std::fmt::Write as _;

use super::analyse::all_well;
use super::model::Report;
use super::plot::plot;
use super::table::{
    CLOCK_HEAD, clock_rows, guest, host, move_head, move_row, segment_head, segment_row,
};
use crate::report::{STYLE, escape};

/// The page.
pub(super) fn page(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _written = write_page(report, &mut out);
    out
}

fn write_page(report: &Report, out: &mut String) -> std::fmt::Result {
    let title = "How stable a guest's clocks are";
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src \
         'unsafe-inline'; img-src data:\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<link rel=\"icon\" \
         href=\"data:,\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>"
    )?;
    let made = format!(
        "{}, {}: {}",
        report.made_by,
        report.started,
        report.command_line.join(" ")
    );
    for line in [host(report), guest(report), made] {
        writeln!(out, "<p class=\"soft\">{}</p>", escape(&line))?;
    }
    for warning in &report.warnings {
        writeln!(out, "<p class=\"warning\">{}</p>", escape(warning))?;
    }
    for failure in &report.failures {
        writeln!(out, "<p class=\"warning failed\">{}</p>", escape(failure))?;
    }
    if report.failures.is_empty() {
        writeln!(out, "<p>{}</p>", escape(&all_well(report)))?;
    }
    writeln!(out, "</header>\n<main>")?;
    if let Some(plot) = plot(report) {
        writeln!(
            out,
            "<figure>{plot}<figcaption>Dashed green: moves. Dotted violet: the guest acknowledged another \
             TSC frequency. Samples arrive late: of \
             several near each other the one furthest ahead is shown.</figcaption></figure>"
        )?;
    }
    let head = CLOCK_HEAD.map(str::to_owned);
    table(
        "Clocks, over the whole run",
        &head,
        &clock_rows(report),
        out,
    )?;
    let rows: Vec<_> = report.moves.iter().map(|m| move_row(report, m)).collect();
    table(
        "Moves: how far each clock jumped, and how much further than the host's",
        &move_head(report),
        &rows,
        out,
    )?;
    let rows: Vec<_> = report
        .segments
        .iter()
        .map(|s| segment_row(report, s))
        .collect();
    table(
        "Drift against the host's monotonic clock, in parts per million",
        &segment_head(report),
        &rows,
        out,
    )?;
    writeln!(out, "</main>\n</body>\n</html>")
}

fn table(title: &str, head: &[String], rows: &[Vec<String>], out: &mut String) -> std::fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<section>\n<h2>{}</h2>\n<div class=\"wide\"><table>\n<thead><tr>",
        escape(title)
    )?;
    for cell in head {
        write!(out, "<th>{}</th>", escape(cell))?;
    }
    writeln!(out, "</tr></thead>\n<tbody>")?;
    for row in rows {
        write!(out, "<tr>")?;
        for cell in row {
            write!(out, "<td>{}</td>", escape(cell))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody>\n</table></div>\n</section>")
}
