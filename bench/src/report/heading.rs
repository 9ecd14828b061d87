//! The environment of a report, as text.

use std::collections::BTreeSet;

use super::model::{Environment, Report};

/// The lines of a terminal's heading.
pub(crate) fn lines(report: &Report) -> Vec<String> {
    let environment = &report.environment;
    let lab = emulated(environment);
    let mut lines = vec![format!(
        "host: Linux {} on {}{lab}",
        environment.kernel, environment.cpu_model
    )];
    lines.push(facts(report).join(", "));
    let unit = &report.unit;
    lines.push(format!("unit: {} ({})", unit.name, unit.why));
    lines.push(format!(
        "{}, {}: {}",
        report.made_by,
        report.started,
        report.command_line.join(" ")
    ));
    lines
}

/// ` (emulated: the intel lab)`, or nothing.
pub(crate) fn emulated(environment: &Environment) -> String {
    let lab = environment.lab.as_ref();
    lab.map_or_else(String::new, |lab| format!(" (emulated: the {lab} lab)"))
}

/// The properties that affect times.
fn facts(report: &Report) -> Vec<String> {
    let environment = &report.environment;
    let mut facts = Vec::new();
    if let Some(microcode) = &environment.microcode {
        facts.push(format!("microcode {microcode}"));
    }
    let invariant = if environment.tsc_invariant {
        "invariant"
    } else {
        "NOT invariant"
    };
    facts.push(match environment.tsc_khz {
        Some(khz) => format!("TSC {khz} kHz, {invariant}"),
        None => format!("TSC {invariant}"),
    });
    for (name, value) in [
        ("SMT", &environment.smt),
        ("governor", &environment.governor),
    ] {
        if let Some(value) = value {
            facts.push(format!("{name} {value}"));
        }
    }
    facts.push(pinned(&environment.pinned_to));
    for (module, name) in [
        ("kvm_intel", "nested"),
        ("kvm_intel", "enable_shadow_vmcs"),
        ("kvm_amd", "nested"),
    ] {
        let value = environment
            .modules
            .get(module)
            .and_then(|parameters| parameters.get(name));
        if let Some(value) = value {
            facts.push(format!("{module}.{name}={value}"));
        }
    }
    facts
}

/// The CPUs as `pinned to CPU 3`.
pub(crate) fn pinned(cpus: &[u32]) -> String {
    let distinct: BTreeSet<u32> = cpus.iter().copied().collect();
    let list: Vec<_> = distinct.iter().map(u32::to_string).collect();
    match list.as_slice() {
        [] => "not pinned".to_owned(),
        [one] => format!("pinned to CPU {one}"),
        several => format!("pinned to CPUs {}", several.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::report;

    #[test]
    fn what_decides_about_times_is_named() {
        let mut report = report();
        report.environment.lab = Some("intel".into());
        assert_eq!(
            lines(&report),
            [
                "host: Linux 6.12 on A CPU (emulated: the intel lab)",
                "microcode 0x2a, TSC 2000000 kHz, invariant, SMT off, governor performance, pinned to CPU \
                 3, kvm_intel.nested=Y",
                "unit: ns (the TSC ticks at 2000000 kHz)",
                "hypernest-bench test, 2026-03-01T12:00:00Z: hypernest-bench l2-exit --kinds cpuid,hlt",
            ]
        );
        report.environment.tsc_invariant = false;
        report.environment.pinned_to = vec![1, 2, 1];
        assert!(
            lines(&report)[1].contains("NOT invariant") && lines(&report)[1].contains("CPUs 1, 2")
        );
    }
}
