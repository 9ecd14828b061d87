//! New connections that are not yet part of a migration. The TLS handshake and the first message of each
//! are read in parallel, so that a silent stranger does not delay a source.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use tracing::warn;

use super::MigrationError;
use super::channel::Channel;
use super::transport::{Cancel, Listener, Stream};
use super::wire::Hello;
use crate::sys::{Role, spawn};

/// The timeout for a connection's Hello.
const HELLO: Duration = Duration::from_secs(10);
/// The maximum number of connections that may wait at a time.
const MAX_WAITING: usize = 64;
/// When that many wait, a connection older than this is dropped for the next one.
const MIN_WAIT: Duration = Duration::from_secs(2);
/// The poll interval for waiting connections.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Warnings about strangers that are logged within a [`WINDOW`].
const WARNINGS: u32 = 8;
const WINDOW: Duration = Duration::from_secs(60);

/// A connection whose Hello has not arrived yet.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    cancel: Cancel,
    result: Receiver<Result<(Channel, Hello), MigrationError>>,
}

/// The connections that arrive at a listener.
#[derive(Debug)]
pub(super) struct Arrivals<'a> {
    listener: &'a mut Listener,
    waiting: Vec<Waiting>,
    warnings: Warnings,
    hello: Duration,
}

impl<'a> Arrivals<'a> {
    /// Serves the connections of `listener`.
    pub(super) fn at(listener: &'a mut Listener) -> Self {
        Self {
            listener,
            waiting: Vec::new(),
            warnings: Warnings::default(),
            hello: HELLO,
        }
    }

    /// Whether the address accepts another connection after a useless one.
    pub(super) fn takes_many(&self) -> bool {
        self.listener.takes_many()
    }

    /// Returns the next connection whose Hello has arrived; `None` if none has by `deadline`.
    ///
    /// # Errors
    /// If no more connections can arrive, or the wait was cancelled.
    pub(super) fn next(
        &mut self,
        cancel: &Cancel,
        deadline: Option<Instant>,
    ) -> Result<Option<(Channel, Hello)>, MigrationError> {
        loop {
            if let Some((mut channel, hello)) = self.arrived()? {
                channel.stream().greeted(cancel);
                return Ok(Some((channel, hello)));
            }
            if cancel.is_set() {
                return Err(MigrationError::Cancelled);
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(None);
            }
            let step = (!self.waiting.is_empty()).then(|| now + POLL_INTERVAL);
            let until = step.into_iter().chain(deadline).min();
            let single_is_here = !self.takes_many() && !self.waiting.is_empty();
            if single_is_here || !self.has_room() {
                // Further connections wait in the listener's queue.
                let _cancelled = cancel.sleep(POLL_INTERVAL);
                continue;
            }
            match self.listener.accept(cancel, until) {
                Ok(stream) => self.wait_for(stream)?,
                Err(e) if e.is_timeout() => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Logs a warning about a useless connection.
    pub(super) fn warn_of_stranger(&mut self, why: &str) {
        self.warnings.warn_of_stranger(why);
    }

    /// Whether another connection can be waited for.
    fn has_room(&mut self) -> bool {
        if self.waiting.len() < MAX_WAITING {
            return true;
        }
        // The oldest is the first.
        if self.waiting[0].since.elapsed() < MIN_WAIT {
            return false;
        }
        self.waiting.remove(0).cancel.set();
        self.warnings
            .warn_of_stranger("it sent no Hello while others waited");
        true
    }

    fn wait_for(&mut self, mut stream: Stream) -> Result<(), MigrationError> {
        let failed = |source| MigrationError::Resources {
            doing: "wait for a connection's first message",
            source,
        };
        let since = Instant::now();
        let cancel = Cancel::new().map_err(failed)?;
        let until = self.takes_many().then(|| since + self.hello);
        stream.greet_until(&cancel, until);
        let (done, result) = sync_channel(1);
        spawn(Role::Arrival, move || hello(stream, &done)).map_err(failed)?;
        self.waiting.push(Waiting {
            since,
            cancel,
            result,
        });
        Ok(())
    }

    fn arrived(&mut self) -> Result<Option<(Channel, Hello)>, MigrationError> {
        let mut at = 0;
        while let Some(waiting) = self.waiting.get(at) {
            let result = match waiting.result.try_recv() {
                Err(TryRecvError::Empty) => {
                    at += 1;
                    continue;
                }
                // The thread has panicked, and the panic hook has reported it.
                Err(TryRecvError::Disconnected) => {
                    self.waiting.remove(at);
                    continue;
                }
                Ok(result) => result,
            };
            self.waiting.remove(at);
            match result {
                Ok(arrived) => return Ok(Some(arrived)),
                Err(e) if !self.takes_many() => return Err(e),
                Err(e) => self.warnings.warn_of_stranger(&e.chain()),
            }
        }
        Ok(None)
    }
}

impl Drop for Arrivals<'_> {
    fn drop(&mut self) {
        for waiting in &self.waiting {
            waiting.cancel.set();
        }
    }
}

/// Runs on its own thread; reading the Hello performs the handshake.
fn hello(stream: Stream, done: &SyncSender<Result<(Channel, Hello), MigrationError>>) {
    let mut channel = Channel::new(stream);
    let hello = channel.recv::<Hello>("Hello").and_then(|hello| {
        channel.stream().check_peer()?;
        Ok(hello)
    });
    let result = match hello {
        Ok(hello) => Ok((channel, hello)),
        Err(e) => {
            channel.send_failure(&e.chain());
            channel.drain(1);
            Err(e)
        }
    };
    // The receiver may have gone.
    let _no_longer_wanted = done.send(result);
}

/// Rate limit for warnings about strangers, who may connect without end: the log gets a few warnings a
/// minute and a count of the rest.
#[derive(Debug, Default)]
struct Warnings {
    window: Option<Instant>,
    in_window: u32,
    suppressed: u64,
}

impl Warnings {
    fn warn_of_stranger(&mut self, why: &str) {
        if let Some(suppressed) = self.admit(Instant::now()) {
            if suppressed > 0 {
                warn!("{suppressed} more connections were rejected");
            }
            warn!("a connection was rejected, and the source is still awaited: {why}");
        }
    }

    /// Whether a warning at `now` is logged; returns the number of warnings suppressed since the last one.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self
            .window
            .is_none_or(|start| now.duration_since(start) >= WINDOW)
        {
            self.window = Some(now);
            self.in_window = 0;
        }
        if self.in_window == WARNINGS {
            self.suppressed += 1;
            return None;
        }
        self.in_window += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_rate_limited_and_the_suppressed_are_counted() {
        let start = Instant::now();
        let mut warnings = Warnings::default();
        for _ in 0..WARNINGS {
            assert_eq!(warnings.admit(start), Some(0));
        }
        for _ in 0..25_000 {
            assert_eq!(warnings.admit(start + WINDOW / 2), None);
        }
        assert_eq!(warnings.admit(start + WINDOW), Some(25_000));
        assert_eq!(warnings.admit(start + WINDOW), Some(0));
    }
}
