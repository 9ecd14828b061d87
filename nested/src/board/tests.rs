extern crate std;

use std::string::ToString;
use std::vec::Vec;

use super::*;
use proptest::prelude::*;

fn bytes(board: &Board) -> Vec<u8> {
    board
        .words()
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

fn complete() -> Board {
    Board {
        status: Status::Complete as u64,
        stopwatch_begin: 100,
        stopwatch_end: 350,
        last_exit_reason: 10,
        last_exit_qualification: 7,
        last_guest_rip: 0x1000,
        exits: 42,
        ..Board::new(Kind::Hypercall, 5, 0x20_0000)
    }
}

#[test]
fn a_board_is_read_as_it_was_written() {
    let reading = read(&bytes(&complete())).expect("well formed");
    let last_exit = LastExit {
        reason: 10,
        qualification: 7,
        rip: 0x1000,
    };
    let expected = Reading {
        kind: Kind::Hypercall,
        status: Status::Complete,
        capacity: 5,
        samples_gpa: 0x20_0000,
        stopwatch: Some(250),
        last_exit,
        exits: 42,
    };
    assert_eq!(reading, expected);
    assert_eq!(reading.samples_len(), 160);
    // The rest of the page is unused.
    let mut page = bytes(&complete());
    page.resize(4096, 0xAA);
    assert_eq!(read(&page), Ok(reading));
}

#[test]
fn a_board_begins_with_its_name() {
    assert_eq!(&bytes(&complete())[..8], b"HNH2BRD\0");
}

#[test]
fn there_is_no_stopwatch_before_the_end() {
    for status in [Status::WarmingUp, Status::Measuring, Status::Failed] {
        // The end is of the kind before.
        let board = Board {
            status: status as u64,
            stopwatch_begin: 900,
            ..complete()
        };
        let reading = read(&bytes(&board)).expect("well formed");
        assert_eq!((reading.status, reading.stopwatch), (status, None));
    }
}

#[test]
fn malformed_boards_are_named() {
    let table = [
        (
            Board {
                magic: 0,
                ..complete()
            },
            Malformed::Magic(0),
        ),
        (
            Board {
                version: 2,
                ..complete()
            },
            Malformed::Version(2),
        ),
        (
            Board {
                kind: 22,
                ..complete()
            },
            Malformed::Kind(22),
        ),
        (
            Board {
                kind: u64::MAX,
                ..complete()
            },
            Malformed::Kind(u64::MAX),
        ),
        (
            Board {
                status: 0,
                ..complete()
            },
            Malformed::Status(0),
        ),
        (
            Board {
                status: 5,
                ..complete()
            },
            Malformed::Status(5),
        ),
        (
            Board {
                capacity: MAX_CAPACITY + 1,
                ..complete()
            },
            Malformed::Capacity(MAX_CAPACITY + 1),
        ),
        (
            Board {
                capacity: u64::MAX,
                ..complete()
            },
            Malformed::Capacity(u64::MAX),
        ),
        (
            Board {
                samples_gpa: 4,
                ..complete()
            },
            Malformed::Samples(4),
        ),
        (
            Board {
                samples_gpa: u64::MAX - 7,
                ..complete()
            },
            Malformed::Samples(u64::MAX - 7),
        ),
        (
            Board {
                stopwatch_begin: 351,
                ..complete()
            },
            Malformed::Stopwatch {
                begin: 351,
                end: 350,
            },
        ),
    ];
    for (board, error) in table {
        assert_eq!(read(&bytes(&board)), Err(error));
        assert!(
            error
                .to_string()
                .starts_with("the guest's board of measurements "),
            "{error}"
        );
    }
    let board = bytes(&complete());
    assert_eq!(read(&board[..95]), Err(Malformed::Short(95)));
    assert_eq!(read(&[]), Err(Malformed::Short(0)));
    let most = Board {
        capacity: MAX_CAPACITY,
        ..complete()
    };
    assert_eq!(
        read(&bytes(&most)).map(|reading| reading.samples_len()),
        Ok(32 << 20)
    );
}

#[test]
fn a_sample_splits_into_its_parts() {
    let sample = |before, exited, resumed, after| Sample {
        before,
        exited,
        resumed,
        after,
    };
    let table = [
        (
            sample(10, 30, 35, 60),
            Split::Parts {
                l2_to_l1: 20,
                l1: 5,
                l1_to_l2: 25,
            },
        ),
        (
            sample(10, 10, 10, 10),
            Split::Parts {
                l2_to_l1: 0,
                l1: 0,
                l1_to_l2: 0,
            },
        ),
        (sample(10, 0, 0, 60), Split::Whole { round_trip: 50 }),
        (sample(10, 30, 35, 0), Split::NotTaken),
        (Sample::default(), Split::NotTaken),
        (sample(10, 9, 35, 60), Split::OutOfOrder),
        (sample(10, 30, 29, 60), Split::OutOfOrder),
        (sample(10, 30, 35, 34), Split::OutOfOrder),
        (sample(10, 0, 35, 60), Split::OutOfOrder),
        (sample(10, 30, 0, 60), Split::OutOfOrder),
        (sample(10, 0, 0, 9), Split::OutOfOrder),
    ];
    for (sample, split) in table {
        assert_eq!(sample.split(), split, "{sample:?}");
    }
}

#[test]
fn samples_come_out_in_order() {
    let words: Vec<u8> = (1..=8_u64)
        .flat_map(u64::to_le_bytes)
        .chain([9; 5])
        .collect();
    let both: Vec<_> = samples(&words).collect();
    let expected = [
        Sample {
            before: 1,
            exited: 2,
            resumed: 3,
            after: 4,
        },
        Sample {
            before: 5,
            exited: 6,
            resumed: 7,
            after: 8,
        },
    ];
    assert_eq!(both, expected);
}

proptest! {
    #[test]
    fn no_board_panics(mut words: [u64; 12], whole: bool, kind in 0..30_u64, status in 0..6_u64,
        len in 0..120_usize) {
        if whole {
            words[..4].copy_from_slice(&[MAGIC, VERSION, kind, status]);
            words[4] %= MAX_CAPACITY + 2;
        }
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(len, 0);
        if let Ok(reading) = read(&bytes) {
            prop_assert!(reading.capacity as u64 <= MAX_CAPACITY);
            prop_assert!(reading.samples_gpa.checked_add(reading.samples_len() as u64).is_some());
        }
    }

    #[test]
    fn the_parts_make_the_round_trip(before: u64, exited: u64, resumed: u64, after: u64, sorted: bool) {
        let mut stamps = [before, exited, resumed, after];
        if sorted {
            stamps.sort_unstable();
        }
        let [before, exited, resumed, after] = stamps;
        match (Sample { before, exited, resumed, after }).split() {
            Split::Parts { l2_to_l1, l1, l1_to_l2 } => prop_assert_eq!(l2_to_l1 + l1 + l1_to_l2,
                after - before),
            Split::Whole { round_trip } => prop_assert_eq!(round_trip, after - before),
            Split::NotTaken => prop_assert_eq!(after, 0),
            Split::OutOfOrder => prop_assert!(!sorted || (exited == 0) != (resumed == 0) || before > after),
        }
    }
}
