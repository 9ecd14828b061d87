//! Configuration files.
#![no_main]

use std::path::Path;

use hypernest::config::{ConfigFile, Flags, HostLimits, build};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: String| {
    let file = ConfigFile::new(Path::new("fuzz.toml"), text);
    let _ = build(Some(&file), &Flags::default(), HostLimits::default());
});
