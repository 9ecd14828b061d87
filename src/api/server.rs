//! The VM's side of the control socket: one thread, which waits for all clients at once, so that none can hold up another.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::protocol::{Command, MAX_REQUEST, Reply, Status};
use super::{ApiError, RunDir};
use crate::life::{LifeEvent, LifeHandle};

/// Clients at a time; others wait in the socket's queue.
const MAX_CLIENTS: usize = 16;
/// A client that neither sends a request nor takes its answer for so long is let go.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves a VM's control socket. Dropping it ends the thread and removes the run directory.
#[derive(Debug)]
pub struct Server {
    /// Closing it tells the thread to end.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    dir: RunDir,
}

impl Server {
    /// Serves in `dir`. Requests go to `life`; `status` is asked on the server's thread and must not wait for anything.
    ///
    /// # Errors
    /// If there is no socket or thread to be had.
    pub fn start(
        dir: RunDir,
        life: LifeHandle,
        status: impl Fn() -> Status + Send + 'static,
    ) -> Result<Self, ApiError> {
        Self::start_with_patience(dir, life, status, PATIENCE)
    }

    pub(super) fn start_with_patience(
        dir: RunDir,
        life: LifeHandle,
        status: impl Fn() -> Status + Send + 'static,
        patience: Duration,
    ) -> Result<Self, ApiError> {
        let start = || {
            let listener = UnixListener::bind(dir.socket())?;
            listener.set_nonblocking(true)?;
            let (stop, stopped) = UnixStream::pair()?;
            let mut service = Service {
                listener,
                stopped,
                clients: Vec::new(),
                patience,
                answer: move |command| match command {
                    Command::Status => Some(Box::new(status())),
                    Command::Life(request) => {
                        life.send(LifeEvent::Request(request));
                        None
                    }
                },
            };
            let thread = std::thread::Builder::new()
                .name("api".to_owned())
                .spawn(move || service.run())?;
            Ok((stop, thread))
        };
        let (stop, thread) = start().map_err(|source| ApiError::Serve {
            path: dir.socket(),
            source,
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            dir,
        })
    }

    /// The VM's run directory.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, the panic hook has said so, and there is nothing left to end.
            let _panicked = thread.join();
        }
    }
}

struct Service<A> {
    listener: UnixListener,
    stopped: UnixStream,
    clients: Vec<Client>,
    patience: Duration,
    answer: A,
}

impl<A: Fn(Command) -> Option<Box<Status>>> Service<A> {
    fn run(&mut self) {
        while self.wait() {
            let (answer, patience) = (&self.answer, self.patience);
            self.clients.retain_mut(|client| {
                client
                    .go_on(|line| reply(line, answer), patience)
                    .unwrap_or(false)
            });
            while self.clients.len() < MAX_CLIENTS {
                let stream = match self.listener.accept() {
                    Ok((stream, _)) => stream,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {
                        out_of_resources();
                        break;
                    }
                };
                if stream.set_nonblocking(true).is_ok() {
                    self.clients.push(Client::new(stream, self.patience));
                }
            }
        }
    }

    /// Waits until there is something to do; `false` when the server is to end.
    fn wait(&self) -> bool {
        let mut fds = vec![PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN)];
        if self.clients.len() < MAX_CLIENTS {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(self.clients.iter().map(Client::waits_for));
        let timeout = match self.clients.iter().map(|client| client.deadline).min() {
            // Rounded up, so as not to wake up just before the deadline again and again.
            Some(deadline) => PollTimeout::try_from(
                deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1),
            )
            .unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        match poll(&mut fds, timeout) {
            Ok(_) => !fds[0].any().unwrap_or(true),
            Err(Errno::EINTR) => true,
            Err(_) => {
                out_of_resources();
                true
            }
        }
    }
}

/// No memory or no descriptor: what is waited for stays ready, and trying again at full speed would not help.
fn out_of_resources() {
    std::thread::sleep(Duration::from_millis(100));
}

fn reply(line: &[u8], answer: impl Fn(Command) -> Option<Box<Status>>) -> Vec<u8> {
    let reply = match Command::read(line) {
        Ok(command) => Reply::Ok(answer(command)),
        Err(why) => Reply::Error(why),
    };
    encode(&reply)
}

fn encode(reply: &Reply) -> Vec<u8> {
    // Strings and numbers always have a JSON form.
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    line
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// It is let go when the output is written.
    last: bool,
    deadline: Instant,
}

impl Client {
    fn new(stream: UnixStream, patience: Duration) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            last: false,
            deadline: Instant::now() + patience,
        }
    }

    fn waits_for(&self) -> PollFd<'_> {
        let events = if self.output.is_empty() {
            PollFlags::POLLIN
        } else {
            PollFlags::POLLOUT
        };
        PollFd::new(self.stream.as_fd(), events)
    }

    /// Does what can be done without waiting; `false` when the client is to be let go.
    fn go_on(&mut self, reply: impl Fn(&[u8]) -> Vec<u8>, patience: Duration) -> io::Result<bool> {
        if Instant::now() >= self.deadline {
            return Ok(false);
        }
        loop {
            if !self.output.is_empty() {
                let Some(written) = now(self.stream.write(&self.output))? else {
                    return Ok(true);
                };
                self.output.drain(..written);
                if self.output.is_empty() {
                    if self.last {
                        return Ok(false);
                    }
                    self.deadline = Instant::now() + patience;
                }
            } else if let Some(end) = self.input.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                self.output = reply(&line);
            } else if self.input.len() > MAX_REQUEST {
                let why = format!("the request is longer than {MAX_REQUEST} bytes");
                self.output = encode(&Reply::Error(why));
                self.last = true;
            } else {
                let mut buffer = [0; 1024];
                match now(self.stream.read(&mut buffer))? {
                    None => return Ok(true),
                    Some(0) => return Ok(false),
                    Some(read) => self.input.extend_from_slice(&buffer[..read]),
                }
            }
        }
    }
}

/// `None` if it would have to wait.
fn now(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        done => done.map(Some),
    }
}
