//! The VM's side of the control socket: one thread, which waits for all clients at once, so that none can
//! hold up another.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::job::{self, Done, VmAfterJob};
use super::protocol::{ControlReply, ControlRequest, MAX_REQUEST};
use super::{ApiError, RunDir};
use crate::life::{MachineHandle, Request};
use crate::machine::Status;
use crate::sys::{self, Role, private, spawn};

/// Clients at a time. One more takes the place of the one that has been idle for longest.
const MAX_CLIENTS: usize = 16;
/// Clients at a time whose jobs are being done, fewer than clients: status and pause are always answered.
const MAX_JOBS: usize = 8;
/// What a client has at least to send its request, however many others come.
const GRACE: Duration = Duration::from_millis(100);
/// A client that neither sends a request nor takes its answer for so long is let go.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves a VM's control socket. Dropping it ends the thread, removes the run directory, and then replies to
/// the clients that wait for the VM's end: when they have the reply, the VM's name is free.
#[derive(Debug)]
pub struct Server {
    /// Closing it tells the thread to end.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Vec<Client>>>,
    /// There until it is dropped.
    dir: Option<RunDir>,
}

impl Server {
    /// Serves in `dir`. Requests go to `handle`; `status` is asked on the server's thread and must not wait
    /// for anything.
    ///
    /// # Errors
    /// If there is no socket or thread to be had.
    pub fn start(
        dir: RunDir,
        handle: MachineHandle,
        status: impl Fn() -> Status + Send + Sync + 'static,
    ) -> Result<Self, ApiError> {
        Self::start_with_patience(dir, handle, status, PATIENCE)
    }

    pub(super) fn start_with_patience(
        dir: RunDir,
        handle: MachineHandle,
        status: impl Fn() -> Status + Send + Sync + 'static,
        patience: Duration,
    ) -> Result<Self, ApiError> {
        let start = || {
            let listener = private::listen(&dir.socket())?;
            let (stop, stopped) = UnixStream::pair()?;
            let (wake, woken) = UnixStream::pair()?;
            woken.set_nonblocking(true)?;
            // A job that is done need not wait until it is heard: one byte there is as good as two.
            wake.set_nonblocking(true)?;
            let status = Arc::new(status);
            let watch = handle.watch_thread();
            let mut service = Service {
                listener,
                stopped,
                woken,
                clients: Vec::new(),
                patience,
                answer: move |request| match request {
                    ControlRequest::Status {} => ControlAnswer::Now(Some(Box::new(status()))),
                    ControlRequest::Pause {} => change(&handle, Request::Pause),
                    ControlRequest::Resume {} => change(&handle, Request::Resume),
                    ControlRequest::Reset {} => change(&handle, Request::Reset),
                    ControlRequest::PowerButton {} => change(&handle, Request::PowerButton),
                    ControlRequest::Kill {} => {
                        handle.request(Request::Kill);
                        ControlAnswer::AtEnd
                    }
                    ControlRequest::Save(args) => {
                        let save = move |vm: &_| job::save(vm, &args);
                        ControlAnswer::Later(job::start(&handle, &wake, save))
                    }
                    ControlRequest::Migrate(args) => {
                        let status = Arc::clone(&status);
                        let migrate = move |vm: &_| job::migrate(vm, &args, &*status);
                        ControlAnswer::Later(job::start(&handle, &wake, migrate))
                    }
                    ControlRequest::CancelMigration {} => {
                        ControlAnswer::Later(job::start(&handle, &wake, job::cancel_migration))
                    }
                    ControlRequest::DiskResize(args) => {
                        let resize = move |vm: &_| job::resize_disk(vm, &args);
                        ControlAnswer::Later(job::start(&handle, &wake, resize))
                    }
                    ControlRequest::DiskThrottle(args) => {
                        let throttle = move |vm: &_| job::throttle_disk(vm, &args);
                        ControlAnswer::Later(job::start(&handle, &wake, throttle))
                    }
                    ControlRequest::NetLink(args) => {
                        let link = move |vm: &_| job::link_net(vm, &args);
                        ControlAnswer::Later(job::start(&handle, &wake, link))
                    }
                    ControlRequest::Balloon(args) => {
                        let inflate = move |vm: &_| job::inflate_balloon(vm, &args);
                        ControlAnswer::Later(job::start(&handle, &wake, inflate))
                    }
                },
            };
            let thread = spawn(Role::Api, move || {
                let _watch = watch;
                service.run();
                service.clients
            })?;
            Ok((stop, thread))
        };
        let (stop, thread) = start().map_err(|source| ApiError::Serve {
            path: dir.socket(),
            source,
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            dir: Some(dir),
        })
    }

    /// The VM's run directory.
    #[cfg(test)]
    pub(super) fn dir(&self) -> &RunDir {
        self.dir.as_ref().expect("there until it is dropped")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        let joined = self.thread.take().map(JoinHandle::join);
        self.dir = None;
        // If it panicked, the panic hook has said so, and its clients are disconnected.
        if let Some(Ok(clients)) = joined {
            clients.into_iter().for_each(Client::answer_at_end);
        }
    }
}

/// Requests a change of the life cycle that the reply does not wait for.
fn change(handle: &MachineHandle, request: Request) -> ControlAnswer {
    handle.request(request);
    ControlAnswer::Now(None)
}

/// What is answered to a request.
enum ControlAnswer {
    Now(Option<Box<Status>>),
    Refused(String),
    /// When the job is done.
    Later(Receiver<Done>),
    /// When the VM is gone.
    AtEnd,
}

struct Service<A> {
    listener: UnixListener,
    stopped: UnixStream,
    /// Readable when a job is done.
    woken: UnixStream,
    clients: Vec<Client>,
    patience: Duration,
    answer: A,
}

impl<A: Fn(ControlRequest) -> ControlAnswer> Service<A> {
    fn run(&mut self) {
        while self.wait() {
            let mut bytes = [0; 64];
            while let Ok(Some(1..)) = now(self.woken.read(&mut bytes)) {}
            self.serve();
            while self.has_room(Instant::now()) {
                let stream = match self.listener.accept() {
                    Ok((stream, _)) => stream,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {
                        out_of_resources();
                        break;
                    }
                };
                if stream.set_nonblocking(true).is_err() {
                    continue;
                }
                if self.clients.len() == MAX_CLIENTS
                    && let Some(idle) = self.longest_idle()
                {
                    self.clients.swap_remove(idle);
                }
                self.clients.push(Client::new(stream, self.patience));
            }
        }
        // The VM has ended, and so each job is about to, if that was not what it did: whoever waits is told.
        for client in &mut self.clients {
            client.wait_for_job(self.patience);
        }
    }

    /// Does for each client what can be done without waiting.
    fn serve(&mut self) {
        let (answer, patience) = (&self.answer, self.patience);
        let jobs = self.clients.iter().filter(|client| client.is_waiting());
        let jobs = Cell::new(jobs.count());
        let answer = |request: ControlRequest| match request {
            request if request.is_job() && jobs.get() >= MAX_JOBS => {
                ControlAnswer::Refused(format!("{MAX_JOBS} jobs are being done already"))
            }
            // The VM ends all the same; so many clients cannot all wait for it.
            ControlRequest::Kill {} if jobs.get() >= MAX_JOBS => {
                answer(request);
                ControlAnswer::Now(None)
            }
            ControlRequest::CancelMigration {} | ControlRequest::Kill {} => {
                jobs.set(jobs.get() + 1);
                answer(request)
            }
            request => {
                if request.is_job() {
                    jobs.set(jobs.get() + 1);
                }
                answer(request)
            }
        };
        self.clients.retain_mut(|client| {
            client
                .go_on(|line| reply(line, answer), patience)
                .unwrap_or(false)
        });
    }

    /// When another client can be taken, at the latest when one has been idle for [`GRACE`]; `None`: when a
    /// job is done.
    fn room_at(&self, now: Instant) -> Option<Instant> {
        if self.clients.len() < MAX_CLIENTS {
            return Some(now);
        }
        let idle = &self.clients[self.longest_idle()?];
        Some(idle.active + GRACE)
    }

    fn has_room(&self, now: Instant) -> bool {
        self.room_at(now).is_some_and(|at| at <= now)
    }

    /// The client without a job that has been idle for longest.
    fn longest_idle(&self) -> Option<usize> {
        let idle = self.clients.iter().enumerate();
        let idle = idle.filter(|(_, client)| !client.is_waiting());
        idle.min_by_key(|(_, client)| client.active)
            .map(|(index, _)| index)
    }

    /// Waits until there is something to do; `false` when the server is to end.
    fn wait(&self) -> bool {
        let mut fds = vec![
            PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
        ];
        let now = Instant::now();
        let room = self.room_at(now);
        if room.is_some_and(|at| at <= now) {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        // Those that wait for a job or the end wait for nothing else.
        let idle = || {
            let clients = self.clients.iter();
            clients.filter(|client| !client.is_waiting())
        };
        fds.extend(idle().map(Client::waits_for));
        let room = room.filter(|at| *at > now);
        let deadlines = idle().map(|client| client.deadline).chain(room);
        match sys::wait(&mut fds, deadlines.min()) {
            Ok(_) => !fds[0].any().unwrap_or(true),
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

/// The reply, or what it waits for.
fn reply(line: &[u8], answer: impl Fn(ControlRequest) -> ControlAnswer) -> Result<Vec<u8>, Waits> {
    let reply = match ControlRequest::read(line).map(answer) {
        Ok(ControlAnswer::Now(status)) => ControlReply::Ok(status),
        Ok(ControlAnswer::Later(job)) => return Err(Waits::Job(job)),
        Ok(ControlAnswer::AtEnd) => return Err(Waits::VmEnd(None)),
        Ok(ControlAnswer::Refused(why)) => ControlReply::Error(why),
        Err(why) => ControlReply::Error(why),
    };
    Ok(reply.write())
}

/// What a client waits for.
#[derive(Debug)]
enum Waits {
    /// Its own next request, or that it takes the last reply.
    Request,
    /// The end of a job.
    Job(Receiver<Done>),
    /// The end of the VM; the reply then has this status.
    VmEnd(Option<Box<Status>>),
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    waits: Waits,
    /// It is let go when the output is written.
    last: bool,
    deadline: Instant,
    /// When it last did something.
    active: Instant,
}

impl Client {
    fn new(stream: UnixStream, patience: Duration) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            waits: Waits::Request,
            last: false,
            deadline: Instant::now() + patience,
            active: Instant::now(),
        }
    }

    /// It has done what it is given time for.
    fn renew(&mut self, patience: Duration) {
        self.active = Instant::now();
        self.deadline = self.active + patience;
    }

    /// Whether it waits for a job or the VM's end, and for nothing else.
    fn is_waiting(&self) -> bool {
        !matches!(self.waits, Waits::Request)
    }

    fn waits_for(&self) -> PollFd<'_> {
        let events = if self.output.is_empty() {
            PollFlags::POLLIN
        } else {
            PollFlags::POLLOUT
        };
        PollFd::new(self.stream.as_fd(), events)
    }

    /// The position of the newline after the first request, if that is complete and not too long.
    fn request_end(&self) -> Option<usize> {
        let mut longest = self.input.iter().take(MAX_REQUEST + 1);
        longest.position(|byte| *byte == b'\n')
    }

    fn job_is_done(&mut self, done: Done, patience: Duration) {
        let reply = match done {
            Ok(VmAfterJob::Ends(status)) => {
                self.waits = Waits::VmEnd(status);
                return;
            }
            Ok(VmAfterJob::Stays) => ControlReply::Ok(None),
            Err(why) => ControlReply::Error(why),
        };
        self.waits = Waits::Request;
        self.renew(patience);
        self.output = reply.write();
    }

    /// Waits for the end of its job, if it has one.
    fn wait_for_job(&mut self, patience: Duration) {
        if let Waits::Job(job) = &self.waits {
            let done = job.recv_timeout(patience).unwrap_or_else(|_| panicked());
            self.job_is_done(done, patience);
        }
    }

    /// The VM is gone: replies as far as that can be done at once.
    fn answer_at_end(mut self) {
        if let Waits::VmEnd(status) = self.waits {
            self.output = ControlReply::Ok(status).write();
        }
        let _written = self.stream.write(&self.output);
    }

    /// Does what can be done without waiting; `false` when the client is to be let go.
    fn go_on(
        &mut self,
        reply: impl Fn(&[u8]) -> Result<Vec<u8>, Waits>,
        patience: Duration,
    ) -> io::Result<bool> {
        match &self.waits {
            Waits::Request => {}
            Waits::VmEnd(_) => return Ok(true),
            Waits::Job(job) => {
                let done = match job.try_recv() {
                    Err(TryRecvError::Empty) => return Ok(true),
                    Err(TryRecvError::Disconnected) => panicked(),
                    Ok(done) => done,
                };
                self.job_is_done(done, patience);
                if matches!(self.waits, Waits::VmEnd(_)) {
                    return Ok(true);
                }
            }
        }
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
                    self.renew(patience);
                }
            } else if let Some(end) = self.request_end() {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                match reply(&line) {
                    Ok(output) => self.output = output,
                    Err(waits) => {
                        self.waits = waits;
                        // It may be done already, before anybody waits for it.
                        return self.go_on(reply, patience);
                    }
                }
            } else if self.input.len() > MAX_REQUEST {
                let why = format!("the request is longer than {MAX_REQUEST} bytes");
                self.output = ControlReply::Error(why).write();
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

fn panicked() -> Done {
    Err("internal error (the job panicked); see the VM's log".to_owned())
}

/// `None` if it would have to wait.
fn now(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        done => done.map(Some),
    }
}
