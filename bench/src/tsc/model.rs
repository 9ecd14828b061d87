//! The result of `tsc` as data; its JSON form is what [`serde`] makes of these types
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
    /// When it was started, by RFC 3339, in UTC.
    pub(crate) started: String,
    /// Where it ran.
    pub(crate) environment: Environment,
    /// The guest.
    pub(crate) guest: Guest,
    /// What to know before the figures are believed.
    pub(crate) warnings: Vec<String>,
    /// What the clocks were held to; none if that could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bounds: Option<Bounds>,
    /// What must not be. Empty if all is well.
    pub(crate) failures: Vec<String>,
    /// Each clock that there could be, over the whole run.
    pub(crate) clocks: Vec<ClockResult>,
    /// Each move.
    pub(crate) moves: Vec<Move>,
    /// The times between moves and acknowledgements.
    pub(crate) segments: Vec<Segment>,
    /// For the plot: how far each clock is ahead of the host's since the first sample.
    pub(crate) offsets: Vec<Series>,
}

/// The largest errors of a clock that are no failure, beyond the uncertainty of their measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bounds {
    /// Drift against the host's clock, in ppm.
    pub(crate) drift_ppm: f64,
    /// How far off a clock may be after a move, or after a step forward at any other time, in ms.
    pub(crate) step_ms: f64,
}

/// What ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// `micro`, `linux` or `linux-l2`.
    pub(crate) kind: GuestKind,
    /// Processors that sampled.
    pub(crate) vcpus: u32,
    /// The frequency of its TSC at the start, in kHz.
    pub(crate) tsc_khz: f64,
    /// How it was moved; none if it was not.
    pub(crate) moved_by: Option<Way>,
    /// What it made of the hypervisor's offer to tell of changes of the TSC's frequency.
    pub(crate) reenlightenment: Reenlightenment,
}

/// What runs in the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GuestKind {
    /// The sampler that comes with this program, without an operating system.
    Micro,
    /// A Linux with the program tscprobe.
    Linux,
    /// The same as a guest of a Linux with its KVM and hypernest, which is the one that is moved.
    LinuxL2,
}

impl GuestKind {
    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Micro => "micro",
            Self::Linux => "linux",
            Self::LinuxL2 => "linux-l2",
        }
    }
}

/// How a guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// `hypernest save`, then `hypernest restore`.
    Save,
    /// `hypernest migrate` to a `hypernest run --incoming`.
    Migrate,
}

impl Way {
    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Save => "save",
            Self::Migrate => "migrate",
        }
    }
}

/// What a guest made of reenlightenment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reenlightenment {
    /// It does not tell: a Linux does that in its kernel.
    Unknown,
    /// There is none.
    NotOffered,
    /// It did not ask for it.
    Declined,
    /// It asked to be told, and no more.
    Notification,
    /// It asked for the old frequency until it has acknowledged.
    Emulation,
}

/// One clock over the whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClockResult {
    /// Its name.
    pub(crate) clock: String,
    /// The rest; none if the guest does not have it.
    pub(crate) measured: Option<ClockFigures>,
}

/// Figures of a clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClockFigures {
    /// How often it was read.
    pub(crate) reads: u64,
    /// Reads below what any processor had seen before. Must be 0.
    pub(crate) backward_steps: u64,
    /// The largest of them, in ns.
    pub(crate) largest_backward_ns: f64,
    /// The largest step forward while the guest was not being moved, in ns.
    pub(crate) largest_quiet_gap_ns: f64,
    /// The largest step forward in each report, without those that span a move: an HDR histogram, in the
    /// clock's own unit.
    pub(crate) quiet_gaps: String,
    /// How many ns that unit is.
    pub(crate) unit_ns: f64,
    /// For the reference page: what its sequence number did.
    pub(crate) page: Option<PageFigures>,
}

/// What is special about the reference TSC page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PageFigures {
    /// Changes of its sequence number, as the processor saw them that saw most.
    pub(crate) sequence_changes: u64,
    /// The share of reads that had to take the register instead.
    pub(crate) fallback_share: f64,
}

/// One move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Move {
    /// From 1 on.
    pub(crate) number: u32,
    /// When the command was given, in s since the start.
    pub(crate) at_s: f64,
    /// The frequency of the host that it went to, in kHz; none if it is the host's own.
    pub(crate) host_khz: Option<f64>,
    /// From the command to the first sign of the guest at its new place, by the host's clock, in ms.
    pub(crate) command_ms: f64,
    /// For how long the guest did not run, by the host's clock, in ms.
    pub(crate) downtime_ms: Option<f64>,
    /// What it did to each clock.
    pub(crate) clocks: BTreeMap<String, Jump>,
    /// The reference page's sequence number before and after.
    pub(crate) sequence: [u32; 2],
    /// The guest's acknowledgement.
    pub(crate) acknowledged: Option<Acknowledgement>,
}

/// What a move did to a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Jump {
    /// The largest step forward that a processor saw, in ms: the downtime, if the clock went on meanwhile.
    pub(crate) gap_ms: f64,
    /// How much further the clock went than the host's between the last sample before and the first after, in
    /// us. As exact as the arrival of samples.
    pub(crate) ahead_us: Option<f64>,
}

/// A guest's acknowledgement of a change of the TSC's frequency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Acknowledgement {
    /// From the guest's first read after the move to its noticing the interrupt, in us of its own reference
    /// time.
    pub(crate) noticed_after_us: f64,
    /// The same to the end of the write to TSC_EMULATION_STATUS.
    pub(crate) acknowledged_after_us: f64,
    /// How long that write and the read of the frequency after it took, in us.
    pub(crate) write_us: f64,
    /// TSC_EMULATION_STATUS before the write and after it.
    pub(crate) status: [u64; 2],
    /// TSC_FREQUENCY in kHz before the write and right after it.
    pub(crate) frequency_khz: [f64; 2],
}

/// A time without a move and without an acknowledgement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Segment {
    /// After which move it begins; 0 before the first.
    pub(crate) after_move: u32,
    /// After the acknowledgement of that move.
    pub(crate) acknowledged: bool,
    /// Its first and last sample, in s since the start.
    pub(crate) from_s: f64,
    /// The last one.
    pub(crate) to_s: f64,
    /// How many reports came.
    pub(crate) samples: u64,
    /// What the TSC's frequency should be, in kHz.
    pub(crate) tsc_khz: f64,
    /// How late the median sample arrives, in us: the noise of all figures against the host's clock.
    pub(crate) noise_us: Option<f64>,
    /// Drift of each clock against the host's.
    pub(crate) drift: BTreeMap<String, Drift>,
}

/// How much faster than the host's a clock is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drift {
    /// Parts per million.
    pub(crate) ppm: f64,
    /// By how much that may be wrong.
    pub(crate) about_ppm: f64,
}

/// A clock's offset over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    /// The clock.
    pub(crate) clock: String,
    /// Time since the start in s, and how far the clock is ahead of the host's in us. Samples arrive late, so
    /// of several near each other the one furthest ahead is here.
    pub(crate) points: Vec<(f64, f64)>,
}
