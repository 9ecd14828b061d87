//! What comes over a migration's connection: frames, messages, and pages put into RAM.
#![no_main]

use hypernest::memory::MemoryConfig;
use hypernest::memory::GuestRam;
use hypernest::migration::pages::Unpacker;
use hypernest::migration::wire::{
    FrameReader, Hello, Kind, MAX_BODY, Promise, Refuse, State, Welcome,
};
use hypernest::units::Gpa;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    let mut from = stream;
    let mut reader = FrameReader::default();
    while let Ok(frame) = reader.read(&mut from) {
        assert!(frame.body.len() <= MAX_BODY);
        let _hello = frame.message::<Hello>("Hello");
        let _welcome = frame.message::<Welcome>("Welcome");
        let _promise = frame.message::<Promise>("Promise");
        let _refuse = frame.message::<Refuse>("Refuse");
        let _state = frame.message::<State>("State");
        assert_eq!(frame.kind == Kind::Commit, frame.kind.number() == 11);
    }
    // Checksums are hard to guess, so the bytes are tried as pages, too.
    let config = MemoryConfig {
        size: 1 << 20,
        hugepages: None,
    };
    let Ok(ram) = GuestRam::new(&config, &[(Gpa(0), 1 << 20)]) else {
        return;
    };
    for zstd in [false, true] {
        if let Ok(mut unpacker) = Unpacker::new(zstd) {
            let _refused = unpacker.unpack(stream, &ram);
        }
    }
});
