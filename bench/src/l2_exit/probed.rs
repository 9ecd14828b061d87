//! Results of l2probe as entries of a report.

use std::io;
use std::path::PathBuf;

use hypernest_nested::l2exit::Mode;
use l2probe::counts::Counts;
use l2probe::document::{self, Document, Outcome as ProbeOutcome, Trapped, Wsl};
use thiserror::Error;

use super::modes;
use crate::histogram::{self, HistogramError};
use crate::report::{Entry, L1, Measured, Outcome, Part, Parts, Vmm};
use crate::unit::Unit;

/// l2probe's name for intervals around nothing.
const EMPTY: &str = "empty";
/// More samples than any measurement has: a result with more is malformed.
const MOST_SAMPLES: u64 = 1 << 32;

/// A result and how it was measured: `[qemu:]MODE=FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labelled {
    /// The VMM of L1.
    pub(super) vmm: Vmm,
    pub(super) mode: Mode,
    /// The result's file.
    pub(super) file: PathBuf,
}

/// Errors of reading results of l2probe.
#[derive(Debug, Error)]
pub(crate) enum ProbedError {
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// Not a result of l2probe.
    #[error("{}", path.display())]
    Unreadable {
        path: PathBuf,
        source: document::Unreadable,
    },
    /// Implausible figures.
    #[error("{}: {what}", path.display())]
    Implausible {
        path: PathBuf,
        /// The error.
        what: String,
    },
    #[error(transparent)]
    Histogram(#[from] HistogramError),
}

/// One result.
pub(super) struct Run {
    /// How it was measured.
    pub(super) label: Labelled,
    /// The result.
    pub(super) document: Document,
}

/// The unit of the report's histograms and figures.
pub(super) struct Scale {
    /// The unit, in ticks.
    pub(super) unit: Unit,
    /// Ticks per nanosecond.
    pub(super) ticks_per_ns: f64,
}

/// The ticks of the TSC per nanosecond, from the first run; 1 if L2 cannot read the TSC.
pub(super) fn ticks_per_ns(runs: &[Run]) -> Result<f64, ProbedError> {
    let khz = runs.first().map_or(Ok(None), rate)?;
    Ok(khz.map_or(1.0, |khz| khz / 1e6))
}

/// The TSC's rate in a run, if it is available.
pub(super) fn rate(run: &Run) -> Result<Option<f64>, ProbedError> {
    match run.document.place.tsc.khz {
        // From a slow emulator's rate to more than any CPU's.
        Some(khz) if !(1e2..=1e8).contains(&khz) => Err(ProbedError::Implausible {
            path: run.label.file.clone(),
            what: format!("a TSC of {khz} kHz"),
        }),
        khz => Ok(khz),
    }
}

fn named(label: &Labelled) -> String {
    let vmm = match label.vmm {
        Vmm::Hypernest => "",
        Vmm::Qemu => "qemu:",
    };
    format!("{vmm}{}={}", label.mode, label.file.display())
}

/// The environment of a run, as the run reported it.
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
        Trapped::Yes => "virtualized",
        Trapped::No => "not virtualized",
        Trapped::Unknown => "perhaps virtualized",
    };
    let label = named(&run.label);
    let place = format!(
        "{label}: Linux {}{wsl}, clock source {}, hypervisor {hypervisor:?}, CPUID {trapped}, as L2 says; \
         the mode is the one you named",
        place.kernel, place.clocksource
    );
    let notes = run.document.notes.iter();
    let notes = notes.map(|note| format!("{label}: {note}"));
    std::iter::once(place).chain(notes).collect()
}

/// Warnings for the reader of the figures.
pub(super) fn warnings(runs: &[Run]) -> Vec<String> {
    let said = runs.iter().flat_map(said);
    said.chain(differences(runs)).collect()
}

/// Differences that make runs hard to compare.
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

/// An entry for each kind that any run of a label has; runs of the same label make one measurement.
pub(super) fn entries(l1: L1, runs: &[Run], scale: &Scale) -> Result<Vec<Entry>, ProbedError> {
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
                // Of L1's CPUs, L2 sees only its own.
                cpus: u32::try_from(cpus.unwrap_or(0)).unwrap_or(u32::MAX),
                hv: modes::hv(mode).to_owned(),
                shadow_vmcs: mode.shadow_vmcs(),
                runs: u32::try_from(of_label().count()).ok(),
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

/// All rounds of `kind`, run by run; `None` if there is no sample.
fn part<'a>(
    runs: impl Iterator<Item = &'a Run>,
    kind: &str,
    scale: &Scale,
) -> Result<Option<Part>, ProbedError> {
    let mut all = Vec::new();
    for run in runs {
        let Some((probe_unit, counts)) = run.document.rounds(kind) else {
            continue;
        };
        let mut rounds = Vec::new();
        // Ticks of the report per tick of the run.
        let factor = match (probe_unit, rate(run)?) {
            (document::Unit::Ns, _) => scale.ticks_per_ns,
            (document::Unit::Ticks, Some(khz)) => scale.ticks_per_ns / (khz / 1e6),
            (document::Unit::Ticks, None) => {
                return Err(ProbedError::Implausible {
                    path: run.label.file.clone(),
                    what: format!("{kind} is in ticks of a TSC whose rate is not given"),
                });
            }
        };
        for counts in counts {
            if counts.len() > MOST_SAMPLES {
                return Err(ProbedError::Implausible {
                    path: run.label.file.clone(),
                    what: format!("{} samples of {kind} in a round", counts.len()),
                });
            }
            rounds.push(encoded(counts, factor)?);
        }
        all.push(rounds);
    }
    Ok(Part::of_runs(all, &scale.unit)?)
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
        histogram::record(&mut histogram, ticks, count);
    }
    histogram::encode(&histogram)
}
