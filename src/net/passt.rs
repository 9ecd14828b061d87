//! The user-mode network: a passt process of the VM's own, which needs no privileges. It is the host's
//! network without incoming connections, but for ports that are forwarded; the guest gets its address by DHCP.
//!
//! passt is started with one end of a socket pair as its standard input, so there is no path that others
//! could connect to, and ends when the other end is closed.

use std::fmt;
use std::io::{self, PipeReader, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::geteuid;

use super::stream::Connect;

/// The program.
pub const PROGRAM: &str = "passt";

/// The user as whom passt runs for root: by number, as there may be no file of users.
const NOBODY: &str = "65534";

/// How long a passt that was told to end is waited for before it is killed.
const PATIENCE: Duration = Duration::from_secs(1);

/// How much of what passt has said is shown.
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
    said: PipeReader,
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
        let (said, says) = io::pipe()?;
        // passt does not wait until what it says is read.
        for end in [said.as_fd(), says.as_fd()] {
            let flags = OFlag::from_bits_truncate(fcntl(end, FcntlArg::F_GETFL)?);
            fcntl(end, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        let mut command = Command::new(&self.program);
        command
            .args(["--foreground", "--quiet", "--fd", "0"])
            .args(
                geteuid()
                    .is_root()
                    .then_some(["--runas", NOBODY])
                    .into_iter()
                    .flatten(),
            )
            .args(self.forwards.iter().flat_map(Forward::option))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(says)
            .current_dir("/");
        let child = command.spawn().map_err(|error| {
            let why = format!("cannot start {}: {error}", self.program.display());
            io::Error::new(error.kind(), why)
        })?;
        // The command holds the other ends, whose closing tells the end.
        drop(command);
        self.running = Some(Running { child, said });
        Ok(ours)
    }

    /// Waits for the end of passt, and returns what it has said.
    fn wait(&mut self) -> Option<String> {
        let Running {
            mut child,
            mut said,
        } = self.running.take()?;
        let deadline = Instant::now() + PATIENCE;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // It has ended, or is now.
        let _killed = child.kill();
        let status = child.wait();
        let mut bytes = [0; MAX_SAID];
        let mut len = 0;
        while let Ok(count @ 1..) = said.read(&mut bytes[len..]) {
            len += count;
        }
        let text = String::from_utf8_lossy(&bytes[..len]);
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let lines = lines.into_iter().filter(|line| !line.is_empty());
        let text: Vec<_> = lines.map(|line| line.escape_debug().to_string()).collect();
        Some(match (text.is_empty(), status) {
            (false, _) => format!("passt says: {}", text.join("; ")),
            (true, Ok(status)) => format!("passt has ended ({status})"),
            (true, Err(_)) => "passt has ended".to_owned(),
        })
    }
}

impl Connect for Passt {
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
