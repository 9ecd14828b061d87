//! `--l1 manual`: one report of results of l2probe, which a user ran in nested guests that they started
//! themselves.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hypernest::cpuid::CpuVendor;
use hypernest::hyperv::HostHv;
use hypernest_nested::l2exit::Mode;
use l2probe::document::{Document, MAX_LEN};

use super::modes;
use super::probed::{Labelled, ProbedError, Run, Scale, entries, ticks_per_ns, warnings};
use crate::environment;
use crate::qemu;
use crate::report::{self, Environment, L1, Report, Vmm};
use crate::unit::Unit;

/// Parses the value of `--probe`.
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

/// Instructions for a user who has no results yet; with QEMU's flags if `host` is given.
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
        let foreign = |host: &HostHv| mode.is_svm() != (host.vendor == CpuVendor::Amd);
        if host.is_some_and(foreign) {
            text.push_str(&format!("     {mode:20} not on this host's CPU\n"));
            continue;
        }
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
pub(super) fn report(probes: &[Labelled]) -> Result<Report, ProbedError> {
    let runs = probes.iter().map(|label| {
        let document = read(&label.file)?;
        Ok(Run {
            label: label.clone(),
            document,
        })
    });
    merge(&runs.collect::<Result<Vec<_>, ProbedError>>()?)
}

fn read(path: &Path) -> Result<Document, ProbedError> {
    let file = |source| ProbedError::File {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|opened| opened.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes))
        .map_err(file)?;
    let text = String::from_utf8_lossy(&bytes);
    Document::read(&text).map_err(|source| ProbedError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn merge(runs: &[Run]) -> Result<Report, ProbedError> {
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

/// L2 cannot see the host, except for its CPU.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Entry, Outcome};
    use l2probe::document::{self, Outcome as ProbeOutcome};
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
                round: None,
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
        // Every kind except the empty interval, for each label.
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
        assert!(report::table(&report, report::Details::default()).contains("cpuid"));
    }

    /// Samples around `ticks`, enough of them for a comparison.
    fn many(ticks: u64) -> Vec<u64> {
        (0..200).map(|n| ticks + ticks * (n % 20) / 4000).collect()
    }

    #[test]
    fn two_runs_in_one_vm_under_two_labels_are_undecided_and_offered_is_not_used() {
        let runs = [
            run("classic+shadow=a", Some(2e6), &many(10_000), &many(5000)),
            run("evmcs+emsr=b", Some(2e6), &many(10_500), &many(5010)),
        ];
        let report = merge(&runs).unwrap();
        let text = report::table(&report, report::Details::default());
        let subject = "- hv-evmcs with hv-emsr-bitmap, against shadow VMCS: ";
        assert!(
            text.contains(&format!("{subject}makes no difference here")),
            "{text}"
        );
        assert!(text.contains("1.05x? [1.0"), "{text}");
        assert!(
            text.contains("eVMCS offered, with its MSR bitmap") && !text.contains("eVMCS used")
        );
        let directory = tempfile::tempdir().unwrap();
        report::write(&report, directory.path()).unwrap();
        let page = std::fs::read_to_string(directory.path().join("l2-exit.html")).unwrap();
        assert!(
            !page.contains("ratio more") && page.contains("ratio unsure"),
            "red"
        );
        assert!(!page.contains("eVMCS used"));

        let alone = |label| run(label, Some(2e6), &many(10_500), &[]);
        let undecided = merge(&[
            run("classic+shadow=a", Some(2e6), &many(10_000), &[]),
            alone("evmcs+emsr=b"),
        ]);
        let text = report::table(&undecided.unwrap(), report::Details::default());
        assert!(
            text.contains(&format!("{subject}undecided (CPUID exits 1.05")),
            "{text}"
        );
        assert!(text.contains("run more"), "{text}");
    }

    #[test]
    fn an_interval_is_over_runs_where_there_are_several() {
        let report = merge(&[
            run("svm=a", Some(2e6), &many(10_000), &[]),
            run("svm=b", Some(2e6), &many(10_500), &[]),
        ]);
        let report = report.unwrap();
        let entry = report
            .results
            .iter()
            .find(|entry| entry.kind == "cpuid")
            .unwrap();
        assert_eq!(entry.runs, Some(2));
        let [low, high] = entry
            .measured()
            .unwrap()
            .parts
            .round_trip
            .interval()
            .unwrap();
        assert!(low < 5050.0 && high > 5200.0, "{low} {high}");
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
        // Ticks of an unknown rate, and more samples than are possible.
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
            Err(ProbedError::Unreadable { .. })
        ));
        assert!(matches!(
            report(&[labelled("svm=/nowhere/x").unwrap()]),
            Err(ProbedError::File { .. })
        ));
    }
}
