//! The result of `l2-exit`, and its forms: JSON, an HDR histogram log, a table.

mod files;
mod table;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub(crate) use files::{FileError, read, write};
pub(crate) use table::table;

use crate::histogram::{self, HistogramError};
use crate::l2_exit::configuration::Configuration;
use crate::unit::Unit;
use crate::wire::Round;

/// The version of the JSON form.
pub(crate) const VERSION: u32 = 1;

/// The whole result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// The program that made it.
    pub(crate) made_by: String,
    /// The host.
    pub(crate) host: HostFacts,
    /// What times are in, unless they say ticks.
    pub(crate) unit: Unit,
    /// The words on L1's command line.
    pub(crate) l1_command_line: String,
    /// What was measured, failed, or was left out.
    pub(crate) configurations: Vec<Entry>,
}

/// The host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostFacts {
    /// Its CPU's name.
    pub(crate) cpu: String,
    /// Its kernel's release.
    pub(crate) kernel: String,
    /// If it is an emulated host of the lab: `intel` or `amd`.
    pub(crate) lab: Option<String>,
}

/// One configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Which.
    pub(crate) name: Configuration,
    /// L1's enlightenments, as for `--hv`.
    pub(crate) hv: String,
    /// The host's `enable_shadow_vmcs`, where it matters.
    pub(crate) shadow_vmcs: Option<bool>,
    /// What came of it.
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// What came of a configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Figures.
    Measured(Box<Measured>),
    /// It was tried, without success.
    Failed {
        /// Why.
        why: String,
        /// The end of L1's console.
        console: String,
    },
    /// It was not tried.
    LeftOut {
        /// Why.
        why: String,
    },
}

/// The figures of a configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// L1's kernel.
    pub(crate) l1_kernel: String,
    /// L1's clock source.
    pub(crate) l1_clocksource: String,
    /// What L1's kernel said about its host.
    pub(crate) l1_log: Vec<String>,
    /// What it said when its KVM was loaded.
    pub(crate) l1_kvm_log: Vec<String>,
    /// All rounds together, in units.
    pub(crate) all: Summary,
    /// Each round, in units.
    pub(crate) each: Vec<Summary>,
    /// The median of an interval around nothing, in units.
    pub(crate) empty_p50: f64,
    /// How often L1's vCPU exited to the host, for each exit of L2.
    pub(crate) host_exits_per_l2_exit: f64,
    /// Each round as L1 reported it, histograms in TSC ticks.
    pub(crate) rounds: Vec<Round>,
}

/// A histogram in figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "names of statistics")]
pub(crate) struct Summary {
    pub(crate) samples: u64,
    pub(crate) min: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) max: f64,
    pub(crate) mean: f64,
}

impl Summary {
    fn of(ticks: &Histogram<u64>, unit: &Unit) -> Self {
        let in_units = |ticks: u64| ticks as f64 / unit.ticks;
        let quantile = |q| in_units(ticks.value_at_quantile(q));
        Self {
            samples: ticks.len(),
            min: in_units(ticks.min()),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p99_9: quantile(0.999),
            max: in_units(ticks.max()),
            mean: ticks.mean() / unit.ticks,
        }
    }
}

/// What L1 said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct L1Facts {
    /// Its kernel.
    pub(crate) kernel: String,
    /// Its clock source.
    pub(crate) clocksource: String,
    /// About its host.
    pub(crate) log: Vec<String>,
    /// When its KVM was loaded.
    pub(crate) kvm_log: Vec<String>,
}

impl Measured {
    /// The figures of `rounds`, of which there must be one.
    pub(crate) fn new(
        l1: L1Facts,
        rounds: Vec<Round>,
        unit: &Unit,
    ) -> Result<Self, HistogramError> {
        let decode = |text: fn(&Round) -> &String| {
            rounds
                .iter()
                .map(|round| histogram::decode(text(round)))
                .collect::<Result<Vec<_>, _>>()
        };
        let ticks = decode(|round| &round.ticks)?;
        let empty = histogram::sum(&decode(|round| &round.empty_ticks)?)?;
        let exits: i64 = rounds.iter().map(|round| round.host_exits).sum();
        let all = Summary::of(&histogram::sum(&ticks)?, unit);
        Ok(Self {
            l1_kernel: l1.kernel,
            l1_clocksource: l1.clocksource,
            l1_log: l1.log,
            l1_kvm_log: l1.kvm_log,
            all,
            each: ticks.iter().map(|h| Summary::of(h, unit)).collect(),
            empty_p50: Summary::of(&empty, unit).p50,
            host_exits_per_l2_exit: exits as f64 / all.samples.max(1) as f64,
            rounds,
        })
    }
}

impl Report {
    /// The figures of a configuration.
    pub(crate) fn measured(&self, name: Configuration) -> Option<&Measured> {
        self.configurations
            .iter()
            .find(|entry| entry.name == name)
            .and_then(|entry| match &entry.outcome {
                Outcome::Measured(measured) => Some(&**measured),
                _ => None,
            })
    }

    /// Whether something was tried without success.
    pub(crate) fn failed(&self) -> bool {
        self.configurations
            .iter()
            .any(|entry| matches!(entry.outcome, Outcome::Failed { .. }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::Mode;

    pub(crate) fn round(mode: Mode, ticks: &[u64], host_exits: i64) -> Round {
        Round {
            mode,
            kind: "cpuid".into(),
            samples: ticks.len() as u64,
            ticks: histogram::encode(&histogram::of(ticks.iter().copied())).unwrap(),
            empty_ticks: histogram::encode(&histogram::of([10])).unwrap(),
            host_exits,
        }
    }

    pub(crate) fn entry(
        name: Configuration,
        rounds: Vec<Round>,
        unit: &Unit,
        kvm_log: &str,
    ) -> Entry {
        let l1 = L1Facts {
            kernel: "6.12.0-test".into(),
            clocksource: "hyperv_clocksource_tsc_page".into(),
            log: vec!["Hypervisor detected: Microsoft Hyper-V".into()],
            kvm_log: vec![kvm_log.into()],
        };
        Entry {
            name,
            hv: name.hv().into(),
            shadow_vmcs: name.shadow(),
            outcome: Outcome::Measured(Box::new(Measured::new(l1, rounds, unit).unwrap())),
        }
    }

    pub(crate) fn report() -> Report {
        let unit = Unit {
            name: "ns".into(),
            ticks: 2.0,
            why: "the TSC ticks at 2000000 kHz".into(),
        };
        Report {
            version: VERSION,
            made_by: "hypernest-bench test".into(),
            host: HostFacts {
                cpu: "A CPU".into(),
                kernel: "6.12".into(),
                lab: None,
            },
            l1_command_line: "quiet".into(),
            configurations: vec![
                entry(
                    Configuration::Evmcs,
                    vec![
                        round(Mode::Evmcs, &[200, 200], 4),
                        round(Mode::Evmcs, &[200, 400], 6),
                    ],
                    &unit,
                    "kvm_intel: Using Hyper-V Enlightened VMCS",
                ),
                entry(
                    Configuration::Classic,
                    vec![round(Mode::Vmcs, &[1000, 1000], 40)],
                    &unit,
                    "",
                ),
                Entry {
                    name: Configuration::Offered,
                    hv: "nested".into(),
                    shadow_vmcs: Some(false),
                    outcome: Outcome::Failed {
                        why: "L1 crashed".into(),
                        console: "Kernel panic\nend".into(),
                    },
                },
                Entry {
                    name: Configuration::Svm,
                    hv: "nested,-evmcs".into(),
                    shadow_vmcs: None,
                    outcome: Outcome::LeftOut {
                        why: "SVM is AMD's".into(),
                    },
                },
            ],
            unit,
        }
    }

    #[test]
    fn figures_are_in_units_over_all_rounds() {
        let report = report();
        let measured = report.measured(Configuration::Evmcs).unwrap();
        assert_eq!(measured.all.samples, 4);
        assert!((measured.all.p50 - 100.0).abs() < 1.0);
        assert!((measured.all.max - 200.0).abs() < 1.0);
        assert_eq!(measured.each.len(), 2);
        assert!((measured.host_exits_per_l2_exit - 2.5).abs() < 1e-9);
        assert!((measured.empty_p50 - 5.0).abs() < 0.1);
        assert!(report.measured(Configuration::Offered).is_none());
        assert!(report.failed());
    }

    #[test]
    fn json_keeps_a_report() {
        let report = report();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        // Names that other programs rely on.
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let first = &value["configurations"][0];
        assert_eq!(first["name"], "evmcs");
        assert_eq!(first["outcome"], "measured");
        assert!(first["all"]["p99_9"].is_number());
        assert!(first["host_exits_per_l2_exit"].is_number());
        assert_eq!(value["configurations"][3]["outcome"], "left-out");
    }
}
