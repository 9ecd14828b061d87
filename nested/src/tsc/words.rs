//! Frames as words: their layout and their checksum.

use super::{Clock, Clocks, Tally};

/// The version of all frames here.
const VERSION: u16 = 1;
/// The maximum number of words in a sampler's frame.
pub const MAX_WORDS: usize = REPORT_HEAD + Clock::COUNT * PER_CLOCK + 1;

const REPORT_HEAD: usize = 6;
const PER_CLOCK: usize = 6;
const ACK_WORDS: usize = 3 + 3 * 3 + 4 + 1;
const HELLO_WORDS: usize = 5;

/// The statistics of one processor up to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The processor's number.
    pub vcpu: u32,
    /// The clocks that it reads.
    pub clocks: Clocks,
    /// The number of this report, from 1.
    pub number: u64,
    /// The iterations of its loop.
    pub turns: u64,
    /// The reference TSC page's sequence number at the last read; 0 while the page is invalid.
    pub sequence: u32,
    /// The number of changes of that number between reads.
    pub sequence_changes: u64,
    /// Reads of the page that fell back to the register.
    pub fallbacks: u64,
    /// The statistics, by [`Clock::index`].
    pub tallies: [Tally; Clock::COUNT],
    /// All clocks, read in sequence just before this was sent; by [`Clock::index`].
    pub now: [u64; Clock::COUNT],
}

impl Report {
    /// The name of its frames.
    pub const NAME: &'static str = "tsc.report";

    pub(super) const fn new(vcpu: u32, clocks: Clocks) -> Self {
        const NOTHING: Tally = Tally {
            reads: 0,
            backward: 0,
            largest_backward: 0,
            gap: 0,
            gap_at: 0,
        };
        Self {
            vcpu,
            clocks,
            number: 0,
            turns: 0,
            sequence: 0,
            sequence_changes: 0,
            fallbacks: 0,
            tallies: [NOTHING; Clock::COUNT],
            now: [0; Clock::COUNT],
        }
    }

    /// The statistics of `clock`; `None` if it is not read.
    #[must_use]
    pub fn tally(&self, clock: Clock) -> Option<&Tally> {
        self.clocks.has(clock).then(|| &self.tallies[clock.index()])
    }

    /// The value of `clock`; `None` if it is not read.
    #[must_use]
    pub fn now(&self, clock: Clock) -> Option<u64> {
        self.clocks.has(clock).then(|| self.now[clock.index()])
    }

    /// Writes its words to the beginning of `into`.
    pub fn encode<'a>(&self, into: &'a mut [u64; MAX_WORDS]) -> &'a [u64] {
        let mut writer = Writer::new(into);
        writer.push(head(self.clocks, self.vcpu));
        writer.push(self.number);
        writer.push(self.turns);
        writer.push(self.sequence.into());
        writer.push(self.sequence_changes);
        writer.push(self.fallbacks);
        for clock in self.clocks.iter() {
            let tally = &self.tallies[clock.index()];
            writer.push(self.now[clock.index()]);
            writer.push(tally.reads);
            writer.push(tally.backward);
            writer.push(tally.largest_backward);
            writer.push(tally.gap);
            writer.push(tally.gap_at);
        }
        writer.finish()
    }

    /// Decodes `words`.
    ///
    /// # Errors
    /// [`NotSaid`] if they are no report.
    pub fn decode(words: impl IntoIterator<Item = u64>) -> Result<Self, NotSaid> {
        let mut reader = Reader::new(words)?;
        let (clocks, vcpu) = reader.head()?;
        let mut report = Self::new(vcpu, clocks);
        report.number = reader.next()?;
        report.turns = reader.next()?;
        report.sequence = reader.next_u32()?;
        report.sequence_changes = reader.next()?;
        report.fallbacks = reader.next()?;
        for clock in clocks.iter() {
            report.now[clock.index()] = reader.next()?;
            report.tallies[clock.index()] = Tally {
                reads: reader.next()?,
                backward: reader.next()?,
                largest_backward: reader.next()?,
                gap: reader.next()?,
                gap_at: reader.next()?,
            };
        }
        reader.finish()?;
        Ok(report)
    }
}

/// Clocks of Hyper-V at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    /// The time-stamp counter.
    pub tsc: u64,
    /// From the reference TSC page; 0 if there is none.
    pub page: u64,
    /// From the register; 0 if there is none.
    pub counter: u64,
}

/// A guest was notified that its TSC's frequency changed, and has acknowledged it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ack {
    /// Notification interrupts up to now.
    pub interrupts: u64,
    /// The sequence number of the reference TSC page afterwards.
    pub sequence: u32,
    /// When the interrupt was handled.
    pub noticed: Moment,
    /// Just before TSC_EMULATION_STATUS was written.
    pub before: Moment,
    /// Just after.
    pub after: Moment,
    /// TSC_EMULATION_STATUS before that, and after it.
    pub status: [u64; 2],
    /// TSC_FREQUENCY in Hz before that, and after it.
    pub frequency: [u64; 2],
}

impl Ack {
    /// The name of its frames.
    pub const NAME: &'static str = "tsc.ack";

    /// Writes its words to the beginning of `into`.
    pub fn encode<'a>(&self, into: &'a mut [u64; MAX_WORDS]) -> &'a [u64] {
        const { assert!(ACK_WORDS <= MAX_WORDS) };
        let mut writer = Writer::new(into);
        writer.push(head(Clocks::NONE, 0));
        writer.push(self.interrupts);
        writer.push(self.sequence.into());
        for moment in [self.noticed, self.before, self.after] {
            writer.push(moment.tsc);
            writer.push(moment.page);
            writer.push(moment.counter);
        }
        for word in self.status.into_iter().chain(self.frequency) {
            writer.push(word);
        }
        writer.finish()
    }

    /// Decodes `words`.
    ///
    /// # Errors
    /// [`NotSaid`] if they are no acknowledgement.
    pub fn decode(words: impl IntoIterator<Item = u64>) -> Result<Self, NotSaid> {
        let mut reader = Reader::new(words)?;
        reader.head()?;
        let mut ack = Self {
            interrupts: reader.next()?,
            sequence: reader.next_u32()?,
            ..Self::default()
        };
        for moment in [&mut ack.noticed, &mut ack.before, &mut ack.after] {
            *moment = Moment {
                tsc: reader.next()?,
                page: reader.next()?,
                counter: reader.next()?,
            };
        }
        for word in ack.status.iter_mut().chain(&mut ack.frequency) {
            *word = reader.next()?;
        }
        reader.finish()?;
        Ok(ack)
    }
}

/// A sampler's first message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hello {
    /// The number of sampling processors.
    pub vcpus: u32,
    /// The clocks that they read.
    pub clocks: Clocks,
    /// The TSC's frequency in Hz, as the hypervisor reports it; 0 if it does not.
    pub tsc_hz: u64,
    /// Reenlightenment is offered.
    pub offered: bool,
    /// The guest requested notification of changes of the TSC's frequency.
    pub opted_in: bool,
    /// The guest requested the old frequency until its acknowledgement.
    pub emulation: bool,
}

impl Hello {
    /// The name of its frames.
    pub const NAME: &'static str = "tsc.hello";

    /// Writes its words to the beginning of `into`.
    pub fn encode<'a>(&self, into: &'a mut [u64; MAX_WORDS]) -> &'a [u64] {
        const { assert!(HELLO_WORDS <= MAX_WORDS) };
        let mut writer = Writer::new(into);
        writer.push(head(self.clocks, self.vcpus));
        writer.push(self.tsc_hz);
        let flags = [self.offered, self.opted_in, self.emulation];
        let flags = flags
            .iter()
            .rev()
            .fold(0, |all, flag| all << 1 | u64::from(*flag));
        writer.push(flags);
        writer.push(0);
        writer.finish()
    }

    /// Decodes `words`.
    ///
    /// # Errors
    /// [`NotSaid`] if they are no greeting.
    pub fn decode(words: impl IntoIterator<Item = u64>) -> Result<Self, NotSaid> {
        let mut reader = Reader::new(words)?;
        let (clocks, vcpus) = reader.head()?;
        let tsc_hz = reader.next()?;
        let flags = reader.next()?;
        let _reserved = reader.next()?;
        reader.finish()?;
        let flag = |bit: u32| flags >> bit & 1 != 0;
        Ok(Self {
            vcpus,
            clocks,
            tsc_hz,
            offered: flag(0),
            opted_in: flag(1),
            emulation: flag(2),
        })
    }
}

/// Why words are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSaid {
    /// The number of words is wrong.
    Length,
    /// The checksum is wrong.
    Check,
    /// Another version, or clocks that this version does not support.
    Version,
    /// A value is too large for its word.
    Word,
}

impl core::fmt::Display for NotSaid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Length => "a sampler's frame has the wrong length",
            Self::Check => "a sampler's frame has the wrong checksum",
            Self::Version => "a sampler's frame is of another version",
            Self::Word => "a sampler's frame has an invalid word",
        })
    }
}

impl core::error::Error for NotSaid {}

/// Version in 15:0, clocks in 31:16, a number in 63:32.
const fn head(clocks: Clocks, number: u32) -> u64 {
    VERSION as u64 | (clocks.0 as u64) << 16 | (number as u64) << 32
}

/// FNV-1a over words: sufficient to detect lost bytes.
const fn mix(sum: u64, word: u64) -> u64 {
    (sum ^ word)
        .wrapping_mul(0x0000_0100_0000_01B3)
        .rotate_left(29)
}

const SEED: u64 = 0xCBF2_9CE4_8422_2325;

struct Writer<'a> {
    words: &'a mut [u64; MAX_WORDS],
    len: usize,
    sum: u64,
}

impl<'a> Writer<'a> {
    fn new(words: &'a mut [u64; MAX_WORDS]) -> Self {
        Self {
            words,
            len: 0,
            sum: SEED,
        }
    }

    fn push(&mut self, word: u64) {
        self.words[self.len] = word;
        self.len += 1;
        self.sum = mix(self.sum, word);
    }

    fn finish(self) -> &'a [u64] {
        self.words[self.len] = self.sum;
        &self.words[..=self.len]
    }
}

struct Reader {
    words: [u64; MAX_WORDS],
    len: usize,
    at: usize,
}

impl Reader {
    fn new(words: impl IntoIterator<Item = u64>) -> Result<Self, NotSaid> {
        let mut reader = Self {
            words: [0; MAX_WORDS],
            len: 0,
            at: 0,
        };
        for word in words {
            *reader.words.get_mut(reader.len).ok_or(NotSaid::Length)? = word;
            reader.len += 1;
        }
        let (check, body) = reader.words[..reader.len]
            .split_last()
            .ok_or(NotSaid::Length)?;
        if body.iter().fold(SEED, |sum, word| mix(sum, *word)) != *check {
            return Err(NotSaid::Check);
        }
        reader.len -= 1;
        Ok(reader)
    }

    fn next(&mut self) -> Result<u64, NotSaid> {
        let words = &self.words[..self.len];
        let word = *words.get(self.at).ok_or(NotSaid::Length)?;
        self.at += 1;
        Ok(word)
    }

    fn next_u32(&mut self) -> Result<u32, NotSaid> {
        u32::try_from(self.next()?).map_err(|_| NotSaid::Word)
    }

    fn head(&mut self) -> Result<(Clocks, u32), NotSaid> {
        let [a, b, c, d, number @ ..] = self.next()?.to_le_bytes();
        let clocks = u16::from_le_bytes([c, d]);
        if u16::from_le_bytes([a, b]) != VERSION || clocks >> Clock::COUNT != 0 {
            return Err(NotSaid::Version);
        }
        Ok((Clocks(clocks), u32::from_le_bytes(number)))
    }

    fn finish(self) -> Result<(), NotSaid> {
        if self.at == self.len {
            Ok(())
        } else {
            Err(NotSaid::Length)
        }
    }
}
