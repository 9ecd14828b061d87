//! How a migration stands, for whoever asks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::phase::Source;
use super::precopy::{self, Round};
use crate::memory::dirty::PAGE;

/// How a migration stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Where to.
    pub to: String,
    /// How far it is.
    pub phase: Option<Source>,
    /// Rounds of copying RAM that are over.
    pub rounds: u32,
    /// Bytes of guest RAM.
    pub ram: u64,
    /// Bytes sent so far, of everything.
    pub sent: u64,
    /// Bytes of guest RAM that this round still has to send.
    pub remaining: u64,
    /// Bytes sent per second, in the last round.
    pub rate: u64,
    /// Bytes of RAM that the guest dirtied per second, in the last round.
    pub dirty_rate: u64,
    /// The share of their time that is taken from the vCPUs, in percent.
    pub throttle: u8,
    /// Milliseconds that it took or takes so far.
    pub elapsed_ms: u64,
    /// Milliseconds until the guest is stopped, as far as that can be told.
    pub estimate_ms: Option<u64>,
    /// Milliseconds from the guest's stop until the destination said that it runs.
    pub downtime_ms: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Kept current by a migration and read by others. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Progress {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    report: Report,
    started: Instant,
    ended: Option<Instant>,
    stopped: Option<Instant>,
}

impl Progress {
    /// A migration to `to` begins.
    pub fn new(to: String) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                report: Report {
                    to,
                    phase: Some(Source::Connecting),
                    ..Report::default()
                },
                started: Instant::now(),
                ended: None,
                stopped: None,
            })),
        }
    }

    /// Now.
    pub fn report(&self) -> Report {
        let inner = self.lock();
        let until = inner.ended.unwrap_or_else(Instant::now);
        Report {
            elapsed_ms: ms(until.saturating_duration_since(inner.started)),
            ..inner.report.clone()
        }
    }

    /// Whether it is over, one way or the other.
    pub fn is_over(&self) -> bool {
        self.lock().report.phase.is_some_and(Source::is_over)
    }

    pub(super) fn phase(&self, phase: Source) {
        let mut inner = self.lock();
        inner.report.phase = Some(phase);
        match phase {
            Source::HandingOver => inner.stopped = Some(Instant::now()),
            Source::Gone => inner.report.downtime_ms = inner.stopped.map(|at| ms(at.elapsed())),
            _ => {}
        }
        if phase.is_over() {
            inner.ended = Some(Instant::now());
            inner.report.estimate_ms = None;
            inner.report.remaining = 0;
            inner.report.throttle = 0;
        }
    }

    pub(super) fn ram(&self, bytes: u64) {
        self.lock().report.ram = bytes;
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.lock().report.sent += bytes;
    }

    pub(super) fn round_begins(&self, pages: u64) {
        self.lock().report.remaining = pages.saturating_mul(PAGE);
    }

    pub(super) fn pages_sent(&self, pages: u64, bytes: u64) {
        let report = &mut self.lock().report;
        report.sent += bytes;
        report.remaining = report.remaining.saturating_sub(pages.saturating_mul(PAGE));
    }

    pub(super) fn round_ends(&self, round: Round, budget: Duration) {
        let report = &mut self.lock().report;
        report.rounds += 1;
        report.rate = precopy::per_second(round.bytes, round.took);
        report.dirty_rate = precopy::dirty_rate(round);
        report.estimate_ms = precopy::estimate(round, budget).map(ms);
    }

    pub(super) fn throttle(&self, percent: u8) {
        self.lock().report.throttle = percent;
    }

    pub(super) fn error(&self, why: String) {
        self.lock().report.error = Some(why);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Every change is a few assignments of numbers.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
