//! State files as anybody may hand them around.
#![no_main]

use hypernest::state::Sections;
use hypernest::state::snapshot::{RAM_SECTION, RamIndex};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(sections) = Sections::decode(bytes, 1 << 20) else {
        return;
    };
    let mut again = Vec::new();
    sections.encode(&mut again).expect("memory takes it");
    assert_eq!(again, bytes, "what is read is what was written");
    if let Some(section) = sections.get(RAM_SECTION)
        && let Ok(index) = RamIndex::load(section)
    {
        assert!(index.len() < 1 << 63);
    }
});
