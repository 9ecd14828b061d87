//! A report as one self-contained HTML page.
//!
//! The page contains tables and text; page/page.js draws plots from figures that the page contains as JSON.
//! All data from guests and files is escaped, and the page's content security policy forbids all fetches.

use std::fmt::Write as _;

use hypernest_nested::l2exit::Mode;
use serde_json::{Value, json};

use super::comparison::{Comparison, Finding, Reason};
use super::distribution::Distribution;
use super::groups::{Group, PARTS, groups, in_words, number};
use super::heading;
use super::left_out::left_out;
use super::markup::{escape, script_json};
use super::model::{ALL_KINDS, Measured, Outcome, Part, Report};
use super::svg::stroke;
use super::table::by_count;
use super::verdict::{decided_by_ticks, verdicts};
use crate::histogram::HistogramError;
use crate::l2_exit::modes::title;
use crate::unit::Unit;

/// The style sheet of every page.
pub(crate) const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The page.
pub(crate) fn page(report: &Report) -> Result<String, HistogramError> {
    // A group without figures has nothing to select.
    let groups: Vec<Group<'_>> = groups(report);
    let drawn: Vec<&Group<'_>> = groups.iter().filter(|g| !g.modes().is_empty()).collect();
    let figures = figures(&drawn, report)?;
    let mut out = String::new();
    // Writing to a string does not fail.
    let _written = write_page(report, &groups, &drawn, &figures, &mut out);
    Ok(out)
}

fn write_page(
    report: &Report,
    groups: &[Group<'_>],
    drawn: &[&Group<'_>],
    figures: &Value,
    out: &mut String,
) -> std::fmt::Result {
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src \
         'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>The cost of an L2 exit: {}</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>",
        escape(&report.environment.cpu_model),
        mode_styles()
    )?;
    writeln!(out, "<header>\n<h1>The cost of an L2 exit</h1>")?;
    answers(report, out)?;
    for line in heading::lines(report) {
        writeln!(out, "<p class=\"soft\">{}</p>", escape(&line))?;
    }
    if report.interrupted {
        writeln!(
            out,
            "<p class=\"warning\">Interrupted: these are the results up to then; some have fewer samples \
             than was asked for.</p>"
        )?;
    }
    for warning in &report.warnings {
        writeln!(out, "<p class=\"warning\">{}</p>", escape(warning))?;
    }
    writeln!(out, "</header>\n<main>")?;
    for (number, group) in drawn.iter().enumerate() {
        matrix(number, group, &report.unit, out)?;
    }
    if !drawn.is_empty() {
        out.push_str(CHOSEN);
    }
    advice(report, out)?;
    failures(groups, out)?;
    environment(report, out)?;
    writeln!(
        out,
        "</main>\n<noscript><p class=\"warning\">The plots need JavaScript; the tables do \
         not.</p></noscript>\n\
         <script type=\"application/json\" \
         id=\"figures\">{}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>",
        script_json(&figures.to_string())
    )
}

/// The plots and tables of the selected kind.
const CHOSEN: &str = r#"<section id="chosen">
<h2>One kind of exits</h2>
<div class="choice">
<label>L1 <select id="group"></select></label>
<label>Kind <select id="kind"></select></label>
<label>Plot <select id="plot"><option value="percentiles">percentiles</option><option value="histogram">histogram</option></select></label>
</div>
<div class="choice" id="modes" role="group" aria-label="Modes that are shown"></div>
<p class="hint">Drag over a plot to zoom in; once it is selected, the wheel, + and - zoom, arrows move, 0 or a double click shows all again.</p>
<div class="plots" id="plots"></div>
<p class="soft" id="no-parts" hidden>Of this kind only the parts shown were measured.</p>
<h3>Host exits for each exit of L2, by reason</h3>
<div id="exits"></div>
<h3>In figures</h3>
<div class="wide" id="numbers"></div>
</section>
"#;

/// Colours and dashes of the modes, as custom properties for the rest of the style sheet.
fn mode_styles() -> String {
    let rule = |mode: &Mode, colour: &str| {
        let dashes = stroke(*mode).dashes;
        format!("[data-mode=\"{mode}\"] {{ --c: {colour}; --d: {dashes}; }}\n")
    };
    let light: String = Mode::ALL
        .iter()
        .map(|m| rule(m, stroke(*m).light))
        .collect();
    let dark: String = Mode::ALL.iter().map(|m| rule(m, stroke(*m).dark)).collect();
    format!("{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n")
}

/// The short answers, at the top.
fn answers(report: &Report, out: &mut String) -> std::fmt::Result {
    let (verdicts, ticks) = (verdicts(report), decided_by_ticks(report));
    if verdicts.is_empty() && ticks.is_empty() {
        return Ok(());
    }
    writeln!(out, "<ul class=\"advice\">")?;
    for verdict in verdicts {
        let why = verdict.why.map_or_else(String::new, |why| {
            format!("<br><span class=\"soft\">{}</span>", escape(&why))
        });
        writeln!(
            out,
            "<li><b>{}</b>: {}{why}</li>",
            escape(&verdict.subject),
            escape(&verdict.text)
        )?;
    }
    if !ticks.is_empty() {
        writeln!(
            out,
            "<li class=\"soft\">no answer from {}: {}</li>",
            escape(&ticks.join(", ")),
            Reason::Ticks.text()
        )?;
    }
    writeln!(out, "</ul>")
}

/// Each answer with its rule, collapsed.
fn advice(report: &Report, out: &mut String) -> std::fmt::Result {
    if report.recommendations.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<section>\n<h2>Recommendations</h2>\n<details><summary>each answer with all its ratios and its \
         rule</summary>\n<ul class=\"advice\">"
    )?;
    for recommendation in &report.recommendations {
        writeln!(
            out,
            "<li>{}<p class=\"soft\">{}</p></li>",
            escape(&recommendation.text),
            escape(&recommendation.rule)
        )?;
    }
    writeln!(out, "</ul>\n</details>\n</section>")
}

fn matrix(number: usize, group: &Group<'_>, unit: &Unit, out: &mut String) -> std::fmt::Result {
    let against = match group.baseline() {
        Some(baseline) => format!(", its ratio to {baseline}"),
        None => String::new(),
    };
    writeln!(
        out,
        "<section>\n<h2>{}</h2>\n<p class=\"soft\">Median of the round trip in {}{against}, host exits for \
         each exit of L2.</p>",
        escape(&group.title()),
        escape(&unit.name)
    )?;
    writeln!(
        out,
        "<div class=\"wide\"><table class=\"matrix\">\n<thead><tr><th></th>"
    )?;
    let modes = group.modes();
    for mode in &modes {
        writeln!(
            out,
            "<th scope=\"col\" title=\"{}\">{mode}</th>",
            escape(title(group.l1, *mode))
        )?;
    }
    writeln!(out, "</tr></thead>\n<tbody>")?;
    for (index, kind) in group.kinds().into_iter().enumerate() {
        write!(
            out,
            "<tr data-group=\"{number}\" data-kind=\"{index}\"><th scope=\"row\"><button type=\"button\" \
             data-group=\"{number}\" data-kind=\"{index}\" title=\"{}\">{}</button></th>",
            escape(&in_words(kind)),
            escape(kind)
        )?;
        for mode in &modes {
            write!(out, "<td>{}</td>", cell(group, *mode, kind))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody>\n</table></div>\n</section>")
}

fn cell(group: &Group<'_>, mode: Mode, kind: &str) -> String {
    let failed = group.failed(mode, kind);
    let Some(measured) = group.measured(mode, kind) else {
        return if failed {
            "<span class=\"failed\">failed</span>".to_owned()
        } else {
            "-".to_owned()
        };
    };
    let mark = if failed {
        "<span class=\"failed\" title=\"it failed later; these are the figures up to then\">!</span> "
    } else {
        ""
    };
    let baseline = group.baseline().filter(|baseline| *baseline != mode);
    let compared = baseline.and_then(|baseline| Comparison::of(group, mode, baseline, kind));
    let ratio = group.ratio(mode, kind).map_or_else(String::new, |ratio| {
        let (class, arrow, why) = match compared.map(|compared| compared.finding) {
            Some(Finding::Gain) => (" less", "▾", ""),
            Some(Finding::Cost) => (" more", "▴", ""),
            Some(Finding::Undecided(reason)) => (" unsure", "?", reason.text()),
            Some(Finding::Same) | None => ("", "", ""),
        };
        let hint = match compared.and_then(|compared| compared.ratio.interval) {
            Some([low, high]) => format!("95 % interval {low:.3} to {high:.3}. {why}"),
            None => why.to_owned(),
        };
        format!(
            "<span class=\"ratio{class}\" title=\"{}\">{arrow}{ratio:.2}x</span>",
            escape(hint.trim_end())
        )
    });
    let exits = measured
        .host_exits_per_l2_exit
        .map_or_else(String::new, |exits| {
            format!("<span class=\"exits\">{exits:.1}</span>")
        });
    let p50 = number(measured.parts.round_trip.summary.p50);
    format!("{mark}{p50}{ratio}{exits}")
}

fn failures(groups: &[Group<'_>], out: &mut String) -> std::fmt::Result {
    let mut items = String::new();
    for entry in groups.iter().flat_map(|group| group.entries()) {
        let Outcome::Failed { why, console, .. } = &entry.outcome else {
            continue;
        };
        let kind = match entry.kind.as_str() {
            ALL_KINDS => "",
            kind => kind,
        };
        let what = format!("{} {} {kind}", entry.l1.name(), entry.mode);
        write!(
            items,
            "<li><b>{}</b>: <span class=\"failed\">failed</span>: {}",
            escape(what.trim_end()),
            escape(why)
        )?;
        if !console.is_empty() {
            write!(
                items,
                "<details><summary>the end of L1's console</summary><pre>{}</pre></details>",
                escape(console)
            )?;
        }
        writeln!(items, "</li>")?;
    }
    for one in left_out(groups) {
        let kinds = match one.kinds.as_slice() {
            [] => String::new(),
            kinds => format!(" ({})", escape(&kinds.join(", "))),
        };
        writeln!(
            items,
            "<li><b>{}</b>: {}{kinds}: left out: {}</li>",
            escape(&one.groups.join(", ")),
            one.modes(),
            escape(one.why)
        )?;
    }
    if items.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<section>\n<h2>Not measured</h2>\n<ul>\n{items}</ul>\n</section>"
    )
}

fn environment(report: &Report, out: &mut String) -> std::fmt::Result {
    let environment = &report.environment;
    let optional = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
    let frequency = environment
        .tsc_khz
        .map_or_else(|| "unknown".to_owned(), |khz| format!("{khz} kHz"));
    let invariant = if environment.tsc_invariant {
        "invariant"
    } else {
        "NOT invariant"
    };
    let mut facts = vec![
        ("CPU".to_owned(), environment.cpu_model.clone()),
        ("microcode".to_owned(), optional(&environment.microcode)),
        ("kernel".to_owned(), environment.kernel.clone()),
        ("TSC".to_owned(), format!("{frequency}, {invariant}")),
        ("SMT".to_owned(), optional(&environment.smt)),
        ("governor".to_owned(), optional(&environment.governor)),
        ("vCPUs".to_owned(), heading::pinned(&environment.pinned_to)),
        (
            "unit".to_owned(),
            format!("{} ({})", report.unit.name, report.unit.why),
        ),
        ("made by".to_owned(), report.made_by.clone()),
        ("started".to_owned(), report.started.clone()),
        ("command".to_owned(), report.command_line.join(" ")),
    ];
    if let Some(lab) = &environment.lab {
        facts.push(("lab".to_owned(), lab.clone()));
    }
    for (module, parameters) in &environment.modules {
        let values = parameters.iter().map(|(name, v)| format!("{name}={v}"));
        facts.push((module.clone(), values.collect::<Vec<_>>().join(" ")));
    }
    for (vulnerability, mitigation) in &environment.mitigations {
        facts.push((vulnerability.clone(), mitigation.clone()));
    }
    writeln!(out, "<section>\n<h2>Where it ran</h2>\n<dl>")?;
    for (name, value) in facts {
        writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(&name), escape(&value))?;
    }
    writeln!(out, "</dl>")?;
    for (modes, lines) in said(report) {
        writeln!(
            out,
            "<details><summary>what L1 reported of itself: {}</summary><pre>{}</pre></details>",
            escape(&modes.join(", ")),
            escape(&lines.join("\n"))
        )?;
    }
    writeln!(out, "</section>")
}

/// Reports of Linux L1s about themselves, by the modes that reported the same.
fn said(report: &Report) -> Vec<(Vec<&'static str>, Vec<String>)> {
    let mut all: Vec<(Vec<&'static str>, Vec<String>)> = Vec::new();
    for entry in &report.results {
        let Some(facts) = entry.measured().and_then(|m| m.facts.as_ref()) else {
            continue;
        };
        let own = format!(
            "Linux {}, clocksource {}, command line: {}",
            facts.kernel, facts.clocksource, facts.command_line
        );
        let log = facts.log.iter().chain(&facts.kvm_log).cloned();
        let lines: Vec<String> = std::iter::once(own).chain(log).collect();
        let mode = entry.mode.name();
        match all.iter_mut().find(|(_, other)| *other == lines) {
            Some((modes, _)) if modes.contains(&mode) => {}
            Some((modes, _)) => modes.push(mode),
            None => all.push((vec![mode], lines)),
        }
    }
    all
}

/// The data for page.js.
fn figures(groups: &[&Group<'_>], report: &Report) -> Result<Value, HistogramError> {
    let unit = &report.unit;
    let groups: Result<Vec<Value>, HistogramError> = groups
        .iter()
        .map(|group| {
            let (modes, kinds) = (group.modes(), group.kinds());
            let cells: Result<Vec<Vec<Value>>, HistogramError> = modes
                .iter()
                .map(|mode| {
                    let of_kind = |kind: &&str| match group.measured(*mode, kind) {
                        Some(measured) => figures_of(measured, unit),
                        None => Ok(Value::Null),
                    };
                    kinds.iter().map(of_kind).collect()
                })
                .collect();
            let named = |name: &str, title: &str| json!({ "name": name, "title": title });
            Ok(json!({
                "title": group.title(),
                "modes": modes.iter().map(|m| named(m.name(), title(group.l1, *m))).collect::<Vec<_>>(),
                "kinds": kinds.iter().map(|k| json!({ "name": k, "words": in_words(k) })).collect::<Vec<_>>(),
                "cells": cells?,
            }))
        })
        .collect();
    Ok(json!({ "unit": unit.name, "groups": groups? }))
}

fn figures_of(measured: &Measured, unit: &Unit) -> Result<Value, HistogramError> {
    let mut parts = serde_json::Map::new();
    for (name, _, part) in PARTS {
        if let Some(part) = part(&measured.parts) {
            parts.insert(name.to_owned(), figures_of_part(part, unit)?);
        }
    }
    Ok(json!({
        "exits": measured.host_exits_per_l2_exit,
        "reasons": measured.host_exits_by_reason.as_ref().map(by_count),
        "parts": parts,
    }))
}

fn figures_of_part(part: &Part, unit: &Unit) -> Result<Value, HistogramError> {
    let steps = Distribution::of(part, unit)?.map_or_else(Vec::new, |d| d.steps);
    // Tenths are finer than the resolution of most of a histogram's values, and short.
    let short = |value: f64| (value * 10.0).round() / 10.0;
    let steps: Vec<(f64, u64)> = steps.iter().map(|&(v, count)| (short(v), count)).collect();
    let summary = &part.summary;
    Ok(json!({
        "n": summary.samples, "min": summary.min, "p50": summary.p50, "p90": summary.p90, "p99": summary.p99,
        "p99_9": summary.p99_9, "max": summary.max, "mean": summary.mean, "ci": part.interval(),
            "steps": steps,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::recommend;
    use crate::report::sample::{failed, report, report_of};

    /// The data that the page's script would read.
    fn embedded(page: &str) -> Value {
        let start = "<script type=\"application/json\" id=\"figures\">";
        let from = page.find(start).unwrap() + start.len();
        let to = from + page[from..].find("</script>").unwrap();
        serde_json::from_str(&page[from..to]).unwrap()
    }

    #[test]
    fn it_holds_everything_and_fetches_nothing() {
        let mut report = report();
        report.recommendations = recommend(&report);
        let page = page(&report).unwrap();
        for part in [
            "default-src 'none'",
            "<button type=\"button\" data-group=\"0\" data-kind=\"0\" title=\"CPUID exits\">cpuid</button>",
            "\">▾0.55x</span><span class=\"exits\">13.2</span>",
            "<span class=\"ratio less\" title=\"95 % interval 0.5",
            "<b>hv-evmcs, without shadow VMCS</b>: use it (micro 0.55x",
            "<summary>each answer with all its ratios and its rule</summary>",
            "the CPU&#39;s frequency is not fixed",
            "<b>micro</b>: svm (cpuid): left out: SVM is AMD&#39;s",
            "<details><summary>what L1 reported of itself: evmcs</summary><pre>Linux 6.12.0-test",
            "<pre>Kernel panic\nend</pre>",
            "<dt>meltdown</dt><dd>Not affected</dd>",
            "<dt>kvm_intel</dt><dd>nested=Y</dd>",
            "kvm_intel: Using Hyper-V Enlightened VMCS",
            "[data-mode=\"evmcs+emsr\"]",
        ] {
            assert!(page.contains(part), "{part:?} is not there");
        }
        for outside in ["http://", "https://", "src=\"", "@import", "url(h"] {
            let found = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!found.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_script_gets_every_distribution() {
        let value = embedded(&page(&report()).unwrap());
        assert_eq!(value["unit"], "ns");
        let micro = &value["groups"][0];
        assert_eq!(micro["modes"][1]["name"], "classic+shadow");
        assert_eq!(micro["kinds"][0]["words"], "CPUID exits");
        let cell = &micro["cells"][2][0];
        assert_eq!(cell["exits"], 13.2);
        assert_eq!(cell["reasons"][0][0], "VMREAD");
        for part in ["round-trip", "l2-to-l1", "l1", "l1-to-l2"] {
            let part = &cell["parts"][part];
            let steps = part["steps"].as_array().unwrap();
            let counts = steps.iter().map(|step| step[1].as_u64().unwrap());
            assert_eq!(counts.sum::<u64>(), part["n"].as_u64().unwrap());
        }
        // Failed without and with figures, and not measured.
        assert!(micro["cells"][0][1].is_null() && micro["cells"][2][1].is_object());
        assert!(value["groups"][1]["cells"][0][0]["parts"]["l1"].is_null());
    }

    #[test]
    fn hostile_text_stays_text() {
        let mut report = report();
        let hostile =
            "</script><script>alert(1)</script><img src=x onerror='alert(2)'><!--\u{2028}\u{0}\"&";
        for entry in &mut report.results {
            entry.kind.push_str(hostile);
            entry.touch = Some(hostile.to_owned());
            if let Outcome::Failed { why, console, .. } = &mut entry.outcome {
                why.push_str(hostile);
                console.push_str(hostile);
            }
        }
        report.results[0].kind = hostile.to_owned();
        report.unit.name = hostile.to_owned();
        report.environment.cpu_model = hostile.to_owned();
        report.environment.modules =
            [(hostile.into(), [(hostile.into(), hostile.into())].into())].into();
        report.warnings = vec![hostile.to_owned()];
        report.command_line = vec![hostile.to_owned()];
        report.recommendations = recommend(&report);
        let page = page(&report).unwrap();
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("</script").count(), 2);
        assert!(!page.contains("<img") && !page.contains("<!--") && !page.contains('\0'));
        assert_eq!(embedded(&page)["groups"][0]["kinds"][0]["name"], hostile);
    }

    #[test]
    fn without_figures_there_is_a_page_without_plots() {
        let page = page(&report_of(vec![failed(Mode::Classic, "cpuid")])).unwrap();
        assert!(page.contains("L1 crashed") && !page.contains("id=\"plots\""));
        assert_eq!(embedded(&page)["groups"], json!([]));
    }
}
