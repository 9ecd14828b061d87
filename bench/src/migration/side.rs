//! One end of a migration: a running VMM, and the times of its guest's beats.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::MigrationError;
use crate::sync::lock;
use crate::vmm::contender::Contender;

/// The byte that the guest writes at every beat.
const SIGN: u8 = b'.';
/// The maximum length of a VMM's output in an error.
const REPEATED: usize = 2000;

/// The times of beats.
#[derive(Default)]
struct Seen {
    count: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    said: Vec<u8>,
    ended: bool,
}

/// A VMM and its guest. Killed when dropped.
pub(super) struct Side {
    who: Contender,
    child: Child,
    started: Instant,
    limit: Duration,
    seen: Arc<(Mutex<Seen>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

impl Side {
    /// Starts `command`, whose standard output is the guest's console; `limit` is the timeout for all waits.
    pub(super) fn start(
        who: Contender,
        command: &mut Command,
        limit: Duration,
    ) -> Result<Self, MigrationError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        hypernest::end_with_parent(command);
        let started = Instant::now();
        let mut child = command.spawn().map_err(|source| MigrationError::Start {
            who: who.name(),
            source,
        })?;
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let reader = child.stdout.take().map(|mut stdout| {
            let seen = Arc::clone(&seen);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                loop {
                    let read = stdout.read(&mut buffer).unwrap_or(0);
                    let now = Instant::now();
                    let mut state = lock(&seen.0);
                    state.note(&buffer[..read], now);
                    seen.1.notify_all();
                    if read == 0 {
                        return;
                    }
                }
            })
        });
        Ok(Self {
            who,
            child,
            started,
            limit,
            seen,
            reader,
        })
    }

    /// The time of its start.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Waits for `count` beats and returns the time of the first one.
    pub(super) fn until(&self, count: u64) -> Result<Instant, MigrationError> {
        let mut state = lock(&self.seen.0);
        loop {
            match state.first {
                Some(first) if state.count >= count => return Ok(first),
                _ if state.ended => {
                    drop(state);
                    return Err(self.failed("ended before its guest's first beat"));
                }
                _ => {}
            }
            let left = self.limit.saturating_sub(self.started.elapsed());
            if left.is_zero() {
                drop(state);
                return Err(self.failed("timed out waiting for its guest's beats"));
            }
            let waited = self.seen.1.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The time of the last beat. The VMM has ended before it is read, so no output is in transit.
    pub(super) fn end(mut self) -> Result<Instant, MigrationError> {
        self.kill();
        let last = lock(&self.seen.0).last;
        last.ok_or_else(|| self.failed("ended without a beat of its guest"))
    }

    fn kill(&mut self) {
        // Both fail only if the process has already been reaped.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
        if let Some(reader) = self.reader.take() {
            // The thread does not panic.
            let _joined = reader.join();
        }
    }

    pub(super) fn failed(&self, how: &str) -> MigrationError {
        let state = lock(&self.seen.0);
        MigrationError::Failed {
            who: self.who.name(),
            how: how.to_owned(),
            said: String::from_utf8_lossy(&state.said).into_owned(),
        }
    }
}

impl Seen {
    fn note(&mut self, bytes: &[u8], now: Instant) {
        self.ended = bytes.is_empty();
        // A line that the guest prints before the first beat may contain dots, too.
        let signs = bytes.iter().filter(|byte| **byte == SIGN).count() as u64;
        let room = REPEATED.saturating_sub(self.said.len());
        self.said.extend(bytes.iter().take(room));
        if signs > 0 {
            self.count += signs;
            self.first.get_or_insert(now);
            self.last = Some(now);
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.kill();
    }
}
