//! Input from a migration's connection.

use hypernest::memory::{GuestRam, MemoryConfig};
use hypernest::migration::pages::Unpacker;
use hypernest::migration::wire::{
    FrameKind, FrameReader, Hello, MAX_BODY, PromiseMessage, Refuse, StateMessage, Welcome,
};
use hypernest::units::Gpa;

/// Frames, messages, and pages written into RAM: the bytes unchanged, and with the frames' checksums
/// corrected.
pub(crate) fn wire(stream: &[u8]) -> bool {
    let whole = frames(stream);
    let mut mended = stream.to_vec();
    mend(&mut mended);
    frames(&mended) || whole
}

/// Length u32, kind u16, zeros u16, checksum u32 of these and the body.
const HEADER: usize = 12;

fn mend(mut stream: &mut [u8]) {
    while let Some((header, rest)) = stream.split_first_chunk_mut::<HEADER>() {
        let [l0, l1, l2, l3, ..] = *header;
        let len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let Some((body, behind)) = rest.split_at_mut_checked(len) else {
            return;
        };
        header[6..8].fill(0);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..8]), body);
        header[8..].copy_from_slice(&sum.to_le_bytes());
        stream = behind;
    }
}

fn frames(stream: &[u8]) -> bool {
    let config = MemoryConfig::of(1 << 20);
    let Ok(ram) = GuestRam::new(&config, &[(Gpa(0), 1 << 20)]) else {
        return false;
    };
    let unpackers = || {
        [false, true]
            .into_iter()
            .filter_map(|zstd| Unpacker::new(zstd).ok())
    };
    let mut unpackers: Vec<_> = unpackers().collect();
    let mut from = stream;
    let mut reader = FrameReader::default();
    let mut any = false;
    while let Ok(frame) = reader.read(&mut from) {
        assert!(frame.body.len() <= MAX_BODY);
        let _hello = frame.message::<Hello>("Hello");
        let _welcome = frame.message::<Welcome>("Welcome");
        let _promise = frame.message::<PromiseMessage>("Promise");
        let _refuse = frame.message::<Refuse>("Refuse");
        let _state = frame.message::<StateMessage>("State");
        assert_eq!(frame.kind == FrameKind::Commit, frame.kind.number() == 11);
        for unpacker in &mut unpackers {
            let _refused = unpacker.unpack(frame.body, &ram);
        }
        any = true;
    }
    any
}
