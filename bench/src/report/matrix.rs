//! Kinds by modes for a terminal: medians, ratios and host exits.

use std::fmt::Write as _;

use hypernest_nested::l2exit::Mode;

use super::comparison::{Comparison, Finding};
use super::groups::{Group, number, plain};
use super::model::Report;
use super::table::WIDTH;

/// Kinds by modes, in as many blocks as the width requires. If one block is enough, ratios are shown with
/// their intervals.
pub(super) fn matrix(group: &Group<'_>, report: &Report, out: &mut String) -> std::fmt::Result {
    let kinds = group.kinds();
    let first = kinds.iter().map(|kind| plain(kind).chars().count()).max();
    let first = first.unwrap_or(0);
    let columns = |with_intervals: bool| -> Vec<Column> {
        let modes = group.modes().into_iter();
        modes
            .map(|mode| Column::new(group, mode, &kinds, with_intervals))
            .collect()
    };
    let width = |columns: &[Column]| columns.iter().map(|c| c.width + GAP).sum::<usize>() + first;
    let wide = columns(true);
    let with_intervals = width(&wide) <= WIDTH;
    let columns = if with_intervals { wide } else { columns(false) };
    let against = match group.baseline() {
        Some(baseline) => format!(
            ", its ratio to {}{}",
            baseline.name(),
            if with_intervals {
                " with the 95 % interval"
            } else {
                ""
            }
        ),
        None => String::new(),
    };
    writeln!(
        out,
        "each: median of the round trip in {}{against}, host exits for each exit of L2",
        plain(&report.unit.name)
    )?;
    let mut rest = columns.as_slice();
    while !rest.is_empty() {
        let mut width = first;
        let fits = rest.iter().take_while(|column| {
            width += column.width + GAP;
            width <= WIDTH
        });
        let (block, later) = rest.split_at(fits.count().max(1));
        rest = later;
        let mut lines = vec![format!("\n{:first$}", "")];
        lines.extend(kinds.iter().map(|kind| {
            let kind = plain(kind);
            // The replacement of a control character has the same width.
            format!("{kind:first$}")
        }));
        for column in block {
            let cells = std::iter::once(&column.title).chain(&column.cells);
            for (line, cell) in lines.iter_mut().zip(cells) {
                let _written = write!(line, "{:GAP$}{cell:>width$}", "", width = column.width);
            }
        }
        for line in lines {
            writeln!(out, "{}", line.trim_end_matches(' '))?;
        }
    }
    if columns.iter().any(|column| column.undecided) {
        writeln!(out, "?: the figures do not support this difference")?;
    }
    let failed = |kind: &&str| group.modes().iter().any(|mode| group.failed(*mode, kind));
    if kinds.iter().any(failed) {
        writeln!(out, "!: it failed later; these are the figures up to then")?;
    }
    Ok(())
}

/// Spaces between two columns.
const GAP: usize = 3;

/// A mode's column.
struct Column {
    title: String,
    cells: Vec<String>,
    width: usize,
    /// Whether it contains a marked ratio.
    undecided: bool,
}

impl Column {
    fn new(group: &Group<'_>, mode: Mode, kinds: &[&str], with_intervals: bool) -> Self {
        let cells: Vec<Cell> = kinds
            .iter()
            .map(|kind| cell(group, mode, kind, with_intervals))
            .collect();
        let undecided = cells.iter().any(|cell| cell.undecided);
        // If one ratio is marked, the others are padded to the same width.
        let ratio = |cell: &Cell| match (cell.undecided, undecided) {
            (true, _) => format!("{}?{}", cell.ratio, cell.interval),
            (false, true) => format!("{} {}", cell.ratio, cell.interval),
            (false, false) => format!("{}{}", cell.ratio, cell.interval),
        };
        let cells: Vec<[String; 3]> = cells
            .iter()
            .map(|cell| [cell.p50.clone(), ratio(cell), cell.exits.clone()])
            .collect();
        let width = |index: usize| cells.iter().map(|cell| cell[index].len()).max();
        let widths = [0, 1, 2].map(|index| width(index).unwrap_or(0));
        let cells: Vec<String> = cells
            .iter()
            .map(|[p50, ratio, exits]| {
                let parts = [(p50, widths[0]), (ratio, widths[1]), (exits, widths[2])];
                let parts = parts.into_iter().filter(|(_, width)| *width > 0);
                let parts = parts.map(|(text, width)| format!("{text:>width$}"));
                parts.collect::<Vec<_>>().join(" ")
            })
            .collect();
        let title = mode.name().to_owned();
        let width = cells.iter().map(String::len).max().unwrap_or(0);
        Self {
            width: width.max(title.len()),
            title,
            cells,
            undecided,
        }
    }
}

#[derive(Default)]
struct Cell {
    p50: String,
    ratio: String,
    /// With a leading space.
    interval: String,
    exits: String,
    undecided: bool,
}

fn cell(group: &Group<'_>, mode: Mode, kind: &str, with_intervals: bool) -> Cell {
    let failed = group.failed(mode, kind);
    let Some(measured) = group.measured(mode, kind) else {
        return Cell {
            p50: if failed { "FAILED" } else { "-" }.to_owned(),
            ..Cell::default()
        };
    };
    let baseline = group.baseline();
    let compared = baseline
        .filter(|baseline| *baseline != mode)
        .and_then(|baseline| Comparison::of(group, mode, baseline, kind));
    let interval = compared.and_then(|c| c.ratio.interval);
    let exits = measured.host_exits_per_l2_exit;
    let p50 = number(measured.parts.round_trip.summary.p50);
    Cell {
        p50: format!("{}{p50}", if failed { "!" } else { "" }),
        ratio: group
            .ratio(mode, kind)
            .map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
        interval: match interval {
            Some([low, high]) if with_intervals => format!(" [{low:.2}, {high:.2}]"),
            _ => String::new(),
        },
        exits: exits.map_or_else(String::new, |exits| format!("{exits:.1}")),
        undecided: compared.is_some_and(|c| matches!(c.finding, Finding::Undecided(_))),
    }
}
