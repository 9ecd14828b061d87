//! The exit statistics of all power cycles, and the file that they are written to.

use std::path::Path;
use std::time::{Instant, SystemTime};

use super::counters::ExitCounters;
use crate::vcpu::stats::{CountersSnapshot, ExitStatsError, Reader, StatsReport};

/// The exits of each vCPU since the VM was started.
pub(super) struct ExitStatistics {
    started: (SystemTime, Instant),
    /// Of earlier power cycles, per vCPU.
    past: Vec<CountersSnapshot>,
    /// Of this one.
    readers: Vec<Reader>,
    /// KVM's own counts, for a user of the library.
    counters: Option<ExitCounters>,
}

impl ExitStatistics {
    /// No exits of `vcpus` vCPUs yet.
    pub(super) fn new(vcpus: usize, started: (SystemTime, Instant)) -> Self {
        Self {
            started,
            past: vec![CountersSnapshot::default(); vcpus],
            readers: Vec::new(),
            counters: None,
        }
    }

    /// Fills `counters` at each power-on.
    pub(super) fn count_in(&mut self, counters: ExitCounters) {
        self.counters = Some(counters);
    }

    /// What a new power cycle's vCPUs are to be counted in besides.
    pub(super) fn counters(&self) -> Option<&ExitCounters> {
        self.counters.as_ref()
    }

    /// A power cycle has begun, whose exits `readers` read.
    pub(super) fn begin_cycle(&mut self, readers: Vec<Reader>) {
        self.readers = readers;
    }

    /// The vCPUs are about to end. A counter that is kept would keep KVM from freeing its vCPU.
    pub(super) fn close_counters(&self) {
        if let Some(counters) = &self.counters {
            counters.clear();
        }
    }

    /// The vCPUs have ended.
    pub(super) fn end_cycle(&mut self) {
        for (past, reader) in self.past.iter_mut().zip(self.readers.drain(..)) {
            past.add(&reader.snapshot());
        }
    }

    /// Writes the statistics of the VM called `vm` to `path`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn write(&self, vm: &str, path: &Path) -> Result<(), ExitStatsError> {
        let mut vcpus = self.past.clone();
        for (all, reader) in vcpus.iter_mut().zip(&self.readers) {
            all.add(&reader.snapshot());
        }
        let report = StatsReport {
            vm,
            started: self.started.0,
            uptime: self.started.1.elapsed(),
            vcpus,
        };
        report.write(path)
    }
}
