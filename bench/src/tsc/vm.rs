//! `hypernest` processes and the output of their guest, with the times of its arrival.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::record::{Record, Recorder};
use crate::sync::lock;

/// Errors of the processes.
#[derive(Debug, Error)]
pub(crate) enum VmError {
    /// It could not be started.
    #[error("cannot start {program} (`--hypernest FILE` names it)")]
    Start { program: String, source: io::Error },
    /// A command failed.
    #[error("`hypernest {command}` failed ({status}): {said}")]
    Command {
        command: String,
        status: ExitStatus,
        /// Its output.
        said: String,
    },
    /// A VM ended.
    #[error("the VM ended ({status}){said}")]
    Ended {
        status: ExitStatus,
        /// The last output of the VM and its guest.
        said: String,
    },
    /// The guest does not report.
    #[error("no {wanted} from the guest for {seconds} s{said}")]
    Stuck {
        /// The expected event.
        wanted: &'static str,
        /// The timeout in seconds.
        seconds: u64,
        /// The last output of the VM and its guest.
        said: String,
    },
    /// A pipe to a child process failed.
    #[error("cannot talk to a child process")]
    Pipe(#[from] io::Error),
}

impl VmError {
    /// The exit code of a command or VM that failed.
    pub(super) fn code(&self) -> Option<i32> {
        match self {
            Self::Command { status, .. } | Self::Ended { status, .. } => status.code(),
            _ => None,
        }
    }
}

/// An event of a VM.
#[derive(Debug)]
enum Came {
    Bytes(Vec<u8>),
    End,
}

/// The host's monotonic clock, from the start of the measurement on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// The time in ns.
    pub(super) fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A running VM; killed when dropped.
#[derive(Debug)]
struct Vm {
    name: String,
    child: Child,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Fails only if it has already ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
        for reader in self.readers.drain(..) {
            let _panicked = reader.join();
        }
    }
}

/// The VMs of one guest, one after the other, and the output of the guest in all of them.
#[derive(Debug)]
pub(super) struct Vms {
    hypernest: PathBuf,
    /// The directory of run directories.
    runtime: PathBuf,
    watch: Stopwatch,
    vms: Vec<Vm>,
    sender: Sender<(usize, u64, Came)>,
    receiver: Receiver<(usize, u64, Came)>,
    /// Events of a VM that arrived before the previous VM had ended.
    early: VecDeque<(usize, u64, Came)>,
    /// The VM whose bytes are next.
    run: usize,
    /// The time of the first byte of each VM.
    first_bytes: Vec<Option<u64>>,
    /// Whether the output of each VM has ended.
    ended: Vec<bool>,
    recorder: Recorder,
}

/// The maximum length of stored stderr output.
const MOST_SAID: usize = 64 * 1024;

impl Vms {
    pub(super) fn new(hypernest: &Path, runtime: &Path, watch: Stopwatch) -> Self {
        let (sender, receiver) = channel();
        Self {
            hypernest: hypernest.to_owned(),
            runtime: runtime.to_owned(),
            watch,
            vms: Vec::new(),
            sender,
            receiver,
            early: VecDeque::new(),
            run: 0,
            first_bytes: Vec::new(),
            ended: Vec::new(),
            recorder: Recorder::default(),
        }
    }

    fn hypernest(&self) -> Command {
        let mut command = Command::new(&self.hypernest);
        command
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .stdin(Stdio::null());
        command
    }

    /// The name of the next VM.
    pub(super) fn next_name(&self) -> String {
        format!("tsc-{}", self.vms.len())
    }

    /// The name of the VM that runs the guest.
    pub(super) fn name(&self) -> &str {
        self.vms.last().map_or("", |vm| vm.name.as_str())
    }

    /// Starts `hypernest` with `arguments`, with the guest's debug console on its standard output.
    pub(super) fn start(&mut self, arguments: &[impl AsRef<OsStr>]) -> Result<(), VmError> {
        let name = self.next_name();
        let mut command = self.hypernest();
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        hypernest::end_with_parent(&mut command);
        let mut child = command.spawn().map_err(|source| VmError::Start {
            program: self.hypernest.display().to_string(),
            source,
        })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let stdout = stdout.ok_or_else(broken_pipe)?;
        let stderr = stderr.ok_or_else(broken_pipe)?;
        let said = Arc::new(Mutex::new(String::new()));
        let (number, watch, sender) = (self.vms.len(), self.watch, self.sender.clone());
        let guest = thread::spawn(move || follow(stdout, number, watch, &sender));
        let heard = Arc::clone(&said);
        let complaints = thread::spawn(move || listen(stderr, &heard));
        self.first_bytes.push(None);
        self.ended.push(false);
        self.vms.push(Vm {
            name,
            child,
            stderr: said,
            readers: vec![guest, complaints],
        });
        Ok(())
    }

    /// Runs a command until it exits.
    pub(super) fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Result<(), VmError> {
        let output = self
            .hypernest()
            .args(arguments)
            .output()
            .map_err(|source| VmError::Start {
                program: self.hypernest.display().to_string(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        let words: Vec<_> = arguments
            .iter()
            .map(|a| a.as_ref().to_string_lossy())
            .collect();
        let said = [output.stdout, output.stderr].concat();
        Err(VmError::Command {
            command: words.join(" "),
            status: output.status,
            said: String::from_utf8_lossy(&said).trim().to_owned(),
        })
    }

    /// Processes the guest's output until `enough` returns true; fails if nothing arrives for `patience`.
    pub(super) fn until(
        &mut self,
        wanted: &'static str,
        patience: Duration,
        enough: impl Fn(&Record) -> bool,
    ) -> Result<(), VmError> {
        let mut heard = Instant::now();
        let mut reports = self.reports();
        while !enough(self.recorder.so_far()) {
            let arrived = self.arrive(Duration::from_millis(100))?;
            if self.reports() > reports {
                reports = self.reports();
                heard = Instant::now();
            }
            if !arrived {
                self.look_for_end()?;
            }
            if heard.elapsed() > patience {
                return Err(VmError::Stuck {
                    wanted,
                    seconds: patience.as_secs(),
                    said: self.last_words(),
                });
            }
        }
        Ok(())
    }

    fn reports(&self) -> u64 {
        self.recorder.so_far().reports.values().sum()
    }

    /// Waits until the previous VM has ended; its guest now runs in the last VM.
    pub(super) fn until_left(&mut self, patience: Duration) -> Result<(), VmError> {
        let Some(left) = self.vms.len().checked_sub(2) else {
            return Ok(());
        };
        let start = Instant::now();
        self.hand_on();
        while self.run <= left {
            self.arrive(Duration::from_millis(20))?;
            if start.elapsed() > patience {
                return Err(VmError::Stuck {
                    wanted: "end of the VM that the guest has left",
                    seconds: patience.as_secs(),
                    said: self.last_words(),
                });
            }
        }
        Ok(())
    }

    /// Processes events that arrive within `limit`. The result is whether there were any.
    fn arrive(&mut self, limit: Duration) -> Result<bool, VmError> {
        match self.receiver.recv_timeout(limit) {
            Ok(came) => {
                self.take(came);
                // Also everything that has already arrived.
                while let Ok(came) = self.receiver.try_recv() {
                    self.take(came);
                }
                Ok(true)
            }
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err(broken_pipe().into()),
        }
    }

    /// A guest's output continues where it stopped: the bytes of a VM precede those of the next.
    fn take(&mut self, came: (usize, u64, Came)) {
        if let (run, at, Came::Bytes(_)) = &came {
            self.first_bytes[*run].get_or_insert(*at);
        }
        if let (run, _, Came::End) = came {
            self.ended[run] = true;
        }
        self.early.push_back(came);
        self.hand_on();
    }

    /// Passes on the events that are next.
    fn hand_on(&mut self) {
        loop {
            let run = self.run;
            let next = self.early.iter().position(|(from, ..)| *from == run);
            if let Some((_, at, came)) = next.and_then(|index| self.early.remove(index)) {
                if let Came::Bytes(bytes) = came {
                    self.recorder.feed(&bytes, at, run);
                }
            } else if self.ended.get(run) == Some(&true) && run + 1 < self.ended.len() {
                self.run += 1;
            } else {
                return;
            }
        }
    }

    /// Fails if the VM that should run the guest has ended.
    fn look_for_end(&mut self) -> Result<(), VmError> {
        let Some(vm) = self.vms.last_mut() else {
            return Ok(());
        };
        let Some(status) = vm.child.try_wait()? else {
            return Ok(());
        };
        // Its last message may not have been read yet.
        for reader in vm.readers.drain(..) {
            let _panicked = reader.join();
        }
        Err(VmError::Ended {
            status,
            said: self.last_words(),
        })
    }

    /// The error of the last VM, if it ends soon: the reason why a migration to it failed.
    pub(super) fn end_of_destination(&mut self) -> Option<VmError> {
        const SOON: Duration = Duration::from_secs(2);
        let start = Instant::now();
        while start.elapsed() < SOON {
            if let Err(error) = self.look_for_end() {
                return Some(error);
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// The time of the first byte from the last VM.
    pub(super) fn first_byte(&self) -> Option<u64> {
        self.first_bytes.last().copied().flatten()
    }

    /// The index of the last VM.
    pub(super) fn current(&self) -> usize {
        self.vms.len().saturating_sub(1)
    }

    pub(super) fn record(&self) -> &Record {
        self.recorder.so_far()
    }

    /// The last output of the guest and the last VM, for an error.
    fn last_words(&self) -> String {
        let mut words = String::new();
        if let Some(vm) = self.vms.last() {
            let said = lock(&vm.stderr);
            if !said.trim().is_empty() {
                words.push_str(&format!("; hypernest's output:\n{}", said.trim()));
            }
        }
        let lines = &self.recorder.so_far().lines;
        if !lines.is_empty() {
            let last: Vec<_> = lines.iter().rev().take(20).rev().cloned().collect();
            words.push_str(&format!("; the guest's output:\n{}", last.join("\n")));
        }
        words
    }

    /// Ends the last VM and returns the whole record.
    pub(super) fn finish(mut self) -> Record {
        // A VM that cannot be stopped is killed.
        let _stopped = self.command(&["stop", self.name()]);
        self.vms.clear();
        while let Ok(came) = self.receiver.try_recv() {
            self.take(came);
        }
        self.recorder.finish()
    }
}

fn broken_pipe() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

fn follow(mut from: impl Read, run: usize, watch: Stopwatch, to: &Sender<(usize, u64, Came)>) {
    let mut buffer = [0; 4096];
    loop {
        let read = from.read(&mut buffer);
        let at = watch.now();
        let came = match read {
            Ok(len @ 1..) => Came::Bytes(buffer[..len].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(_) | Err(_) => Came::End,
        };
        let ended = matches!(came, Came::End);
        if to.send((run, at, came)).is_err() || ended {
            return;
        }
    }
}

fn listen(mut from: impl Read, to: &Mutex<String>) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let mut said = lock(to);
        if said.len() < MOST_SAID {
            said.push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TscError;
    use super::*;
    use crate::{FAILED, HOST, WRONG_USE};

    #[test]
    fn what_hypernest_refuses_keeps_its_exit_code_and_message() {
        let runtime = tempfile::tempdir().unwrap();
        let vms = || Vms::new(Path::new("/bin/sh"), runtime.path(), Stopwatch::start());
        let refuse = ["-c", "echo 'this host cannot scale the TSC' >&2; exit 3"];
        // A restore that is refused.
        let mut restored = vms();
        restored.start(&refuse).unwrap();
        let limit = Duration::from_secs(60);
        let error = restored.until("report", limit, |_| false).unwrap_err();
        assert!(
            error.to_string().contains("cannot scale the TSC"),
            "{error}"
        );
        assert_eq!(TscError::from(error).code(), HOST);
        // A destination that refuses a migration.
        let mut destination = vms();
        destination.start(&refuse).unwrap();
        let error = destination.end_of_destination().unwrap();
        assert!(
            error.to_string().contains("cannot scale the TSC"),
            "{error}"
        );
        assert_eq!(TscError::from(error).code(), HOST);
        for (code, wanted) in [(1, FAILED), (2, WRONG_USE), (3, HOST)] {
            let command = ["-c".to_owned(), format!("exit {code}")];
            let error = vms().command(&command).unwrap_err();
            assert_eq!(TscError::from(error).code(), wanted);
        }
    }
}
