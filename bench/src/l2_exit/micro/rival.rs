//! The same VM in QEMU. QEMU has no doorbell, so L1 streams its samples over the console at the end of each
//! kind; host exits are not counted.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::time::Duration;

use hypernest::hyperv::HostHv;
use hypernest_nested::l2exit::Kind;
use hypernest_nested::probe::{CONSOLE_PORT, EXIT_PORT, Item, Samples, next_item};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::record::{Record, Taken};
use super::threads;
use super::vm::{Job, Run, VmError, command_line, memory};
use crate::l2_exit::interrupt::Interrupts;
use crate::l2_exit::modes;
use crate::progress::Steps;
use crate::qemu::{self, Qemu};

/// QEMU, and the host's properties for its command line.
#[derive(Debug)]
pub(in crate::l2_exit) struct Rival {
    /// QEMU's program.
    pub(in crate::l2_exit) qemu: Qemu,
    /// The enlightenments that the host supports.
    pub(in crate::l2_exit) host: HostHv,
}

/// Maximum number of kept bytes of an incomplete item: more than the largest frame has.
const MOST_PENDING: usize = 16 << 20;
/// The interval at which interruptions by a user are polled.
const LOOK: Duration = Duration::from_millis(200);

/// Runs it until it ends.
pub(super) fn run(job: &Job<'_>, rival: &Rival, interrupts: &Interrupts) -> Result<Run, VmError> {
    let mut qemu = Process::start(job, rival)?;
    let mut stream = Stream::new(job.steps.clone());
    let mut ended = qemu.follow(&mut stream, job.limit, interrupts)?;
    let said = qemu.said();
    let broken = match &mut ended {
        Ended::Itself(status) => broken(*status),
        Ended::Stuck => Some(format!(
            "stuck: nothing happened for {} s",
            job.limit.as_secs_f64()
        )),
        Ended::Interrupted => Some("interrupted".to_owned()),
    };
    let mut record = stream.record;
    if let Some(why) = &broken {
        record.cut_short(why);
    }
    let malformed = record.malformed.map(|m| format!("L1's console: {m}"));
    let no_report = || format!("L1 ended without its final report; QEMU's output: {said}");
    Ok(Run {
        refused: record.refused.take(),
        broken: broken
            .or(malformed)
            .or_else(|| (!record.done).then(no_report)),
        interrupted: matches!(ended, Ended::Interrupted),
        console: record.lines.join("\n"),
        // Mostly warnings about CPU features that it leaves out.
        warnings: said.lines().map(|line| format!("QEMU: {line}")).collect(),
        endings: record.endings,
    })
}

/// The reason why it ended too early. The port for the guest's code makes 2 * code + 1 of it; QEMU's own
/// failures look like code 0, but then L1 has not reported that it was done.
fn broken(status: ExitStatus) -> Option<String> {
    match status.code() {
        // L1 has reported which kinds failed.
        Some(1 | 3) => None,
        Some(5) => Some("L1 rejected its command line".to_owned()),
        // By -no-reboot.
        Some(0) => Some("L1 crashed and reset itself".to_owned()),
        Some(code) if code % 2 == 1 => Some(format!("L1 failed (code {})", code / 2)),
        _ => Some(format!("QEMU ended with {status}")),
    }
}

/// How the run ended.
enum Ended {
    Itself(ExitStatus),
    Stuck,
    Interrupted,
}

/// QEMU; killed when dropped.
struct Process {
    child: Child,
    stdout: ChildStdout,
    stderr: File,
}

impl Process {
    fn start(job: &Job<'_>, rival: &Rival) -> Result<Self, VmError> {
        let cpu = qemu::cpu(modes::hv(job.mode), &rival.host, true).map_err(VmError::Unknown)?;
        let stderr = tempfile::tempfile().map_err(VmError::Qemu)?;
        let mut command = rival.qemu.command();
        command.args(["-M", "q35,kernel-irqchip=on", "-bios", "qboot.rom"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-no-reboot", "-accel", "kvm", "-cpu", &cpu]);
        command.args(["-smp", &job.cpus.to_string()]);
        command.args(["-m", &memory(job.samples)]);
        command.args(["-append", &command_line(job), "-kernel"]);
        command.arg(job.image);
        command.args(["-chardev", "stdio,id=console"]);
        let console = format!("isa-debugcon,iobase={CONSOLE_PORT:#x},chardev=console");
        let exit = format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1");
        command.args(["-device", &console, "-device", &exit]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(stderr.try_clone().map_err(VmError::Qemu)?);
        // This program handles the terminal's signals.
        command.process_group(0);
        hypernest::end_with_parent(&mut command);
        let mut child = command.spawn().map_err(VmError::Qemu)?;
        // Its threads inherit this binding: they do not exist yet, and only QEMU can tell vCPU threads from
        // others.
        let count = usize::try_from(job.cpus).unwrap_or(usize::MAX);
        let bound = threads::bind_process(child.id(), job.pins.get(..count).unwrap_or(job.pins));
        match bound.and_then(|()| child.stdout.take().ok_or(ErrorKind::BrokenPipe.into())) {
            Ok(stdout) => Ok(Self {
                child,
                stdout,
                stderr,
            }),
            Err(error) => {
                end(&mut child);
                Err(VmError::Qemu(error))
            }
        }
    }

    /// Reads its output until it exits, or makes no progress for `limit`.
    fn follow(
        &mut self,
        stream: &mut Stream,
        limit: Duration,
        interrupts: &Interrupts,
    ) -> Result<Ended, VmError> {
        let look = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let mut fds = [PollFd::new(self.stdout.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, look) {
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => match self.stdout.read(&mut buffer) {
                    Ok(0) => {
                        let status = self.child.wait().map_err(VmError::Qemu)?;
                        return Ok(Ended::Itself(status));
                    }
                    Ok(length) => stream.feed(&buffer[..length]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(VmError::Qemu(error)),
                },
                Err(errno) => return Err(VmError::Qemu(errno.into())),
            }
            if interrupts.arrived() {
                return Ok(Ended::Interrupted);
            }
            if stream.record.progress.elapsed() > limit {
                return Ok(Ended::Stuck);
            }
        }
    }

    /// Its output on standard error.
    fn said(&mut self) -> String {
        let mut text = Vec::new();
        let read = self.stderr.rewind();
        // Unreadable output is ignored: it is only informative.
        let _read = read.and_then(|()| (&self.stderr).take(1 << 16).read_to_end(&mut text));
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}

fn end(child: &mut Child) {
    // Both fail only if the process has already been reaped.
    let _ended = child.kill();
    let _waited = child.wait();
}

impl Drop for Process {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The console's stream.
struct Stream {
    record: Record,
    pending: Vec<u8>,
    /// Parts of the kind that is being reported.
    parts: Parts,
}

impl Stream {
    fn new(steps: Steps) -> Self {
        Self {
            record: Record::new(steps),
            pending: Vec::new(),
            parts: Parts::default(),
        }
    }
}

/// The parts of a kind's samples, in the order in which they were taken.
#[derive(Default)]
struct Parts {
    round_trip: Vec<u64>,
    l2_to_l1: Vec<u64>,
    l1: Vec<u64>,
    l1_to_l2: Vec<u64>,
}

impl Stream {
    fn feed(&mut self, bytes: &[u8]) {
        if self.record.malformed.is_some() || self.pending.len() > MOST_PENDING {
            return;
        }
        self.pending.extend(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut at = 0;
        loop {
            match next_item(&pending[at..]) {
                Ok(Some((item, len))) => {
                    self.take(item);
                    at += len;
                }
                Ok(None) => break,
                Err(malformed) => {
                    self.record.malformed = Some(malformed);
                    return;
                }
            }
        }
        self.pending = pending[at..].to_vec();
    }

    fn take(&mut self, item: Item<'_>) {
        match item {
            Item::Line(line) => {
                let line = String::from_utf8_lossy(line).into_owned();
                if let Some((kind, ticks)) = stopwatch(&line) {
                    let parts = std::mem::take(&mut self.parts);
                    self.record.streamed(kind, parts.taken(ticks));
                }
                self.record.line(line);
            }
            Item::Samples(samples) => self.samples(samples),
            Item::Mark(_) | Item::Alive => {}
        }
    }

    fn samples(&mut self, samples: Samples<'_>) {
        // The kind's name is ignored here: the line at the end repeats it.
        let part = match samples.name.rsplit_once('.') {
            Some((_, "round-trip")) => &mut self.parts.round_trip,
            Some((_, "l2-to-l1")) => &mut self.parts.l2_to_l1,
            Some((_, "l1")) => &mut self.parts.l1,
            Some((_, "l1-to-l2")) => &mut self.parts.l1_to_l2,
            _ => return,
        };
        *part = samples.iter().collect();
        self.record.come_forward();
    }
}

/// `stopwatch KIND TICKS`.
fn stopwatch(line: &str) -> Option<(Kind, u64)> {
    let (kind, ticks) = line.strip_prefix("stopwatch ")?.split_once(' ')?;
    Some((Kind::parse(kind)?, ticks.parse().ok()?))
}

impl Parts {
    /// Samples whose parts do not add up were out of order.
    fn taken(self, stopwatch: u64) -> Result<Taken, String> {
        let lengths = [&self.l2_to_l1, &self.l1, &self.l1_to_l2].map(Vec::len);
        let mut taken = Taken {
            stopwatch: Some(stopwatch),
            ..Taken::default()
        };
        if lengths == [0; 3] {
            taken.round_trip = self.round_trip;
            return Ok(taken);
        }
        if lengths != [self.round_trip.len(); 3] {
            return Err("L1 streamed more samples of one part than of another".to_owned());
        }
        let parts = self.l2_to_l1.into_iter().zip(self.l1).zip(self.l1_to_l2);
        for (round_trip, ((l2_to_l1, l1), l1_to_l2)) in self.round_trip.into_iter().zip(parts) {
            let sum = l2_to_l1
                .checked_add(l1)
                .and_then(|sum| sum.checked_add(l1_to_l2));
            if sum == Some(round_trip) {
                taken.l2_to_l1.push(l2_to_l1);
                taken.l1.push(l1);
                taken.l1_to_l2.push(l1_to_l2);
                taken.round_trip.push(round_trip);
            } else {
                taken.out_of_order += 1;
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l2_exit::micro::record::Ending;
    use hypernest_nested::probe::{Width, samples_header};
    use std::os::unix::process::ExitStatusExt as _;

    fn frame(name: &str, values: &[u64]) -> Vec<u8> {
        let mut bytes = samples_header(name, Width::Eight, values.len())
            .unwrap()
            .to_vec();
        bytes.extend(name.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }

    fn fed(bytes: &[u8]) -> Record {
        let mut stream = Stream::new(Steps::default());
        for piece in bytes.chunks(7) {
            stream.feed(piece);
        }
        stream.record
    }

    #[test]
    fn parts_come_as_frames_and_the_stopwatch_ends_a_kind() {
        let mut bytes = b"\0l1: running cpuid\n".to_vec();
        bytes.extend(frame("cpuid.round-trip", &[35, 10, 7]));
        bytes.extend(frame("cpuid.l2-to-l1", &[10, 4, 7]));
        bytes.extend(frame("cpuid.l1", &[20, 0_u64.wrapping_sub(2), 0]));
        bytes.extend(frame("cpuid.l1-to-l2", &[5, 8, 0]));
        bytes.extend(b"stopwatch cpuid 99\nl1: running wrmsr-direct\n");
        bytes.extend(frame("wrmsr-direct.round-trip", &[3]));
        bytes.extend(b"stopwatch wrmsr-direct 4\nskip xsetbv: none\nl1: done\n");
        let record = fed(&bytes);
        let whole = Taken {
            l2_to_l1: vec![10, 7],
            l1: vec![20, 0],
            l1_to_l2: vec![5, 0],
            round_trip: vec![35, 7],
            out_of_order: 1,
            stopwatch: Some(99),
            ..Taken::default()
        };
        let direct = Taken {
            round_trip: vec![3],
            stopwatch: Some(4),
            ..Taken::default()
        };
        assert_eq!(
            record.endings,
            [
                (Kind::Cpuid, Ending::Complete(whole)),
                (Kind::WrmsrDirect, Ending::Complete(direct)),
                (Kind::Xsetbv, Ending::Skipped("none".into())),
            ]
        );
        assert!(record.done);
    }

    #[test]
    fn a_hostile_stream_harms_nothing() {
        let record = fed(&frame("cpuid.l1", &[1]));
        assert!(record.endings.is_empty());
        let mut uneven = frame("cpuid.round-trip", &[1]);
        uneven.extend(frame("cpuid.l1", &[1]));
        uneven.extend(b"stopwatch cpuid 1\n\xffnonsense\n");
        let record = fed(&uneven);
        assert!(matches!(record.endings[0].1, Ending::Failed { .. }));
        assert!(record.malformed.is_some());
    }

    #[test]
    fn codes_of_the_guest_and_of_qemu() {
        let of = |code: i32| broken(ExitStatus::from_raw(code << 8)).unwrap_or_default();
        assert_eq!((of(1), of(3)), (String::new(), String::new()));
        assert!(of(5).contains("command line") && of(7).contains("code 3"));
        assert!(of(0).contains("reset") && of(2).contains("QEMU ended"));
        assert!(broken(ExitStatus::from_raw(9)).unwrap().contains("signal"));
    }
}
