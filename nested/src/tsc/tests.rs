extern crate std;

use core::cell::Cell;
use std::vec::Vec;

use super::*;
use crate::probe::{Width, samples_header};
use proptest::prelude::*;

fn frame(name: &str, words: &[u64]) -> Vec<u8> {
    let mut bytes = samples_header(name, Width::Eight, words.len())
        .expect("short")
        .to_vec();
    bytes.extend(name.bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

fn report_frame(report: &Report) -> Vec<u8> {
    frame(Report::NAME, report.encode(&mut [0; MAX_WORDS]))
}

/// All messages of a stream, the number of broken bytes, and the number of incomplete bytes.
fn all(stream: &[u8]) -> (Vec<Said<'_>>, usize, usize) {
    let (mut said, mut broken, mut rest) = (Vec::new(), 0, stream);
    loop {
        match next_said(rest) {
            Next::Incomplete => return (said, broken, rest.len()),
            Next::Skip { bytes, broken: b } => {
                broken += if b { bytes } else { 0 };
                rest = &rest[bytes..];
            }
            Next::Said(new, taken) => {
                said.push(new);
                rest = &rest[taken..];
            }
        }
    }
}

fn two_clocks() -> Clocks {
    Clocks::NONE.with(Clock::Tsc).with(Clock::Page)
}

#[test]
fn clocks_have_places_of_their_own() {
    for (index, clock) in Clock::ALL.into_iter().enumerate() {
        assert_eq!(clock.index(), index);
        assert_eq!(Clocks::NONE.with(clock).iter().collect::<Vec<_>>(), [clock]);
    }
}

#[test]
fn steps_back_and_gaps_are_noted() {
    let mut tally = Tally::default();
    for (last, now) in [
        (0, 100),
        (100, 110),
        (110, 150),
        (150, 149),
        (150, 120),
        (150, 151),
    ] {
        tally.saw(last, now);
    }
    let wanted = Tally {
        reads: 6,
        backward: 2,
        largest_backward: 30,
        gap: 40,
        gap_at: 110,
    };
    assert_eq!(tally, wanted);
}

#[test]
fn a_step_back_across_processors_is_one() {
    let shared = Shared::new();
    let mut first = Sampler::new(&shared, 0, two_clocks());
    let mut second = Sampler::new(&shared, 1, two_clocks());
    first.read(Clock::Tsc, || 1000);
    second.read(Clock::Tsc, || 990);
    second.read(Clock::Tsc, || 999);
    first.read(Clock::Tsc, || 1000);
    let (first, second) = (first.report(), second.report());
    assert_eq!(first.tallies[0].backward, 0);
    assert_eq!(second.tallies[0].backward, 2);
    assert_eq!(second.tallies[0].largest_backward, 10);
}

#[test]
fn gaps_begin_anew_with_each_report_and_steps_back_do_not() {
    let shared = Shared::new();
    let mut sampler = Sampler::new(&shared, 3, two_clocks());
    for now in [10, 30, 20] {
        sampler.read(Clock::Tsc, || now);
    }
    let first = sampler.report();
    assert_eq!(
        (
            first.number,
            first.tallies[0].gap,
            first.tallies[0].backward
        ),
        (1, 20, 1)
    );
    sampler.read(Clock::Tsc, || 31);
    let second = sampler.report();
    assert_eq!(
        (
            second.number,
            second.tallies[0].gap,
            second.tallies[0].backward
        ),
        (2, 1, 1)
    );
}

/// A page whose sequence number changes while it is read, or that is invalid.
struct Changing {
    sequences: [u32; 4],
    next: Cell<usize>,
}

impl ReferencePage for Changing {
    fn sequence(&self) -> u32 {
        let at = self.next.get();
        self.next.set(at + 1);
        self.sequences[at.min(3)]
    }
    fn scale(&self) -> u64 {
        1 << 63
    }
    fn offset(&self) -> u64 {
        5
    }
}

fn changing(sequences: [u32; 4]) -> Changing {
    Changing {
        sequences,
        next: Cell::new(0),
    }
}

#[test]
fn the_page_is_read_by_its_sequence_number() {
    assert_eq!(changing([7; 4]).time(|| 100), Some((55, 7)));
    assert_eq!(changing([7, 8, 8, 8]).time(|| 100), Some((55, 8)));
    assert_eq!(changing([0; 4]).time(|| 100), None);
    // Negative offsets are stored as two's complement.
    assert_eq!(reference_time(100, 1 << 63, 0_u64.wrapping_sub(20)), 30);
    assert_eq!(reference_time(u64::MAX, u64::MAX, 0), u64::MAX - 1);
}

#[test]
fn fallbacks_and_changes_of_the_sequence_are_counted() {
    let shared = Shared::new();
    let mut sampler = Sampler::new(&shared, 0, two_clocks());
    for (sequence, wanted) in [(4, 55), (4, 55), (0, 77), (5, 55)] {
        let time = sampler.read_page(&changing([sequence; 4]), || 100, || 77);
        assert_eq!(time, wanted);
    }
    let report = sampler.report();
    assert_eq!(
        (report.fallbacks, report.sequence, report.sequence_changes),
        (1, 5, 2)
    );
    // The register was ahead of the page: that is a step back, and is reported.
    assert_eq!(report.tallies[Clock::Page.index()].backward, 1);
}

fn any_report() -> impl Strategy<Value = Report> {
    (
        any::<u32>(),
        0..1_u16 << Clock::COUNT,
        any::<[u64; 4]>(),
        any::<u32>(),
        any::<[[u64; 6]; 5]>(),
    )
        .prop_map(
            |(vcpu, clocks, [number, turns, sequence_changes, fallbacks], sequence, of_clocks)| {
                let mut report = Report::new(vcpu, Clocks(clocks));
                (report.number, report.turns) = (number, turns);
                (report.sequence, report.sequence_changes) = (sequence, sequence_changes);
                report.fallbacks = fallbacks;
                for clock in report.clocks.iter() {
                    let [now, reads, backward, largest_backward, gap, gap_at] =
                        of_clocks[clock.index()];
                    report.now[clock.index()] = now;
                    report.tallies[clock.index()] = Tally {
                        reads,
                        backward,
                        largest_backward,
                        gap,
                        gap_at,
                    };
                }
                report
            },
        )
}

proptest! {
    #[test]
    fn reports_come_back_as_they_were_and_lost_bytes_cost_no_more_than_what_they_were_in(
        reports in prop::collection::vec(any_report(), 3),
        lost in any::<prop::sample::Index>(),
    ) {
        let numbered = |(number, report)| Report { number, ..report };
        let reports: Vec<_> = (0..).zip(reports).map(numbered).collect();
        let frames: Vec<_> = reports.iter().map(report_frame).collect();
        let whole = frames.concat();
        let (said, broken, waiting) = all(&whole);
        prop_assert_eq!(said, reports.iter().copied().map(Said::Report).collect::<Vec<_>>());
        prop_assert_eq!((broken, waiting), (0, 0));

        // One byte of the first two is missing: the third is decoded.
        let at = lost.index(frames[0].len() + frames[1].len());
        let mut holed = whole;
        holed.remove(at);
        holed.extend(report_frame(&reports[2]));
        let (said, _, _) = all(&holed);
        prop_assert!(said.ends_with(&[Said::Report(reports[2])]));
        // The damaged frame is not: it is broken, or its first bytes form another item.
        let hurt = reports[usize::from(at >= frames[0].len())];
        prop_assert!(!said.contains(&Said::Report(hurt)));
    }

    #[test]
    fn no_stream_panics_or_stands_still(stream in prop::collection::vec(prop_oneof![any::<u8>(),
        Just(0xFF), Just(b'\n')], 0..300)) {
        let (_, _, waiting) = all(&stream);
        prop_assert!(waiting <= stream.len());
    }

    #[test]
    fn no_words_panic(words in prop::collection::vec(any::<u64>(), 0..60)) {
        prop_assert!(Report::decode(words.iter().copied()).is_err());
        prop_assert!(Ack::decode(words.iter().copied()).is_err());
        prop_assert!(Hello::decode(words.iter().copied()).is_err());
    }

    #[test]
    fn acknowledgements_and_greetings_come_back_as_they_were(words in any::<[u64; 12]>(), sequence: u32,
        vcpus: u32, flags: [bool; 3]) {
        let moment = |at: usize| Moment { tsc: words[at], page: words[at + 1], counter: words[at + 2] };
        let ack = Ack {
            interrupts: words[9],
            sequence,
            noticed: moment(0),
            before: moment(3),
            after: moment(6),
            status: [words[10], words[11]],
            frequency: [words[9], words[10]],
        };
        let [offered, opted_in, emulation] = flags;
        let hello = Hello { vcpus, clocks: two_clocks(), tsc_hz: words[0], offered, opted_in, emulation };
        let mut stream = std::vec![crate::probe::ALIVE];
        stream.extend(frame(Hello::NAME, hello.encode(&mut [0; MAX_WORDS])));
        stream.extend(b"a line\r\n");
        stream.extend(frame(Ack::NAME, ack.encode(&mut [0; MAX_WORDS])));
        stream.extend(frame("other", &[1, 2]));
        let (said, broken, waiting) = all(&stream);
        prop_assert_eq!(said, [Said::Hello(hello), Said::Line(b"a line"), Said::Ack(ack)]);
        prop_assert_eq!((broken, waiting), (0, 0));
    }
}

#[test]
fn words_of_another_version_or_length_are_named() {
    let mut words = [0; MAX_WORDS];
    let report = Report::new(1, two_clocks());
    let right: Vec<u64> = report.encode(&mut words).to_vec();
    assert_eq!(Report::decode(right.iter().copied()), Ok(report));
    assert_eq!(Report::decode([]), Err(NotSaid::Length));
    assert_eq!(
        Report::decode(right[1..].iter().copied()),
        Err(NotSaid::Check)
    );
    // A greeting with a correct checksum is not a report.
    let hello = Hello::default();
    let other: Vec<u64> = hello.encode(&mut words).to_vec();
    assert_eq!(Report::decode(other.iter().copied()), Err(NotSaid::Length));
    assert_eq!(Report::decode([0; MAX_WORDS + 1]), Err(NotSaid::Length));
}
