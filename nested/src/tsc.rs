//! Samples clocks inside a guest: what is recorded at each read, and how it is reported to the host.
//!
//! A sampler reads clocks in a tight loop on every virtual processor. Of each read it records little
//! ([`Tally`]); at intervals it reads all clocks together and sends a [`Report`], a frame of [`crate::probe`]
//! whose last word is a checksum. So the stream's size does not depend on how often clocks are read, and a
//! host that records when a report arrives can compare the guest's clocks with its own.
//!
//! A clock that is read by several processors must not step back between any two of them: the last value is
//! shared ([`Shared`]), and is loaded *before* the clock is read.

mod stream;
mod words;

use core::sync::atomic::{AtomicU64, Ordering};

pub use stream::{Next, Said, next_said};
pub use words::{Ack, Hello, MAX_WORDS, Moment, NotSaid, Report};

/// A clock that a guest can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Clock {
    /// The time-stamp counter, in its own ticks.
    Tsc,
    /// Hyper-V's reference time by the reference TSC page, in 100 ns.
    Page,
    /// Hyper-V's reference time by its register, TIME_REF_COUNT, in 100 ns.
    Counter,
    /// Linux' CLOCK_MONOTONIC, in ns.
    Monotonic,
    /// Linux' CLOCK_MONOTONIC_RAW, in ns.
    Raw,
}

impl Clock {
    /// Every clock, in the order of their bits.
    pub const ALL: [Self; 5] = [
        Self::Tsc,
        Self::Page,
        Self::Counter,
        Self::Monotonic,
        Self::Raw,
    ];

    /// The number of clocks.
    pub const COUNT: usize = Self::ALL.len();

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tsc => "tsc",
            Self::Page => "reference-page",
            Self::Counter => "reference-counter",
            Self::Monotonic => "monotonic",
            Self::Raw => "monotonic-raw",
        }
    }

    /// Its index in arrays.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Tsc => 0,
            Self::Page => 1,
            Self::Counter => 2,
            Self::Monotonic => 3,
            Self::Raw => 4,
        }
    }

    /// Nanoseconds per unit; the TSC's depends on its frequency.
    #[must_use]
    pub const fn unit_ns(self) -> Option<u64> {
        match self {
            Self::Tsc => None,
            Self::Page | Self::Counter => Some(100),
            Self::Monotonic | Self::Raw => Some(1),
        }
    }
}

/// A set of clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clocks(u16);

impl Clocks {
    /// No clock.
    pub const NONE: Self = Self(0);

    /// With `clock` as well.
    #[must_use]
    pub const fn with(self, clock: Clock) -> Self {
        Self(self.0 | 1 << clock.index())
    }

    /// Whether `clock` is in it.
    #[must_use]
    pub const fn has(self, clock: Clock) -> bool {
        self.0 >> clock.index() & 1 != 0
    }

    /// Its clocks, in order.
    pub fn iter(self) -> impl Iterator<Item = Clock> {
        Clock::ALL.into_iter().filter(move |clock| self.has(*clock))
    }
}

/// The last value that any processor has seen, for each clock.
#[derive(Debug)]
pub struct Shared([AtomicU64; Clock::COUNT]);

impl Shared {
    /// No values yet.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Clock::COUNT])
    }

    /// The minimum for a read that begins afterwards; 0 if the clock has not been read yet.
    #[inline]
    pub fn last(&self, clock: Clock) -> u64 {
        self.0[clock.index()].load(Ordering::Acquire)
    }

    /// Records that `now` was read.
    #[inline]
    pub fn publish(&self, clock: Clock, now: u64) {
        self.0[clock.index()].fetch_max(now, Ordering::AcqRel);
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

/// The statistics of one clock on one processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// The number of reads.
    pub reads: u64,
    /// The number of reads below a value seen before, on any processor.
    pub backward: u64,
    /// The largest such step, in the clock's unit.
    pub largest_backward: u64,
    /// The largest step forward since the last report, in the clock's unit.
    pub gap: u64,
    /// The clock's value before that step.
    pub gap_at: u64,
}

impl Tally {
    /// Records that the clock read `now`, after `last` had been seen (0 if none had).
    #[inline]
    pub fn saw(&mut self, last: u64, now: u64) {
        self.reads += 1;
        if now < last {
            self.backward += 1;
            self.largest_backward = self.largest_backward.max(last - now);
        } else if last != 0 && now - last > self.gap {
            self.gap = now - last;
            self.gap_at = last;
        }
    }
}

/// The statistics of one processor.
#[derive(Debug)]
pub struct Sampler<'a> {
    shared: &'a Shared,
    report: Report,
}

impl<'a> Sampler<'a> {
    /// For processor number `vcpu`, which reads `clocks`.
    #[must_use]
    pub fn new(shared: &'a Shared, vcpu: u32, clocks: Clocks) -> Self {
        Self {
            shared,
            report: Report::new(vcpu, clocks),
        }
    }

    /// Reads `clock` by `read`, and records the result.
    #[inline]
    pub fn read(&mut self, clock: Clock, read: impl FnOnce() -> u64) -> u64 {
        let last = self.shared.last(clock);
        let now = read();
        self.report.tallies[clock.index()].saw(last, now);
        if now > last {
            self.shared.publish(clock, now);
        }
        now
    }

    /// Reads the reference TSC page, or the register if the page is invalid.
    #[inline]
    pub fn read_page(
        &mut self,
        page: &impl ReferencePage,
        tsc: impl Fn() -> u64,
        register: impl FnOnce() -> u64,
    ) -> u64 {
        let mut sequence = 0;
        let mut fell_back = false;
        let time = self.read(Clock::Page, || match page.time(tsc) {
            Some((time, at)) => {
                sequence = at;
                time
            }
            None => {
                fell_back = true;
                register()
            }
        });
        self.report.fallbacks += u64::from(fell_back);
        if sequence != self.report.sequence {
            // The first number seen is no change.
            self.report.sequence_changes +=
                u64::from(self.report.tallies[Clock::Page.index()].reads > 1);
            self.report.sequence = sequence;
        }
        time
    }

    /// A report, whose `now` the caller fills in; gaps restart.
    pub fn report(&mut self) -> Report {
        self.report.number += 1;
        let report = self.report;
        for tally in &mut self.report.tallies {
            tally.gap = 0;
            tally.gap_at = 0;
        }
        report
    }
}

/// A reference TSC page (TLFS, "Partition reference TSC mechanism"); each read is one access to memory.
pub trait ReferencePage {
    /// The sequence number; 0 means that the page is invalid.
    fn sequence(&self) -> u32;
    /// Units per tick, times 2^64.
    fn scale(&self) -> u64;
    /// The offset to add, in units.
    fn offset(&self) -> u64;

    /// The reference time and its sequence number; `None` if the page is invalid, or keeps changing.
    #[inline]
    fn time(&self, tsc: impl Fn() -> u64) -> Option<(u64, u32)> {
        for _ in 0..1000 {
            let sequence = self.sequence();
            if sequence == 0 {
                return None;
            }
            let (scale, offset) = (self.scale(), self.offset());
            let time = reference_time(tsc(), scale, offset);
            if self.sequence() == sequence {
                return Some((time, sequence));
            }
        }
        None
    }
}

/// `tsc * scale / 2^64 + offset`.
#[must_use]
#[inline]
pub fn reference_time(tsc: u64, scale: u64, offset: u64) -> u64 {
    let scaled = (u128::from(tsc) * u128::from(scale)) >> 64;
    // Below 2^64, since `scale` is.
    (scaled as u64).wrapping_add(offset)
}

#[cfg(test)]
mod tests;
