//! Reports for tests.

use std::collections::BTreeMap;

use hypernest_nested::l2exit::Mode;

use super::model::{
    Entry, Environment, L1, L1Facts, Measured, Outcome, Part, Parts, Report, VERSION, Vmm,
};
use crate::unit::Unit;

/// Two ticks per nanosecond.
pub(crate) fn unit() -> Unit {
    Unit {
        name: "ns".into(),
        ticks: 2.0,
        why: "the TSC ticks at 2000000 kHz".into(),
    }
}

/// 200 samples per round, in two rounds, around a median of `p50` units, with a tail.
pub(crate) fn part(p50: f64) -> Part {
    let rounds: Vec<Vec<u64>> = (0..2)
        .map(|round| {
            let sample = |n: u64| {
                let tail = if n % 50 == 49 { 2.5 } else { 1.0 };
                let spread = 0.995 + 0.01 * (n as f64 / 200.0) + 0.001 * f64::from(round);
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "small positive numbers"
                )]
                let ticks = (p50 * 2.0 * spread * tail) as u64;
                ticks
            };
            (0..200).map(sample).collect()
        })
        .collect();
    Part::of_samples(&rounds, &unit())
        .expect("it can be encoded")
        .expect("there are samples")
}

/// Figures whose parts are an eighth, a quarter and five eighths of the round trip.
pub(crate) fn figures(p50: f64) -> Measured {
    Measured {
        parts: Parts {
            l2_to_l1: Some(part(p50 / 8.0)),
            l1: Some(part(p50 * 5.0 / 8.0)),
            l1_to_l2: Some(part(p50 / 4.0)),
            round_trip: part(p50),
        },
        out_of_order: 0,
        host_exits_per_l2_exit: Some(p50 / 100.0),
        host_exits_by_reason: Some(BTreeMap::from([
            ("CPUID".to_owned(), 1.0),
            ("VMRESUME".to_owned(), 1.0),
            ("VMREAD".to_owned(), p50 / 100.0 - 2.0),
        ])),
        stopwatch: Some(p50 * 400.0),
        empty: None,
        facts: None,
    }
}

/// An entry of the micro-hypervisor.
pub(crate) fn entry(mode: Mode, kind: &str, outcome: Outcome) -> Entry {
    Entry {
        l1: L1::Micro,
        vmm: Vmm::Hypernest,
        mode,
        kind: kind.to_owned(),
        touch: Some("kvm-like".into()),
        cpus: 1,
        hv: "nested".into(),
        shadow_vmcs: None,
        runs: None,
        outcome,
    }
}

/// A complete entry.
pub(crate) fn measured(mode: Mode, kind: &str, p50: f64) -> Entry {
    entry(mode, kind, Outcome::Measured(Box::new(figures(p50))))
}

/// A failed entry.
pub(crate) fn failed(mode: Mode, kind: &str) -> Entry {
    entry(
        mode,
        kind,
        Outcome::Failed {
            why: "L1 crashed".into(),
            console: "Kernel panic\nend".into(),
            partial: None,
        },
    )
}

/// An entry that was left out.
pub(crate) fn left_out(mode: Mode, kind: &str) -> Entry {
    entry(
        mode,
        kind,
        Outcome::LeftOut {
            why: "SVM is AMD's; this host's CPU has VMX".into(),
        },
    )
}

/// A report with these results.
pub(crate) fn report_of(results: Vec<Entry>) -> Report {
    Report {
        version: VERSION,
        made_by: "hypernest-bench test".into(),
        command_line: ["hypernest-bench", "l2-exit", "--kinds", "cpuid,hlt"]
            .map(str::to_owned)
            .to_vec(),
        started: "2026-03-01T12:00:00Z".into(),
        environment: Environment {
            cpu_model: "A CPU".into(),
            microcode: Some("0x2a".into()),
            kernel: "6.12".into(),
            modules: BTreeMap::from([(
                "kvm_intel".into(),
                BTreeMap::from([("nested".into(), "Y".into())]),
            )]),
            mitigations: BTreeMap::from([("meltdown".into(), "Not affected".into())]),
            smt: Some("off".into()),
            governor: Some("performance".into()),
            tsc_khz: Some(2_000_000),
            tsc_invariant: true,
            lab: None,
            pinned_to: vec![3],
            timer_resolution_ns: None,
        },
        unit: unit(),
        interrupted: false,
        stopped_by: None,
        warnings: Vec::new(),
        results,
        recommendations: Vec::new(),
    }
}

/// A report with an example of each outcome.
pub(crate) fn report() -> Report {
    let mut linux = measured(Mode::Evmcs, "cpuid", 2500.0);
    linux.l1 = L1::Linux;
    linux.touch = None;
    if let Outcome::Measured(figures) = &mut linux.outcome {
        figures.parts.l2_to_l1 = None;
        figures.parts.l1 = None;
        figures.parts.l1_to_l2 = None;
        figures.host_exits_by_reason = None;
        figures.empty = Some(part(5.0));
        figures.facts = Some(L1Facts {
            kernel: "6.12.0-test".into(),
            command_line: "quiet".into(),
            clocksource: "hyperv_clocksource_tsc_page".into(),
            log: vec!["Hypervisor detected: Microsoft Hyper-V".into()],
            kvm_log: vec!["kvm_intel: Using Hyper-V Enlightened VMCS".into()],
        });
    }
    let mut partial = failed(Mode::Evmcs, "hlt");
    if let Outcome::Failed { partial, .. } = &mut partial.outcome {
        *partial = Some(Box::new(figures(700.0)));
    }
    let mut results = vec![
        measured(Mode::Classic, "cpuid", 2400.0),
        measured(Mode::ClassicShadow, "cpuid", 1500.0),
        measured(Mode::Evmcs, "cpuid", 1320.0),
        measured(Mode::Classic, "interrupt", 3000.0),
        measured(Mode::ClassicShadow, "interrupt", 2400.0),
        measured(Mode::Evmcs, "interrupt", 2700.0),
        failed(Mode::Classic, "hlt"),
        partial,
        left_out(Mode::Svm, "cpuid"),
        linux,
    ];
    if let Outcome::Measured(figures) = &mut results[5].outcome {
        figures.parts.l1 = None;
        figures.host_exits_per_l2_exit = None;
    }
    let mut report = report_of(results);
    report.warnings = vec!["the CPU's frequency is not fixed".into()];
    report
}
