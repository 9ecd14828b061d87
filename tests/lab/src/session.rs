//! One command in one emulated host, from the start of the emulator to the end of the command.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::boot::{Booting, Listener};
use crate::host::Host;
use crate::wire::{self, Decoder, Finished, Frame, Garbled, Kind};

/// The receiver of the command's output, in chunks as they arrive.
pub trait Sink {
    /// Standard output.
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Standard error.
    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// A chunk of the archive of fetched files.
    fn fetched(&mut self, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
    /// Called a few times a second; `Some` ends the run, with the reason.
    fn overdue(&mut self) -> Option<String> {
        None
    }
}

/// The command did not end.
#[derive(Debug, Error)]
pub enum Broken {
    /// The emulator ended or hung without a report from the host: not a failure of the command.
    #[error("the emulator of the {host} lab {how} {when}")]
    Vanished {
        /// The host.
        host: Host,
        /// The way it ended.
        how: &'static str,
        /// The phase.
        when: &'static str,
        /// Whether any output of the command had been forwarded.
        output: bool,
    },
    /// The host's kernel crashed.
    #[error("the kernel of the {host} lab crashed: {line}")]
    Crashed {
        /// The host.
        host: Host,
        /// The message of the kernel.
        line: String,
    },
    /// The time limit was exceeded.
    #[error("no end after {} s in the {host} lab: timed out", limit.as_secs())]
    TimedOut {
        /// The host.
        host: Host,
        /// The limit.
        limit: Duration,
    },
    /// [`Sink::overdue`] ended the run.
    #[error("{0}")]
    Overdue(String),
    /// Bytes were lost.
    #[error(transparent)]
    Garbled(#[from] Garbled),
    /// The count of received bytes is wrong.
    #[error("the {host} lab sent {sent} bytes of output, and {arrived} arrived")]
    Short {
        /// The host.
        host: Host,
        /// The number of bytes sent.
        sent: u64,
        /// The number of bytes received.
        arrived: u64,
    },
    /// The output could not be forwarded, or the line could not be read.
    #[error("cannot forward the output of the {host} lab: {error}")]
    Io {
        /// The host.
        host: Host,
        /// Why it failed.
        error: io::Error,
    },
}

impl Broken {
    /// Whether the run may be repeated: the emulator failed before any output was forwarded.
    pub fn may_retry(&self) -> bool {
        matches!(self, Broken::Vanished { output: false, .. })
    }
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
        })
    }

    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Listener {
    fn accept(&self) -> io::Result<Option<Stream>> {
        let stream = match self {
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                listener.accept().map(|(stream, _)| Stream::Unix(stream))
            }
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                listener.accept().map(|(stream, _)| Stream::Tcp(stream))
            }
        };
        match stream {
            Ok(stream) => {
                match &stream {
                    Stream::Unix(stream) => stream.set_nonblocking(false)?,
                    Stream::Tcp(stream) => stream.set_nonblocking(false)?,
                }
                Ok(Some(stream))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The time limit of a boot: a host boots in a fraction of it, or hangs.
fn boot_limit(host: Host) -> Duration {
    Duration::from_secs(match host {
        Host::Intel => 300,
        Host::Amd | Host::Here => 90,
    })
}

const TICK: Duration = Duration::from_millis(100);

/// The phase of a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Progress {
    Booting,
    Loading,
    Running,
}

impl Progress {
    fn when(self) -> &'static str {
        match self {
            Progress::Booting => "while the host booted",
            Progress::Loading => "while the host loaded KVM",
            Progress::Running => "while the command ran",
        }
    }
}

/// Input for the command.
pub type Input = Box<dyn Read + Send>;

struct Session<'a> {
    host: Host,
    booting: &'a mut Booting,
    started: Instant,
    limit: Duration,
    progress: Progress,
    arrived: u64,
    fetched: u64,
    last_look: Instant,
}

/// Follows a booting host until its command has ended.
pub fn follow(
    host: Host,
    booting: &mut Booting,
    input: Option<Input>,
    limit: Duration,
    sink: &mut dyn Sink,
) -> Result<Finished, Broken> {
    let now = Instant::now();
    let mut session = Session {
        host,
        booting,
        started: now,
        limit,
        progress: Progress::Booting,
        arrived: 0,
        fetched: 0,
        last_look: now,
    };
    session.run(input, sink)
}

impl Session<'_> {
    fn io(&self) -> impl FnOnce(io::Error) -> Broken + use<> {
        let host = self.host;
        move |error| Broken::Io { host, error }
    }

    fn vanished(&self, how: &'static str) -> Broken {
        Broken::Vanished {
            host: self.host,
            how,
            when: self.progress.when(),
            output: self.arrived > 0,
        }
    }

    fn run(&mut self, input: Option<Input>, sink: &mut dyn Sink) -> Result<Finished, Broken> {
        let mut stream = loop {
            if let Some(stream) = self.booting.listener.accept().map_err(self.io())? {
                break stream;
            }
            self.look(sink)?;
            thread::sleep(Duration::from_millis(10));
        };
        stream.set_timeout(TICK).map_err(self.io())?;
        let (taken, acknowledged) = mpsc::channel();
        let mut input = match input {
            Some(input) => Some((input, stream.try_clone().map_err(self.io())?, acknowledged)),
            None => None,
        };
        let mut decoder = Decoder::default();
        let mut buffer = [0; 16 * 1024];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Err(self.ended()),
                Ok(read) => decoder.push(&buffer[..read]),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(self.io()(error)),
            }
            while let Some(frame) = decoder.next_frame()? {
                if frame.kind == Kind::Started
                    && let Some((from, to, acknowledged)) = input.take()
                {
                    thread::spawn(move || pass_input(from, to, &acknowledged));
                }
                if frame.kind == Kind::Taken {
                    // The thread that reads the input may have ended already.
                    let _ = taken.send(());
                }
                if let Some(finished) = self.take(&frame, sink)? {
                    return Ok(finished);
                }
            }
            self.look(sink)?;
        }
    }

    fn take(&mut self, frame: &Frame, sink: &mut dyn Sink) -> Result<Option<Finished>, Broken> {
        match frame.kind {
            Kind::Hello => self.progress = Progress::Loading,
            Kind::Started => self.progress = Progress::Running,
            Kind::Stdout => {
                self.arrived += frame.payload.len() as u64;
                sink.stdout(&frame.payload).map_err(self.io())?;
            }
            Kind::Stderr => {
                self.arrived += frame.payload.len() as u64;
                sink.stderr(&frame.payload).map_err(self.io())?;
            }
            Kind::Fetched => {
                self.fetched += frame.payload.len() as u64;
                sink.fetched(&frame.payload).map_err(self.io())?;
            }
            Kind::Note => {
                let note = String::from_utf8_lossy(&frame.payload);
                let note = format!("lab host {}: {note}\n", self.host);
                sink.stderr(note.as_bytes()).map_err(self.io())?;
            }
            Kind::Finished => {
                let finished: Finished = serde_json::from_slice(&frame.payload)
                    .map_err(|error| self.io()(error.into()))?;
                let sent = finished.stdout + finished.stderr + finished.fetched;
                let arrived = self.arrived + self.fetched;
                if sent != arrived {
                    return Err(Broken::Short {
                        host: self.host,
                        sent,
                        arrived,
                    });
                }
                return Ok(Some(finished));
            }
            Kind::Taken | Kind::Stdin | Kind::StdinEnd => {}
        }
        Ok(None)
    }

    /// Checks everything except the line.
    fn look(&mut self, sink: &mut dyn Sink) -> Result<(), Broken> {
        if self.last_look.elapsed() < TICK {
            return Ok(());
        }
        self.last_look = Instant::now();
        if let Some(reason) = sink.overdue() {
            return Err(Broken::Overdue(reason));
        }
        if let Some(line) = crash(&self.booting.kernel_log) {
            return Err(Broken::Crashed {
                host: self.host,
                line,
            });
        }
        if self.started.elapsed() > self.limit {
            return Err(Broken::TimedOut {
                host: self.host,
                limit: self.limit,
            });
        }
        if self.progress == Progress::Booting && self.started.elapsed() > boot_limit(self.host) {
            return Err(self.vanished("hung"));
        }
        match self.booting.emulator.try_wait().map_err(self.io())? {
            // Data that it sent before is still in the socket, so only the end of the stream counts.
            Some(_) if self.progress == Progress::Booting => Err(self.ended()),
            _ => Ok(()),
        }
    }

    fn ended(&self) -> Broken {
        match crash(&self.booting.kernel_log) {
            Some(line) => Broken::Crashed {
                host: self.host,
                line,
            },
            None => self.vanished("ended"),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    [
        io::ErrorKind::WouldBlock,
        io::ErrorKind::TimedOut,
        io::ErrorKind::Interrupted,
    ]
    .contains(&error.kind())
}

/// The kernel's crash message, if any.
fn crash(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .find(|line| line.contains("Kernel panic - not syncing"))
        .map(|line| line.trim().to_owned())
}

fn pass_input(mut from: Input, mut to: Stream, acknowledged: &mpsc::Receiver<()>) {
    let mut buffer = [0; wire::MAX_INPUT];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if wire::send(&mut to, Kind::Stdin, &buffer[..read]).is_err()
            || acknowledged.recv().is_err()
        {
            return;
        }
    }
    let _ = wire::send(&mut to, Kind::StdinEnd, &[]);
}

/// The maximum number of kept logs of failed runs.
const LOGS_KEPT: usize = 20;

/// Saves the logs of a failed run, and returns their path.
pub fn keep_logs(host: Host, booting: &Booting, logs: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(logs)?;
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let path = logs.join(format!("{}-{host}.log", since.as_millis()));
    let mut text = fs::read(&booting.kernel_log).unwrap_or_default();
    let emulator = [
        booting.emulator_log.clone(),
        booting.directory.path().join("bochs.log"),
    ];
    for log in emulator {
        if let Ok(said) = fs::read(log)
            && !said.is_empty()
        {
            text.extend(b"\n--- the emulator's own log ---\n");
            text.extend(&said[said.len().saturating_sub(64 * 1024)..]);
        }
    }
    fs::write(&path, text)?;
    let mut kept: Vec<PathBuf> = fs::read_dir(logs)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    kept.sort();
    for old in kept.iter().rev().skip(LOGS_KEPT) {
        let _ = fs::remove_file(old);
    }
    Ok(path)
}
