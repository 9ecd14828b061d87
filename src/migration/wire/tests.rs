use std::io::Cursor;

use proptest::prelude::*;

use super::*;

fn frame(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = FrameWriter::default()
        .write(&mut bytes, kind, body)
        .unwrap();
    assert_eq!(written, bytes.len() as u64);
    bytes
}

#[test]
fn read_frames_equal_the_written_frames() {
    let mut bytes = frame(FrameKind::Part, &[7; 5000]);
    bytes.extend(frame(FrameKind::Commit, &[]));
    let mut from = Cursor::new(bytes);
    let mut reader = FrameReader::default();
    let first = reader.read(&mut from).unwrap();
    assert_eq!((first.kind, first.body), (FrameKind::Part, &[7; 5000][..]));
    let second = reader.read(&mut from).unwrap();
    assert_eq!((second.kind, second.body), (FrameKind::Commit, &[][..]));
    assert!(matches!(reader.read(&mut from), Err(WireError::Closed)));
}

#[test]
fn frame_layout_matches_the_documentation() {
    let bytes = frame(FrameKind::Part, b"123456789");
    assert_eq!(bytes[..8], [9, 0, 0, 0, 3, 0, 0, 0]);
    let mut covered = bytes[..8].to_vec();
    covered.extend_from_slice(b"123456789");
    assert_eq!(bytes[8..12], crc32c::crc32c(&covered).to_le_bytes());
    // The usual check value of CRC32C.
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn header_length_is_checked_before_allocation() {
    let mut reader = FrameReader::default();
    for (kind, len) in [(7, u32::MAX), (1, 70_000), (11, 1)] {
        let mut header = u32::to_le_bytes(len).to_vec();
        header.extend_from_slice(&u16::to_le_bytes(kind));
        header.extend_from_slice(&[0; 6]);
        let e = reader.read(&mut Cursor::new(header)).unwrap_err();
        assert!(matches!(e, WireError::TooLong { .. }), "{e}");
    }
    assert_eq!(reader.body.capacity(), 0);
    let e = reader.read(&mut Cursor::new(vec![0xff; 64])).unwrap_err();
    assert!(matches!(e, WireError::UnknownKind(0xffff)), "{e}");
}

#[test]
fn each_flipped_bit_is_detected() {
    let bytes = frame(FrameKind::Part, b"memory");
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        FrameReader::default()
            .read(&mut Cursor::new(damaged))
            .unwrap_err();
    }
    for len in 0..bytes.len() {
        FrameReader::default()
            .read(&mut Cursor::new(&bytes[..len]))
            .unwrap_err();
    }
}

#[test]
fn messages_are_bounded_and_parsed_by_kind() {
    let refuse = Refuse {
        reasons: vec!["\u{7}x".repeat(10_000); 1000],
    };
    let body = refuse.body();
    assert!(body.len() <= FrameKind::Refuse.limit());
    let bytes = frame(FrameKind::Refuse, &body);
    let mut reader = FrameReader::default();
    let back = reader.read(&mut Cursor::new(&bytes)).unwrap();
    let refuse: Refuse = back.message("Refuse").unwrap();
    assert_eq!(refuse.reasons.len(), 256);
    assert!(back.message::<StateMessage>("State").is_err());
    let nonsense = frame(FrameKind::State, b"{}");
    let frame = reader.read(&mut Cursor::new(&nonsense)).unwrap();
    let e = frame.message::<StateMessage>("State").unwrap_err();
    assert!(matches!(e, WireError::Nonsense { .. }), "{e}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut from = Cursor::new(bytes);
        let mut reader = FrameReader::default();
        while reader.read(&mut from).is_ok() {}
    }
}
