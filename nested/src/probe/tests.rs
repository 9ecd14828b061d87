extern crate std;

use std::vec::Vec;

use super::*;
use proptest::prelude::*;

fn samples(name: &str, width: Width, values: &[u64]) -> Vec<u8> {
    let mut bytes = samples_header(name, width, values.len())
        .expect("short name")
        .to_vec();
    bytes.extend(name.bytes());
    for value in values {
        bytes.extend(&value.to_le_bytes()[..width.bytes()]);
    }
    bytes
}

#[test]
fn a_stream_of_everything_comes_out_in_order() {
    let mut stream = std::vec![ALIVE];
    stream.extend(b"first line\r\n");
    stream.extend(mark_header("begin").expect("short name"));
    stream.extend(b"begin");
    stream.extend(samples("cpuid", Width::Four, &[1, 0xFFFF_FFFF]));
    stream.extend(samples("", Width::Eight, &[u64::MAX]));
    stream.extend(b"\nhalf a li");

    let mut items = Items::new(&stream);
    assert_eq!(items.next(), Some(Ok(Item::Alive)));
    assert_eq!(items.next(), Some(Ok(Item::Line(b"first line"))));
    assert_eq!(items.next(), Some(Ok(Item::Mark("begin"))));
    let Some(Ok(Item::Samples(block))) = items.next() else {
        panic!("no samples")
    };
    assert_eq!((block.name, block.len()), ("cpuid", 2));
    assert_eq!(block.iter().collect::<Vec<_>>(), [1, 0xFFFF_FFFF]);
    let Some(Ok(Item::Samples(block))) = items.next() else {
        panic!("no samples")
    };
    assert_eq!(block.iter().collect::<Vec<_>>(), [u64::MAX]);
    assert_eq!(items.next(), Some(Ok(Item::Line(b""))));
    assert_eq!(items.next(), None);
    assert_eq!(items.rest(), b"half a li");
}

#[test]
fn what_a_header_cannot_say_has_no_header() {
    let long = std::str::from_utf8(&[b'x'; 256]).expect("ASCII");
    assert_eq!(mark_header(long), None);
    assert!(samples_header("x", Width::Four, MAX_COUNT as usize).is_some());
    assert_eq!(
        samples_header("x", Width::Four, MAX_COUNT as usize + 1),
        None
    );
}

#[test]
fn malformed_streams_are_named() {
    let with = |at: usize, byte: u8| {
        let mut frame = samples("n", Width::Four, &[7]);
        frame[at] = byte;
        next_item(&frame).map(|item| item.map(|(_, taken)| taken))
    };
    assert_eq!(with(4, 1), Ok(Some(17)));
    assert_eq!(with(1, b'X'), Err(Malformed::Magic));
    assert_eq!(with(4, 9), Err(Malformed::Kind(9)));
    assert_eq!(with(5, 3), Err(Malformed::Width(3)));
    assert_eq!(with(11, 0x80), Err(Malformed::Count(0x8000_0001)));
    assert_eq!(with(12, 0xC0), Err(Malformed::Name));
    // A mark carries no integers.
    let mut mark = mark_header("").expect("short name");
    mark[8] = 1;
    assert_eq!(next_item(&mark), Err(Malformed::Count(1)));
}

#[test]
fn a_line_without_end_is_refused_before_it_fills_memory() {
    let line = std::vec![b'x'; MAX_LINE];
    assert_eq!(next_item(&line), Ok(None));
    let line = std::vec![b'x'; MAX_LINE + 1];
    assert_eq!(next_item(&line), Err(Malformed::LineTooLong));
    // Not even if the end of the line follows.
    let mut line = line;
    line.push(b'\n');
    assert_eq!(next_item(&line), Err(Malformed::LineTooLong));
}

#[test]
fn the_narrowest_width_is_chosen() {
    assert_eq!(Width::for_max(u64::from(u32::MAX)), Width::Four);
    assert_eq!(Width::for_max(u64::from(u32::MAX) + 1), Width::Eight);
}

#[test]
fn what_a_doorbell_says_has_one_value() {
    let board = |gpa| Doorbell::Board { gpa };
    let table = [
        (Doorbell::Begin, Some(1)),
        (Doorbell::End, Some(2)),
        (Doorbell::Done, Some(3)),
        (board(0x10_0000), Some(0x100)),
        (board(0x1_0000), Some(16)),
        (board(0x0FFF_FFFF_F000), Some(0xFFFF_FFFF)),
        (board(0xF000), None),
        (board(0), None),
        (board(0x10_0008), None),
        (board(0x1000_0000_0000), None),
        (board(u64::MAX << 12), None),
    ];
    for (bell, value) in table {
        assert_eq!(bell.value(), value, "{bell:?}");
        if let Some(value) = value {
            assert_eq!(Doorbell::from_value(value), Some(bell));
        }
    }
    for reserved in [0, 4, 15] {
        assert_eq!(Doorbell::from_value(reserved), None);
    }
}

fn bytes_with_frames() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        Just(MAGIC.to_vec()),
        (
            any::<[u8; 4]>(),
            0..4_u8,
            prop::sample::select(std::vec![0_u8, 4, 8, 5])
        )
            .prop_map(|(count, kind, width)| {
                let mut frame = MAGIC.to_vec();
                frame.extend([kind, width, 2, 0]);
                frame.extend(count);
                frame
            }),
        prop::collection::vec(any::<u32>(), 0..5).prop_map(|values| samples(
            "s",
            Width::Four,
            &values.into_iter().map(u64::from).collect::<Vec<_>>()
        )),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_stream_panics_or_stands_still(stream in bytes_with_frames()) {
        let mut rest = &stream[..];
        while let Ok(Some((_, taken))) = next_item(rest) {
            prop_assert!(taken > 0 && taken <= rest.len());
            rest = &rest[taken..];
        }
    }

    #[test]
    fn a_doorbell_is_read_back(value: u32) {
        if let Some(bell) = Doorbell::from_value(value) {
            prop_assert_eq!(bell.value(), Some(value));
        }
    }

    #[test]
    fn a_prefix_never_decodes_to_something_else(values in prop::collection::vec(any::<u64>(), 0..6),
        cut in 0..80_usize) {
        let whole = samples("name", Width::Eight, &values);
        let cut = cut.min(whole.len() - 1);
        prop_assert_eq!(next_item(&whole[..cut]), Ok(None));
        let Ok(Some((Item::Samples(block), taken))) = next_item(&whole) else { panic!("did not decode") };
        prop_assert_eq!(taken, whole.len());
        prop_assert_eq!(block.iter().collect::<Vec<_>>(), values);
    }
}
