//! A percentile plot: a line for each mode, on an axis that stretches the tail.

use std::fmt::Write as _;

use hypernest_nested::l2exit::Mode;

use super::axis::{Axis, decades, percentile};
use super::distribution::Distribution;
use super::groups::{Group, in_words, number};
use super::markup::escape;
use super::model::Report;
use crate::histogram::HistogramError;

const WIDTH: f64 = 940.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 82.0;
const BOTTOM: f64 = 446.0;
/// The distance between two lines of the legend.
const LINE: f64 = 40.0;

/// The style of a mode's line: colour alone or dashes alone distinguish any two modes.
pub(crate) struct Stroke {
    /// The colour on white.
    pub(crate) light: &'static str,
    /// The colour on black.
    pub(crate) dark: &'static str,
    pub(crate) dashes: &'static str,
}

/// The line of a mode.
pub(crate) fn stroke(mode: Mode) -> Stroke {
    let (light, dark, dashes) = match mode {
        Mode::Classic => ("#3d3d3d", "#e0e0e0", "none"),
        Mode::ClassicShadow => ("#8a8a8a", "#9a9a9a", "8 4"),
        Mode::Offered => ("#8c510a", "#d99a4e", "none"),
        Mode::OfferedShadow => ("#c58a3d", "#b98a52", "8 4"),
        Mode::Evmcs => ("#0067b8", "#5fb0f2", "none"),
        Mode::EvmcsEmsr => ("#00999e", "#4fd1d6", "12 3 3 3"),
        Mode::EvmcsDirectFlush => ("#6a3fb5", "#b79af0", "3 3"),
        Mode::Svm => ("#c4262e", "#ff7b80", "none"),
        Mode::SvmEmsr => ("#e07b00", "#ffb04d", "12 3 3 3"),
        Mode::SvmDirectFlush => ("#b0197e", "#f07cc8", "3 3"),
    };
    Stroke {
        light,
        dark,
        dashes,
    }
}

/// The plot of the round trips of a kind. `None` if there are none.
pub(crate) fn percentiles(
    report: &Report,
    group: &Group<'_>,
    kind: &str,
) -> Result<Option<String>, HistogramError> {
    let mut lines = Vec::new();
    for mode in group.modes() {
        let Some(measured) = group.measured(mode, kind) else {
            continue;
        };
        let part = &measured.parts.round_trip;
        if let Some(distribution) = Distribution::of(part, &report.unit)? {
            lines.push((mode, distribution, part.summary.p50));
        }
    }
    if lines.is_empty() {
        return Ok(None);
    }
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = draw(report, group, kind, &lines, &mut text);
    Ok(Some(text))
}

type Lines = [(Mode, Distribution, f64)];

fn draw(
    report: &Report,
    group: &Group<'_>,
    kind: &str,
    lines: &Lines,
    out: &mut String,
) -> std::fmt::Result {
    let values = lines.iter().flat_map(|(_, line, _)| &line.steps);
    let (least, most) = values.fold((f64::INFINITY, 0.0_f64), |(least, most), &(value, _)| {
        (least.min(value), most.max(value))
    });
    let samples = lines.iter().map(|(_, line, _)| line.samples).max();
    let samples = samples.unwrap_or(1);
    let value = Axis::logarithmic(least, most, BOTTOM, TOP);
    let rank = Axis::linear(0.0, percentile(1.0, samples), LEFT, RIGHT);
    let unit = escape(&report.unit.name);
    let title = format!("Round trips of L2: {}", escape(&in_words(kind)));
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" \
         role=\"img\" aria-labelledby=\"title desc\" font-family=\"system-ui, sans-serif\" font-size=\"13\">"
    )?;
    writeln!(out, "<title id=\"title\">{title}</title>")?;
    let medians: Vec<_> = lines
        .iter()
        .map(|(mode, _, p50)| format!("{} {}", mode.name(), number(*p50)))
        .collect();
    writeln!(
        out,
        "<desc id=\"desc\">Time by percentile, a line for each mode. Medians in {unit}: {}.</desc>",
        medians.join(", ")
    )?;
    writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>")?;
    writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"28\" font-size=\"18\" font-weight=\"600\" fill=\"#111\">{title}</text>"
    )?;
    let host = &report.environment;
    let lab = super::heading::emulated(host);
    let from = [
        group.title(),
        format!("{}, Linux {}{lab}", host.cpu_model, host.kernel),
    ];
    for (line, y) in from.iter().zip([47, 64]) {
        writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{y}\" fill=\"#555\">{}</text>",
            escape(line)
        )?;
    }
    axes(&value, &rank, samples, &unit, out)?;
    for (mode, line, _) in lines {
        let Stroke { light, dashes, .. } = stroke(*mode);
        let mut path = String::new();
        for (at, from, to) in line.stairs() {
            let y = value.place(at);
            for (letter, q) in [(if path.is_empty() { 'M' } else { 'L' }, from), ('L', to)] {
                let x = rank.place(percentile(q, line.samples));
                write!(path, "{letter}{x:.1} {y:.1}")?;
            }
        }
        writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{light}\" stroke-width=\"2\" \
             stroke-dasharray=\"{dashes}\" \
             stroke-linejoin=\"round\"><title>{}</title></path>",
            mode.name()
        )?;
    }
    legend(lines, out)?;
    writeln!(out, "</svg>")
}

fn axes(value: &Axis, rank: &Axis, samples: u64, unit: &str, out: &mut String) -> std::fmt::Result {
    for tick in value.ticks() {
        let y = value.place(tick);
        writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#e3e3e3\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\" fill=\"#333\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            number(tick)
        )?;
    }
    for (q, name) in decades(samples) {
        let x = rank.place(percentile(q, samples));
        writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#e3e3e3\"/><text x=\"{x:.1}\" y=\"{}\" \
             text-anchor=\"middle\" fill=\"#333\">{name}</text>",
            BOTTOM + 20.0
        )?;
    }
    writeln!(
        out,
        "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"#777\"/>"
    )?;
    writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#333\">percentile of the samples</text>",
        f64::midpoint(LEFT, RIGHT),
        BOTTOM + 44.0
    )?;
    let scale = if value.is_logarithmic() {
        ", logarithmic"
    } else {
        ""
    };
    writeln!(
        out,
        "<text transform=\"translate(20 {}) rotate(-90)\" text-anchor=\"middle\" \
         fill=\"#333\">{unit}{scale}</text>",
        f64::midpoint(TOP, BOTTOM)
    )
}

/// Beside the plot, in the order of modes that all plots and tables use.
fn legend(lines: &Lines, out: &mut String) -> std::fmt::Result {
    let mut y = TOP + 8.0;
    for (mode, line, p50) in lines {
        let Stroke { light, dashes, .. } = stroke(*mode);
        writeln!(
            out,
            "<path d=\"M{} {y:.1}h30\" stroke=\"{light}\" stroke-width=\"3\" stroke-dasharray=\"{dashes}\"/>\
             <text x=\"{}\" y=\"{:.1}\" font-weight=\"600\" fill=\"#111\">{}</text>\
             <text x=\"{}\" y=\"{:.1}\" font-size=\"11\" fill=\"#555\">median {}, n={}</text>",
            RIGHT + 16.0,
            RIGHT + 54.0,
            y + 4.0,
            mode.name(),
            RIGHT + 54.0,
            y + 19.0,
            number(*p50),
            line.samples
        )?;
        y += LINE;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::groups::groups;
    use crate::report::sample::{failed, report, report_of};

    #[test]
    fn a_line_for_each_mode_with_words_for_those_who_do_not_see_it() {
        let report = report();
        let groups = groups(&report);
        let text = percentiles(&report, &groups[0], "cpuid").unwrap().unwrap();
        assert_eq!(text.matches("stroke-linejoin").count(), 3, "{text}");
        for part in [
            "<title id=\"title\">Round trips of L2: CPUID exits</title>",
            "role=\"img\"",
            "Medians in ns: classic 2,4",
            "<title>evmcs</title>",
            ">99 %<",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        let elsewhere = percentiles(&report, &groups[1], "interrupt").unwrap();
        assert_eq!(elsewhere, None);
    }

    #[test]
    fn plots_are_alike_and_name_an_emulated_host() {
        let mut report = report();
        report.environment.lab = Some("intel".into());
        let groups = groups(&report);
        for kind in ["cpuid", "interrupt"] {
            let text = percentiles(&report, &groups[0], kind).unwrap().unwrap();
            let places = ["classic", "classic+shadow", "evmcs"]
                .map(|mode| text.find(&format!("fill=\"#111\">{mode}<")).unwrap());
            assert!(places.is_sorted(), "{kind}: {places:?}");
            assert!(text.contains("ns, logarithmic</text>"), "{kind}");
            assert!(
                text.contains("A CPU, Linux 6.12 (emulated: the intel lab)"),
                "{kind}"
            );
        }
    }

    #[test]
    fn hostile_names_stay_text() {
        let mut report = report();
        report.results.truncate(1);
        report.results[0].kind = "</title><script>".into();
        report.unit.name = "<b>\u{0}".into();
        report.environment.cpu_model = "\"&".into();
        let groups = groups(&report);
        let text = percentiles(&report, &groups[0], "</title><script>");
        let text = text.unwrap().unwrap();
        assert!(!text.contains("<script") && !text.contains("<b>"), "{text}");
        assert!(text.contains("&lt;/title&gt;&lt;script&gt;") && text.contains("&quot;&amp;"));
    }

    #[test]
    fn nothing_measured_is_no_plot() {
        let report = report_of(vec![failed(Mode::Classic, "cpuid")]);
        let groups = groups(&report);
        assert_eq!(percentiles(&report, &groups[0], "cpuid").unwrap(), None);
    }
}
