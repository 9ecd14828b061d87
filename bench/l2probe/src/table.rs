//! The result as text.

use std::fmt::Write as _;

use l2probe::counts::Counts;
use l2probe::document::{Document, Outcome, Trapped, Unit, Wsl};

use crate::kinds::Kind;

/// The document as text.
pub(crate) fn table(document: &Document) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = write_all(document, &mut text);
    text
}

fn write_all(document: &Document, out: &mut String) -> std::fmt::Result {
    let place = &document.place;
    let wsl = match place.wsl {
        Some(Wsl::Wsl1) => " (WSL 1)",
        Some(Wsl::Wsl2) => " (WSL 2)",
        None => "",
    };
    let or_unknown = |text: &str| if text.is_empty() { "unknown" } else { text }.to_owned();
    writeln!(
        out,
        "Linux {}{wsl} on {}, {} CPUs",
        or_unknown(&place.kernel),
        or_unknown(&place.cpu_model),
        place.cpus
    )?;
    match &place.hypervisor {
        Some(hypervisor) => {
            let interface = match &hypervisor.interface {
                Some(interface) => format!(", interface {interface}"),
                None => String::new(),
            };
            writeln!(out, "hypervisor: {}{interface}", hypervisor.signature)?;
        }
        None => writeln!(out, "hypervisor: none is named")?,
    }
    let trapped = match place.cpuid {
        Trapped::Yes => "virtualized",
        Trapped::No => "not virtualized",
        Trapped::Unknown => "unclear whether virtualized",
    };
    let tsc = match place.tsc.khz {
        Some(khz) => format!("{khz:.0} kHz by the kernel's clock"),
        None => "not readable".to_owned(),
    };
    writeln!(
        out,
        "CPUID: {trapped}; clock source: {}; TSC: {tsc}",
        or_unknown(&place.clocksource)
    )?;
    writeln!(out)?;
    rows(document, out)?;
    for note in &document.notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}

fn rows(document: &Document, out: &mut String) -> std::fmt::Result {
    // Without the TSC's rate no value is in ticks.
    let khz = document.place.tsc.khz.unwrap_or(1e6);
    writeln!(
        out,
        "{:13}  {:>8}  {:>10}  {:>10}  {:>10}  {:>10}",
        "ns", "samples", "p50", "p90", "p99", "max"
    )?;
    for measurement in &document.measurements {
        let name = &measurement.kind;
        match &measurement.outcome {
            Outcome::Measured { unit, rounds } => {
                let all = Counts::sum(rounds);
                let ns = |per_mille| {
                    let value = all.quantile(per_mille).unwrap_or(0) as f64;
                    match unit {
                        Unit::Ns => value,
                        Unit::Ticks => value / khz * 1e6,
                    }
                };
                let what = Kind::parse(name).map_or("", Kind::what);
                writeln!(
                    out,
                    "{name:13}  {:>8}  {:>10.0}  {:>10.0}  {:>10.0}  {:>10.0}  {what}",
                    all.len(),
                    ns(500),
                    ns(900),
                    ns(990),
                    ns(1000)
                )?;
            }
            Outcome::Skipped { why } => writeln!(out, "{name:13}  not measured: {why}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use l2probe::document::{FORMAT, Measurement, Place, Tsc, VERSION};

    #[test]
    fn ticks_are_shown_as_nanoseconds() {
        let measured = |kind: &str, unit| Measurement {
            kind: kind.into(),
            outcome: Outcome::Measured {
                unit,
                rounds: vec![[1000].into_iter().collect()],
            },
        };
        let document = Document {
            format: FORMAT.into(),
            version: VERSION,
            made_by: String::new(),
            command_line: vec![],
            started_unix: 0,
            place: Place {
                tsc: Tsc {
                    khz: Some(2e6),
                    ..Tsc::default()
                },
                ..Place::default()
            },
            measurements: vec![
                measured("cpuid", Unit::Ticks),
                measured("hlt-wake", Unit::Ns),
                Measurement {
                    kind: "ipi-wake".into(),
                    outcome: Outcome::Skipped {
                        why: "one CPU".into(),
                    },
                },
            ],
            notes: vec!["beware".into()],
            round: None,
        };
        let text = table(&document);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("cpuid ").contains(" 500 "), "{text}");
        assert!(line("hlt-wake").contains(" 1000 "), "{text}");
        assert!(line("ipi-wake").contains("not measured: one CPU"));
        assert!(text.ends_with("note: beware\n"));
        assert!(text.contains("none is named") && text.contains("Linux unknown"));
    }
}
