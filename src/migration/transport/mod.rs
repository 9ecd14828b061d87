//! How the two ends reach each other.

mod address;
mod link;
mod owner;
#[cfg(test)]
mod tests;
mod tls;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, ServerConnection, StreamOwned};
use thiserror::Error;

pub use address::{Address, BadAddress, is_loopback};
pub use link::{Cancel, Link};
pub use tls::{TlsError, TlsFiles};

use crate::sys::fatal::OnDeath;
use crate::sys::{self, private};

/// How a TCP connection is protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// No flag was given.
    #[default]
    Unsaid,
    /// By certificates of both ends.
    Tls(TlsFiles),
    /// Not at all, within this host.
    Plaintext,
}

impl Security {
    /// Returns the security of a TCP connection from the flags.
    ///
    /// # Errors
    /// If the flags exclude each other or are incomplete.
    pub fn from_flags<P: Clone + Into<std::path::PathBuf>>(
        cert: Option<&P>,
        key: Option<&P>,
        ca: Option<&P>,
        plaintext: bool,
    ) -> Result<Self, String> {
        let path = |path: &P| path.clone().into();
        match (cert, key, ca, plaintext) {
            (Some(cert), Some(key), Some(ca), false) => Ok(Self::Tls(TlsFiles {
                cert: path(cert),
                key: path(key),
                ca: path(ca),
            })),
            (None, None, None, true) => Ok(Self::Plaintext),
            (None, None, None, false) => Ok(Self::Unsaid),
            (.., true) => Err("--plaintext excludes certificates".to_owned()),
            _ => Err("--tls-cert, --tls-key and --tls-ca belong together".to_owned()),
        }
    }
}

/// Why the other end cannot be reached or accepted.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The address needs something that is missing or would be unsafe.
    #[error("{address} needs {what}")]
    Unprotected {
        /// Where.
        address: Address,
        /// The missing thing.
        what: &'static str,
    },
    /// A system call failed.
    #[error("cannot {doing} {address}")]
    Io {
        /// The step that failed, after "cannot".
        doing: &'static str,
        /// Where.
        address: Address,
        /// The cause.
        source: io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address accepts one connection only.
    #[error("{0} accepts one connection only")]
    Single(Address),
    /// Another user's process, without TLS.
    #[error(
        "the process at {peer} belongs to user {uid}, and this one to user {ours}: --plaintext is for one \
         user's processes; give both ends TLS certificates, or use a unix: address"
    )]
    OtherUser {
        /// The other end's address.
        peer: SocketAddr,
        /// Its user.
        uid: u32,
        /// This process's user.
        ours: u32,
    },
    /// The kernel reports no owner for the other end.
    #[error(
        "cannot determine the owner of the process at {peer}, and --plaintext is for one user's \
         processes; give both ends TLS certificates, or use a unix: address"
    )]
    UnknownUser {
        /// The other end's address.
        peer: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// A user cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl TransportError {
    /// Whether the error is an expired deadline.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == ErrorKind::TimedOut)
    }
}

const TLS_OR_PLAINTEXT: &str =
    "--tls-cert, --tls-key and --tls-ca; or --plaintext, within this host only";
const TLS_FOR_TCP: &str = "no certificates: TLS is for tcp:";
const LOOPBACK: &str = "TLS: --plaintext is for addresses of this host only (127.0.0.0/8 or ::1)";

/// A connection, protected or not.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(Link),
    /// TLS, from the source's side.
    Client(Box<StreamOwned<ClientConnection, Link>>),
    /// TLS, from the destination's side.
    Server(Box<StreamOwned<ServerConnection, Link>>),
}

impl Stream {
    fn link(&mut self) -> &mut Link {
        match self {
            Self::Plain(link) => link,
            Self::Client(tls) => &mut tls.sock,
            Self::Server(tls) => &mut tls.sock,
        }
    }

    /// Sets the timeout to `stall` and ignores cancellation from now on.
    pub fn cannot_be_cancelled(&mut self, stall: Duration) {
        self.link().cannot_be_cancelled(stall);
    }

    /// Until [`Stream::greeted`] the other end has until `deadline` for everything that it sends, and
    /// `cancel` alone ends the wait.
    pub fn greet_until(&mut self, cancel: &Cancel, deadline: Option<Instant>) {
        self.link().greet_until(cancel, deadline);
    }

    /// The first message has arrived: lifts the deadline and uses `cancel`.
    pub fn greeted(&mut self, cancel: &Cancel) {
        self.link().greet_until(cancel, None);
    }

    /// Without TLS, checks that the other end is a process of the same user. Data must have arrived from
    /// it.
    ///
    /// # Errors
    /// If it is another user's, or its owner is unknown.
    pub fn check_peer(&mut self) -> Result<(), TransportError> {
        let Some((local, peer)) = self.link().loopback else {
            return Ok(());
        };
        let ours = nix::unistd::geteuid().as_raw();
        match owner::of_peer(local, peer) {
            Ok(uid) if uid == ours => Ok(()),
            Ok(uid) => Err(TransportError::OtherUser { peer, uid, ours }),
            Err(source) => Err(TransportError::UnknownUser { peer, source }),
        }
    }

    /// Whether input is available, or the other end has closed the connection.
    pub fn has_input(&mut self) -> bool {
        self.link().has_input()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(link) => link.read(buffer),
            Self::Client(tls) => tls.read(buffer),
            Self::Server(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(link) => link.write(data),
            Self::Client(tls) => tls.write(data),
            Self::Server(tls) => tls.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(link) => link.flush(),
            Self::Client(tls) => tls.flush(),
            Self::Server(tls) => tls.flush(),
        }
    }
}

/// Dials one address.
#[derive(Debug)]
pub struct Dialer {
    address: Address,
    tls: Option<tls::TlsClient>,
    stall: Duration,
}

impl Dialer {
    /// Creates a dialer for `address`; `stall` is the timeout of its connections.
    ///
    /// # Errors
    /// If the connection would be unprotected, or the certificates are unusable.
    pub fn new(
        address: Address,
        security: &Security,
        stall: Duration,
    ) -> Result<Self, TransportError> {
        let tls = match (&address, security) {
            (Address::Tcp { host, .. }, Security::Tls(files)) => Some(files.client(host)?),
            _ => {
                check(&address, security)?;
                None
            }
        };
        Ok(Self {
            address,
            tls,
            stall,
        })
    }

    /// The address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn dial(&self, cancel: &Cancel) -> Result<Stream, TransportError> {
        let failed = |source| TransportError::Io {
            doing: "connect to",
            address: self.address.clone(),
            source,
        };
        let link = match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(failed)?;
                Link::over(stream, self.stall, cancel).map_err(failed)?
            }
            Address::Tcp { host, port } => {
                let stream = self.dial_tcp(host, *port)?;
                over_tcp(stream, self.tls.is_none(), self.stall, cancel).map_err(failed)?
            }
            address => single(address, self.stall, cancel).map_err(failed)?,
        };
        Ok(match &self.tls {
            Some(tls) => Stream::Client(Box::new(tls.over(link)?)),
            None => Stream::Plain(link),
        })
    }

    fn dial_tcp(&self, host: &str, port: u16) -> Result<TcpStream, TransportError> {
        let failed = |source| TransportError::Io {
            doing: "connect to",
            address: self.address.clone(),
            source,
        };
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in (host, port).to_socket_addrs().map_err(failed)? {
            self.permit(address)?;
            match TcpStream::connect_timeout(&address, self.stall) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(failed)?;
                    return Ok(stream);
                }
                Err(e) => last = e,
            }
        }
        Err(failed(last))
    }

    fn permit(&self, address: SocketAddr) -> Result<(), TransportError> {
        if self.tls.is_some() || is_loopback(address.ip()) {
            return Ok(());
        }
        Err(TransportError::Unprotected {
            address: self.address.clone(),
            what: LOOPBACK,
        })
    }
}

fn check(address: &Address, security: &Security) -> Result<(), TransportError> {
    let what = match (address, security) {
        (Address::Tcp { .. }, Security::Unsaid) => TLS_OR_PLAINTEXT,
        (Address::Tcp { .. }, _) | (_, Security::Unsaid | Security::Plaintext) => return Ok(()),
        (_, Security::Tls(_)) => TLS_FOR_TCP,
    };
    Err(TransportError::Unprotected {
        address: address.clone(),
        what,
    })
}

/// Wraps a TCP connection; the owner of a `plain` one is checked later.
fn over_tcp(stream: TcpStream, plain: bool, stall: Duration, cancel: &Cancel) -> io::Result<Link> {
    let ends = stream
        .local_addr()
        .and_then(|a| Ok((a, stream.peer_addr()?)));
    let mut link = Link::over(stream, stall, cancel)?;
    if plain {
        link.loopback = Some(ends?);
    }
    Ok(link)
}

/// `exec:` and `fd:`: the same at both ends.
fn single(address: &Address, stall: Duration, cancel: &Cancel) -> io::Result<Link> {
    match address {
        Address::Exec(command) => {
            let (ours, theirs) = UnixStream::pair()?;
            let theirs = OwnedFd::from(theirs);
            let child = Command::new("/bin/sh")
                .arg("-c")
                .arg(command)
                .stdin(Stdio::from(theirs.try_clone()?))
                .stdout(Stdio::from(theirs))
                .spawn()?;
            Ok(Link::over(ours, stall, cancel)?.with_child(child))
        }
        Address::Fd { input, output } => Link::new(
            sys::inherited(*input)?,
            sys::inherited(*output)?,
            stall,
            cancel,
        ),
        Address::Unix(_) | Address::Tcp { .. } => Err(ErrorKind::Unsupported.into()),
    }
}

#[derive(Debug)]
enum Way {
    Unix {
        listener: UnixListener,
        path: PathBuf,
        _on_death: Option<OnDeath>,
    },
    Tcp(TcpListener),
    Single(Option<Link>),
}

/// Listens at one address.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    way: Way,
    tls: Option<tls::TlsServer>,
    stall: Duration,
}

impl Listener {
    /// Listens at `address`; `stall` is the timeout of its connections.
    ///
    /// # Errors
    /// If connections would be unprotected, the certificates are unusable, or the address cannot be bound.
    pub fn new(
        address: Address,
        security: &Security,
        stall: Duration,
        cancel: &Cancel,
    ) -> Result<Self, TransportError> {
        let tls = match (&address, security) {
            (Address::Tcp { .. }, Security::Tls(files)) => Some(files.server()?),
            _ => {
                check(&address, security)?;
                None
            }
        };
        let failed = |source| TransportError::Io {
            doing: "wait at",
            address: address.clone(),
            source,
        };
        let way = match &address {
            Address::Unix(path) => {
                let listener = listen_unix(path).map_err(failed)?;
                Way::Unix {
                    listener,
                    path: path.clone(),
                    _on_death: OnDeath::remove_file(path),
                }
            }
            Address::Tcp { host, port } => {
                let mut all = (host.as_str(), *port).to_socket_addrs().map_err(failed)?;
                if tls.is_none() && !all.all(|a| is_loopback(a.ip())) {
                    return Err(TransportError::Unprotected {
                        address,
                        what: LOOPBACK,
                    });
                }
                let listener = TcpListener::bind((host.as_str(), *port)).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Way::Tcp(listener)
            }
            single_one => Way::Single(Some(single(single_one, stall, cancel).map_err(failed)?)),
        };
        Ok(Self {
            address,
            way,
            tls,
            stall,
        })
    }

    /// The address, with the assigned port if port 0 was requested.
    pub fn address(&self) -> Address {
        match (&self.address, &self.way) {
            (Address::Tcp { host, .. }, Way::Tcp(listener)) => Address::Tcp {
                host: host.clone(),
                port: listener.local_addr().map_or(0, |a| a.port()),
            },
            (address, _) => address.clone(),
        }
    }

    /// Accepts a connection, until `deadline` if there is one.
    ///
    /// # Errors
    /// If none arrives.
    pub fn accept(
        &mut self,
        cancel: &Cancel,
        deadline: Option<Instant>,
    ) -> Result<Stream, TransportError> {
        let address = self.address.clone();
        let failed = move |source| TransportError::Io {
            doing: "wait at",
            address,
            source,
        };
        let link = match &mut self.way {
            Way::Single(link) => link
                .take()
                .ok_or_else(|| TransportError::Single(self.address.clone()))?,
            Way::Unix { listener, .. } => {
                let stream = accept(listener, cancel, deadline, |l| l.accept().map(|(s, _)| s));
                let stream = stream.map_err(failed.clone())?;
                let stream = stream.ok_or(TransportError::Cancelled)?;
                Link::over(stream, self.stall, cancel).map_err(failed)?
            }
            Way::Tcp(listener) => {
                let stream = accept(listener, cancel, deadline, |l| l.accept().map(|(s, _)| s));
                let stream = stream.map_err(failed.clone())?;
                let stream = stream.ok_or(TransportError::Cancelled)?;
                // This fails if the peer has disconnected already, and so will reading.
                let _gone = stream.set_nodelay(true);
                over_tcp(stream, self.tls.is_none(), self.stall, cancel).map_err(failed)?
            }
        };
        Ok(match &self.tls {
            Some(tls) => Stream::Server(Box::new(tls.over(link)?)),
            None => Stream::Plain(link),
        })
    }

    /// Whether the address accepts another connection after a useless one.
    pub fn takes_many(&self) -> bool {
        self.address.takes_many()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Way::Unix { path, .. } = &self.way {
            // The socket may have been removed already.
            let _gone = fs::remove_file(path);
        }
    }
}

/// Returns `None` if cancelled.
fn accept<L: std::os::fd::AsFd, S>(
    listener: &L,
    cancel: &Cancel,
    deadline: Option<Instant>,
    take: impl Fn(&L) -> io::Result<S>,
) -> io::Result<Option<S>> {
    loop {
        match take(listener) {
            Ok(stream) => return Ok(Some(stream)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if !link::wait_for_input(listener, cancel, deadline)? {
                    if cancel.is_set() {
                        return Ok(None);
                    }
                    return Err(io::Error::new(
                        ErrorKind::TimedOut,
                        "no connection arrived in time",
                    ));
                }
            }
            // A client that disconnected before it was accepted.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted
                ) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Binds a socket that only this user can use; replaces a stale one, which no process listens at.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match private::listen(path) {
        Err(e)
            if e.kind() == ErrorKind::AddrInUse
                && UnixStream::connect(path)
                    .is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) =>
        {
            fs::remove_file(path)?;
            private::listen(path)
        }
        listener => listener,
    }
}
