//! Runs the guest program `l2` and collects its reports.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use hypernest::config::{ConfigError, Flags, HostLimits, build};
use hypernest::life::Request;
use hypernest::machine::{ExtraPorts, Machine, MachineError, Outcome};
use hypernest_nested::probe::{CONSOLE_PORT, EXIT_PORT, Item, Malformed};
use thiserror::Error;

use crate::probe_console::{ProbeConsole, Sink};

/// An L2 run without a measurement.
#[derive(Debug, Error)]
pub(crate) enum L2Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("L2's report is malformed")]
    Malformed(#[from] Malformed),
    /// L2 ended in an unexpected way.
    #[error("L2 {how}; its output: {said}")]
    Ended {
        how: String,
        /// L2's text lines.
        said: String,
    },
    #[error("L2 did not end within {seconds} s; its output: {said}")]
    Stuck {
        /// The timeout.
        seconds: u64,
        /// L2's text lines.
        said: String,
    },
    /// The block is missing.
    #[error("L2 succeeded, but reported no samples of {0}")]
    Missing(&'static str),
}

/// The number of exits to the host, if it is available.
pub(crate) type HostExits = Arc<dyn Fn() -> Option<u32> + Send + Sync>;

/// Samples with the host's exits at both ends of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The name of the timed exit.
    pub(crate) name: String,
    /// In TSC ticks.
    pub(crate) samples: Vec<u64>,
    /// Exits to the host from the first sample to the last.
    pub(crate) host_exits: Option<u32>,
}

/// The exit that is timed, by the guest program's name for it.
pub(crate) const KIND: &str = "cpuid";
/// The guest program's name for intervals around nothing.
pub(crate) const EMPTY: &str = "empty";

/// Parameters of an L2 run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    /// The image with the guest programs.
    pub(crate) image: &'a Path,
    /// The number of samples.
    pub(crate) samples: u32,
    /// Exits before the first sample.
    pub(crate) warmup: u32,
    /// The timeout.
    pub(crate) limit: Duration,
}

/// Runs an L2 and returns the blocks that it reports, [`EMPTY`] and [`KIND`] among them.
pub(crate) fn run(job: Job<'_>, host_exits: &HostExits) -> Result<Vec<Block>, L2Error> {
    let command_line = format!("l2 n={} warmup={} kinds={KIND}", job.samples, job.warmup);
    let image = job.image.display().to_string();
    let exit_port = format!("{EXIT_PORT:#x}");
    let flags = Flags::from_pairs([
        ("name", "l2"),
        ("kernel", &image),
        ("cmdline", &command_line),
        ("memory", "32M"),
        ("hv", "none"),
        ("serial", "none"),
        ("debug-exit", &exit_port),
        ("on-triple-fault", "stop"),
    ]);
    let config = build(None, &flags, HostLimits::read())?.config;
    let collector = Collector::new(Arc::clone(host_exits));
    let collector = Arc::new(Mutex::new(ProbeConsole::new(collector, MAX_PENDING)));
    let console = ExtraPorts::new(CONSOLE_PORT, 1, collector.clone());
    let machine = Machine::new(config, &[console])?;
    let (outcome, in_time) = run_at_most(machine, job.limit)?;
    let collector = &mut collector
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .sink;
    let said = collector.text();
    if !in_time {
        let seconds = job.limit.as_secs();
        return Err(L2Error::Stuck { seconds, said });
    }
    let how = match outcome {
        Outcome::DebugExit(0) => {
            if let Some(malformed) = collector.malformed {
                return Err(malformed.into());
            }
            return Ok(std::mem::take(&mut collector.blocks));
        }
        Outcome::DebugExit(code) => format!("ended with {code}"),
        Outcome::Failed(report) => format!("could not continue: {report}"),
        Outcome::Killed => "was ended by a signal".to_owned(),
        Outcome::PowerOff | Outcome::Crashed | Outcome::Moved => {
            "ended without a result".to_owned()
        }
    };
    Err(L2Error::Ended { how, said })
}

/// Runs a VM and ends it after `limit`; `false` if that was necessary.
pub(crate) fn run_at_most(
    machine: Machine,
    limit: Duration,
) -> Result<(Outcome, bool), MachineError> {
    let handle = machine.handle();
    let (done, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watchdog = scope.spawn(move || {
            // The sender is dropped when the VM has ended.
            let in_time = ended.recv_timeout(limit) != Err(mpsc::RecvTimeoutError::Timeout);
            if !in_time {
                handle.request(Request::Kill);
            }
            in_time
        });
        let outcome = machine.run();
        drop(done);
        let in_time = watchdog.join().unwrap_or(true);
        Ok((outcome?, in_time))
    })
}

/// The block called `name`.
pub(crate) fn block<'a>(blocks: &'a [Block], name: &'static str) -> Result<&'a Block, L2Error> {
    blocks
        .iter()
        .find(|block| block.name == name)
        .ok_or(L2Error::Missing(name))
}

/// Collects L2's reports. A mark is timestamped when its last byte arrives.
struct Collector {
    host_exits: HostExits,
    malformed: Option<Malformed>,
    lines: Vec<String>,
    begin: Option<u32>,
    end: Option<u32>,
    blocks: Vec<Block>,
}

/// Maximum number of kept lines: a guest with more output failed at the start.
const MOST_LINES: usize = 100;
/// Maximum number of kept bytes of an incomplete item: more than the samples of one block need.
const MAX_PENDING: usize = 16 << 20;

impl Collector {
    fn new(host_exits: HostExits) -> Self {
        Self {
            host_exits,
            malformed: None,
            lines: Vec::new(),
            begin: None,
            end: None,
            blocks: Vec::new(),
        }
    }

    fn text(&self) -> String {
        if self.lines.is_empty() {
            return "nothing".to_owned();
        }
        self.lines.join(" | ")
    }
}

impl Sink for Collector {
    fn item(&mut self, item: Item<'_>) {
        match item {
            // The counter is read before anything else is done.
            Item::Mark("begin") => self.begin = (self.host_exits)(),
            Item::Mark("end") => self.end = (self.host_exits)(),
            Item::Mark(_) | Item::Alive => {}
            Item::Line(line) => {
                if self.lines.len() < MOST_LINES {
                    self.lines.push(String::from_utf8_lossy(line).into_owned());
                }
            }
            Item::Samples(samples) => self.blocks.push(Block {
                name: samples.name.to_owned(),
                samples: samples.iter().collect(),
                host_exits: self
                    .begin
                    .take()
                    .zip(self.end.take())
                    .map(|(begin, end)| end.wrapping_sub(begin)),
            }),
        }
    }

    fn malformed(&mut self, malformed: Malformed) {
        self.malformed = Some(malformed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypernest::bus::{LockedDevice as _, Region};
    use hypernest_nested::probe::{Width, mark_header, samples_header};
    use std::sync::atomic::{AtomicU32, Ordering};

    fn mark(name: &str) -> Vec<u8> {
        [&mark_header(name).unwrap()[..], name.as_bytes()].concat()
    }

    fn samples(name: &str, values: &[u32]) -> Vec<u8> {
        let mut bytes = samples_header(name, Width::Four, values.len())
            .unwrap()
            .to_vec();
        bytes.extend(name.bytes());
        for value in values {
            bytes.extend(value.to_le_bytes());
        }
        bytes
    }

    fn console(host_exits: HostExits) -> ProbeConsole<Collector> {
        ProbeConsole::new(Collector::new(host_exits), MAX_PENDING)
    }

    /// Writes four bytes at a time, as a guest does.
    fn write(console: &mut ProbeConsole<Collector>, bytes: &[u8]) {
        for piece in bytes.chunks(4) {
            console.write(Region::ONLY, 0, piece);
        }
    }

    #[test]
    fn marks_are_dated_when_their_last_byte_arrives() {
        let clock = Arc::new(AtomicU32::new(u32::MAX - 1));
        let read = Arc::clone(&clock);
        let mut collector = console(Arc::new(move || Some(read.load(Ordering::Relaxed))));
        write(&mut collector, b"\0hello\n");
        let begin = mark("begin");
        let (last, rest) = begin.split_last().unwrap();
        write(&mut collector, rest);
        clock.fetch_add(1, Ordering::Relaxed);
        write(&mut collector, &[*last]);
        // The counter wraps.
        clock.fetch_add(40, Ordering::Relaxed);
        write(&mut collector, &mark("end"));
        clock.fetch_add(5, Ordering::Relaxed);
        write(&mut collector, &samples("cpuid", &[7, 9]));
        write(&mut collector, &samples("unmarked", &[]));
        let collector = collector.sink;
        assert_eq!(collector.text(), "hello");
        assert_eq!(
            collector.blocks,
            [
                Block {
                    name: "cpuid".into(),
                    samples: vec![7, 9],
                    host_exits: Some(40)
                },
                Block {
                    name: "unmarked".into(),
                    samples: vec![],
                    host_exits: None
                },
            ]
        );
        assert!(block(&collector.blocks, KIND).is_ok());
        assert!(block(&collector.blocks, EMPTY).is_err());
    }
}
