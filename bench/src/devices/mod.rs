//! Devices compared with QEMU's: virtio-blk under the loads of fio in a stock Linux, virtio-net by a tap, the
//! memory that they take, and a live migration while both are loaded.
//!
//! Both VMMs boot the same system from the same disk in turn and put the same loads on the same scratch disk
//! and the same network, so that other load on the host affects both alike.

mod beats;
mod console;
mod cost;
mod disk;
mod figures;
pub(crate) mod fio;
mod guest;
mod jobs;
mod loads;
mod machine;
mod memory;
mod moving;
mod net;
mod network;
mod peer;
mod report;
mod scratch;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use hypernest::hyperv::HostHv;
use hypernest::kvm::host::{HostCaps, HostError};
use thiserror::Error;

use crate::environment::{self, rfc3339};
use crate::migration::MigrationError;
use crate::qemu::{Qemu, QemuError};
use crate::usage::Usage;
use crate::vmm::contender::{Contender, Terms};
use crate::vmm::{self, VmmError};
use crate::{FAILED, HOST, WRONG_USE};
use console::Console;
use figures::Results;
use fio::FioError;
use loads::Load;
use machine::Place;
use network::NetworkError;
use report::Report;
use scratch::Scratch;
use tempfile::TempDir;

/// Errors of `hypernest-bench devices`.
#[derive(Debug, Error)]
pub(crate) enum DevicesError {
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
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("cannot write the scratch disk")]
    Scratch(#[source] io::Error),
    /// This program's own files and sockets.
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
    /// A VMM or its guest failed.
    #[error("{who} {how}; the end of its guest's console: {said}")]
    Failed {
        who: &'static str,
        how: String,
        said: String,
    },
    #[error("fio's report of {job:?} cannot be used")]
    Report {
        job: &'static str,
        #[source]
        source: FioError,
    },
    #[error("`hypernest migrate` ended with {0}")]
    NotMigrated(ExitStatus),
    #[error(transparent)]
    Migration(#[from] MigrationError),
    #[error("cannot write the result")]
    Json(#[from] serde_json::Error),
}

impl DevicesError {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Qemu(_) => WRONG_USE,
            Self::Host(_) | Self::Network(_) => HOST,
            Self::Terms(error) => error.code(),
            Self::Migration(error) => error.code(),
            _ => FAILED,
        }
    }
}

/// Measure virtio-blk and virtio-net in your own Linux, compared with QEMU
///
/// The Linux is on a disk of its own, logs root in on its first serial port, and has fio, gzip and base64 for
/// the loads on a disk, and bash and ip for those on the network. It is booted once in each round by each
/// VMM, and powered off. It writes to its disk as usual.
///
/// The network is a bridge with taps in a network namespace, which ends with this program: the host's own
/// networks do not change. It needs root, or unprivileged user namespaces. QEMU has vhost=off, as hypernest
/// has no vhost.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The loads; `disk` and `net` are all on a disk and on the network [default: all]
    #[arg(value_name = "LOAD", value_parser = PossibleValuesParser::new(loads::names()))]
    loads: Vec<String>,
    /// The guest's kernel
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The guest's initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The guest's system: a raw image or a block device, which is /dev/vda in the guest
    #[arg(long, value_name = "DISK")]
    root: PathBuf,
    /// The guest's command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "root=/dev/vda ro console=ttyS0 quiet systemd.show_status=false",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// The text at whose sight the shell of root takes commands
    #[arg(long, value_name = "TEXT", default_value = ":~#")]
    prompt: String,
    /// The disk that is measured: a file or a block device, WHOSE CONTENTS ARE LOST [default: a new file]
    #[arg(long, value_name = "DISK", conflicts_with = "dir")]
    scratch: Option<PathBuf>,
    /// The directory of the new file [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How much of that disk is used, in MiB
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(8..=1 << 20),
    )]
    size: u32,
    /// The cache mode of that disk
    #[arg(long, value_name = "MODE", default_value = "none")]
    cache: Cache,
    /// How QEMU does the requests of that disk
    #[arg(long, value_name = "HOW", default_value = "threads")]
    aio: Engine,
    /// How many rounds each VMM runs
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=1000),
    )]
    rounds: u32,
    /// How long each load is measured
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=3600),
    )]
    seconds: u32,
    /// The guest's vCPUs, and the queues of the disk that is measured
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=64),
    )]
    cpus: u16,
    /// The guest's memory, in MiB
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(32..=1 << 20),
    )]
    memory: u32,
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
    /// Print the result as JSON, with the values of all rounds
    #[arg(long)]
    json: bool,
    /// Timeout for each thing that a guest is waited for, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
}

/// A cache mode that both VMMs have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cache {
    /// Past the host's page cache
    None,
    /// Through it
    Writeback,
}

impl Cache {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Writeback => "writeback",
        }
    }
}

/// QEMU's `aio`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Threads,
    #[value(name = "io_uring")]
    IoUring,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::IoUring => "io_uring",
        }
    }
}

impl Args {
    fn has_network(&self) -> bool {
        let loads = loads::chosen(&self.loads);
        loads.iter().any(|load| load.needs_network())
    }

    /// The mistakes that are visible without a look at the host.
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = vmm::of_both(&self.hv, self.only_hypernest, self.qemu.as_deref());
        if self.has_network() {
            mistakes.extend(network::mistake());
        }
        let files = [
            ("kernel", Some(&self.kernel)),
            ("initrd", self.initrd.as_ref()),
        ];
        for (flag, file) in files {
            if let Some(file) = file.filter(|file| !file.is_file()) {
                mistakes.push(format!("--{flag}: there is no file {}", file.display()));
            }
        }
        let disks = [
            ("root", Some(&self.root)),
            ("scratch", self.scratch.as_ref()),
        ];
        for (flag, disk) in disks {
            let Some(disk) = disk else { continue };
            mistakes.extend(wrong_disk(disk).map(|why| format!("--{flag}: {why}")));
        }
        if self
            .scratch
            .as_deref()
            .is_some_and(|disk| same(disk, &self.root))
        {
            mistakes
                .push("--scratch: it is the disk of --root, and would be overwritten".to_owned());
        }
        if let Some(disk) = self.scratch.as_deref().filter(|disk| disk.is_file())
            && disk
                .metadata()
                .is_ok_and(|m| m.len() < u64::from(self.size) << 20)
        {
            let size = self.size;
            mistakes.push(format!(
                "--scratch: the file has not the {size} MiB of --size"
            ));
        }
        if let Some(dir) = &self.dir {
            if !dir.is_dir() {
                mistakes.push(format!("--dir: there is no directory {}", dir.display()));
            } else if dir.to_string_lossy().contains(',') {
                mistakes.push(format!("--dir: {} has a comma", dir.display()));
            }
        }
        mistakes
    }
}

fn same(one: &Path, other: &Path) -> bool {
    let (one, other) = (one.canonicalize(), other.canonicalize());
    matches!((one, other), (Ok(one), Ok(other)) if one == other)
}

fn wrong_disk(disk: &Path) -> Option<String> {
    let shown = disk.display();
    if disk.is_dir() || !disk.exists() {
        return Some(format!("there is no file or block device {shown}"));
    }
    // It separates the parts of a disk on the command line of both VMMs.
    let has_comma = disk.to_string_lossy().contains(',');
    has_comma.then(|| format!("{shown} has a comma"))
}

/// Runs the measurements and returns their results as text.
pub(crate) fn run(args: &Args) -> Result<String, DevicesError> {
    Usage::check(args.mistakes())?;
    let host = HostCaps::probe()?;
    let started = rfc3339(SystemTime::now());
    if args.has_network() {
        network::enter()?;
    }
    let bench = Bench::new(args, &host)?;
    let rows = bench.measure()?.rows();
    let report = Report::new(&bench, started, environment::read(&host, &[]), rows);
    Ok(if args.json {
        report.json()?
    } else {
        report.text()
    })
}

/// The state that all measurements share.
struct Bench {
    loads: Vec<Load>,
    /// The directory of all sockets.
    files: TempDir,
    contenders: Vec<Contender>,
    terms: Terms,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    root: PathBuf,
    cmdline: String,
    prompt: String,
    scratch: Scratch,
    size_mib: u32,
    cache: Cache,
    engine: Engine,
    rounds: u32,
    seconds: u32,
    cpus: u16,
    memory_mib: u32,
    limit: Duration,
}

impl Bench {
    fn new(args: &Args, host: &HostCaps) -> Result<Self, DevicesError> {
        let qemu = (!args.only_hypernest).then(|| Qemu::find(args.qemu.as_deref()));
        let qemu = qemu.transpose()?;
        // Without Hyper-V in KVM there are no enlightenments to choose from.
        let list = if host.kvm.caps.hyperv {
            &args.hv
        } else {
            "none"
        };
        let terms = Terms::new(list, &HostHv::from(host), qemu)?;
        let scratch = Scratch::new(args.scratch.as_deref(), args.dir.as_deref(), args.size);
        let files = tempfile::tempdir().map_err(|source| DevicesError::Own {
            doing: "make a directory for sockets",
            source,
        })?;
        Ok(Self {
            loads: loads::chosen(&args.loads),
            files,
            contenders: if args.only_hypernest {
                vec![Contender::Hypernest]
            } else {
                vec![Contender::Hypernest, Contender::Q35]
            },
            terms,
            kernel: args.kernel.clone(),
            initrd: args.initrd.clone(),
            root: args.root.clone(),
            cmdline: args.cmdline.clone(),
            prompt: args.prompt.clone(),
            scratch: scratch.map_err(DevicesError::Scratch)?,
            size_mib: args.size,
            cache: args.cache,
            engine: args.aio,
            rounds: args.rounds,
            seconds: args.seconds,
            cpus: args.cpus,
            memory_mib: args.memory,
            limit: Duration::from_secs(args.limit),
        })
    }

    /// Whether the guests have a network card.
    fn has_network(&self) -> bool {
        self.loads.iter().any(|load| load.needs_network())
    }

    fn migrates(&self) -> bool {
        self.loads.contains(&Load::Migration)
    }

    fn measure(&self) -> Result<Results, DevicesError> {
        let mut results = Results::default();
        for round in 0..self.rounds {
            for who in in_turn(&self.contenders, round) {
                eprintln!("round {} of {}: {}", round + 1, self.rounds, who.name());
                self.boot(round, who, &mut results)?;
            }
        }
        Ok(results)
    }

    /// Runs all loads in one boot of the guest.
    fn boot(&self, round: u32, who: Contender, results: &mut Results) -> Result<(), DevicesError> {
        let place = Place::near(&self.files.path().join(format!("{round}-{who:?}")));
        fs::create_dir_all(&place.runtime).map_err(|source| DevicesError::Own {
            doing: "make a directory for sockets",
            source,
        })?;
        let mut command = machine::command(who, self, &place);
        let mut console = Console::start(who, &mut command, self.limit)?;
        let disk = guest::prepare(&mut console, self)?;
        if self.loads.contains(&Load::Memory) {
            results.add(memory::BOOTED, who, memory::measure(&console, self)?);
        }
        for &load in &self.loads {
            let (name, values) = match load {
                Load::Disk(job) => {
                    let values = disk::measure(&mut console, self, &disk, job)?;
                    (job.name, values)
                }
                Load::Net(stream) => (stream.name(), net::measure(&mut console, self, stream)?),
                Load::Memory => (memory::LOADED, memory::measure(&console, self)?),
                Load::Migration => {
                    let values;
                    (values, console) = moving::measure(self, who, console, &place, &disk)?;
                    (moving::NAME, values)
                }
            };
            results.add(name, who, values);
        }
        guest::end(console)
    }
}

/// Who comes first changes with each round.
fn in_turn(contenders: &[Contender], round: u32) -> Vec<Contender> {
    let mut order = contenders.to_vec();
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Line;
    use clap::Parser as _;

    #[test]
    fn mistakes_are_found_before_the_host_is_looked_at_and_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let small = dir.path().join("small");
        std::fs::write(&small, "").unwrap();
        let small = small.display().to_string();
        let line = format!(
            "devices --hv foo --kernel /nowhere/vmlinuz --root {small} --scratch {small} --only-hypernest"
        );
        let error = run(&Line::<Args>::parse_from(line.split_whitespace()).args).unwrap_err();
        assert_eq!(error.code(), WRONG_USE);
        let text = error.to_string();
        for part in [
            "--hv: ",
            "--kernel: there is no file /nowhere/vmlinuz",
            "--scratch: it is the disk of --root",
            "--scratch: the file has not the 256 MiB",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let line =
            "devices --kernel /proc/self/exe --root /nowhere --dir /nowhere --qemu /nowhere/qemu";
        let error = run(&Line::<Args>::parse_from(line.split_whitespace()).args).unwrap_err();
        let text = error.to_string();
        for part in [
            "--root: there is no file or block device /nowhere",
            "--dir: there is no directory",
            "/nowhere/qemu is neither",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn each_comes_first_in_every_other_round() {
        let both = [Contender::Hypernest, Contender::Q35];
        assert_eq!(in_turn(&both, 0), both);
        assert_eq!(in_turn(&both, 1), [Contender::Q35, Contender::Hypernest]);
        assert_eq!(in_turn(&both, 2), both);
    }

    #[test]
    fn a_command_line_of_the_lab_is_accepted() {
        let line = "devices randread-1 net memory migration --kernel k --initrd i --root /dev/vda \
            --scratch /dev/vdb --cache writeback --aio io_uring --rounds 3 --seconds 3 --cmdline -x";
        let args = Line::<Args>::try_parse_from(line.split_whitespace())
            .unwrap()
            .args;
        assert_eq!((args.cache, args.aio), (Cache::Writeback, Engine::IoUring));
        for wrong in [
            "--rounds 0",
            "--cache unsafe",
            "trim",
            "--dir /tmp --scratch /dev/vdb",
        ] {
            let line = format!("devices --kernel k --root r {wrong}");
            assert!(Line::<Args>::try_parse_from(line.split_whitespace()).is_err());
        }
    }
}
