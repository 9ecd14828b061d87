//! What guest programs send through the debug console.
#![no_main]

use hypernest_nested::probe::{Item, next_item};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    let mut rest = stream;
    while let Ok(Some((item, taken))) = next_item(rest) {
        assert!(taken > 0 && taken <= rest.len());
        if let Item::Samples(samples) = item {
            assert_eq!(samples.iter().count(), samples.iter().len());
        }
        rest = &rest[taken..];
    }
});
