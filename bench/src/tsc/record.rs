//! The data that remains of a sampler's stream, with arrival times. Its size is bounded for runs of any
//! length.

use std::collections::{BTreeMap, VecDeque};

use hdrhistogram::Histogram;
use hypernest_nested::tsc::{Ack, Clock, Hello, Next, Report, Said, next_said};

use crate::histogram;

/// Clocks at one moment, and the time of their arrival at the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// The arrival in ns of the host's monotonic clock.
    pub(super) at: u64,
    /// The run of the guest: 0 before the first move.
    pub(super) run: usize,
    pub(super) vcpu: u32,
    /// The clocks by [`Clock::index`].
    pub(super) now: [u64; Clock::COUNT],
    /// The first or last one of a processor in its run: never thinned out.
    edge: bool,
}

/// An acknowledgement, and the time of its arrival at the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Acknowledged {
    pub(super) at: u64,
    pub(super) run: usize,
    pub(super) ack: Ack,
}

/// Steps back between reports, as seen by the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    pub(super) count: u64,
    pub(super) largest: u64,
}

/// A step forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) size: u64,
    /// The value of the clock before the step.
    pub(super) at: u64,
}

impl Gap {
    fn widen(&mut self, other: Self) {
        if other.size > self.size {
            *self = other;
        }
    }
}

/// Maximum number of samples; more are thinned out.
const MOST_SAMPLES: usize = 200_000;
/// Maximum number of processors; more than any guest program starts.
const MOST_VCPUS: u32 = 1024;
/// Maximum number of lines; the oldest are dropped.
const MOST_LINES: usize = 200;
/// Maximum number of acknowledgements and restarts; a guest has one per move. Further ones are dropped.
const MOST_ACKS: usize = 10_000;

/// Parses a stream that arrives in chunks.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    stream: Vec<u8>,
    /// Chunks that are not yet consumed: the end in the stream, the arrival, and the run.
    pieces: VecDeque<(usize, u64, usize)>,
    record: Record,
    /// The last sample of each processor, which is kept when its run ends.
    pending: BTreeMap<u32, Sample>,
    /// One of this many samples is kept.
    stride: u64,
    seen: u64,
}

/// The record of a stream.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) hello: Option<Hello>,
    /// Runs in which the guest restarted: it sent a second greeting.
    pub(super) anew: Vec<usize>,
    /// The samples in the order of the stream.
    pub(super) samples: Vec<Sample>,
    pub(super) acks: Vec<Acknowledged>,
    /// The last report of each processor.
    pub(super) last: BTreeMap<u32, Report>,
    /// The most recent of those.
    pub(super) latest: Option<Sample>,
    /// The first sample of each run.
    pub(super) first: BTreeMap<usize, Sample>,
    /// The number of reports by run.
    pub(super) reports: BTreeMap<usize, u64>,
    /// The largest gap that spans a move, by the run that began with it; the gaps by [`Clock::index`].
    pub(super) across: BTreeMap<usize, [Gap; Clock::COUNT]>,
    /// The reference TSC page's sequence number in the last report of each run.
    pub(super) sequences: BTreeMap<usize, u32>,
    /// The largest gap of each report that spans no move, in the clock's unit.
    pub(super) quiet: [Option<Histogram<u64>>; Clock::COUNT],
    pub(super) largest_quiet: [Gap; Clock::COUNT],
    pub(super) steps: [Steps; Clock::COUNT],
    most: [u64; Clock::COUNT],
    /// The last lines of the guest's text output.
    pub(super) lines: VecDeque<String>,
    pub(super) broken_bytes: u64,
}

impl Recorder {
    /// Processes the guest's next `bytes`, which arrived at `at` in `run`.
    pub(super) fn feed(&mut self, bytes: &[u8], at: u64, run: usize) {
        self.stream.extend_from_slice(bytes);
        self.pieces.push_back((self.stream.len(), at, run));
        let mut used = 0;
        loop {
            let (taken, said) = match next_said(&self.stream[used..]) {
                Next::Incomplete => break,
                Next::Skip { bytes, broken } => {
                    if broken {
                        self.record.broken_bytes += bytes as u64;
                    }
                    (bytes, None)
                }
                Next::Said(Said::Line(line), taken) => {
                    let line = String::from_utf8_lossy(line).into_owned();
                    self.record.line(line);
                    (taken, None)
                }
                Next::Said(Said::Hello(hello), taken) => {
                    let again = self.record.hello.replace(hello).is_some();
                    if again && self.record.anew.len() < MOST_ACKS {
                        self.record.anew.push(run);
                    }
                    (taken, None)
                }
                Next::Said(Said::Ack(ack), taken) => (taken, Some(Err(ack))),
                Next::Said(Said::Report(report), taken) => (taken, Some(Ok(report))),
            };
            if let Some(said) = said {
                // An item was sent with its first byte.
                let piece = self.pieces.iter().find(|(end, ..)| *end > used);
                let (at, run) = piece.map_or((at, run), |(_, at, run)| (*at, *run));
                match said {
                    Ok(report) => self.report(&report, at, run),
                    Err(ack) if self.record.acks.len() < MOST_ACKS => {
                        self.record.acks.push(Acknowledged { at, run, ack });
                    }
                    Err(_) => {}
                }
            }
            used += taken;
        }
        self.stream.drain(..used);
        self.pieces.retain_mut(|(end, ..)| {
            let waits = *end > used;
            *end = end.saturating_sub(used);
            waits
        });
    }

    /// The record so far.
    pub(super) fn so_far(&self) -> &Record {
        &self.record
    }

    /// The whole record.
    pub(super) fn finish(mut self) -> Record {
        for (_, mut sample) in std::mem::take(&mut self.pending) {
            sample.edge = true;
            self.record.samples.push(sample);
        }
        let samples = &mut self.record.samples;
        samples.sort_by_key(|sample| sample.at);
        self.record
    }

    fn report(&mut self, report: &Report, at: u64, run: usize) {
        if report.vcpu >= MOST_VCPUS {
            return;
        }
        let mut sample = Sample {
            at,
            run,
            vcpu: report.vcpu,
            now: report.now,
            edge: false,
        };
        let pending = self.pending.remove(&report.vcpu);
        let is_first = pending.is_none_or(|before| before.run != run);
        self.record.note(report, run, is_first && run > 0);
        self.record.first.entry(run).or_insert(sample);
        self.record.latest = Some(sample);
        if let Some(mut before) = pending {
            before.edge |= is_first;
            self.keep(before);
        }
        sample.edge = is_first;
        self.pending.insert(report.vcpu, sample);
    }

    fn keep(&mut self, sample: Sample) {
        self.stride = self.stride.max(1);
        self.seen += 1;
        if !sample.edge && !self.seen.is_multiple_of(self.stride) {
            return;
        }
        let samples = &mut self.record.samples;
        samples.push(sample);
        if samples.len() > MOST_SAMPLES {
            let mut number = 0_u64;
            samples.retain(|sample| {
                number += 1;
                sample.edge || number.is_multiple_of(2)
            });
            self.stride = self.stride.saturating_mul(2);
            // There are too many edges: no measurement has so many moves.
            samples.truncate(MOST_SAMPLES);
        }
    }
}

impl Record {
    fn line(&mut self, line: String) {
        if self.lines.len() == MOST_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn note(&mut self, report: &Report, run: usize, after_move: bool) {
        *self.reports.entry(run).or_default() += 1;
        self.sequences.insert(run, report.sequence);
        for clock in report.clocks.iter() {
            let index = clock.index();
            let tally = &report.tallies[index];
            let gap = Gap {
                size: tally.gap,
                at: tally.gap_at,
            };
            if after_move {
                self.across.entry(run).or_default()[index].widen(gap);
            } else {
                self.largest_quiet[index].widen(gap);
                let quiet = self.quiet[index].get_or_insert_with(histogram::new);
                histogram::record(quiet, gap.size, 1);
            }
            let now = report.now[index];
            if now < self.most[index] {
                let steps = &mut self.steps[index];
                steps.count += 1;
                steps.largest = steps.largest.max(self.most[index] - now);
            }
            self.most[index] = self.most[index].max(now);
        }
        self.last.insert(report.vcpu, *report);
    }

    /// The number of processors that have reported.
    pub(super) fn vcpus(&self) -> usize {
        self.last.len()
    }
}

impl Record {
    /// Whether the guest reads `clock`.
    pub(super) fn has(&self, clock: Clock) -> bool {
        self.last.values().any(|report| report.clocks.has(clock))
    }
}
