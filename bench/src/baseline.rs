//! `hypernest-bench baseline`: a result's main figures, kept in the repository, and the comparison of new
//! ones with them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hypernest_nested::l2exit::Kind;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::report::{self, FileError, Report};

/// Prints the medians and host exits of a result, or compares them with a baseline.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The l2-exit.json
    file: PathBuf,
    /// The output of an earlier run; no figure may differ from it by more than --within
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// The permitted difference, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    within: f64,
}

/// Errors of `hypernest-bench baseline`.
#[derive(Debug, Error)]
pub(crate) enum BaselineError {
    #[error(transparent)]
    Report(#[from] FileError),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no baseline", path.display())]
    NoBaseline {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// The text to print, and whether the result passes.
pub(crate) fn run(args: &Args) -> Result<(String, bool), BaselineError> {
    let baseline = Baseline::of(&report::read(&args.file)?);
    let Some(against) = &args.against else {
        // Maps of strings and numbers have a JSON form.
        let text = serde_json::to_string_pretty(&baseline).unwrap_or_default();
        return Ok((text + "\n", true));
    };
    let kept = read(against)?;
    let changes = baseline.changes(&kept, args.within / 100.0);
    let lines = baseline
        .kernel_note(&kept)
        .into_iter()
        .chain(changes.iter().cloned());
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    Ok((text, changes.is_empty()))
}

fn read(path: &Path) -> Result<Baseline, BaselineError> {
    let path = path.to_owned();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(BaselineError::Read { path, source }),
    };
    serde_json::from_str(&text).map_err(|source| BaselineError::NoBaseline { path, source })
}

/// The main figures of a result, as they are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Baseline {
    /// The unit of the medians.
    unit: String,
    /// The release of the host's kernel under which they were measured; `None` in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel: Option<String>,
    /// Keyed by `L1.MODE.TOUCH`, then by kind.
    results: BTreeMap<String, BTreeMap<String, Figures>>,
}

/// The figures of one kind in one mode.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Figures {
    /// The round trip's median.
    p50: f64,
    /// Host exits per L2 exit.
    host_exits: Option<f64>,
}

/// Tolerance for stray host exits: the host's timer now and then interrupts a guest.
const STRAY_EXITS: f64 = 0.25;
/// Kinds in which a guest waits for a timer: the number of host exits meanwhile is random.
const WAITING: [Kind; 4] = [Kind::Hlt, Kind::Timer, Kind::PreemptionTimer, Kind::Ipi];

impl Baseline {
    fn of(report: &Report) -> Self {
        let mut results: BTreeMap<String, BTreeMap<String, Figures>> = BTreeMap::new();
        for entry in &report.results {
            let Some(measured) = entry.measured() else {
                continue;
            };
            let mut name = format!("{}.{}", entry.l1.name(), entry.mode);
            if let Some(touch) = &entry.touch {
                name = format!("{name}.{touch}");
            }
            let figures = Figures {
                p50: round(measured.parts.round_trip.summary.p50),
                host_exits: measured.host_exits_per_l2_exit.map(round),
            };
            let of_mode = results.entry(name).or_default();
            of_mode.insert(entry.kind.clone(), figures);
        }
        Self {
            unit: report.unit.name.clone(),
            kernel: Some(report.environment.kernel.clone()),
            results,
        }
    }

    /// A note about another kernel of the same series; this alone is not a change, and the same limit
    /// applies.
    fn kernel_note(&self, kept: &Self) -> Option<String> {
        let (new, old) = (self.kernel.as_ref()?, kept.kernel.as_ref()?);
        (new != old && series(new) == series(old))
            .then(|| format!("note: the host's kernel is {new}, and these figures are of {old}"))
    }

    /// Descriptions of differences from `kept` of more than `within`, and of figures that only one of them
    /// has.
    fn changes(&self, kept: &Self, within: f64) -> Vec<String> {
        let mut changes = Vec::new();
        if self.unit != kept.unit {
            changes.push(format!("{} instead of {}", self.unit, kept.unit));
        }
        if let (Some(new), Some(old)) = (&self.kernel, &kept.kernel)
            && series(new) != series(old)
        {
            changes.push(format!(
                "the host's kernel is {new}, and these figures are of {old}: another series needs a \
                 baseline of its own"
            ));
        }
        for (mode, kinds) in &kept.results {
            for (kind, old) in kinds {
                let new = self.results.get(mode).and_then(|kinds| kinds.get(kind));
                match new {
                    None => changes.push(format!("{mode} {kind}: not measured any more")),
                    Some(new) => {
                        let waits = WAITING.iter().any(|waiting| waiting.name() == kind);
                        let differs = differences(*old, *new, within, waits);
                        changes.extend(differs.map(|what| format!("{mode} {kind}: {what}")));
                    }
                }
            }
        }
        for (mode, kinds) in &self.results {
            let known = kept.results.get(mode);
            let new = kinds
                .keys()
                .filter(|kind| !known.is_some_and(|k| k.contains_key(*kind)));
            changes.extend(new.map(|kind| format!("{mode} {kind}: new")));
        }
        changes
    }
}

fn differences(
    old: Figures,
    new: Figures,
    within: f64,
    waits: bool,
) -> impl Iterator<Item = String> {
    let percent = |old: f64, new: f64| (new / old - 1.0) * 100.0;
    let median = ((new.p50 - old.p50).abs() > within * old.p50).then(|| {
        let change = percent(old.p50, new.p50);
        format!("median {} instead of {} ({change:+.1} %)", new.p50, old.p50)
    });
    let exits = match (old.host_exits, new.host_exits) {
        (Some(old), Some(new)) if !waits && (new - old).abs() > (within * old).max(STRAY_EXITS) => {
            Some(format!("{new} host exits instead of {old}"))
        }
        (Some(_), None) => Some("host exits are not counted any more".to_owned()),
        _ => None,
    };
    median.into_iter().chain(exits)
}

/// `6.12` of `6.12.95+deb12-cloud-amd64`.
fn series(release: &str) -> &str {
    let mut dots = release.match_indices(|c: char| !c.is_ascii_digit());
    dots.nth(1).map_or(release, |(end, _)| &release[..end])
}

/// Rounds to two decimals, to keep files of figures readable.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(p50: f64, host_exits: f64) -> Baseline {
        let figures = Figures {
            p50,
            host_exits: Some(host_exits),
        };
        Baseline {
            unit: "emulated instructions".to_owned(),
            kernel: None,
            results: [(
                "micro.evmcs.kvm-like".to_owned(),
                [("cpuid".to_owned(), figures)].into(),
            )]
            .into(),
        }
    }

    #[test]
    fn two_percent_are_no_change_and_more_is_one() {
        let kept = baseline(1000.0, 2.0);
        assert_eq!(baseline(1020.0, 2.2).changes(&kept, 0.02), [""; 0]);
        assert_eq!(
            baseline(1021.0, 3.0).changes(&kept, 0.02),
            [
                "micro.evmcs.kvm-like cpuid: median 1021 instead of 1000 (+2.1 %)",
                "micro.evmcs.kvm-like cpuid: 3 host exits instead of 2",
            ]
        );
        assert_eq!(baseline(979.0, 2.0).changes(&kept, 0.02).len(), 1);
        assert_eq!(baseline(979.0, 2.0).changes(&kept, 0.03).len(), 0);
    }

    #[test]
    fn another_kernel_of_the_series_is_a_note_and_one_of_another_a_change() {
        let on = |kernel: &str, p50| Baseline {
            kernel: Some(kernel.to_owned()),
            ..baseline(p50, 2.0)
        };
        let kept = on("6.12.95+deb12-cloud-amd64", 1000.0);
        assert_eq!(kept.kernel_note(&kept), None);
        let newer = on("6.12.117+deb12-cloud-amd64", 1010.0);
        assert_eq!(newer.changes(&kept, 0.02), [""; 0]);
        assert_eq!(
            newer.kernel_note(&kept).unwrap(),
            "note: the host's kernel is 6.12.117+deb12-cloud-amd64, and these figures are of \
             6.12.95+deb12-cloud-amd64"
        );
        assert_eq!(on("6.12.117", 1021.0).changes(&kept, 0.02).len(), 1);
        let changes = on("7.3.4", 1000.0).changes(&kept, 0.02);
        assert!(changes[0].contains("another series"), "{changes:?}");
        assert_eq!(on("7.3.4", 1000.0).kernel_note(&kept), None);
        assert_eq!(on("6.1.12", 1000.0).changes(&kept, 0.02).len(), 1);
        // A baseline without a kernel applies to all kernels.
        assert_eq!(newer.changes(&baseline(1000.0, 2.0), 0.02), [""; 0]);
        for (release, wanted) in [
            ("6.12.95+x", "6.12"),
            ("7.3-rc1", "7.3"),
            ("6", "6"),
            ("", ""),
        ] {
            assert_eq!(series(release), wanted);
        }
    }

    #[test]
    fn what_is_missing_or_new_is_a_change() {
        let (kept, mut other) = (baseline(10.0, 2.0), baseline(10.0, 2.0));
        let kinds = other.results.values_mut().next().unwrap();
        let figures = kinds.remove("cpuid").unwrap();
        kinds.insert("hlt".to_owned(), figures);
        assert_eq!(
            other.changes(&kept, 0.02),
            [
                "micro.evmcs.kvm-like cpuid: not measured any more",
                "micro.evmcs.kvm-like hlt: new",
            ]
        );
        let mut waited = other.clone();
        let kinds = waited.results.values_mut().next().unwrap();
        kinds.values_mut().for_each(|f| f.host_exits = Some(3.0));
        assert_eq!(waited.changes(&other, 0.02), [""; 0]);
    }

    #[test]
    fn a_report_becomes_a_baseline_and_its_text_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let written = report::write(&report::tests::report(), directory.path()).unwrap();
        let mut args = Args {
            file: written[0].clone(),
            against: None,
            within: 0.0,
        };
        let (text, well) = run(&args).unwrap();
        assert!(well && text.contains("\"linux.evmcs\"") && text.contains("\"cpuid\""));
        let kept = directory.path().join("kept.json");
        fs::write(&kept, text).unwrap();
        args.against = Some(kept.clone());
        assert_eq!(run(&args).unwrap(), (String::new(), true));
        fs::write(&kept, "{}").unwrap();
        assert!(matches!(run(&args), Err(BaselineError::NoBaseline { .. })));
    }
}
