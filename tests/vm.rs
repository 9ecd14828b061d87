//! `hypernest` as a process that a test starts, observes, and ends.

use std::borrow::BorrowMut;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypernest_lab::host::Host;
use hypernest_lab::plan::{LAB_HOST_VARIABLE, LAB_LONG_VARIABLE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The timeout of a test's waits, by the host's own clock. Below the limit of most tests, so that a test says
/// for what it has waited.
const PATIENCE: Duration = Duration::from_secs(50);
/// The timeout of waits for a whole operating system.
const PATIENCE_WITH_LINUX: Duration = Duration::from_secs(180);
/// The divisor of the timeouts in the Intel lab: a second of its emulated time takes half a minute, and every
/// action completes within few of them.
const INTEL_HASTE: u32 = 10;
const STEP: Duration = Duration::from_millis(10);

type Failure = Box<dyn Error>;

/// Whether loops run at their full length.
pub(crate) fn is_long_run() -> bool {
    std::env::var_os(LAB_LONG_VARIABLE).is_some()
}

/// The timeout of a test's waits.
pub(crate) fn patience() -> Duration {
    on_this_host(PATIENCE)
}

fn on_this_host(patience: Duration) -> Duration {
    if is_intel_lab() {
        patience / INTEL_HASTE
    } else {
        patience
    }
}

/// Whether this is the emulated Intel host.
pub(crate) fn is_intel_lab() -> bool {
    std::env::var(LAB_HOST_VARIABLE).is_ok_and(|name| name == Host::Intel.name())
}

/// The directory of one test: its files, its VMs' working directory, and their run directories.
pub(crate) struct Site(TempDir);

impl Site {
    pub(crate) fn new() -> io::Result<Self> {
        let site = Self(TempDir::with_prefix("vm")?);
        fs::write(site.path("guest"), hypernest_guest::GUEST)?;
        Ok(site)
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and returns its path.
    pub(crate) fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> io::Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, contents)?;
        Ok(path)
    }

    /// `hypernest`, without arguments.
    pub(crate) fn hypernest(&self) -> Command {
        let program = match std::env::var_os(LAB_HOST_VARIABLE) {
            Some(_) => "hypernest",
            None => env!("CARGO_BIN_EXE_hypernest"),
        };
        let mut command = Command::new(program);
        command
            .current_dir(self.0.path())
            .env("XDG_RUNTIME_DIR", self.0.path())
            .env_remove("HYPERNEST_LOG")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null());
        command
    }

    /// `hypernest run`, without enlightenments, of the guest program that this command line selects. The
    /// guest's output is on stdout.
    pub(crate) fn guest(&self, command_line: &str) -> Command {
        let mut command = self.enlightened_guest(command_line);
        command.args(["--hv", "none"]);
        command
    }

    /// The same with enlightenments: all that the host supports, unless the arguments select others.
    pub(crate) fn enlightened_guest(&self, command_line: &str) -> Command {
        let mut command = self.hypernest();
        command
            .args(["run", "--name", "test", "--kernel", "guest"])
            .args(["--cmdline", command_line, "--memory", "64M"])
            .args(["--serial", "none", "--debugcon", "stdio", "--debug-exit"]);
        command
    }

    /// Runs another `hypernest` until it exits, such as a request to a running VM.
    pub(crate) fn control(&self, arguments: &[&str]) -> Result<Ended, Failure> {
        Vm::start(self.hypernest().args(arguments))?.end()
    }

    /// The output of `hypernest status` for the VM.
    pub(crate) fn status(&self) -> Result<serde_json::Value, Failure> {
        let ended = self.control(&["status", "test", "--json"])?;
        ended.expect_code(0)?;
        Ok(serde_json::from_str(&ended.stdout)?)
    }

    /// The run directories that still exist.
    pub(crate) fn run_directories(&self) -> io::Result<Vec<PathBuf>> {
        match fs::read_dir(self.path("hypernest")) {
            Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// The output of a stream so far.
struct Stream {
    said: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    fn follow(mut from: impl Read + Send + 'static) -> Self {
        let said = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&said);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                to.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend(&buffer[..read]);
            }
        });
        Self {
            said,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said).into_owned()
    }

    /// The whole output; the process has ended.
    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _panicked = reader.join();
        }
        self.text()
    }
}

/// A running `hypernest`; killed when dropped.
pub(crate) struct Vm {
    patience: Duration,
    child: Child,
    stdout: Option<Stream>,
    stderr: Stream,
}

impl Vm {
    /// Starts `command` and follows its stdout; [`Vm::start_onto`] redirects stdout instead.
    pub(crate) fn start(mut command: impl BorrowMut<Command>) -> io::Result<Self> {
        let mut child = command
            .borrow_mut()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().map(Stream::follow);
        Self::following(child, stdout)
    }

    /// Starts `command` with its stdout in `stdout`.
    pub(crate) fn start_onto(
        mut command: impl BorrowMut<Command>,
        stdout: File,
    ) -> io::Result<Self> {
        let child = command
            .borrow_mut()
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()?;
        Self::following(child, None)
    }

    fn following(mut child: Child, stdout: Option<Stream>) -> io::Result<Self> {
        let stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self {
            patience: patience(),
            child,
            stdout,
            stderr: Stream::follow(stderr),
        })
    }

    /// Selects the longer timeout.
    pub(crate) fn patient(mut self) -> Self {
        self.patience = on_this_host(PATIENCE_WITH_LINUX);
        self
    }

    /// The output on stdout so far.
    pub(crate) fn said(&self) -> String {
        self.stdout.as_ref().map(Stream::text).unwrap_or_default()
    }

    /// The output on stderr so far.
    pub(crate) fn complained(&self) -> String {
        self.stderr.text()
    }

    /// Writes a line to its stdin, which is a pipe.
    pub(crate) fn tell(&mut self, line: &str) -> io::Result<()> {
        let stdin = self.child.stdin.as_mut();
        writeln!(stdin.ok_or(io::ErrorKind::BrokenPipe)?, "{line}")
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        kill(self.pid(), signal)
    }

    /// Waits until the guest has printed `text`.
    pub(crate) fn wait_for(&mut self, text: &str) -> Result<(), Failure> {
        self.wait_until(text, |vm| vm.said().contains(text))
    }

    /// Waits until `condition` holds; fails if the process ends before that.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        condition: impl Fn(&Self) -> bool,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            // Checked first, so that the last output of a process is not missed.
            let ended = self.child.try_wait()?;
            if condition(self) {
                return Ok(());
            }
            let why = match ended {
                Some(status) => format!("it ended ({status})"),
                None if start.elapsed() > self.patience => {
                    format!("{} s passed", self.patience.as_secs())
                }
                None => {
                    std::thread::sleep(STEP);
                    continue;
                }
            };
            return Err(format!(
                "waited for {what:?} and {why}; stdout:\n{}\nstderr:\n{}",
                self.said(),
                self.complained()
            )
            .into());
        }
    }

    /// Waits until the process ends.
    pub(crate) fn end(mut self) -> Result<Ended, Failure> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if start.elapsed() > self.patience {
                return Err(format!(
                    "no end after {} s; stdout:\n{}\nstderr:\n{}",
                    self.patience.as_secs(),
                    self.said(),
                    self.complained()
                )
                .into());
            }
            std::thread::sleep(STEP);
        };
        Ok(Ended {
            status,
            stdout: self.stdout.as_mut().map(Stream::finish).unwrap_or_default(),
            stderr: self.stderr.finish(),
        })
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Fails only if it has already ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A process that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Checks that it exited with this code and without a panic.
    pub(crate) fn expect_code(&self, code: i32) -> Result<&Self, Failure> {
        if self.status.code() == Some(code) && !self.stderr.contains("panicked at") {
            return Ok(self);
        }
        Err(self.wrong(&format!("exit code {code} without a panic")))
    }

    /// Checks that it exited with this code, and that stderr contains each of `texts`.
    pub(crate) fn expect_error(&self, code: i32, texts: &[&str]) -> Result<&Self, Failure> {
        self.expect_code(code)?;
        for text in texts {
            if !self.stderr.contains(text) {
                return Err(self.wrong(&format!("{text:?} on stderr")));
            }
        }
        Ok(self)
    }

    /// Checks that stdout contains each of `lines` as a whole line.
    pub(crate) fn expect_lines(&self, lines: &[&str]) -> Result<&Self, Failure> {
        for line in lines {
            // The first line of the guest programs begins with a byte that shows that they run.
            if !self.stdout.lines().any(|l| l.trim_matches('\0') == *line) {
                return Err(self.wrong(&format!("the line {line:?}")));
            }
        }
        Ok(self)
    }

    /// An error with the exit status and the whole output.
    pub(crate) fn wrong(&self, wanted: &str) -> Failure {
        format!(
            "wanted {wanted}; it ended with {}; stdout:\n{}\nstderr:\n{}",
            self.status, self.stdout, self.stderr
        )
        .into()
    }
}
