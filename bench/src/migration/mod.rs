//! Migration and restore of a VM, compared with QEMU: live between processes, and through the disk.
//!
//! Both VMMs move the same guest with the same memory, alternately. The guest ([`beat`](hypernest_guest))
//! writes a byte at every beat; its downtime is the time between the last byte from the source and the first
//! from the destination, by this process's clock: QEMU stops the guest's own clocks during a migration.

pub(crate) mod command;
mod live;
pub(crate) mod qmp;
pub(crate) mod relay;
mod restore;
mod side;

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use hypernest::hyperv::HostHv;
use hypernest::kvm::host::{HostCaps, HostError};
use hypernest_guest::GUEST;
use thiserror::Error;

use crate::qemu::{Qemu, QemuError};
use crate::usage::Usage;
use crate::vmm::contender::{Contender, Guest, Terms};
use crate::vmm::samples::{median, ratio, spread, table};
use crate::vmm::{self, VmmError};
use crate::{FAILED, HOST, WRONG_USE};

/// Errors of `hypernest-bench migration`.
#[derive(Debug, Error)]
pub(crate) enum MigrationError {
    /// The command line is wrong.
    #[error(transparent)]
    Usage(#[from] Usage),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{0}; --qemu PATH names it, --only-hypernest does without")]
    Qemu(#[from] QemuError),
    /// Enlightenments that this host does not support.
    #[error(transparent)]
    Terms(#[from] VmmError),
    /// This program's own files or sockets.
    #[error("cannot {doing}")]
    Own {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot start {who} (hypernest must be beside this program or on the PATH)")]
    Start {
        who: &'static str,
        #[source]
        source: io::Error,
    },
    /// A VMM failed.
    #[error("{who} {how}; its output: {said}")]
    Failed {
        who: &'static str,
        how: String,
        said: String,
    },
    /// QEMU's monitor.
    #[error("QEMU's monitor: {what}")]
    Qmp {
        what: String,
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
}

impl MigrationError {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Qemu(_) => WRONG_USE,
            Self::Host(_) => HOST,
            Self::Terms(error) => error.code(),
            _ => FAILED,
        }
    }
}

/// Measure live migration and restore, compared with QEMU
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The measurements [default: all]
    #[arg(value_name = "WHAT")]
    parts: Vec<Part>,
    /// How many rounds each VMM runs
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=1000),
    )]
    rounds: u32,
    /// The guest's memory, in MiB
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(32..=1 << 20),
    )]
    memory: u32,
    /// The amount of guest memory that is not zero, in MiB [default: three quarters]
    #[arg(long, value_name = "MIB")]
    fill: Option<u32>,
    /// The number of pages the guest writes at each beat of a live migration
    #[arg(long, value_name = "PAGES", default_value_t = 4)]
    dirty: u32,
    /// The time between two beats, in ticks of the TSC
    #[arg(long, value_name = "TICKS", default_value_t = 1_000_000)]
    beat: u64,
    /// The limit of a live migration's bandwidth, in MiB per second
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    bandwidth: u32,
    /// The maximum downtime of a live migration, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    downtime: u32,
    /// The enlightenments of every VM
    #[arg(
        long,
        value_name = "LIST",
        default_value = "windows",
        allow_hyphen_values = true
    )]
    hv: String,
    /// QEMU: its program, or a directory with its bin/, lib/ and share/ [default: qemu-system-x86_64 on the
    /// PATH]
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Leave QEMU out
    #[arg(long)]
    only_hypernest: bool,
    /// The directory for saved VMs [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Timeout for one VM, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From exec to the first beat of a VM that is restored from a file
    Restore,
    /// From one process to another, while the guest runs
    Live,
}

impl Args {
    /// The mistakes that are visible without a look at the host.
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = vmm::of_both(&self.hv, self.only_hypernest, self.qemu.as_deref());
        if let Some(fill) = self.fill.filter(|fill| *fill > self.memory) {
            mistakes.push(format!(
                "--fill: {fill} MiB do not fit into the guest's {} MiB (--memory)",
                self.memory
            ));
        }
        if let Some(dir) = self.dir.as_ref().filter(|dir| !dir.is_dir()) {
            mistakes.push(format!("--dir: there is no directory {}", dir.display()));
        }
        mistakes
    }
}

/// Runs the measurements and returns their results as text.
pub(crate) fn run(args: &Args) -> Result<String, MigrationError> {
    Usage::check(args.mistakes())?;
    let bench = Bench::new(args)?;
    let mut text = String::new();
    for (part, measure) in [
        (Part::Restore, restore::measure as fn(&Bench) -> _),
        (Part::Live, live::measure),
    ] {
        if args.parts.is_empty() || args.parts.contains(&part) {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&measure(&bench)?);
        }
    }
    Ok(text)
}

/// The state that all measurements share.
struct Bench {
    contenders: Vec<Contender>,
    terms: Terms,
    rounds: u32,
    limit: Duration,
    memory_mib: u32,
    fill_mib: u32,
    dirty: u32,
    beat: u64,
    bandwidth_mib: u32,
    downtime_ms: u32,
    /// The directory of all files that are written.
    files: tempfile::TempDir,
    guest: PathBuf,
}

impl Bench {
    fn new(args: &Args) -> Result<Self, MigrationError> {
        let own = |doing| move |source| MigrationError::Own { doing, source };
        let files = match &args.dir {
            Some(dir) => tempfile::tempdir_in(dir),
            None => tempfile::tempdir(),
        };
        let files = files.map_err(own("make a directory for saved VMs"))?;
        let guest = files.path().join("guest");
        std::fs::write(&guest, GUEST).map_err(own("write the guest to be moved"))?;
        let host = HostCaps::probe()?;
        let qemu = (!args.only_hypernest).then(|| Qemu::find(args.qemu.as_deref()));
        let qemu = qemu.transpose()?;
        // Without Hyper-V in KVM there are no enlightenments to choose from.
        let list = if host.kvm.caps.hyperv {
            &args.hv
        } else {
            "none"
        };
        Ok(Self {
            terms: Terms::new(list, &HostHv::from(&host), qemu)?,
            contenders: if args.only_hypernest {
                vec![Contender::Hypernest]
            } else {
                vec![Contender::Hypernest, Contender::Q35]
            },
            rounds: args.rounds,
            limit: Duration::from_secs(args.limit),
            memory_mib: args.memory,
            fill_mib: args.fill.unwrap_or(args.memory / 4 * 3),
            dirty: args.dirty,
            beat: args.beat,
            bandwidth_mib: args.bandwidth,
            downtime_ms: args.downtime,
            files,
            guest,
        })
    }

    /// The guest's command line; it writes to `dirty` pages at every beat.
    fn command_line(&self, dirty: u32) -> String {
        let (fill, beat) = (self.fill_mib, self.beat);
        format!("beat fill={fill} dirty={dirty} every={beat}")
    }

    fn guest<'a>(&'a self, cmdline: &'a str) -> Guest<'a> {
        Guest {
            kernel: &self.guest,
            initrd: None,
            cmdline,
            memory_mib: self.memory_mib,
        }
    }
}

/// Values of each contender, one per round.
type Results = BTreeMap<Contender, Vec<f64>>;

/// A table of `rows`: each has a title, its values, and the number of decimals to show.
fn compare(rows: &[(&str, &Results, usize)]) -> String {
    let mut head = vec!["median (least - greatest)"];
    let all = rows.first().map(|(_, results, _)| results.keys().copied());
    let all: Vec<Contender> = all.into_iter().flatten().collect();
    head.extend(all.iter().map(|c| c.name()));
    if all.len() > 1 {
        head.push("ratio");
    }
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|(what, results, decimals)| {
            let mut row = vec![(*what).to_owned()];
            row.extend(results.values().map(|values| spread(values, *decimals)));
            if all.len() > 1 {
                row.push(ratio(of_pairs(results), Some(1.0)));
            }
            row
        })
        .collect();
    table(&head, &rows)
}

/// The median of the rounds' ratios, ours to theirs: variations from round to round affect both values of a
/// round alike.
fn of_pairs(results: &Results) -> Option<f64> {
    let ours = results.get(&Contender::Hypernest)?;
    let theirs = results.get(&Contender::Q35)?;
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .filter(|(_, theirs)| **theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs)
        .collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Line;
    use clap::Parser as _;

    #[test]
    fn mistakes_are_found_before_the_host_is_looked_at_and_all_at_once() {
        let line = "migration --hv foo --memory 64 --fill 65 --dir /nowhere --only-hypernest";
        let error = run(&Line::<Args>::parse_from(line.split_whitespace()).args).unwrap_err();
        assert_eq!(error.code(), WRONG_USE);
        let text = error.to_string();
        for part in [
            "--hv: ",
            "--fill: 65 MiB",
            "--dir: there is no directory /nowhere",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_ratios() {
        let results: Results = [
            (Contender::Hypernest, vec![1.0, 30.0, 4.0]),
            (Contender::Q35, vec![2.0, 300.0, 2.0]),
        ]
        .into();
        assert_eq!(of_pairs(&results), Some(0.5));
        let text = compare(&[("time, ms", &results, 1)]);
        assert!(text.contains("| time, ms | 4.0 (1.0 - 30.0) |"), "{text}");
        assert!(text.contains("| 0.50x |"), "{text}");
        let alone: Results = [(Contender::Hypernest, vec![1.0])].into();
        assert!(!compare(&[("x", &alone, 0)]).contains("ratio"));
    }
}
