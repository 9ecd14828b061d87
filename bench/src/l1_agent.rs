//! `hypernest-bench l1-agent`: the init of an L1 that runs Linux. It runs L2s and reports on the second
//! serial port.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios;
use thiserror::Error;

use crate::cpu::Ports;
use crate::exit_port;
use crate::histogram::{self, HistogramError};
use crate::kvm_module::{self, ModuleError, Vendor};
use crate::l2::{self, Block, HostExits, Job, L2Error};
use crate::wire::{Message, Mode, Round};

/// The directory of the modules in L1's initramfs.
pub(crate) const MODULES: &str = "/modules";
/// The serial port for the report.
const REPORT: &str = "/dev/ttyS1";

/// Runs as the init of an L1; `l2-exit` starts it there.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The modes in which L1's KVM runs L2, in sequence
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) modes: Vec<Mode>,
    /// Samples per round
    #[arg(long)]
    pub(crate) samples: u32,
    /// Rounds for each mode, each with a new L2
    #[arg(long)]
    pub(crate) rounds: u32,
    /// Exits before the first sample
    #[arg(long)]
    pub(crate) warmup: u32,
    /// Timeout for one L2, in seconds
    #[arg(long)]
    pub(crate) limit: u64,
}

/// A mode that could not be measured.
#[derive(Debug, Error)]
enum AgentError {
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    L2(#[from] L2Error),
    #[error(transparent)]
    Histogram(#[from] HistogramError),
    #[error(
        "L1 should use an enlightened VMCS but does not: its kernel did not log {EVMCS_LINE:?}"
    )]
    EvmcsNotUsed,
    #[error("L1 should not use an enlightened VMCS but does")]
    EvmcsUsed,
    #[error("the host's exit counter is missing: L1 was not started by hypernest-bench")]
    NoCounter,
    #[error("the host's exit counter could not be read while L2 ran")]
    NotCounted,
}

/// `kvm_intel`'s message when it uses an enlightened VMCS (hv_init_evmcs in arch/x86/kvm/vmx/vmx_onhyperv.c).
const EVMCS_LINE: &str = "Using Hyper-V Enlightened VMCS";

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> AgentError {
    let what = what.into();
    move |source| AgentError::Io { what, source }
}

/// Runs all measurements and powers off. Returns only if this process is not an init.
pub(crate) fn run(args: &Args) -> io::Error {
    if std::process::id() != 1 {
        return io::Error::other(
            "l1-agent is the init of an L1; `hypernest-bench l2-exit` starts it",
        );
    }
    if let Err(error) = measure_all(args) {
        // To the console, whose end is shown when the report is incomplete.
        eprintln!("l1-agent: {}", crate::chain(&error));
    }
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// The arguments of init: all words after `--` on the kernel's command line. The kernel also passes unknown
/// parameters to init, so the process's own arguments contain more than that.
pub(crate) fn command_line() -> Result<Vec<String>, Box<dyn std::error::Error>> {
    mount_at("proc", "/proc").map_err(io_error("cannot mount /proc"))?;
    let line = fs::read_to_string("/proc/cmdline").map_err(io_error("/proc/cmdline"))?;
    Ok(after_dashes(&line))
}

fn after_dashes(line: &str) -> Vec<String> {
    let words = line.split_whitespace().skip_while(|word| *word != "--");
    ["hypernest-bench"]
        .into_iter()
        .chain(words.skip(1))
        .map(str::to_owned)
        .collect()
}

/// Mounts one of the kernel's file systems.
pub(crate) fn mount_at(kind: &str, target: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let (flags, data) = (MsFlags::empty(), None::<&str>);
    mount(Some(kind), target, Some(kind), flags, data).map_err(io::Error::from)
}

fn measure_all(args: &Args) -> Result<(), AgentError> {
    for (kind, target) in [("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_at(kind, target).map_err(io_error(format!("cannot mount {target}")))?;
    }
    let mut report = File::options()
        .write(true)
        .open(REPORT)
        .map_err(io_error(REPORT))?;
    let mut log = KernelLog::open()?;
    let image = Path::new("/guest");
    fs::write(image, hypernest_guest::GUEST).map_err(io_error("cannot write L2's image"))?;
    let counter = host_exits()?;
    say(
        &mut report,
        &Message::Started {
            kernel: word("/proc/sys/kernel/osrelease"),
            clocksource: word("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            log: log
                .news()?
                .into_iter()
                .filter(|l| shows_hypervisor(l))
                .collect(),
        },
    )?;
    for module in ["irqbypass.ko", "kvm.ko"] {
        kvm_module::load(&PathBuf::from(MODULES).join(module), "")?;
    }
    for &mode in &args.modes {
        if let Err(error) = measure(args, mode, image, &counter, &mut log, &mut report) {
            let why = crate::chain(&error);
            say(&mut report, &Message::Failed { mode, why })?;
        }
    }
    say(&mut report, &Message::Done)?;
    // Powering off drops data that is still in the port.
    termios::tcdrain(&report).map_err(|e| io_error(REPORT)(e.into()))
}

fn measure(
    args: &Args,
    mode: Mode,
    image: &Path,
    counter: &HostExits,
    log: &mut KernelLog,
    report: &mut File,
) -> Result<(), AgentError> {
    let (vendor, parameters) = match mode {
        Mode::Evmcs => (Vendor::Intel, "enlightened_vmcs=1"),
        Mode::Vmcs => (Vendor::Intel, "enlightened_vmcs=0"),
        Mode::Svm => (Vendor::Amd, ""),
    };
    kvm_module::unload(vendor)?;
    log.news()?;
    kvm_module::load(&PathBuf::from(MODULES).join(vendor.file()), parameters)?;
    let said = log.news()?;
    let used = said.iter().any(|line| line.contains(EVMCS_LINE));
    say(report, &Message::Loaded { mode, log: said })?;
    match (mode, used) {
        (Mode::Evmcs, false) => return Err(AgentError::EvmcsNotUsed),
        (Mode::Vmcs, true) => return Err(AgentError::EvmcsUsed),
        _ => {}
    }
    for _ in 0..args.rounds {
        let job = Job {
            image,
            samples: args.samples,
            warmup: args.warmup,
            limit: Duration::from_secs(args.limit),
        };
        let blocks = l2::run(job, counter)?;
        let timed = l2::block(&blocks, l2::KIND)?;
        let empty = l2::block(&blocks, l2::EMPTY)?;
        let exits = |block: &Block| {
            block
                .host_exits
                .map(i64::from)
                .ok_or(AgentError::NotCounted)
        };
        let (ticks, out_of_range) = histogram::of(timed.samples.iter().copied());
        let (empty_ticks, _) = histogram::of(empty.samples.iter().copied());
        let round = Round {
            mode,
            kind: timed.name.clone(),
            samples: timed.samples.len() as u64,
            ticks: histogram::encode(&ticks)?,
            out_of_range,
            empty_ticks: histogram::encode(&empty_ticks)?,
            host_exits: exits(timed)? - exits(empty)?,
        };
        say(report, &Message::Round(round))?;
    }
    Ok(())
}

fn host_exits() -> Result<HostExits, AgentError> {
    let ports = Ports::open(exit_port::FIRST, exit_port::COUNT)
        .map_err(io_error("no access to the exit counter's ports"))?;
    if ports.read32(exit_port::PRESENT) != exit_port::SIGNATURE {
        return Err(AgentError::NoCounter);
    }
    // All ones: the host could not read its counter.
    Ok(Arc::new(move || {
        Some(ports.read32(exit_port::EXITS)).filter(|&exits| exits != u32::MAX)
    }))
}

fn say(report: &mut File, message: &Message) -> Result<(), AgentError> {
    let mut line = serde_json::to_vec(message).map_err(|e| io_error("report")(e.into()))?;
    line.push(b'\n');
    report.write_all(&line).map_err(io_error(REPORT))
}

fn word(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Whether a line of the kernel log shows which hypervisor L1 detected.
fn shows_hypervisor(line: &str) -> bool {
    const WORDS: [&str; 5] = [
        "Hypervisor detected",
        "Hyper-V",
        "hyperv",
        "Switched to clocksource",
        "Detected ",
    ];
    WORDS.iter().any(|word| line.contains(word))
}

/// The kernel's log, one record per read (Documentation/ABI/testing/dev-kmsg).
struct KernelLog(File);

impl KernelLog {
    fn open() -> Result<Self, AgentError> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg");
        file.map(Self).map_err(io_error("/dev/kmsg"))
    }

    /// The records since the last call.
    fn news(&mut self) -> Result<Vec<String>, AgentError> {
        let mut lines = Vec::new();
        // Longer than any record of the kernel.
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(len) => lines.extend(message(&record[..len])),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(lines),
                // Records were overwritten before they were read: continue with the oldest one.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
                Err(e) => return Err(io_error("/dev/kmsg")(e)),
            }
        }
    }
}

/// The text of a record: `priority,sequence,time,flags;TEXT`, followed by lines with details.
fn message(record: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(record);
    let (_, text) = text.split_once(';')?;
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_records() {
        let record = b"6,339,5140900,-;kvm_intel: Using Hyper-V; v1\n SUBSYSTEM=x\n";
        assert_eq!(
            message(record).as_deref(),
            Some("kvm_intel: Using Hyper-V; v1")
        );
        assert_eq!(message(b"6,1,1,-;"), None);
        assert_eq!(message(b"nonsense"), None);
    }

    #[test]
    fn only_what_is_after_the_dashes_is_for_init() {
        assert_eq!(
            after_dashes("quiet nokaslr -- l1-agent --rounds 3\n"),
            ["hypernest-bench", "l1-agent", "--rounds", "3"]
        );
        assert_eq!(after_dashes("quiet"), ["hypernest-bench"]);
    }

    #[test]
    fn telling_lines() {
        assert!(shows_hypervisor("Hypervisor detected: Microsoft Hyper-V"));
        assert!(!shows_hypervisor("pci 0000:00:00.0: [1b36:0008] type 00"));
    }
}
