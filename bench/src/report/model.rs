//! The result of `l2-exit` as data; its JSON form is derived from these types by [`serde`].

use std::collections::BTreeMap;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use hypernest_nested::l2exit::Mode;
use serde::{Deserialize, Serialize};

use crate::bootstrap;
use crate::histogram::{self, HistogramError};
use crate::unit::Unit;

/// The version of the JSON form. A change that breaks readers raises it.
pub(crate) const VERSION: u32 = 2;

/// The kind of an entry that stands for every kind: a mode that was left out or failed as a whole.
pub(crate) const ALL_KINDS: &str = "*";

/// The whole result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// The program that made it.
    pub(crate) made_by: String,
    /// Its whole command line.
    pub(crate) command_line: Vec<String>,
    /// The time of the start, by RFC 3339, in UTC.
    pub(crate) started: String,
    /// The environment of the measurement.
    pub(crate) environment: Environment,
    /// The unit of times that are not in ticks.
    pub(crate) unit: Unit,
    /// A user ended it early: there may be fewer results and fewer samples than requested.
    pub(crate) interrupted: bool,
    /// The reason why the repetitions ended: `precision`, `max-cycles` or `time-limit`; `None` if
    /// measurements are not repeated until they are precise.
    pub(crate) stopped_by: Option<StoppedBy>,
    /// Circumstances that limit the validity of the figures.
    pub(crate) warnings: Vec<String>,
    /// The measurements: complete, failed or left out.
    pub(crate) results: Vec<Entry>,
    /// Conclusions from the results.
    pub(crate) recommendations: Vec<Recommendation>,
}

/// The reason why the cycles ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StoppedBy {
    /// Every median's interval has the requested precision.
    Precision,
    /// `--max-cycles`.
    MaxCycles,
    /// `--time-limit`.
    TimeLimit,
}

/// The environment of a measurement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// The CPU's name.
    pub(crate) cpu_model: String,
    /// Its microcode's revision, as the kernel shows it.
    pub(crate) microcode: Option<String>,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The parameters of `kvm` and of `kvm_intel` or `kvm_amd`, as they were at the start.
    pub(crate) modules: BTreeMap<String, BTreeMap<String, String>>,
    /// The kernel's report on each vulnerability of the CPU.
    pub(crate) mitigations: BTreeMap<String, String>,
    /// `on`, `off`, `forceoff`, `notsupported`, `notimplemented`.
    pub(crate) smt: Option<String>,
    /// The frequency governor of the CPU under measurement.
    pub(crate) governor: Option<String>,
    /// The TSC's frequency, if KVM reports it.
    pub(crate) tsc_khz: Option<u32>,
    /// The TSC ticks at one rate and does not stop.
    pub(crate) tsc_invariant: bool,
    /// The name of an emulated host of the lab: `intel` or `amd`.
    pub(crate) lab: Option<String>,
    /// The host CPUs to which the vCPUs were bound, the boot vCPU's first; empty if they were not.
    pub(crate) pinned_to: Vec<u32>,
    /// The resolution of the host's timers: 1 ns with high-resolution timers, else its tick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timer_resolution_ns: Option<u64>,
}

/// The kind of L1.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum L1 {
    /// The micro-hypervisor that comes with this program.
    Micro,
    /// A Linux kernel with its KVM.
    Linux,
    /// A kernel of the user's.
    #[value(skip)]
    Image,
    /// Any L1 that a user runs by hand, with l2probe in its guest.
    Manual,
}

impl L1 {
    /// The name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Micro => "micro",
            Self::Linux => "linux",
            Self::Image => "image",
            Self::Manual => "manual",
        }
    }
}

/// The VMM of L1.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Vmm {
    /// hypernest itself.
    Hypernest,
    /// QEMU.
    Qemu,
}

/// One measurement: a kind of exit in a mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The kind of L1.
    pub(crate) l1: L1,
    /// The VMM of L1.
    pub(crate) vmm: Vmm,
    /// The mode in which L1 ran L2.
    #[serde(with = "by_name")]
    pub(crate) mode: Mode,
    /// The kind of exit.
    pub(crate) kind: String,
    /// The touch profile of L1, if there was one.
    pub(crate) touch: Option<String>,
    /// L1's vCPUs.
    pub(crate) cpus: u32,
    /// L1's enlightenments, as for `--hv`.
    pub(crate) hv: String,
    /// The host's `enable_shadow_vmcs`, if it matters.
    pub(crate) shadow_vmcs: Option<bool>,
    /// The number of results of l2probe in this entry, each from its own run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) runs: Option<u32>,
    /// The outcome.
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

impl Entry {
    /// The figures of a complete measurement.
    pub(crate) fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed { .. } | Outcome::LeftOut { .. } => None,
        }
    }
}

/// The outcome of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Complete, with figures.
    Measured(Box<Measured>),
    /// The measurement failed.
    Failed {
        /// The reason.
        why: String,
        /// The end of L1's console, and the last exit that L1 saw.
        console: String,
        /// The figures until then.
        partial: Option<Box<Measured>>,
    },
    /// It was not measured.
    LeftOut {
        /// The reason.
        why: String,
    },
}

/// The figures of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// The times.
    pub(crate) parts: Parts,
    /// Samples that are in none of the parts, because their stamps were not in order.
    pub(crate) out_of_order: u64,
    /// Exits of L1's vCPUs to the host for each exit of L2.
    pub(crate) host_exits_per_l2_exit: Option<f64>,
    /// The same by KVM's reason; counted in a separate run that is not timed.
    pub(crate) host_exits_by_reason: Option<BTreeMap<String, f64>>,
    /// All samples together, by one pair of clock readings around each round, in units.
    pub(crate) stopwatch: Option<f64>,
    /// The interval around nothing.
    pub(crate) empty: Option<Part>,
    /// L1's report about itself, if it is an L1 that sends one.
    pub(crate) facts: Option<L1Facts>,
}

/// A round trip and its parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// From L2, before the exit, to L1's first instruction.
    pub(crate) l2_to_l1: Option<Part>,
    /// From there to L1's last instruction before it resumes L2.
    pub(crate) l1: Option<Part>,
    /// From there to L2's first instruction.
    pub(crate) l1_to_l2: Option<Part>,
    /// The whole round trip.
    pub(crate) round_trip: Part,
}

/// A distribution of times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The statistics in units, over all rounds.
    pub(crate) summary: Summary,
    /// The median's 95 % confidence interval, by bootstrap over rounds and samples.
    pub(crate) p50_ci: Option<[f64; 2]>,
    /// Samples above the maximum of a histogram; they count as the maximum.
    pub(crate) out_of_range: u64,
    /// Each round's histogram: base64 of HDR V2, in TSC ticks.
    pub(crate) rounds: Vec<String>,
}

/// The statistics of a histogram. Quantiles are the highest value of their bucket, as in other HDR tools; the
/// minimum and the maximum are the ends of the range, and the mean is that of the buckets' middles.
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

impl Part {
    /// The distribution of `rounds` of samples in ticks. `None` if there is no sample at all.
    pub(crate) fn of_samples(
        rounds: &[Vec<u64>],
        unit: &Unit,
    ) -> Result<Option<Self>, HistogramError> {
        let filled = rounds
            .iter()
            .map(|round| histogram::of(round.iter().copied()));
        let (filled, out_of_range): (Vec<_>, Vec<u64>) = filled.unzip();
        let text = filled.iter().map(histogram::encode);
        let text = text.collect::<Result<Vec<_>, _>>()?;
        let part = Self::of_histograms(&filled, text, unit)?;
        Ok(part.map(|part| Self {
            out_of_range: out_of_range.iter().sum(),
            ..part
        }))
    }

    /// The distribution of encoded histograms without samples out of range. `None` if there is no sample.
    pub(crate) fn of_encoded(
        rounds: Vec<String>,
        unit: &Unit,
    ) -> Result<Option<Self>, HistogramError> {
        let decoded = rounds.iter().map(|text| histogram::decode(text));
        let decoded = decoded.collect::<Result<Vec<_>, _>>()?;
        Self::of_histograms(&decoded, rounds, unit)
    }

    /// The distribution of runs of several rounds each. Rounds of one run have more in common than those of
    /// two, so the median's interval is over runs, and over rounds only if there is one run.
    pub(crate) fn of_runs(
        runs: Vec<Vec<String>>,
        unit: &Unit,
    ) -> Result<Option<Self>, HistogramError> {
        if runs.len() < 2 {
            return Self::of_encoded(runs.concat(), unit);
        }
        let decoded = runs.iter().map(|rounds| {
            let rounds = rounds.iter().map(|text| histogram::decode(text));
            histogram::sum(&rounds.collect::<Result<Vec<_>, _>>()?)
        });
        let decoded = decoded.collect::<Result<Vec<_>, _>>()?;
        Self::of_histograms(&decoded, runs.concat(), unit)
    }

    fn of_histograms(
        clusters: &[Histogram<u64>],
        rounds: Vec<String>,
        unit: &Unit,
    ) -> Result<Option<Self>, HistogramError> {
        let all = histogram::sum(clusters)?;
        if all.is_empty() {
            return Ok(None);
        }
        let interval = bootstrap::Rounds::of_histograms(clusters).median_interval();
        Ok(Some(Self {
            summary: Summary::of(&all, unit),
            p50_ci: interval.map(|ends| ends.map(|ticks| ticks as f64 / unit.ticks)),
            out_of_range: 0,
            rounds,
        }))
    }

    /// The median's 95 % interval, which contains the median. Reports of earlier versions took the interval
    /// from samples and the median from their histogram, so the median could lie outside the interval. `None`
    /// if it is not available.
    pub(crate) fn interval(&self) -> Option<[f64; 2]> {
        let [low, high] = self.p50_ci?;
        let p50 = self.summary.p50;
        (low <= high).then(|| [low.min(p50), high.max(p50)])
    }
}

/// A Linux L1's report about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct L1Facts {
    /// Its kernel's release.
    pub(crate) kernel: String,
    /// Its command line.
    pub(crate) command_line: String,
    /// Its clock source.
    pub(crate) clocksource: String,
    /// Lines of its kernel log about the hypervisor that it runs under.
    pub(crate) log: Vec<String>,
    /// Its kernel log while its KVM was loaded.
    pub(crate) kvm_log: Vec<String>,
}

/// A recommendation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recommendation {
    /// The recommendation as text.
    pub(crate) text: String,
    /// The rule behind it.
    pub(crate) rule: String,
    /// The subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) question: Option<String>,
    /// The L1 whose figures support it, as in file names and tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) l1: Option<String>,
    /// The answer in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<Answer>,
}

/// The answer to whether a feature is useful.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// There are only gains.
    Gain,
    /// There are only costs.
    Cost,
    /// Some kinds of exits gain and others cost.
    Depends,
    /// There is no difference.
    NoDifference,
    /// The figures do not support an answer.
    Undecided,
}

impl Report {
    /// The figures of a kind in a mode.
    #[cfg(test)]
    pub(crate) fn measured(&self, l1: L1, mode: Mode, kind: &str) -> Option<&Measured> {
        self.results
            .iter()
            .filter(|entry| entry.l1 == l1 && entry.mode == mode && entry.kind == kind)
            .find_map(Entry::measured)
    }

    /// Whether a measurement failed.
    pub(crate) fn failed(&self) -> bool {
        self.results
            .iter()
            .any(|entry| matches!(entry.outcome, Outcome::Failed { .. }))
    }
}

/// A mode in JSON is its name on the command line.
mod by_name {
    use hypernest_nested::l2exit::Mode;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(mode: &Mode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(mode.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Mode, D::Error> {
        let name = String::deserialize(from)?;
        Mode::parse(&name).ok_or_else(|| D::Error::custom(format!("{name:?} is no mode")))
    }
}
