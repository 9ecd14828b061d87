//! The offset of each clock from the host's over time, as SVG, with the moves marked.

use std::fmt::Write as _;

use super::model::Report;
use super::table::{guest, host, time};
use crate::report::{Axis, escape};

const WIDTH: f64 = 940.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 100.0;
const RIGHT: f64 = 740.0;
const TOP: f64 = 82.0;
const BOTTOM: f64 = 446.0;

/// Colours on white and dashes: colour alone or dashes alone distinguish any two clocks.
fn stroke(clock: &str) -> (&'static str, &'static str) {
    match clock {
        "tsc" => ("#3d3d3d", "none"),
        "reference-page" => ("#0067b8", "none"),
        "reference-counter" => ("#00999e", "8 4"),
        "monotonic" => ("#c4262e", "none"),
        _ => ("#e07b00", "3 3"),
    }
}

/// The plot; `None` without data.
pub(super) fn plot(report: &Report) -> Option<String> {
    let points = || report.offsets.iter().flat_map(|series| &series.points);
    let finite = || points().filter(|(x, y)| x.is_finite() && y.is_finite());
    finite().next()?;
    let ends = |value: fn(&(f64, f64)) -> f64| {
        finite().map(value).fold(
            (f64::INFINITY, f64::NEG_INFINITY),
            |(least, most), value| (least.min(value), most.max(value)),
        )
    };
    let ((from, to), (least, most)) = (ends(|p| p.0), ends(|p| p.1));
    let air = ((most - least) * 0.06).max(0.1);
    let times = Axis::linear(from, to, LEFT, RIGHT);
    let ahead = Axis::linear(least - air, most + air, BOTTOM, TOP);
    let mut out = String::new();
    // Writing to a string does not fail.
    let _written = draw(report, &times, &ahead, &mut out);
    Some(out)
}

fn draw(report: &Report, times: &Axis, ahead: &Axis, out: &mut String) -> std::fmt::Result {
    let title = "A guest's clocks against the host's";
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" \
         role=\"img\" aria-labelledby=\"title desc\" font-family=\"system-ui, sans-serif\" font-size=\"13\">"
    )?;
    writeln!(out, "<title id=\"title\">{title}</title>")?;
    writeln!(
        out,
        "<desc id=\"desc\">How far each clock of the guest is ahead of the host's monotonic clock, in us \
         since the first sample, over time; \
         {} moves are marked.</desc>",
        report.moves.len()
    )?;
    writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>")?;
    writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"28\" font-size=\"18\" font-weight=\"600\" fill=\"#111\">{title}</text>"
    )?;
    for (line, y) in [(guest(report), 47), (host(report), 64)] {
        let line: String = line.chars().take(130).collect();
        writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{y}\" font-size=\"12\" fill=\"#555\">{}</text>",
            escape(&line)
        )?;
    }
    axes(times, ahead, out)?;
    marks(report, times, out)?;
    let mut y = TOP + 8.0;
    for series in &report.offsets {
        let (colour, dashes) = stroke(&series.clock);
        let mut path = String::new();
        for &(at, us) in &series.points {
            if at.is_finite() && us.is_finite() {
                let letter = if path.is_empty() { 'M' } else { 'L' };
                write!(
                    path,
                    "{letter}{:.1} {:.1}",
                    times.place(at),
                    ahead.place(us)
                )?;
            }
        }
        let name = escape(&series.clock);
        writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" \
             stroke-dasharray=\"{dashes}\" \
             stroke-linejoin=\"round\"><title>{name}</title></path>"
        )?;
        writeln!(
            out,
            "<path d=\"M{} {y:.1}h30\" stroke=\"{colour}\" stroke-width=\"3\" stroke-dasharray=\"{dashes}\"/>\
             <text x=\"{}\" y=\"{:.1}\" fill=\"#111\">{name}</text>",
            RIGHT + 16.0,
            RIGHT + 54.0,
            y + 4.0
        )?;
        y += 24.0;
    }
    writeln!(out, "</svg>")
}

fn axes(times: &Axis, ahead: &Axis, out: &mut String) -> std::fmt::Result {
    for tick in ahead.ticks() {
        let y = ahead.place(tick);
        writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#e3e3e3\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\" fill=\"#333\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            time(tick * 1e3)
        )?;
    }
    for tick in times.ticks() {
        let x = times.place(tick);
        writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#f0f0f0\"/><text x=\"{x:.1}\" y=\"{}\" \
             text-anchor=\"middle\" fill=\"#333\">{}</text>",
            BOTTOM + 20.0,
            time(tick * 1e9)
        )?;
    }
    writeln!(
        out,
        "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"#777\"/>"
    )?;
    writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#333\">host's time since the start</text>",
        f64::midpoint(LEFT, RIGHT),
        BOTTOM + 44.0
    )?;
    writeln!(
        out,
        "<text transform=\"translate(20 {}) rotate(-90)\" text-anchor=\"middle\" fill=\"#333\">ahead of the \
         host's clock</text>",
        f64::midpoint(TOP, BOTTOM)
    )
}

/// The maximum number of moves that are numbered.
const MOST_NUMBERS: usize = 30;

fn marks(report: &Report, times: &Axis, out: &mut String) -> std::fmt::Result {
    let acks = report
        .segments
        .iter()
        .filter(|segment| segment.acknowledged);
    for segment in acks.filter(|segment| segment.from_s.is_finite()) {
        let x = times.place(segment.from_s);
        writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#6a3fb5\" stroke-dasharray=\"2 \
             4\"><title>acknowledgement after move {}</title></path>",
            segment.after_move
        )?;
    }
    for of_move in report
        .moves
        .iter()
        .filter(|of_move| of_move.at_s.is_finite())
    {
        let x = times.place(of_move.at_s);
        writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#2e7d32\" stroke-dasharray=\"6 3\"><title>move \
             {}</title></path>",
            of_move.number
        )?;
        if report.moves.len() <= MOST_NUMBERS {
            writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{}\" font-size=\"11\" text-anchor=\"middle\" \
                 fill=\"#2e7d32\">{}</text>",
                TOP - 4.0,
                of_move.number
            )?;
        }
    }
    Ok(())
}
