//! The source: the end that runs the VM when the migration starts.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::channel::{Channel, PART};
use super::pace::Pace;
use super::pages::{MAX_RUN, Packer};
use super::peer::Process;
use super::phase::{LocalVm, SourceEvent, SourcePhase};
use super::precopy::{Convergence, Round, RoundDecision};
use super::progress::Progress;
use super::transport::{Cancel, Dialer, TransportError};
use super::wire::{
    Accept, BOOT_FILES, BootFile, FrameKind, Hello, PromiseMessage, Refuse, StateMessage, VERSIONS,
    Versions, Welcome,
};
use super::{DOWNTIME, MigrationError, STALL, SourceVm};
use crate::boot::BootFiles;
use crate::memory::GuestRam;
use crate::memory::dirty::PageSet;
use crate::sys::{Role, spawn_scoped};

/// Longer than the timeout after which a destination that has lost its connection aborts and exits.
const END_OF_PEER: Duration = Duration::from_secs(15);

/// The options of the source.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// The downtime budget: how long the guest may be stopped.
    pub downtime: Duration,
    /// The bandwidth limit, in bytes per second.
    pub bandwidth: Option<u64>,
    /// The number of connections.
    pub connections: u16,
    /// Whether pages are compressed.
    pub zstd: bool,
    /// The timeout for the destination's Running, after Commit.
    pub stall: Duration,
    /// The protocol versions to offer.
    pub versions: Versions,
    /// The process that runs the VM; the destination checks whether it has ended.
    pub process: Option<Process>,
    /// How long to wait for a destination on the same host to exit after the connection was lost, before
    /// the VM is called undecided.
    pub end_of_peer: Duration,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            downtime: DOWNTIME,
            bandwidth: None,
            connections: 1,
            zstd: false,
            stall: STALL,
            versions: VERSIONS,
            process: Process::current(),
            end_of_peer: END_OF_PEER,
        }
    }
}

/// How the migration ended for the VM at the source.
#[derive(Debug)]
pub enum End {
    /// The destination runs it.
    Gone,
    /// The VM stays here, and resumes if it ran.
    Kept(MigrationError),
    /// The VM stays here stopped, since the destination may run it.
    Undecided(MigrationError),
}

/// Migrates `origin` to the address of `dialer`.
pub fn migrate(
    origin: &mut dyn SourceVm,
    dialer: &Dialer,
    options: &SourceOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> End {
    let mut session = SourceSession {
        origin,
        dialer,
        options,
        progress,
        cancel,
        phase: SourcePhase::Connecting,
        peer: None,
    };
    let mut channel = None;
    let result = session.run(&mut channel);
    let end = session.end(result, channel.as_mut());
    match &end {
        End::Gone => info!("the VM runs at {}", dialer.address()),
        End::Kept(e) | End::Undecided(e) => progress.error(e.chain()),
    }
    progress.phase(session.phase);
    end
}

struct SourceSession<'a> {
    origin: &'a mut dyn SourceVm,
    dialer: &'a Dialer,
    options: &'a SourceOptions,
    progress: &'a Progress,
    cancel: &'a Cancel,
    phase: SourcePhase,
    peer: Option<Process>,
}

impl SourceSession<'_> {
    fn advance(&mut self, event: SourceEvent) {
        match self.phase.after(event) {
            Some(next) => self.phase = next,
            // The code below raises events in their order; a bug in it must not hand off the VM.
            None => unreachable!("{event:?} in {:?}", self.phase),
        }
        self.progress.phase(self.phase);
    }

    /// Runs the migration until the destination reports that it runs the VM.
    fn run(&mut self, main: &mut Option<Channel>) -> Result<(), MigrationError> {
        let session = session()?;
        let main = main.insert(Channel::new(self.dialer.dial(self.cancel)?));
        let welcome = self.greet(main, &session, 0)?;
        self.peer = welcome.process;
        self.advance(SourceEvent::Welcome);

        let ram = self.origin.ram();
        self.progress.ram(ram.pieces().map(|piece| piece.len).sum());
        self.compare(main, &ram)?;
        self.advance(SourceEvent::Accept);

        let mut more = Vec::new();
        for connection in 1..self.options.connections {
            let mut channel = Channel::new(self.dialer.dial(self.cancel)?);
            self.greet(&mut channel, &session, connection)?;
            more.push(channel);
        }
        let mut channels: Vec<&mut Channel> = vec![main];
        channels.extend(more.iter_mut());
        let pace = Pace::new(self.options.bandwidth, Instant::now());

        if let Some(main) = channels.first_mut()
            && welcome.takes.iter().any(|what| what == BOOT_FILES)
        {
            let files = self.origin.boot_files();
            let files = files.map_err(MigrationError::vm("get the files that a reset boots"))?;
            self.send_boot_files(main, files, &pace)?;
        }
        let mut dirty = self.copy(&mut channels, &ram, &pace)?;
        self.advance(SourceEvent::Stop);
        let stopped = self
            .origin
            .stop()
            .map_err(MigrationError::vm("save the VM"))?;
        self.collect(&mut dirty)?;
        debug!("stopped, with {} pages left", dirty.count());
        // The remaining pages were counted against the downtime, so the bandwidth limit does not apply to
        // them.
        let free = Pace::new(None, Instant::now());
        self.send_round(&mut channels, &ram, &dirty, true, &free)?;
        for channel in &mut channels {
            self.progress
                .sent(channel.send_frame(FrameKind::EndOfPages, &[])?);
        }
        let main = &mut *channels[0];
        self.progress.sent(main.send_parts(&stopped.state)?);
        main.send(&StateMessage {
            len: stopped.state.len() as u64,
            running: stopped.running,
        })?;
        debug!("everything is sent");
        main.recv_kind(FrameKind::Ready, "Ready")?;
        if self.cancel.is_set() {
            return Err(MigrationError::Cancelled);
        }
        // From here on the migration cannot be cancelled.
        self.advance(SourceEvent::Ready);
        main.stream().cannot_be_cancelled(self.options.stall);
        main.send_frame(FrameKind::Commit, &[])?;
        main.recv_kind(FrameKind::Running, "Running")?;
        self.advance(SourceEvent::Running);
        Ok(())
    }

    fn greet(
        &self,
        channel: &mut Channel,
        session: &str,
        connection: u16,
    ) -> Result<Welcome, MigrationError> {
        channel.send(&Hello {
            protocol: Hello::PROTOCOL.to_owned(),
            versions: self.options.versions,
            needs: match self.options.zstd {
                true => vec!["zstd".to_owned()],
                false => Vec::new(),
            },
            session: session.to_owned(),
            connection,
            connections: self.options.connections,
            process: self.options.process.clone(),
        })?;
        let welcome: Welcome = channel.recv("Welcome")?;
        let spoken = self.options.versions;
        if !(spoken.min..=spoken.max).contains(&welcome.version) {
            return Err(MigrationError::Versions {
                source_speaks: spoken,
                destination_speaks: Versions {
                    min: welcome.version,
                    max: welcome.version,
                },
            });
        }
        channel.stream().check_peer()?;
        Ok(welcome)
    }

    /// Sends the promise to the guest; the destination accepts or refuses it before any RAM is sent.
    fn compare(&mut self, main: &mut Channel, ram: &GuestRam) -> Result<(), MigrationError> {
        let promise = self
            .origin
            .promise()
            .map_err(MigrationError::vm("describe what the guest was promised"))?;
        self.progress.sent(main.send_parts(&promise)?);
        main.send(&PromiseMessage {
            len: promise.len() as u64,
            ram: ram.pieces().map(|piece| (piece.gpa.0, piece.len)).collect(),
        })?;
        let answer = main.frame()?;
        if answer.kind == FrameKind::Refuse {
            let refuse: Refuse = answer.message("Refuse")?;
            let reasons = refuse.reasons.iter();
            let escaped = reasons.map(|reason| super::channel::escaped(reason));
            return Err(MigrationError::Refused(escaped.collect()));
        }
        let Accept {} = answer.message("Accept or Refuse")?;
        Ok(())
    }

    /// Sends the files that a reset boots, while the guest runs.
    fn send_boot_files(
        &self,
        channel: &mut Channel,
        files: Option<BootFiles>,
        pace: &Pace,
    ) -> Result<(), MigrationError> {
        let mut buffer = vec![0; PART];
        for image in files.iter().flat_map(BootFiles::all) {
            let unreadable = |source| {
                MigrationError::vm("read the files that a reset boots")(Box::new(
                    image.unreadable(source),
                ))
            };
            let mut content = image.reader();
            let mut len = 0;
            loop {
                let read = content.read(&mut buffer).map_err(unreadable)?;
                if read == 0 {
                    break;
                }
                let bytes = channel.send_frame(FrameKind::Part, &buffer[..read])?;
                self.progress.sent(bytes);
                len += read as u64;
                if self.cancel.sleep(pace.sent(bytes, Instant::now())) {
                    return Err(MigrationError::Cancelled);
                }
            }
            self.progress.sent(channel.send(&BootFile { len })?);
        }
        Ok(())
    }

    /// Copies RAM until the guest can be stopped; returns an empty set.
    fn copy(
        &mut self,
        channels: &mut [&mut Channel],
        ram: &GuestRam,
        pace: &Pace,
    ) -> Result<PageSet, MigrationError> {
        self.origin
            .start_log()
            .map_err(MigrationError::vm("log the pages that the guest writes"))?;
        // The dirty log runs already, so it contains every later write.
        let mut dirty = PageSet::none(ram.pieces());
        for part in ram.data() {
            dirty.insert_all(part);
        }
        let mut convergence = Convergence::new(self.options.downtime);
        let mut zeroes = false;
        loop {
            let pages = dirty.count();
            self.progress.round_begins(pages);
            let start = Instant::now();
            let bytes = self.send_round(channels, ram, &dirty, zeroes, pace)?;
            zeroes = true;
            dirty.clear();
            self.collect(&mut dirty)?;
            let round = Round {
                pages,
                bytes,
                took: start.elapsed(),
                dirtied: dirty.count(),
            };
            self.progress.round_ends(round, self.options.downtime);
            debug!(
                "{} pages in {} ms, {} dirtied meanwhile",
                round.pages,
                round.took.as_millis(),
                round.dirtied
            );
            match convergence.after(round) {
                RoundDecision::Continue => {}
                RoundDecision::Throttle(percent) => {
                    info!("the guest's vCPUs are throttled by {percent} %");
                    self.progress.throttle(percent);
                    self.origin.throttle(percent);
                }
                RoundDecision::Stop => return Ok(dirty),
            }
        }
    }

    fn collect(&mut self, dirty: &mut PageSet) -> Result<(), MigrationError> {
        let collected = self.origin.collect(dirty);
        collected.map_err(MigrationError::vm("read the dirty log"))
    }

    /// Sends the pages of `dirty` over all connections and returns the bytes sent. Each 1 MiB of RAM always
    /// uses the same connection, so that a page's later content never overtakes an earlier one.
    fn send_round(
        &self,
        channels: &mut [&mut Channel],
        ram: &GuestRam,
        dirty: &PageSet,
        zeroes: bool,
        pace: &Pace,
    ) -> Result<u64, MigrationError> {
        let share = Share {
            ram,
            dirty,
            zeroes,
            zstd: self.options.zstd,
            of: channels.len() as u64,
            pace,
            progress: self.progress,
            cancel: self.cancel,
            failed: &AtomicBool::new(false),
        };
        let Some((first, others)) = channels.split_first_mut() else {
            return Ok(0);
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..)
                .zip(others)
                .map(|(index, channel)| {
                    let share = &share;
                    spawn_scoped(scope, Role::Migrate(index), move || {
                        share.send(channel, index)
                    })
                })
                .collect();
            let mut all = share.send(first, 0);
            for thread in threads {
                let result = match thread {
                    // A panic of a thread is a bug: pass it on.
                    Ok(thread) => thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                    Err(source) => Err(MigrationError::Resources {
                        doing: "start a thread for a connection",
                        source,
                    }),
                };
                all = match (all, result) {
                    (Ok(a), Ok(b)) => Ok(a + b),
                    // The connection that failed first made the others stop.
                    (Err(MigrationError::Cancelled) | Ok(_), Err(e)) | (Err(e), _) => Err(e),
                };
            }
            all
        })
    }

    /// Ends the migration: decides what happens to the VM after `result`.
    fn end(&mut self, result: Result<(), MigrationError>, main: Option<&mut Channel>) -> End {
        let Err(mut e) = result else {
            return End::Gone;
        };
        if self.cancel.is_set() && self.phase.can_be_cancelled() {
            e = MigrationError::Cancelled;
        }
        if let Some(main) = main {
            if !matches!(e, MigrationError::Cancelled) {
                e = main.abort_reason(e);
            }
            // Sent before the VM resumes, so that a destination that reads it aborts for certain.
            if self.phase != SourcePhase::Committed {
                main.send_failure(&e.chain());
            }
        }
        let gave_up = matches!(e, MigrationError::Peer(_));
        self.advance(match gave_up {
            true => SourceEvent::PeerGaveUp,
            false => SourceEvent::Trouble,
        });
        if self.phase == SourcePhase::Undecided
            && let Some(peer) = &self.peer
            && peer.wait_for_end(self.options.end_of_peer)
        {
            self.advance(SourceEvent::PeerEnded);
        }
        match self.phase.vm() {
            LocalVm::Runs => {
                self.origin.resume();
                End::Kept(e)
            }
            LocalVm::Stopped | LocalVm::Absent => {
                warn!("the destination may run the VM, so it stays stopped here");
                self.origin.keep_stopped();
                End::Undecided(e)
            }
        }
    }
}

/// The share of one round that one connection sends.
struct Share<'a> {
    ram: &'a GuestRam,
    dirty: &'a PageSet,
    zeroes: bool,
    zstd: bool,
    of: u64,
    pace: &'a Pace,
    progress: &'a Progress,
    cancel: &'a Cancel,
    /// Another connection has failed, so this one stops too.
    failed: &'a AtomicBool,
}

impl Share<'_> {
    fn send(&self, channel: &mut Channel, index: u64) -> Result<u64, MigrationError> {
        let sent = self.try_send(channel, index);
        if sent.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn try_send(&self, channel: &mut Channel, index: u64) -> Result<u64, MigrationError> {
        let packer = Packer::new(self.zstd, self.zeroes);
        let mut packer = packer.map_err(|source| MigrationError::Resources {
            doing: "compress pages",
            source,
        })?;
        let mut buffer = Vec::new();
        let (mut bytes, mut pages) = (0, 0);
        for run in self.dirty.runs(MAX_RUN) {
            if run.gpa.0 / (MAX_RUN * 4096) % self.of != index {
                continue;
            }
            if !packer.has_room(run.pages) {
                bytes += self.flush(channel, &mut packer, &mut pages)?;
            }
            buffer.resize(usize::try_from(run.pages * 4096).expect("at most 1 MiB"), 0);
            self.ram
                .read(run.gpa, &mut buffer)
                .expect("the set is of this RAM");
            packer.add(run.gpa, &buffer);
            pages += run.pages;
        }
        Ok(bytes + self.flush(channel, &mut packer, &mut pages)?)
    }

    fn flush(
        &self,
        channel: &mut Channel,
        packer: &mut Packer,
        pages: &mut u64,
    ) -> Result<u64, MigrationError> {
        let Some(body) = packer.body() else {
            self.progress.pages_sent(std::mem::take(pages), 0);
            return Ok(0);
        };
        // During a round the destination sends something only if it aborts.
        if channel.stream().has_input() {
            let frame = channel.frame()?;
            return Err(super::wire::WireError::OutOfTurn {
                got: frame.kind,
                wanted: "nothing",
            }
            .into());
        }
        let bytes = channel.send_frame(FrameKind::Pages, body)?;
        packer.clear();
        self.progress.pages_sent(std::mem::take(pages), bytes);
        let wait = self.pace.sent(bytes, Instant::now());
        if self.cancel.sleep(wait) || self.failed.load(Ordering::Relaxed) {
            return Err(MigrationError::Cancelled);
        }
        Ok(bytes)
    }
}

/// Returns a session name that cannot be guessed; it marks the connections that belong together.
fn session() -> Result<String, MigrationError> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(|source| {
            MigrationError::Transport(TransportError::Io {
                doing: "draw a random number for",
                address: super::Address::Unix("/dev/urandom".into()),
                source,
            })
        })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
