//! `--l1 manual`: results of l2probe, which a user ran in guests of guests that they started themselves, as one report.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hypernest::hyperv::HostHv;
use hypernest_nested::l2exit::Mode;
use l2probe::counts::Counts;
use l2probe::document::{self, Document, MAX_LEN, Outcome as ProbeOutcome, Trapped, Wsl};
use thiserror::Error;

use super::modes;
use crate::environment;
use crate::histogram::{self, HistogramError};
use crate::qemu;
use crate::report::{self, Entry, Environment, L1, Measured, Outcome, Part, Parts, Report, Vmm};
use crate::unit::Unit;

/// l2probe's name for intervals around nothing.
const EMPTY: &str = "empty";
/// More samples than any measurement has: what claims to have more is broken.
const MOST_SAMPLES: u64 = 1 << 32;

/// A result and what it was made with: `[qemu:]MODE=FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labelled {
    /// What ran L1.
    pub(super) vmm: Vmm,
    /// How.
    pub(super) mode: Mode,
    /// Where the result comes from.
    pub(super) file: PathBuf,
}

/// Takes a `--probe` apart.
pub(crate) fn labelled(text: &str) -> Result<Labelled, String> {
    let (label, file) = text
        .split_once('=')
        .filter(|(_, file)| !file.is_empty())
        .ok_or("it is [qemu:]MODE=FILE, as evmcs=l2probe.json")?;
    let (vmm, mode) = match label.split_once(':') {
        Some(("qemu", mode)) => (Vmm::Qemu, mode),
        Some(("hypernest", mode)) => (Vmm::Hypernest, mode),
        Some((other, _)) => return Err(format!("{other:?} is neither hypernest nor qemu")),
        None => (Vmm::Hypernest, label),
    };
    Ok(Labelled {
        vmm,
        mode: mode.parse().map_err(|e| format!("{mode:?}: {e}"))?,
        file: file.into(),
    })
}

/// Results that make no report.
#[derive(Debug, Error)]
pub(crate) enum ManualError {
    /// A file.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not l2probe's.
    #[error("{}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: document::Unreadable,
    },
    /// Figures that cannot be.
    #[error("{}: {what}", path.display())]
    Implausible {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A histogram.
    #[error(transparent)]
    Histogram(#[from] HistogramError),
}

/// One result.
pub(super) struct Run {
    /// What it was made with.
    pub(super) label: Labelled,
    /// What it says.
    pub(super) document: Document,
}

/// What the report's histograms and figures are in.
pub(super) struct Scale {
    /// The unit, in ticks.
    pub(super) unit: Unit,
    /// Ticks in a nanosecond.
    pub(super) ticks_per_ns: f64,
}

/// What to do, for a user who has no results yet; with QEMU's flags if `host` says what it can do.
pub(super) fn steps(host: Option<&HostHv>) -> String {
    let mut text = String::from(
        "To measure a guest's guest by hand, as WSL 2 in Windows (docs/measure-wsl2.md has all of it):\n\
         1. Start the same VM once for each mode that is to be compared, with:\n",
    );
    for &mode in Mode::ALL {
        let module = match mode.shadow_vmcs() {
            Some(on) => format!("  (kvm_intel.enable_shadow_vmcs={})", u8::from(on)),
            None => String::new(),
        };
        let hv = modes::hv(mode);
        let flags = match host.map(|host| qemu::cpu(hv, host, true)) {
            None => format!("--nested --hv {hv}"),
            Some(Ok(cpu)) => format!("-cpu {cpu}"),
            Some(Err(why)) => format!("not on this host: {why}"),
        };
        text.push_str(&format!("     {mode:20} {flags}{module}\n"));
    }
    text.push_str(
        "2. In its guest's Linux run l2probe, a static program that needs no root, and keep l2probe.json.\n\
         3. Merge the results, several of one mode if you have them:\n     \
         hypernest-bench l2-exit --l1 manual --probe classic=a.json --probe evmcs=b.json\n     \
         (where QEMU ran the VM: --probe qemu:evmcs=b.json)\n",
    );
    text
}

/// The report of all `probes`.
pub(super) fn report(probes: &[Labelled]) -> Result<Report, ManualError> {
    let runs = probes.iter().map(|label| {
        let document = read(&label.file)?;
        Ok(Run {
            label: label.clone(),
            document,
        })
    });
    merge(&runs.collect::<Result<Vec<_>, ManualError>>()?)
}

fn read(path: &Path) -> Result<Document, ManualError> {
    let file = |source| ManualError::File {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|opened| opened.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes))
        .map_err(file)?;
    let text = String::from_utf8_lossy(&bytes);
    Document::read(&text).map_err(|source| ManualError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn merge(runs: &[Run]) -> Result<Report, ManualError> {
    let ticks_per_ns = ticks_per_ns(runs)?;
    let why = match runs.first().and_then(|run| run.document.place.tsc.khz) {
        Some(khz) => format!("in L2 the TSC ticks at {khz:.0} kHz by the kernel's clock"),
        None => "by L2's clock, which cannot read the TSC".to_owned(),
    };
    let unit = Unit {
        name: "ns".to_owned(),
        ticks: ticks_per_ns,
        why,
    };
    let scale = Scale { unit, ticks_per_ns };
    let started = runs.iter().map(|run| run.document.started_unix).min();
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs(started.unwrap_or(0).min(1 << 40));
    let mut report = Report {
        version: report::VERSION,
        made_by: format!("hypernest-bench {}", env!("CARGO_PKG_VERSION")),
        command_line: std::env::args().collect(),
        started: environment::rfc3339(started),
        environment: seen_from_inside(runs),
        interrupted: false,
        stopped_by: None,
        warnings: warnings(runs),
        results: entries(L1::Manual, runs, &scale)?,
        recommendations: Vec::new(),
        unit: scale.unit,
    };
    report.recommendations = report::recommend(&report);
    Ok(report)
}

/// By the first run: how many ticks of the TSC a nanosecond is; 1 where L2 cannot read the TSC.
pub(super) fn ticks_per_ns(runs: &[Run]) -> Result<f64, ManualError> {
    let khz = runs.first().map_or(Ok(None), rate)?;
    Ok(khz.map_or(1.0, |khz| khz / 1e6))
}

/// The TSC's rate in a run, if it is known.
fn rate(run: &Run) -> Result<Option<f64>, ManualError> {
    match run.document.place.tsc.khz {
        // From a slow emulator's to more than any CPU's.
        Some(khz) if !(1e2..=1e8).contains(&khz) => Err(ManualError::Implausible {
            path: run.label.file.clone(),
            what: format!("a TSC of {khz} kHz"),
        }),
        khz => Ok(khz),
    }
}

/// The host is not seen from L2; what is, is the CPU.
fn seen_from_inside(runs: &[Run]) -> Environment {
    let all = |is: fn(&Run) -> bool| !runs.is_empty() && runs.iter().all(is);
    let first = runs.first().map(|run| &run.document.place);
    Environment {
        cpu_model: first.map_or_else(String::new, |place| place.cpu_model.clone()),
        kernel: "(not seen from L2)".to_owned(),
        tsc_invariant: all(|run| run.document.place.tsc.invariant),
        ..Environment::default()
    }
}

fn named(label: &Labelled) -> String {
    let vmm = match label.vmm {
        Vmm::Hypernest => "",
        Vmm::Qemu => "qemu:",
    };
    format!("{vmm}{}={}", label.mode, label.file.display())
}

/// Where a run was made, and what it said itself.
fn said(run: &Run) -> Vec<String> {
    let place = &run.document.place;
    let wsl = match place.wsl {
        Some(Wsl::Wsl1) => " (WSL 1)",
        Some(Wsl::Wsl2) => " (WSL 2)",
        None => "",
    };
    let hypervisor = place
        .hypervisor
        .as_ref()
        .map_or("none", |hypervisor| &hypervisor.signature);
    let trapped = match place.cpuid {
        Trapped::Yes => "virtualised",
        Trapped::No => "not virtualised",
        Trapped::Unknown => "perhaps virtualised",
    };
    let label = named(&run.label);
    let place = format!(
        "{label}: Linux {}{wsl}, clock source {}, hypervisor {hypervisor:?}, CPUID {trapped}, as L2 says; which mode it is, you say",
        place.kernel, place.clocksource
    );
    let notes = run.document.notes.iter();
    let notes = notes.map(|note| format!("{label}: {note}"));
    std::iter::once(place).chain(notes).collect()
}

/// What a reader must know of the runs before the figures.
pub(super) fn warnings(runs: &[Run]) -> Vec<String> {
    let said = runs.iter().flat_map(said);
    said.chain(differences(runs)).collect()
}

/// What makes runs hard to compare.
fn differences(runs: &[Run]) -> Vec<String> {
    let differ = |what: &str, of: &dyn Fn(&Run) -> String| {
        let mut values: Vec<_> = runs.iter().map(of).collect();
        values.sort();
        values.dedup();
        (values.len() > 1).then(|| {
            format!(
                "the runs differ in more than the mode: {what}: {}",
                values.join(" | ")
            )
        })
    };
    [
        differ("CPU", &|run| run.document.place.cpu_model.clone()),
        differ("L2's kernel", &|run| run.document.place.kernel.clone()),
        differ("L2's CPUs", &|run| run.document.place.cpus.to_string()),
        differ("clock source", &|run| {
            run.document.place.clocksource.clone()
        }),
        differ("hypervisor", &|run| {
            let hypervisor = &run.document.place.hypervisor;
            hypervisor
                .as_ref()
                .map_or_else(String::new, |hypervisor| hypervisor.signature.clone())
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// An entry for each kind that any run of a label has; runs of the same label are rounds of one measurement.
pub(super) fn entries(l1: L1, runs: &[Run], scale: &Scale) -> Result<Vec<Entry>, ManualError> {
    let mut labels: Vec<(Mode, Vmm)> = runs
        .iter()
        .map(|run| (run.label.mode, run.label.vmm))
        .collect();
    labels.sort_unstable();
    labels.dedup();
    let mut entries = Vec::new();
    for (mode, vmm) in labels {
        let of_label = || {
            let is = move |run: &&Run| run.label.mode == mode && run.label.vmm == vmm;
            runs.iter().filter(is)
        };
        let mut kinds: Vec<&str> = Vec::new();
        for measurement in of_label().flat_map(|run| &run.document.measurements) {
            if measurement.kind != EMPTY && !kinds.contains(&measurement.kind.as_str()) {
                kinds.push(&measurement.kind);
            }
        }
        let cpus = of_label().map(|run| run.document.place.cpus).max();
        let empty = part(of_label(), EMPTY, scale)?;
        for kind in kinds {
            let outcome = match part(of_label(), kind, scale)? {
                Some(round_trip) => Outcome::Measured(Box::new(Measured {
                    parts: Parts {
                        l2_to_l1: None,
                        l1: None,
                        l1_to_l2: None,
                        round_trip,
                    },
                    out_of_order: 0,
                    host_exits_per_l2_exit: None,
                    host_exits_by_reason: None,
                    stopwatch: None,
                    empty: empty.clone(),
                    facts: None,
                })),
                None => Outcome::LeftOut {
                    why: why_not(of_label(), kind),
                },
            };
            entries.push(Entry {
                l1,
                vmm,
                mode,
                kind: kind.to_owned(),
                touch: None,
                // Of L1's, L2 sees those that it has itself.
                cpus: u32::try_from(cpus.unwrap_or(0)).unwrap_or(u32::MAX),
                hv: modes::hv(mode).to_owned(),
                shadow_vmcs: mode.shadow_vmcs(),
                outcome,
            });
        }
    }
    Ok(entries)
}

fn why_not<'a>(runs: impl Iterator<Item = &'a Run>, kind: &str) -> String {
    let mut reasons = runs.flat_map(|run| &run.document.measurements);
    let why = reasons.find_map(|measurement| match &measurement.outcome {
        ProbeOutcome::Skipped { why } if measurement.kind == kind => Some(why.clone()),
        _ => None,
    });
    why.unwrap_or_else(|| "l2probe took no sample".to_owned())
}

/// All rounds of `kind`; `None` if there is no sample.
fn part<'a>(
    runs: impl Iterator<Item = &'a Run>,
    kind: &str,
    scale: &Scale,
) -> Result<Option<Part>, ManualError> {
    let mut rounds = Vec::new();
    for run in runs {
        let Some((probe_unit, counts)) = run.document.rounds(kind) else {
            continue;
        };
        // Ticks of the report for one of the run.
        let factor = match (probe_unit, rate(run)?) {
            (document::Unit::Ns, _) => scale.ticks_per_ns,
            (document::Unit::Ticks, Some(khz)) => scale.ticks_per_ns / (khz / 1e6),
            (document::Unit::Ticks, None) => {
                return Err(ManualError::Implausible {
                    path: run.label.file.clone(),
                    what: format!("{kind} is in ticks of a TSC whose rate is not given"),
                });
            }
        };
        for counts in counts {
            if counts.len() > MOST_SAMPLES {
                return Err(ManualError::Implausible {
                    path: run.label.file.clone(),
                    what: format!("{} samples of {kind} in a round", counts.len()),
                });
            }
            rounds.push(encoded(counts, factor)?);
        }
    }
    Ok(Part::of_encoded(rounds, &scale.unit)?)
}

fn encoded(counts: &Counts, factor: f64) -> Result<String, HistogramError> {
    let mut histogram = histogram::new();
    for (value, count) in counts.iter() {
        // The conversion saturates, and so does the histogram.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "see above"
        )]
        let ticks = (value as f64 * factor).round() as u64;
        histogram.saturating_record_n(ticks, count);
    }
    histogram::encode(&histogram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use l2probe::document::{FORMAT, Measurement, Place, Tsc, VERSION};

    fn run(label: &str, khz: Option<f64>, cpuid: &[u64], sleep: &[u64]) -> Run {
        let measured = |kind: &str, unit, values: &[u64]| Measurement {
            kind: kind.into(),
            outcome: ProbeOutcome::Measured {
                unit,
                rounds: vec![values.iter().copied().collect()],
            },
        };
        Run {
            label: labelled(label).unwrap(),
            document: Document {
                format: FORMAT.into(),
                version: VERSION,
                made_by: String::new(),
                command_line: vec![],
                started_unix: 1_735_689_599,
                place: Place {
                    kernel: "6.6-WSL2".into(),
                    cpu_model: "A CPU".into(),
                    cpus: 2,
                    tsc: Tsc {
                        khz,
                        spread: 0.0,
                        invariant: true,
                    },
                    ..Place::default()
                },
                measurements: vec![
                    measured("empty", document::Unit::Ticks, &[20]),
                    measured("cpuid", document::Unit::Ticks, cpuid),
                    measured("hlt-wake", document::Unit::Ns, sleep),
                    Measurement {
                        kind: "ipi-wake".into(),
                        outcome: ProbeOutcome::Skipped {
                            why: "one CPU".into(),
                        },
                    },
                ],
                notes: vec!["beware".into()],
            },
        }
    }

    fn p50(report: &Report, mode: Mode, kind: &str) -> f64 {
        let mut of = report
            .results
            .iter()
            .filter(|e| e.mode == mode && e.kind == kind);
        let measured = of.find_map(Entry::measured).expect("figures");
        measured.parts.round_trip.summary.p50
    }

    fn near(value: f64, wanted: f64) -> bool {
        (value - wanted).abs() <= wanted / 500.0
    }

    #[test]
    fn labels() {
        let probe = labelled("evmcs+emsr=dir/a=b.json").unwrap();
        assert_eq!((probe.mode, probe.vmm), (Mode::EvmcsEmsr, Vmm::Hypernest));
        assert_eq!(probe.file, Path::new("dir/a=b.json"));
        assert_eq!(labelled("qemu:classic=x").unwrap().vmm, Vmm::Qemu);
        assert!(labelled("xen:classic=x").unwrap_err().contains("neither"));
        assert!(labelled("fast=x").unwrap_err().contains("classic+shadow"));
        for text in ["evmcs", "evmcs=", "=x", ""] {
            assert!(labelled(text).is_err(), "{text}");
        }
    }

    #[test]
    fn runs_with_different_clocks_come_to_the_same_unit() {
        let runs = [
            run("evmcs=a", Some(2e6), &[1000, 1000], &[500]),
            run("evmcs=b", Some(4e6), &[2000, 2000], &[500]),
            run("classic=c", Some(1e6), &[1000], &[700]),
        ];
        let report = merge(&runs).unwrap();
        assert_eq!(report.started, "2024-12-31T23:59:59Z");
        assert!(near(p50(&report, Mode::Evmcs, "cpuid"), 500.0));
        assert!(near(p50(&report, Mode::Classic, "cpuid"), 1000.0));
        assert!(near(p50(&report, Mode::Evmcs, "hlt-wake"), 500.0));
        assert!(near(p50(&report, Mode::Classic, "hlt-wake"), 700.0));
        let cpuid = &report.results.iter().find(|e| e.kind == "cpuid").unwrap();
        let rounds = &cpuid.measured().unwrap().parts.round_trip.rounds;
        assert_eq!((cpuid.mode, rounds.len()), (Mode::Classic, 1));
        // Each kind but the empty interval, for each label.
        assert_eq!(report.results.len(), 6);
        let left_out = &report.results[2].outcome;
        assert_eq!(
            left_out,
            &Outcome::LeftOut {
                why: "one CPU".into()
            }
        );
        assert!(!report.failed());
        let warnings = report.warnings.join("\n");
        assert!(warnings.contains("evmcs=a: beware") && warnings.contains("6.6-WSL2"));
        assert!(!warnings.contains("differ"));
        assert!(report::table(&report, None).contains("cpuid"));
    }

    #[test]
    fn runs_that_differ_in_more_than_the_mode_are_named() {
        let mut runs = [
            run("evmcs=a", Some(2e6), &[1], &[1]),
            run("classic=b", Some(2e6), &[1], &[1]),
        ];
        runs[1].document.place.kernel = "6.1".into();
        let warnings = merge(&runs).unwrap().warnings.join("\n");
        assert!(
            warnings.contains("L2's kernel: 6.1 | 6.6-WSL2"),
            "{warnings}"
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for khz in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(merge(&[run("svm=a", Some(khz), &[1], &[1])]).is_err());
        }
        // Ticks that nobody can convert, and more samples than there can be.
        let error = merge(&[run("svm=a", None, &[1], &[1])]).err().unwrap();
        assert!(error.to_string().contains("a: "), "{error}");
        let mut many = run("svm=a", Some(1e6), &[1], &[1]);
        many.document.measurements[1].outcome = ProbeOutcome::Measured {
            unit: document::Unit::Ticks,
            rounds: vec![vec![(u64::MAX, u64::MAX)].into()],
        };
        assert!(merge(&[many]).is_err());
    }

    #[test]
    fn a_kernel_that_forbids_the_tsc_still_has_a_clock() {
        let mut without = run("svm=a", None, &[], &[800]);
        without.document.measurements.drain(..2);
        let report = merge(&[without]).unwrap();
        assert!(near(p50(&report, Mode::Svm, "hlt-wake"), 800.0));
    }

    #[test]
    fn the_steps_name_every_mode() {
        let steps = steps(None);
        assert!(Mode::ALL.iter().all(|mode| steps.contains(mode.name())));
        assert!(steps.contains("enable_shadow_vmcs=0"));
    }

    #[test]
    fn files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p.json");
        let made = run("svm=a", Some(1e6), &[1], &[1]).document;
        std::fs::write(&path, made.line().unwrap()).unwrap();
        let label = format!("svm={}", path.display());
        assert_eq!(
            report(&[labelled(&label).unwrap()]).unwrap().results.len(),
            3
        );
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(
            report(&[labelled(&label).unwrap()]),
            Err(ManualError::Unreadable { .. })
        ));
        assert!(matches!(
            report(&[labelled("svm=/nowhere/x").unwrap()]),
            Err(ManualError::File { .. })
        ));
    }
}
