//! One VM with the guest program in it.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use hypernest::config::{ConfigError, Flags, HostLimits, build};
use hypernest::life::Request;
use hypernest::machine::{ExitCounters, Machine, MachineError, Outcome};
use hypernest_nested::l2exit::{Kind, Mode, Touch};
use hypernest_nested::probe::EXIT_PORT;

use super::devices::{self, Bell};
use super::reasons::Reasons;
use super::record::{Ending, Record, Shared};
use crate::exit_port::ResetWatch;
use crate::l2_exit::modes;
use crate::progress::Steps;
use crate::sync::lock;

/// The measurements of a VM.
#[derive(Debug)]
pub(super) struct Job<'a> {
    /// The image with the guest programs.
    pub(super) image: &'a Path,
    pub(super) mode: Mode,
    pub(super) touch: Touch,
    pub(super) kinds: &'a [Kind],
    pub(super) cpus: u32,
    pub(super) samples: u32,
    pub(super) warmup: u32,
    /// The host CPUs to which its vCPUs are bound.
    pub(super) pins: &'a [u32],
    /// The maximum time without progress.
    pub(super) limit: Duration,
    /// The receiver of its progress.
    pub(super) steps: Steps,
}

/// The result of a run.
#[derive(Debug)]
pub(super) struct Run {
    /// The endings of all kinds that were started.
    pub(super) endings: Vec<(Kind, Ending)>,
    /// The reason why L1 refuses the mode.
    pub(super) refused: Option<String>,
    /// The reason why the VM ended before it was done.
    pub(super) broken: Option<String>,
    /// A user interrupted it.
    pub(super) interrupted: bool,
    /// The console's text.
    pub(super) console: String,
    pub(super) warnings: Vec<String>,
}

/// A VM could not be created.
#[derive(Debug, thiserror::Error)]
pub(super) enum VmError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Enlightenments that this host does not support.
    #[error("QEMU cannot be asked for the mode's enlightenments: {0}")]
    Unknown(String),
    #[error("cannot run QEMU")]
    Qemu(#[source] io::Error),
}

/// Guest RAM: the image, L1's and L2's pages, and the samples, of which there may be many.
pub(super) fn memory(samples: u32) -> String {
    let mebibytes = 32 + u64::from(samples) * 64 / (1 << 20);
    format!("{mebibytes}M")
}

pub(super) fn command_line(job: &Job<'_>) -> String {
    let kinds: Vec<_> = job.kinds.iter().map(|kind| kind.name()).collect();
    format!(
        "l1 mode={} kinds={} touch={} n={} warmup={} cpus={}",
        job.mode,
        kinds.join(","),
        job.touch,
        job.samples,
        job.warmup,
        job.cpus
    )
}

/// Runs it until it ends.
pub(super) fn run(job: &Job<'_>, reasons: Option<Reasons>) -> Result<Run, VmError> {
    let flags = [
        ("name", "l1".to_owned()),
        ("kernel", job.image.display().to_string()),
        ("cmdline", command_line(job)),
        ("memory", memory(job.samples)),
        ("cpus", job.cpus.to_string()),
        ("nested", "true".to_owned()),
        ("hv", modes::hv(job.mode).to_owned()),
        ("serial", "none".to_owned()),
        ("debug-exit", format!("{EXIT_PORT:#x}")),
        ("on-triple-fault", "stop".to_owned()),
    ];
    let flags = Flags::from_pairs(flags.iter().map(|(key, value)| (*key, value.as_str())));
    let config = build(None, &flags, HostLimits::read())?.config;
    let record = Arc::new(Mutex::new(Record::new(job.steps.clone())));
    let counters = ExitCounters::default();
    let resets = Arc::new(ResetWatch::default());
    let bell = Bell::new(&record, &counters, job.cpus, job.pins, reasons, &resets);
    let ports = devices::ports(devices::console(&record), bell);
    let mut machine = Machine::new(config, &ports)?;
    machine.count_exits(&counters);
    resets.of(machine.handle());
    lock(&record).use_ram(machine.ram());
    let (outcome, in_time) = run_while_it_comes_forward(machine, &record, job.limit)?;
    let broken = broken(&outcome, in_time, resets.saw_reset(), job.limit);
    let interrupted = outcome == Outcome::Killed && in_time && !resets.saw_reset();
    let mut record = lock(&record);
    if let Some(why) = &broken {
        record.cut_short(why);
    }
    let malformed = record.malformed.map(|m| format!("L1's console: {m}"));
    Ok(Run {
        endings: std::mem::take(&mut record.endings),
        refused: record.refused.take(),
        broken: broken.or(malformed).or_else(|| {
            (!record.done).then(|| "L1 ended before it reported that it was done".to_owned())
        }),
        interrupted,
        console: record.lines.join("\n"),
        warnings: std::mem::take(&mut record.warnings),
    })
}

/// The reason why the VM ended too early; `None` if L1 ended it in the normal way.
fn broken(outcome: &Outcome, in_time: bool, reset: bool, limit: Duration) -> Option<String> {
    match outcome {
        // L1 has reported which kinds failed.
        Outcome::DebugExit(0 | 1) => None,
        Outcome::DebugExit(2) => Some("L1 rejected its command line".to_owned()),
        Outcome::DebugExit(code) => Some(format!("L1 failed (code {code})")),
        Outcome::Failed(report) => Some(format!("L1 could not continue: {report}")),
        _ if !in_time => Some(format!(
            "stuck: nothing happened for {} s",
            limit.as_secs_f64()
        )),
        Outcome::Killed if reset => Some("L1 crashed and reset itself".to_owned()),
        Outcome::Killed => Some("interrupted".to_owned()),
        Outcome::PowerOff | Outcome::Crashed | Outcome::Moved => Some("L1 ended the VM".to_owned()),
    }
}

/// Runs a VM and ends it when `record` shows no progress for `limit`; `false` if that was necessary.
fn run_while_it_comes_forward(
    machine: Machine,
    record: &Shared,
    limit: Duration,
) -> Result<(Outcome, bool), MachineError> {
    let handle = machine.handle();
    let (done, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watchdog = scope.spawn(move || {
            loop {
                let left = limit.saturating_sub(lock(record).progress.elapsed());
                if left.is_zero() {
                    handle.request(Request::Kill);
                    return false;
                }
                // The sender is dropped when the VM has ended.
                if ended.recv_timeout(left) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return true;
                }
            }
        });
        let outcome = machine.run();
        drop(done);
        let in_time = watchdog.join().unwrap_or(true);
        Ok((outcome?, in_time))
    })
}

/// The details of a failure: the end of the console, and the last exit that L1 saw.
pub(super) fn shown(console: &str, last_exit: Option<hypernest_nested::board::LastExit>) -> String {
    let mut shown = super::super::outcome::end_of(console);
    if let Some(exit) = last_exit {
        // Writing to a string does not fail.
        let _written = write!(
            shown,
            "{}last exit that L1 saw: reason {:#x}, qualification {:#x}, L2's RIP {:#x}",
            if shown.is_empty() { "" } else { "\n" },
            exit.reason,
            exit.qualification,
            exit.rip
        );
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_program_is_told_everything() {
        let job = Job {
            image: Path::new("/x"),
            mode: Mode::EvmcsEmsr,
            touch: Touch::Fields {
                reads: 3,
                writes: 0,
            },
            kinds: &[Kind::Cpuid, Kind::PioOut],
            cpus: 2,
            samples: 500,
            warmup: 7,
            pins: &[],
            limit: Duration::from_secs(1),
            steps: Steps::default(),
        };
        assert_eq!(
            command_line(&job),
            "l1 mode=evmcs+emsr kinds=cpuid,pio-out touch=reads=3,writes=0 n=500 warmup=7 cpus=2"
        );
        assert_eq!(memory(500), "32M");
        assert_eq!(memory(1 << 20), "96M");
    }

    #[test]
    fn ends() {
        let of = |outcome: Outcome, in_time, reset| {
            broken(&outcome, in_time, reset, Duration::from_secs(9)).unwrap_or_default()
        };
        assert_eq!(of(Outcome::DebugExit(1), true, false), "");
        assert!(of(Outcome::DebugExit(3), true, false).contains("code 3"));
        assert!(of(Outcome::Killed, false, false).contains("9 s"));
        assert!(of(Outcome::Killed, true, true).contains("reset"));
        assert_eq!(of(Outcome::Killed, true, false), "interrupted");
        assert!(of(Outcome::Failed("triple".into()), true, false).contains("triple"));
    }
}
