//! Sampling clocks from inside a guest: what is noted at each read, and how it is told to the host.
//!
//! A sampler reads clocks in a tight loop on every virtual processor. Of each read it keeps next to nothing
//! ([`Tally`]); now and then it reads all clocks together and sends a [`Report`], a frame of [`crate::probe`]
//! whose last word is a checksum. So the stream's size does not depend on how often clocks are read, and a
//! host that notes when a report arrives can compare the guest's clocks with its own.
//!
//! A clock that is read by several processors must not step back between any two of them: the last value is
//! shared ([`Shared`]), and is looked at *before* the clock is read.

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

    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// As in reports.
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

    /// Where it stands in arrays.
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

    /// How many ns its unit is; the TSC's depends on its frequency.
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
    /// Nothing seen.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Clock::COUNT])
    }

    /// What a read that begins afterwards must not be below; 0 if the clock was not read yet.
    #[inline]
    pub fn last(&self, clock: Clock) -> u64 {
        self.0[clock.index()].load(Ordering::Acquire)
    }

    /// `now` has been read.
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

/// What one processor has noted of one clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often it was read.
    pub reads: u64,
    /// Reads below what had been seen before, on whichever processor.
    pub backward: u64,
    /// The largest such step, in the clock's unit.
    pub largest_backward: u64,
    /// The largest step forward since the last report, in the clock's unit.
    pub gap: u64,
    /// The clock's value before that step.
    pub gap_at: u64,
}

impl Tally {
    /// Notes that the clock read `now`, after `last` had been seen (0 if nothing had).
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

/// What one processor notes.
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

    /// Reads `clock` by `read`, and notes the result.
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

    /// Reads the reference TSC page, or the register if the page says so.
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
            // The first one that is seen is no change.
            self.report.sequence_changes +=
                u64::from(self.report.tallies[Clock::Page.index()].reads > 1);
            self.report.sequence = sequence;
        }
        time
    }

    /// A report, whose `now` the caller fills in; gaps begin anew.
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
    /// The sequence number; 0 says that the page is not to be used.
    fn sequence(&self) -> u32;
    /// Parts of 2^64 units a tick.
    fn scale(&self) -> u64;
    /// What is added, in units.
    fn offset(&self) -> u64;

    /// The reference time and the sequence number that it goes with; `None` if the page is not to be used, or
    /// does not come to rest.
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
    // Below 2^64: so is `scale`.
    (scaled as u64).wrapping_add(offset)
}

#[cfg(test)]
mod tests;
