//! The user-mode network: a passt process of the VM's own, which needs no privileges. It is the host's
//! network without incoming connections, but for ports that are forwarded; the guest gets its address by
//! DHCP.
//!
//! passt is started with one end of a socket pair, so there is no path that others could connect to, and ends
//! when the other end is closed.

use std::fmt;
use std::io::{self, PipeReader, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use super::stream::Connect;
use crate::sys::{hand_on, set_nonblocking};

/// The program.
pub const PROGRAM: &str = "passt";

/// The user as whom passt runs for root: by number, as there may be no file of users.
const NOBODY: &str = "65534";

/// How long a passt whose stream is closed is waited for before it is killed.
const PATIENCE: Duration = Duration::from_millis(200);

/// How much of the last that passt has said is shown.
const MAX_SAID: usize = 500;

/// A port of the host whose connections reach the guest: QEMU's `hostfwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    udp: bool,
    host: Option<IpAddr>,
    from: u16,
    to: u16,
}

impl Forward {
    /// Of `[tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT`; the guest has one address, so none is taken.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, guest) = text.rsplit_once('-')?;
        let (protocol, host) = host.split_once(':')?;
        let udp = match protocol {
            "" | "tcp" => false,
            "udp" => true,
            _ => return None,
        };
        // Without an address, its colon may be left out.
        let (address, from) = host.rsplit_once(':').unwrap_or(("", host));
        let address = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(address);
        let host = match address {
            "" => None,
            address => Some(address.parse().ok()?),
        };
        let to = guest.strip_prefix(':').unwrap_or(guest);
        let [from, to] = [port(from)?, port(to)?];
        Some(Self {
            udp,
            host,
            from,
            to,
        })
    }

    /// As an option of passt.
    fn option(&self) -> [String; 2] {
        let option = if self.udp { "-u" } else { "-t" };
        let host = self.host.map_or(String::new(), |host| format!("{host}/"));
        [
            option.to_owned(),
            format!("{host}{}:{}", self.from, self.to),
        ]
    }
}

fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// Starts passt, and starts it again when it has ended.
pub struct Passt {
    program: PathBuf,
    forwards: Vec<Forward>,
    running: Option<Running>,
}

struct Running {
    child: Child,
    pipe: PipeReader,
    /// The end of what it has said.
    said: Vec<u8>,
}

impl Running {
    /// Reads what passt has said, of which it is the last that matters.
    fn listen(&mut self) {
        let mut bytes = [0; MAX_SAID];
        // As much as the pipe holds, and no more: passt may say more meanwhile.
        for _ in 0..256 {
            let Ok(count @ 1..) = self.pipe.read(&mut bytes) else {
                return;
            };
            self.said.extend(&bytes[..count]);
            let extra = self.said.len().saturating_sub(MAX_SAID);
            self.said.drain(..extra);
        }
    }

    /// Its lines, on one.
    fn words(&self) -> String {
        let text = String::from_utf8_lossy(&self.said);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines: Vec<_> = lines.map(|line| line.escape_debug().to_string()).collect();
        lines.join("; ")
    }
}

impl fmt::Debug for Passt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passt")
            .field("program", &self.program)
            .field("forwards", &self.forwards)
            .finish_non_exhaustive()
    }
}

impl Passt {
    /// By `program`, with these ports.
    pub fn new(program: PathBuf, forwards: Vec<Forward>) -> Self {
        Self {
            program,
            forwards,
            running: None,
        }
    }

    fn start(&mut self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let (pipe, says) = io::pipe()?;
        // passt does not wait until what it says is read.
        for end in [pipe.as_fd(), says.as_fd()] {
            set_nonblocking(end)?;
        }
        let mut command = Command::new(&self.program);
        // Some versions refuse standard input here.
        let fd = hand_on(&mut command, theirs.into());
        command
            .args(["--foreground", "--quiet", "--fd", &fd.to_string()])
            .args(
                geteuid()
                    .is_root()
                    .then_some(["--runas", NOBODY])
                    .into_iter()
                    .flatten(),
            )
            .args(self.forwards.iter().flat_map(Forward::option))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(says)
            .current_dir("/")
            // A signal to a terminal's or a service's processes ends hypernest first.
            .process_group(0);
        let child = command.spawn().map_err(|error| {
            let why = format!("cannot start {}: {error}", self.program.display());
            io::Error::new(error.kind(), why)
        })?;
        // The command holds the other ends, whose closing tells the end.
        drop(command);
        self.running = Some(Running {
            child,
            pipe,
            said: Vec::new(),
        });
        Ok(ours)
    }

    /// Waits for the end of passt, and returns what it has said.
    fn wait(&mut self) -> Option<String> {
        let mut running = self.running.take()?;
        let child = &mut running.child;
        let deadline = Instant::now() + PATIENCE;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // It has ended, or is now.
        let _killed = child.kill();
        let status = child.wait();
        running.listen();
        let words = running.words();
        Some(match (words.is_empty(), status) {
            (false, _) => format!("passt says: {words}"),
            (true, Ok(status)) => format!("passt has ended ({status})"),
            (true, Err(_)) => "passt has ended".to_owned(),
        })
    }
}

impl Connect for Passt {
    fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.pipe.as_fd())
    }

    fn woken(&mut self) {
        if let Some(running) = &mut self.running {
            running.listen();
            tracing::debug!("passt says: {}", running.words());
        }
    }

    fn connect(&mut self) -> io::Result<UnixStream> {
        self.start()
    }

    fn ended(&mut self) -> Option<String> {
        self.wait()
    }

    fn close(&mut self) {
        let _said = self.wait();
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.close();
    }
}

/// The passt in PATH.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut candidates = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
    candidates.find(|candidate| candidate.is_absolute() && candidate.is_file())
}

#[cfg(test)]
mod tests;
