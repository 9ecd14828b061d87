//! The command line of `tsc`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::model::{GuestKind, Way};
use crate::program;

/// The default of `--counter-every`.
pub(super) const COUNTER_EVERY: u64 = 64;
/// The default of `--ack-after-us`.
pub(super) const ACK_AFTER_US: u64 = 1000;

/// Measure how stable the clocks of a guest are, while it runs and across moves
///
/// A guest reads its clocks in a tight loop on every vCPU. It is moved, by `hypernest save` and `restore` or
/// by live migration, between hosts of different TSC frequencies, which --tsc-khz emulates on this host. The
/// exit code is 1 if a clock stepped back, was more than 10 ms off after a move or a step forward, drifted by
/// more than 500 ppm (each beyond the uncertainty of its measurement), if an acknowledgement is missing, or
/// if the measurement failed; 2 if the command line is wrong; 3 if this host does not support the
/// measurement; else 0.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The guest in the VM
    #[arg(long, value_enum, default_value = "micro")]
    pub(super) guest: GuestKind,
    /// The number of moves
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=10_000),
    )]
    pub(super) moves: u32,
    /// How it is moved
    #[arg(long, value_enum, default_value = "save")]
    pub(super) by: Way,
    /// TSC frequencies, in kHz or as 1.2x this host's: the first is that of the guest's creation, the next
    /// ones are those of the hosts to which it is moved, in turn [default: this host's own]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(super) tsc_khz: Vec<Frequency>,
    /// The guest's vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(super) vcpus: u32,
    /// Enlightenments, as for `hypernest run` [default: windows,reenlightenment; nested if a Linux loads
    /// modules of KVM; none where KVM has none]
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    pub(super) hv: Option<String>,
    /// Whether the clocks advance while the guest is moved, as for `hypernest restore`: continue or pause
    #[arg(long, value_name = "POLICY")]
    pub(super) clock: Option<String>,
    /// The reaction to another frequency, as for `hypernest restore`: auto, scale, reenlighten, refuse
    #[arg(long, value_name = "POLICY")]
    pub(super) on_tsc_change: Option<String>,
    /// How long the guest runs before, between and after moves, in ms of its own time
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 2000,
        value_parser = clap::value_parser!(u64).range(1..=86_400_000),
    )]
    pub(super) between_ms: u64,
    /// The interval between two reports of a vCPU, in us of the guest's time
    #[arg(
        long,
        value_name = "US",
        default_value_t = 5000,
        value_parser = clap::value_parser!(u64).range(1..=1_000_000_000),
    )]
    pub(super) beat_us: u64,
    /// The number of reads of the page for each read of the register, which is an exit
    #[arg(
        long,
        value_name = "N",
        default_value_t = COUNTER_EVERY,
        value_parser = clap::value_parser!(u64).range(1..=1 << 32),
    )]
    pub(super) counter_every: u64,
    /// The guest's use of reenlightenment (--guest micro)
    #[arg(long, value_enum, default_value = "emulate")]
    pub(super) reenlighten: Reenlighten,
    /// The guest's delay before it acknowledges a change, in us of its own time
    #[arg(long, value_name = "US", default_value_t = ACK_AFTER_US)]
    pub(super) ack_after_us: u64,
    /// Never acknowledge a change
    #[arg(long, conflicts_with = "ack_after_us")]
    pub(super) no_ack: bool,
    /// Timeout in seconds: a guest without a report for this long is ended [default: 60, with an L2 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    stuck_after: Option<u64>,
    /// The guest's memory [default: 64M, for Linux 256M, with an L2 768M]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Run nothing: write the guest into this directory, and print the commands that run and move it between
    /// two hosts
    #[arg(long, value_name = "DIR", conflicts_with_all = ["captured", "json"])]
    pub(super) by_hand: Option<PathBuf>,
    /// Run nothing: read the output of the guest's debug consoles, a file for each host, in order
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub(super) captured: Vec<PathBuf>,
    /// Where to write the results [default: tsc, or nowhere with --json]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// The hypernest to measure [default: beside this program, else on the PATH]
    #[arg(long, value_name = "FILE")]
    pub(super) hypernest: Option<PathBuf>,
    #[command(flatten)]
    pub(super) linux: Linux,
}

/// Arguments for `--guest linux` and `linux-l2`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "With --guest linux or linux-l2")]
pub(super) struct Linux {
    /// Its kernel, which it needs [default: linux-6.12/vmlinux in $HYPERNEST_LAB_DIR]
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: Option<PathBuf>,
    /// A static tscprobe to run in it [default: beside this program, else on the PATH]
    #[arg(long, value_name = "FILE")]
    pub(super) probe: Option<PathBuf>,
    /// Modules to load in it first, uncompressed, in this order: with those of KVM it requests
    /// reenlightenment [default: none, and for linux-l2 those of KVM in modules/ beside the kernel]
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub(super) modules: Vec<PathBuf>,
    /// More parameters for its command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub(super) append: String,
}

/// The micro guest's use of reenlightenment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Reenlighten {
    /// No use.
    No,
    /// Notification of changes.
    Notify,
    /// Notification, and the old frequency until it has acknowledged.
    Emulate,
}

impl Reenlighten {
    /// The name on the guest program's command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Notify => "notify",
            Self::Emulate => "emulate",
        }
    }
}

/// A frequency of a TSC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Frequency {
    /// In kHz.
    Khz(u32),
    /// A multiple of the host's own.
    Factor(f64),
}

impl FromStr for Frequency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is not a frequency: expected kHz, as 2400000, or a factor, as 1.2x")
        };
        match text.strip_suffix('x') {
            Some(factor) => factor
                .parse()
                .ok()
                .filter(|factor: &f64| (0.01..=100.0).contains(factor))
                .map(Self::Factor)
                .ok_or_else(wrong),
            None => text
                .parse()
                .ok()
                .filter(|khz| *khz > 0)
                .map(Self::Khz)
                .ok_or_else(wrong),
        }
    }
}

impl Frequency {
    /// The frequency in kHz; `None` if it depends on the host's own, which is unknown.
    pub(super) fn khz(self, host: Option<u32>) -> Option<u32> {
        match self {
            Self::Khz(khz) => Some(khz),
            Self::Factor(factor) => u32::try_from(super::round(factor * f64::from(host?))).ok(),
        }
    }
}

impl Args {
    /// The hypernest to measure.
    pub(super) fn hypernest(&self) -> PathBuf {
        self.hypernest.clone().unwrap_or_else(program::hypernest)
    }

    /// The output directory.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        match &self.out {
            Some(out) => Some(out.clone()),
            None if self.json => None,
            None => Some("tsc".into()),
        }
    }

    pub(super) fn memory(&self) -> &str {
        match (&self.memory, self.guest) {
            (Some(memory), _) => memory,
            (None, GuestKind::Micro) => "64M",
            (None, GuestKind::Linux) => "256M",
            (None, GuestKind::LinuxL2) => "768M",
        }
    }

    /// Whether the guest is a hypervisor.
    pub(super) fn nested(&self) -> bool {
        self.guest == GuestKind::LinuxL2
            || self.guest == GuestKind::Linux && !self.linux.modules.is_empty()
    }

    /// Whether the guest may be notified of another frequency.
    pub(super) fn may_reenlighten(&self) -> bool {
        matches!(
            self.on_tsc_change.as_deref(),
            None | Some("auto" | "reenlighten")
        )
    }

    pub(super) fn stuck_after(&self) -> Duration {
        let seconds = self.stuck_after.unwrap_or(match self.guest {
            GuestKind::Micro | GuestKind::Linux => 60,
            // Two nested kernels boot before the first report: this takes over a minute on an emulated host.
            GuestKind::LinuxL2 => 300,
        });
        Duration::from_secs(seconds)
    }

    /// Ticks of a TSC of `khz` in `us` microseconds.
    pub(super) fn ticks(us: u64, khz: f64) -> u64 {
        super::round(us as f64 * khz / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies() {
        assert_eq!("2400000".parse(), Ok(Frequency::Khz(2_400_000)));
        assert_eq!("1.2x".parse(), Ok(Frequency::Factor(1.2)));
        for wrong in ["", "x", "0", "-1x", "NaNx", "1.2", "1e9x", "99999999999"] {
            assert!(wrong.parse::<Frequency>().is_err(), "{wrong}");
        }
        assert_eq!(Frequency::Factor(0.7).khz(Some(3_499_912)), Some(2_449_938));
        assert_eq!(Frequency::Factor(1.0).khz(None), None);
        assert_eq!(Frequency::Khz(5).khz(None), Some(5));
        assert_eq!(Args::ticks(1000, 2_500_000.0), 2_500_000);
    }
}
