//! The destination: the end that receives the VM.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::arrivals::Arrivals;
use super::channel::{Channel, Parts, escaped};
use super::pages::Unpacker;
use super::peer::Process;
use super::phase::{DestinationEvent, DestinationPhase, LocalVm};
use super::transport::{Cancel, Listener};
use super::wire::{
    Accept, BOOT_FILES, BootFile, FrameKind, Hello, MAX_BOOT, MAX_PROMISE, MAX_STATE,
    PromiseMessage, Refuse, StateMessage, VERSIONS, Versions, Welcome, WireError,
};
use super::{DestinationVm, MAX_CONNECTIONS, MigrationError, STALL};
use crate::memory::GuestRam;
use crate::sys::{Role, spawn_scoped};

/// Long enough for a process that has lost its connection to exit.
const END_OF_PEER: Duration = Duration::from_secs(5);
/// The interval for checking the first connection while additional ones are awaited.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The maximum number of files that a reset boots: no boot protocol is used with more modules.
const MAX_BOOT_FILES: usize = 256;
/// The optional features that this version supports.
const FEATURES: [&str; 1] = ["zstd"];

/// The options of the destination.
#[derive(Clone, Debug)]
pub struct DestinationOptions {
    /// The timeout for the source.
    pub stall: Duration,
    /// The supported protocol versions.
    pub versions: Versions,
    /// The process that receives the VM; the source checks whether it has ended.
    pub process: Option<Process>,
    /// How long to wait for a lost source on the same host to exit, once this end holds everything.
    pub end_of_peer: Duration,
}

impl Default for DestinationOptions {
    fn default() -> Self {
        Self {
            stall: STALL,
            versions: VERSIONS,
            process: Process::current(),
            end_of_peer: END_OF_PEER,
        }
    }
}

/// The result of a migration: the VM runs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Whether its vCPUs run.
    pub running: bool,
}

/// Waits at `listener` for a source, and makes `target` its VM.
///
/// # Errors
/// If no source arrived, or the migration failed; `target` has not run then, and never will.
pub fn receive(
    target: &mut dyn DestinationVm,
    listener: &mut Listener,
    options: &DestinationOptions,
    cancel: &Cancel,
) -> Result<Received, MigrationError> {
    let mut session = DestinationSession {
        target,
        options,
        cancel,
        phase: DestinationPhase::Waiting,
        peer: None,
        running: false,
    };
    let mut main = None;
    let result = session.run(listener, &mut main);
    session.end(result, main)
}

/// The content of the first connection's Hello; additional connections must match it.
struct Session {
    session: String,
    connections: u16,
    zstd: bool,
}

struct DestinationSession<'a> {
    target: &'a mut dyn DestinationVm,
    options: &'a DestinationOptions,
    cancel: &'a Cancel,
    phase: DestinationPhase,
    peer: Option<Process>,
    running: bool,
}

impl DestinationSession<'_> {
    fn advance(&mut self, event: DestinationEvent) {
        match self.phase.after(event) {
            Some(next) => self.phase = next,
            None => unreachable!("{event:?} in {:?}", self.phase),
        }
    }

    fn run(
        &mut self,
        listener: &mut Listener,
        main: &mut Option<Channel>,
    ) -> Result<(), MigrationError> {
        let mut arrivals = Arrivals::at(listener);
        let (channel, session) = self.wait_for_source(&mut arrivals)?;
        let main = main.insert(channel);
        self.advance(DestinationEvent::Hello);

        let ram = self.compare(main)?;
        self.advance(DestinationEvent::PromiseKept);
        main.send(&Accept {})?;

        let more = self.wait_for_connections(&mut arrivals, main, &session)?;
        drop(arrivals);
        let taken = self.take_in(main, more, &ram, &session)?;
        self.running = taken.running;
        debug!("RAM and state are complete");
        let Taken {
            state,
            running,
            boot_files,
        } = taken;
        let loaded = match boot_files.is_empty() {
            true => Ok(()),
            false => self.target.keep_boot_files(boot_files),
        };
        let loaded = loaded.and_then(|()| self.target.load(state, running));
        loaded.map_err(MigrationError::vm("build the VM from the received state"))?;
        debug!("the VM could run");
        self.advance(DestinationEvent::Complete);
        main.send_frame(FrameKind::Ready, &[])?;
        main.recv_kind(FrameKind::Commit, "Commit")?;
        self.advance(DestinationEvent::Commit);
        Ok(())
    }

    /// A connection that does not come from a source does not end the wait if the address accepts more.
    fn wait_for_source(
        &mut self,
        arrivals: &mut Arrivals<'_>,
    ) -> Result<(Channel, Session), MigrationError> {
        loop {
            let Some((mut channel, hello)) = arrivals.next(self.cancel, None)? else {
                continue;
            };
            match self.first_hello(&mut channel, hello) {
                Ok(session) => return Ok((channel, session)),
                Err(e) => {
                    channel.send_failure(&e.chain());
                    channel.drain(1);
                    // A user at the destination also sees that this version cannot serve the source.
                    let of_version = matches!(
                        e,
                        MigrationError::Versions { .. } | MigrationError::Unknown(_)
                    );
                    if of_version || self.cancel.is_set() || !arrivals.takes_many() {
                        return Err(e);
                    }
                    arrivals.warn_of_stranger(&e.chain());
                }
            }
        }
    }

    fn first_hello(
        &mut self,
        channel: &mut Channel,
        hello: Hello,
    ) -> Result<Session, MigrationError> {
        let nonsense = |why: &str| WireError::Nonsense {
            kind: FrameKind::Hello,
            why: why.to_owned(),
        };
        if hello.protocol != Hello::PROTOCOL {
            return Err(nonsense("another protocol").into());
        }
        let common = self.options.versions.common(hello.versions);
        let version = common.ok_or(MigrationError::Versions {
            source_speaks: hello.versions,
            destination_speaks: self.options.versions,
        })?;
        if let Some(unknown) = hello.needs.iter().find(|n| !FEATURES.contains(&n.as_str())) {
            return Err(MigrationError::Unknown(escaped(unknown)));
        }
        if hello.connection != 0 || !(1..=MAX_CONNECTIONS).contains(&hello.connections) {
            return Err(nonsense("not the first of 1 to 64 connections").into());
        }
        channel.send(&Welcome {
            version,
            process: self.options.process.clone(),
            takes: vec![BOOT_FILES.to_owned()],
        })?;
        self.peer = hello.process;
        Ok(Session {
            session: hello.session,
            connections: hello.connections,
            zstd: hello.needs.iter().any(|need| need == "zstd"),
        })
    }

    fn compare(&mut self, main: &mut Channel) -> Result<GuestRam, MigrationError> {
        let mut parts = Parts::new(MAX_PROMISE);
        let promise: PromiseMessage = loop {
            let frame = main.frame()?;
            if frame.kind != FrameKind::Part {
                break frame.message("Part or Promise")?;
            }
            parts.add(frame.body)?;
        };
        let blob = parts.finish(promise.len, FrameKind::Promise)?;
        let prepared = self.target.prepare(&blob).and_then(|ram| {
            let here: Vec<_> = ram.pieces().map(|piece| (piece.gpa.0, piece.len)).collect();
            match here == promise.ram {
                true => Ok(ram),
                false => Err(vec![
                    "the destination has other RAM regions for the guest".to_owned(),
                ]),
            }
        });
        prepared.map_err(|reasons| {
            let refuse = Refuse { reasons };
            let _gone = main.send(&refuse);
            MigrationError::Refused(refuse.reasons)
        })
    }

    fn wait_for_connections(
        &self,
        arrivals: &mut Arrivals<'_>,
        main: &mut Channel,
        session: &Session,
    ) -> Result<Vec<Channel>, MigrationError> {
        let mut more: Vec<Option<Channel>> = (1..session.connections).map(|_| None).collect();
        let deadline = Instant::now() + self.options.stall;
        while more.iter().any(Option::is_none) {
            let soon = deadline.min(Instant::now() + CHECK_INTERVAL);
            let Some((mut channel, hello)) = arrivals.next(self.cancel, Some(soon))? else {
                // The source sends nothing before all connections are accepted, so any input here means
                // that it aborted.
                if main.stream().has_input() {
                    return Err(WireError::OutOfTurn {
                        got: main.frame()?.kind,
                        wanted: "another connection",
                    }
                    .into());
                }
                if Instant::now() >= deadline {
                    return Err(MigrationError::MissingConnections {
                        missing: more.iter().filter(|channel| channel.is_none()).count(),
                    });
                }
                continue;
            };
            match self.further_hello(&mut channel, &hello, session, &mut more) {
                Ok(index) => more[index] = Some(channel),
                Err(e) => {
                    arrivals.warn_of_stranger(&e.chain());
                    channel.send_failure(&e.chain());
                }
            }
        }
        Ok(more.into_iter().flatten().collect())
    }

    fn further_hello(
        &self,
        channel: &mut Channel,
        hello: &Hello,
        session: &Session,
        more: &mut [Option<Channel>],
    ) -> Result<usize, MigrationError> {
        let index = usize::from(hello.connection).checked_sub(1);
        let free = index.filter(|&index| more.get(index).is_some_and(Option::is_none));
        let version = self.options.versions.common(hello.versions);
        match (free, version) {
            (Some(index), Some(version)) if hello.session == session.session => {
                channel.send(&Welcome {
                    version,
                    process: self.options.process.clone(),
                    takes: Vec::new(),
                })?;
                Ok(index)
            }
            _ => Err(WireError::Nonsense {
                kind: FrameKind::Hello,
                why: "not an expected connection".to_owned(),
            }
            .into()),
        }
    }

    /// Receives RAM from all connections, and the state (with whether the vCPUs ran) from the first.
    fn take_in(
        &self,
        main: &mut Channel,
        more: Vec<Channel>,
        ram: &GuestRam,
        session: &Session,
    ) -> Result<Taken, MigrationError> {
        // The first error ends all waits.
        let wrong: Arc<Mutex<Option<MigrationError>>> = Arc::default();
        let note = |e: MigrationError| {
            let mut first = wrong.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(e);
            drop(first);
            self.cancel.set();
        };
        let result = std::thread::scope(|scope| {
            for (index, mut channel) in (1..).zip(more) {
                let note = &note;
                let spawned = spawn_scoped(scope, Role::Incoming(index), move || {
                    if let Err(e) = pages_until_end(&mut channel, ram, session.zstd) {
                        note(e);
                    }
                });
                if let Err(source) = spawned {
                    note(MigrationError::Resources {
                        doing: "start a thread for a connection",
                        source,
                    });
                }
            }
            let result = take_in_main(main, ram, session.zstd);
            if result.is_err() {
                self.cancel.set();
            }
            result
        });
        let mut first = wrong.lock().unwrap_or_else(PoisonError::into_inner);
        match first.take() {
            Some(e) => Err(e),
            None => result,
        }
    }

    fn end(
        &mut self,
        result: Result<(), MigrationError>,
        main: Option<Channel>,
    ) -> Result<Received, MigrationError> {
        if let Err(e) = &result {
            self.advance(match self.source_is_dead(e) {
                true => DestinationEvent::PeerEnded,
                false => DestinationEvent::Trouble,
            });
        }
        let mut main = main;
        if self.phase.vm() != LocalVm::Runs {
            let e = result.err().unwrap_or(MigrationError::Cancelled);
            if let Some(main) = &mut main {
                if !matches!(e, MigrationError::Refused(_)) {
                    main.send_failure(&e.chain());
                }
                main.drain(64);
            }
            return Err(e);
        }
        if let Err(e) = result {
            warn!(
                "the source exited after it had sent everything ({}): the VM runs here",
                e.chain()
            );
        }
        self.target.run();
        if let Some(main) = &mut main {
            main.stream().cannot_be_cancelled(Duration::from_secs(5));
            match main.send_frame(FrameKind::Running, &[]) {
                Ok(_) => info!("the VM has arrived"),
                Err(e) => warn!(
                    "the VM has arrived, but the source could not be notified: {}",
                    crate::error::chain(&e)
                ),
            }
        }
        Ok(Received {
            running: self.running,
        })
    }

    /// Whether the source's process is known to have ended without aborting. This end then holds everything,
    /// and no other process has the VM.
    fn source_is_dead(&self, e: &MigrationError) -> bool {
        self.phase == DestinationPhase::Holding
            && matches!(
                e,
                MigrationError::Wire(WireError::Closed | WireError::Io(_))
            )
            && !self.cancel.is_set()
            && self
                .peer
                .as_ref()
                .is_some_and(|peer| peer.wait_for_end(self.options.end_of_peer))
    }
}

fn unpacker(zstd: bool) -> Result<Unpacker, MigrationError> {
    Unpacker::new(zstd).map_err(|source| MigrationError::Resources {
        doing: "unpack pages",
        source,
    })
}

fn pages_until_end(
    channel: &mut Channel,
    ram: &GuestRam,
    zstd: bool,
) -> Result<(), MigrationError> {
    let mut unpacker = unpacker(zstd)?;
    loop {
        let frame = channel.frame()?;
        match frame.kind {
            FrameKind::Pages => unpacker.unpack(frame.body, ram)?,
            FrameKind::EndOfPages => return Ok(()),
            got => {
                return Err(WireError::OutOfTurn {
                    got,
                    wanted: "Pages or EndOfPages",
                }
                .into());
            }
        }
    }
}

/// The received data besides RAM.
struct Taken {
    state: Vec<u8>,
    running: bool,
    boot_files: Vec<Vec<u8>>,
}

/// Receives the files for a reset until the first pages arrive. They may take at most as much memory here
/// as the guest has.
fn boot_files_until_pages(
    main: &mut Channel,
    ram: &GuestRam,
    zstd: bool,
    boot_files: &mut Vec<Vec<u8>>,
) -> Result<bool, MigrationError> {
    let size: u64 = ram.pieces().map(|piece| piece.len).sum();
    let mut room = usize::try_from(size).unwrap_or(MAX_BOOT).min(MAX_BOOT);
    loop {
        let mut parts = Parts::new(room);
        let file: BootFile = loop {
            let frame = main.frame()?;
            match frame.kind {
                FrameKind::Part => parts.add(frame.body)?,
                FrameKind::Pages => {
                    unpacker(zstd)?.unpack(frame.body, ram)?;
                    return Ok(true);
                }
                FrameKind::EndOfPages => return Ok(false),
                _ => break frame.message("Part, BootFile, Pages or EndOfPages")?,
            }
        };
        if boot_files.len() == MAX_BOOT_FILES {
            return Err(nonsense(format!("more than {MAX_BOOT_FILES} files")).into());
        }
        let bytes = parts.finish(file.len, FrameKind::BootFile)?;
        room -= bytes.len();
        boot_files.push(bytes);
    }
}

fn nonsense(why: String) -> WireError {
    WireError::Nonsense {
        kind: FrameKind::BootFile,
        why,
    }
}

fn take_in_main(main: &mut Channel, ram: &GuestRam, zstd: bool) -> Result<Taken, MigrationError> {
    let mut boot_files = Vec::new();
    if boot_files_until_pages(main, ram, zstd, &mut boot_files)? {
        pages_until_end(main, ram, zstd)?;
    }
    let mut parts = Parts::new(MAX_STATE);
    loop {
        let frame = main.frame()?;
        if frame.kind == FrameKind::Part {
            parts.add(frame.body)?;
            continue;
        }
        let state: StateMessage = frame.message("Part or State")?;
        return Ok(Taken {
            state: parts.finish(state.len, FrameKind::State)?,
            running: state.running,
            boot_files,
        });
    }
}
