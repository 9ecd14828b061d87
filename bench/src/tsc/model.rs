//! The result of `tsc` as data; its JSON form is derived from these types by [`serde`]
//! (bench/schema/tsc.schema.json).

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::report::Environment;

/// The version of the JSON form. A change that breaks readers raises it.
pub(crate) const VERSION: u32 = 1;

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
    /// The guest.
    pub(crate) guest: Guest,
    /// Circumstances that limit the validity of the figures.
    pub(crate) warnings: Vec<String>,
    /// The bounds on the clocks; `None` if they could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bounds: Option<Bounds>,
    /// Violations of the bounds and other failures; empty on success.
    pub(crate) failures: Vec<String>,
    /// Each possible clock, over the whole run.
    pub(crate) clocks: Vec<ClockResult>,
    /// Each move.
    pub(crate) moves: Vec<Move>,
    /// The times between moves and acknowledgements.
    pub(crate) segments: Vec<Segment>,
    /// Data of the plot: the offset of each clock from the host's since the first sample.
    pub(crate) offsets: Vec<Series>,
}

/// The largest errors of a clock that are not failures, beyond the uncertainty of their measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bounds {
    /// Drift against the host's clock, in ppm.
    pub(crate) drift_ppm: f64,
    /// The maximum offset of a clock after a move, or after a step forward at any other time, in ms.
    pub(crate) step_ms: f64,
}

/// The guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// `micro`, `linux` or `linux-l2`.
    pub(crate) kind: GuestKind,
    /// Processors that sampled.
    pub(crate) vcpus: u32,
    /// The frequency of its TSC at the start, in kHz.
    pub(crate) tsc_khz: f64,
    /// The kind of move; `None` without moves.
    pub(crate) moved_by: Option<Way>,
    /// The guest's use of the hypervisor's notification of TSC frequency changes.
    pub(crate) reenlightenment: Reenlightenment,
}

/// The kind of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GuestKind {
    /// The sampler that comes with this program, without an operating system.
    Micro,
    /// A Linux with the program tscprobe.
    Linux,
    /// A Linux with tscprobe as an L2: its L1, a Linux with KVM and hypernest, is the guest that is moved.
    LinuxL2,
}

impl GuestKind {
    /// The name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Micro => "micro",
            Self::Linux => "linux",
            Self::LinuxL2 => "linux-l2",
        }
    }
}

/// The kind of move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// `hypernest save`, then `hypernest restore`.
    Save,
    /// `hypernest migrate` to a `hypernest run --incoming`.
    Migrate,
}

impl Way {
    /// The name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Save => "save",
            Self::Migrate => "migrate",
        }
    }
}

/// A guest's use of reenlightenment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reenlightenment {
    /// Not reported: a Linux uses it in its kernel.
    Unknown,
    /// It is not offered.
    NotOffered,
    /// The guest did not request it.
    Declined,
    /// The guest requested notification only.
    Notification,
    /// The guest requested notification, and the old frequency until it has acknowledged.
    Emulation,
}

/// One clock over the whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClockResult {
    /// Its name.
    pub(crate) clock: String,
    /// The figures; `None` if the guest does not have it.
    pub(crate) measured: Option<ClockFigures>,
}

/// Figures of a clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClockFigures {
    /// The number of reads.
    pub(crate) reads: u64,
    /// Reads below a value that any processor had seen before. Must be 0.
    pub(crate) backward_steps: u64,
    /// The largest of them, in ns.
    pub(crate) largest_backward_ns: f64,
    /// The largest step forward while the guest was not being moved, in ns.
    pub(crate) largest_quiet_gap_ns: f64,
    /// The largest step forward in each report, without those that span a move: an HDR histogram, in the
    /// clock's own unit.
    pub(crate) quiet_gaps: String,
    /// The length of that unit in ns.
    pub(crate) unit_ns: f64,
    /// For the reference page: the changes of its sequence number.
    pub(crate) page: Option<PageFigures>,
}

/// Figures of the reference TSC page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PageFigures {
    /// Changes of its sequence number, the maximum over the processors.
    pub(crate) sequence_changes: u64,
    /// The share of reads that had to use the register instead.
    pub(crate) fallback_share: f64,
}

/// One move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Move {
    /// Its number, from 1.
    pub(crate) number: u32,
    /// The time of the command, in s since the start.
    pub(crate) at_s: f64,
    /// The frequency of the destination host, in kHz; `None` if it is the host's own.
    pub(crate) host_khz: Option<f64>,
    /// From the command to the guest's first output at the destination, by the host's clock, in ms.
    pub(crate) command_ms: f64,
    /// The time during which the guest did not run, by the host's clock, in ms.
    pub(crate) downtime_ms: Option<f64>,
    /// The effect on each clock.
    pub(crate) clocks: BTreeMap<String, Jump>,
    /// The reference page's sequence number before and after.
    pub(crate) sequence: [u32; 2],
    /// The guest's acknowledgement.
    pub(crate) acknowledged: Option<Acknowledgement>,
}

/// The effect of a move on a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Jump {
    /// The largest step forward that a processor saw, in ms: the downtime, if the clock continued meanwhile.
    pub(crate) gap_ms: f64,
    /// The advance of the clock less that of the host's between the last sample before the move and the first
    /// after it, in us. Its precision is that of the arrival of samples.
    pub(crate) ahead_us: Option<f64>,
}

/// A guest's acknowledgement of a change of the TSC's frequency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Acknowledgement {
    /// From the guest's first read after the move until it notices the interrupt, in us of its own reference
    /// time.
    pub(crate) noticed_after_us: f64,
    /// From the same read to the end of the write to TSC_EMULATION_STATUS.
    pub(crate) acknowledged_after_us: f64,
    /// The duration of that write and the following read of the frequency, in us.
    pub(crate) write_us: f64,
    /// TSC_EMULATION_STATUS before the write and after it.
    pub(crate) status: [u64; 2],
    /// TSC_FREQUENCY in kHz before the write and right after it.
    pub(crate) frequency_khz: [f64; 2],
}

/// An interval without a move or an acknowledgement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Segment {
    /// The move after which it begins; 0 before the first.
    pub(crate) after_move: u32,
    /// It begins with the acknowledgement of that move.
    pub(crate) acknowledged: bool,
    /// Its first sample, in s since the start.
    pub(crate) from_s: f64,
    /// Its last sample, in s since the start.
    pub(crate) to_s: f64,
    /// The number of reports.
    pub(crate) samples: u64,
    /// The expected frequency of the TSC, in kHz.
    pub(crate) tsc_khz: f64,
    /// The delay of the median sample, in us: the noise of all figures against the host's clock.
    pub(crate) noise_us: Option<f64>,
    /// Drift of each clock against the host's.
    pub(crate) drift: BTreeMap<String, Drift>,
}

/// The rate of a clock against the host's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drift {
    /// The difference in parts per million.
    pub(crate) ppm: f64,
    /// Its uncertainty.
    pub(crate) about_ppm: f64,
}

/// A clock's offset over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    /// The clock.
    pub(crate) clock: String,
    /// Time since the start in s, and the clock's offset ahead of the host's in us. Samples arrive late, so
    /// of several close to each other the one furthest ahead is included.
    pub(crate) points: Vec<(f64, f64)>,
}
