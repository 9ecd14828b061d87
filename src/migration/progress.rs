//! The progress of a migration, for status and the API.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::phase::SourcePhase;
use super::precopy::{self, Round};
use crate::memory::dirty::PAGE;

/// The progress of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// The destination's address.
    pub to: String,
    /// The phase of the source.
    pub phase: Option<SourcePhase>,
    /// Completed rounds of copying RAM.
    pub rounds: u32,
    /// Bytes of guest RAM.
    pub ram: u64,
    /// Bytes sent so far, in total.
    pub sent: u64,
    /// Bytes of guest RAM that this round still has to send.
    pub remaining: u64,
    /// Bytes sent per second, in the last round.
    pub rate: u64,
    /// Bytes of RAM that the guest dirtied per second, in the last round.
    pub dirty_rate: u64,
    /// The share of their time that is taken from the vCPUs, in percent.
    pub throttle: u8,
    /// Milliseconds since the start; the total once the migration has ended.
    pub elapsed_ms: u64,
    /// Estimated milliseconds until the guest is stopped, if known.
    pub estimate_ms: Option<u64>,
    /// Milliseconds from the guest's stop until the destination reported that it runs.
    pub downtime_ms: Option<u64>,
    /// The error, if the migration failed.
    pub error: Option<String>,
}

/// Updated by a migration and read by others. Clones share one state.
#[derive(Clone, Debug)]
pub struct Progress {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    report: MigrationReport,
    started: Instant,
    ended: Option<Instant>,
    stopped: Option<Instant>,
}

impl Progress {
    /// Starts the progress of a migration to `to`.
    pub fn new(to: String) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                report: MigrationReport {
                    to,
                    phase: Some(SourcePhase::Connecting),
                    ..MigrationReport::default()
                },
                started: Instant::now(),
                ended: None,
                stopped: None,
            })),
        }
    }

    /// Returns the current progress.
    pub fn report(&self) -> MigrationReport {
        let inner = self.lock();
        let until = inner.ended.unwrap_or_else(Instant::now);
        MigrationReport {
            elapsed_ms: ms(until.saturating_duration_since(inner.started)),
            ..inner.report.clone()
        }
    }

    /// Whether the migration has ended, successfully or not.
    pub fn is_over(&self) -> bool {
        self.lock().report.phase.is_some_and(SourcePhase::is_over)
    }

    pub(super) fn phase(&self, phase: SourcePhase) {
        let mut inner = self.lock();
        inner.report.phase = Some(phase);
        match phase {
            SourcePhase::HandingOver => inner.stopped = Some(Instant::now()),
            SourcePhase::Gone => {
                inner.report.downtime_ms = inner.stopped.map(|at| ms(at.elapsed()));
            }
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
