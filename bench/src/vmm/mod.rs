//! hypernest and QEMU compared: the time until a guest starts, the cost of an exit to user space, and the
//! memory of a VM.
//!
//! Both run the same guests with the same enlightenments, alternately, so that other load on the host affects
//! both alike.
//! both alike.

pub(crate) mod contender;
mod exits;
mod floor;
mod init;
mod running;
pub(crate) mod samples;
pub(crate) mod smaps;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use hypernest::hyperv::HostHv;
use hypernest::kvm::host::{HostCaps, HostError};
use hypernest::units::TscKhz;
use hypernest::vcpu::stats::{self, ExitClock};
use hypernest_guest::GUEST;
use hypernest_lab::plan::LAB_DIR_VARIABLE;
use hypernest_nested::probe::{ALIVE, Malformed};
use thiserror::Error;

use crate::program;
use crate::qemu::{Qemu, QemuError};
use crate::usage::{self, Usage};
use crate::{FAILED, HOST, WRONG_USE};
use contender::{Contender, Guest, Terms};
use running::Running;
use samples::{ratio, spread, table};
use smaps::Resident;

/// Errors of `hypernest-bench vmm`.
#[derive(Debug, Error)]
pub(crate) enum VmmError {
    /// The command line is wrong.
    #[error(transparent)]
    Usage(#[from] Usage),
    #[error(transparent)]
    Host(#[from] HostError),
    /// This program's own files.
    #[error("cannot write the guests to be measured")]
    Files(#[source] io::Error),
    #[error("{0}; --qemu PATH names it, --only-hypernest does without")]
    Qemu(#[from] QemuError),
    /// Enlightenments that this host does not support.
    #[error("this host does not support --hv {list}: {why}")]
    Enlightenments { list: String, why: String },
    #[error("cannot start {contender} (hypernest must be beside this program or on the PATH)")]
    Start {
        contender: &'static str,
        source: io::Error,
    },
    /// A guest failed.
    #[error("{contender} {how}; its guest's output: {said}")]
    Guest {
        contender: &'static str,
        how: String,
        said: String,
    },
    /// The bare loop.
    #[error("the bare KVM_RUN loop failed")]
    Floor(#[source] Box<dyn Error>),
    /// A malformed report.
    #[error("the report of the guest of {who} is malformed")]
    Malformed {
        who: &'static str,
        source: Malformed,
    },
    /// A report without samples.
    #[error("the guest of {who} reported no samples")]
    NoSamples { who: &'static str },
    /// The kernel did not report the memory of a process.
    #[error("cannot read {path}")]
    Smaps { path: String, source: io::Error },
    /// The report has an unknown format.
    #[error("{path} has an unknown format")]
    SmapsUnknown { path: String },
    /// The counters of exits.
    #[error("cannot measure the cost of counting exits")]
    Stats(#[from] stats::ExitStatsError),
}

impl VmmError {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Qemu(_) => WRONG_USE,
            // The list itself was checked before.
            Self::Host(_) | Self::Enlightenments { .. } => HOST,
            _ => FAILED,
        }
    }
}

/// Measure start-up, exits to user space and memory, compared with QEMU
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
    /// The Linux kernel to boot: an ELF file with a PVH note
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The enlightenments of every VM
    #[arg(
        long,
        value_name = "LIST",
        default_value = "windows,reenlightenment",
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
    /// Timeout for one VM, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    limit: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From exec to the guest's first instruction
    FirstInstruction,
    /// From exec to a Linux guest's init, and the memory of the VMM when it idles there
    Init,
    /// Round trips to user space
    Exits,
    /// The cost of counting an exit
    Stats,
}

/// The kernel in the lab's directory.
const KERNEL: &str = "linux-6.12/vmlinux";
/// The command line of every measurement with Linux.
const LINUX_CMDLINE: &str = "quiet panic=-1";
const LINUX_MEMORY_MIB: u32 = 256;
const GUEST_MEMORY_MIB: u32 = 32;
/// The time after which a guest is idle: activity from the boot has finished by then.
const SETTLE: Duration = Duration::from_millis(500);

impl Args {
    /// The mistakes that are visible without a look at the host.
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = of_both(&self.hv, self.only_hypernest, self.qemu.as_deref());
        let boots = self.parts.is_empty() || self.parts.contains(&Part::Init);
        match &self.kernel {
            Some(kernel) if !kernel.is_file() => {
                mistakes.push(format!("--kernel: there is no file {}", kernel.display()));
            }
            None if boots && std::env::var_os(LAB_DIR_VARIABLE).is_none() => {
                mistakes.push(format!(
                    "init needs a kernel: give --kernel FILE, a vmlinux; {}; or name other measurements",
                    usage::kernel_of_lab(KERNEL)
                ));
            }
            Some(_) | None => {}
        }
        mistakes
    }
}

/// The mistakes of a comparison of hypernest with QEMU.
pub(crate) fn of_both(hv: &str, only_hypernest: bool, qemu: Option<&Path>) -> Vec<String> {
    let mut mistakes = usage::of_vm(&[("hv", hv)]);
    mistakes.extend(program::no_hypernest(None));
    if !only_hypernest && let Err(error) = Qemu::find(qemu) {
        mistakes.push(format!(
            "{error}; --qemu PATH names it, --only-hypernest does without"
        ));
    }
    mistakes
}

/// Runs the measurements and returns their results as text.
pub(crate) fn run(args: &Args) -> Result<String, VmmError> {
    Usage::check(args.mistakes())?;
    let bench = Bench::new(args)?;
    let mut text = String::new();
    for (part, measure) in [
        (
            Part::FirstInstruction,
            Bench::first_instruction as fn(&Bench) -> _,
        ),
        (Part::Init, Bench::init),
        (Part::Exits, exits::measure),
        (Part::Stats, Bench::stats),
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
    host: HostCaps,
    contenders: Vec<Contender>,
    terms: Terms,
    rounds: u32,
    limit: Duration,
    kernel: PathBuf,
    /// The directory of `guest` and `initrd`.
    _files: tempfile::TempDir,
    guest: PathBuf,
    initrd: PathBuf,
}

impl Bench {
    fn new(args: &Args) -> Result<Self, VmmError> {
        let files = tempfile::tempdir().map_err(VmmError::Files)?;
        let guest = files.path().join("guest");
        std::fs::write(&guest, GUEST).map_err(VmmError::Files)?;
        let initrd = files.path().join("initrd");
        let archive = init::initramfs().map_err(VmmError::Files)?;
        std::fs::write(&initrd, archive).map_err(VmmError::Files)?;
        let in_lab = || {
            let lab = std::env::var_os(LAB_DIR_VARIABLE).unwrap_or_default();
            Path::new(&lab).join(KERNEL)
        };
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
            host,
            contenders: if args.only_hypernest {
                vec![Contender::Hypernest]
            } else {
                Contender::ALL.to_vec()
            },
            rounds: args.rounds,
            limit: Duration::from_secs(args.limit),
            kernel: args.kernel.clone().unwrap_or_else(in_lab),
            _files: files,
            guest,
            initrd,
        })
    }

    /// Runs `guest` in each contender in turn, `rounds` times, and returns the results of `measure`.
    fn alternate<T>(
        &self,
        guest: &Guest<'_>,
        measure: impl Fn(Running) -> Result<T, VmmError>,
    ) -> Result<BTreeMap<Contender, Vec<T>>, VmmError> {
        let mut results: BTreeMap<Contender, Vec<T>> = BTreeMap::new();
        for _ in 0..self.rounds {
            for &contender in &self.contenders {
                let running = Running::start(contender, guest, &self.terms, self.limit)?;
                results
                    .entry(contender)
                    .or_default()
                    .push(measure(running)?);
            }
        }
        Ok(results)
    }

    fn first_instruction(&self) -> Result<String, VmmError> {
        let guest = Guest {
            kernel: &self.guest,
            initrd: None,
            cmdline: "hello",
            memory_mib: GUEST_MEMORY_MIB,
        };
        let times = self.alternate(&guest, |mut running| {
            let time = running.until(ALIVE)?;
            running.finish()?;
            Ok(time.as_secs_f64() * 1e3)
        })?;
        Ok(compare(
            "exec to the guest's first instruction, ms",
            &times,
            1,
        ))
    }

    fn init(&self) -> Result<String, VmmError> {
        let guest = Guest {
            kernel: &self.kernel,
            initrd: Some(&self.initrd),
            cmdline: LINUX_CMDLINE,
            memory_mib: LINUX_MEMORY_MIB,
        };
        let results = self.alternate(&guest, |mut running| {
            let time = running.until(init::SIGN)?;
            thread::sleep(SETTLE);
            Ok((
                time.as_secs_f64() * 1e3,
                running.resident(&guest)?,
                running.threads()?,
            ))
        })?;
        let times = each(&results, |(time, ..)| *time);
        // Far below 2^53.
        let mib = |kib: fn(&Resident) -> u64| {
            each(&results, |(_, resident, _)| kib(resident) as f64 / 1024.0)
        };
        let mut text = compare("exec to Linux' init, ms", &times, 0);
        for (what, values) in [
            (
                "resident beyond guest RAM and kernel file, MiB",
                mib(|r| r.beyond_guest),
            ),
            ("of that program and libraries, MiB", mib(|r| r.files)),
            ("of that anonymous, MiB", mib(|r| r.anonymous)),
            ("guest RAM touched, MiB", mib(|r| r.guest)),
            ("threads", each(&results, |(.., threads)| *threads as f64)),
        ] {
            text.push_str(&compare_rows(what, &values, 2));
        }
        Ok(text)
    }

    fn stats(&self) -> Result<String, VmmError> {
        let tsc = self
            .host
            .kvm
            .tsc_khz
            .filter(|_| self.host.system.tsc_is_a_clock());
        let mut text = String::new();
        for (name, clock) in [
            ("CLOCK_MONOTONIC", Some(ExitClock::new(None))),
            ("the TSC", tsc.map(|khz| ExitClock::new(Some(TscKhz(khz))))),
        ] {
            let Some(clock) = clock else {
                continue;
            };
            let mut counting = Vec::new();
            let mut timed = Vec::new();
            for _ in 0..self.rounds {
                let cost = stats::cost(1_000_000, clock)?;
                counting.push(cost.record_ns);
                timed.push(cost.timed_record_ns);
            }
            let (counting, timed) = (spread(&counting, 1), spread(&timed, 1));
            // Writing to a string does not fail.
            let _ok = writeln!(
                text,
                "counting an exit, ns: {counting}; with two reads of {name}: {timed}"
            );
        }
        Ok(text)
    }
}

fn each<T>(
    results: &BTreeMap<Contender, Vec<T>>,
    value: impl Fn(&T) -> f64,
) -> BTreeMap<Contender, Vec<f64>> {
    results
        .iter()
        .map(|(&contender, rounds)| (contender, rounds.iter().map(&value).collect()))
        .collect()
}

/// A table whose first row is `what`.
fn compare(what: &str, values: &BTreeMap<Contender, Vec<f64>>, decimals: usize) -> String {
    let mut head = vec!["median (least - greatest)"];
    head.extend(values.keys().map(|c| c.name()));
    let against = ["to q35", "to microvm"];
    head.extend(against.iter().take(values.len().saturating_sub(1)));
    table(&head, &[row(what, values, decimals)])
}

/// Another row of [`compare`]'s table.
fn compare_rows(what: &str, values: &BTreeMap<Contender, Vec<f64>>, decimals: usize) -> String {
    format!("| {} |\n", row(what, values, decimals).join(" | "))
}

fn row(what: &str, values: &BTreeMap<Contender, Vec<f64>>, decimals: usize) -> Vec<String> {
    let mut row = vec![what.to_owned()];
    row.extend(values.values().map(|values| spread(values, decimals)));
    let median = |contender: &Contender| samples::median(values.get(contender)?);
    let others = values.keys().filter(|c| **c != Contender::Hypernest);
    row.extend(others.map(|c| ratio(median(&Contender::Hypernest), median(c))));
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Line;
    use clap::Parser as _;

    #[test]
    fn mistakes_are_found_before_the_host_is_looked_at_and_all_at_once() {
        let line = "vmm init --hv hv-evmc --qemu /nowhere --kernel /nowhere/vmlinux";
        let error = run(&Line::<Args>::parse_from(line.split_whitespace()).args).unwrap_err();
        assert_eq!(error.code(), WRONG_USE);
        let text = error.to_string();
        for part in [
            "did you mean `hv-evmcs`",
            "/nowhere is neither",
            "--only-hypernest",
            "there is no file /nowhere/vmlinux",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
