//! Synthetic streams with a fault, which must be found, and without one, which must give no findings.

use hypernest_nested::probe::{Width, samples_header};
use hypernest_nested::tsc::{Ack, Clocks, MAX_WORDS, Moment, Report, Sampler, Shared};
use proptest::prelude::*;

use super::*;
use crate::tsc::record::Recorder;

const MS: u64 = 1_000_000;
/// The initial frequency of the guest's TSC.
const KHZ: f64 = 2_400_000.0;
/// The time between two reports.
const BEAT: u64 = 5 * MS;
/// The time between two reads of a clock.
const TURN: u64 = MS / 2;
/// The time that the guest runs at each host.
const RUN: u64 = 1_000 * MS;
/// The time that it is stopped between them.
const DOWN: u64 = 130 * MS;

/// Errors of the clocks.
#[derive(Clone, Debug)]
pub(in crate::tsc) struct World {
    pub(in crate::tsc) moves: u64,
    /// The drift of the page's time against the host's, in ppm, in each run.
    pub(in crate::tsc) drift: f64,
    /// A clock steps back: the clock, the time, and the length in ns.
    pub(in crate::tsc) step: Option<(Clock, u64, u64)>,
    /// A clock steps forward: the clock, the time, and the length in ns.
    pub(in crate::tsc) forward: Option<(Clock, u64, u64)>,
    /// The offset of each clock after the first move, in ns.
    pub(in crate::tsc) jump: [i64; 2],
    /// The delay of the second processor's clocks, in ns.
    pub(in crate::tsc) behind: u64,
    /// The frequency of the hosts after the start, in kHz, and the guest's delay after a move until it
    /// acknowledges.
    pub(in crate::tsc) reenlighten: Option<(f64, u64)>,
    pub(in crate::tsc) vcpus: u32,
    pub(in crate::tsc) no_ack: bool,
    /// The moves were made with `--clock pause`.
    pub(in crate::tsc) pause: bool,
}

pub(in crate::tsc) fn fine() -> World {
    World {
        moves: 0,
        drift: 0.0,
        step: None,
        forward: None,
        jump: [0; 2],
        behind: 0,
        reenlighten: None,
        vcpus: 1,
        no_ack: false,
        pause: false,
    }
}

fn frame(name: &str, words: &[u64]) -> Vec<u8> {
    let mut bytes = samples_header(name, Width::Eight, words.len())
        .unwrap()
        .to_vec();
    bytes.extend(name.bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

impl World {
    fn start_of(run: u64) -> u64 {
        MS + run * (RUN + DOWN)
    }

    /// The time of the guest's acknowledgement in the first run after a move.
    fn switched(&self) -> Option<(f64, u64)> {
        let (khz, after) = self
            .reenlighten
            .filter(|_| !self.no_ack && self.moves > 0)?;
        Some((khz, Self::start_of(1) + after))
    }

    fn value(&self, clock: Clock, vcpu: u32, at: u64) -> u64 {
        let mut ns = at as f64;
        if clock == Clock::Page {
            ns *= 1.0 + self.drift / 1e6;
        }
        if at >= Self::start_of(1) {
            ns += self.jump[clock.index()] as f64;
        }
        if let Some((of, from, by)) = self.step
            && of == clock
            && at >= from
        {
            ns -= by as f64;
        }
        if let Some((of, from, by)) = self.forward
            && of == clock
            && at >= from
        {
            ns += by as f64;
        }
        if vcpu == 1 {
            ns -= self.behind as f64;
        }
        let ns = ns.max(0.0);
        super::super::round(match (clock, self.switched()) {
            (Clock::Tsc, Some((khz, switched))) if at >= switched => {
                (switched as f64 * KHZ + (ns - switched as f64) * khz) / 1e6
            }
            (Clock::Tsc, _) => ns * KHZ / 1e6,
            _ => ns / 100.0,
        })
    }

    fn moment(&self, at: u64) -> Moment {
        Moment {
            tsc: self.value(Clock::Tsc, 0, at),
            page: self.value(Clock::Page, 0, at),
            counter: 0,
        }
    }

    /// The record that a host would make.
    pub(in crate::tsc) fn record(&self) -> (Record, Doings) {
        let mut recorder = Recorder::default();
        let doings = self.say(&mut |bytes, at, run| recorder.feed(bytes, at, run));
        (recorder.finish(), doings)
    }

    /// The bytes of each run.
    pub(in crate::tsc) fn streams(&self) -> Vec<Vec<u8>> {
        let mut streams = vec![Vec::new(); usize::try_from(self.moves).unwrap() + 1];
        self.say(&mut |bytes, _, run| streams[run].extend_from_slice(bytes));
        streams
    }

    /// Sends all chunks, with the time of arrival and the run.
    fn say(&self, feed: &mut dyn FnMut(&[u8], u64, usize)) -> Doings {
        let shared = Shared::new();
        let clocks = Clocks::NONE.with(Clock::Tsc).with(Clock::Page);
        let mut samplers: Vec<_> = (0..self.vcpus)
            .map(|vcpu| Sampler::new(&shared, vcpu, clocks))
            .collect();
        let mut words = [0; MAX_WORDS];
        let hello = Hello {
            vcpus: self.vcpus,
            clocks,
            tsc_hz: 2_400_000_000,
            offered: true,
            opted_in: true,
            emulation: true,
        };
        feed(&frame(Hello::NAME, hello.encode(&mut words)), 0, 0);
        let mut random = 99_u64;
        let mut moves = Vec::new();
        for run in 0..=self.moves {
            let (start, run_index) = (Self::start_of(run), usize::try_from(run).unwrap());
            if run > 0 {
                moves.push(Moved {
                    started: start - DOWN,
                    resumed: start + MS,
                    khz: Some(self.reenlighten.map_or(KHZ, |(khz, _)| khz)),
                });
            }
            let mut acked = run != 1 || self.switched().is_none();
            for turn in 0..RUN / TURN {
                let at = start + turn * TURN;
                if let Some((_, switched)) = self.switched().filter(|(_, s)| !acked && at >= *s) {
                    acked = true;
                    let ack = Ack {
                        interrupts: 1,
                        sequence: 2,
                        noticed: self.moment(start + TURN),
                        before: self.moment(switched - TURN),
                        after: self.moment(switched),
                        status: [1, 0],
                        frequency: [
                            2_400_000_000,
                            super::super::round(self.reenlighten.unwrap().0 * 1e3),
                        ],
                    };
                    let bytes = frame(Ack::NAME, ack.encode(&mut words));
                    feed(&bytes, at + 9_000, run_index);
                }
                for (vcpu, sampler) in (0..).zip(&mut samplers) {
                    for clock in clocks.iter() {
                        sampler.read(clock, || self.value(clock, vcpu, at));
                    }
                }
                if turn.is_multiple_of(BEAT / TURN) {
                    for (vcpu, sampler) in (0..).zip(&mut samplers) {
                        let mut report: Report = sampler.report();
                        report.sequence =
                            1 + u32::from(self.switched().is_some_and(|(_, s)| at >= s));
                        report.now[Clock::Tsc.index()] = self.value(Clock::Tsc, vcpu, at);
                        report.now[Clock::Page.index()] = self.value(Clock::Page, vcpu, at);
                        let bytes = frame(Report::NAME, report.encode(&mut words));
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        // In two chunks, the second one late.
                        let (first, second) = bytes.split_at(bytes.len() / 3);
                        let late = 5_000 + (random >> 48);
                        feed(first, at + late, run_index);
                        feed(second, at + late + MS, run_index);
                    }
                }
            }
        }
        Doings {
            began: 0,
            khz: KHZ,
            moves,
            expects_acks: true,
            clocks: if self.pause {
                AcrossMoves::Pause
            } else {
                AcrossMoves::Continue
            },
        }
    }

    fn meaning(&self) -> Meaning {
        let (record, doings) = self.record();
        analyse(&record, &doings).unwrap()
    }
}

fn backward(meaning: &Meaning, clock: Clock) -> (u64, f64) {
    let result = meaning
        .clocks
        .iter()
        .find(|result| result.clock == clock.name());
    let figures = result.unwrap().measured.as_ref().unwrap();
    (figures.backward_steps, figures.largest_backward_ns)
}

#[test]
fn where_nothing_is_wrong_nothing_is_found() {
    for (moves, vcpus) in [(0, 1), (0, 2), (3, 1)] {
        let meaning = World {
            moves,
            vcpus,
            ..fine()
        }
        .meaning();
        assert_eq!(meaning.failures, [""; 0]);
        assert_eq!(backward(&meaning, Clock::Tsc), (0, 0.0));
        assert_eq!(backward(&meaning, Clock::Page), (0, 0.0));
        assert_eq!(meaning.moves.len() as u64, moves);
        assert_eq!(meaning.segments.len() as u64, moves + 1);
        for segment in &meaning.segments {
            for drift in segment.drift.values() {
                assert!(
                    drift.ppm.abs() < 10.0 && drift.about_ppm < 200.0,
                    "{segment:?}"
                );
            }
        }
        for of_move in &meaning.moves {
            let down = of_move.downtime_ms.unwrap();
            // Between two reads of the guest there are the downtime and a turn.
            assert!((down - 130.5).abs() < 0.1, "{down}");
            for jump in of_move.clocks.values() {
                assert!((jump.gap_ms - 130.5).abs() < 0.01, "{jump:?}");
                assert!(jump.ahead_us.unwrap().abs() < 50.0, "{jump:?}");
            }
        }
    }
}

#[test]
fn a_step_back_is_found_with_its_size() {
    for (clock, other) in [(Clock::Tsc, Clock::Page), (Clock::Page, Clock::Tsc)] {
        let meaning = World {
            step: Some((clock, 300 * MS, 7 * MS)),
            ..fine()
        }
        .meaning();
        let (count, largest) = backward(&meaning, clock);
        assert!(count > 0, "{clock:?}");
        assert!((largest - 6.5e6).abs() < 1e3, "{largest}");
        assert_eq!(backward(&meaning, other), (0, 0.0));
        assert_eq!(meaning.failures.len(), 1);
        assert!(
            meaning.failures[0].starts_with(clock.name()),
            "{:?}",
            meaning.failures
        );
    }
}

/// A step that no read of the guest notices, because the guest has lost its previous values.
#[test]
fn a_step_back_that_only_the_host_can_see_is_found() {
    let meaning = World {
        moves: 1,
        jump: [-500_000_000, 0],
        ..fine()
    };
    let (mut record, doings) = meaning.record();
    for report in record.last.values_mut() {
        report.tallies[0].backward = 0;
        report.tallies[0].largest_backward = 0;
    }
    let meaning = analyse(&record, &doings).unwrap();
    assert!(backward(&meaning, Clock::Tsc).0 > 0);
    assert!(meaning.failures[0].starts_with("tsc stepped back"));
}

#[test]
fn a_processor_that_is_behind_is_found() {
    let meaning = World {
        vcpus: 2,
        behind: 20 * MS,
        ..fine()
    }
    .meaning();
    assert_eq!(meaning.failures.len(), 2, "{:?}", meaning.failures);
    assert!(backward(&meaning, Clock::Tsc).0 > 100);
}

#[test]
fn a_jump_at_a_move_is_told_from_the_downtime() {
    let meaning = World {
        moves: 1,
        jump: [0, 40_000_000],
        ..fine()
    }
    .meaning();
    let of_move = &meaning.moves[0];
    let ahead = |clock: Clock| of_move.clocks[clock.name()].ahead_us.unwrap();
    assert!(ahead(Clock::Tsc).abs() < 50.0);
    assert!((ahead(Clock::Page) - 40_000.0).abs() < 50.0);
    assert!((of_move.clocks["reference-page"].gap_ms - 170.5).abs() < 0.01);
    assert!((of_move.downtime_ms.unwrap() - 130.5).abs() < 0.1);
    assert_eq!(
        meaning.failures,
        [
            "move 1: between two reports around it, reference-page went on by 180.0 ms, tsc by 140.0 ms",
            "reference-page jumped 40.0 ms ahead of the host's clock at move 1"
        ]
    );
    // An offset of minus the downtime: the clock stopped during the move.
    let world = World {
        moves: 1,
        jump: [-130 * 1_000_000; 2],
        pause: true,
        ..fine()
    };
    let paused = world.meaning();
    let of_move = &paused.moves[0];
    assert!(of_move.clocks["tsc"].gap_ms < 1.0 && paused.failures.is_empty());
    assert!(
        (of_move.downtime_ms.unwrap() - 130.5).abs() < 0.1,
        "{of_move:?}"
    );
}

/// Without a clock of the host: the moves were made by hand.
#[test]
fn a_clock_that_stands_still_while_another_goes_on_fails() {
    let world = World {
        moves: 1,
        jump: [-130 * 1_000_000, 0],
        ..fine()
    };
    let (record, mut doings) = world.record();
    doings.clocks = AcrossMoves::Unknown;
    assert_eq!(
        analyse(&record, &doings).unwrap().failures,
        [
            "move 1: between two reports around it, reference-page went on by 140.0 ms, tsc by 10.0 ms"
        ]
    );
}

/// The guest read its TSC, was stopped, and then read its other clock.
#[test]
fn a_guest_stopped_between_two_reads_of_a_sample_has_clocks_that_agree() {
    let world = World { moves: 1, ..fine() };
    let (mut record, doings) = world.record();
    let tsc = Clock::Tsc.index();
    let first = record.samples.iter_mut().find(|sample| sample.run == 1);
    let first = first.unwrap();
    first.now[tsc] -= super::super::round(DOWN as f64 * KHZ / 1e6);
    assert_eq!(analyse(&record, &doings).unwrap().failures, [""; 0]);
}

#[test]
fn clocks_that_go_on_or_stand_still_against_the_policy_fail() {
    let stood_still = World {
        moves: 1,
        jump: [-130 * 1_000_000; 2],
        ..fine()
    };
    assert_eq!(
        stood_still.meaning().failures,
        [
            "reference-page lost 130.0 ms against the host's clock at move 1",
            "tsc lost 130.0 ms against the host's clock at move 1"
        ]
    );
    let went_on = World {
        moves: 1,
        pause: true,
        ..fine()
    };
    assert_eq!(
        went_on.meaning().failures,
        [
            "reference-page jumped 130.5 ms ahead of a clock that is paused at move 1",
            "tsc jumped 130.5 ms ahead of a clock that is paused at move 1"
        ]
    );
}

/// KVM does this to a reference counter whose vCPU lost its scaling ratio.
#[test]
fn a_jump_by_a_whole_counter_fails() {
    let meaning = World {
        moves: 1,
        jump: [0, (1_i64 << 62) / 100 * 100],
        ..fine()
    }
    .meaning();
    assert_eq!(meaning.failures.len(), 2, "{:?}", meaning.failures);
    assert!(meaning.failures[1].starts_with("reference-page jumped 46116860184"));
}

#[test]
fn a_step_forward_without_a_move_fails() {
    for (by, fails) in [(45 * MS, true), (5 * MS, false)] {
        let meaning = World {
            forward: Some((Clock::Page, 700 * MS, by)),
            ..fine()
        }
        .meaning();
        let found = meaning.failures.iter();
        let found = found.filter(|failure| {
            failure.starts_with("reference-page stepped forward by 45.0 ms before any move")
        });
        assert_eq!(found.count() > 0, fails, "{:?}", meaning.failures);
        assert!(
            !meaning.failures.iter().any(|f| f.starts_with("tsc")),
            "{:?}",
            meaning.failures
        );
    }
}

#[test]
fn a_drift_beyond_the_bound_fails() {
    let meaning = World {
        drift: 1500.0,
        ..fine()
    }
    .meaning();
    assert_eq!(meaning.failures.len(), 1, "{:?}", meaning.failures);
    assert!(
        meaning.failures[0].starts_with("reference-page drifted by +150"),
        "{:?}",
        meaning.failures
    );
}

/// The frequency that the guest has read is used, however late its reports are.
#[test]
fn an_acknowledged_frequency_does_not_depend_on_noise() {
    let world = World {
        moves: 1,
        reenlighten: Some((3_000_000.0, 990 * MS)),
        ..fine()
    };
    let (mut record, doings) = world.record();
    // The few reports after it arrive late, each by 2 ms less.
    let end = World::start_of(1) + RUN;
    for sample in &mut record.samples {
        if sample.at > end - 15 * MS {
            sample.at += (end + 10 * MS).saturating_sub(sample.at) * 2 / 5;
        }
    }
    let ack = record.acks[0];
    let acknowledged = |sample: &Sample| sample.now[0] >= ack.ack.after.tsc;
    let few: Vec<_> = record
        .samples
        .iter()
        .copied()
        .filter(acknowledged)
        .collect();
    for n in 1..8 {
        let mut more = few[0];
        more.at += n * 100_000;
        more.now[0] += n * 200_000;
        record.samples.push(more);
    }
    let meaning = analyse(&record, &doings).unwrap();
    let after = meaning.segments.iter().find(|s| s.acknowledged).unwrap();
    assert!(after.drift["tsc"].ppm.abs() > 1000.0, "{after:?}");
    assert_eq!(after.tsc_khz, 3_000_000.0);
}

#[test]
fn a_drift_is_found() {
    let meaning = World {
        moves: 1,
        drift: 300.0,
        ..fine()
    }
    .meaning();
    for segment in &meaning.segments {
        assert!((segment.drift["reference-page"].ppm - 300.0).abs() < 10.0);
        assert!(segment.drift["tsc"].ppm.abs() < 10.0);
    }
    let page = meaning
        .offsets
        .iter()
        .find(|s| s.clock == "reference-page")
        .unwrap();
    assert!(meaning.failures.is_empty(), "{:?}", meaning.failures);
    let (at, ahead) = *page.points.last().unwrap();
    assert!((ahead - at * 300.0).abs() < 20.0, "{ahead} at {at}");
}

#[test]
fn an_acknowledgement_changes_the_frequency() {
    let world = World {
        moves: 1,
        reenlighten: Some((3_000_000.0, 400 * MS)),
        ..fine()
    };
    let meaning = world.meaning();
    assert!(meaning.failures.is_empty(), "{:?}", meaning.failures);
    let khz: Vec<_> = meaning
        .segments
        .iter()
        .map(|s| (s.after_move, s.acknowledged, s.tsc_khz))
        .collect();
    assert_eq!(
        khz,
        [(0, false, KHZ), (1, false, KHZ), (1, true, 3_000_000.0)]
    );
    assert!(
        meaning
            .segments
            .iter()
            .all(|s| s.drift["tsc"].ppm.abs() < 20.0),
        "{:#?}",
        meaning.segments
    );
    let down = meaning.moves[0].downtime_ms.unwrap();
    assert!((down - 130.5).abs() < 0.1, "{down}");
    let ack = meaning.moves[0].acknowledged.unwrap();
    assert!((ack.noticed_after_us - 500.0).abs() < 1.0, "{ack:?}");
    assert!(
        (ack.acknowledged_after_us - 400_000.0).abs() < 1.0,
        "{ack:?}"
    );
    assert_eq!(
        (ack.status, ack.frequency_khz),
        ([1, 0], [KHZ, 3_000_000.0])
    );
    assert_eq!(meaning.moves[0].sequence, [1, 2]);
    // The same with a guest that should acknowledge and does not.
    let meaning = World {
        no_ack: true,
        ..world
    }
    .meaning();
    assert_eq!(
        meaning.failures,
        ["the guest did not acknowledge move 1 to 3000000 kHz"]
    );
}

/// A clock that runs at a wrong rate is not treated as one of another frequency, unless such a frequency was
/// announced.
#[test]
fn an_unknown_frequency_is_a_drift() {
    let (mut record, mut doings) = fine().record();
    doings.khz = 2_000_000.0;
    record.hello = None;
    let meaning = analyse(&record, &doings).unwrap();
    assert_eq!(meaning.reenlightenment, Reenlightenment::Unknown);
    assert!((meaning.segments[0].drift["tsc"].ppm - 200_000.0).abs() < 100.0);
}

#[test]
fn a_guest_that_starts_anew_is_found() {
    let world = World { moves: 1, ..fine() };
    let mut recorder = Recorder::default();
    let doings = world.say(&mut |bytes, at, run| {
        if run == 1 && recorder.so_far().anew.is_empty() {
            let hello = Hello::default();
            recorder.feed(
                &frame(Hello::NAME, hello.encode(&mut [0; MAX_WORDS])),
                at,
                run,
            );
        }
        recorder.feed(bytes, at, run);
    });
    let meaning = analyse(&recorder.finish(), &doings).unwrap();
    assert_eq!(
        meaning.failures,
        ["the guest started anew after move 1: it did not survive it"]
    );
}

#[test]
fn an_empty_record_means_nothing() {
    let doings = Doings {
        began: 0,
        khz: KHZ,
        moves: vec![Moved {
            started: 1,
            resumed: 2,
            khz: None,
        }],
        expects_acks: true,
        clocks: AcrossMoves::Continue,
    };
    let meaning = analyse(&Recorder::default().finish(), &doings).unwrap();
    assert!(meaning.segments.is_empty() && meaning.failures.is_empty());
    assert!(
        meaning
            .clocks
            .iter()
            .all(|result| result.measured.is_none())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_stream_panics(
        pieces in prop::collection::vec((any::<[u64; 3]>(), 0..3_usize, 0..4_u32, any::<[[u64; 3]; 5]>(),
            any::<bool>()), 0..60),
        khz in prop_oneof![Just(0.0), Just(1.0), any::<f64>()],
    ) {
        let mut recorder = Recorder::default();
        let mut words = [0; MAX_WORDS];
        let shared = Shared::new();
        let mut moves = Vec::new();
        for ([at, a, b], run, vcpu, clocks, is_ack) in pieces {
            let mut which = Clocks::NONE;
            for clock in Clock::ALL.into_iter().filter(|clock| a >> clock.index() & 1 != 0) {
                which = which.with(clock);
            }
            if is_ack {
                let moment = |at: usize| Moment { tsc: clocks[at][0], page: clocks[at][1],
                    counter: clocks[at][2] };
                let ack = Ack { noticed: moment(0), before: moment(1), after: moment(2), frequency: [a, b],
                    ..Ack::default() };
                recorder.feed(&frame(Ack::NAME, ack.encode(&mut words)), at, run);
            } else {
                let mut report = Sampler::new(&shared, vcpu, which).report();
                for (index, [now, gap, gap_at]) in clocks.into_iter().enumerate() {
                    report.now[index] = now;
                    report.tallies[index].gap = gap;
                    report.tallies[index].gap_at = gap_at;
                    report.tallies[index].backward = b;
                    report.tallies[index].reads = a;
                }
                recorder.feed(&frame(Report::NAME, report.encode(&mut words)), at, run);
            }
            if moves.len() < run {
                moves.push(Moved { started: at, resumed: b, khz: Some(khz) });
            }
        }
        let doings = Doings { began: 5, khz, moves, expects_acks: true, clocks: AcrossMoves::Continue };
        let _meaning = analyse(&recorder.finish(), &doings).unwrap();
    }
}
