//! The result of `l2-exit`, and its forms: JSON, an HDR histogram log, a table.

mod axis;
mod comparison;
mod distribution;
mod files;
mod groups;
mod heading;
#[cfg(test)]
mod hostile;
mod interval_log;
mod left_out;
mod markup;
mod matrix;
mod model;
mod page;
mod recommend;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod schema;
mod svg;
mod table;
mod verdict;

pub(crate) use axis::Axis;
pub(crate) use comparison::Ratio;
pub(crate) use files::{FileError, read, write};
pub(crate) use groups::{Group, PARTS, groups, number, plain, ratio};
pub(crate) use markup::{escape, file_part};
pub(crate) use model::{
    ALL_KINDS, Entry, Environment, L1, L1Facts, Measured, Outcome, Part, Parts, Report, StoppedBy,
    VERSION, Vmm,
};
pub(crate) use page::{STYLE, page};
pub(crate) use recommend::recommend;
#[cfg(test)]
pub(crate) use schema::matches_schema;
pub(crate) use table::{Details, check_kind, grid, table};

#[cfg(test)]
pub(crate) mod tests {
    use hypernest_nested::l2exit::Mode;

    use super::*;
    use crate::unit::Unit;
    use crate::wire::{self, Round};
    use crate::{histogram, l2_exit::modes};

    pub(crate) fn round(mode: wire::Mode, ticks: &[u64], host_exits: i64) -> Round {
        let encoded = |ticks: &[u64]| {
            let (histogram, _) = histogram::of(ticks.iter().copied());
            histogram::encode(&histogram).unwrap()
        };
        Round {
            mode,
            kind: "cpuid".into(),
            samples: ticks.len() as u64,
            ticks: encoded(ticks),
            out_of_range: 0,
            empty_ticks: encoded(&[10]),
            host_exits,
        }
    }

    fn entry(l1: L1, mode: Mode, outcome: Outcome) -> Entry {
        Entry {
            l1,
            vmm: Vmm::Hypernest,
            mode,
            kind: "cpuid".into(),
            touch: (l1 == L1::Micro).then(|| "kvm-like".into()),
            cpus: 1,
            hv: modes::hv(mode).into(),
            shadow_vmcs: mode.shadow_vmcs(),
            runs: None,
            outcome,
        }
    }

    fn measured(l1: L1, rounds: &[&[u64]], exits: f64, kvm_log: &str, unit: &Unit) -> Outcome {
        let part = |divisor: u64| {
            let rounds: Vec<Vec<u64>> = rounds
                .iter()
                .map(|round| round.iter().map(|ticks| ticks / divisor).collect())
                .collect();
            Part::of_samples(&rounds, unit).unwrap()
        };
        let is_micro = l1 == L1::Micro;
        Outcome::Measured(Box::new(Measured {
            parts: Parts {
                l2_to_l1: is_micro.then(|| part(4)).flatten(),
                l1: is_micro.then(|| part(2)).flatten(),
                l1_to_l2: is_micro.then(|| part(4)).flatten(),
                round_trip: part(1).unwrap(),
            },
            out_of_order: 0,
            host_exits_per_l2_exit: Some(exits),
            host_exits_by_reason: is_micro.then(|| {
                [
                    ("VMRESUME".to_owned(), 1.0),
                    ("VMREAD".to_owned(), exits - 2.0),
                ]
                .into()
            }),
            stopwatch: None,
            empty: Part::of_samples(&[vec![10]], unit).unwrap(),
            facts: (!is_micro).then(|| L1Facts {
                kernel: "6.12.0-test".into(),
                command_line: "quiet".into(),
                clocksource: "hyperv_clocksource_tsc_page".into(),
                log: vec!["Hypervisor detected: Microsoft Hyper-V".into()],
                kvm_log: vec![kvm_log.into()],
            }),
        }))
    }

    pub(crate) fn report() -> Report {
        let unit = Unit {
            name: "ns".into(),
            ticks: 2.0,
            why: "the TSC ticks at 2000000 kHz".into(),
        };
        let evmcs = "kvm_intel: Using Hyper-V Enlightened VMCS";
        let results = vec![
            entry(
                L1::Linux,
                Mode::Evmcs,
                measured(L1::Linux, &[&[200, 200], &[200, 400]], 2.5, evmcs, &unit),
            ),
            entry(
                L1::Linux,
                Mode::Classic,
                measured(L1::Linux, &[&[1000, 1000]], 20.0, "", &unit),
            ),
            entry(
                L1::Micro,
                Mode::Classic,
                measured(L1::Micro, &[&[800, 840], &[820]], 9.0, "", &unit),
            ),
            entry(
                L1::Linux,
                Mode::Offered,
                Outcome::Failed {
                    why: "L1 crashed".into(),
                    console: "Kernel panic\nend".into(),
                    partial: None,
                },
            ),
            entry(
                L1::Linux,
                Mode::Svm,
                Outcome::LeftOut {
                    why: "SVM is AMD's".into(),
                },
            ),
        ];
        Report {
            version: VERSION,
            made_by: "hypernest-bench test".into(),
            command_line: vec!["hypernest-bench".into(), "l2-exit".into()],
            started: "2026-01-02T03:04:05Z".into(),
            environment: Environment {
                cpu_model: "A CPU".into(),
                kernel: "6.12".into(),
                ..Environment::default()
            },
            unit,
            interrupted: false,
            stopped_by: None,
            warnings: vec!["the TSC of this host is not invariant".into()],
            results,
            recommendations: Vec::new(),
        }
    }

    #[test]
    fn figures_are_in_units_over_all_rounds() {
        let report = report();
        let measured = report.measured(L1::Linux, Mode::Evmcs, "cpuid").unwrap();
        let all = &measured.parts.round_trip;
        assert_eq!(all.summary.samples, 4);
        assert!((all.summary.p50 - 100.0).abs() < 1.0);
        assert!((all.summary.max - 200.0).abs() < 1.0);
        assert_eq!((all.rounds.len(), all.out_of_range), (2, 0));
        let [low, high] = all.p50_ci.unwrap();
        assert!(low <= all.summary.p50 && high >= all.summary.p50 - 1.0);
        assert!(report.measured(L1::Linux, Mode::Offered, "cpuid").is_none());
        assert!(report.measured(L1::Micro, Mode::Evmcs, "cpuid").is_none());
        assert!(report.failed());
    }

    #[test]
    fn samples_that_are_too_long_are_counted() {
        let unit = crate::unit::unit(None, None);
        let part = Part::of_samples(&[vec![5, u64::MAX], vec![u64::MAX]], &unit);
        let part = part.unwrap().unwrap();
        assert_eq!((part.summary.samples, part.out_of_range), (3, 2));
        assert_eq!(Part::of_samples(&[vec![]], &unit).unwrap(), None);
    }

    #[test]
    fn json_keeps_a_report() {
        let report = report();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        // These names are an interface for other programs.
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let first = &value["results"][0];
        assert_eq!(first["l1"], "linux");
        assert_eq!(first["mode"], "evmcs");
        assert_eq!(first["outcome"], "measured");
        assert!(first["parts"]["round_trip"]["summary"]["p99_9"].is_number());
        assert!(first["host_exits_per_l2_exit"].is_number());
        assert_eq!(value["results"][4]["outcome"], "left-out");
        let other = text.replace("\"mode\":\"evmcs\"", "\"mode\":\"evmsc\"");
        let error = serde_json::from_str::<Report>(&other).unwrap_err();
        assert!(error.to_string().contains("\"evmsc\" is no mode"));
    }
}
