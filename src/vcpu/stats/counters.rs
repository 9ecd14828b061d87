//! The counters that one vCPU's thread writes and other threads read.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use zerocopy::FromZeros;

use super::clock::{ExitClock, Start};
use super::report::ExitStatsError;
use super::snapshot::{CountersSnapshot, ReasonCounts};
use super::{ExitReason, bucket};

/// Per reason: these, then the buckets.
const SUM: usize = 0;
const MAX: usize = 1;
const OUT_OF_RANGE: usize = 2;
/// A cache line, so that reasons do not share one.
const BUCKETS: usize = 8;
const STRIDE: usize = BUCKETS + bucket::COUNT;

/// Zeroed by the kernel, and so without memory behind it until a counter is first written: a page or two are
/// resident per reason that occurs.
struct Counters(Box<[AtomicU64]>);

impl Counters {
    fn of(&self, reason: ExitReason) -> &[AtomicU64] {
        let start = reason as usize * STRIDE;
        &self.0[start..start + STRIDE]
    }
}

/// Adds to a counter that no other thread writes, so it needs no locked instruction.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

/// The vCPU thread's side: one per vCPU, the only writer.
pub struct Recorder {
    counters: Arc<Counters>,
    clock: ExitClock,
}

impl Recorder {
    /// Creates counters at zero. All memory that they will need is reserved here.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(clock: ExitClock) -> Result<Self, ExitStatsError> {
        <[AtomicU64]>::new_box_zeroed_with_elems(ExitReason::ALL.len() * STRIDE)
            .map(|counters| Self {
                counters: Arc::new(Counters(counters)),
                clock,
            })
            .map_err(|_| ExitStatsError::NoMemory)
    }

    /// Called when the vCPU has just left the guest.
    #[inline]
    pub fn start(&self) -> Start {
        self.clock.start()
    }

    /// Called when the exit that began at `start` is handled: counts it.
    #[inline]
    pub fn finish(&mut self, reason: ExitReason, start: Start) {
        self.record(reason, self.clock.ns_since(start));
    }

    /// Counts an exit that took `ns` nanoseconds to handle.
    #[inline]
    pub fn record(&mut self, reason: ExitReason, ns: u64) {
        let counters = self.counters.of(reason);
        add(&counters[SUM], ns);
        if ns > counters[MAX].load(Relaxed) {
            counters[MAX].store(ns, Relaxed);
        }
        match bucket::index(ns) {
            Some(index) => add(&counters[BUCKETS + index], 1),
            None => add(&counters[OUT_OF_RANGE], 1),
        }
    }

    /// The other threads' side.
    pub fn reader(&self) -> Reader {
        Reader(Arc::clone(&self.counters))
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

/// The readers' side of a vCPU's counters.
#[derive(Clone)]
pub struct Reader(Arc<Counters>);

impl Reader {
    /// The counts up to now. The vCPU continues meanwhile: an exit that it records during the copy may be
    /// included or not.
    pub fn snapshot(&self) -> CountersSnapshot {
        CountersSnapshot {
            reasons: ExitReason::ALL
                .into_iter()
                .map(|reason| (reason, self.counts(reason)))
                .filter(|(_, counts)| counts.count() > 0)
                .collect(),
        }
    }

    fn counts(&self, reason: ExitReason) -> ReasonCounts {
        let counters = self.0.of(reason);
        ReasonCounts {
            buckets: counters[BUCKETS..]
                .iter()
                .enumerate()
                .map(|(index, counter)| (index, counter.load(Relaxed)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            out_of_range: counters[OUT_OF_RANGE].load(Relaxed),
            // Read last: it covers every exit above, and at most one that is being recorded.
            sum_ns: counters[SUM].load(Relaxed),
            max_ns: counters[MAX].load(Relaxed),
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reader").finish_non_exhaustive()
    }
}
