//! Where streams come from.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::error::chain;
use crate::sys::listener::Listener;

/// Makes the streams of a card, one after the other.
pub trait Connect: Send {
    /// What to wait for until a stream can be had; none, if that is a matter of time.
    fn listener(&self) -> Option<&UnixListener> {
        None
    }

    /// What else to wait for, until [`Connect::woken`] has seen that it is ready.
    fn watched(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What [`Connect::watched`] returns is ready.
    fn woken(&mut self) {}

    /// Prepares for streams, when the VM takes its network.
    ///
    /// # Errors
    /// If the host refuses.
    fn open(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// A new stream, after the last has ended. It does not block.
    ///
    /// # Errors
    /// If there is none now; `WouldBlock` says that the listener rings when there is one.
    fn connect(&mut self) -> io::Result<UnixStream>;

    /// Whether [`Connect::connect`] may succeed after the stream has ended.
    fn again(&self) -> bool {
        true
    }

    /// The stream has ended. Returns why, if that is known.
    fn ended(&mut self) -> Option<String> {
        None
    }

    /// The opposite of [`Connect::open`].
    fn close(&mut self) {}
}

/// A peer that listens at a path.
#[derive(Debug)]
pub struct Client(PathBuf);

impl Client {
    /// At `path`.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn try_connect(&self) -> Result<UnixStream, Errno> {
        let fd = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&self.0)?)?;
        Ok(UnixStream::from(fd))
    }
}

impl Connect for Client {
    fn connect(&mut self) -> io::Result<UnixStream> {
        self.try_connect().map_err(|errno| {
            let (kind, why) = match errno {
                // Its backlog is full (unix(7)): nothing rings when it has room.
                Errno::EAGAIN => (
                    io::ErrorKind::ConnectionRefused,
                    "its program takes no more connections".to_owned(),
                ),
                errno => {
                    let error = io::Error::from(errno);
                    (error.kind(), error.to_string())
                }
            };
            io::Error::new(
                kind,
                format!("cannot connect to {}: {why}", self.0.display()),
            )
        })
    }
}

/// A path at which peers connect, one after the other.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: Option<Listener>,
}

impl Server {
    /// At `path`. A socket that a program has left there is replaced.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            listener: None,
        }
    }
}

impl Connect for Server {
    fn listener(&self) -> Option<&UnixListener> {
        self.listener.as_ref().map(Listener::socket)
    }

    fn open(&mut self) -> io::Result<()> {
        if self.listener.is_none() {
            let listener = Listener::bind(&self.path);
            self.listener = Some(listener.map_err(|e| io::Error::other(chain(&e)))?);
        }
        Ok(())
    }

    fn connect(&mut self) -> io::Result<UnixStream> {
        match &self.listener {
            Some(listener) => listener.accept(),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn close(&mut self) {
        self.listener = None;
    }
}

/// A stream that this process was started with.
#[derive(Debug)]
pub struct Given(Option<UnixStream>);

impl Given {
    /// This one.
    pub fn new(stream: UnixStream) -> Self {
        Self(Some(stream))
    }
}

impl Connect for Given {
    fn connect(&mut self) -> io::Result<UnixStream> {
        match &self.0 {
            Some(stream) => stream.try_clone(),
            None => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "its stream has ended",
            )),
        }
    }

    fn again(&self) -> bool {
        false
    }

    fn ended(&mut self) -> Option<String> {
        self.0 = None;
        None
    }
}
